# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of a boot, counted in those operations whose instructions were measured (timing.py).

Counts, not times. None is work of a kind that was never measured: a list inside the initial
mapping, a list or an initrd that Linux moves, pages given back, tables written by trapped stores.
"""

from collections.abc import Mapping

from xenpt.abi import ENTRIES, MMUEXT_PIN_L1_TABLE
from xenpt.cost import Cost
from xenpt.linux.memblock import Regions
from xenpt.linux.setup import REMAP_SIZE
from xenpt.linux.stages import Stage
from xenpt.linux.state import RELOCATED_VADDR, BootState
from xenpt.plan import Plan

Work = dict[str, int]
_BLOCK = ENTRIES * ENTRIES  # entries of the list that one L1 table maps


def build_work(plan: Plan) -> Work | None:
    """Of Xen's builder, dom0_construct_pv(); None for a guest of the toolstack."""
    if plan.guest.builder != "dom0":
        return None
    return {"build": 1, "build_page": int(plan.nr_pages)}


def stage_work(
    stage: Stage, cost: Cost, mmuext: Mapping[int, int], after: BootState
) -> Work | None:
    """Of one stage.

    :param mmuext: its mmuext operations by command
    :param after: as the stage left it
    """
    moved = after.initial_list.vaddr == RELOCATED_VADDR
    updates, va_updates = cost.by_type["mmu_update"], cost.by_type["update_va_mapping"]
    pins = mmuext.get(MMUEXT_PIN_L1_TABLE, 0)
    nr_frames = sum(remap.nr for remap in after.remaps)
    match stage:
        case Stage.SETUP_KERNEL_PAGETABLE:
            return {stage.value: 1}
        case Stage.MEMORY_SETUP if not (moved or updates or cost.by_type["memory_op"] > 2):
            nr_groups = sum(-(-remap.nr // REMAP_SIZE) + 1 for remap in after.remaps)
            return {
                stage.value: 1,
                "hole_page": va_updates - nr_groups,
                "hole_frame": nr_frames,
                "hole_group": nr_groups,
            }
        case Stage.INIT_MEM_MAPPING:
            return {
                "direct_map_pte": cost.entries_written,
                "absent_pte": nr_frames,
                "pinned_entry": cost.entries_written - nr_frames,
                "pinned_l1": pins,
                "new_table": va_updates,
                "upper_entry": updates,
            }
        case Stage.PAGING_INIT if after.rules.set_pte_hypercall:
            return {stage.value: 1, "set_pte": updates, "pinned_l1": pins, "new_table": va_updates}
        case Stage.P2M_COPIED:
            return _copy_work(cost, after)
        case Stage.P2M_FREE:
            return free_work(cost)
        case Stage.REMAP_MEMORY:
            mapped = after.nr_initial_l1 * ENTRIES
            return {
                stage.value: int(updates > 0),
                "moved_frame": updates,
                "hole_group": va_updates - updates,
                "first_mapped": sum(remap.nr for remap in after.moved if remap.pfn >= mapped),
            }
    return None


def _copy_work(cost: Cost, after: BootState) -> Work:
    """Of the list's copy: its own pages, and entries of holes and of what lies behind RAM."""
    pages = cost.entries_written // ENTRIES
    copied = Regions.of([(0, -(-after.nr_pages // _BLOCK))])
    extra = Regions.of((start // _BLOCK, -(-end // _BLOCK)) for start, end in after.extra)
    return {
        "new_table": cost.by_type["update_va_mapping"],
        "set_pte": cost.by_type["mmu_update"],
        "list_page": pages,
        "list_table": cost.by_type["multicall"],
        "scanned_entry": after.max_p2m_pfn - pages * ENTRIES,
        "extra_page": after.extra.size,
        "extra_table": (extra - copied).size,
    }


def free_work(cost: Cost) -> Work | None:
    """Of freeing the initial P->M list; None for a list inside the initial mapping.

    :param cost: of the cleanup, as the `p2m_free` stage or free_initial_p2m() has it
    """
    if not cost.by_type["update_va_mapping"] or cost.by_type["mmuext_op"]:
        return None
    tables = cost.tables_freed
    return {
        "freed_frame": cost.by_type["update_va_mapping"],
        "freed_block": cost.memblock_free_calls,
        "dropped_l1": tables["l1"],
        "dropped_table": tables["l2"] + tables["l3"],
        "walked_entry": sum(cost.entries_read.values()),
    }
