# SPDX-License-Identifier: GPL-2.0-or-later
"""An e820 map that has no RAM where something of the domain is: where that is, what comes of it.

A fault alone makes such a map here; a real one is met in the same way (relocate.py, bugs.py).
"""

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, START_KERNEL_MAP, pfn_up, round_up
from xenpt.errors import UsageError
from xenpt.faults import Conflict
from xenpt.linux.e820 import ram_regions
from xenpt.linux.memblock import Range, Regions
from xenpt.linux.setup import given_map
from xenpt.linux.state import BootState


def place_of(fault: Conflict, state: BootState) -> Range:
    """Bytes [start, end) that have no RAM.

    :raises UsageError: there is no such thing
    """
    if fault.place is None:
        return fault.start, fault.end
    plan = state.domain.plan
    start_info = int(plan.start_info[0]) - START_KERNEL_MAP
    places = {
        "kernel": (state.text - START_KERNEL_MAP, int(plan.image.virt_kend) - START_KERNEL_MAP),
        "start_info": (start_info, start_info + PAGE_SIZE),
        "tables": tuple(pfn << PAGE_SHIFT for pfn in state.pt_pfns),
        "list": tuple(pfn << PAGE_SHIFT for pfn in state.p2m_frames),
        "initrd": state.initrd,
    }
    found = places[fault.place]
    if found is None:
        raise UsageError(f"--fault {fault}: this guest has no initrd")
    return found[0] & -PAGE_SIZE, round_up(found[1], PAGE_SIZE)


def what_moved(before: BootState, state: BootState) -> str:
    """What left its place because of the map; "" for nothing."""
    texts = []
    if state.initial_list.vaddr != before.initial_list.vaddr:
        texts.append(f"the P->M list moves to pfn {state.p2m_frames[0]:#x}")
    if state.initrd is not None and state.initrd != before.initrd:
        texts.append(f"the initrd moves to {state.initrd[0]:#x}")
    return ", ".join(texts)


def rearranged(fault: Conflict, without: BootState, before: BootState, state: BootState) -> str:
    """What becomes of the frames in the hole, and of what is in them; "" if nothing changes.

    :param without: the entry state without the fault
    """
    start, end = _pfns(fault, before)
    pfns = state.identity.clip(start, end)
    nr = pfns.clip(0, state.nr_pages).size
    if not nr:
        lost = (ram_regions(given_map(without)) - ram_regions(state.e820)).size >> PAGE_SHIFT
        return f"{lost:,} pages less of RAM, none of which the domain has yet" if lost else ""
    moved = Regions.of((pfn, pfn + nr) for pfn, _, nr in state.remaps)
    nr_moved = sum(moved.clip(a, b).size for a, b in pfns)
    text = f"{nr_moved:,} frames of the hole move to RAM elsewhere, {nr - nr_moved:,} go to Xen"
    if fault.place == "list" and state.list_outside:
        return f"{text}, while the P->M list is in them"
    if fault.place is None:
        return text
    if not state.initial_domain:  # Xen refuses to map the host's frames: no rights
        return f"{text}, while the {fault.place} stays mapped to them"
    return f"{text}; where the {fault.place} was, the host's own frames are mapped"


def hides_start_info(fault: Conflict, state: BootState) -> bool:
    """Whether the hole takes start_info's page out of the direct map (_dies_in() of boot.py)."""
    start, end = _pfns(fault, state)
    pfn = state.pfn(int(state.domain.plan.start_info[0]))
    zapped = not state.rules.map_holes_identity and pfn <= state.max_pfn_mapped
    return start <= pfn < end and zapped and state.identity.meets(pfn, pfn + 1)


def exchanges_kernel(fault: Conflict, state: BootState) -> bool:
    """Whether pages of the running kernel are now the host's frames of the same numbers.

    Only dom0 may map such frames.
    Where Linux unmaps holes instead, it has looked for the kernel in them before.
    """
    start, end = _pfns(fault, state)
    first = (state.text - START_KERNEL_MAP) >> PAGE_SHIFT
    last = pfn_up(state.brk_start - START_KERNEL_MAP)
    exchanged = state.identity.clip(start, end).clip(first, min(last, state.max_pfn_mapped + 1))
    may_map = state.rules.map_holes_identity and state.initial_domain
    return may_map and exchanged.size > 0


def _pfns(fault: Conflict, state: BootState) -> Range:
    """Its pages, rounded outwards, as Linux rounds holes."""
    start, end = place_of(fault, state)
    return start >> PAGE_SHIFT, pfn_up(end)
