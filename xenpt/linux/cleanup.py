# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_pagetable_p2m_free(): the initial P->M list and the tables that map it go back (mmu.c).

Every 4 KiB frame of a list outside the initial mapping is made writable by one hypercall, however
large its leaf is: large leaves save reads and calls of the allocator, not hypercalls. SPEC F7.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xenpt.abi import (
    ENTRIES,
    MMUEXT_UNPIN_TABLE,
    PAGE_SHIFT,
    pfn_up,
    round_up,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.engine import FreeWalk, WalkRules, walk_to_free
from xenpt.extents import Ints, Mapping, column, entry_pages, join_ranges
from xenpt.linux.directmap import KERNEL_PTE, frame_flags
from xenpt.linux.memblock import NO_REGIONS, Memblock, Regions
from xenpt.linux.pagetable import clean_highmap
from xenpt.linux.state import PMD_SIZE, RELOCATED_VADDR, BootState, LinuxPanic
from xenpt.xen.hypercalls import Hypercalls

LOOKUP_READS = 4  # lookup_address(): one entry a level

_BUG = "kernel BUG in xen_pagetable_p2m_free(): P->M list below the kernel's mapping"


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What freeing the list costs; the keys of the `cleanup` JSON object, but for `variants`.

    :ivar set_entries: entries that a hypercall cleared, by level ("l2", "l3", "l4")
    :ivar unpin: tables unpinned
    """

    profile: str
    cost: Cost
    set_entries: dict[str, int]
    unpin: int

    @classmethod
    def of_nothing(cls, profile: str) -> "Cleanup":
        """One that does nothing."""
        return cls(profile, Cost(), {"l2": 0, "l3": 0, "l4": 0}, 0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready counts."""
        cost = self.cost
        below_root = ("l1", "l2", "l3")
        return {
            "profile": self.profile,
            "hypercalls": cost.hypercalls,
            "update_va_mapping": cost.by_type["update_va_mapping"],
            **{f"set_{level}": nr for level, nr in self.set_entries.items()},
            "unpin": self.unpin,
            "memblock_free_calls": cost.memblock_free_calls,
            "pages_freed": cost.pages_freed,
            "pages_leaked": cost.pages_leaked,
            "tables_freed": {level: cost.tables_freed[level] for level in below_root},
            "entries_read": {level: cost.entries_read[level] for level in below_root},
            "lookup_reads": cost.lookup_reads,
        }


def p2m_free(state: BootState, hc: Hypercalls) -> tuple[BootState, Cleanup]:
    """Free the list, inside or outside the kernel's mapping."""
    return free_list(state, hc) if state.list_outside else _free_inside(state, hc)


def free_list(state: BootState, hc: Hypercalls) -> tuple[BootState, Cleanup]:
    """xen_cleanmfnmap() of a list outside, built by Xen or libxenguest, or moved by Linux.

    Not called in a boot that dies before: a list that crosses its L4 slot, or lies in slot 0.

    :raises LinuxPanic: a generation that knows of no list outside
    """
    if not state.rules.graft_initial_p2m:
        raise LinuxPanic(_BUG)
    rules = state.rules.cleanup
    vaddr, mapping = state.initial_list.vaddr, state.initial_list.mapping
    assert mapping is not None
    walk = walk_of_list(state, mapping)
    unpin = rules.unpin_relocated and vaddr == RELOCATED_VADDR
    if rules.root_entry_first:
        hc.mmu_update(4, state.root_pfn, table_slot(vaddr, 4), None, 0)
    _issue(state, hc, walk, mapping, unpin=unpin)
    tables = walk.tables_freed
    set_entries = {"l2": 0, "l3": 0, "l4": 1 if rules.root_entry_first else 0}
    if rules.clear_table_entries:
        set_entries |= {"l2": tables["l1"], "l3": tables["l2"]}
        set_entries["l4"] |= tables["l3"]
    freed = frames_of(walk)
    lost = _lost(mapping, state.missing)
    cost = Cost(
        by_type=dict(hc.by_type),
        entries_read=walk.entries_read,
        lookup_reads=LOOKUP_READS * walk.pages_freed,
        memblock_free_calls=walk.nr_frees,
        pages_freed=walk.pages_freed - lost.size,
        pages_leaked=walk.leaked_pages + lost.size,
        tables_freed=tables,
    )
    kept = Regions.of(freed) - lost
    given = kept.add(0, 1).ranges if lost.size else kept.ranges
    new = replace(
        state,
        memblock=_free(state.memblock, given),
        ro_frames=state.ro_frames - kept,
        nr_lost=state.nr_lost + lost.size,
        initial_list=replace(state.initial_list, mapping=None),
    )
    nr_unpinned = sum(tables.values()) if unpin else 0
    return new, Cleanup(state.rules.name, cost, set_entries, nr_unpinned)


def walk_of_list(state: BootState, mapping: Mapping) -> FreeWalk:
    """What this generation frees of the list in use, whose mapping is `mapping`."""
    rules = state.rules.cleanup
    how = WalkRules(skip_empty_entries=rules.skip_empty_entries, flat=not rules.depth_first)
    return walk_to_free(mapping, state.initial_list.vaddr, how)


def _lost(mapping: Mapping, missing: Regions) -> Regions:
    """Pages of the list whose own P->M entry is missing: pte_pfn() of their entries is 0.

    So page 0 is freed, once for each of them, and they stay read-only and reserved. In large leaves
    and table pages there are none of these.
    """
    if not missing.ranges:
        return NO_REGIONS
    small = mapping.leaves[mapping.leaves["level"] == 1]
    first, nr = column(small, "pfn"), column(small, "nr")
    return Regions.of(
        piece
        for start, end in zip(first.tolist(), (first + nr).tolist(), strict=True)
        for piece in missing.clip(start, end)
    )


def frames_of(walk: FreeWalk) -> list[tuple[int, int]]:
    """Frames that a walk frees, as sorted ranges [start, end)."""
    runs = np.concatenate((walk.leaves, walk.tables))
    pages = entry_pages(column(runs, "level"))
    pages[len(walk.leaves) :] = 1
    first, nr, step = (column(runs, name) for name in ("pfn", "nr", "step"))
    last = first + (nr - 1) * step
    dense = (np.abs(step) == pages) | (nr == 1)
    ranges = [np.stack((np.minimum(first, last), np.maximum(first, last) + pages), axis=1)[dense]]
    for run in np.flatnonzero(~dense).tolist():  # frames that do not touch
        starts = first[run] + np.arange(nr[run]) * step[run]
        ranges.append(np.stack((starts, starts + pages[run]), axis=1))
    return [(start, end) for start, end in join_ranges(np.concatenate(ranges)).tolist()]


def _issue(
    state: BootState, hc: Hypercalls, walk: FreeWalk, mapping: Mapping, *, unpin: bool
) -> None:
    """The hypercalls of the frees in their order: of a table, first the entry that points to it."""
    cleared = _cleared_levels(state)
    if not hc.one_by_one:
        tables = walk.tables_freed
        freed = Regions.of(frames_of(walk)) if state.unmapped.ranges else NO_REGIONS
        absent = sum(freed.clip(start, end).size for start, end in state.unmapped)
        hc.update_va_mapping(0, None, KERNEL_PTE, nr=walk.pages_freed - absent)
        hc.mmu_update(2, None, 0, None, 0, nr=sum(tables[f"l{level}"] for level in cleared))
        for _ in hc.repeat(sum(tables.values()) if unpin else 0):
            hc.mmuext_op(MMUEXT_UNPIN_TABLE)
        return
    done: set[tuple[int, int]] = set()

    def clear_entry(level: int, vpn: int) -> None:
        if level in cleared and (level, vpn) not in done:
            done.add((level, vpn))
            slot = table_slot(vpn << PAGE_SHIFT, level + 1)
            hc.mmu_update(level + 1, _parent(state, mapping, level + 1, vpn), slot, None, 0)

    for event in walk.events:
        for i in range(int(event["nr"])):
            pfn = int(event["pfn"]) + i * int(event["step"])
            level = int(event["level"])
            if event["table"]:
                clear_entry(level, int(event["vpn"]) + i * ENTRIES**level)
                if unpin:
                    hc.mmuext_op(MMUEXT_UNPIN_TABLE, pfn)
            elif level == 1 and not state.rules.cleanup.depth_first:
                clear_entry(1, int(event["vpn"]) // ENTRIES * ENTRIES)
            if state.missing.meets(pfn, pfn + 1):
                pfn = 0
            (flags,) = frame_flags(state, np.array([pfn])).tolist()
            pages = Regions.of([(pfn, pfn + int(event["pages"]))])
            for first, end in pages - state.unmapped:  # no L1 table: nothing to look up
                hc.update_va_mapping(state.va(first), first, flags, nr=end - first)


def _cleared_levels(state: BootState) -> list[int]:
    """Levels of tables whose entries are cleared on the way."""
    rules = state.rules.cleanup
    levels = [1, 2] if rules.clear_table_entries else []
    return levels + ([] if rules.root_entry_first else [3])


def _parent(state: BootState, mapping: Mapping, level: int, vpn: int) -> int | None:
    if level == 4:
        return state.root_pfn
    tables = mapping.tables[mapping.tables["level"] == level]
    i: Ints = (vpn - column(tables, "vpn")) // ENTRIES**level
    hit = int(np.flatnonzero((i >= 0) & (i < column(tables, "nr")))[0])
    return int(tables["pfn"][hit]) + int(i[hit]) * int(tables["step"][hit])


def _free(memblock: Memblock, frames: Iterable[tuple[int, int]]) -> Memblock:
    freed = Regions(tuple((start << PAGE_SHIFT, end << PAGE_SHIFT) for start, end in frames))
    return replace(memblock, reserved=memblock.reserved - freed)


def _free_inside(state: BootState, hc: Hypercalls) -> tuple[BootState, Cleanup]:
    """xen_cleanhighmap() of the list and of the page tables behind it; one free of the list.

    (Outside, the second of these finds nothing: cleanup_highmap() went up to max_pfn_mapped.)
    """
    (vaddr, last), tables = highmap_ranges(state)
    nr_before = state.highmap.size
    state, list_cost = clean_highmap(state, hc, vaddr, last)
    state, table_cost = clean_highmap(state, hc, *tables)
    size = pfn_up(8 * state.nr_pages) << PAGE_SHIFT
    cost = Cost(
        by_type=dict(hc.by_type),
        entries_read=(list_cost + table_cost).entries_read,
        memblock_free_calls=1,
        pages_freed=size >> PAGE_SHIFT,
    )
    first = state.pfn(vaddr) << PAGE_SHIFT
    new = replace(state, memblock=state.memblock.free(first, first + size))
    nr_cleared = nr_before - state.highmap.size
    return new, Cleanup(state.rules.name, cost, {"l2": nr_cleared, "l3": 0, "l4": 0}, 0)


def highmap_ranges(state: BootState) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first, last) address of what xen_cleanhighmap() visits: the list, Xen's page tables."""
    start = state.initial_list.vaddr
    pt_start, pt_end = state.domain.plan.page_tables
    pt_last = pt_start + round_up(pt_end - pt_start, PMD_SIZE)
    if state.rules.cleanup.align_table_range_end:
        pt_last = round_up(pt_end, 2 * PMD_SIZE)
    return (start, start + round_up(8 * state.nr_pages, PMD_SIZE)), (pt_start, pt_last)
