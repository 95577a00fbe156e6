# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_setup_kernel_pagetable() and cleanup_highmap(): Linux takes over Xen's page tables."""

from dataclasses import replace

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_UNPIN_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    START_KERNEL_MAP,
    UVMF_INVLPG,
    round_up,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.extents import Runs
from xenpt.linux.memblock import Regions
from xenpt.linux.state import PMD_SIZE, BootState
from xenpt.xen.hypercalls import Hypercalls

#: PAGE_KERNEL without GLOBAL, which a PV guest does not use, and its read-only twin.
PAGE_KERNEL = PTE_NX | PTE_DIRTY | PTE_ACCESSED | PTE_RW | PTE_PRESENT
PAGE_KERNEL_RO = PAGE_KERNEL & ~PTE_RW
_STATIC_TABLES = 4  # whose entries are turned from pfns into mfns: L4, two L3, level2_fixmap_pgt


def setup_kernel_pagetable(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Graft Xen's tables into Linux's own, pin those, and give Xen's L4 page back.

    Of Xen's initial mapping only the L2 page of the first GiB survives (its L1 pages stay in use).
    Models xen_setup_kernel_pagetable() in arch/x86/xen/mmu_pv.c; SPEC F2, golden rule 15.
    """
    rules = state.rules
    pt_start, pt_end = state.pt_pfns
    outside = state.list_outside
    mfn_list = int(state.domain.plan.mfn_list)
    max_pfn_mapped = (
        state.p2m_frames[0] if outside and rules.graft_initial_p2m else state.pfn(mfn_list)
    )
    grafted = outside and rules.graft_initial_p2m and table_slot(mfn_list, 4) > 0
    for name, nr in rules.ro_tables:
        for page in range(nr):
            _set_page_prot(state, hc, name, PAGE_KERNEL_RO, page=page)
    hc.mmuext_op(MMUEXT_PIN_L4_TABLE, state.root_pfn)
    hc.mmuext_op(MMUEXT_UNPIN_TABLE, pt_start)
    if rules.pin_user_vsyscall:
        _set_page_prot(state, hc, "level3_user_vsyscall", PAGE_KERNEL_RO)
        hc.mmuext_op(MMUEXT_PIN_L3_TABLE, state.symbol_pfn("level3_user_vsyscall"))
    hc.mmuext_op(MMUEXT_NEW_BASEPTR, state.root_pfn)
    recovered = _recover_pages(state, hc)
    memblock = state.memblock.reserve((pt_start + recovered) << PAGE_SHIFT, pt_end << PAGE_SHIFT)
    nx = state.nr_initial_l1 if rules.nx_ident_map else 0
    cost = Cost(
        by_type=dict(hc.by_type),
        entries_read={"l1": 0, "l2": ENTRIES, "l3": 1, "l4": 1 + grafted},
        entries_written=1 + _STATIC_TABLES * ENTRIES + 2 * ENTRIES + nx + grafted,
    )
    return (
        replace(
            state,
            memblock=memblock,
            max_pfn_mapped=max_pfn_mapped,
            highmap=Regions.of([(0, state.nr_initial_l1)]),
            ro_frames=Regions.of([(pt_start + recovered, pt_end), *static_frames(state)]),
            own_entries=Regions.of([(pt_start, pt_start + recovered)]),
            ro_entries=Regions.of(static_frames(state)),
        ),
        cost,
    )


def cleanup_highmap(state: BootState) -> BootState:
    """Drop the 2 MiB slots of the kernel's mapping outside [_text, _brk_end).

    Its hypercalls (11 set_pmd for the default kernel) are in no stage. Up to max_pfn_mapped only:
    a list inside the mapping is left for xen_cleanhighmap(). Models arch/x86/mm/init_64.c.
    """
    first = -(-(state.text - START_KERNEL_MAP) // PMD_SIZE)
    last = (round_up(state.brk_end, PMD_SIZE) - 1 - START_KERNEL_MAP) // PMD_SIZE
    end = (state.max_pfn_mapped << PAGE_SHIFT) // PMD_SIZE
    kept = Regions.of([(first, last + 1), (end, max(end, ENTRIES))])
    return replace(state, highmap=state.highmap - (Regions.of([(0, ENTRIES)]) - kept))


def clean_highmap(
    state: BootState, hc: Hypercalls, vaddr: int, last: int
) -> tuple[BootState, Cost]:
    """xen_cleanhighmap(): drop the 2 MiB slots of the kernel's mapping from `vaddr` to `last`.

    Both ends are included, and the addresses keep the offset of `vaddr` in its slot.
    """
    first = table_slot(vaddr, 2)
    nr = min((last - vaddr) // PMD_SIZE + 1, state.rules.cleanup.highmap_entries - first)
    kernel_last = round_up(state.brk_end, PMD_SIZE) - 1
    highmap = state.highmap
    for start, end in highmap.clip(first, first + nr):
        for slot in range(start, end):
            at = vaddr + (slot - first) * PMD_SIZE
            if at < state.text or at > kernel_last:
                with hc.optional("mmu_update"):
                    hc.mmu_update(2, state.symbol_pfn("level2_kernel_pgt"), slot, None, 0)
                    highmap = highmap.remove(slot, slot + 1)
    read = {"l1": 0, "l2": nr, "l3": 0, "l4": 0}
    return replace(state, highmap=highmap), Cost(entries_read=read)


def static_frames(state: BootState) -> list[tuple[int, int]]:
    """Frames of Linux's static tables that are now read-only, as far as symbols are known."""
    frames = []
    for name, nr in (*state.rules.ro_tables, ("level3_user_vsyscall", 1)):
        pfn = state.symbol_pfn(name)
        if pfn is not None:
            frames.append((pfn, pfn + nr))
    return frames


def _recover_pages(state: BootState, hc: Hypercalls) -> int:
    """check_pt_base() for Xen's L4, L3 and L2: those that begin the area in this order go back."""
    pt_start = state.pt_pfns[0]
    nr = 0
    for pfn in xen_table_pfns(state):
        if pfn == pt_start + nr:
            vaddr = START_KERNEL_MAP + (pfn << PAGE_SHIFT)
            hc.update_va_mapping(vaddr, pfn, PAGE_KERNEL, uvmf=UVMF_INVLPG)
            nr += 1
    return nr


def xen_table_pfns(state: BootState) -> list[int]:
    """Frames of Xen's L4, L3 and L2 table of the start of the kernel's mapping, in this order."""
    pfns = (_table_pfn(state.domain.initial.tables, level) for level in (4, 3, 2))
    return [pfn for pfn in pfns if pfn is not None]


def _table_pfn(tables: Runs, level: int) -> int | None:
    """Frame of the table of `level` that covers the start of the kernel's mapping."""
    vpn = START_KERNEL_MAP >> PAGE_SHIFT
    size = ENTRIES**level
    for row in tables[tables["level"] == level]:
        i = (vpn - int(row["vpn"])) // size if level < LEVELS else 0
        if 0 <= i < int(row["nr"]):
            return int(row["pfn"]) + i * int(row["step"])
    return None


def _set_page_prot(
    state: BootState, hc: Hypercalls, name: str, flags: int, *, page: int = 0
) -> None:
    vaddr, pfn = state.symbol(name), state.symbol_pfn(name)
    if vaddr is not None and pfn is not None:
        vaddr, pfn = vaddr + page * PAGE_SIZE, pfn + page
    hc.update_va_mapping(vaddr, pfn, flags)
