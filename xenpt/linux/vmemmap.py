# SPDX-License-Identifier: GPL-2.0-or-later
"""paging_init(): struct pages of all sections that hold RAM, mapped in 4 KiB pages.

Models sparse_init() with vmemmap_populate_basepages() (mm/sparse.c, mm/sparse-vmemmap.c); SPEC
F4b. Of what else Linux allocates before it (ACPI tables, per-cpu areas) nothing is modelled, so
that the frames taken here are lower in a real boot; numbers and order are not touched by that.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from xenpt.abi import (
    ENTRIES,
    MMUEXT_PIN_L1_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    TABLE_PROT,
    TABLE_SHIFT,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.extents import Ints, Mapping, make_runs
from xenpt.linux.directmap import KERNEL_PTE, frame_flags
from xenpt.linux.memblock import Regions
from xenpt.linux.pages import Pages, placed, take_block
from xenpt.linux.pagetable import PAGE_KERNEL, wrprotect
from xenpt.linux.state import PMD_SIZE, BootState, LinuxPanic, NotModelled
from xenpt.xen.hypercalls import Hypercalls

MAX_DMA_ADDRESS = 16 << 20
STRUCT_PAGE_BYTES = 64
SECTION_SHIFT = 27  # 128 MiB: 512 pages of struct pages (64 bytes each), one L1 table


def paging_init(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Map the vmemmap of each section, one L1 table and 512 entries a section.

    :raises NotModelled: not all of them find memory (sparse_init_nid() leaves out the rest)
    :raises LinuxPanic: a fault took the memory, so that no section behind it has any
    """
    sections = Regions.of(
        (start >> SECTION_SHIFT, ((end - 1) >> SECTION_SHIFT) + 1)
        for start, end in state.memblock.memory
    )
    gap = NotModelled(
        f"no memory is left for the struct pages of {sections.size} sections: Linux then boots "
        "with fewer of them, which is not modelled"
    )
    size = sections.size * PMD_SIZE
    if not state.memblock.ask()[1]:
        raise _out_of_memory(state, sections.ranges[0][0], size)
    memblock, data = take_block(state.memblock, size, PMD_SIZE, gap)
    frame = data >> PAGE_SHIFT
    pages = Pages(memblock, gap)
    rows: dict[int, list[Ints]] = {1: [], 2: [], 3: []}
    number, tables = {2: -1, 3: -1}, {4: state.root_pfn}
    for section, nr, nr_l2 in _alike(sections):
        vaddr = state.rules.vmemmap_start + section * PMD_SIZE
        new_l3, new_l2 = number[3] != section // ENTRIES**2, number[2] != section // ENTRIES
        first, pace = pages.nr + new_l3, nr + new_l2
        _require(state, pages, section, (new_l3, new_l2), nr, nr_l2)
        if new_l3:
            rows[3].append(placed(_table_vpn(vaddr, 3), pages.nr, 1))
            tables[3] = _new_table(state, hc, pages, 3, vaddr, tables[4])
        number = {2: section // ENTRIES + nr_l2 - 1, 3: section // ENTRIES**2}
        for k in hc.repeat(nr_l2):
            at, begin = vaddr + k * nr * PMD_SIZE, frame + k * nr * ENTRIES
            if new_l2:
                tables[2] = _new_table(state, hc, pages, 2, at, tables[3])
            for i in hc.repeat(nr):
                pfn = _new_table(state, hc, pages, 1, at + i * PMD_SIZE, tables[2])
                if state.rules.set_pte_hypercall:
                    hc.mmu_update(1, pfn, 0, begin + i * ENTRIES, PAGE_KERNEL, nr=ENTRIES)
                else:
                    hc.store(pfn, 0, begin + i * ENTRIES, PAGE_KERNEL, nr=ENTRIES)
            pages.skip(first + (k + 1) * pace - pages.nr)
        pages.skip(first + nr_l2 * pace - pages.nr)
        if new_l2:
            rows[2].append(placed(_table_vpn(vaddr, 2), first, nr_l2, pace))
        each = np.arange(nr_l2)
        vpn = (vaddr >> PAGE_SHIFT) + each * nr * ENTRIES
        rows[1].append(placed(vpn, first + new_l2 + each * pace, nr))
        frame += nr * nr_l2 * ENTRIES
    ro = Regions.of((*state.ro_frames, *pages.ranges))
    first = state.rules.vmemmap_start >> PAGE_SHIFT
    leaves, pfn = [], data >> PAGE_SHIFT
    for section, last in sections:
        nr_pages = (last - section) * ENTRIES
        leaves.append((first + section * ENTRIES, pfn, nr_pages, 1, 1, KERNEL_PTE))
        pfn += nr_pages
    made = [pages.place(rows[level], level, TABLE_PROT, tables=True) for level in (1, 2, 3)]
    written = 0 if state.rules.set_pte_hypercall else ENTRIES * sections.size
    return (
        replace(
            state,
            memblock=pages.memblock,
            ro_frames=ro,
            vmemmap=Mapping(make_runs(leaves), np.concatenate(made)),
        ),
        Cost(by_type=dict(hc.by_type), entries_written=written),
    )


def _require(
    state: BootState, pages: Pages, section: int, new: tuple[bool, bool], nr: int, nr_l2: int
) -> None:
    """See to it that tables of `nr_l2` L2 tables, `nr` sections each, can be had.

    :param new: whether an L3 table comes first, and whether the L2 tables are new
    :raises LinuxPanic: a fault took the memory
    """
    new_l3, new_l2 = new
    wanted = new_l3 + nr_l2 * (new_l2 + nr)
    served = pages.memblock.ask(wanted)[1]
    if served < wanted:
        whole, rest = divmod(max(0, served - new_l3), new_l2 + nr)
        raise _out_of_memory(state, section + whole * nr + max(0, rest - new_l2), PAGE_SIZE)


def _out_of_memory(state: BootState, section: int, nr_bytes: int) -> LinuxPanic:
    """How it ends that a fault leaves no memory for the vmemmap of `section` and those behind."""
    if state.rules.memmap_alloc_panics:
        return LinuxPanic(
            "Kernel panic - not syncing: memblock_virt_alloc_try_nid: Failed to allocate "
            f"{nr_bytes} bytes align={min(nr_bytes, PMD_SIZE):#x} nid=0 "
            f"from={MAX_DMA_ADDRESS:#x} max_addr=0x0"
        )
    first = max(section << SECTION_SHIFT, state.memblock.memory.ranges[0][0])
    ram = state.memblock.memory.clip(first, first + (1 << SECTION_SHIFT)).ranges[0][0]
    return state.page_fault(state.rules.vmemmap_start + (ram >> PAGE_SHIFT) * STRUCT_PAGE_BYTES)


def _alike(sections: Regions) -> Iterator[tuple[int, int, int]]:
    """Runs (first section, sections of an L2 table, L2 tables), each below one L3 table."""
    for section, end in sections:
        while section < end:
            nr = min(end - section, ENTRIES - section % ENTRIES)
            stop = min(end, (section // ENTRIES**2 + 1) * ENTRIES**2)
            nr_l2 = (stop - section) // ENTRIES if nr == ENTRIES else 1
            yield section, nr, nr_l2
            section += nr * nr_l2


def _table_vpn(vaddr: int, level: int) -> int:
    shift = PAGE_SHIFT + TABLE_SHIFT * level
    return vaddr >> shift << (shift - PAGE_SHIFT)


def _new_table(
    state: BootState, hc: Hypercalls, pages: Pages, level: int, vaddr: int, parent: int | None
) -> int:
    """An early page table: allocated, read-only, pinned if of level 1, and hooked in at once."""
    pfn = pages.next()
    hc.clear_page(pfn)
    (flags,) = frame_flags(state, np.array([pfn])).tolist()
    hc.update_va_mapping(state.va(pfn), pfn, wrprotect(flags, state.rules))
    if level == 1:
        hc.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
    hc.mmu_update(level + 1, parent, table_slot(vaddr, level + 1), pfn, TABLE_PROT)
    return pfn
