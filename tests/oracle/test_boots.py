# SPDX-License-Identifier: GPL-2.0-or-later
"""Real boots of this machine's own Xen and Linux packages, word for word against the model."""

import os

import pytest
from oracle.cases import CASES, QUICK
from oracle.compare import compare
from oracle.machine import qemu_version
from oracle.observe import observe, read_linux
from oracle.packages import UnavailableError, fetch

pytestmark = pytest.mark.oracle

#: Comparisons of each of these cases; none of them may be left out.
SUBJECTS = 18


@pytest.fixture(scope="module")
def software():
    if not os.environ.get("XENPT_ORACLE"):
        pytest.skip("downloads 75 MB and boots for half a minute: make oracle, or XENPT_ORACLE=1")
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
