# SPDX-License-Identifier: GPL-2.0-or-later
"""How a boot ends whose page tables have one wrong word at its entry.

Linux takes over two of Xen's tables as they are, the L1 tables of the first GiB and those of the
P->M list, which nobody validates; its pin validates its copies of one L2 table and of the list's
L4 entry. The rest follows from what the stages read and write. All of it is deduced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from xenpt.abi import (
    ENTRIES,
    L3_SIZE,
    LEVELS,
    PAGE_SHIFT,
    PTE_MFN_MASK,
    PTE_NX,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_USER,
    START_INFO_64,
    START_KERNEL_MAP,
    table_slot,
)
from xenpt.extents import expand
from xenpt.faults import PANIC, UNNOTICED
from xenpt.linux.memblock import NO_REGIONS, Regions
from xenpt.linux.pagetable import static_frames, xen_table_pfns
from xenpt.linux.stages import Stage
from xenpt.linux.state import DOM0_DIES, BootState, refused_bug
from xenpt.xen.corruption import Entry
from xenpt.xen.entries import bad_flags, entry_mfn

_FIELDS: Mapping[str, Any] = START_INFO_64.fields or {}
MFN_LIST = _FIELDS["mfn_list"][1]  # its offset in start_info
_PIN = refused_bug("pin_pagetable_pfn", "mmuext_op")
GONE, ELSEWHERE, READ_ONLY, WRITABLE, NO_EXEC, SAME = (
    "gone", "elsewhere", "read-only", "writable", "no-exec", "same",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of it.

    :ivar end: PANIC or UNNOTICED
    :ivar stage: the stage that meets it, or None
    :ivar text: panic, or consequence
    :ivar read_only: pfns whose entries of the P->M list cannot be written: a hole among them, which
        memory_setup makes identity, ends there
    """

    end: str
    stage: Stage | None
    text: str
    read_only: Regions = NO_REGIONS


def effect(entry: Entry) -> str:
    """What the wrong word does to the pages behind it, as far as the kernel notices."""
    old, new = entry.old, entry.new
    if not old & PTE_PRESENT:
        return SAME
    if not new & PTE_PRESENT or not new & PTE_USER or (entry.level == LEVELS and new & PTE_PSE):
        return GONE
    size_differs = entry.level in (2, 3) and (old ^ new) & PTE_PSE
    if (old ^ new) & PTE_MFN_MASK or size_differs:
        return ELSEWHERE
    if (old ^ new) & PTE_RW:
        return READ_ONLY if old & PTE_RW else WRITABLE
    return NO_EXEC if new & PTE_NX & ~old else SAME


def fate(state: BootState, entry: Entry) -> Fate:
    """What becomes of a boot whose entry state is `state`."""
    if not entry.old & PTE_PRESENT and entry.new & PTE_PRESENT:
        return Fate(UNNOTICED, None, "an address that nobody uses is mapped")
    start, end = state.domain.plan.p2m
    if (
        state.domain.p2m_map is not None
        and start <= entry.vaddr | _inside(entry)
        and (entry.vaddr < end)
    ):
        return _in_list(state, entry)
    return _in_initial_mapping(state, entry)


def _inside(entry: Entry) -> int:
    return (entry.nr_pages << PAGE_SHIFT) - 1


# --- The P->M list's own mapping ---------------------------------------------------------------


def _in_list(state: BootState, entry: Entry) -> Fate:
    what, start = effect(entry), int(state.domain.plan.p2m[0])
    first = max(0, entry.vaddr - start) // 8
    pfns = Regions.of([(first, (entry.vaddr + _inside(entry) + 1 - start) // 8)])
    copied = (
        entry.level == LEVELS and state.rules.graft_initial_p2m and table_slot(start, LEVELS) > 0
    )
    if copied and what in (SAME, NO_EXEC) and bad_flags(entry.new, LEVELS, iomem=True):
        return Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, _PIN)
    if what == GONE or (what == ELSEWHERE and entry.level == LEVELS):
        return _unread(state, pfns, start)
    if what == ELSEWHERE:
        return _garbage(state, pfns)
    if what == READ_ONLY:
        return _unwritten(state, pfns, start)
    return Fate(UNNOTICED, None, "software bits, or such as the processor sets itself")


def _first_read(state: BootState, pfns: Regions) -> Stage:
    """Stage that first reads list entries of these pfns: pad, own tables, direct map, or copy."""
    pad = state.nr_pages if state.nr_pages % ENTRIES else None
    used = Regions.of((*static_frames(state), *((pfn, pfn + 1) for pfn in xen_table_pfns(state))))
    if (pad is not None and pfns.meets(pad, pad + 1)) or any(pfns.meets(a, b) for a, b in used):
        return Stage.SETUP_KERNEL_PAGETABLE
    plan = state.domain.plan
    mapped = (min(plan.total[1], START_KERNEL_MAP + L3_SIZE) - START_KERNEL_MAP) >> PAGE_SHIFT
    if pfns.meets(mapped, state.nr_pages):
        return Stage.INIT_MEM_MAPPING
    return Stage.P2M_COPIED


def _unread(state: BootState, pfns: Regions, start: int) -> Fate:
    stage = _first_read(state, pfns)
    text = DOM0_DIES
    if stage is Stage.P2M_COPIED:
        text = str(state.page_fault(start + 8 * pfns.ranges[0][0]))
    return Fate(PANIC, stage, text)


def _garbage(state: BootState, pfns: Regions) -> Fate:
    """Other memory is read as part of the list: frames that are not the domain's, mostly."""
    stage = _first_read(state, pfns)
    if stage is Stage.P2M_COPIED:
        text = f"P->M entries of pfns from {pfns.ranges[0][0]:#x} on are other memory's contents"
        return Fate(UNNOTICED, None, text)
    text = DOM0_DIES if stage is Stage.SETUP_KERNEL_PAGETABLE else _PIN
    return Fate(PANIC, stage, text)


def _unwritten(state: BootState, pfns: Regions, start: int) -> Fate:
    pad = state.nr_pages
    if pad % ENTRIES and pfns.meets(pad, pad + 1):  # xen_build_dynamic_phys_to_machine()
        return Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, DOM0_DIES)
    vaddr = start + 8 * pfns.ranges[0][0]  # xen_pagetable_p2m_free() overwrites the whole list
    return Fate(PANIC, Stage.P2M_FREE, str(state.page_fault(vaddr)), read_only=pfns)


# --- The initial mapping -----------------------------------------------------------------------


def _in_initial_mapping(state: BootState, entry: Entry) -> Fate:
    what, plan = effect(entry), state.domain.plan
    dies = Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, DOM0_DIES)
    vital = _meets(entry, (state.text, int(plan.image.virt_kend))) or _meets(
        entry, (int(plan.start_info[0]), int(plan.start_info[1]))
    )
    root_pages = [START_KERNEL_MAP + (pfn << PAGE_SHIFT) for pfn in xen_table_pfns(state)]
    read_early = any(_meets(entry, (page, page + 1)) for page in root_pages)
    if what in (GONE, ELSEWHERE) and (vital or read_early):
        return dies
    if what == NO_EXEC and _meets(entry, (plan.entry, plan.entry + 1)):
        return dies
    if what == READ_ONLY and _written_early(state, entry):
        return dies
    if pinned := _refused_in_l2(state, entry):
        return pinned
    if what == READ_ONLY and (late := _written_late(state, entry)):
        return late
    return Fate(UNNOTICED, None, _consequence(entry, what))


def _meets(entry: Entry, where: tuple[int, int]) -> bool:
    return entry.vaddr < where[1] and where[0] <= entry.vaddr + _inside(entry)


def _written_early(state: BootState, entry: Entry) -> bool:
    """Linux's static tables, which it fills before it makes them read-only."""
    return any(
        _meets(entry, (START_KERNEL_MAP + (a << PAGE_SHIFT), START_KERNEL_MAP + (b << PAGE_SHIFT)))
        for a, b in static_frames(state)
    )


def _written_late(state: BootState, entry: Entry) -> Fate | None:
    """A list inside is overwritten when it is freed; then start_info gets the new one's address."""
    plan = state.domain.plan
    if not state.list_outside and _meets(entry, (int(plan.p2m[0]), int(plan.p2m[1]))):
        vaddr = max(entry.vaddr, int(plan.p2m[0]))
        return Fate(PANIC, Stage.P2M_FREE, str(state.page_fault(vaddr)))
    if _meets(entry, (int(plan.start_info[0]), int(plan.start_info[0]) + 1)):
        vaddr = state.va(state.pfn(int(plan.start_info[0])))
        return Fate(PANIC, Stage.REMAP_MEMORY, str(state.page_fault(vaddr + MFN_LIST)))
    return None


def _refused_in_l2(state: BootState, entry: Entry) -> Fate | None:
    """Linux's two copies of Xen's L2 table are validated with its root."""
    copied = entry.level == 2 and table_slot(entry.vaddr, 3) == table_slot(START_KERNEL_MAP, 3)
    if not copied or not entry.new & PTE_PRESENT:
        return None
    tables = expand(state.domain.initial.tables, tables=True)
    typed = set(state.domain.p2m.mfn(tables["pfn"][tables["level"] == 1]).tolist())
    if bad_flags(entry.new, 2, iomem=True) or entry_mfn(entry.new) not in typed:
        return Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, _PIN)
    return None


def _consequence(entry: Entry, what: str) -> str:
    if entry.level >= 3:
        return "Linux does not take this entry over"
    if what == WRITABLE:
        text = "the guest can write one of its own page tables: Xen does not validate what it built"
    elif what == GONE:
        text = "a page fault at the first use of what is behind it"
    elif what == ELSEWHERE:
        text = f"what uses these pages uses the frame {entry_mfn(entry.new):#x} instead"
    elif what == READ_ONLY:
        text = "a page fault at the first write to what is behind it"
    elif what == NO_EXEC:
        text = "a page fault if code in it runs"
    else:
        text = "software bits, or such as the processor sets itself"
    return f"{text}; no modelled stage comes to it" if what in (GONE, READ_ONLY) else text


def after_memory_setup(found: Fate, state: BootState) -> Fate | None:
    """The fate of a list part of which cannot be written, when holes are known."""
    if any(found.read_only.meets(a, b) for a, b in state.identity):
        return replace(found, stage=Stage.MEMORY_SETUP, text=DOM0_DIES)
    return None
