# SPDX-License-Identifier: GPL-2.0-or-later
"""Every rule that mappings must keep for Xen to accept them, checked on runs: any size, at once.

A run that breaks a rule is one `Violation`, however many entries it has. Frames are numbers of one
space (pfns of a domain, or mfns of an image); `check_image` of audit.py and `check_built` of
invariants.py give the rules their runs. Rules: SPEC A4, A5, A7, E2 to E4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from xenpt.abi import (
    ENTRIES,
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    LEVELS,
    PAGE_SHIFT,
    PTE_GLOBAL,
    PTE_GUEST_KERNEL,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
    TABLE_SHIFT,
)
from xenpt.errors import XenptError
from xenpt.extents import Ints, Ranges, Runs, column, entries_in, entry_pages, expand, join_ranges
from xenpt.xen.entries import CACHE_FLAGS

Pairs = np.ndarray[tuple[int, int], np.dtype[np.int64]]
ALL_BITS = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is broken.

    :ivar rule: its name
    :ivar owner: whose frame the entry names, or what is wrong where no entry is concerned
    :ivar vaddr: first address that the entry maps, or None
    :ivar level: level of the entry's table
    :ivar entry: the 64-bit word, or None
    :ivar nr: entries in a row that break it alike
    """

    rule: str
    owner: str
    vaddr: int | None = None
    level: int = 0
    entry: int | None = None
    nr: int = 1

    def __str__(self) -> str:
        where = "" if self.vaddr is None else f" at {self.vaddr:#018x}"
        what = "" if self.entry is None else f", L{self.level} entry {self.entry:#018x}"
        more = f" and {self.nr - 1} more behind it" if self.nr > 1 else ""
        return f"{self.rule}{where}{what}{more}: {self.owner}"


class RuleError(XenptError):
    """A domain that breaks Xen's rules.

    :ivar violations: all of them
    """

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = violations
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        super().__init__(f"{violations[0]}{more}")


@dataclass(frozen=True)
class Mapped:
    """What is to be checked: runs in one frame space, and what is known of its frames.

    :ivar leaves: RUN array of leaves, sorted by vpn
    :ivar tables: RUN array of table pages; the entries that lead to them are rules' business, too
    :ivar owned: frames [start, end) of the domain
    :ivar other: frames that are not the domain's, but that it may map (I/O memory, shared_info)
    :ivar superpages: vpns [start, end) in which leaves may be large: the builder's P->M list
    :ivar adjusted: Xen has validated the tables, so USER is set in every entry (64-bit, SPEC A4)
    :ivar word: the entry of a frame and its flags
    """

    leaves: Runs
    tables: Runs
    owned: Pairs
    other: Ranges = ()
    superpages: Ranges = ()
    adjusted: bool = True
    cache_flags: bool = True
    word: Callable[[int, int], int] = lambda frame, flags: frame << PAGE_SHIFT | flags


def violations(mapped: Mapped) -> list[Violation]:
    """Every rule about entries that is broken, in the order of the rules."""
    tables = expand(mapped.tables, tables=True)
    return [
        *_writable_tables(mapped, tables),
        *_foreign_frames(mapped),
        *_bad_leaf_flags(mapped),
        *_bad_table_flags(mapped, tables),
        *_xen_slots(mapped, tables),
        *_large_leaves(mapped),
        *_shared_table_frames(mapped, tables),
        *_missing_tables(mapped, tables),
    ]


def _at(mapped: Mapped, row: np.void, i: int, nr: int, rule: str, owner: str) -> Violation:
    """The violation of entries [i, i + nr) of a run of leaves."""
    level, flags = int(row["level"]), int(row["flags"])
    frame = int(row["pfn"]) + i * int(row["step"])
    vpn = int(row["vpn"]) + i * ENTRIES ** (level - 1)
    vaddr = vpn << PAGE_SHIFT & ALL_BITS
    return Violation(rule, owner, vaddr, level, mapped.word(frame, flags), nr)


def _whole(mapped: Mapped, runs: Runs, rule: str, owner: str) -> list[Violation]:
    return [_at(mapped, row, 0, int(row["nr"]), rule, owner) for row in runs]


def _writable_tables(mapped: Mapped, tables: Runs) -> list[Violation]:
    """E3: a page in use as a table has no writable mapping."""
    writable = mapped.leaves[mapped.leaves["flags"] & PTE_RW != 0]
    frame = column(tables, "pfn")
    order = np.argsort(frame)
    found = []
    for row, first, last in entries_that_meet(writable, join_ranges(_pairs(frame, frame + 1))):
        for i in range(first, last):
            low = int(writable["pfn"][row]) + i * int(writable["step"][row])
            table = tables[order[np.searchsorted(frame, low, sorter=order)]]
            vaddr = int(table["vpn"]) << PAGE_SHIFT
            owner = f"the page is the L{int(table['level'])} table of {vaddr:#018x}"
            found.append(_at(mapped, writable[row], i, 1, "writable page table", owner))
    return found


def _foreign_frames(mapped: Mapped) -> list[Violation]:
    """E3: what is mapped is the domain's, or something else that it may map."""
    other = np.asarray(mapped.other, np.int64).reshape(-1, 2)
    owned = join_ranges(np.concatenate((mapped.owned, other)))
    edges = np.concatenate(([0], owned.reshape(-1), [1 << 52]))
    gaps = _pairs(edges[0::2], edges[1::2])
    return [
        _at(mapped, mapped.leaves[row], first, last - first, "foreign frame", "not the domain's")
        for row, first, last in entries_that_meet(mapped.leaves, gaps[gaps[:, 0] < gaps[:, 1]])
    ]


def _bad_leaf_flags(mapped: Mapped) -> list[Violation]:
    """A4, A5: an L1 entry is USER and has one of GUEST_KERNEL and GLOBAL; not every cache mode."""
    flags, large = mapped.leaves["flags"], mapped.leaves["level"] > 1
    kernel, user = flags & PTE_GUEST_KERNEL != 0, flags & PTE_USER != 0
    bad = flags & PTE_PRESENT == 0
    if mapped.adjusted:
        bad |= ~user | (~kernel & (flags & PTE_GLOBAL == 0))
    if not mapped.cache_flags:
        bad |= ~large & (flags & CACHE_FLAGS != 0)
    return _whole(mapped, mapped.leaves[bad], "bad flags", "flags that Xen never leaves in a leaf")


def _bad_table_flags(mapped: Mapped, tables: Runs) -> list[Violation]:
    """A4, A5: entries of level 2 to 4."""
    tables = tables[tables["level"] < _root_level(tables)]
    flags = tables["flags"]
    bad = (flags & (CACHE_FLAGS | PTE_GLOBAL) != 0) | (flags & PTE_PRESENT == 0)
    if mapped.adjusted:
        bad |= flags & PTE_USER == 0
    return [
        Violation(
            "bad flags",
            "flags that Xen never leaves in an entry of level 2 to 4",
            int(row["vpn"]) << PAGE_SHIFT & ALL_BITS,
            int(row["level"]) + 1,
            mapped.word(int(row["pfn"]), int(row["flags"])),
        )
        for row in tables[bad]
    ]


def _root_level(tables: Runs) -> int:
    return int(tables["level"].max()) if len(tables) else LEVELS


def _xen_slots(mapped: Mapped, tables: Runs) -> list[Violation]:
    """A7: L4 slots 256 to 271 are Xen's."""
    start, end = HYPERVISOR_VIRT_START >> PAGE_SHIFT, HYPERVISOR_VIRT_END >> PAGE_SHIFT
    found = []
    for runs, extra in ((mapped.leaves, 0), (tables[tables["level"] < LEVELS], 1)):
        vpn, nr = column(runs, "vpn"), column(runs, "nr")
        last = vpn + nr * entry_pages(column(runs, "level") + extra)
        inside = runs[(vpn < end) & (last > start)]
        found += _whole(mapped, inside, "Xen's slots", "an address that is Xen's own")
    return found


def _large_leaves(mapped: Mapped) -> list[Violation]:
    """A5: only Xen's builder makes large leaves, for the P->M list."""
    large = mapped.leaves[mapped.leaves["level"] > 1]
    allowed = join_ranges(mapped.superpages)
    vpn, nr = column(large, "vpn"), column(large, "nr")
    last = vpn + nr * entry_pages(column(large, "level"))
    at = np.searchsorted(allowed[:, 1], vpn, side="right")
    inside = np.zeros(len(large), bool)
    found = at < len(allowed)
    inside[found] = (allowed[at[found], 0] <= vpn[found]) & (last[found] <= allowed[at[found], 1])
    return _whole(mapped, large[~inside], "superpage", "a guest may not have large leaves (PSE)")


def _shared_table_frames(mapped: Mapped, tables: Runs) -> list[Violation]:
    """E2: a frame has one type. (The same table may serve two addresses of one level.)"""
    pairs = np.unique(np.stack((column(tables, "pfn"), column(tables, "level")), axis=1), axis=0)
    twice = pairs[1:, 0][pairs[1:, 0] == pairs[:-1, 0]]
    rows = [tables[tables["pfn"] == np.uint64(frame)] for frame in np.unique(twice).tolist()]
    return [
        Violation(
            "two types",
            f"frame {int(row['pfn'][0]):#x} is a table of levels "
            + " and ".join(str(level) for level in np.unique(row["level"]).tolist()),
            int(row["vpn"][0]) << PAGE_SHIFT,
            int(row["level"][0]) + 1,
            mapped.word(int(row["pfn"][0]), int(row["flags"][0])),
        )
        for row in rows
    ]


def _missing_tables(mapped: Mapped, tables: Runs) -> list[Violation]:
    """What maps has a table of every level above it, up to the root."""
    found = []
    root = _root_level(tables)
    needed = np.empty((0, 2), np.int64)  # tables of the level at hand, numbered by address
    for level in range(1, root):
        shift = TABLE_SHIFT * level
        leaves = mapped.leaves[mapped.leaves["level"] == level]
        vpn, nr = column(leaves, "vpn"), column(leaves, "nr")
        last = vpn + nr * ENTRIES ** (level - 1) - 1
        mine = _pairs(vpn >> shift, (last >> shift) + 1)
        above = _pairs(needed[:, 0] >> TABLE_SHIFT, (needed[:, 1] - 1 >> TABLE_SHIFT) + 1)
        needed = join_ranges(np.concatenate((mine, above)))
        number = column(tables[tables["level"] == level], "vpn") >> shift
        held = join_ranges(_pairs(number, number + 1))
        for start, end in _minus(needed, held):
            vaddr = start << shift << PAGE_SHIFT & ALL_BITS
            owner = f"no L{level} table"
            found.append(Violation("missing table", owner, vaddr, level + 1, None, end - start))
    return found


def _minus(needed: Pairs, held: Pairs) -> list[tuple[int, int]]:
    """Parts of sorted, disjoint ranges that are in no other."""
    rest = []
    for start, end in needed.tolist():
        at = int(np.searchsorted(held[:, 1], start, side="right"))
        while start < end:
            begin = int(held[at, 0]) if at < len(held) else end
            if begin > start:
                rest.append((start, min(begin, end)))
            if at >= len(held):
                break
            start, at = int(held[at, 1]), at + 1
    return rest


def entries_that_meet(runs: Runs, ranges: Pairs) -> list[tuple[int, int, int]]:
    """(row, first, last): entries [first, last) of a run of leaves that map frames of a range.

    :param ranges: sorted and disjoint
    """
    frame, nr, step = (column(runs, name) for name in ("pfn", "nr", "step"))
    size = entry_pages(column(runs, "level"))
    other = frame + (nr - 1) * step
    low, high = np.minimum(frame, other), np.maximum(frame, other) + size
    at = np.searchsorted(ranges[:, 1], low, side="right")
    count = np.maximum(np.searchsorted(ranges[:, 0], high, side="left") - at, 0)
    row = np.repeat(np.arange(len(runs)), count)
    which: Ints = np.arange(len(row)) - np.repeat(np.cumsum(count) - count - at, count)
    start, end = ranges[which, 0] - size[row] + 1, ranges[which, 1]
    first, last = entries_in(frame[row], nr[row], step[row], start, end)
    hit = first < last
    return list(zip(row[hit].tolist(), first[hit].tolist(), last[hit].tolist(), strict=True))


def _pairs(start: Ints, end: Ints) -> Pairs:
    return np.stack((start, end), axis=1)
