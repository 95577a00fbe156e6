# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs of a stage on extents: map, mark read-only, clear, walk and free.

All are O(runs), vectorised, and return new arrays; none looks at a word of a page table.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from xenpt.abi import ENTRIES, LEVELS, PAGE_SHIFT, PTE_RW, TABLE_PROT, TABLE_SHIFT
from xenpt.errors import MappingError
from xenpt.extents import (
    EMPTY,
    Ints,
    Mapping,
    Ranges,
    Runs,
    clip,
    coalesce,
    column,
    entries_in,
    entry_pages,
    expand,
    join_ranges,
    run_array,
    sort_tables,
    split_at_tables,
    tables_of,
)

# --- Map -----------------------------------------------------------------------------------------


def map_on_demand(leaves: Runs, first_pfn: int, *, top: int = 3, existing: Runs = EMPTY) -> Mapping:
    """Give frames to leaves and their tables in the order in which Xen allocates on demand.

    Walking up the addresses, each missing table is taken right before what it maps (level `top`
    first), then the data of the leaf; frames are consecutive from `first_pfn`.

    :param leaves: RUN array sorted by vpn; its pfn column is ignored, each leaf is contiguous
    :param top: level of the highest table to allocate, 3 below an existing root
    :param existing: tables that are there already, and are used instead of new ones
    :raises MappingError: leaves that overlap, are misaligned or unsorted

    Models setup_pv_physmap() in xen/arch/x86/pv/dom0_build.c (SPEC B9, golden rule 11).
    """
    pieces = split_at_tables(leaves)
    new = _new_tables(pieces, top)
    there = expand(existing, tables=True)
    for level in range(1, top + 1):
        held = column(there, "vpn")[there["level"] == level]
        new[level - 1] &= ~np.isin(_table_vpn(column(pieces, "vpn"), level), held)
    pages = column(pieces, "nr") * entry_pages(column(pieces, "level"))
    before = new.sum(axis=0)
    pieces["step"] = entry_pages(column(pieces, "level"))
    pieces["pfn"] = first_pfn + np.cumsum(before + pages) - pages
    tables = []
    for level in range(1, top + 1):
        at = np.flatnonzero(new[level - 1])
        above = new[level:, at].sum(axis=0)  # of the same piece: taken before it
        tables.append(
            run_array(
                _table_vpn(column(pieces, "vpn")[at], level),
                column(pieces, "pfn")[at] - before[at] + above,
                1,
                1,
                level,
                TABLE_PROT if level < LEVELS else 0,
            )
        )
    mapping = Mapping(coalesce(pieces), coalesce(np.concatenate(tables), tables=True))
    mapping.check()
    return mapping


def _new_tables(pieces: Runs, top: int) -> npt.NDArray[np.bool_]:
    """Row k: whether each piece is the first in its table of level k + 1."""
    vpn, level = column(pieces, "vpn"), column(pieces, "level")
    new = np.zeros((top, len(pieces)), bool)
    for k in range(1, top + 1):
        number = vpn >> (TABLE_SHIFT * k)
        new[k - 1, :1] = True
        new[k - 1, 1:] = number[1:] != number[:-1]
        new[k - 1] &= level <= k
    return new


def _table_vpn(vpn: Ints, level: int) -> Ints:
    """Start of the table of `level` that covers each page; the root starts at 0."""
    if level == LEVELS:
        return np.zeros_like(vpn)
    return (vpn >> (TABLE_SHIFT * level)) << (TABLE_SHIFT * level)


def _ends(runs: Runs, *, tables: bool = False) -> Ints:
    """The virtual page behind each run."""
    size = entry_pages(column(runs, "level") + tables)
    return column(runs, "vpn") + column(runs, "nr") * size


# --- Mark ----------------------------------------------------------------------------------------


def mark_read_only(leaves: Runs, pfn_ranges: Ranges) -> tuple[Runs, int]:
    """Clear RW of every leaf whose frame lies in `pfn_ranges`; return leaves and entries changed.

    :raises MappingError: a superpage lies only partly in the ranges
    """
    return _mark(leaves, pfn_ranges, clear=PTE_RW, put=0)


def mark_writable(leaves: Runs, pfn_ranges: Ranges) -> tuple[Runs, int]:
    """Set RW of every leaf whose frame lies in `pfn_ranges`; return leaves and entries changed.

    :raises MappingError: a superpage lies only partly in the ranges
    """
    return _mark(leaves, pfn_ranges, clear=0, put=PTE_RW)


def _mark(leaves: Runs, pfn_ranges: Ranges, *, clear: int, put: int) -> tuple[Runs, int]:
    run, first, end = _hits(leaves, join_ranges(pfn_ranges))
    if not len(run):
        return leaves, 0
    old = leaves["flags"][run]
    new = (old & ~np.uint64(clear)) | np.uint64(put)
    changed = int((end - first)[old != new].sum())
    if not changed:
        return leaves, 0
    # The gaps before each hit, the hits, and what is left of each run behind its last hit.
    of_run_first = np.append(True, run[1:] != run[:-1])
    before = np.where(of_run_first, 0, np.append(0, end[:-1]))
    tail = np.zeros(len(leaves), np.int64)
    np.maximum.at(tail, run, end)
    rows = np.concatenate((run, run, np.arange(len(leaves))))
    start = np.concatenate((before, first, tail))
    stop = np.concatenate((first, end, column(leaves, "nr")))
    out = leaves[rows]
    out["flags"][len(run) : 2 * len(run)] = new
    out["vpn"] = column(out, "vpn") + start * entry_pages(column(out, "level"))
    out["pfn"] = column(out, "pfn") + start * column(out, "step")
    out["nr"] = np.maximum(stop - start, 0)
    return coalesce(out[np.lexsort((start, rows))]), changed


def _hits(leaves: Runs, ranges: npt.NDArray[np.int64]) -> tuple[Ints, Ints, Ints]:
    """(run, first entry, end entry) of each part of a run whose frames lie in one range."""
    pfn, nr, step = (column(leaves, name) for name in ("pfn", "nr", "step"))
    size = entry_pages(column(leaves, "level"))
    other = pfn + (nr - 1) * step
    low, high = np.minimum(pfn, other), np.maximum(pfn, other) + size
    at = np.searchsorted(ranges[:, 1], low, side="right")
    count = np.maximum(np.searchsorted(ranges[:, 0], high, side="left") - at, 0)
    run = np.repeat(np.arange(len(leaves)), count)
    which = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(at, count)
    start, end = ranges[which, 0], ranges[which, 1]
    pfn, nr, step, size = pfn[run], nr[run], step[run], size[run]
    inside = entries_in(pfn, nr, step, start, end - size + 1)
    touched = entries_in(pfn, nr, step, start - size + 1, end)
    if np.any((inside[0] != touched[0]) | (inside[1] != touched[1])):
        at_fault = int(np.argmax((inside[0] != touched[0]) | (inside[1] != touched[1])))
        raise MappingError(
            f"pfns [{int(start[at_fault]):#x}, {int(end[at_fault]):#x}) cover a part of a superpage"
        )
    first, last = inside
    hit = first < last
    run, first, last = run[hit], first[hit], last[hit]
    order = np.lexsort((first, run))
    return run[order], first[order], last[order]


# --- Clear ---------------------------------------------------------------------------------------


def clear(mapping: Mapping, start: int, end: int) -> Mapping:
    """Drop the leaves at virtual addresses [start, end), and tables that lie wholly in it.

    :raises MappingError: a superpage crosses an end
    """
    first, last, top = start >> PAGE_SHIFT, end >> PAGE_SHIFT, 1 << 52
    leaves = np.concatenate((clip(mapping.leaves, 0, first), clip(mapping.leaves, last, top)))
    tables = expand(mapping.tables, tables=True)
    size = entry_pages(column(tables, "level") + 1)
    vpn = column(tables, "vpn")
    inside = (vpn >= first) & (vpn + size <= last) & (tables["level"] < LEVELS)
    return Mapping(coalesce(leaves), sort_tables(tables[~inside]))


# --- Walk and free -------------------------------------------------------------------------------

#: Frees in their order. Each of `nr` frees gives `pages` frames; the first begins at `pfn`, the
#: next `step` further. `level` is that of the entry (data) or of the table page itself (`table`).
#: `vpn` is the first virtual page that the first freed leaf or table covered.
FREE = np.dtype(
    [
        ("vpn", "<u8"),
        ("pfn", "<u8"),
        ("nr", "<u8"),
        ("step", "<i8"),
        ("pages", "<u8"),
        ("level", "<u1"),
        ("table", "?"),
    ]
)


@dataclass(frozen=True, slots=True)
class WalkRules:
    """How one generation of Linux walks the initial P->M mapping to free it (SPEC F7).

    :ivar skip_empty_entries: False: an L1 table is left at its first empty entry (seed, v4.3)
    :ivar flat: True: one loop that reads the L3 entry again for each 2 MiB and starts at the
        list's own slots (seed, v4.3); False: depth first over whole tables (v6.1)
    """

    skip_empty_entries: bool
    flat: bool


@dataclass(frozen=True, slots=True)
class FreeWalk:
    """What a walk frees, and what it reads.

    :ivar leaves: RUN array of the data that is freed, flags 0, canonical
    :ivar tables: RUN array of the table pages that are freed, flags 0, canonical
    :ivar entries_read: entries examined by the walk, by level (`l1` .. `l4`)
    :ivar leaked_pages: frames of leaves and tables that the walk never reaches
    """

    leaves: Runs
    tables: Runs
    entries_read: dict[str, int]
    leaked_pages: int

    @property
    def events(self) -> npt.NDArray[np.void]:
        """FREE array: the frees in their order, made anew at each call.

        Data of a table comes before the table, tables before their parents.
        """
        return _free_events(self.leaves, self.tables)

    @property
    def nr_frees(self) -> int:
        """Calls of the allocator's free."""
        return int(self.leaves["nr"].sum() + self.tables["nr"].sum())

    @property
    def pages_freed(self) -> int:
        """Frames given back, tables included."""
        return Mapping(self.leaves, self.tables).nr_pages + int(self.tables["nr"].sum())

    @property
    def tables_freed(self) -> dict[str, int]:
        """Table pages given back, by level (`l1` .. `l4`)."""
        mapping = Mapping(self.leaves, self.tables)
        return {f"l{n}": mapping.nr_tables(n) for n in range(1, LEVELS + 1)}


def walk_to_free(mapping: Mapping, vaddr: int, rules: WalkRules) -> FreeWalk:
    """Walk the tables of the L4 slot of `vaddr` as xen_cleanmfnmap() does, freeing what is met.

    :param vaddr: start of the mapping (start_info's mfn_list)
    :raises MappingError: the slot has no L3 table

    Models xen_cleanmfnmap() in arch/x86/xen/mmu_pv.c. Only one L4 slot is ever visited.
    """
    slot_pages = ENTRIES**3
    begin = (vaddr >> PAGE_SHIFT) // ENTRIES * ENTRIES
    slot = begin // slot_pages * slot_pages
    start = begin if rules.flat else slot
    held = tables_of(mapping.tables, start, slot + slot_pages)
    held = held[held["level"] < LEVELS]
    if not np.any(held["level"] == LEVELS - 1):
        raise MappingError(f"no L3 table for the P->M list at {vaddr:#018x}")
    met = clip(mapping.leaves, start, slot + slot_pages)
    if not rules.skip_empty_entries:
        met = split_at_tables(met)
        met = met[_before_first_gap(met)]
    read = _entries_read(met, held, start, rules)
    met["flags"] = held["flags"] = 0  # a free does not ask for them
    walk = FreeWalk(coalesce(met), sort_tables(held), read, 0)
    nr_pages = mapping.nr_pages + mapping.nr_tables() - mapping.nr_tables(LEVELS)
    return replace(walk, leaked_pages=nr_pages - walk.pages_freed)


def _before_first_gap(pieces: Runs) -> npt.NDArray[np.bool_]:
    """Pieces that a walk meets which leaves each L1 table at its first empty entry."""
    nr = np.where(pieces["level"] == 1, column(pieces, "nr"), 0)
    number = column(pieces, "vpn") >> TABLE_SHIFT
    before = np.cumsum(nr) - nr
    first = np.append(True, number[1:] != number[:-1]) if len(pieces) else np.empty(0, bool)
    at_table = np.maximum.accumulate(np.where(first, before, 0))
    in_table = column(pieces, "vpn") & (ENTRIES - 1)
    met: npt.NDArray[np.bool_] = (pieces["level"] != 1) | (in_table == before - at_table)
    return met


def _free_events(leaves: Runs, tables: Runs) -> npt.NDArray[np.void]:
    """Frees of leaves and tables, ordered by where the walk has finished with them."""
    pieces = coalesce(split_at_tables(leaves), within=True)
    tables = expand(tables, tables=True)
    events = np.zeros(len(pieces) + len(tables), FREE)
    for name in ("vpn", "pfn", "nr", "step", "level"):
        events[name] = np.concatenate((pieces[name], tables[name]))
    events["pages"][: len(pieces)] = entry_pages(column(pieces, "level"))
    events["pages"][len(pieces) :] = 1
    events["table"][len(pieces) :] = True
    events["step"][len(pieces) :] = 1
    end = np.concatenate((_ends(pieces), _ends(tables, tables=True)))
    # One key: sorting is quick, since leaves and each level of tables are sorted already.
    key = end << 4 | events["table"].astype(np.int64) << 3 | events["level"]
    return events[np.argsort(key, kind="stable")]


def _entries_read(met: Runs, tables: Runs, start: int, rules: WalkRules) -> dict[str, int]:
    nr = {level: int(tables["nr"][tables["level"] == level].sum()) for level in (1, 2, 3)}
    l1_entries = ENTRIES * nr[1]
    if not rules.skip_empty_entries:
        # Entries met in each L1 table, and the empty one that ends the loop, if it is not full.
        small = met[met["level"] == 1]
        number, held = np.unique(small["vpn"] >> np.uint64(TABLE_SHIFT), return_inverse=True)
        per_table = np.bincount(held, small["nr"].astype(np.float64), len(number)).astype(np.int64)
        l1_entries = int(np.minimum(per_table + 1, ENTRIES).sum()) + nr[1] - len(number)
    if not rules.flat:
        reads = {"l3": ENTRIES * nr[3], "l2": ENTRIES * nr[2], "l1": l1_entries}
    else:
        # The L3 entry of a table is read once for each of its L2 entries from `start` on.
        skipped_l3 = (start // ENTRIES**2) % ENTRIES
        skipped_l2 = (start // ENTRIES) % ENTRIES
        l2_reads = ENTRIES * nr[2] - skipped_l2
        reads = {"l3": ENTRIES - skipped_l3 - nr[2] + l2_reads, "l2": l2_reads, "l1": l1_entries}
    return {"l1": reads["l1"], "l2": reads["l2"], "l3": reads["l3"], "l4": 0}
