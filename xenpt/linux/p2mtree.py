# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_vmalloc_p2m_tree(): the P->M list is copied to Linux's own, sparse one (p2m.c; SPEC F5).

The new list is linear in virtual space, 512 entries a page. A page of entries that are identity
or missing throughout is not copied: one filler page of each kind, or one L1 table full of it, is
mapped over and over. (Missing entries do not occur so early, but for those of a fault.)
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    MMUEXT_PIN_L1_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_RW,
    TABLE_PROT,
    TABLE_SHIFT,
    round_up,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.extents import (
    Ints,
    Mapping,
    Runs,
    make_runs,
    sort_leaves,
    sort_tables,
)
from xenpt.linux.directmap import KERNEL_PTE, kernel_ro_pte
from xenpt.linux.memblock import NO_REGIONS, Regions
from xenpt.linux.pages import Pages, again, joined, placed
from xenpt.linux.pagetable import PAGE_KERNEL, page_kernel_ro
from xenpt.linux.state import PMD_SIZE, BootState, LinuxPanic
from xenpt.units import GIB_PAGES
from xenpt.xen.hypercalls import Hypercalls

P2M_PER_PAGE = PAGE_SIZE // 8
BLOCK = P2M_PER_PAGE * ENTRIES  # pfns of one L1 table of the list
#: MAX_P2M_PFN: pages of the tree of three levels through which Xen's tools read the list.
TOOLS_TREE_PAGES = P2M_PER_PAGE**3
_BEYOND_TREE = "kernel BUG in p2m_top_index(): pfn {:#x} is beyond the tree for Xen's tools"
_NO_PAGE = "alloc_p2m_page: Failed to allocate 4096 bytes align=0x1000"
_NO_TABLE = "set_pte_phys: cannot allocate page data"  # spp_getpage()
_NO_BOOTMEM = "Out of memory"
KERNPG_TABLE = PTE_DIRTY | PTE_ACCESSED | PTE_RW | PTE_PRESENT


def vmalloc_p2m_tree(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Copy the list; then give pages of their own to entries of extra memory.

    The area covers at least the hotplug limit, so that a small domain has a long identity tail;
    entries of a list that goes on behind its end are lost.

    :raises LinuxPanic: no page is left, or one of extra memory has no place in the tools' tree
    """
    p2m_size = round_up(state.nr_pages, P2M_PER_PAGE)
    size = area_bytes(state) // 8
    missing = Regions.of((*state.missing, (state.nr_pages, p2m_size))) - state.identity
    gone = Regions.of((-(-a // P2M_PER_PAGE), b // P2M_PER_PAGE) for a, b in missing)
    own = _pages_of(Regions.of([(0, min(p2m_size, size))]) - state.identity) - gone
    tree = _Tree(state, hc, gone)
    tree.make_fillers()
    tree.map_all(own, size // BLOCK)
    extra = _pages_of(state.extra)
    tree.invalidate(extra, own)
    new_list, aliases = tree.mapping(size // BLOCK, Regions.of((*own, *(extra - gone))))
    return (
        replace(
            state,
            memblock=tree.pages.memblock,
            max_p2m_pfn=size,
            new_list=new_list,
            aliases=aliases,
            ro_entries=Regions.of(
                (*state.ro_entries, *((pfn, pfn + 1) for pfn in tree.filler_tables))
            ),
        ),
        Cost(by_type=dict(hc.by_type), entries_written=own.size * P2M_PER_PAGE),
    )


def area_bytes(state: BootState) -> int:
    """Size of the area that the copy of the list will have: a multiple of 2 MiB."""
    limit = state.rules.hotplug_limit_gib * GIB_PAGES
    return round_up(8 * max(state.max_p2m_pfn, limit), PMD_SIZE)


class _Tree:
    """The new list while it is built.

    :ivar gone: P->M pages of which all entries are missing
    :ivar filler: the page of identity entries; `filler_table`: the L1 table full of it;
        `missing` and `missing_table`: those of missing entries
    :ivar tables: frames of the L2 and L3 tables by (level, number), and of the L1 tables of
        blocks that are only in part their own by (1, block)
    :ivar taken: `placed` rows of P->M pages of their own (0), by page; of L1 tables (1), by block;
        of L2 tables (2), by their number in the area
    """

    def __init__(self, state: BootState, hc: Hypercalls, gone: Regions = NO_REGIONS) -> None:
        self.state, self.hc, self.gone = state, hc, gone
        texts = (_NO_PAGE, _NO_TABLE)
        if state.rules.list_pages_by_bootmem:
            texts = (_NO_BOOTMEM, _NO_BOOTMEM)
        no_page, self._no_table = (
            LinuxPanic(f"Kernel panic - not syncing: {text}") for text in texts
        )
        self.pages = Pages(state.memblock, no_page)
        self.read_only = page_kernel_ro(state.rules)
        self.tables: dict[tuple[int, int], int] = {}
        self.filler = self.filler_table = self.missing = self.missing_table = 0
        self.filler_tables: tuple[int, ...] = ()
        self.taken: dict[int, list[Ints]] = {0: [], 1: [], 2: []}

    def make_fillers(self) -> None:
        """Pages of missing and of identity entries, and an L1 table full of each."""
        self.missing, self.filler = self.pages.next(), self.pages.next()
        self.missing_table, self.filler_table = (
            self._announced_l1(self.pages.next()) for _ in range(2)
        )
        self.filler_tables = self.missing_table, self.filler_table
        for slot in self.hc.repeat(ENTRIES):
            self.hc.mmu_update(1, self.missing_table, slot, self.missing, self.read_only)
            self.hc.mmu_update(1, self.filler_table, slot, self.filler, self.read_only)

    def map_all(self, own: Regions, nr_blocks: int) -> None:
        """Map blocks 0 .. nr_blocks - 1; `own`: P->M pages that are copied."""
        whole, missing = _whole_blocks(own), _whole_blocks(self.gone)
        touched = Regions.of((a // ENTRIES, -(-b // ENTRIES)) for a, b in (*own, *self.gone))
        identity = Regions.of([(0, nr_blocks)]) - touched
        share, mix = self._share_blocks, partial(self._mix_blocks, own=own)
        kinds = [(a, b, self._copy_blocks) for a, b in whole]
        kinds += [(a, b, partial(share, filler=self.filler_table)) for a, b in identity]
        kinds += [(a, b, partial(share, filler=self.missing_table)) for a, b in missing]
        kinds += [(a, b, mix) for a, b in touched - whole - missing]
        for first, end, verb in sorted(kinds, key=lambda kind: kind[0]):
            while first < end:  # one L2 table at a time, or those of an L3 table that are alike
                stop = min(end, (first // ENTRIES + 1) * ENTRIES)
                verb(first, stop)
                alike = min(end // ENTRIES, -(-stop // ENTRIES**2) * ENTRIES) * ENTRIES
                if verb == self._copy_blocks and stop < alike:
                    self._copy_tables(stop, alike)
                    stop = alike
                first = stop

    def invalidate(self, extra: Regions, own: Regions) -> None:
        """xen_inv_extra_mem(): entries of extra memory, identity so far, get pages of their own.

        :raises LinuxPanic: one of them is beyond the tree, and this generation looks there
        """
        for first, end in extra - own - self.gone:
            beyond = max(first, TOOLS_TREE_PAGES // P2M_PER_PAGE)
            if self.state.rules.dies_beyond_tools_tree and beyond < end:
                raise LinuxPanic(_BEYOND_TREE.format(beyond * P2M_PER_PAGE))
            while first < end:  # one L1 table at a time
                stop = min(end, (first // ENTRIES + 1) * ENTRIES)
                table = self.tables.get((1, first // ENTRIES))
                table = table or self._hook_l1(first, KERNPG_TABLE, copied=True)
                self._copy_pages(first, stop, table)
                first = stop

    def _copy_tables(self, first: int, end: int) -> None:
        """Blocks of whole L2 tables that are all their own, below an L3 table that is there."""
        nr = (end - first) // ENTRIES
        if self.pages.left < nr * (1 + ENTRIES * (1 + ENTRIES)):  # which page cannot be had?
            for block in range(first, end, ENTRIES):
                self._copy_blocks(block, block + ENTRIES)
        self._alike(nr, ENTRIES, lambda block: self._copy_blocks(block, block + ENTRIES), first)

    def _copy_blocks(self, first: int, end: int) -> None:
        """Blocks of one L2 table that are all their own: page, L1 table, 511 pages of each."""
        own = Regions.of([(first * ENTRIES, end * ENTRIES)])
        self._mix_blocks(first, first + 1, own=own)
        nr = end - first - 1
        if self.pages.left < nr * (1 + ENTRIES):  # which page is it that cannot be had?
            self._mix_blocks(first + 1, end, own=own)
        self._alike(nr, 1, lambda block: self._mix_blocks(block, block + 1, own=own), first + 1)

    def _alike(self, nr: int, size: int, step: Callable[[int], None], first: int) -> None:
        """Take `nr` steps of `size` blocks from block `first` on that need alike pages.

        Where calls are only counted, the first step is taken, and stands for all.
        """
        start, taken = self.pages.nr, self.taken
        self.taken = {kind: [] for kind in taken}
        for i in self.hc.repeat(nr):
            step(first + i * size)
            if i == 0:
                pace = self.pages.nr - start
                alike = {kind: joined(rows) for kind, rows in self.taken.items() if rows}
        if nr > 0:
            self.pages.skip(start + nr * pace - self.pages.nr)
            for kind, rows in alike.items():
                taken[kind].append(again(rows, nr, size * ENTRIES >> (TABLE_SHIFT * kind), pace))
        self.taken = taken

    def _mix_blocks(self, first: int, end: int, *, own: Regions) -> None:
        """Blocks page by page; a page is allocated before the table that it needs."""
        for block in range(first, end):
            page, stop = block * ENTRIES, (block + 1) * ENTRIES
            copied = own.clip(page, stop)
            if copied.meets(page, page + 1):
                self.taken[0].append(placed(page, self.pages.nr, 1))
                data = self.pages.next()
                table = self._hook_l1(page, TABLE_PROT)
                self.hc.mmu_update(1, table, 0, data, PAGE_KERNEL)
                page += 1
            else:
                table = self._hook_l1(page, TABLE_PROT)
            for low, high in copied:
                self._share_pages(page, low, table)
                self._copy_pages(max(page, low), high, table)
                page = high
            self._share_pages(page, stop, table)

    def _share_blocks(self, first: int, end: int, *, filler: int) -> None:
        vaddr = self._vaddr(first * ENTRIES)
        slot, table = table_slot(vaddr, 2), self._upper(2, vaddr)
        self.hc.mmu_update(2, table, slot, filler, KERNPG_TABLE, nr=end - first, step=0)

    def _share_pages(self, first: int, end: int, table: int) -> None:
        for a, b, filler in self._fillers(Regions.of([(first, end)])):
            self.hc.mmu_update(1, table, a % ENTRIES, filler, self.read_only, nr=b - a, step=0)

    def _fillers(self, pages: Regions) -> list[tuple[int, int, int]]:
        """Runs (first, end, frame) of P->M pages without a copy: the filler that each gets."""
        kinds = [(a, b, self.filler) for a, b in pages - self.gone]
        for a, b in pages:
            kinds += [(low, high, self.missing) for low, high in self.gone.clip(a, b)]
        return sorted(kinds)

    def _copy_pages(self, first: int, end: int, table: int) -> None:
        stop = self.pages.nr + max(end - first, 0)
        if first < end:
            self.taken[0].append(placed(first, self.pages.nr, end - first))
        for i in self.hc.repeat(end - first):
            self.hc.mmu_update(1, table, (first + i) % ENTRIES, self.pages.next(), PAGE_KERNEL)
        self.pages.skip(stop - self.pages.nr)

    def _hook_l1(self, page: int, flags: int, *, copied: bool = False) -> int:
        vaddr = self._vaddr(page)
        upper = self._upper(2, vaddr)
        self.taken[1].append(placed(page // ENTRIES, self.pages.nr, 1))
        table = self._announced_l1(self.pages.next(self._no_table), copied=copied)
        self.hc.mmu_update(2, upper, table_slot(vaddr, 2), table, flags)
        self.tables[1, page // ENTRIES] = table
        return table

    def _announced_l1(self, pfn: int, *, copied: bool = False) -> int:
        """A new L1 table, read-only and pinned in one multicall (xen_alloc_pte).

        :param copied: of the table of fillers (alloc_p2m_pmd), else empty
        """
        self.hc.clear_page(pfn)
        if copied:
            self.hc.store(pfn, 0, self.filler, self.read_only, nr=ENTRIES, step=0)
        with self.hc.multicall():
            self.hc.update_va_mapping(self.state.va(pfn), pfn, self.read_only)
            self.hc.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
        return pfn

    def _upper(self, level: int, vaddr: int) -> int | None:
        """The table of level 2 or 3 over `vaddr`, made if it is missing (xen_alloc_pmd)."""
        if level == LEVELS:
            return self.state.root_pfn
        key = level, vaddr >> (PAGE_SHIFT + TABLE_SHIFT * level)
        if key not in self.tables:
            parent = self._upper(level + 1, vaddr)
            if level == 2:
                number = (vaddr - self._vaddr(0)) // (PAGE_SIZE * ENTRIES**2)
                self.taken[2].append(placed(number, self.pages.nr, 1))
            pfn = self.tables[key] = self.pages.next(self._no_table)
            self.hc.clear_page(pfn)
            self.hc.update_va_mapping(self.state.va(pfn), pfn, self.read_only)
            self.hc.mmu_update(level + 1, parent, table_slot(vaddr, level + 1), pfn, TABLE_PROT)
        return self.tables[key]

    def mapping(self, nr_blocks: int, own: Regions) -> tuple[Mapping, Runs]:
        """The new list, each table once; and the L2 entries that point to the filler table again.

        :param nr_blocks: blocks that the area has
        :param own: P->M pages of their own
        """
        top, ro_pte = self.state.rules.vmalloc_start >> PAGE_SHIFT, kernel_ro_pte(self.state.rules)
        rows = {kind: np.concatenate(pieces) for kind, pieces in self.taken.items()}
        blocks = Regions.of((block, block + nr) for block, _, nr, _ in rows[1].tolist())
        filled = Regions.of((a * ENTRIES, b * ENTRIES) for a, b in blocks) - own
        shared = Regions.of([(0, nr_blocks)]) - blocks
        leaves = [(top + a, filler, b - a, 0, 1, ro_pte) for a, b, filler in self._fillers(filled)]
        tables = [
            (number << (TABLE_SHIFT * level), pfn, 1, 1, level, TABLE_PROT)
            for (level, number), pfn in self.tables.items()
            if level == 3
        ]
        aliases = []
        missing = _whole_blocks(self.gone)
        for blocks, table, page in (
            (shared - missing, self.filler_table, self.filler),
            (missing, self.missing_table, self.missing),
        ):
            if not blocks.ranges:
                continue
            first = blocks.ranges[0][0]
            tables.append((top + first * ENTRIES, table, 1, 1, 1, TABLE_PROT))
            leaves.append((top + first * ENTRIES, page, ENTRIES, 0, 1, ro_pte))
            for a, b in blocks.remove(first, first + 1):
                aliases.append((top + a * ENTRIES, table, b - a, 0, 2, TABLE_PROT))
        for kind, of_kind in rows.items():
            of_kind[:, 0] = top + of_kind[:, 0] * ENTRIES**kind
        copied = self.pages.place([rows[0]], 1, KERNEL_PTE, tables=False)
        own_tables = [self.pages.place([rows[n]], n, TABLE_PROT, tables=True) for n in (1, 2)]
        return (
            Mapping(
                sort_leaves(np.concatenate((copied, make_runs(leaves)))),
                sort_tables(np.concatenate((*own_tables, make_runs(tables)))),
            ),
            make_runs(aliases),
        )

    def _vaddr(self, page: int) -> int:
        return self.state.rules.vmalloc_start + page * PAGE_SIZE


def _whole_blocks(pages: Regions) -> Regions:
    """Blocks of which all P->M pages are among `pages`."""
    return Regions.of((-(-a // ENTRIES), b // ENTRIES) for a, b in pages)


def _pages_of(pfns: Regions) -> Regions:
    """P->M pages that hold any of these pfns."""
    return Regions.of((a // P2M_PER_PAGE, -(-b // P2M_PER_PAGE)) for a, b in pfns)
