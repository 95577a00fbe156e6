# SPDX-License-Identifier: GPL-2.0-or-later
"""Real boots of this machine's own Xen and Linux packages, and guests that its toolstack builds,
word for word against the model."""

import os

import pytest
from oracle.cases import CASES, QUICK
from oracle.compare import compare
from oracle.guestboot import build_guests
from oracle.guestcompare import compare_guest
from oracle.guests import GUESTS
from oracle.machine import qemu_version
from oracle.observe import observe, read_linux
from oracle.packages import UnavailableError, fetch, fetch_toolstack

from xenpt.inputs.kernel import read_kernel

pytestmark = pytest.mark.oracle

#: Of all guests; what the others compare is how the library gives up.
GUESTS_THAT_ARE_BUILT = 22
#: Comparisons of each of these cases; none of them may be left out.
SUBJECTS = 18


@pytest.fixture(scope="module")
def software():
    if not os.environ.get("XENPT_ORACLE"):
        pytest.skip("downloads 80 MB and boots for a minute: make oracle, or XENPT_ORACLE=1")
    try:
        qemu_version()
        return fetch()
    except UnavailableError as reason:
        pytest.skip(f"real boots: {reason}")


@pytest.mark.parametrize("name", QUICK)
def test_real_boot_equals_the_model(software, name):
    kernel, symbols = read_linux(software.linux)
    results = compare(observe(CASES[name], software, kernel, symbols), kernel)
    assert [(result.subject, line) for result in results for line in result.differences] == []
    assert len(results) == SUBJECTS
    assert all(result.words for result in results)


def test_real_guests_equal_the_model(software):
    debian = read_kernel(software.linux)
    try:
        compared = {
            built.guest.name: compare_guest(built, debian)
            for built in build_guests(list(GUESTS.values()), software, fetch_toolstack())
        }
    except UnavailableError as reason:
        pytest.skip(f"real guests: {reason}")
    assert list(compared) == list(GUESTS)
    assert [
        (name, result.subject, line)
        for name, results in compared.items()
        for result in results
        for line in result.differences
    ] == []
    assert sum(len(results) > 1 for results in compared.values()) == GUESTS_THAT_ARE_BUILT
