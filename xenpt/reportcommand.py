# SPDX-License-Identifier: GPL-2.0-or-later
"""`xenpt report`: the pictures of one guest, and of guests like it, on one page."""

from dataclasses import replace
from html import escape
from typing import Any, Final

from xenpt.boottexts import guest_in_words
from xenpt.capacity import Capacity, GuestGroup
from xenpt.eras import era_of
from xenpt.errors import UsageError
from xenpt.fleet import fleet
from xenpt.htmltext import as_html, table_html
from xenpt.inputs.config import Host
from xenpt.linux import Boot, LinuxRules
from xenpt.occupancy import occupancy
from xenpt.pictures.budgets import budget_picture
from xenpt.pictures.growth import growth_picture
from xenpt.pictures.heatmap import explorer, heatmap_picture
from xenpt.pictures.layouts import layout_picture
from xenpt.pictures.page import Control, Section, Variants, page
from xenpt.pictures.timeline import timeline_picture
from xenpt.plan import Plan
from xenpt.provenance import commit, cpu_model, version
from xenpt.report import Table
from xenpt.scenario import Case, case_of_plan, expand
from xenpt.stream import Progress
from xenpt.sweeprow import identity
from xenpt.sweeps import sweep
from xenpt.texts import plan_report
from xenpt.timing import TimeModel
from xenpt.units import format_pages, pages, sizes
from xenpt.xen import build

NR_SECTIONS: Final = 5
#: Sizes of the guests beside the one that was asked for.
SWEEP: Final = ("1G", "64T")
HOSTS: Final = ("256G", "512G", "1T", "2T", "4T", "8T", "12T", "16T")
LAYOUTS: Final = ("64G", "256G", "512G", "600G", "1T", "4T", "12T")
_KINDS: Final = """\
<span class="kind counted">counted</span> is exact;
<span class="kind measured">measured</span> was observed where the caption says;
<span class="kind modelled">modelled</span> follows from counts and from the caption's constants."""


class GuestPage:
    """All that the page shows.

    :ivar plan: of the guest
    :ivar guest_pages: size of the guests that fill the hosts of the capacity picture
    :ivar sections: of the page

    :param progress: called with the number of steps that are done, and that of all
    """

    def __init__(
        self,
        plan: Plan,
        rules: LinuxRules,
        model: TimeModel,
        *,
        guest_pages: int,
        progress: Progress | None = None,
    ) -> None:
        self.plan, self.rules, self.model, self.guest_pages = plan, rules, model, guest_pages
        self.case = replace(case_of_plan(plan), rules=rules)
        self._progress, self._done = progress, 0
        self.sections: list[Section] = []
        for make in (self._cleanup, self._layout, self._capacity, self._tables, self._boot):
            self.sections.append(make())
            self._step()

    def as_dict(self) -> dict[str, Any]:
        """The same as data: of each picture its caption and the numbers."""
        pictures = [
            {
                "section": section.name,
                "name": picture.name,
                "title": picture.title,
                "kinds": picture.kinds,
                "caption": picture.caption,
                "chosen": [
                    control.options[i] for control, i in zip(section.controls, choice, strict=True)
                ],
                "header": picture.table.header,
                "rows": picture.table.rows,
            }
            for section in self.sections
            for choice, picture in section.variants.items()
        ]
        return {**identity(), "cpu": cpu_model(), **self._inputs(), "pictures": pictures}

    def as_page(self) -> str:
        """The HTML file.

        :raises MissingExtraError: matplotlib is not installed
        """
        text = guest_in_words(self.plan, self.rules.name)
        introduction = (
            f"<p>{escape(text[0].upper() + text[1:])}: its page tables from the builder to the "
            "end of Linux's early boot, as <code>xenpt</code> counts them.</p>\n"
            "<details>\n<summary>Its memory in the builder's own words</summary>\n"
            f"{as_html(plan_report(self.plan))}\n</details>"
        )
        inputs = Table(("input", "value"), [(k, str(v)) for k, v in self._inputs().items()], 2)
        made_by = f"xenpt {version()}, commit {commit()}, {cpu_model()}"
        footer = (
            f"<p>{_KINDS}</p>\n<p>{escape(made_by)}.</p>\n"
            f"<details>\n<summary>What it was made from</summary>\n{table_html(inputs)}\n</details>"
        )
        size = format_pages(self.plan.nr_pages)
        title = f"Page tables of a PV guest of {size}"
        return page(title, introduction, self.sections, footer, drawn=self._step)

    def _step(self) -> None:
        """Each section is computed, and later drawn."""
        self._done += 1
        if self._progress:
            self._progress(self._done, 2 * NR_SECTIONS)

    def _inputs(self) -> dict[str, Any]:
        return {"input_hash": self.case.input_hash, **self.case.inputs}

    # --- The pictures ----------------------------------------------------------------------------

    @property
    def _any_host(self) -> Case:
        """The same guest on a host that has memory for any size."""
        case = self.case
        host = replace(case.host, memory=None, e820=None)
        guest = replace(case.guest, dom0_mem=None, nr_pages=self.plan.nr_pages)
        return replace(case, host=host, guest=guest)

    @property
    def _leaves(self) -> tuple[str, ...]:
        """Largest leaves that the list may be mapped with."""
        if self.plan.guest.builder == "toolstack" or not self.plan.list_outside:
            return (self.plan.host.superpages,)
        return ("4k", "2m", "1g")

    def _cleanup(self) -> Section:
        axes = {"p2m_leaf": self._leaves, "nr_pages": sizes(*SWEEP)}
        picture = growth_picture(sweep(expand(self._any_host, axes), model=self.model))
        return Section("cleanup", picture.title, {(): picture})

    def _layout(self) -> Section:
        wanted = sorted({*map(pages, LAYOUTS), self.plan.nr_pages})
        here = wanted.index(self.plan.nr_pages)
        cases = expand(self._any_host, {"nr_pages": wanted})
        variants: Variants = {(i,): layout_picture(case.plan()) for i, case in enumerate(cases)}
        variants[here,] = layout_picture(self.plan)
        names = tuple(map(format_pages, wanted))
        control = Control("Memory of the guest", names, slider=True, first=here)
        title = "Memory layout" + " without and with INIT_P2M" * self.plan.list_outside
        return Section("layout", title, variants, (control,))

    def _capacity(self) -> Section:
        builds = (False, True)[: 1 + era_of(self.plan.host.xen).has_bigmem]
        variants: Variants = {
            (i, k): budget_picture(self._budgets(kind, bigmem=bigmem))
            for i, kind in enumerate(("pvh", "pv"))
            for k, bigmem in enumerate(builds)
        }
        controls = (
            Control("Guests", ("PVH", "PV")),
            Control("Xen", ("as usual", "with BIGMEM")[: len(builds)]),
        )
        return Section("capacity", variants[0, 0].title, variants, controls)

    def _budgets(self, kind: str, *, bigmem: bool) -> list[Capacity]:
        """Hosts by size, each with as many guests as fit."""
        plan = self.plan
        guests = GuestGroup(1, self.guest_pages, kind)
        sizes_of_hosts = {*map(pages, HOSTS), *([plan.host.memory] if plan.host.memory else [])}
        hosts = [
            Host(xen=plan.host.xen, memory=nr_pages, bigmem=bigmem)
            for nr_pages in sorted(sizes_of_hosts)
        ]
        found = fleet(hosts, [guests], [(None, None)], kernel=plan.image, rules=self.rules)
        return [option.full for option in found]

    def _tables(self) -> Section:
        title = "Page tables before and after the free of the list"
        plans = {"as built": self.plan}
        if self.plan.p2m_leaves["4k"] < self.plan.nr_p2m_frames and "4k" in self._leaves:
            small = replace(self.case, host=replace(self.case.host, superpages="4k"))
            plans["in 4 KiB pages only"] = small.plan()
        try:
            found = [occupancy(_booted(plan, self.rules)) for plan in plans.values()]
        except UsageError as error:
            return Section("tables", title, {}, note=_sentence(error))
        return Section(
            "tables",
            title,
            {(i,): heatmap_picture(one) for i, one in enumerate(found)},
            (Control("The P->M list", tuple(plans)),),
            {(i,): explorer(one) for i, one in enumerate(found)},
        )

    def _boot(self) -> Section:
        title = "Stages of the boot"
        try:
            picture = timeline_picture(_booted(self.plan, self.rules), self.model)
            return Section("boot", title, {(): picture})
        except UsageError as error:
            return Section("boot", title, {}, note=_sentence(error))


def _sentence(error: UsageError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."


def _booted(plan: Plan, rules: LinuxRules) -> Boot:
    """:raises UsageError: the builder gives up."""
    if plan.panic:
        raise UsageError(f"the guest does not boot: {plan.panic}")
    return Boot(build(plan), rules=rules, e820=plan.host.map, check=False).run()
