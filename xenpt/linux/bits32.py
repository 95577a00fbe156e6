# SPDX-License-Identifier: GPL-2.0-or-later
"""A 32-bit (PAE) Linux takes over Xen's page tables: the CONFIG_X86_32 half of xen/mmu.c.

Its kernel and its direct map are one mapping from PAGE_OFFSET on, where Xen's initial mapping
begins. What follows upon xen_memory_setup() is not modelled.
"""

from dataclasses import replace

from xenpt.abi import (
    ENTRIES,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_UNPIN_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_PRESENT,
    PTE_RW,
)
from xenpt.cost import Cost
from xenpt.layout import MIN_PADDING
from xenpt.linux.memblock import Regions
from xenpt.linux.pagetable import PAGE_KERNEL, page_kernel_ro
from xenpt.linux.state import BootState
from xenpt.xen.hypercalls import Hypercalls

IDENT_TABLES = 4  # LEVEL1_IDENT_ENTRIES: L1 tables from the brk area, 2 MiB each
RO_PAGES = 4  # initial_kernel_pmd twice, initial_page_table, empty_zero_page


def setup_kernel_pagetable(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Load a copy of Xen's L3 table, whose kernel slot has a copy of Xen's L2 table.

    xen_map_identity_early() lengthens the mapping by up to four L1 tables. Xen's own L1 tables
    stay in use, and no page of its tables goes back. Linux's tables come from the brk area, so
    that their addresses are not known. Models xen_setup_kernel_pagetable() of CONFIG_X86_32.
    """
    base, nr_tables = _pt_base(state), int(state.domain.plan.nr_pt_frames)
    nr_held = state.nr_initial_l1
    nr_new = min(max(-(-state.nr_pages // ENTRIES) - nr_held, 0), IDENT_TABLES)
    for _ in hc.repeat(nr_new + RO_PAGES):
        hc.update_va_mapping(None, None, page_kernel_ro(state.rules))
    hc.mmuext_op(MMUEXT_UNPIN_TABLE, state.pfn(int(state.domain.plan.pt_base)))
    hc.mmuext_op(MMUEXT_PIN_L3_TABLE)
    hc.mmuext_op(MMUEXT_NEW_BASEPTR)
    end = base + (nr_tables << PAGE_SHIFT)
    covered = min(nr_held + nr_new, -(-state.nr_pages // ENTRIES)) * ENTRIES
    l2_read = ENTRIES * (2 if state.rules.find_pt_base else 1)
    cost = Cost(
        by_type=dict(hc.by_type),
        entries_read={"l1": covered, "l2": l2_read, "l3": 1 + ENTRIES, "l4": 0},
        entries_written=2 * ENTRIES + 1 + nr_new * (ENTRIES + 1),
    )
    return (
        replace(
            state,
            memblock=state.memblock.reserve(base, end),
            max_pfn_mapped=max((end + MIN_PADDING) >> PAGE_SHIFT, covered - 1),
            ro_frames=_kept_read_only(state),
        ),
        cost,
    )


def mask_rw_pte(old: int, new: int) -> int:
    """What init_mem_mapping() stores over an entry: no page becomes writable that was not."""
    return new if not old & PTE_PRESENT or old & PTE_RW else new & ~PTE_RW


def _kept_read_only(state: BootState) -> Regions:
    """Frames that the direct map keeps read-only, of those that Xen's L1 tables map."""
    leaves = state.domain.initial.leaves
    return Regions.of(
        (int(row["pfn"]), int(row["pfn"]) + int(row["nr"]))
        for row in leaves
        if not mask_rw_pte(int(row["flags"]), PAGE_KERNEL) & PTE_RW
    )


def _pt_base(state: BootState) -> int:
    """Physical address from which on Linux reserves page tables.

    start_info names the L3 table, which Xen before 4.2.1 has as the third of them (SPEC H1).
    v4.3 looks for the lowest of those that are in use (xen_find_pt_base()).
    """
    plan = state.domain.plan
    if not state.rules.find_pt_base:
        return state.paddr(int(plan.pt_base))
    tables = state.domain.initial.tables
    return int(tables["pfn"].min()) * PAGE_SIZE
