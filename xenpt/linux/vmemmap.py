# SPDX-License-Identifier: GPL-2.0-or-later
"""paging_init(): struct pages of all sections that hold RAM, mapped in 4 KiB pages.

Models sparse_init() with vmemmap_populate_basepages() (mm/sparse.c, mm/sparse-vmemmap.c); SPEC
F4b. Of what else Linux allocates before it (ACPI tables, per-cpu areas) nothing is modelled, so
that the frames taken here are lower in a real boot; numbers and order are not touched by that.
"""

from dataclasses import replace

import numpy as np

from xenpt.abi import (
    ENTRIES,
    MMUEXT_PIN_L1_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_RW,
    TABLE_PROT,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.extents import Mapping, make_runs
from xenpt.linux.directmap import KERNEL_PTE
from xenpt.linux.memblock import Regions
from xenpt.linux.pages import Pages, take_block
from xenpt.linux.pagetable import PAGE_KERNEL
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
    placed: dict[int, list[tuple[int, int, int, int]]] = {1: [], 2: [], 3: []}
    number, tables = {2: -1, 3: -1}, {4: state.root_pfn}
    for section, nr in _runs_of_one_l2(state, sections):
        vaddr = state.rules.vmemmap_start + section * PMD_SIZE
        wanted = nr + sum(number[level] != vaddr >> (12 + 9 * level) for level in (3, 2))
        served = pages.memblock.ask(wanted)[1]
        if served < wanted:
            raise _out_of_memory(state, section + max(0, served - wanted + nr), PAGE_SIZE)
        for level in (3, 2):
            if number[level] != vaddr >> (12 + 9 * level):
                number[level] = vaddr >> (12 + 9 * level)
                vpn = number[level] << (9 * level)
                placed[level].append((vpn, pages.nr, 1, 1))
                tables[level] = _new_table(state, hc, pages, level, vaddr, tables[level + 1])
        end = pages.nr + nr
        placed[1].append((vaddr >> PAGE_SHIFT, pages.nr, nr, 1))
        for i in hc.repeat(nr):
            pfn = _new_table(state, hc, pages, 1, vaddr + i * PMD_SIZE, tables[2])
            if state.rules.set_pte_hypercall:
                hc.mmu_update(1, pfn, 0, frame + i * ENTRIES, PAGE_KERNEL, nr=ENTRIES)
        pages.skip(end - pages.nr)
        frame += nr * ENTRIES
    ro = Regions.of((*state.ro_frames, *pages.ranges))
    first = state.rules.vmemmap_start >> PAGE_SHIFT
    leaves, pfn = [], data >> PAGE_SHIFT
    for section, last in sections:
        nr_pages = (last - section) * ENTRIES
        leaves.append((first + section * ENTRIES, pfn, nr_pages, 1, 1, KERNEL_PTE))
        pfn += nr_pages
    made = [pages.place(placed[level], level, TABLE_PROT, tables=True) for level in (1, 2, 3)]
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


def _runs_of_one_l2(state: BootState, sections: Regions) -> list[tuple[int, int]]:
    """Runs (first section, sections) whose L1 tables are in one L2 table."""
    runs = []
    for section, end in sections:
        while section < end:
            slot = table_slot(state.rules.vmemmap_start + section * PMD_SIZE, 2)
            nr = min(end - section, ENTRIES - slot)
            runs.append((section, nr))
            section += nr
    return runs


def _new_table(
    state: BootState, hc: Hypercalls, pages: Pages, level: int, vaddr: int, parent: int | None
) -> int:
    """An early page table: allocated, read-only, pinned if of level 1, and hooked in at once."""
    pfn = pages.next()
    hc.update_va_mapping(state.va(pfn), pfn, KERNEL_PTE & ~PTE_RW)
    if level == 1:
        hc.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
    hc.mmu_update(level + 1, parent, table_slot(vaddr, level + 1), pfn, TABLE_PROT)
    return pfn
