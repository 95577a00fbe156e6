# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels and plans as reports, and what may be added to any: limits, what came of faults."""

from collections.abc import Iterable
from typing import Any

from xenpt.abi import XENFEATURES, pfn_up
from xenpt.domuplan import DomuPlan
from xenpt.faults import Outcome
from xenpt.inputs.kernel import Kernel
from xenpt.listshape import leaves_in_words
from xenpt.output import printable
from xenpt.plan import Plan
from xenpt.report import BAD, NOTE, TITLE, Line, Prose, Report, Table
from xenpt.units import format_address, format_pages, format_size


def kernel_report(kernel: Kernel, name: str) -> Report:
    """What a kernel asks of Xen; `name` is that of its file."""
    payload = f", {kernel.payload} payload" if kernel.payload else ""
    facts = [
        ("Loaded kernel", _span(kernel.virt_kstart, kernel.virt_kend)),
        ("Entry address", format_address(kernel.entry)),
        ("Virtual base", format_address(kernel.virt_base)),
        ("P->M list", _list_wish(kernel)),
        ("Initrd", "may stay unmapped" if kernel.mod_start_pfn else "mapped behind the kernel"),
        ("Features", kernel.features or "none named"),
        ("Supported", _supported(kernel)),
    ]
    if kernel.hypercall_page is not None:
        facts.append(("Hypercall page", format_address(kernel.hypercall_page)))
    if kernel.hv_start_low is not None:
        facts.append(("Xen may start", format_address(kernel.hv_start_low)))
    facts.append(("Symbols", f"{len(kernel.symbols)} known" if kernel.symbols else "none"))
    report: Report = [Line(f"{printable(name)}: {kernel.bits}-bit kernel{payload}", TITLE)]
    for label, value in facts:
        report.append(Prose(f" {label + ':':<15} {value}", indent=" " * 17))
    report += [
        Line(),
        Table(
            ("segment at paddr", "in the file", "in memory", "pages"),
            [
                (format_address(paddr), f"{filesz:,}", f"{memsz:,}", f"{pfn_up(memsz):,}")
                for paddr, filesz, memsz in kernel.segments
            ],
        ),
        Line(),
        Line("Xen notes:", TITLE),
    ]
    for note, _, content in kernel.notes:
        report.append(Prose(f" {note:<20} {_note(content)}", indent=" " * 22))
    return report if kernel.notes else [*report[:-1], Line("Xen notes: none", TITLE)]


def _span(start: int, end: int) -> str:
    return f"{format_address(start)}->{format_address(end)} ({format_size(end - start)})"


def _list_wish(kernel: Kernel) -> str:
    if kernel.init_p2m is None:
        return "inside the initial mapping (no INIT_P2M)"
    return f"at {format_address(kernel.init_p2m)} (INIT_P2M)"


def _supported(kernel: Kernel) -> str:
    if kernel.supported_features is None:
        return "not said (no SUPPORTED_FEATURES)"
    bits = kernel.supported_features
    names = [name for name, bit in XENFEATURES.items() if bits >> bit & 1]
    return f"{bits:#x}: {', '.join(names)}" if names else f"{bits:#x}"


def _note(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return " ".join(f"{word:#x}" for word in value)
    return f"{value:#x}" if value < 1 << 32 else format_address(value)


def plan_report(plan: Plan) -> Report:
    """The builder's own lines about a guest, however long, and what they leave out."""
    own = str(plan).splitlines()
    if isinstance(plan, DomuPlan):
        own = [*plan.log, *([plan.panic] if plan.panic else [])]
    report: Report = [Line(printable(text), BAD if text == plan.panic else "") for text in own]
    return [
        *report, Line(), *_in_short(plan), *warnings_report(plan), *beyond_report(plan.beyond),
    ]  # fmt: skip


def warnings_report(plan: Plan) -> Report:
    """What the toolstack's library gets wrong without a word, a paragraph for each."""
    texts = plan.warnings if isinstance(plan, DomuPlan) else ()
    return [Prose(f"warning: {text}", BAD, indent="  ") for text in texts]


def _in_short(plan: Plan) -> Report:
    if isinstance(plan, DomuPlan):
        return _domu_in_short(plan)
    return [Prose(_mapping_in_words(plan)), Prose(_list_in_words(plan))]


def _domu_in_short(plan: DomuPlan) -> Report:
    size = f"The guest has {plan.nr_pages:,} pages = {format_pages(plan.nr_pages)}."
    if plan.panic:
        return [Prose(f"{size} The toolstack does not build it.")]
    nr_bytes = plan.total[1] - plan.total[0]
    mapping = f"Its initial mapping of {nr_bytes >> 20:,} MiB has {plan.nr_pt_frames} page tables."
    return [Prose(f"{size} {mapping}"), Prose(_list_in_words(plan))]


def _mapping_in_words(plan: Plan) -> str:
    start, end = plan.total
    chunk, largest = 1 << plan.alloc_order, 1 << plan.era.max_order
    verdict = "." if chunk <= largest else ": too much."
    return (
        f"Dom0 has {plan.nr_pages:,} pages = {format_pages(plan.nr_pages)}. "
        f"Its initial mapping of {(end - start) >> 20:,} MiB needs {plan.nr_pt_frames} page tables "
        f"and one chunk of {format_pages(chunk)}; Xen's largest is {format_pages(largest)}{verdict}"
    )


def _list_in_words(plan: Plan) -> str:
    size = format_size(plan.p2m[1] - plan.p2m[0])
    if not plan.list_outside:
        return f"The P->M list of {size} lies in the initial mapping."
    return (
        f"The P->M list of {size} lies outside of it: {leaves_in_words(plan.p2m_leaves)}, "
        f"{sum(plan.p2m_tables.values()):,} table pages; "
        f"{plan.nr_p2m_frames:,} frames in all, from pfn {plan.first_p2m_pfn:,} on."
    )


def beyond_report(beyond: Iterable[dict[str, Any]]) -> Report:
    """One line for each limit of the real thing that an answer passes."""
    report: Report = []
    for limit in beyond:
        text = f"beyond: {limit['limit']} {limit['value']:,} ({limit['source']})"
        report.append(Prose(text, BAD, indent="  "))
    return report


def faults_report(outcomes: Iterable[Outcome]) -> Report:
    """What came of each fault."""
    report: Report = []
    for outcome in outcomes:
        struck = outcome.where is not None
        end = f"{outcome.end} in {outcome.where}" if struck else "did not strike"
        text = printable(f"fault {outcome.fault}: {end}: {outcome.text}.")
        report += [Line(), Prose(text, BAD if struck else NOTE)]
    return report
