# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults on their way through a boot: given to its entry and its stages, and what came of them.

What fails is decided here; how it ends by the stage that meets it, refusals.py and corrupted.py.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace

from xenpt.abi import PAGE_SHIFT, pfn_up
from xenpt.builderfaults import BUILD, builder_outcomes
from xenpt.domuplan import DomuPlan
from xenpt.faults import (
    FALLBACK,
    LEAK,
    PANIC,
    UNNOTICED,
    Conflict,
    Corrupted,
    Fault,
    Hole,
    Outcome,
    OutOfMemory,
    Refused,
    is_of_host,
    of_kind,
)
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux import corrupted
from xenpt.linux.conflicts import (
    exchanges_kernel,
    hides_start_info,
    place_of,
    rearranged,
    what_moved,
)
from xenpt.linux.corrupted import Fate, fate
from xenpt.linux.memblock import NO_REGIONS, Regions
from xenpt.linux.missing import (
    Death,
    check_hole,
    consequence,
    frames_of_tables,
    held_by_xen,
    in_own_frames,
    in_remapped_frames,
    pages_of_list,
    pfns_of,
)
from xenpt.linux.refusals import Refuser
from xenpt.linux.setup import given_map
from xenpt.linux.stages import STAGES, Stage
from xenpt.linux.state import DOM0_DIES, BootState, LinuxPanic, refused_bug
from xenpt.units import counted
from xenpt.xen.corruption import entry_of, pin_failed, refusal_of_pin, violations
from xenpt.xen.hypercalls import Hypercalls


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
        self._without = entry
        for hole in of_kind(self.faults, Hole):
            check_hole(hole, entry)
        for fault in of_kind(self.faults, Corrupted):
            self._corrupt(fault, entry)

    def entry(self, state: BootState) -> BootState:
        """The entry state with what is wrong from the start."""
        for conflict in of_kind(self.faults, Conflict):
            start, end = place_of(conflict, state)
            hole = E820Entry(start, end, "reserved")
            state = replace(state, e820=(*given_map(state), hole))
        for oom in of_kind(self.faults, OutOfMemory):
            if oom.who == "linux":
                state = replace(state, memblock=replace(state.memblock, fails_from=oom.nth))
        missing = Regions.of(r for hole in of_kind(self.faults, Hole) for r in pfns_of(hole))
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
            for refused in of_kind(self.faults, Refused):
                if _first(targets, state.unmapped) is not None:
                    text = refused_bug("xen_update_mem_tables", "update_va_mapping")
                    self._doom(refused, (stage, text))
        if stage is Stage.SETUP_KERNEL_PAGETABLE:
            for hole in of_kind(self.faults, Hole):
                self._doom(hole, in_own_frames(hole, state))
        self._fulfil(stage)

    def gate(self, stage: Stage, state: BootState) -> Refuser | None:
        """The gate that refuses a call of this stage, if it makes the one that is refused."""
        self._refuser = None
        for fault, left in self._left.items():
            if left <= 0:
                continue
            hc, after = Hypercalls(), state
            with suppress(LinuxPanic):  # of the stage itself: the call may come before
                after = STAGES[stage](state, hc)[0]
            nr = sum(hc.calls.values()) if fault.where in (None, stage.value) else 0
            nr += hc.calls.get(fault.where or "", 0)
            self._left[fault] = left - nr
            if left <= nr:
                self._refuser = Refuser(fault, left, stage, state, after)
        return self._refuser

    def refused(self) -> LinuxPanic | None:
        """What Linux says of the call that was refused; None if no fault refused it."""
        if self._refuser is None or self._refuser.reaction is None:
            return None
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
            for hole in of_kind(self.faults, Hole):
                self._doom(hole, in_remapped_frames(hole, state))
            self._conflicts(before, state)
            for fault, found in self._fates.items():
                if ends := corrupted.after_memory_setup(found, state):
                    self._strike(fault, ends.text, PANIC, stage.value)
                    raise LinuxPanic(ends.text)
            self._fulfil(stage)
        if stage is Stage.P2M_FREE:
            self._lost_list(state)
        return state

    def panicked(self, stage: Stage, state: BootState, text: str) -> None:
        """Linux gave up in a stage that began with `state`: was it a fault that made it?"""
        for fault in self.faults:
            mine = False
            if isinstance(fault, OutOfMemory):
                mine = fault.who == "linux" and _requests_without(stage, state) >= fault.nth
            elif isinstance(fault, Conflict):
                mine = "E820 map" in text or hides_start_info(fault, state)
            if mine:
                self._strike(fault, text, PANIC, stage.value)

    def outcomes(self, state: BootState, panic: str | None) -> list[Outcome]:
        """What came of every fault of the boot as far as it has run, those of the builder first."""
        ends = "the boot ends before" if panic else ""
        rest = []
        for fault in self.faults:
            if is_of_host(fault):
                continue
            if isinstance(fault, Hole) and not panic and fault not in self.found:
                self._strike(fault, consequence(fault, state), UNNOTICED, "init_mem_mapping")
            text = ends or _why_not(fault, state, self._left)
            rest.append(self.found.get(fault) or Outcome.none(fault, text))
        return [*builder_outcomes(state.domain.plan), *rest]

    # --- What came of what ------------------------------------------------------------------------

    def _strike(self, fault: Fault, text: str, end: str, where: str) -> None:
        self.found.setdefault(fault, Outcome(fault, where, end, text))

    def _doom(self, fault: Fault, death: Death | None) -> None:
        """A stage, this one or a later one, will end the boot because of the fault."""
        if death is not None:
            self._doomed.setdefault(death[0], (fault, death[1]))

    def _fulfil(self, stage: Stage) -> None:
        """:raises LinuxPanic: the stage is doomed."""
        if stage in self._doomed:
            fault, text = self._doomed[stage]
            self.found[fault] = Outcome(fault, stage.value, PANIC, text)
            raise LinuxPanic(text)

    def _went_on(self, stage: Stage, state: BootState) -> None:
        refuser = self._refuser
        if refuser is not None and refuser.reaction is not None:
            reaction = refuser.reaction
            text = reaction.text
            if reaction.end == LEAK:
                text += f", {state.nr_lost:,} pages"
            self._strike(refuser.fault, text, reaction.end, stage.value)
            if reaction.dies_in is not None:
                self._doom(refuser.fault, (reaction.dies_in, text))
        for fault in of_kind(self.faults, OutOfMemory):
            if fault.who == "linux" and state.memblock.requests >= fault.nth:
                text = "no free 2 MiB block is found for the direct map to begin with"
                self._strike(fault, text, FALLBACK, stage.value)

    def _allocated(self, stage: Stage, before: BootState, state: BootState) -> None:
        """Linux clears each page that it allocates: one that is not mapped is a page fault.

        So is a struct page whose own page has no frame, once it is initialised.
        """
        if not state.missing.ranges and not state.unmapped.ranges:
            return
        absent = Regions.of((*(state.missing - held_by_xen(state)), *state.unmapped))
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

    def _lost_list(self, state: BootState) -> None:
        for hole in of_kind(self.faults, Hole):
            if nr := pages_of_list(hole, state):
                text = f"{nr:,} pages of the P->M list stay read-only and reserved; page 0 is freed"
                self._strike(hole, text, LEAK, Stage.P2M_FREE.value)

    def _conflicts(self, before: BootState, state: BootState) -> None:
        for fault in of_kind(self.faults, Conflict):
            if hides_start_info(fault, state):
                continue  # its first reader dies, in the next stage
            if exchanges_kernel(fault, state):
                self._strike(fault, DOM0_DIES, PANIC, Stage.MEMORY_SETUP.value)
                raise LinuxPanic(DOM0_DIES)
            if text := what_moved(before, state):
                self._strike(fault, text, FALLBACK, Stage.MEMORY_SETUP.value)
            elif text := rearranged(fault, self._without, before, state):
                self._strike(fault, text, UNNOTICED, Stage.MEMORY_SETUP.value)

    def _corrupt(self, fault: Corrupted, entry: BootState) -> None:
        """Find out what becomes of a corrupted entry, and which rules it breaks."""
        domain = entry.domain
        wrong = entry_of(domain, fault)
        broken = [str(violation) for violation in violations(domain, wrong)]
        if refused := refusal_of_pin(domain, fault):
            assert isinstance(domain.plan, DomuPlan)
            text = pin_failed(domain.plan)
            self._fates[fault] = Fate(PANIC, Stage.SETUP_KERNEL_PAGETABLE, text)
            lines = f"Xen: {refused.lines[0]}; ...; {refused.lines[-1]}"
            self.found[fault] = Outcome(fault, BUILD, PANIC, f"{text}; {lines}")
            return
        if wrong.old == wrong.new:
            return
        self._fates[fault] = found = fate(entry, wrong)
        if found.end == UNNOTICED:
            seen = f"; Xen's rules: {broken[0]}" if broken else ""
            self.found[fault] = Outcome(fault, BUILD, UNNOTICED, found.text + seen)


def _cleared(stage: Stage, before: BootState, state: BootState) -> Regions:
    """Frames that the stage has allocated and written through the direct map or early mappings."""
    if stage is Stage.MEMORY_SETUP:
        initrd = state.initrd if state.initrd != before.initrd else None
        moved = [] if state.p2m_frames == before.p2m_frames else [state.p2m_frames]
        moved += [] if initrd is None else [(initrd[0] >> PAGE_SHIFT, pfn_up(initrd[1]))]
        return Regions.of(moved)
    if stage is Stage.INIT_MEM_MAPPING:
        return Regions.of(frames_of_tables(state.tables))
    if stage is Stage.PAGING_INIT:
        return state.ro_frames - before.ro_frames
    if stage is Stage.P2M_COPIED:
        new = state.memblock.reserved - before.memblock.reserved
        return Regions.of((a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in new)
    return NO_REGIONS


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


def _why_not(fault: Fault, state: BootState, left: dict[Refused, int]) -> str:
    """Why a fault of a boot that was got through did not strike."""
    if isinstance(fault, OutOfMemory):
        return f"Linux's stages ask memblock {state.memblock.requests:,} times"
    if isinstance(fault, Refused):
        made = fault.nth - left[fault]
        return f"{counted(made, 'such call')} {'is' if made == 1 else 'are'} made"
    if isinstance(fault, Conflict):
        return "the domain has no frames there, or Linux needs none of it"
    return "the entry has this word anyway"
