# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults on their way through a boot: given to its entry state and its stages, and what came of them.

What fails is decided here; how it ends, by the stage that meets it, by refusals.py and corrupted.py.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, START_KERNEL_MAP, pfn_up, round_up
from xenpt.domuplan import DomuPlan
from xenpt.errors import UsageError
from xenpt.extents import Runs, column
from xenpt.faults import (
    FALLBACK,
    LEAK,
    PANIC,
    UNNOTICED,
    Conflict,
    Corrupted,
    Fault,
    Hole,
    OutOfMemory,
    Outcome,
    Refused,
    of_kind,
)
from xenpt.heaprequests import builder_outcomes
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux import corrupted
from xenpt.linux.corrupted import Fate, fate
from xenpt.linux.memblock import Range, Regions
from xenpt.linux.pagetable import static_frames, xen_table_pfns
from xenpt.linux.refusals import Refuser
from xenpt.linux.setup import REMAP_SIZE, given_map
from xenpt.linux.stages import STAGES, Stage
from xenpt.linux.state import DOM0_DIES, BootState, LinuxPanic
from xenpt.xen.corruption import entry_of, pin_failed, refusal_of_pin, violations
from xenpt.xen.hypercalls import Hypercalls

BUILD = "build"


class Injection:
    """The faults of one boot.

    :ivar found: what came of each that struck, in the order in which they did
    """

    def __init__(self, faults: Iterable[Fault], entry: BootState) -> None:
        """:raises UsageError: a fault about what this domain does not have."""
        self.faults: tuple[Fault, ...] = tuple(faults)
        self.found: dict[Fault, Outcome] = {}
        self._left = {fault: fault.nth for fault in of_kind(self.faults, Refused)}
        self._fates: dict[Corrupted, Fate] = {}
        self._doomed: dict[Stage, tuple[Fault, str]] = {}
        self._refuser: Refuser | None = None
        for hole in of_kind(self.faults, Hole):
            _check_hole(hole, entry)
        for fault in of_kind(self.faults, Corrupted):
            self._corrupt(fault, entry)

    def entry(self, state: BootState) -> BootState:
        """The entry state with what is wrong from the start."""
        for conflict in of_kind(self.faults, Conflict):
            start, end = _place(conflict, state)
            hole = E820Entry(start, end, "reserved")
            state = replace(state, e820=(*given_map(state), hole))
        for oom in of_kind(self.faults, OutOfMemory):
            if oom.who == "linux":
                state = replace(state, memblock=replace(state.memblock, fails_from=oom.nth))
        missing = Regions.of((hole.pfn, hole.pfn + hole.nr) for hole in of_kind(self.faults, Hole))
        return replace(state, missing=missing) if missing.size else state

    # --- Around a stage ---------------------------------------------------------------------------

    def before(self, stage: Stage, state: BootState) -> None:
        """:raises LinuxPanic: the stage meets a fault before it does anything."""
        for fault, found in self._fates.items():
            if found.stage is stage:
                self._strike(fault, found.text, PANIC, stage.value)
                raise LinuxPanic(found.text)
        if stage is Stage.REMAP_MEMORY:
            targets = Regions.of((to, to + nr) for _, to, nr in state.remaps)
            for fault in of_kind(self.faults, Refused):
                if _first(targets, state.unmapped) is not None:
                    text = "kernel BUG in xen_update_mem_tables(): Xen refuses update_va_mapping"
                    self._doomed[stage] = (fault, text)
        if stage in self._doomed:
            fault, text = self._doomed[stage]
            self.found[fault] = Outcome(fault, stage.value, PANIC, text)
            raise LinuxPanic(text)
        if stage is Stage.SETUP_KERNEL_PAGETABLE and state.missing.size:
            self._hole_in_own_frames(state)

    def gate(self, stage: Stage, state: BootState) -> Refuser | None:
        """The gate that refuses a call of this stage, if it makes the one that is refused."""
        self._refuser = None
        for fault, left in self._left.items():
            if left <= 0:
                continue
            hc, after = Hypercalls(), state
            try:
                after = STAGES[stage](state, hc)[0]
            except LinuxPanic:
                pass  # of the stage itself: the call may come before
            nr = sum(hc.calls.values()) if fault.where in (None, stage.value) else 0
            nr += hc.calls.get(fault.where or "", 0)
            self._left[fault] = left - nr
            if left <= nr:
                self._refuser = Refuser(fault, left, stage, state, after)
        return self._refuser

    def refused(self) -> LinuxPanic:
        """What Linux says of the call that was refused."""
        assert self._refuser is not None and self._refuser.reaction is not None
        text = self._refuser.reaction.text
        self._strike(self._refuser.fault, text, PANIC, self._refuser.stage.value)
        return LinuxPanic(text)

    def after(self, stage: Stage, before: BootState, state: BootState) -> BootState:
        """The state behind a stage that was got through, with what a refused call left behind.

        :raises LinuxPanic: it used a page that is not mapped
        """
        self._went_on(stage, state)
        if self._refuser is not None and self._refuser.reaction is not None:
            unmapped = Regions.of((*state.unmapped, *self._refuser.reaction.unmapped))
            state = replace(state, unmapped=unmapped)
        self._allocated(stage, before, state)
        if stage is Stage.MEMORY_SETUP:
            self._remapped(state)
            self._conflicts(before, state)
            for fault, found in self._fates.items():
                if ends := corrupted.after_memory_setup(found, state):
                    self._strike(fault, ends.text, PANIC, stage.value)
                    raise LinuxPanic(ends.text)
        if stage is Stage.P2M_FREE:
            self._lost_list(state)
        return state

    def panicked(self, stage: Stage, state: BootState, text: str) -> None:
        """Linux gave up in a stage that began with `state`: was it a fault that made it?"""
        for fault in self.faults:
            if fault in self.found:
                continue
            if isinstance(fault, OutOfMemory) and fault.who == "linux":
                if _requests_without(stage, state) >= fault.nth:
                    self._strike(fault, text, PANIC, stage.value)
            elif isinstance(fault, Conflict) and stage is Stage.MEMORY_SETUP:
                self._strike(fault, text, PANIC, stage.value)
            elif isinstance(fault, Conflict) and _hides_start_info(fault, state):
                self._strike(fault, text, PANIC, stage.value)

    def outcomes(self, state: BootState, panic: str | None) -> list[Outcome]:
        """What came of every fault of the boot as far as it has run, those of the builder first."""
        ends = "the boot ends before" if panic else ""
        rest = []
        for fault in self.faults:
            if isinstance(fault, OutOfMemory) and fault.who == "xen":
                continue
            if isinstance(fault, Hole) and not panic and fault not in self.found:
                self._strike(fault, _unseen_hole(fault, state), UNNOTICED, "init_mem_mapping")
            text = ends or _why_not(fault, state, self._left)
            rest.append(self.found.get(fault) or Outcome.none(fault, text))
        return [*builder_outcomes(state.domain.plan), *rest]

    # --- What came of what ------------------------------------------------------------------------

    def _strike(self, fault: Fault, text: str, end: str, where: str) -> None:
        self.found.setdefault(fault, Outcome(fault, where, end, text))

    def _went_on(self, stage: Stage, state: BootState) -> None:
        refuser = self._refuser
        if refuser is not None and refuser.reaction is not None:
            reaction = refuser.reaction
            text = reaction.text
            if reaction.end == LEAK:
                text += f", {state.nr_lost:,} pages"
            self._strike(refuser.fault, text, reaction.end, stage.value)
            if reaction.dies_in is not None:
                self._doomed[reaction.dies_in] = (refuser.fault, text)
        for fault in of_kind(self.faults, OutOfMemory):
            if fault.who == "linux" and state.memblock.requests >= fault.nth:
                text = "no free 2 MiB block is found for the direct map to begin with"
                self._strike(fault, text, FALLBACK, stage.value)

    def _allocated(self, stage: Stage, before: BootState, state: BootState) -> None:
        """Linux clears each page that it allocates: one that is not mapped is a page fault.

        So is a struct page whose own page has no frame, once it is initialised.
        """
        absent = Regions.of((*(state.missing - _held_by_xen(state)), *state.unmapped))
        first = _first(_cleared(stage, before, state), absent)
        vaddr = None if first is None else state.va(first)
        if first is None and stage is Stage.PAGING_INIT and state.vmemmap is not None:
            for row in state.vmemmap.leaves:
                pfn = int(row["pfn"])
                first = _first(Regions.of([(pfn, pfn + int(row["nr"]))]), state.missing)
                if first is not None:
                    vaddr = (int(row["vpn"]) + first - pfn) << PAGE_SHIFT
                    break
        if first is None or vaddr is None:
            return
        panic = state.page_fault(vaddr)
        if stage in (Stage.MEMORY_SETUP, Stage.INIT_MEM_MAPPING):  # no handler yet
            panic = LinuxPanic(DOM0_DIES)
        for hole in of_kind(self.faults, Hole):
            if hole.pfn <= first < hole.pfn + hole.nr:
                self._strike(hole, str(panic), PANIC, stage.value)
        if state.unmapped.meets(first, first + 1):
            for fault in of_kind(self.faults, Refused):
                self.found[fault] = Outcome(fault, stage.value, PANIC, str(panic))
        raise panic

    def _remapped(self, state: BootState) -> None:
        """Frames of holes that are to move, but that the list does not name."""
        for hole in of_kind(self.faults, Hole):
            pfns = Regions.of([(hole.pfn, hole.pfn + hole.nr)])
            for start, _, nr in state.remaps:
                met = pfns.clip(start, start + nr)
                if any(met.meets(pfn, pfn + 1) for pfn in range(start, start + nr, REMAP_SIZE)):
                    text = "kernel BUG in set_pte_mfn(): Xen refuses update_va_mapping"
                    self._strike(hole, text, PANIC, Stage.MEMORY_SETUP.value)
                    raise LinuxPanic(text)
                if met.size:
                    text = "kernel BUG in xen_update_mem_tables(): Xen refuses mmu_update"
                    self._doomed[Stage.REMAP_MEMORY] = (hole, text)

    def _hole_in_own_frames(self, state: BootState) -> None:
        """convert_pfn_mfn() and the pins need the frames of Linux's own and of Xen's tables."""
        root, vsyscall = state.root_pfn, state.symbol_pfn("level3_user_vsyscall")
        xen = xen_table_pfns(state)
        for hole in of_kind(self.faults, Hole):
            pfns = Regions.of([(hole.pfn, hole.pfn + hole.nr)])
            if any(pfns.meets(pfn, pfn + 1) for pfn in xen[1:]) or any(
                pfns.meets(a, b) and (root is None or not a <= root < b)
                for a, b in static_frames(state)
            ):
                self._strike(hole, DOM0_DIES, PANIC, Stage.SETUP_KERNEL_PAGETABLE.value)
                raise LinuxPanic(DOM0_DIES)
            pinned = (root, vsyscall, xen[0])
            if any(pfn is not None and pfns.meets(pfn, pfn + 1) for pfn in pinned):
                text = "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"
                self._strike(hole, text, PANIC, Stage.SETUP_KERNEL_PAGETABLE.value)
                raise LinuxPanic(text)

    def _lost_list(self, state: BootState) -> None:
        for hole in of_kind(self.faults, Hole):
            nr = Regions.of([(hole.pfn, hole.pfn + hole.nr)]).clip(*state.p2m_frames).size
            if nr:
                text = f"{nr:,} pages of the P->M list stay read-only and reserved; page 0 is freed"
                self._strike(hole, text, LEAK, Stage.P2M_FREE.value)

    def _conflicts(self, before: BootState, state: BootState) -> None:
        for fault in of_kind(self.faults, Conflict):
            if text := _moved(before, state):
                self._strike(fault, text, FALLBACK, Stage.MEMORY_SETUP.value)
            elif text := _overwritten(fault, before, state):
                self._strike(fault, text, UNNOTICED, Stage.MEMORY_SETUP.value)

    def _corrupt(self, fault: Corrupted, entry: BootState) -> None:
        """Find out what becomes of a corrupted entry; domain.check() always looks at it."""
        domain = entry.domain
        wrong = entry_of(domain, fault)
        broken = [str(violation) for violation in violations(domain, wrong)]
        if refused := refusal_of_pin(domain, fault):
            assert isinstance(domain.plan, DomuPlan)
            text = pin_failed(domain.plan)
            self._fates[fault] = Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, text)
            lines = "; ".join(refused.lines)
            self.found[fault] = Outcome(fault, BUILD, PANIC, f"{text} ({lines})")
            return
        if wrong.old == wrong.new:
            return
        self._fates[fault] = found = fate(entry, wrong)
        if found.end == UNNOTICED:
            seen = f"; domain.check(): {broken[0]}" if broken else ""
            self.found[fault] = Outcome(fault, BUILD, UNNOTICED, found.text + seen)


def _check_hole(hole: Hole, state: BootState) -> None:
    """:raises UsageError: pfns that the domain lacks, or that mean more than the list's contents."""
    end = hole.pfn + hole.nr
    if end > state.nr_pages:
        raise UsageError(f"--fault {hole}: the domain has the pfns 0 to {state.nr_pages - 1:#x}")
    image = ((state.text - START_KERNEL_MAP) >> PAGE_SHIFT, pfn_up(state.brk_end - START_KERNEL_MAP))
    unknown = [name for name, _ in state.rules.ro_tables if state.symbol(name) is None]
    if unknown and Regions.of([image]).meets(hole.pfn, end):
        raise UsageError(f"--fault {hole}: where {unknown[0]} is in the kernel is not known")
    mapping = state.domain.p2m_map
    if mapping is None or not Regions.of([state.p2m_frames]).meets(hole.pfn, end):
        return
    large = mapping.leaves[mapping.leaves["level"] > 1]
    if len(large) or any(
        Regions.of([(hole.pfn, end)]).meets(a, b) for a, b in _frames_of_tables(mapping.tables)
    ):
        raise UsageError(
            f"--fault {hole}: frames of the list's tables or large leaves: what Linux then reads as "
            "a page table, page 0, has contents that are not modelled"
        )


def _frames_of_tables(tables: Runs) -> list[Range]:
    """Frames of runs of tables; a step is 1, -1, or the run has one table."""
    pfn, nr, step = (column(tables, name) for name in ("pfn", "nr", "step"))
    last = pfn + (nr - 1) * step
    low, high = np.minimum(pfn, last), np.maximum(pfn, last) + 1
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _place(fault: Conflict, state: BootState) -> Range:
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


def _moved(before: BootState, state: BootState) -> str:
    """What left its place because of the map; "" for nothing."""
    texts = []
    if state.initial_list.vaddr != before.initial_list.vaddr:
        texts.append(f"the P->M list moves to pfn {state.p2m_frames[0]:#x}")
    if state.initrd is not None and state.initrd != before.initrd:
        texts.append(f"the initrd moves to {state.initrd[0]:#x}")
    return ", ".join(texts)


def _overwritten(fault: Conflict, before: BootState, state: BootState) -> str:
    """What of the hole meets frames of the domain, and nobody's notice."""
    start, end = (value >> PAGE_SHIFT for value in _place(fault, before))
    pfns = state.identity.clip(start, end)
    if not pfns.size:
        return ""
    moved = Regions.of((pfn, pfn + nr) for pfn, _, nr in state.remaps)
    nr_moved = sum(moved.clip(a, b).size for a, b in pfns)
    text = f"{nr_moved:,} frames of the hole move away, {pfns.size - nr_moved:,} do not"
    if fault.place is not None and not _hides_start_info(fault, state):
        text += f", from under the {fault.place}: what reads or writes it meets the host's frames"
    return text


def _hides_start_info(fault: Conflict, state: BootState) -> bool:
    """Whether start_info is no longer mapped to itself."""
    start, end = (value >> PAGE_SHIFT for value in _place(fault, state))
    pfn = state.pfn(int(state.domain.plan.start_info[0]))
    return start <= pfn < end and not state.rules.map_holes_identity


def _held_by_xen(state: BootState) -> Regions:
    """Pages that Xen's L1 tables map, of those that Linux keeps: their entries stay as they are."""
    start, end = state.domain.plan.total
    return Regions.of([(0, min(end - start, 1 << 30) >> PAGE_SHIFT)])


def _cleared(stage: Stage, before: BootState, state: BootState) -> Regions:
    """Frames that the stage has allocated and written through the direct map or early mappings."""
    if stage is Stage.MEMORY_SETUP:
        initrd = state.initrd if state.initrd != before.initrd else None
        moved = [] if state.p2m_frames == before.p2m_frames else [state.p2m_frames]
        moved += [] if initrd is None else [(initrd[0] >> PAGE_SHIFT, pfn_up(initrd[1]))]
        return Regions.of(moved)
    if stage is Stage.INIT_MEM_MAPPING:
        return Regions.of(_frames_of_tables(state.tables))
    if stage is Stage.PAGING_INIT:
        return state.ro_frames - before.ro_frames
    if stage is Stage.P2M_COPIED:
        new = state.memblock.reserved - before.memblock.reserved
        return Regions.of((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in new)
    return Regions()


def _first(pfns: Regions, absent: Regions) -> int | None:
    """The first of `pfns` that is absent, or None."""
    common = (absent.clip(start, end).ranges for start, end in pfns)
    return next((ranges[0][0] for ranges in common if ranges), None)


def _requests_without(stage: Stage, state: BootState) -> int:
    """Requests made up to the end of the stage if memory did not run out."""
    freely = replace(state, memblock=replace(state.memblock, fails_from=None))
    try:
        return STAGES[stage](freely, Hypercalls())[0].memblock.requests
    except LinuxPanic:
        return 0


def _unseen_hole(hole: Hole, state: BootState) -> str:
    pfns = Regions.of([(hole.pfn, hole.pfn + hole.nr)])
    nr = (pfns - _held_by_xen(state) - state.identity).size
    text = f"{nr:,} pages are not in the direct map, and fault at their first use"
    if nr < hole.nr:
        text += f"; {hole.nr - nr:,} are mapped by Xen's tables or lie in holes"
    return text


def _why_not(fault: Fault, state: BootState, left: dict[Refused, int]) -> str:
    """Why a fault of a boot that was got through did not strike."""
    if isinstance(fault, OutOfMemory):
        return f"Linux's stages ask memblock {state.memblock.requests:,} times"
    if isinstance(fault, Refused):
        return f"{fault.nth - left[fault]:,} such calls are made"
    if isinstance(fault, Conflict):
        return "the domain has no frames there, or Linux needs none of it"
    return "the entry has this word anyway"
