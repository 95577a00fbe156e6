# SPDX-License-Identifier: GPL-2.0-or-later
from dataclasses import replace

import pytest

from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.largest import _largest_that, largest_dom0
from xenpt.linux import V4_1, V6_1

LEGACY = replace(default_kernel(), init_p2m=None)


@pytest.mark.parametrize("largest", [1, 2, 3, 500, 511, 512, 999, 1000])
@pytest.mark.parametrize("smallest", [1, 400])
def test_search_finds_the_end_of_what_fits(largest, smallest):
    if largest >= smallest:
        assert _largest_that(lambda n: smallest <= n <= largest, 1000) == largest


def test_search_that_finds_nothing():
    assert _largest_that(lambda _: False, 1000) == 0
    assert _largest_that(lambda _: True, 0) == 0


def test_small_host_gives_all_that_it_has_with_the_note_or_without():
    host = Host(memory="4G")
    with_note, without = largest_dom0(default_kernel(), host, V6_1)
    # 1048576 pages less frame table 8192, M2P 2048 and Xen's own 943; 128 MiB less by default
    assert with_note.nr_pages == without.nr_pages == 1037393
    assert with_note.default_pages == without.default_pages == 1037393 - 32768
    assert not with_note.clipped
    assert not without.clipped


def test_one_domain_has_at_most_2_to_the_32_less_1_pages():
    found = largest_dom0(default_kernel(), Host(memory="24T", bigmem=True), V6_1)
    assert found[0].nr_pages == (1 << 32) - 1
    assert found[0].default_pages > found[0].nr_pages


def test_kernel_that_dies_of_its_list_boots_at_no_size():
    with_note, without = largest_dom0(default_kernel(), Host(memory="8G"), V4_1)
    assert with_note.nr_pages == 0
    assert with_note.default_panic == "Hardware Dom0 halted: halting machine"
    assert without.nr_pages > 0


def test_kernel_without_the_note_has_one_answer():
    found = largest_dom0(LEGACY, Host(memory="8G"), V6_1)
    assert [each.init_p2m for each in found] == [False]
    assert found[0].as_dict()["without_dom0_mem"]["panic"] is None
