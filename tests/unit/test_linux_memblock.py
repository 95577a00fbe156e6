# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's lists of memory and of what is reserved, and single pages taken from them."""

import pytest

from xenpt.linux.memblock import Memblock, Regions
from xenpt.linux.pages import Pages, take_block
from xenpt.linux.state import LinuxPanic

NONE_LEFT = LinuxPanic("none is left")
MIB = 1 << 20


def test_regions_that_touch_or_overlap_are_one():
    assert Regions.of([(8, 12), (0, 4), (4, 6), (11, 20), (30, 30)]).ranges == ((0, 6), (8, 20))


def test_removing_splits_a_region_and_passes_over_holes():
    regions = Regions.of([(0, 10), (20, 30)])
    assert regions.remove(4, 25).ranges == ((0, 4), (25, 30))
    assert regions.remove(10, 20) == regions
    assert (regions - Regions.of([(1, 2), (3, 4), (29, 40)])).ranges == (
        (0, 1), (2, 3), (4, 10), (20, 29)
    )  # fmt: skip


def test_clip_size_and_meets_speak_of_half_open_ranges():
    regions = Regions.of([(0, 10), (20, 30)])
    assert regions.clip(5, 20).ranges == ((5, 10),)
    assert regions.size == 20
    assert not regions.meets(10, 20)
    assert regions.meets(9, 20)


def test_freeing_what_is_reserved_gives_it_back():
    memblock = Memblock(Regions.of([(0, 8 * MIB)])).reserve(MIB, 2 * MIB).free(MIB, MIB + 4096)
    assert memblock.as_dict() == {
        "memory": [[0, 8 * MIB]],
        "reserved": [[MIB + 4096, 2 * MIB]],
    }


def test_a_block_is_found_as_high_as_its_alignment_allows():
    memblock = Memblock(Regions.of([(0, 7 * MIB)])).reserve(6 * MIB, 6 * MIB + 4096)
    assert memblock.find(2 * MIB, 2 * MIB, 0, 7 * MIB) == 4 * MIB
    assert memblock.find(4 * MIB, 4 * MIB, MIB, 7 * MIB) is None
    assert take_block(memblock, 2 * MIB, 2 * MIB, NONE_LEFT)[1] == 4 * MIB
    with pytest.raises(LinuxPanic):
        take_block(memblock, 16 * MIB, 4096, NONE_LEFT)


def test_page_0_is_never_taken():
    assert Memblock(Regions.of([(0, 4096)])).find(4096, 4096, 0, MIB) is None


def test_pages_are_taken_from_the_top_across_holes():
    memblock = Memblock(Regions.of([(4096, 5 * 4096), (8 * 4096, 10 * 4096)]))
    taken, runs = memblock.take_pages(4, 0, MIB)
    assert runs == ((9, 2), (4, 2))
    assert taken.reserved.ranges == ((3 * 4096, 5 * 4096), (8 * 4096, 10 * 4096))
    pages = Pages(memblock, NONE_LEFT)
    assert [pages.next() for _ in range(3)] == [9, 8, 4]
    pages.skip(1)
    assert pages.memblock.reserved == taken.reserved
    assert pages.nr == 4


def test_who_runs_out_of_pages_says_what_that_means():
    pages = Pages(Memblock(Regions.of([(4096, 3 * 4096)])), NONE_LEFT)
    pages.skip(2)
    with pytest.raises(LinuxPanic, match="none is left"):
        pages.next()
