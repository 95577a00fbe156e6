# SPDX-License-Identifier: GPL-2.0-or-later
"""`Boot`: Linux's early boot of a domain, stage by stage, with the exact cost of each.

Modelled is what the named stages do to page tables, frames and memblock. Hypercalls between them
(console output, early_ioremap, cleanup_highmap, trap and callback setup) are in no stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from xenpt.abi import ENTRIES, PAGE_SHIFT, PAGE_SIZE, START_KERNEL_MAP, pfn_up, table_slot
from xenpt.cost import Cost
from xenpt.errors import PanicError, UsageError
from xenpt.extents import Mapping
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.bugs import Bug, Seen, bugs_met
from xenpt.linux.cleanup import Cleanup, free_list, p2m_free
from xenpt.linux.e820 import end_of_ram, in_one_ram_entry
from xenpt.linux.memblock import Memblock
from xenpt.linux.pagetable import cleanup_highmap, setup_kernel_pagetable
from xenpt.linux.rules import MAINLINE, LinuxRules
from xenpt.linux.setup import MAXMEM_PAGES
from xenpt.linux.stages import STAGES, Stage
from xenpt.linux.state import DOM0_DIES, RELOCATED_VADDR, BootState, InitialList, LinuxPanic
from xenpt.linux.work import Work, stage_work
from xenpt.shown import Shown
from xenpt.xen.dom0 import Domain, setup_pv_physmap
from xenpt.xen.hypercalls import Call, Hypercalls

LEAF_SIZES = ("1g", "2m", "4k")


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

    :ivar state: as the last stage left it
    :ivar results: the stages that were run
    :ivar panic: text of whoever gave up, or None
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
    ) -> None:
        self.domain, self.rules, self.record = domain, rules, record
        self.state = initial_state(domain, rules, e820=e820, max_reservation=max_reservation)
        self.results: list[StageResult] = []
        self.panic: str | None = None
        self.cleanup: Cleanup | None = None
        self._memblock: dict[str, Memblock] = {}

    @property
    def verdict(self) -> str:
        """ "boots" or "panics"."""
        return "panics" if self.panic else "boots"

    @property
    def cost(self) -> Cost:
        """All stages that were run, together."""
        return sum((result.cost for result in self.results), Cost())

    def run(self) -> "Boot":
        """Run all stages that have not run yet; stop where Linux gives up. Returns itself."""
        return self.run_to(Stage.REMAP_MEMORY)

    def run_to(self, stage: Stage) -> "Boot":
        """Run up to and including `stage`, if that has not run yet. Returns itself."""
        names = list(STAGES)
        for name in names[len(self.results) : names.index(stage) + 1]:
            if self.panic:
                break
            try:
                self._run(name)
            except LinuxPanic as panic:
                self.panic = str(panic)
        return self

    def _run(self, stage: Stage) -> None:
        if stage is _dies_in(self.state):
            raise LinuxPanic(DOM0_DIES)
        self._check_unpin(stage)
        hc = Hypercalls(record=self.record)
        self.state, outcome = STAGES[stage](self.state, hc)
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
    def beyond(self) -> list[dict[str, Any]]:
        """Limits that the domain passes: those of its plan, and the profile's own limit of use."""
        passed = list(self.domain.plan.beyond)
        limit = self.state.page_limit
        if limit < MAXMEM_PAGES and self.state.nr_pages > limit:  # the plan speaks of MAXMEM
            text = f"pages of a domain that Linux {self.rules.name} uses"
            source = "Linux: xen_memory_setup() in arch/x86/xen/setup.c"
            passed.append({"limit": text, "value": limit, "source": source})
        return passed + self._unseen_conflicts()

    def _unseen_conflicts(self) -> list[dict[str, Any]]:
        """What lies in E820 holes and is overwritten there by a Linux without checks (SPEC H3)."""
        entry = initial_state(self.domain, self.rules)
        if self.rules.check_conflicts or not self.state.e820:
            return []
        used = {
            "kernel": (entry.text - START_KERNEL_MAP, entry.brk_end - START_KERNEL_MAP),
            "page tables": tuple(pfn << PAGE_SHIFT for pfn in entry.pt_pfns),
            "P->M list": tuple(pfn << PAGE_SHIFT for pfn in entry.initial_list.pfns),
            "initrd": entry.initrd,
        }
        source = f"Linux {self.rules.name}: xen_set_identity_and_remap() overwrites frames in holes"
        return [
            {
                "limit": f"end of RAM for the {name}",
                "value": end_of_ram(self.state.e820, span[0]),
                "source": source,
            }
            for name, span in used.items()
            if span is not None and not in_one_ram_entry(self.state.e820, *span)
        ]

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
        plan = self.domain.plan
        if not self.state.list_outside:
            return {}
        found = {}
        moved = self.state.initial_list.vaddr != plan.mfn_list
        for leaf in LEAF_SIZES:
            if leaf == plan.host.superpages:
                continue
            if moved and self.cleanup is not None:  # Linux's own copy has 4 KiB pages alone
                found[leaf] = self.cleanup
                continue
            mapping = setup_pv_physmap(
                replace(plan, host=replace(plan.host, superpages=leaf)), self.domain.initial
            )
            found[leaf] = free_initial_p2m(self.domain, rules=self.rules, mapping=mapping)
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
            "plan": plan,
            "stages": [result.as_dict() for result in self.results],
            "cleanup": cleanup,
            "memblock": {
                point: memblock.as_dict() if (memblock := self._memblock.get(point)) else None
                for point in ("setup", "cleanup")
            },
            "moves": self.moves,
            "beyond": self.beyond,
            "warnings": [bug.as_dict() for bug in self.bugs],
        }


def initial_state(
    domain: Domain,
    rules: LinuxRules,
    *,
    e820: Sequence[E820Entry] | None = None,
    max_reservation: int | None = None,
) -> BootState:
    """What Linux finds at its entry.

    :raises PanicError: the plan has no domain
    :raises UsageError: a kernel that is not where 64-bit Linux is
    """
    plan = domain.plan
    if plan.panic:
        raise PanicError(plan.panic)
    if plan.image.bits != 64 or plan.total[0] < START_KERNEL_MAP:
        raise UsageError(
            f"Linux {rules.name} is modelled as a 64-bit kernel from {START_KERNEL_MAP:x} on; "
            f"this kernel has {plan.image.bits} bits and is mapped from {plan.total[0]:x} on"
        )
    limit = plan.max_pages if max_reservation is None else max_reservation
    return BootState(
        domain, rules, tuple(e820 or ()), limit, _initial_list(domain), _initrd(domain)
    )


def _initial_list(domain: Domain) -> InitialList:
    plan = domain.plan
    vaddr = int(plan.mfn_list)
    first, nr = plan.first_p2m_pfn, plan.nr_p2m_frames
    if domain.p2m_map is None:
        first, nr = BootState.pfn(vaddr), pfn_up(8 * plan.nr_pages)
    return InitialList(vaddr, domain.p2m_map, (int(first), int(first) + int(nr)))


def _initrd(domain: Domain) -> tuple[int, int] | None:
    plan = domain.plan
    if not plan.mod_len:
        return None
    start = plan.mod_start if plan.initrd is None else BootState.pfn(plan.mod_start)
    return start << PAGE_SHIFT, (start << PAGE_SHIFT) + int(plan.mod_len)


def free_initial_p2m(
    domain: Domain, *, rules: LinuxRules = MAINLINE, mapping: Mapping | None = None
) -> Cleanup:
    """The cleanup alone, without the stages before it, of this or of another mapping of the list.

    It also says what a list costs that Linux would never come to free: one that crosses its L4
    slot, or lies in slot 0.
    """
    hc = Hypercalls()
    state = initial_state(domain, rules)
    if mapping is not None:
        return free_list(
            replace(state, initial_list=replace(state.initial_list, mapping=mapping)), hc
        )[1]
    state, _ = setup_kernel_pagetable(state, Hypercalls())
    return p2m_free(cleanup_highmap(state), hc)[1]


def _dies_in(state: BootState) -> Stage | None:
    """Stage whose first access to the P->M list faults, or None (SPEC F2e, I13).

    Linux copies one L4 entry, and never that of slot 0 (v4.1 copies none). Once its own tables are
    loaded it reads no entry behind that slot; in the direct map it reads those of all pages, the
    highest first.
    """
    if state.domain.p2m_map is None:
        return None
    start = int(state.domain.plan.mfn_list)
    slot_bytes = PAGE_SIZE * ENTRIES**3
    reachable = (slot_bytes - start % slot_bytes) // 8
    copied = state.rules.graft_initial_p2m and table_slot(start, 4) > 0
    if not copied or reachable < state.pt_pfns[1]:
        return Stage.SETUP_KERNEL_PAGETABLE
    return Stage.INIT_MEM_MAPPING if reachable < state.nr_pages else None
