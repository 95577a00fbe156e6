# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen put where the E820 map has no RAM: found out, and moved where Linux can (setup.c).

Kernel and page tables stay where they are, so that a conflict of theirs ends the boot. The P->M
list and the initrd move to the first free RAM that is large enough. SPEC F3, golden rule 21.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    MMUEXT_INVLPG_LOCAL,
    MMUEXT_PIN_L1_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    TABLE_PROT,
    pfn_up,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.extents import Mapping, expand, make_runs, tables_of
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.directmap import KERNEL_PTE, frame_flags
from xenpt.linux.e820 import NVS, RAM, in_one_ram_entry, sanitize
from xenpt.linux.memblock import Range, Regions
from xenpt.linux.pagetable import PAGE_KERNEL, page_kernel_ro, wrprotect
from xenpt.linux.state import (
    DOM0_DIES,
    EARLY_IOREMAP,
    RELOCATED_SLOT,
    RELOCATED_VADDR,
    BootState,
    InitialList,
    LinuxPanic,
    Remap,
)
from xenpt.xen.hypercalls import Hypercalls

_CONFLICT = "Xen hypervisor allocated {} conflicts with E820 map"
_NO_AREA = "Can't find new memory area for {} needed due to E820 map conflict"
_NO_NVS_AREA = "No suitable area found for required E820 entry remapping action"
EARLY_SLOT_PAGES = 64  # NR_FIX_BTMAPS: pages of one early_memremap()


def resolve_conflicts(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Check kernel, page tables, list and initrd against the map; move the last two if need be.

    The list is reserved here, too. Before v4.3 there is no check.

    :raises LinuxPanic: kernel or page tables lie in a hole, or there is no room to move to
    """
    if not state.rules.check_conflicts:
        return _reserve(state, _bytes(state.p2m_frames)), Cost()
    end = int(state.domain.plan.image.virt_kend)
    if not state.rules.check_brk:
        end = state.symbol("__bss_stop") or end
    _check(state, (state.paddr(state.text), state.paddr(end)), "kernel memory")
    _check(state, _bytes(state.pt_pfns), "page table memory")
    state = _early_ioremap_init(state, hc.aside())
    state, cost = _reserve_list(state, hc)
    if state.initrd and not in_one_ram_entry(state.e820, *state.initrd):
        state, moved = _move_initrd(state, hc, state.initrd)
        cost += moved
    return state, cost


def _early_ioremap_init(state: BootState, hc: Hypercalls) -> BootState:
    """The table of the mappings by which Linux moves things: read-only, pinned, hooked in.

    It comes before xen_memory_setup(), and in each boot; here where it is used, and is known.
    """
    pfn, table = state.symbol_pfn("bm_pte"), state.symbol_pfn("level2_fixmap_pgt")
    used = (_bytes(state.p2m_frames), *((state.initrd,) if state.initrd else ()))
    if pfn is None or all(in_one_ram_entry(state.e820, *span) for span in used):
        return state
    hc.update_va_mapping(state.base + (pfn << PAGE_SHIFT), pfn, page_kernel_ro(state.rules))
    hc.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
    hc.mmu_update(2, table, table_slot(EARLY_IOREMAP, 2), pfn, TABLE_PROT)
    return replace(state, early_table=pfn, ro_entries=state.ro_entries.add(pfn, pfn + 1))


def exchange_nvs(state: BootState) -> BootState:
    """Exchange ACPI NVS memory that meets kernel or page tables for RAM behind the domain's own.

    The map is changed at once, the P->M list much later (xen_do_remap_nonram()). Of the RAM, the
    first entry that can spare enough gives its end. Models xen_e820_resolve_conflicts() of 6.12.

    :raises LinuxPanic: no entry can
    """
    if not state.rules.moves_nvs:
        return state
    kernel = state.paddr(state.text), state.paddr(int(state.domain.plan.image.virt_kend))
    for start, end in (kernel, _bytes(state.pt_pfns)):
        for nvs in [e for e in state.e820 if e.type == NVS and e.start < end and start < e.end]:
            state = _exchange(state, nvs)
    return state


def _exchange(state: BootState, nvs: E820Entry) -> BootState:
    pfn, nr = nvs.start >> PAGE_SHIFT, pfn_up(nvs.end) - (nvs.start >> PAGE_SHIFT)
    size, mem_end = nr << PAGE_SHIFT, state.max_pfn << PAGE_SHIFT
    for ram in state.e820:
        if ram.type == RAM and ram.end - size >= max(ram.start, mem_end):
            break
    else:
        raise LinuxPanic(_NO_NVS_AREA)
    target = ram.end - size
    away = target + nvs.start % PAGE_SIZE
    table = [
        *(e for e in state.e820 if e not in (nvs, ram)),
        E820Entry(ram.start, target, RAM),
        E820Entry(pfn << PAGE_SHIFT, (pfn << PAGE_SHIFT) + size, RAM),
        E820Entry(away, away + nvs.end - nvs.start, NVS),
    ]
    exchanged = (*state.exchanged, Remap(pfn, target >> PAGE_SHIFT, nr))
    return replace(state, e820=sanitize(table), exchanged=exchanged)


def find_free_area(state: BootState, nr_bytes: int) -> int | None:
    """xen_find_free_area(): first byte of the lowest RAM of the given map with no page reserved.

    Page by page from the start of each entry, as it is; RAM that the domain does not have yet
    counts.
    """
    for entry in state.e820:
        if entry.type != RAM or entry.end - entry.start < nr_bytes:
            continue
        start = entry.start
        for low, high in state.memblock.reserved:
            first_met = start + max(0, -(-(low - start) // PAGE_SIZE)) * PAGE_SIZE
            if high > first_met and first_met < start + nr_bytes:
                start += -(-(high - start) // PAGE_SIZE) * PAGE_SIZE
        if start + nr_bytes <= entry.end:
            return start
    return None


def _check(state: BootState, used: Range, name: str) -> None:
    if not in_one_ram_entry(state.e820, *used):
        raise LinuxPanic(_CONFLICT.format(name))


def _reserve_list(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """xen_reserve_xen_mfnlist(): reserve the list where it is, or move it.

    v4.3 looks for room before it reserves: the old list may be found to be free (SPEC H12).

    :raises LinuxPanic: there is no room, or it is a 32-bit Linux, which moves no list
    """
    used = _bytes(state.p2m_frames)
    if state.bits == 32:
        _check(state, used, "p2m list")
    if in_one_ram_entry(state.e820, *used):
        return _reserve(state, used), Cost()
    if state.rules.reserve_before_search:
        state = _reserve(state, used)
    state, cost = relocate_p2m(state, hc)
    frees = 2 if state.rules.reserve_before_search else 1
    return state, replace(cost, memblock_free_calls=frees)


def relocate_p2m(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """xen_relocate_p2m(): copy the list to new frames, mapped in 4 KiB pages from L4 slot 2 on.

    The new frames are one piece: L3, L2 and L1 tables, then the data. Each table is made
    read-only, where it is mapped at all so early, and pinned on its own.
    """
    nr_data = pfn_up(8 * state.nr_pages)
    nr_l1, nr_l2, nr_l3 = (-(-nr_data // ENTRIES**level) for level in (1, 2, 3))
    nr_frames = nr_l3 + nr_l2 + nr_l1 + nr_data
    state, area = _claim(state, nr_frames << PAGE_SHIFT, "p2m")
    l3 = area >> PAGE_SHIFT
    l2, l1, data = l3 + nr_l3, l3 + nr_l3 + nr_l2, l3 + nr_l3 + nr_l2 + nr_l1
    if l3 + nr_frames > state.nr_pages:
        raise LinuxPanic(DOM0_DIES)  # RAM of the host that the domain does not have
    _make_tables(state, hc, (data, l1, l2, l3), (nr_data, nr_l1, nr_l2, nr_l3))
    _look_up_old_list(state, hc)
    if state.list_outside:
        hc.mmu_update(4, state.root_pfn, 1, None, 0)
    vpn = RELOCATED_VADDR >> PAGE_SHIFT
    tables = [
        (vpn, l1, nr_l1, 1, 1, TABLE_PROT),
        (vpn, l2, nr_l2, 1, 2, TABLE_PROT),
        (vpn, l3, nr_l3, 1, 3, TABLE_PROT),
    ]
    leaves = make_runs([(vpn, data, nr_data, 1, 1, KERNEL_PTE)])
    mapping = Mapping(leaves, make_runs(tables))
    old = state.p2m_frames
    moved = replace(
        state,
        initial_list=InitialList(RELOCATED_VADDR, mapping, (l3, data + nr_data)),
        memblock=state.memblock.free(*_bytes(old)),
        ro_frames=Regions.of((*state.ro_frames, (l3, data))),
    )
    written = nr_data + nr_l1 + nr_l2 + nr_data * PAGE_SIZE // 8
    return moved, Cost(entries_written=written, pages_freed=old[1] - old[0])


def _make_tables(state: BootState, hc: Hypercalls, first: Sequence[int], nr: Sequence[int]) -> None:
    """Fill, mark and pin each table, children first, while those above it are still mapped.

    :param first: frame of the first page of data, and of the first table of level 1, 2, 3
    :param nr: pages of data, and tables of level 1, 2, 3
    """
    data, l1, l2, l3 = first
    nr_data, nr_l1, nr_l2, nr_l3 = nr
    for i in range(nr_l3):
        _set_early(state, hc, 0, l3 + i)
        hc.clear_page(l3 + i)
        for k in range(i * ENTRIES, min((i + 1) * ENTRIES, nr_l2)):
            _set_early(state, hc, 1, l2 + k)
            hc.clear_page(l2 + k)
            for j in hc.repeat(min(nr_l1 - k * ENTRIES, ENTRIES)):
                table = l1 + k * ENTRIES + j
                _set_early(state, hc, 2, table)
                hc.clear_page(table)
                done = (table - l1) * ENTRIES
                nr_ptes = min(nr_data - done, ENTRIES)
                hc.store(table, 0, data + done, PAGE_KERNEL, nr=nr_ptes)
                _finish_table(state, hc, 1, table)
                hc.store(l2 + k, j, table, TABLE_PROT)
            _finish_table(state, hc, 2, l2 + k)
            hc.store(l3 + i, k % ENTRIES, l2 + k, TABLE_PROT)
        _finish_table(state, hc, 3, l3 + i)
        hc.mmu_update(4, state.root_pfn, RELOCATED_SLOT + i, l3 + i, TABLE_PROT)


def _finish_table(state: BootState, hc: Hypercalls, level: int, pfn: int) -> None:
    """End its early mapping; make it read-only, if Xen mapped it; pin it."""
    _set_early(state, hc, 3 - level, None, flags=0)
    start, end = state.domain.plan.total
    if pfn < min((end - start) >> PAGE_SHIFT, ENTRIES**2):
        (flags,) = frame_flags(state, np.array([pfn])).tolist()
        hc.update_va_mapping(state.va(pfn), pfn, wrprotect(flags, state.rules))
    hc.mmuext_op(MMUEXT_PIN_L1_TABLE + level - 1, pfn)


def _set_early(
    state: BootState,
    hc: Hypercalls,
    nest: int,
    pfn: int | None,
    *,
    flags: int = PAGE_KERNEL,
    page: int = 0,
) -> None:
    """early_ioremap's entry of one page: `nest` mappings are open; with flags 0 it is cleared.

    The entry's address is a slot of the L1 table bm_pte.
    """
    slot = nest * EARLY_SLOT_PAGES + page % EARLY_SLOT_PAGES
    if state.rules.set_pte_hypercall:
        hc.mmu_update(1, state.symbol_pfn("bm_pte"), slot, pfn, flags)
    else:
        hc.store(state.symbol_pfn("bm_pte"), slot, pfn, flags)
    hc.mmuext_op(MMUEXT_INVLPG_LOCAL)


def _look_up_old_list(state: BootState, hc: Hypercalls) -> None:
    """xen_early_virt_to_phys() of the old list: each table on the way is mapped for one read."""
    vaddr = state.initial_list.vaddr
    found = state.domain.address_space.translate(vaddr)
    lowest = 1 if found is None else found[1]
    for level in range(LEVELS, lowest - 1, -1):
        table = _table_on_the_way(state, vaddr, level)
        _set_early(state, hc, 0, table, flags=page_kernel_ro(state.rules))
        _set_early(state, hc, 0, None, flags=0)


def _table_on_the_way(state: BootState, vaddr: int, level: int) -> int | None:
    """Frame of the table of `level` by which Linux reaches `vaddr`: its own, or else Xen's."""
    if level == LEVELS:
        return state.root_pfn
    if level > 1 and not state.list_outside:
        return state.symbol_pfn(f"level{level}_kernel_pgt")
    vpn = vaddr >> PAGE_SHIFT
    tables = expand(tables_of(state.domain.address_space.tables, vpn, vpn + 1), tables=True)
    return int(tables["pfn"][tables["level"] == level][0])


def _move_initrd(state: BootState, hc: Hypercalls, old: Range) -> tuple[BootState, Cost]:
    """Copy the initrd, of which exactly its bytes are freed: a last page in part stays reserved."""
    size = old[1] - old[0]
    state, new = _claim(state, size, "initrd")
    nr_pages = pfn_up(size)
    for done in range(0, nr_pages, EARLY_SLOT_PAGES):  # xen_phys_memcpy()
        nr = min(nr_pages - done, EARLY_SLOT_PAGES)
        ends = [(nest, (start >> PAGE_SHIFT) + done) for nest, start in enumerate((new, old[0]))]
        for nest, pfn in ends:
            for i in hc.repeat(nr):
                _set_early(state, hc, nest, pfn + i, page=i)
        for nest, _ in ends:
            for i in hc.repeat(nr):
                _set_early(state, hc, nest, None, flags=0, page=i)
    state = replace(state, memblock=state.memblock.free(*old), initrd=(new, new + size))
    whole = (old[1] >> PAGE_SHIFT) - (old[0] >> PAGE_SHIFT)
    return state, Cost(memblock_free_calls=1, pages_freed=whole)


def _claim(state: BootState, nr_bytes: int, name: str) -> tuple[BootState, int]:
    start = find_free_area(state, nr_bytes)
    if start is None:
        raise LinuxPanic(_NO_AREA.format(name))
    return _reserve(state, (start, start + nr_bytes)), start


def _reserve(state: BootState, used: Range) -> BootState:
    return replace(state, memblock=state.memblock.reserve(*used))


def _bytes(pfns: Range) -> Range:
    return pfns[0] << PAGE_SHIFT, pfns[1] << PAGE_SHIFT
