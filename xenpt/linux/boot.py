# SPDX-License-Identifier: GPL-2.0-or-later
"""`Boot`: Linux's early boot of a domain, stage by stage, with the exact cost of each.

Modelled is what the named stages do to page tables, frames and memblock. Hypercalls between them
(console output, early_ioremap, cleanup_highmap, trap and callback setup) are in no stage.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from xenpt.abi import (
    L4_SIZE,
    PAGE_SHIFT,
    WORD,
)
from xenpt.cost import Cost
from xenpt.errors import RefusedError, UsageError
from xenpt.extents import Mapping
from xenpt.faults import Fault, Outcome
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.bugs import Bug, Seen, bugs_met
from xenpt.linux.checkedboot import CheckedBoot
from xenpt.linux.cleanup import Cleanup, free_list, p2m_free
from xenpt.linux.e820 import in_one_ram_entry, ram_regions
from xenpt.linux.entry import initial_state
from xenpt.linux.injection import Injection
from xenpt.linux.memblock import Memblock
from xenpt.linux.pagetable import cleanup_highmap, copies_l4_entry, setup_kernel_pagetable
from xenpt.linux.rules import MAINLINE, LinuxRules
from xenpt.linux.setup import EXTRA_MEM_RATIO, MAXMEM_PAGES, given_map
from xenpt.linux.stages import STAGES, Stage
from xenpt.linux.state import (
    DOM0_DIES,
    GUEST_DIES,
    RELOCATED_VADDR,
    BootState,
    LinuxPanic,
    NotModelled,
)
from xenpt.linux.work import Work, stage_work
from xenpt.shown import Shown
from xenpt.units import format_size
from xenpt.xen.dom0 import Domain, with_other_leaves
from xenpt.xen.hypercalls import Call, Hypercalls

#: Guests that map no more are checked unless told otherwise: 0.7 s of processor time for 1 GiB.
CHECKED_PAGES = 1 << 18
#: Largest that can be checked: 64 GiB took 42 s and 1.2 GiB of memory.
CHECKED_AT_MOST = 1 << 24
#: What becomes of the initial list, where it is not freed.
_KEEPS = {"32-bit": "goes on with the list's own pages", "auto-translated": "uses no P->M list"}


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage that was run.

    :ivar mmuext: mmuext operations by command, those of multicalls included
    :ivar work: in operations whose time can be modelled; None if it cannot be, see work.py
    :ivar calls: the hypercalls in order, or None if they were only counted
    """

    name: str
    cost: Cost
    mmuext: dict[int, int]
    work: Work | None
    calls: tuple[Call, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """One element of `stages` of the `boot` JSON object."""
        return {"name": self.name} | self.cost.as_dict()


class Boot(Shown):
    """A domain that one generation of Linux boots in.

    :param e820: the map that Xen gives to the domain; None for a flat one
    :param max_reservation: pages that the domain may grow to; None for what its plan says
    :param record: keep the hypercalls of each stage, for small guests
    :param check: do each hypercall and each store under Xen's rules, and compare after each stage;
        None for small guests without faults alone
    :param gate: may refuse a hypercall, see Hypercalls
    :param faults: what goes wrong; that of the builder's memory is the host's (`Host`)
    :raises UsageError: a kernel that is not modelled, a fault about what the domain does not have

    :ivar state: as the last stage left it
    :ivar results: the stages that were run
    :ivar panic: text of whoever gave up, or None
    :ivar not_modelled: why the stages behind those of `results` are not known, or None
    :ivar cleanup: what freeing the initial P->M list cost, once that has run
    """

    def __init__(
        self,
        domain: Domain,
        *,
        rules: LinuxRules = MAINLINE,
        e820: Sequence[E820Entry] | None = None,
        max_reservation: int | None = None,
        record: bool = False,
        check: bool | None = None,
        gate: Callable[[Call], None] | None = None,
        faults: Iterable[Fault] = (),
    ) -> None:
        self.domain, self.rules, self.record, self.gate = domain, rules, record, gate
        state = initial_state(domain, rules, e820=e820, max_reservation=max_reservation)
        self._faults = Injection(faults, state)
        self.state = self._faults.entry(state)
        self._checked = self._checked_boot(check)
        self.results: list[StageResult] = []
        self.panic: str | None = None
        self.not_modelled: str | None = None
        self.cleanup: Cleanup | None = None
        self._memblock: dict[str, Memblock] = {}

    @property
    def verdict(self) -> str:
        """ "boots" or "panics"; "unknown" where what decides it is not modelled."""
        if self.not_modelled:
            return "unknown"
        return "panics" if self.panic else "boots"

    @property
    def cost(self) -> Cost:
        """All stages that were run, together."""
        return sum((result.cost for result in self.results), Cost())

    def run(self) -> "Boot":
        """Run all stages that have not run yet; stop where Linux gives up, or the model does.

        Returns itself.
        """
        return self.run_to(Stage.REMAP_MEMORY)

    def run_to(self, stage: Stage) -> "Boot":
        """Run up to and including `stage`, if that has not run yet. Returns itself."""
        names = list(STAGES)
        for name in names[len(self.results) : names.index(stage) + 1]:
            if self.panic or self.not_modelled:
                break
            try:
                self._run(name)
            except LinuxPanic as panic:
                self.panic = str(panic)
                self._faults.panicked(name, self.state, self.panic)
            except NotModelled as gap:
                self.not_modelled = str(gap)
        return self

    def _checked_boot(self, check: bool | None) -> CheckedBoot | None:
        """The second run that is asked for, or that a small guest gets.

        None of a Linux that overwrites its own memory in holes: nothing of that is real. None of 32
        bits or auto-translated, whose calls are other ones, or with faults, which it does not know.

        :raises UsageError: it is asked for, but the guest is too large, its kernel too small, of 32
            bits or auto-translated, or there are faults
        """
        if check and self._faults.faults:
            raise UsageError("--check: not with --fault")
        nr_pages = self._pages_to_grow_to()
        small = nr_pages <= CHECKED_PAGES and not self._faults.faults
        with_calls = self.state.bits == 64 and not self.rules.auto_translated
        if check and not with_calls:
            raise UsageError("--check: not for guests of 32 bits or auto-translated")
        if not (small if check is None else check) or not with_calls or self._in_holes():
            return None
        if nr_pages > CHECKED_AT_MOST:
            raise UsageError(
                f"--check: {format_size(nr_pages << PAGE_SHIFT)} is more than "
                f"{format_size(CHECKED_AT_MOST << PAGE_SHIFT)}, which takes 1.2 GiB of memory"
            )
        found = CheckedBoot.of(self.state)
        if check and found is None:
            raise UsageError("--check: the kernel's image is smaller than its static page tables")
        return found

    def _pages_to_grow_to(self) -> int:
        """What the guest's page tables may come to map: a dom0's more than it has at first."""
        state, nr_pages = self.state, self.state.nr_pages
        if not state.initial_domain:
            return nr_pages
        behind = ram_regions(given_map(state)).clip(nr_pages << PAGE_SHIFT, WORD).size
        room = max(0, state.max_reservation - nr_pages)
        return nr_pages + min(EXTRA_MEM_RATIO * nr_pages, room, behind >> PAGE_SHIFT)

    @property
    def checked(self) -> dict[str, int] | None:
        """Calls done under Xen's rules, and words compared behind the stages; None if unchecked."""
        return None if self._checked is None else self._checked.as_dict()

    def _run(self, stage: Stage) -> None:
        if stage is _dies_in(self.state):
            raise LinuxPanic(DOM0_DIES if self.state.initial_domain else GUEST_DIES)
        self._check_unpin(stage)
        before = self.state
        self._faults.before(stage, before)
        gate = self._faults.gate(stage, before) or self.gate
        hc = Hypercalls(record=self.record, gate=gate)
        try:
            state, outcome = STAGES[stage](before, hc)
            if self._checked is not None:
                self._checked.follow(stage, before, outcome)
        except RefusedError as refused:
            text = f"kernel BUG in {stage.value}: Xen answers {refused}"
            raise (self._faults.refused() or LinuxPanic(text)) from None
        self.state = self._faults.after(stage, before, state)
        if isinstance(outcome, Cleanup):
            self.cleanup, outcome = outcome, outcome.cost
            self._memblock["cleanup"] = self.state.memblock
        if stage is Stage.MEMORY_SETUP:
            self._memblock["setup"] = self.state.memblock
        calls = None if hc.log is None else tuple(hc.log)
        work = stage_work(stage, outcome, hc.mmuext, self.state)
        self.results.append(StageResult(stage.value, outcome, hc.mmuext, work, calls))

    def _check_unpin(self, stage: Stage) -> None:
        """Tables that Linux pinned must be unpinned, and those that Xen built cannot be (SPEC H5).

        Linux tells them by the address alone: a list that Xen put where Linux would move it to.
        """
        if stage is not Stage.P2M_FREE or self.state.initial_list.vaddr != RELOCATED_VADDR:
            return
        pinned = self.domain.plan.mfn_list != RELOCATED_VADDR
        if pinned and not self.rules.cleanup.unpin_relocated:
            raise LinuxPanic("kernel BUG in make_lowmem_page_readwrite(): a pinned page table")
        if self.rules.cleanup.unpin_relocated and not pinned:
            raise LinuxPanic("kernel BUG in pin_pagetable_pfn(): unpin of a table never pinned")

    @property
    def bugs(self) -> list[Bug]:
        """Bugs of this generation that the stages run into without giving up."""
        done = {result.name: result.cost for result in self.results}
        setup = done.get(Stage.MEMORY_SETUP.value)
        memory_ops = None if setup is None else setup.by_type["memory_op"]
        return bugs_met(Seen(self.state, self.cleanup, memory_ops))

    @property
    def faults(self) -> list[Outcome]:
        """What came of each fault so far, those of the builder's memory first."""
        return self._faults.outcomes(self.state, self.panic)

    @property
    def beyond(self) -> list[dict[str, Any]]:
        """Limits that the domain passes: those of its plan, and the profile's own limit of use."""
        passed = list(self.domain.plan.beyond)
        limit = self.state.page_limit
        if limit < MAXMEM_PAGES and self.state.nr_pages > limit:  # the plan speaks of MAXMEM
            text = f"pages of a domain that Linux {self.rules.name} uses"
            source = "Linux: xen_memory_setup() in arch/x86/xen/setup.c"
            passed.append({"limit": text, "value": limit, "source": source})
        return passed

    def _in_holes(self) -> dict[str, tuple[int, int]]:
        """What is in use at the entry, by name: bytes [start, end) that are not all in one RAM
        entry, and at which this Linux does not look.
        """
        if not self.state.e820:
            return {}
        entry = initial_state(self.domain, self.rules)
        pt_start, pt_end = entry.pt_pfns
        first, end = entry.initial_list.pfns
        used = {
            "kernel": (entry.paddr(entry.text), entry.paddr(entry.brk_end)),
            "page tables": (pt_start << PAGE_SHIFT, pt_end << PAGE_SHIFT),
            "P->M list": (first << PAGE_SHIFT, end << PAGE_SHIFT),
            "initrd": entry.initrd,
        }
        unseen = set(used)
        if self.rules.check_conflicts:  # SPEC H15: perhaps not at all of the kernel
            unseen = set() if self.rules.check_brk else {"kernel"}
        return {
            name: span
            for name, span in used.items()
            if span is not None and name in unseen and not in_one_ram_entry(self.state.e820, *span)
        }

    @property
    def moves(self) -> dict[str, Any]:
        """What the map's holes make Linux move, and the area of its own P->M list.

        Frames are pfns [first, end), bytes where the key says so; None before the stage that tells.
        """
        done = {result.name for result in self.results}
        entry, now = initial_state(self.domain, self.rules), self.state
        listed = Stage.P2M_COPIED.value in done
        found: dict[str, Any] = dict.fromkeys(("remapped_pages", "list_to", "initrd_to_bytes"))
        if Stage.MEMORY_SETUP.value in done:
            found["remapped_pages"] = sum(remap.nr for remap in now.remaps)
            if now.initial_list.pfns != entry.initial_list.pfns:
                found["list_to"] = list(now.initial_list.pfns)
            if now.initrd is not None and now.initrd != entry.initrd:
                found["initrd_to_bytes"] = list(now.initrd)
        return found | {"list_area_bytes": 8 * now.max_p2m_pfn if listed else None}

    @cached_property
    def variants(self) -> dict[str, Cleanup]:
        """The cleanup of the same list with other leaves, by largest leaf: "1g", "2m", "4k"."""
        if not self.state.list_outside:
            return {}
        found = {}
        moved = self.state.initial_list.vaddr != self.domain.plan.mfn_list
        for other in with_other_leaves(self.domain):
            leaf = other.plan.host.superpages
            if moved and self.cleanup is not None:  # Linux's own copy has 4 KiB pages alone
                found[leaf] = self.cleanup
            else:
                found[leaf] = free_initial_p2m(self.domain, rules=self.rules, mapping=other.p2m_map)
        return found

    def as_dict(self) -> dict[str, Any]:
        """The `boot` JSON object."""
        cleanup = None
        if self.cleanup is not None:
            others = {leaf: variant.as_dict() for leaf, variant in self.variants.items()}
            cleanup = self.cleanup.as_dict() | {"variants": others}
        plan = self.domain.plan.as_dict()
        return {
            "verdict": self.verdict,
            "panic": self.panic,
            "not_modelled": self.not_modelled,
            "plan": plan,
            "stages": [result.as_dict() for result in self.results],
            "cleanup": cleanup,
            "memblock": {
                point: memblock.as_dict() if (memblock := self._memblock.get(point)) else None
                for point in ("setup", "cleanup")
            },
            "checked": self.checked,
            "moves": self.moves,
            "beyond": self.beyond,
            "warnings": [bug.as_dict() for bug in self.bugs],
            "faults": [outcome.as_dict() for outcome in self.faults],
        }


def free_initial_p2m(
    domain: Domain, *, rules: LinuxRules = MAINLINE, mapping: Mapping | None = None
) -> Cleanup:
    """The cleanup alone, without the stages before it, of this or of another mapping of the list.

    It also says what a list costs that Linux would never come to free: one that crosses its L4
    slot, or lies in slot 0.

    :raises LinuxPanic: a generation that knows of no list outside; tables where it has none mapped
    :raises UsageError: as initial_state; a guest that frees no list
    """
    hc = Hypercalls()
    state = initial_state(domain, rules)
    if state.bits == 32 or rules.auto_translated:
        kind = "32-bit" if state.bits == 32 else "auto-translated"
        raise UsageError(f"there is nothing to free: a {kind} guest {_KEEPS[kind]}")
    if mapping is not None:
        return free_list(
            replace(state, initial_list=replace(state.initial_list, mapping=mapping)), hc
        )[1]
    state, _ = setup_kernel_pagetable(state, Hypercalls())
    return p2m_free(cleanup_highmap(state, hc.aside()), hc)[1]


def _dies_in(state: BootState) -> Stage | None:
    """Stage whose first access to the P->M list or start_info faults, or None (SPEC F2e, I13).

    Linux copies one L4 entry, and never that of slot 0 or of its own slot 511 (v4.1 copies none).
    Once its own tables are loaded it reads no entry behind that slot; in the direct map it reads
    those of all pages, the highest first. start_info is read for each of these pages: in a hole it
    is no longer mapped.
    """
    start_info = state.pfn(int(state.domain.plan.start_info[0]))
    hidden = not state.rules.map_holes_identity and start_info <= state.max_pfn_mapped
    if state.linux_e820 and hidden and state.identity.meets(start_info, start_info + 1):
        return Stage.INIT_MEM_MAPPING
    if state.domain.p2m_map is None:
        return None
    start = int(state.domain.plan.mfn_list)
    reachable = (L4_SIZE - start % L4_SIZE) // 8
    copied = state.rules.graft_initial_p2m and copies_l4_entry(start)
    if not copied or reachable < state.pt_pfns[1]:
        return Stage.SETUP_KERNEL_PAGETABLE
    return Stage.INIT_MEM_MAPPING if reachable < state.nr_pages else None
