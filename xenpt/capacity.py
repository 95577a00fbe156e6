# SPDX-License-Identifier: GPL-2.0-or-later
"""`capacity`: where every page of a host goes, what is left for guests, and what limits it.

Frame table, M2P and dom0's size are counted as Xen's boot does; what dom0 itself holds, by booting
it. What others state is a rule and named as one (`xenpt/vendors.py`). The rows of a budget add up
to the host's RAM, page for page.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from xenpt.abi import PAGE_SHIFT
from xenpt.budget import Inside, Row, inside
from xenpt.dom0size import HostMemory, host_memory
from xenpt.domueras import OLDEST
from xenpt.domuplan import plan_domu
from xenpt.eras import Era, era_of
from xenpt.errors import UsageError
from xenpt.inputs.config import USABLE, Host, Ram
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.limits import Limit, guest_limits, host_limits, xen_frames
from xenpt.linux import MAINLINE, LinuxRules
from xenpt.plan import Plan, plan_dom0
from xenpt.shown import Shown
from xenpt.units import MIB_PAGES, TIB_PAGES, format_pages, pages
from xenpt.vendors import (
    DOM0_RULES,
    GUEST_RULES,
    KINDS,
    Dom0Rule,
    GuestNeed,
    libxl_need,
)

DEFAULT_RULE: Final = "xenserver"
_OPTIONAL: Final = frozenset({"ignored", "pools", "slack"})  # rows that are left out where empty


@dataclass(frozen=True, slots=True)
class GuestGroup:
    """Guests that are alike.

    :ivar nr_pages: memory of each
    :ivar kind: "pv", "pvh" or "hvm", the latter two with hardware-assisted paging
    :ivar vcpus: of each
    """

    number: int
    nr_pages: int
    kind: str = "pvh"
    vcpus: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"guest type {self.kind!r}: expected {', '.join(KINDS)}")
        if min(self.number, self.nr_pages, self.vcpus) < 1:
            raise UsageError("guests: at least one, of one page and one vCPU")


def parse_guests(text: str, kind: str, vcpus: int) -> GuestGroup:
    """A group of guests as users write it: `5x2T`, or `2T` for one.

    :raises UsageError: no such text, or a size without meaning
    """
    found = re.fullmatch(r"\s*(?:([0-9]{1,9})\s*[xX*]\s*)?([0-9].*)", text)
    if not found:
        raise UsageError(f"guests {text!r}: expected something like 5x2T")
    return GuestGroup(int(found[1] or 1), pages(found[2]), kind, vcpus)


@dataclass(frozen=True)
class Capacity(Shown):
    """The budget of one host; made by `capacity`.

    `rows` are what a stacked bar shows, from the bottom: "ignored" (RAM that Xen does not use, only
    where there is any), "frame_table", "m2p", "xen", "dom0"; "guests", "pools" and "slack" of all
    groups of guests together, where there are any; "left", which is negative where they do not
    fit. Their sum is `nr_pages` at any size.

    :ivar host: as given
    :ivar nr_pages: RAM of the machine; `end_frame`: where it ends
    :ivar memory: what Xen keeps of the RAM that it uses
    :ivar dom0: its plan; Xen may give up
    :ivar dom0_rule: the vendor's rule that sized it, or None if dom0_mem was given
    :ivar rules: of the Linux in dom0 and in PV guests
    """

    host: Host
    nr_pages: int
    end_frame: int
    memory: HostMemory
    dom0: Plan
    dom0_rule: Dom0Rule | None
    rules: LinuxRules
    guests: tuple[GuestGroup, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The budget; see above."""
        rows = [row for row in (*self._host_rows(), *self._guest_rows()) if self._shown(row)]
        left = self.nr_pages - sum(row.pages for row in rows)
        return (*rows, Row("left", "left for more guests", left, "rest", ""))

    @staticmethod
    def _shown(row: Row) -> bool:
        return row.pages != 0 or row.name not in _OPTIONAL

    def _host_rows(self) -> list[Row]:
        memory = self.memory
        ignored = self.nr_pages - memory.ram
        entry = 48 if self.host.bigmem else 32
        rule = self.dom0_rule
        tag, source = ("rule", rule.name) if rule else ("counted", "dom0_compute_nr_pages()")
        return [
            Row("ignored", "RAM that Xen does not use", ignored, "counted", "setup_max_pdx()"),
            Row("frame_table", f"frame table, {entry} B a page", memory.frame_table, "counted",
                "init_frametable()"),
            Row("m2p", "M2P table, 8 B a page", memory.m2p, "counted", "paging_init()"),
            Row("xen", "Xen's image, heap, tables", memory.xen, "measured", "4.17.7, 1 CPU"),
            Row("dom0", "dom0", self.dom0.nr_pages, tag, source),
        ]  # fmt: skip

    def _guest_rows(self) -> list[Row]:
        if not self.guests:
            return []
        needs = [(group.number, group.nr_pages, self.need(group)) for group in self.guests]
        memory = sum(number * nr_pages for number, nr_pages, _ in needs)
        pools = sum(number * need.pool for number, _, need in needs)
        slack = sum(number * need.slack for number, _, need in needs)
        return [
            Row("guests", "memory of the guests", memory, "given", ""),
            Row("pools", "their paging pools", pools, "rule", "libxl, shadow_memkb"),
            Row("slack", "slack for Xen's structures", slack, "rule", "libxl, EXTRA_MEMORY"),
        ]

    @property
    def left(self) -> int:
        """Pages left; negative if dom0 and guests do not fit."""
        return self.rows[-1].pages

    @property
    def overhead(self) -> int:
        """Pages that are neither guests' memory nor left."""
        memory = sum(group.number * group.nr_pages for group in self.guests)
        return self.nr_pages - memory - self.left

    @property
    def fits(self) -> bool:
        """Dom0 is built and boots, and there is room for all guests."""
        return self.inside is not None and self.left >= 0

    def need(self, group: GuestGroup) -> GuestNeed:
        """What libxl takes and asks for, for each guest of a group."""
        return libxl_need(group.nr_pages, group.kind, group.vcpus, self.era)

    def room(self, group: GuestGroup) -> int:
        """How many more guests like these fit."""
        need = self.need(group)
        return max(0, self.left) // (group.nr_pages + need.pool + need.slack)

    def largest_guest(self, pages: int, like: GuestGroup) -> int:
        """Memory of the largest guest of that kind that so many pages are enough for; 0 if none."""
        low, high = 0, max(0, pages) + 1
        while high - low > 1:
            middle = (low + high) // 2
            need = libxl_need(middle, like.kind, like.vcpus, self.era)
            fits = middle + need.pool + need.slack <= pages
            low, high = (middle, high) if fits else (low, middle)
        return low

    @property
    def era(self) -> Era:
        """What this release of Xen does."""
        return era_of(self.host.xen)

    @cached_property
    def inside(self) -> Inside | None:
        """What dom0 itself holds, counted; None if it is not built or does not boot."""
        return inside(self.dom0, self.rules)

    def kinds(self, group: GuestGroup) -> list["KindCost"]:
        """What one guest of this size costs as PV, PVH and HVM."""
        own = None
        if self.era.version >= OLDEST:
            builder = Host(xen=self.host.xen, superpages="4k")
            plan = plan_domu(self.dom0.image, builder, nr_pages=group.nr_pages)
            own = inside(plan, self.rules)
        needs = {kind: self.need(replace(group, kind=kind)) for kind in KINDS}
        return [KindCost(kind, needs[kind], own if kind == "pv" else None) for kind in KINDS]

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """All limits that host and guests were held against."""
        found = list(host_limits(self.host, self.era, self.nr_pages, self.end_frame))
        for group in self.guests:
            found += guest_limits(group.nr_pages, group.kind, self.era, self.rules)
        return tuple(dict.fromkeys(found))

    @property
    def beyond(self) -> list[dict[str, Any]]:
        """Limits of the real thing that host, guests or dom0 pass."""
        passed = [limit.as_dict() for limit in self.limits if limit.passed]
        dom0 = self.inside.beyond if self.inside else self.dom0.beyond
        return [*passed, *(limit for limit in dom0 if limit not in passed)]

    @cached_property
    def next_tib(self) -> dict[str, int]:
        """Where one more TiB of RAM goes: pages by name of row, 2**28 in all; no more guests."""
        if self.host.e820 is None:
            larger = replace(self.host, memory=self.nr_pages + TIB_PAGES)
        else:
            larger = replace(self.host, e820=_grown(self.host.e820))
        more = capacity(
            larger,
            kernel=self.dom0.image,
            dom0_mem=None if self.dom0_rule else self.dom0.guest.dom0_mem,
            dom0_rule=self.dom0_rule.name if self.dom0_rule else None,
            rules=self.rules,
            guests=self.guests,
        )
        before = {row.name: row.pages for row in self.rows}
        return {row.name: row.pages - before.get(row.name, 0) for row in more.rows}

    def as_dict(self) -> dict[str, Any]:
        """The budget as JSON-ready data."""
        return {
            "fits": self.fits,
            "nr_pages": self.nr_pages,
            "xen": self.host.xen,
            "bigmem": self.host.bigmem,
            "rows": [row.as_dict() for row in self.rows],
            "left": self.left,
            "dom0": {
                "nr_pages": self.dom0.nr_pages,
                "dom0_mem": self.dom0.guest.dom0_mem,
                "rule": self.dom0_rule.as_dict() if self.dom0_rule else None,
                "panic": self.dom0.panic,
                "inside": self.inside.as_dict() if self.inside else None,
            },
            "guests": [self._group_as_dict(group) for group in self.guests],
            "next_tib": self.next_tib,
            "limits": [
                {**limit.as_dict(), "size": limit.size, "passed": limit.passed}
                for limit in self.limits
            ],
            "beyond": self.beyond,
        }

    def _group_as_dict(self, group: GuestGroup) -> dict[str, Any]:
        return {
            "number": group.number,
            "nr_pages": group.nr_pages,
            "type": group.kind,
            "vcpus": group.vcpus,
            "room": self.room(group),
            "largest_more": self.largest_guest(self.left, group),
            "largest_of_next_tib": self.largest_guest(self.next_tib["left"], group),
            "as": {cost.kind: cost.as_dict() for cost in self.kinds(group)},
            "rules": {
                rule.name: rule.overhead_mib(group.nr_pages // MIB_PAGES, group.vcpus, group.kind)
                for rule in GUEST_RULES
            },
        }


@dataclass(frozen=True, slots=True)
class KindCost:
    """What one guest costs as one kind.

    :ivar need: of the host, besides its memory
    :ivar inside: a PV guest's own memory, counted; None for others, if it does not boot, and of a
        toolstack that is not modelled
    """

    kind: str
    need: GuestNeed
    inside: Inside | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in pages."""
        return {
            "pool": self.need.pool,
            "slack": self.need.slack,
            "asked": self.need.asked,
            "pv_pages": self.inside.pv_pages if self.inside else None,
            "inside": self.inside.as_dict() if self.inside else None,
        }


def capacity(
    host: Host,
    *,
    kernel: Kernel | None = None,
    dom0_mem: str | None = None,
    dom0_rule: str | None = None,
    rules: LinuxRules = MAINLINE,
    guests: Sequence[GuestGroup] = (),
) -> Capacity:
    """The budget of a host.

    :param dom0_mem: Xen's option for dom0's size; or
    :param dom0_rule: name of the vendor's rule that sizes it, DEFAULT_RULE without either
    :param rules: the Linux in dom0 and in PV guests, whose kernel is `kernel`
    :raises UsageError: no memory of the host, or less than Xen takes; both dom0_mem and dom0_rule;
        a rule that is not known
    """
    if host.map is None:
        raise UsageError("give the host's memory: --host SIZE or --e820 FILE")
    if dom0_mem is not None and dom0_rule is not None:
        raise UsageError("give dom0_mem or a rule for dom0, not both")
    whole, used = host_memory(host.map), _used(host)
    memory = host_memory(used.map or (), bigmem=host.bigmem)
    kept = memory.frame_table + memory.m2p + memory.xen
    if memory.ram < kept:
        texts = format_pages(memory.ram), format_pages(kept)
        raise UsageError(f"a host with {texts[0]} of RAM: Xen alone takes {texts[1]}")
    rule = None
    if dom0_mem is None:
        rule = DOM0_RULES.get(dom0_rule or DEFAULT_RULE)
        if rule is None:
            raise UsageError(f"rule {dom0_rule!r}: expected {', '.join(DOM0_RULES)}")
        dom0_mem = rule.dom0_mem(whole.ram // MIB_PAGES)
    return Capacity(
        host=host,
        nr_pages=whole.ram,
        end_frame=max((ram.end for ram in host.map if ram.type == USABLE), default=0) >> PAGE_SHIFT,
        memory=memory,
        dom0=plan_dom0(kernel or default_kernel(), used, dom0_mem=dom0_mem),
        dom0_rule=rule,
        rules=rules,
        guests=tuple(guests),
    )


def _used(host: Host) -> Host:
    """The host as its Xen sees it: RAM ends where the frames do that Xen has tables for."""
    end = xen_frames(host, era_of(host.xen)) << PAGE_SHIFT
    e820 = host.map or ()
    if all(ram.end <= end for ram in e820):
        return host
    cut = tuple(replace(ram, end=min(ram.end, end)) for ram in e820 if ram.start < end)
    return replace(host, memory=None, e820=cut)


def _grown(e820: Sequence[Ram]) -> tuple[Ram, ...]:
    """The map with one TiB more behind its last RAM; entries behind that move up."""
    last = max(ram.end for ram in e820 if ram.type == USABLE)
    by = TIB_PAGES << PAGE_SHIFT
    return tuple(
        replace(ram, start=ram.start + by, end=ram.end + by)
        if ram.start >= last
        else replace(ram, end=ram.end + by)
        if ram.end == last and ram.type == USABLE
        else ram
        for ram in e820
    )
