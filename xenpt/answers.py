# SPDX-License-Identifier: GPL-2.0-or-later
"""What each command does: options of the command line -> an answer, as data and as a report."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any

from xenpt import capacitycommand, sweepcommand
from xenpt.asked import asked_kernel, asked_model, asked_plan, asked_rules, kernel_of_file
from xenpt.boottexts import (
    BUILT_BY,
    Freed,
    boot_report,
    cleanup_report,
    founding_report,
    panic_report,
    words_report,
)
from xenpt.boottime import BootTime, BootWork
from xenpt.builderfaults import builder_outcomes
from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.faultoptions import (
    faults_of,
    with_lost_pages,
    without_pages,
)
from xenpt.faults import Fault, Outcome
from xenpt.filesbeside import Files, boot_files, plot
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.linux import SEED, Boot, Cleanup, LinuxRules, free_initial_p2m
from xenpt.linux.state import LinuxPanic
from xenpt.linux.streamed import pack_boot, stream_boot
from xenpt.pictures.budgets import budget_picture
from xenpt.pictures.growth import growth_picture
from xenpt.pictures.layouts import layout_picture
from xenpt.pictures.picture import require_matplotlib
from xenpt.plan import Plan, plan_dom0
from xenpt.provenance import cpu_model
from xenpt.report import Report, progress_bar
from xenpt.reportcommand import GuestPage
from xenpt.scenario import BUILDER_LEAVES
from xenpt.sweeprow import identity
from xenpt.sweeptexts import sweep_report
from xenpt.texts import faults_report, kernel_report, plan_report
from xenpt.timing import TimeModel
from xenpt.units import pages
from xenpt.xen import build
from xenpt.xen.dom0 import Domain, with_other_leaves

YES, NO, UNANSWERED = 0, 1, 2  # exit statuses
BOOT_STATUS = {"boots": YES, "panics": NO, "unknown": UNANSWERED}
FOUNDING_SIZE = "600G"
MAX_THREADS = 256
SWEEP_SIZES = ("64G", "512G", "600G", "1T", "4T", "12T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found out.

    :ivar data: its JSON object
    :ivar report: the same for people
    :ivar status: exit status, YES, NO or UNANSWERED
    :ivar contents: the output itself, in a format that only this command has
    :ivar written: to be called when the output is complete
    :ivar files: what else the options ask for: contents by name, made when they are written
    """

    data: dict[str, Any]
    report: Report
    status: int = YES
    contents: str | bytes | None = None
    written: Callable[[], None] = lambda: None
    files: Files = field(default_factory=dict)


def kernel(options: Namespace) -> Answer:
    """`xenpt kernel FILE`: what the kernel asks of Xen."""
    found = kernel_of_file(options.file, options.system_map)
    name = options.file or "the shipped default"
    return Answer(found.as_dict(), kernel_report(found, name))


def plan(options: Namespace) -> Answer:
    """`xenpt plan MEMORY`: where everything will be."""
    found = asked_plan(options)
    outcomes = builder_outcomes(found)
    data = found.as_dict() | _faults(outcomes)
    report = plan_report(found) + faults_report(outcomes)
    files = plot(options, lambda: layout_picture(found))
    return Answer(data, report, NO if found.panic else YES, files=files)


def boot(options: Namespace) -> Answer:
    """`xenpt boot MEMORY`: does it boot, through which stages, at what cost?"""
    if not 1 <= options.threads <= MAX_THREADS:
        raise UsageError(f"--threads {options.threads}: expected 1 to {MAX_THREADS}")
    if options.threads > 1 and options.engine != "stream":
        raise UsageError("--threads: only with --engine stream")
    rules, faults, model = asked_rules(options), faults_of(options), asked_model(options)
    planned = asked_plan(options)
    if planned.panic:
        outcomes = _outcomes_without_boot(planned, faults)
        report = panic_report(planned, rules.name) + faults_report(outcomes)
        data = _panicked_boot(planned, outcomes) | {"modelled": model.as_dict()}
        return Answer(data, report, NO, files=boot_files(options, planned, model))
    domain = build(planned)
    booted = Boot(
        domain, rules=rules, e820=planned.host.map, check=options.check, faults=faults
    ).run()
    time = BootTime.of(BootWork.of(booted), model)
    data = booted.as_dict() | {"modelled": model.as_dict()}
    time.put_into(data)
    if data["cleanup"] is not None:
        data["cleanup"] |= _chosen(planned)
    report = boot_report(booted, data["beyond"], time, model) + faults_report(booted.faults)
    if options.engine != "extents":
        begin = perf_counter()
        if options.engine == "packed":
            key, words = "packed", pack_boot(booted)
        else:
            with progress_bar("direct map", quiet=options.quiet) as progress:
                key, words = (
                    "streamed",
                    stream_boot(booted, threads=options.threads, progress=progress),
                )
        data[key] = None if words is None else asdict(words)
        report += words_report(key, words, perf_counter() - begin, options.threads)
    files = boot_files(options, booted, model)
    return Answer(data, report, BOOT_STATUS[booted.verdict], files=files)


def cleanup(options: Namespace) -> Answer:
    """`xenpt cleanup MEMORY`: what does freeing the initial P->M list cost?"""
    rules, faults, model = asked_rules(options), faults_of(options), asked_model(options)
    planned = asked_plan(options)
    outcomes = builder_outcomes(planned)
    if planned.panic:
        outcomes = _outcomes_without_boot(planned, faults)
        data = _no_cleanup(planned, rules, planned.panic, model) | _faults(outcomes)
        report = panic_report(planned, rules.name) + faults_report(outcomes)
        return Answer(data, report, NO)
    try:
        freed = _freed(planned, rules, model)
        mapping = without_pages(freed.domain, faults)
        if mapping is not None:
            walked = free_initial_p2m(freed.domain, rules=rules, mapping=mapping)
            found, lost = with_lost_pages(walked, freed.cleanup, faults)
            outcomes += lost
            freed = Freed.of(freed.domain, found, model)
    except LinuxPanic as panic:
        data = _no_cleanup(planned, rules, str(panic), model)
        return Answer(data, panic_report(planned, rules.name, str(panic)), NO)
    variants = list(_variants(freed.domain, rules, model))
    data = {
        **freed.cleanup.as_dict(),
        **_chosen(planned),
        "panic": None,
        "seconds_modelled": freed.seconds,
        "variants": {
            v.plan.host.superpages: v.cleanup.as_dict() | {"seconds_modelled": v.seconds}
            for v in variants
        },
        "modelled": model.as_dict(),
        **_faults(outcomes),
    }
    return Answer(data, cleanup_report(freed, variants, model) + faults_report(outcomes))


def _faults(outcomes: list[Outcome]) -> dict[str, Any]:
    """The key `faults` of an object that has it only where there are any."""
    return {"faults": [outcome.as_dict() for outcome in outcomes]} if outcomes else {}


def _outcomes_without_boot(planned: Plan, faults: Sequence[Fault]) -> list[Outcome]:
    """What came of the faults of a guest that is not built."""
    found = builder_outcomes(planned)
    of_host = {outcome.fault for outcome in found}
    rest = [Outcome.none(f, "the guest is not built") for f in faults if f not in of_host]
    return [*found, *rest]


def _no_cleanup(planned: Plan, rules: LinuxRules, panic: str, model: TimeModel) -> dict[str, Any]:
    """The `cleanup` object where there is none: every key, nothing counted."""
    keys = [*Cleanup.of_nothing(rules.name).as_dict(), "seconds_modelled", "variants"]
    known = {"profile": rules.name, **_chosen(planned), "panic": panic}
    return dict.fromkeys(keys) | known | {"modelled": model.as_dict()}


def sweep(options: Namespace) -> Answer:
    """`xenpt sweep`: how do the costs grow with memory?"""
    form = sweepcommand.chosen_format(options)
    options.json = form == "json"
    model = asked_model(options)
    found = sweepcommand.run(options, model)
    data = {
        **identity(),
        "cpu": cpu_model(),
        "rows": list(found.rows),
        "growth": found.growth(),
        "modelled": model.as_dict(),
    }
    return Answer(
        data,
        sweep_report(found, model),
        contents=sweepcommand.contents(found, form),
        written=partial(sweepcommand.finish, options),
        files=plot(options, lambda: growth_picture(found)),
    )


def report(options: Namespace) -> Answer:
    """`xenpt report MEMORY -o FILE`: one page with the pictures."""
    if not options.json:
        if options.output is None:
            raise UsageError("the page needs a file: -o report.html, or -o - for a pipe")
        require_matplotlib()
    if options.memory is None and options.host is None and options.e820 == "flat":
        options.memory = FOUNDING_SIZE
    with progress_bar("report", quiet=options.quiet) as progress:
        found = GuestPage(
            asked_plan(options),
            asked_rules(options),
            asked_model(options),
            guest_pages=pages(options.guests),
            progress=progress,
        )
        return Answer(found.as_dict(), [], contents=None if options.json else found.as_page())


def capacity(options: Namespace) -> Answer:
    """`xenpt capacity`: where the memory of a host goes, and what is left of it."""
    found = capacitycommand.run(options, asked_kernel(options), asked_rules(options))
    data, report, fits, budgets = found
    files = plot(options, lambda: budget_picture(budgets))
    return Answer(data, report, YES if fits else NO, files=files)


def explain(options: Namespace) -> Answer:
    """`xenpt explain LOG`: every boot in a log, held against the model."""
    from xenpt.explain import explain as explain_boots
    from xenpt.inputs.bootlog import read_boots
    from xenpt.logtexts import explained_report

    name = "standard input" if options.file == "-" else options.file
    found = explain_boots(read_boots(options.file))
    agrees = all(boot.agrees for boot in found)
    data = {"agrees": agrees, "boots": [boot.as_dict() for boot in found]}
    return Answer(data, explained_report(found, name), YES if agrees else NO)


def diff(options: Namespace) -> Answer:
    """`xenpt diff A.json B.json`: what changed."""
    from xenpt.differ import compare
    from xenpt.logtexts import diff_report

    names = (options.before, options.after)
    kind, found = compare(*names)
    data = {"kind": kind, "equal": not found, "changes": [change.as_dict() for change in found]}
    return Answer(data, diff_report(kind, found, names), NO if found else YES)


def founding_question(options: Namespace) -> Answer:
    """The bare command: a dom0 of 600 GiB, without and with INIT_P2M, and the cost of its list."""
    model = asked_model(options)
    image, nr_pages = default_kernel(), pages(FOUNDING_SIZE)
    without = plan_dom0(replace(image, init_p2m=None), nr_pages=nr_pages)
    booted = Boot(build(plan_dom0(image, nr_pages=nr_pages)), rules=SEED).run()
    sweep = {builder: list(_small_sweep(image, builder, model)) for builder in BUILT_BY}
    time = BootTime.of(BootWork.of(booted), model)
    with_note = booted.as_dict()
    time.put_into(with_note)
    data = {
        "without_init_p2m": _panicked_boot(without),
        "with_init_p2m": with_note,
        "cleanup": [
            {
                "nr_pages": freed.plan.nr_pages,
                **freed.cleanup.as_dict(),
                **_chosen(freed.plan),
                "measured_walk_seconds": freed.walk_seconds,
                "seconds_modelled": freed.seconds,
            }
            for builder in BUILT_BY
            for freed in sweep[builder]
        ],
        "modelled": model.as_dict(),
    }
    report = founding_report(without, booted, with_note["beyond"], sweep, time, model)
    return Answer(data, report)


def _small_sweep(image: Kernel, builder: str, model: TimeModel) -> Iterator[Freed]:
    for size in SWEEP_SIZES:
        planner = plan_domu if builder == "toolstack" else plan_dom0
        host = Host(superpages=BUILDER_LEAVES[builder])
        yield _freed(planner(image, host, nr_pages=pages(size)), SEED, model)


def _freed(planned: Plan, rules: LinuxRules, model: TimeModel) -> Freed:
    domain = build(planned)
    return Freed.of(domain, free_initial_p2m(domain, rules=rules), model)


def _variants(domain: Domain, rules: LinuxRules, model: TimeModel) -> Iterator[Freed]:
    """The same domain with other leaves: what would they change?"""
    for other in with_other_leaves(domain):
        freed = free_initial_p2m(domain, rules=rules, mapping=other.p2m_map)
        yield Freed.of(other, freed, model)


def _panicked_boot(planned: Plan, outcomes: Iterable[Outcome] = ()) -> dict[str, Any]:
    """The `boot` object of a dom0 that Xen does not build."""
    return {
        "verdict": "panics",
        "panic": planned.panic,
        "not_modelled": None,
        "plan": planned.as_dict(),
        "stages": [],
        "cleanup": None,
        "memblock": {"setup": None, "cleanup": None},
        "checked": None,
        "moves": None,
        "beyond": planned.beyond,
        "warnings": [],
        "faults": [outcome.as_dict() for outcome in outcomes],
        "build_seconds_modelled": None,
        "boot_seconds_modelled": None,
    }


def _chosen(planned: Plan) -> dict[str, Any]:
    """What tells one cleanup from another, besides the profile."""
    return {"builder": planned.guest.builder, "p2m_leaf": planned.host.superpages}
