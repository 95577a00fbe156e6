# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory map that Linux gets from Xen, and what xen_memory_setup() asks of it (setup.c)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, pfn_up, round_down
from xenpt.inputs.config import USABLE
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.memblock import Regions

RAM = USABLE
RESERVED = "reserved"
UNUSABLE = "unusable"
NVS = "ACPI NVS"
#: Where entries overlap the last of these wins, like the highest type number does in Linux.
_PRECEDENCE = (RAM, RESERVED, "ACPI data", NVS, UNUSABLE)

E820 = tuple[E820Entry, ...]


def flat_map(nr_bytes: int) -> E820:
    """One RAM entry [0, nr_bytes)."""
    return (E820Entry(0, nr_bytes, RAM),)


def ignore_unusable(table: E820) -> E820:
    """What the host calls unusable as RAM: Xen refuses identity mappings of it."""
    return tuple(replace(e, type=RAM) if e.type == UNUSABLE else e for e in table)


def sanitize(entries: Iterable[E820Entry]) -> E820:
    """Sorted and disjoint; touching entries of one type are joined (e820__update_table)."""
    given = [e for e in entries if e.start < e.end]
    cuts = sorted({edge for e in given for edge in (e.start, e.end)})
    out: list[E820Entry] = []
    for start, end in pairwise(cuts):
        types = {e.type for e in given if e.start <= start < e.end}
        if not types:
            continue
        kind = max(types, key=_rank)
        if out and out[-1].end == start and out[-1].type == kind:
            out[-1] = E820Entry(out[-1].start, end, kind)
        else:
            out.append(E820Entry(start, end, kind))
    return tuple(out)


def holes(table: E820) -> Iterator[tuple[int, int]]:
    """Runs of pages [start_pfn, end_pfn) that are not RAM, rounded outwards to pages.

    Gaps and entries that are not RAM are taken together up to the next RAM entry, or to the end
    of the map; nothing is behind the last RAM entry of a map that ends with it.
    Models xen_foreach_remap_area().
    """
    start = 0
    for i, entry in enumerate(table):
        if entry.type != RAM and i != len(table) - 1:
            continue
        end_pfn = pfn_up(entry.start if entry.type == RAM else entry.end)
        if start >> PAGE_SHIFT < end_pfn:
            yield start >> PAGE_SHIFT, end_pfn
        start = entry.end


def count_remap_pages(table: E820, max_pfn: int, *, ram_in_part: bool) -> int:
    """Pages below `max_pfn` that will have to move, as they are counted beforehand.

    :param ram_in_part: a page that is RAM in part, and nothing else, counts as RAM, though
        holes() has it; else the holes are counted

    Models xen_count_remap_pages().
    """
    end = min(max_pfn, pfn_up(table[-1].end))
    if not ram_in_part:
        return Regions.of(holes(table)).clip(0, max_pfn).size
    ram, other = (
        Regions.of((e.start >> PAGE_SHIFT, pfn_up(e.end)) for e in table if (e.type == RAM) is kind)
        for kind in (True, False)
    )
    gaps = Regions.of([(0, end)]) - ram
    return Regions.of((*gaps, *other.clip(0, end))).size


def find_pfn_range(table: E820, min_pfn: int, *, inclusive: bool) -> tuple[int, int]:
    """(first, pages) of the first RAM at or behind `min_pfn`; no pages if there is none.

    :param inclusive: an entry that ends at `min_pfn` is passed over; if not, it is found with no
        pages in it (SPEC H14)

    Models xen_find_pfn_range().
    """
    for entry in table:
        if entry.type != RAM:
            continue
        first, end = pfn_up(entry.start), entry.end >> PAGE_SHIFT
        if end < min_pfn or (inclusive and end == min_pfn):
            continue
        first = max(first, min_pfn)
        return first, end - first
    return min_pfn, 0


def in_one_ram_entry(table: E820, start: int, end: int) -> bool:
    """Whether bytes [start, end) lie inside one RAM entry (not xen_is_e820_reserved())."""
    return any(e.type == RAM and e.start <= start and end <= e.end for e in table)


def ram_regions(table: E820) -> Regions:
    """RAM in whole pages, bytes [start, end)."""
    return Regions.of(
        (pfn_up(e.start) << PAGE_SHIFT, round_down(e.end, PAGE_SIZE))
        for e in table
        if e.type == RAM
    )


def _rank(kind: str) -> int:
    return _PRECEDENCE.index(kind) if kind in _PRECEDENCE else 1
