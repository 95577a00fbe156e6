# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_vmalloc_p2m_tree(): the P->M list is copied to Linux's own, sparse one (p2m.c; SPEC F5).

The new list is linear in virtual space, 512 entries a page. A page of entries that are identity
or missing throughout is not copied: one filler page of each kind, or one L1 table full of it, is
mapped over and over. (Missing entries do not occur so early, but for those of a fault.)
"""

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
from xenpt.extents import Mapping, Runs, expand, make_runs, sort_tables
from xenpt.linux.directmap import KERNEL_PTE, kernel_ro_pte
from xenpt.linux.memblock import NO_REGIONS, Regions
from xenpt.linux.pages import Pages
from xenpt.linux.pagetable import PAGE_KERNEL, PAGE_KERNEL_RO
from xenpt.linux.rules import GIB_PAGES
from xenpt.linux.state import PMD_SIZE, BootState, LinuxPanic
from xenpt.xen.hypercalls import Hypercalls

P2M_PER_PAGE = PAGE_SIZE // 8
BLOCK = P2M_PER_PAGE * ENTRIES  # pfns of one L1 table of the list
Row = tuple[int, int, int, int]
_NO_PAGE = "alloc_p2m_page: Failed to allocate 4096 bytes align=0x1000"
_NO_TABLE = "set_pte_phys: cannot allocate page data"  # spp_getpage()
_NO_BOOTMEM = "Out of memory"
KERNPG_TABLE = PTE_DIRTY | PTE_ACCESSED | PTE_RW | PTE_PRESENT


def vmalloc_p2m_tree(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Copy the list; then give pages of their own to entries of extra memory.

    The area covers at least the hotplug limit, so that a small domain has a long identity tail.
    """
    p2m_size = round_up(state.nr_pages, P2M_PER_PAGE)
    limit = state.rules.hotplug_limit_gib * GIB_PAGES
    size = round_up(8 * max(state.max_p2m_pfn, limit), PMD_SIZE) // 8
    missing = Regions.of((*state.missing, (state.nr_pages, p2m_size))) - state.identity
    gone = Regions.of((-(-a // P2M_PER_PAGE), b // P2M_PER_PAGE) for a, b in missing)
    own = _pages_of(Regions.of([(0, p2m_size)]) - state.identity) - gone
    tree = _Tree(state, hc, gone)
    tree.make_fillers()
    tree.map_all(own, size // BLOCK)
    tree.invalidate(_pages_of(state.extra), own)
    new_list, aliases = tree.mapping(size // BLOCK)
    made = [*tree.filler_tables, *expand(new_list.tables, tables=True)["pfn"].tolist()]
    return (
        replace(
            state,
            memblock=tree.pages.memblock,
            max_p2m_pfn=size,
            new_list=new_list,
            aliases=aliases,
            ro_entries=Regions.of((*state.ro_entries, *((pfn, pfn + 1) for pfn in made))),
        ),
        Cost(by_type=dict(hc.by_type), entries_written=own.size * P2M_PER_PAGE),
    )


class _Tree:
    """The new list while it is built.

    :ivar gone: P->M pages of which all entries are missing
    :ivar filler: the page of identity entries; `filler_table`: the L1 table full of it;
        `missing` and `missing_table`: those of missing entries
    :ivar tables: frames of the L2 and L3 tables by (level, number), and of the L1 tables of
        blocks that are only in part their own by (1, block)
    :ivar copied: rows (page, position, pages, 1) of P->M pages of their own; `position`: number
        of pages that were taken before (Pages.place)
    :ivar own_l1: rows (block, position, blocks, pace) of L1 tables
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
        self.tables: dict[tuple[int, int], int] = {}
        self.filler = self.filler_table = self.missing = self.missing_table = 0
        self.filler_tables: tuple[int, ...] = ()
        self.copied: list[Row] = []
        self.own_l1: list[Row] = []

    def make_fillers(self) -> None:
        """Pages of missing and of identity entries, and an L1 table full of each."""
        self.missing, self.filler = self.pages.next(), self.pages.next()
        self.missing_table, self.filler_table = (
            self._announced_l1(self.pages.next()) for _ in range(2)
        )
        self.filler_tables = self.missing_table, self.filler_table
        for slot in self.hc.repeat(ENTRIES):
            self.hc.mmu_update(1, self.missing_table, slot, self.missing, PAGE_KERNEL_RO)
            self.hc.mmu_update(1, self.filler_table, slot, self.filler, PAGE_KERNEL_RO)

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
            while first < end:  # one L2 table at a time
                stop = min(end, (first // ENTRIES + 1) * ENTRIES)
                verb(first, stop)
                first = stop

    def invalidate(self, extra: Regions, own: Regions) -> None:
        """xen_inv_extra_mem(): entries of extra memory, identity so far, get pages of their own."""
        for first, end in extra - own - self.gone:
            while first < end:  # one L1 table at a time
                stop = min(end, (first // ENTRIES + 1) * ENTRIES)
                table = self.tables.get((1, first // ENTRIES))
                self._copy_pages(first, stop, table or self._hook_l1(first, KERNPG_TABLE))
                first = stop

    def _copy_blocks(self, first: int, end: int) -> None:
        """Blocks of one L2 table that are all their own: page, L1 table, 511 pages of each."""
        own = Regions.of([(first * ENTRIES, end * ENTRIES)])
        self._mix_blocks(first, first + 1, own=own)
        start, nr = self.pages.nr, end - first - 1
        if self.pages.left < nr * (ENTRIES + 1):  # which page is it that cannot be had?
            self._mix_blocks(first + 1, end, own=own)
        copied, own_l1 = self.copied, self.own_l1
        self.copied, self.own_l1 = [], []
        for i in self.hc.repeat(nr):
            page = (first + 1 + i) * ENTRIES
            self._mix_blocks(first + 1 + i, first + 2 + i, own=Regions.of([(page, page + ENTRIES)]))
        self.pages.skip(start + nr * (ENTRIES + 1) - self.pages.nr)
        for i in range(nr):
            page, position = (first + 1 + i) * ENTRIES, start + i * (ENTRIES + 1)
            copied.append((page, position, 1, 1))
            copied.append((page + 1, position + 2, ENTRIES - 1, 1))
        if nr:
            own_l1.append((first + 1, start + 1, nr, ENTRIES + 1))
        self.copied, self.own_l1 = copied, own_l1

    def _mix_blocks(self, first: int, end: int, *, own: Regions) -> None:
        """Blocks page by page; a page is allocated before the table that it needs."""
        for block in range(first, end):
            page, stop = block * ENTRIES, (block + 1) * ENTRIES
            copied = own.clip(page, stop)
            if copied.meets(page, page + 1):
                self.copied.append((page, self.pages.nr, 1, 1))
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
            self.hc.mmu_update(1, table, a % ENTRIES, filler, PAGE_KERNEL_RO, nr=b - a, step=0)

    def _fillers(self, pages: Regions) -> list[tuple[int, int, int]]:
        """Runs (first, end, frame) of P->M pages without a copy: the filler that each gets."""
        kinds = [(a, b, self.filler) for a, b in pages - self.gone]
        for a, b in pages:
            kinds += [(low, high, self.missing) for low, high in self.gone.clip(a, b)]
        return sorted(kinds)

    def _copy_pages(self, first: int, end: int, table: int) -> None:
        stop = self.pages.nr + max(end - first, 0)
        if first < end:
            self.copied.append((first, self.pages.nr, end - first, 1))
        for i in self.hc.repeat(end - first):
            self.hc.mmu_update(1, table, (first + i) % ENTRIES, self.pages.next(), PAGE_KERNEL)
        self.pages.skip(stop - self.pages.nr)

    def _hook_l1(self, page: int, flags: int) -> int:
        vaddr = self._vaddr(page)
        upper = self._upper(2, vaddr)
        self.own_l1.append((page // ENTRIES, self.pages.nr, 1, 1))
        table = self._announced_l1(self.pages.next(self._no_table))
        self.hc.mmu_update(2, upper, table_slot(vaddr, 2), table, flags)
        self.tables[1, page // ENTRIES] = table
        return table

    def _announced_l1(self, pfn: int) -> int:
        """A new L1 table, read-only and pinned in one multicall (xen_alloc_pte)."""
        with self.hc.multicall():
            self.hc.update_va_mapping(self.state.va(pfn), pfn, PAGE_KERNEL_RO)
            self.hc.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
        return pfn

    def _upper(self, level: int, vaddr: int) -> int | None:
        """The table of level 2 or 3 over `vaddr`, made if it is missing (xen_alloc_pmd)."""
        if level == LEVELS:
            return self.state.root_pfn
        key = level, vaddr >> (PAGE_SHIFT + TABLE_SHIFT * level)
        if key not in self.tables:
            parent = self._upper(level + 1, vaddr)
            pfn = self.tables[key] = self.pages.next(self._no_table)
            self.hc.update_va_mapping(self.state.va(pfn), pfn, PAGE_KERNEL_RO)
            self.hc.mmu_update(level + 1, parent, table_slot(vaddr, level + 1), pfn, TABLE_PROT)
        return self.tables[key]

    def mapping(self, nr_blocks: int) -> tuple[Mapping, Runs]:
        """The new list, each table once; and the L2 entries that point to the filler table again.

        :param nr_blocks: blocks that the area has
        """
        top, ro_pte = self.state.rules.vmalloc_start >> PAGE_SHIFT, kernel_ro_pte(self.state.rules)
        pages = [(top + page, position, nr, pace) for page, position, nr, pace in self.copied]
        l1 = [(top + b * ENTRIES, position, nr, pace) for b, position, nr, pace in self.own_l1]
        blocks = Regions.of((b, b + nr) for b, _, nr, _ in self.own_l1)
        own = Regions.of((page, page + nr) for page, _, nr, _ in self.copied)
        filled = Regions.of((a * ENTRIES, b * ENTRIES) for a, b in blocks) - own
        shared = Regions.of([(0, nr_blocks)]) - blocks
        leaves = [(top + a, filler, b - a, 0, 1, ro_pte) for a, b, filler in self._fillers(filled)]
        tables = [
            (number << (TABLE_SHIFT * level), pfn, 1, 1, level, TABLE_PROT)
            for (level, number), pfn in self.tables.items()
            if level > 1
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
        copied = self.pages.place(pages, 1, KERNEL_PTE, tables=False)
        own_l1 = self.pages.place(l1, 1, TABLE_PROT, tables=True)
        return (
            Mapping(
                np.sort(np.concatenate((copied, make_runs(leaves))), order="vpn"),
                sort_tables(np.concatenate((own_l1, make_runs(tables)))),
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
