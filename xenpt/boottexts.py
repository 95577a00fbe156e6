# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots and cleanups as reports: what was counted, and beside it the times that are modelled."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xenpt.boottime import BootTime
from xenpt.cost import Cost
from xenpt.linux import Boot, Cleanup
from xenpt.linux.streamed import StreamedBoot
from xenpt.linux.work import free_work
from xenpt.listshape import LEAVES
from xenpt.measured import IN_WORDS, walk_seconds
from xenpt.plan import Plan
from xenpt.report import BAD, GOOD, NOTE, TITLE, Line, Prose, Report, Table
from xenpt.texts import beyond_report, plan_report, warnings_report
from xenpt.timing import TimeModel
from xenpt.units import counted, format_address, format_pages, format_seconds, format_size
from xenpt.xen.dom0 import Domain

SHOWN_TYPES = ("mmu_update", "update_va_mapping", "mmuext_op")
BUILT_BY = {
    "toolstack": "4 KiB pages, as the toolstack maps it",
    "dom0": "1 GiB and 2 MiB pages, as Xen's dom0 builder maps it",
}
NEXT = "Next:  xenpt plan 600G   xenpt boot 1T   xenpt cleanup 4G   xenpt kernel VMLINUZ"


def panic_report(plan: Plan, profile: str, panic: str | None = None) -> Report:
    """Nobody builds this guest, and Linux never runs; or Linux gives up with `panic`."""
    report: Report = [
        Line(f"panics: {guest_in_words(plan, profile)}", BAD),
        Line(),
        *plan_report(plan),
    ]
    return report if panic is None else [*report, Line(), Prose(panic, BAD)]


def boot_report(
    boot: Boot, beyond: Iterable[dict[str, Any]], time: BootTime, model: TimeModel
) -> Report:
    """Verdict, the stages with what they cost, their times, and the limits that they pass."""
    plan = boot.domain.plan
    style = GOOD if boot.verdict == "boots" else BAD
    report: Report = [
        Line(f"{boot.verdict}: {guest_in_words(plan, boot.rules.name)}", style),
        Line(),
    ]
    if boot.panic:
        report += [Prose(boot.panic, BAD), Line(), *_unknown_list(boot)]
    if boot.not_modelled:
        report += [Prose(f"No verdict: {boot.not_modelled}.", BAD), Line()]
    report.append(_stage_table(boot))
    if boot.cleanup is not None:
        cost = boot.cleanup.cost
        text = (
            f"p2m_free, the initial P->M list: {_walked(cost)} entries walked, "
            f"{_made_writable(cost):,} pages made writable, {cost.pages_freed:,} pages freed by "
            f"{counted(cost.memblock_free_calls, 'call')} of memblock_free."
        )
        report += [Line(), Prose(text)]
    if boot.checked is not None and not boot.panic:
        text = (
            f"checked: {boot.checked['calls']:,} hypercalls made under Xen's rules, and "
            f"{boot.checked['words']:,} words of page tables compared behind the stages, with all "
            "types and counts: no difference."
        )
        report += [Line(), Prose(text)]
    report += _moves(boot)
    if boot.results:
        report += [Line(), Prose(f"time*: {_times(time)}")]
        report.append(Prose(f"* {model.in_words()}.", NOTE))
    for bug in boot.bugs:
        report += [Line(), Prose(f"bug {bug.id}: {bug.text}. Fix: {bug.fix}.", BAD)]
    return [*report, *warnings_report(plan), *beyond_report(beyond)]


def _unknown_list(boot: Boot) -> Report:
    """What helps a Linux that does not look for the P->M list where the kernel's note puts it."""
    if not boot.domain.plan.list_outside or boot.rules.graft_initial_p2m:
        return []
    text = (
        f"Linux {boot.rules.name} knows no P->M list outside of the initial mapping, and its own "
        "kernels have no note INIT_P2M: try --no-init-p2m."
    )
    return [Prose(text, GOOD), Line()]


def _moves(boot: Boot) -> Report:
    """What had to move out of holes of the map, and how large the area of Linux's own list is."""
    moves, texts = boot.moves, []
    if moves["list_to"]:
        texts.append("The P->M list moved to pfns {:#x} to {:#x}.".format(*moves["list_to"]))
    if moves["initrd_to_bytes"]:
        start, end = moves["initrd_to_bytes"]
        texts.append(f"The initrd moved to {start:#x} to {end:#x}.")
    if moves["remapped_pages"]:
        texts.append(f"{moves['remapped_pages']:,} pages in holes got other pfns.")
    if moves["list_area_bytes"]:
        size = format_size(moves["list_area_bytes"])
        texts.append(f"Linux's own P->M list has an area of {size}.")
    return [Prose(" ".join(texts))] if texts else []


def _times(time: BootTime) -> str:
    """Modelled times of Xen's build and of each stage, in one sentence."""
    stages = ", ".join(
        f"{name} {'never measured' if seconds is None else format_seconds(seconds)}"
        for name, seconds in time.stages.items()
    )
    whole = "" if time.linux is None else f" {format_seconds(time.linux)}"
    build = "" if time.build is None else f"Xen's build {format_seconds(time.build)}; "
    return f"{build}Linux's stages{whole}: {stages}."


def words_report(how: str, words: StreamedBoot | None, seconds: float, threads: int) -> Report:
    """What was interpreted word by word besides; None where the boot did not come so far.

    :param how: "streamed" or "packed"
    """
    if words is None:
        return [Line(), Prose(f"No entry was {how}: this boot is not seen to map its memory.")]
    parts = [part for part in (words.direct_map, words.list_mapping) if part is not None]
    text = (
        f"{how}: {sum(part.entries for part in parts):,} page-table entries of "
        f"{sum(part.tables for part in parts):,} tables built, marked and walked word by word, "
        f"equal to the extents; {seconds:.2f} s, measured on this machine, "
        f"{counted(threads, 'thread')}."
    )
    return [Line(), Prose(text)]


class Freed(NamedTuple):
    """A domain, and what freeing its list costs.

    :ivar walk_seconds: that walking its tables took us here
    :ivar seconds: modelled, of the whole cleanup
    """

    domain: Domain
    cleanup: Cleanup
    walk_seconds: float | None
    seconds: float | None

    @classmethod
    def of(cls, domain: Domain, cleanup: Cleanup, model: TimeModel) -> "Freed":
        """With the times of it."""
        seconds = model.seconds(free_work(cleanup.cost))
        return cls(domain, cleanup, walk_seconds(domain), seconds)

    @property
    def plan(self) -> Plan:
        """Of the domain."""
        return self.domain.plan

    @property
    def cost(self) -> Cost:
        """Of the cleanup."""
        return self.cleanup.cost


def cleanup_report(freed: Freed, variants: Sequence[Freed], model: TimeModel) -> Report:
    """The walk and the whole cleanup, for each largest leaf that the list may be mapped with."""
    plan = freed.plan
    columns = sorted([freed, *variants], key=lambda f: list(LEAVES).index(f.plan.host.superpages))
    names = [LEAVES[f.plan.host.superpages] + (" (this)" if f is freed else "") for f in columns]
    if not plan.list_outside:
        names = ["inside the initial mapping"]
    size = format_size(plan.p2m[1] - plan.p2m[0])
    return [
        Line(f"{guest_in_words(plan, freed.cleanup.profile)}:", TITLE),
        Prose(f"freeing its initial P->M list, {size} at {format_address(plan.p2m[0])}."),
        Line(),
        Table(("counted, by largest leaf", *names), _cost_rows(columns)),
        *_leak_report(freed.cost),
        *([Line(), *_time_notes(model)] if freed.seconds is not None else []),
        *warnings_report(plan),
        *beyond_report(plan.beyond),
    ]


def _cost_rows(columns: Sequence[Freed]) -> list[list[str]]:
    """One row for each quantity, one column for each cleanup."""
    costs = [freed.cost for freed in columns]
    rows = [["entries walked", *map(_walked, costs)]]
    for level in ("l3", "l2", "l1"):
        cells = [f"{cost.entries_read[level]:,}" for cost in costs]
        rows.append([f"  in {level.upper()} tables", *cells])
    rows += [
        ["pages made writable", *(f"{_made_writable(cost):,}" for cost in costs)],
        ["hypercalls", *(f"{cost.hypercalls:,}" for cost in costs)],
        ["calls of memblock_free", *(f"{cost.memblock_free_calls:,}" for cost in costs)],
        ["pages freed", *(f"{cost.pages_freed:,}" for cost in costs)],
        ["  of them page tables", *(f"{sum(cost.tables_freed.values()):,}" for cost in costs)],
        ["pages leaked", *(f"{cost.pages_leaked:,}" for cost in costs)],
    ]
    if any(column.seconds is not None for column in columns):
        rows.append(["walk alone, here [1]", *map(_walk_time, columns)])
        rows.append(["whole cleanup, modelled [2]", *map(_whole_time, columns)])
    return rows


def founding_report(
    without: Plan,
    boot: Boot,
    beyond: Iterable[dict[str, Any]],
    sweep: Mapping[str, Sequence[Freed]],
    time: BootTime,
    model: TimeModel,
) -> Report:
    """The question that began it: a dom0 of 600 GiB, and what freeing its list costs.

    :param beyond: limits that the boot passes
    :param sweep: by builder, one for each size
    """
    plan = boot.domain.plan
    report: Report = [
        Line(f"Can a {guest_in_words(plan, boot.rules.name)}, start?", TITLE),
        _before_and_after(without, boot),
        Line(f"  Xen, without it: {without.panic}", BAD),
        *beyond_report(beyond),
        Prose(f"time with it [2]: {_times(time)}", indent="  "),
        Line(),
        Line("With the note, as xl dmesg shows it:", TITLE),
        *(Line(text) for text in str(plan)[str(plan).index("VIRTUAL") :].splitlines()),
        Line(),
    ]
    for builder, rows in sweep.items():
        report += [Line(f"Freeing a list in {BUILT_BY[builder]}:", TITLE)]
        report += [_sweep_table(rows), Line()]
    return [*report, *_time_notes(model), Line(), Line(NEXT, NOTE)]


def _before_and_after(without: Plan, boot: Boot) -> Table:
    plans = (without, boot.domain.plan)
    rows = {
        "P->M list": [format_size(plan.p2m[1] - plan.p2m[0]) for plan in plans],
        "  lies": [_list_place(plan) for plan in plans],
        "initial mapping": [f"{(plan.total[1] - plan.total[0]) >> 20:,} MiB" for plan in plans],
        "needs in one piece": [format_pages(1 << plan.alloc_order) for plan in plans],
        "  Xen has at most": [format_pages(1 << plan.era.max_order) for plan in plans],
        "result": ["panics" if without.panic else "boots", boot.verdict],
    }
    header = ("", "without INIT_P2M", "with it (the patch)")
    return Table(header, [[name, *cells] for name, cells in rows.items()], nr_left=3)


def _list_place(plan: Plan) -> str:
    return f"at {format_address(plan.p2m[0])}" if plan.list_outside else "in the initial mapping"


def _sweep_table(rows: Sequence[Freed]) -> Table:
    return Table(
        ("memory", "list", "walked", "tables freed", "made RW", "walk [1]", "whole [2]"),
        [
            (
                format_pages(freed.plan.nr_pages),
                format_size(freed.plan.p2m[1] - freed.plan.p2m[0]),
                _walked(freed.cost),
                f"{sum(freed.cost.tables_freed.values()):,}",
                f"{_made_writable(freed.cost):,}",
                _walk_time(freed),
                _whole_time(freed),
            )
            for freed in rows
        ],
    )


def guest_in_words(plan: Plan, profile: str) -> str:
    """Who the guest is, its size, and the Linux and Xen that it is modelled with."""
    who = "dom0" if plan.guest.builder == "dom0" else "guest of the toolstack"
    return (
        f"{who} of {format_pages(plan.nr_pages)} ({plan.nr_pages:,} pages), "
        f"Linux {profile} on Xen {plan.host.xen}"
    )


def _stage_table(boot: Boot) -> Table:
    """Hypercalls of each stage and of all; memory_op and multicall are `others`."""
    costs = [(result.name, result.cost) for result in boot.results] + [("all", boot.cost)]
    return Table(
        ("stage", "hypercalls", "mmu_update", "update_va", "mmuext_op", "others"),
        [
            (
                name,
                f"{cost.hypercalls:,}",
                *(f"{cost.by_type[kind]:,}" for kind in SHOWN_TYPES),
                f"{cost.hypercalls - sum(cost.by_type[kind] for kind in SHOWN_TYPES):,}",
            )
            for name, cost in costs
        ],
    )


def _walked(cost: Cost) -> str:
    return f"{sum(cost.entries_read.values()):,}"


def _made_writable(cost: Cost) -> int:
    return cost.by_type["update_va_mapping"]


def _leak_report(cost: Cost) -> Report:
    if not cost.pages_leaked:
        return []
    return [Line(f"{cost.pages_leaked:,} pages of the list are leaked.", BAD)]


def _walk_time(freed: Freed) -> str:
    return "-" if freed.walk_seconds is None else f"{freed.walk_seconds * 1e3:.2f} ms"


def _whole_time(freed: Freed) -> str:
    return "-" if freed.seconds is None else format_seconds(freed.seconds)


def _time_notes(model: TimeModel) -> Report:
    return [
        Prose(f"[1] {IN_WORDS}.", NOTE, indent="    "),
        Prose(f"[2] {model.in_words()}. All else is counted.", NOTE, indent="    "),
    ]
