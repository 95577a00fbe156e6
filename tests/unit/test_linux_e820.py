# SPDX-License-Identifier: GPL-2.0-or-later
"""The map that Linux gets from Xen: cleaned up, and asked for holes and for room."""

import pytest

from xenpt.inputs.config import Ram
from xenpt.linux.e820 import find_pfn_range, flat_map, holes, in_one_ram_entry, sanitize

PAGE = 4096


def test_where_entries_overlap_the_higher_type_wins():
    table = sanitize([Ram(0, 100), Ram(50, 60, "reserved"), Ram(60, 120), Ram(5, 5, "reserved")])
    assert table == (Ram(0, 50), Ram(50, 60, "reserved"), Ram(60, 120))


def test_gaps_and_reserved_entries_up_to_the_next_ram_are_one_hole_in_whole_pages():
    """c512m: RAM up to 0x9fbff, then from 1 MiB on: pfns 0x9f to 0xff."""
    table = (Ram(0, 0x9FC00), Ram(0x9FC00, 0xA0000, "reserved"), Ram(0x100000, 0x200000))
    assert list(holes(table)) == [(0x9F, 0x100)]


def test_a_map_that_ends_without_ram_has_its_last_hole_up_to_its_end():
    table = (Ram(0, 16 * PAGE), Ram(20 * PAGE, 21 * PAGE, "reserved"))
    assert list(holes(table)) == [(16, 21)]
    assert list(holes(flat_map(16 * PAGE))) == []


def test_room_is_looked_for_at_or_behind_a_page():
    table = (Ram(0, 16 * PAGE), Ram(32 * PAGE, 40 * PAGE))
    assert find_pfn_range(table, 10, inclusive=True) == (10, 6)
    assert find_pfn_range(table, 17, inclusive=True) == (32, 8)
    assert find_pfn_range(table, 40, inclusive=True) == (40, 0)


@pytest.mark.parametrize("inclusive, found", [(True, (32, 8)), (False, (16, 0))])
def test_an_entry_that_ends_where_the_search_begins_is_empty_room_for_old_kernels(inclusive, found):
    """SPEC H14: `<` found it, with no page in it; `<=` passes over it."""
    table = (Ram(0, 16 * PAGE), Ram(32 * PAGE, 40 * PAGE))
    assert find_pfn_range(table, 16, inclusive=inclusive) == found


def test_a_range_across_two_touching_entries_is_not_in_one():
    table = (Ram(0, 16 * PAGE), Ram(16 * PAGE, 32 * PAGE))
    assert in_one_ram_entry(table, 0, 16 * PAGE)
    assert not in_one_ram_entry(table, PAGE, 17 * PAGE)
