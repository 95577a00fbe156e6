# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a domain's mappings: sorted runs of leaves, and of the tables that hold them.

A run says that `nr` consecutive slots of one level hold frames whose pfns are `step` apart:
slot i maps virtual page `vpn + i * 512**(level - 1)` to `pfn + i * step`. A run of *tables* says
the same of table pages: table i of level L covers the virtual pages from `vpn + i * 512**L`;
its flags are those of the entry that points to it. The root (level 4) has vpn 0 and flags 0.
Frames are guest frames (pfn); `P2M` (p2m.py) gives them machine frames when words are made of them.
Every count of a stage follows from the runs in O(runs), whatever the guest's size.

Runs are in *canonical* form when each was grown from the left for as long as the step stayed the
same (`coalesce`); a run of one entry has the step of contiguous memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xenpt import _core
from xenpt.abi import (
    LEVELS,
    PAGE_SHIFT,
    PTE_PRESENT,
    PTE_PSE,
    TABLE_SHIFT,
    pfn_up,
)
from xenpt.errors import MappingError
from xenpt.room import require_room

#: One run. `vpn`: virtual page number (vaddr >> 12, unsigned); `flags`: entry bits without frame.
RUN = np.dtype(
    [
        ("vpn", "<u8"),
        ("pfn", "<u8"),
        ("nr", "<u8"),
        ("step", "<i8"),
        ("level", "<u8"),
        ("flags", "<u8"),
    ]
)
#: Memory that a mapping of small pages takes at its peak, a table, measured (16 and 64 PiB).
TABLE_BYTES = 220
Runs = npt.NDArray[np.void]
Frames = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
EMPTY = np.empty(0, RUN)
#: Frames of the host that are not the domain's (holes that are mapped as they are) are named by a
#: pfn that no domain has: IDENTITY + mfn.
IDENTITY = 1 << 44
#: Half-open ranges of pfns, as pairs or as an (n, 2) array; any order, touching ones are joined.
Ranges = Sequence[tuple[int, int]] | npt.NDArray[np.int64]


def make_runs(rows: Iterable[Sequence[int]]) -> Runs:
    """RUN array of rows (vpn, pfn, nr, step, level, flags), kept in their order."""
    return np.array([tuple(row) for row in rows], RUN)


def run_array(
    vpn: npt.ArrayLike,
    pfn: npt.ArrayLike,
    nr: npt.ArrayLike,
    step: npt.ArrayLike,
    level: npt.ArrayLike,
    flags: npt.ArrayLike,
) -> Runs:
    """RUN array of columns; scalars are repeated."""
    columns = np.broadcast_arrays(vpn, pfn, nr, step, level, flags)
    runs = np.empty(columns[0].shape, RUN)
    for name, column in zip(RUN.names or (), columns, strict=True):
        runs[name] = column
    return runs


def words(runs: Runs) -> npt.NDArray[np.uint64]:
    """The runs as an (n, k) array of uint64, sharing memory when they are contiguous."""
    columns = len(runs.dtype.names or ())
    return np.ascontiguousarray(runs).view("<u8").reshape(-1, columns)


def column(runs: Runs, name: str) -> Ints:
    """One column as int64: virtual pages and frames fit (52 bits), and differences have a sign."""
    return runs[name].astype(np.int64)


def entry_pages(level: npt.NDArray[np.int64]) -> Ints:
    """4 KiB pages that one entry of each `level` covers: 512**(level - 1)."""
    return np.left_shift(np.int64(1), TABLE_SHIFT * (level - 1))


def coalesce(runs: Runs, *, tables: bool = False, within: bool = False) -> Runs:
    """Canonical form of sorted runs.

    :param tables: the entries are table pages: each covers 512 times as much
    :param within: no run crosses the border of a table page of its level
    """
    out = np.empty(2 * len(runs), RUN)
    nr = _core.coalesce(words(runs), words(out), tables, within)
    out.resize(nr, refcheck=False)  # gives the rest back in place; no view of it is left
    return out


def expand(runs: Runs, *, tables: bool = False) -> Runs:
    """One run for each entry: the slow, plain form, for table pages and for small mappings."""
    nr = column(runs, "nr")
    out = np.repeat(runs, nr)
    i = np.arange(len(out)) - np.repeat(np.cumsum(nr) - nr, nr)
    level = column(out, "level")
    out["vpn"] = column(out, "vpn") + i * entry_pages(level + tables)
    out["pfn"] = column(out, "pfn") + i * column(out, "step")
    out["nr"] = 1
    return out


def split_at_tables(runs: Runs, *, tables: bool = False) -> Runs:
    """Cut runs so that each lies within one table page of its level (of its parent's).

    :raises NoRoomError: that would be more runs than memory holds
    """
    level = column(runs, "level") + tables
    shift = TABLE_SHIFT * (level - 1)
    slot = column(runs, "vpn") >> shift  # of the whole address space
    nr = column(runs, "nr")
    pieces = np.where(nr > 0, ((slot + nr - 1) >> TABLE_SHIFT) - (slot >> TABLE_SHIFT) + 1, 0)
    require_room(int(pieces.sum()) * TABLE_BYTES, "runs for each page table")
    out = np.repeat(runs, pieces)
    of_run = np.arange(len(out)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    slot, nr = np.repeat(slot, pieces), np.repeat(nr, pieces)
    first = np.maximum(((slot >> TABLE_SHIFT) + of_run) << TABLE_SHIFT, slot) - slot
    end = np.minimum(((slot >> TABLE_SHIFT) + of_run + 1) << TABLE_SHIFT, slot + nr) - slot
    out["vpn"] = column(out, "vpn") + (first << np.repeat(shift, pieces))
    out["pfn"] = column(out, "pfn") + first * column(out, "step")
    out["nr"] = end - first
    return out


def entries_in(pfn: Ints, nr: Ints, step: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Entries [first, last) of each run whose frame number lies in [start, end)."""
    pace = np.where(step == 0, 1, np.abs(step))
    up_first, up_last = -((pfn - start) // pace), -((pfn - end) // pace)
    down_first, down_last = (pfn - end) // pace + 1, (pfn - start) // pace + 1
    still = (pfn >= start) & (pfn < end)
    first = np.select([step > 0, step < 0], [up_first, down_first], np.where(still, 0, nr))
    last = np.select([step > 0, step < 0], [up_last, down_last], nr)
    first = np.clip(first, 0, nr)
    last = np.clip(last, first, nr)
    empty = first >= last
    return np.where(empty, 0, first), np.where(empty, 0, last)


def join_ranges(ranges: Ranges) -> npt.NDArray[np.int64]:
    """Sorted, disjoint (n, 2) ranges: empty ones dropped, overlapping or touching ones joined."""
    pairs = np.asarray(ranges, np.int64).reshape(-1, 2)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    if not len(pairs):
        return pairs
    reach = np.maximum.accumulate(pairs[:, 1])
    first = np.flatnonzero(np.append(True, pairs[1:, 0] > reach[:-1]))
    last = np.append(first[1:] - 1, len(pairs) - 1)
    return np.stack((pairs[first, 0], reach[last]), axis=1)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Leaves and table pages of one part of an address space (the initial mapping, the P->M list).

    :ivar leaves: RUN array, sorted by vpn, disjoint; level 1, 2 or 3; a step of 512**(level-1)
        is contiguous memory
    :ivar tables: RUN array, sorted by (level, vpn); the frames of the table pages themselves
    """

    leaves: Runs
    tables: Runs

    @property
    def nr_pages(self) -> int:
        """4 KiB pages that the leaves map."""
        return int((column(self.leaves, "nr") * entry_pages(column(self.leaves, "level"))).sum())

    def nr_leaves(self, level: int) -> int:
        """Leaf entries of one level."""
        return int(self.leaves["nr"][self.leaves["level"] == level].sum())

    def nr_tables(self, level: int | None = None) -> int:
        """Table pages of one level, or of all."""
        nr = self.tables["nr"]
        return int((nr if level is None else nr[self.tables["level"] == level]).sum())

    def translate(self, vaddr: int) -> tuple[int, int, int] | None:
        """(pfn of the 4 KiB page, level of the leaf, flags) at `vaddr`, or None in a hole."""
        vpn = vaddr >> PAGE_SHIFT
        at = int(np.searchsorted(self.leaves["vpn"], np.uint64(vpn), side="right")) - 1
        if at < 0:
            return None
        first, pfn, nr, step, level, flags = (int(v) for v in self.leaves[at])
        shift = TABLE_SHIFT * (level - 1)
        i = (vpn - first) >> shift
        if i >= nr:
            return None
        return pfn + i * step + ((vpn - first) & ((1 << shift) - 1)), level, flags

    def window(self, start: int, end: int) -> "Mapping":
        """The part that maps virtual addresses [start, end): whole leaves and their tables.

        :raises MappingError: a leaf crosses an end
        """
        first, last = start >> PAGE_SHIFT, pfn_up(end)
        leaves = coalesce(clip(self.leaves, first, last))
        tables = tables_of(self.tables, first, last)
        return Mapping(leaves, coalesce(tables, tables=True))

    def merge(self, other: "Mapping") -> "Mapping":
        """Both mappings in one; the same table page may occur in both.

        :raises MappingError: a virtual page is mapped by both, or a table differs
        """
        leaves = coalesce(sort_leaves(np.concatenate((self.leaves, other.leaves))))
        tables = np.unique(expand(np.concatenate((self.tables, other.tables)), tables=True))
        merged = Mapping(leaves, sort_tables(tables))
        merged.check()
        return merged

    def check(self) -> None:
        """:raises MappingError: runs unsorted, overlapping, misaligned or of no level."""
        _check(self.leaves, LEVELS - 1, tables=False)
        _check(self.tables, LEVELS, tables=True)
        pse = np.where(self.leaves["level"] > 1, PTE_PSE, 0).astype(np.uint64)
        large = self.leaves["level"] > 1
        if np.any((self.leaves["flags"] & PTE_PSE)[large] != pse[large]):
            raise MappingError("a leaf of level 2 or 3 without PSE")
        if np.any(self.leaves["flags"] & PTE_PRESENT == 0):
            raise MappingError("a leaf that is not present")


def sort_leaves(leaves: Runs) -> Runs:
    """Leaves sorted by vpn. (np.sort() with an order would compare field by field.)"""
    vpn = leaves["vpn"]
    return leaves if np.all(vpn[1:] >= vpn[:-1]) else leaves[np.argsort(vpn, kind="stable")]


def sort_tables(tables: Runs) -> Runs:
    """Canonical table runs: sorted by (level, vpn) and coalesced."""
    return coalesce(tables[np.lexsort((tables["vpn"], tables["level"]))], tables=True)


def clip(runs: Runs, start: int, end: int) -> Runs:
    """Leaves that map virtual pages [start, end).

    :raises MappingError: a leaf of level 2 or 3 crosses an end
    """
    size = entry_pages(column(runs, "level"))
    vpn, nr = column(runs, "vpn"), column(runs, "nr")
    first = np.clip(-((vpn - start) // size), 0, nr)  # rounded up: first entry at or behind start
    last = np.clip(-((vpn - end) // size), first, nr)
    crosses = (first > 0) & (vpn + first * size > start) & (vpn + (first - 1) * size < end)
    crosses |= (last > first) & (vpn + last * size > end)
    if crosses.any():
        at = int(vpn[np.argmax(crosses)])
        raise MappingError(f"a superpage of the run at vpn {at:#x} crosses an end of the window")
    out = runs.copy()
    out["vpn"], out["nr"] = vpn + first * size, last - first
    out["pfn"] = column(runs, "pfn") + first * column(runs, "step")
    return out[out["nr"] > 0]


def tables_of(tables: Runs, start: int, end: int) -> Runs:
    """Tables that cover any of the virtual pages [start, end); roots always."""
    size = entry_pages(column(tables, "level") + 1)
    vpn, nr = column(tables, "vpn"), column(tables, "nr")
    first = np.clip((start - vpn) // size, 0, nr)
    last = np.clip(-((vpn - end) // size), first, nr)
    root = tables["level"] == LEVELS
    first, last = np.where(root, 0, first), np.where(root, nr, last)
    out = tables.copy()
    out["vpn"], out["nr"] = vpn + first * size, last - first
    out["pfn"] = column(tables, "pfn") + first * column(tables, "step")
    return out[out["nr"] > 0]


def _check(runs: Runs, top: int, *, tables: bool) -> None:
    if runs.dtype != RUN:
        raise MappingError(f"runs of dtype {runs.dtype} instead of RUN")
    level = column(runs, "level")
    if np.any((level < 1) | (level > top)):
        raise MappingError(f"a run of level {int(level.max())}; leaves have 1..3, tables 1..4")
    vpn, nr, size = column(runs, "vpn"), column(runs, "nr"), entry_pages(level + tables)
    if np.any(nr < 1) or np.any(vpn & (size - 1)) or np.any(vpn + nr * size > 1 << 52):
        raise MappingError("an empty or misaligned run, or one behind the address space")
    same = level[1:] == level[:-1] if tables else np.ones(max(len(runs) - 1, 0), bool)
    if np.any((vpn + nr * size)[:-1][same] > vpn[1:][same]) or (
        tables and np.any(level[1:] < level[:-1])
    ):
        raise MappingError("runs that overlap or are not sorted")
