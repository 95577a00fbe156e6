# SPDX-License-Identifier: GPL-2.0-or-later
"""`PageTableImage`: page tables as words, packed in one arena; of a window of extents or of a dump.

`materialise` makes words of extents, `PageTableImage.summarise` makes extents of words; each is
the inverse of the other. Words hold machine frames, extents guest frames.
"""

import mmap
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from xenpt import _core
from xenpt.abi import (
    ENTRIES,
    HIGH_HALF,
    L2_SIZE,
    LEVELS,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    TABLE_PROT,
    TABLE_SHIFT,
    XEN_SLOTS,
    pfn_up,
    table_slot,
)
from xenpt.engine import FreeWalk, WalkRules
from xenpt.errors import MappingError
from xenpt.extents import (
    EMPTY,
    RUN,
    Frames,
    Ints,
    Mapping,
    Ranges,
    Runs,
    column,
    expand,
    join_ranges,
    run_array,
    sort_tables,
    split_at_tables,
    tables_of,
    words,
)
from xenpt.p2m import P2M
from xenpt.room import require_room

Pages = npt.NDArray[np.uint64]
HUGE_PAGE_SIZE = L2_SIZE
FEW_RANGES = 1024  # so many cost less than an M2P of the whole host
FIRST_ROWS = 4096  # of a walk's result; a larger result is fetched by a second walk
UPPER_HALF = HIGH_HALF >> PAGE_SHIFT  # what sign extension adds to a vpn


def new_arena(nr_tables: int) -> Pages:
    """Zeroed table pages in memory of huge pages, where the system has them.

    First touch costs more than any stage: use one arena again for many images (`arena=`).

    :raises NoRoomError: they are more than memory holds
    """
    require_room(nr_tables * PAGE_SIZE, f"{nr_tables:,} page tables")
    buffer = mmap.mmap(-1, max(nr_tables, 1) * PAGE_SIZE)
    if nr_tables * PAGE_SIZE >= HUGE_PAGE_SIZE and hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(buffer, np.uint64).reshape(-1, ENTRIES)


@dataclass(frozen=True, slots=True)
class Walk:
    """What a walk over words met.

    :ivar leaves: canonical RUN array in order of address; its pfn column holds mfns
    :ivar entries_read: entries examined, by level (`l1` .. `l4`)
    :ivar outside: entries whose table is not in the image (Xen's own, in a guest's dump)
    """

    leaves: Runs
    entries_read: dict[str, int]
    outside: int


@dataclass(frozen=True, slots=True)
class PageTableImage:
    """Page tables as 64-bit words. Mutable: marking changes `pages` in place.

    :ivar pages: (n, 512) uint64 arena, one row a table page
    :ivar mfn: machine frame of each page, distinct
    :ivar level: level of each page, 1..4
    :ivar vaddr: first virtual address that each page covers; 0 for a root
    """

    pages: Pages
    mfn: Frames
    level: npt.NDArray[np.uint8]
    vaddr: npt.NDArray[np.uint64]
    _order: Ints = field(init=False, repr=False, compare=False)
    _mfns: Frames = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = np.argsort(self.mfn, kind="stable").astype(np.int64)
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_mfns", np.ascontiguousarray(self.mfn[order], np.uint64))
        if np.any(self._mfns[1:] == self._mfns[:-1]):
            raise MappingError("two table pages with one mfn")

    def index(self, mfn: int) -> int | None:
        """Row of the table page `mfn`, or None if it is not in the image."""
        at = int(np.searchsorted(self._mfns, np.uint64(mfn)))
        found = at < len(self._mfns) and int(self._mfns[at]) == mfn
        return int(self._order[at]) if found else None

    def tables(self, level: int) -> Ints:
        """Rows of the tables of one level."""
        return np.flatnonzero(self.level == level).astype(np.int64)

    def root(self) -> int:
        """Row of the table to begin with: the first of the highest level.

        :raises MappingError: the image is empty
        """
        if not len(self.level):
            raise MappingError("an image without tables")
        return int(np.argmax(self.level))

    def translate(self, vaddr: int) -> tuple[int, int, int] | None:
        """(mfn of the 4 KiB page, level of the leaf, flags) at `vaddr`, or None in a hole."""
        at: int | None = self.root()
        level = int(self.level[self.root()])
        while at is not None:
            word = int(self.pages[at, table_slot(vaddr, level)])
            if not word & PTE_PRESENT:
                return None
            mfn, flags = (word & PTE_MFN_MASK) >> PAGE_SHIFT, word & ~PTE_MFN_MASK
            if level == 1 or (flags & PTE_PSE and level < LEVELS):
                pages = ENTRIES ** (level - 1)
                return mfn + ((vaddr >> PAGE_SHIFT) & (pages - 1)), level, flags
            at, level = self.index(mfn), level - 1
        return None

    def walk(self, root: int | None = None) -> Walk:
        """Every leaf below a table (the image's root) outside Xen's L4 slots, as hardware finds it.

        :raises EntryError: tables that share one another beyond any real use
        """
        top = self.root() if root is None else root
        counts, out = np.zeros(5, np.uint64), np.empty(FIRST_ROWS, RUN)
        while True:
            nr = _core.walk(
                self.pages, self._mfns, self._order, top, int(self.level[top]),
                int(self.vaddr[top]) >> PAGE_SHIFT, XEN_SLOTS.start, XEN_SLOTS.stop, words(out),
                counts,
            )  # fmt: skip
            if nr <= len(out):
                break
            out = np.empty(nr, RUN)
        return Walk(out[:nr].copy(), _by_level(counts), int(counts[0]))

    def summarise(self, p2m: P2M) -> Mapping:
        """Extents of what the image maps: the inverse of `materialise`.

        :raises MappingError: a frame that is not the domain's
        """
        top = self.root()
        rows = [
            np.array(
                [
                    (
                        int(self.vaddr[top]) >> PAGE_SHIFT,
                        self.mfn[top],
                        1,
                        1,
                        self.level[top],
                        0 if self.level[top] == LEVELS else TABLE_PROT,
                    )
                ],
                RUN,
            )
        ]
        for level in range(int(self.level[top]), 1, -1):
            rows.append(self._children(rows[-1], level))
        tables = p2m.to_pfn(sort_tables(np.concatenate(rows)), tables=True)
        return Mapping(p2m.to_pfn(self.walk().leaves), tables)

    def _children(self, parents: Runs, level: int) -> Runs:
        """Runs of the tables that tables of `level` point to; those outside are left out."""
        at = np.array([self.index(int(mfn)) for mfn in parents["pfn"]], np.int64)
        table = self.pages[at]
        row, slot = np.nonzero(
            (table & np.uint64(PTE_PRESENT) != 0)
            & ((table & np.uint64(PTE_PSE) == 0) | (level == LEVELS))
        )
        if level == LEVELS:
            guest = (slot < XEN_SLOTS.start) | (slot >= XEN_SLOTS.stop)
            row, slot = row[guest], slot[guest]
        word = table[row, slot]
        mfn = (word & np.uint64(PTE_MFN_MASK)) >> np.uint64(PAGE_SHIFT)
        held = np.isin(mfn, self._mfns)
        vpn = column(parents, "vpn")[row] + (slot << (TABLE_SHIFT * (level - 1)))
        if level == LEVELS:
            vpn = np.where(slot >= ENTRIES // 2, vpn + UPPER_HALF, vpn)
        flags = word & np.uint64(~PTE_MFN_MASK & (1 << 64) - 1)
        return run_array(vpn[held], mfn[held], 1, 1, level - 1, flags[held])

    def mark_read_only(self, pfn_ranges: Ranges, p2m: P2M) -> int:
        """Clear RW of every leaf whose frame lies in `pfn_ranges`; return the entries changed.

        :raises EntryError: a superpage lies only partly in the ranges
        """
        return self._mark(pfn_ranges, p2m, clear=PTE_RW, put=0)

    def mark_writable(self, pfn_ranges: Ranges, p2m: P2M) -> int:
        """Set RW of every leaf whose frame lies in `pfn_ranges`; return the entries changed.

        :raises EntryError: a superpage lies only partly in the ranges
        """
        return self._mark(pfn_ranges, p2m, clear=0, put=PTE_RW)

    def _mark(self, pfn_ranges: Ranges, p2m: P2M, *, clear: int, put: int) -> int:
        """Mark by mfns, or entry by entry through the M2P where host memory is in tiny pieces."""
        mfns = np.ascontiguousarray(p2m.mfn_ranges(pfn_ranges)).view(np.uint64)
        small, changed = self.tables(1), 0
        levels = range(1, LEVELS)
        if len(mfns) > max(len(small), FEW_RANGES):
            pfns = np.ascontiguousarray(join_ranges(pfn_ranges)).view(np.uint64)
            changed = _core.mark_gather(self.pages, small, p2m.m2p(), pfns, clear, put)
            levels = range(2, LEVELS)
        return changed + sum(
            _core.mark(self.pages, self.tables(level), level, mfns, clear, put) for level in levels
        )

    def walk_to_free(self, vaddr: int, rules: WalkRules, p2m: P2M) -> FreeWalk:
        """Walk the tables of the L4 slot of `vaddr` as xen_cleanmfnmap() does, word by word.

        Gives what engine.walk_to_free() gives for the same mapping; leaks are of the whole image.

        :raises MappingError: the slot has no L3 table, or a frame is not the domain's
        """
        slot = vaddr >> PAGE_SHIFT >> (TABLE_SHIFT * 3) << (TABLE_SHIFT * 3)
        at = np.flatnonzero((self.level == 3) & (self.vaddr == slot << PAGE_SHIFT))
        if not len(at):
            raise MappingError(f"no L3 table for the P->M list at {vaddr:#018x}")
        begin = vaddr >> PAGE_SHIFT & ~(ENTRIES - 1)
        counts = np.zeros(5, np.uint64)
        out, tables = np.empty(FIRST_ROWS, RUN), np.empty(FIRST_ROWS, RUN)
        while True:
            nr, nr_tables = _core.walk_to_free(
                self.pages, self._mfns, self._order, int(at[0]), slot, begin,
                rules.skip_empty_entries, rules.flat, words(out), words(tables), counts,
            )  # fmt: skip
            if nr <= len(out) and nr_tables <= len(tables):
                break
            out, tables = np.empty(nr, RUN), np.empty(nr_tables, RUN)
        freed = FreeWalk(
            p2m.to_pfn(out[:nr]),
            sort_tables(p2m.to_pfn(tables[:nr_tables], tables=True)),
            _by_level(counts),
            0,
        )
        there = Mapping(self.walk().leaves, EMPTY).nr_pages + int((self.level < LEVELS).sum())
        return replace(freed, leaked_pages=there - freed.pages_freed)


def _by_level(counts: npt.NDArray[np.uint64]) -> dict[str, int]:
    return {f"l{level}": int(counts[level]) for level in range(1, LEVELS + 1)}


def materialise(
    mapping: Mapping,
    p2m: P2M,
    window: tuple[int, int] | None = None,
    *,
    arena: Pages | None = None,
) -> PageTableImage:
    """Words of the table pages of `mapping`: all, or those that cover an address of a window.

    Every table page of the image is complete; with a window some tables that it points to are not
    in the image. Pages are in order of (level, address).

    :param window: half-open range of virtual addresses
    :param arena: table pages to use again; its contents are lost
    :raises MappingError: a leaf without a table, a frame outside `p2m`, or an arena too small
    """
    tables = mapping.tables
    if window is not None:
        tables = tables_of(tables, window[0] >> PAGE_SHIFT, pfn_up(window[1]))
    nr = int(tables["nr"].sum())
    if arena is not None and len(arena) < nr:
        raise MappingError(f"an arena of {len(arena)} pages for {nr} tables")
    pages = (new_arena(nr) if arena is None else arena)[:nr]
    tables = expand(tables, tables=True)
    if arena is not None:
        pages[:] = 0
    lower = mapping.tables[mapping.tables["level"] < LEVELS]
    entries = lower.copy()
    entries["level"] += 1  # a table page is an entry of the level above
    for runs, is_leaf in ((mapping.leaves, True), (entries, False)):
        pieces = split_at_tables(runs)
        at = _table_rows(tables, pieces)
        if window is None and is_leaf and np.any(at < 0):
            vpn = int(pieces["vpn"][np.argmax(at < 0)])
            raise MappingError(f"no table for the leaf at {vpn << PAGE_SHIFT:#018x}")
        pieces = pieces[at >= 0]
        if is_leaf:
            pieces = split_at_tables(p2m.to_mfn(pieces))
        else:
            pieces["level"] -= 1
            pieces = p2m.to_mfn(pieces, tables=True)
            pieces["level"] += 1
            pieces = split_at_tables(pieces)
        shift = TABLE_SHIFT * (column(pieces, "level") - 1)
        slot = (column(pieces, "vpn") >> shift) & (ENTRIES - 1)
        rows = (_table_rows(tables, pieces), slot, pieces["nr"], pieces["pfn"], pieces["step"],
                pieces["flags"])  # fmt: skip
        _core.fill(pages, np.stack([c.astype(np.int64).view(np.uint64) for c in rows], axis=1))
    return PageTableImage(
        pages,
        p2m.mfn(tables["pfn"]),
        tables["level"].astype(np.uint8),
        tables["vpn"] << np.uint64(PAGE_SHIFT),
    )


def _table_rows(tables: Runs, pieces: Runs) -> Ints:
    """Row of the table that holds each piece, or -1; tables are single, by (level, vpn)."""
    rows = np.full(len(pieces), -1, np.int64)
    vpn, level = column(pieces, "vpn"), column(pieces, "level")
    for n in range(1, LEVELS + 1):
        held, here = np.flatnonzero(level == n), np.flatnonzero(tables["level"] == n)
        if not len(held) or not len(here):
            continue
        if n == LEVELS:
            rows[held] = here[0]
            continue
        start = column(tables, "vpn")[here]
        at = np.searchsorted(start, vpn[held], side="right") - 1
        found = (at >= 0) & (start[at] == vpn[held] >> (TABLE_SHIFT * n) << (TABLE_SHIFT * n))
        rows[held[found]] = here[at[found]]
    return rows
