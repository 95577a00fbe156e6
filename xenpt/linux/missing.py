# SPDX-License-Identifier: GPL-2.0-or-later
"""A P->M list with missing entries below nr_pages (INVALID_P2M_ENTRY): where that ends a boot.

pte_pfn_to_mfn() makes an empty entry of such a pfn; the other way round, mfn_to_pfn() does not
trust an M2P entry that the list does not confirm. Deduced from mmu_pv.c, p2m.c and setup.c.
"""

import numpy as np

from xenpt.abi import L3_SIZE, PAGE_SHIFT, START_KERNEL_MAP, pfn_up
from xenpt.errors import UsageError
from xenpt.extents import Runs, column, expand
from xenpt.faults import Hole
from xenpt.linux.memblock import Range, Regions
from xenpt.linux.pagetable import static_frames, xen_table_pfns
from xenpt.linux.setup import remap_size
from xenpt.linux.stages import Stage
from xenpt.linux.state import DOM0_DIES, BootState, refused_bug
from xenpt.units import counted

Death = tuple[Stage, str]


def pfns_of(hole: Hole) -> Regions:
    """Its pfns."""
    return Regions.of([(hole.pfn, hole.pfn + hole.nr)])


def check_hole(hole: Hole, state: BootState) -> None:
    """:raises UsageError: pfns that the domain lacks, or whose loss cannot be followed."""
    end = hole.pfn + hole.nr
    if end > state.nr_pages:
        raise UsageError(f"--fault {hole}: the domain has the pfns 0 to {state.nr_pages - 1:#x}")
    image = (
        (state.text - START_KERNEL_MAP) >> PAGE_SHIFT,
        pfn_up(state.brk_end - START_KERNEL_MAP),
    )
    unknown = [name for name, _ in state.rules.ro_tables if state.symbol(name) is None]
    if unknown and Regions.of([image]).meets(hole.pfn, end):
        raise UsageError(f"--fault {hole}: where {unknown[0]} is in the kernel is not known")
    mapping = state.domain.p2m_map
    if mapping is None or not Regions.of([state.p2m_frames]).meets(hole.pfn, end):
        return
    large = mapping.leaves[mapping.leaves["level"] > 1]
    if len(large) or any(pfns_of(hole).meets(a, b) for a, b in frames_of_tables(mapping.tables)):
        raise UsageError(
            f"--fault {hole}: frames of the list's own tables or large leaves: Linux would take "
            "page 0 for them, whose contents are not modelled"
        )


def in_own_frames(hole: Hole, state: BootState) -> Death | None:
    """convert_pfn_mfn() and the pins need the frames of Linux's static and of Xen's tables."""
    pfns, xen = pfns_of(hole), xen_table_pfns(state)
    pinned = (state.root_pfn, state.symbol_pfn("level3_user_vsyscall"), xen[0])
    followed = [*static_frames(state), *((pfn, pfn + 1) for pfn in xen)]
    if any(pfns.meets(a, b) and a not in pinned for a, b in followed):
        return Stage.SETUP_KERNEL_PAGETABLE, DOM0_DIES
    if any(pfn is not None and pfns.meets(pfn, pfn + 1) for pfn in pinned):
        return Stage.SETUP_KERNEL_PAGETABLE, refused_bug("pin_pagetable_pfn", "mmuext_op")
    return None


def stage_that_moves(pfns: Regions, state: BootState) -> Stage | None:
    """Stage that first maps one of the frames `pfns`, because it is to leave an E820 hole.

    memory_setup notes each group in its first frame, remap_memory maps all; None for neither.
    """
    found = None
    for start, _, nr in state.remaps:
        if any(pfns.meets(pfn, pfn + 1) for pfn in range(start, start + nr, remap_size(state))):
            return Stage.MEMORY_SETUP
        if pfns.meets(start, start + nr):
            found = Stage.REMAP_MEMORY
    return found


def in_remapped_frames(hole: Hole, state: BootState) -> Death | None:
    """Frames that are to leave a hole of the E820 map, but that the list does not name."""
    stage = stage_that_moves(pfns_of(hole), state)
    if stage is Stage.MEMORY_SETUP:
        return stage, refused_bug("set_pte_mfn", "update_va_mapping")
    if stage is Stage.REMAP_MEMORY:
        return stage, refused_bug("xen_update_mem_tables", "mmu_update")
    return None


def pages_of_list(hole: Hole, state: BootState) -> int:
    """Pages of the P->M list that are lost when it is freed."""
    return pfns_of(hole).clip(*state.p2m_frames).size if state.list_outside else 0


def consequence(hole: Hole, state: BootState) -> str:
    """What a boot that is got through leaves behind."""
    pfns = pfns_of(hole) - state.identity
    absent = (pfns - held_by_xen(state)).size
    mapped = pfns.size - absent
    texts = []
    if absent:
        texts.append(
            f"{counted(absent, 'page')} not in the direct map: a page fault at the first use"
        )
    if mapped:
        texts.append(f"{counted(mapped, 'page')} that Xen mapped, whose frames Linux does not know")
    return "; ".join(texts) or "these pages are in holes of the E820 map"


def held_by_xen(state: BootState) -> Regions:
    """Pages that Xen's L1 tables map, of those that Linux keeps: their entries stay as they are."""
    start, end = state.domain.plan.total
    return Regions.of([(0, min(end - start, L3_SIZE) >> PAGE_SHIFT)])


def frames_of_tables(tables: Runs) -> list[Range]:
    """Frames of runs of tables, as ranges; those that do not touch are ranges of their own."""
    step, nr = column(tables, "step"), column(tables, "nr")
    dense = tables[(np.abs(step) == 1) | (nr == 1)]
    pfn, nr, step = (column(dense, name) for name in ("pfn", "nr", "step"))
    last = pfn + (nr - 1) * step
    found = list(
        zip(np.minimum(pfn, last).tolist(), (np.maximum(pfn, last) + 1).tolist(), strict=True)
    )
    apart = expand(tables[(np.abs(column(tables, "step")) != 1) & (tables["nr"] > 1)], tables=True)
    return found + [(pfn, pfn + 1) for pfn in apart["pfn"].tolist()]
