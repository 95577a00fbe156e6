# SPDX-License-Identifier: GPL-2.0-or-later
"""Why Xen's builder gave up: the arithmetic of each panic of SPEC B2, and what helps."""

from collections.abc import Callable
from dataclasses import replace

from xenpt.abi import PAGE_SHIFT
from xenpt.explain.findings import End
from xenpt.explain.inputs import NO_ELF, Inputs
from xenpt.inputs.bootlog import Boot, Fact
from xenpt.panics import TABLE_RESERVE
from xenpt.plan import Plan, plan_dom0
from xenpt.units import format_pages, format_size

Reasons = tuple[tuple[str, ...], str]
#: Panics that depend on which chunks of the host's memory are free: no log line tells.
OF_THE_HOST = (
    "Not enough RAM for domain 0 initrd",
    "Not enough RAM for DOM0 P->M table",
    "Not enough RAM for DOM0 reservation",
)
NO_NOTE = "a kernel with the INIT_P2M note (Linux 4.3 or newer)"
_LARGEST = 1 << 34  # pages that a search tries at most: 64 TiB


def xen_ends(boot: Boot, inputs: Inputs) -> list[End]:
    """Xen's panic, or the lack of one that the model predicts."""
    plan, fact = inputs.plan, boot.first("xen_panic")
    agrees = panic_agrees(boot, plan)
    if fact is None:
        survived = _survived(boot, plan)
        if plan is None or survived is None:
            return []
        text = f"Xen goes on, where the model has it panic: {plan.panic}"
        return [End(survived.line, text, False, _reasons(boot, plan)[0])]
    text = str(fact.values[0])
    if not _is_of_builder(fact):
        return [End(fact.line, text, None, ("Not a panic of the dom0 builder.",))]
    if plan is None:
        return [End(fact.line, text, None, ("No line says how large dom0 is.",))]
    if agrees is None:
        host = f"The model builds {plan.nr_pages} pages if the host has them; it cannot know that."
        return [End(fact.line, text, None, (host,), "a smaller dom0_mem, or fewer large modules")]
    if not agrees:
        return [End(fact.line, text, False, _unpredicted(plan, text))]
    why, fix = _reasons(boot, plan)
    return [End(fact.line, text, True, why, fix, nearest_size(plan))]


def panic_agrees(boot: Boot, plan: Plan | None) -> bool | None:
    """Log and plan have the same panic of Xen, or both have none; None if the plan cannot know."""
    fact = boot.first("xen_panic")
    if fact is None:
        return _survived(boot, plan) is None
    text = str(fact.values[0]).rstrip(".")
    if plan is None or not _is_of_builder(fact) or text in OF_THE_HOST:
        return None
    return plan.panic is not None and plan.panic.rstrip(".") == text


def nearest_size(plan: Plan) -> int | None:
    """The largest number of pages below, or else the least above, with which the plan builds."""

    def builds(nr_pages: int) -> bool:
        return plan_of(plan, nr_pages).panic is None

    low = (1 << plan.alloc_order) + plan.initrd_pages
    if plan.panic is None:
        return plan.nr_pages
    below = _last(builds, 1, plan.nr_pages)
    if below is not None:
        return below
    return _first(builds, max(plan.nr_pages, 1), min(_LARGEST, 64 * max(low, plan.nr_pages)))


def plan_of(plan: Plan, nr_pages: int) -> Plan:
    """The same plan for another size of dom0."""
    host, initrd = replace(plan.host, e820=None, memory=None), plan.guest.initrd_bytes
    return plan_dom0(plan.image, host, nr_pages=nr_pages, initrd_bytes=initrd)


def _last(test: Callable[[int], bool], start: int, end: int) -> int | None:
    """The last n of [start, end) that passes, where those that pass lie in one piece.

    The piece is looked for at powers of two and their sums first, then its end is bisected.
    """
    good = next((n for n in _probes(start, end) if test(n)), None)
    if good is None:
        return None
    bad = end
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if test(middle) else (good, middle)
    return good


def _first(test: Callable[[int], bool], start: int, end: int) -> int | None:
    """The first n of [start, end) that passes, if all above it pass, too."""
    good = next((n for n in reversed(_probes(start, end)) if test(n)), None)
    if good is None:
        return None
    bad = start
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if test(middle) else (good, middle)
    return good


def _probes(start: int, end: int) -> list[int]:
    """Sizes of [start, end), the largest first: steps of one eighth of a power of two."""
    sizes = {start}
    step = 1 << max(0, end.bit_length() - 4)
    while step:
        sizes |= {n for n in range(step * 8, step * 16, step) if start <= n < end}
        step >>= 1
    return sorted(sizes, reverse=True)


# --- Reasons -----------------------------------------------------------------------------------


def _reasons(boot: Boot, plan: Plan) -> Reasons:
    text = (plan.complaint or plan.panic or "").rstrip(".")
    for known, reason in _REASONS.items():
        if text.startswith(known):
            why, fix = reason(plan)
            why = (*_why_clipped(boot, plan), *why)
            hidden = plan.image.init_p2m is None and not boot.has("clipped", "p2m")
            if hidden and reason is _too_large_chunk:
                why += ("No line says that the note is missing, but with it this would build.",)
            return why, fix
    return (f"The model has Xen say so: {text}.",), ""


def _unpredicted(plan: Plan, text: str) -> tuple[str, ...]:
    chunk = format_pages(1 << plan.alloc_order)
    if plan.panic:
        return (f"The model has Xen panic with another text: {plan.panic}",)
    if text.startswith("Not enough RAM for domain 0 allocation"):
        largest = format_pages(1 << plan.era.max_order)
        reason = (
            f"The initial mapping needs one chunk of {chunk}, and Xen's largest is {largest}: the "
            "model builds it. A host without a free chunk of that size would explain it."
        )
        return (reason,)
    return (f"The model builds this dom0 of {plan.nr_pages} pages.",)


def _why_clipped(boot: Boot, plan: Plan) -> tuple[str, ...]:
    if not boot.has("clipped"):
        return ()
    end, width = plan.image.virt_kend, plan.image.bits // 8
    reason = (
        f"Without the INIT_P2M note the p2m must fit twice below the top of the address space: at "
        f"most (0 - {end:#x}) / {2 * width} = {plan.nr_pages:,} pages = "
        f"{format_pages(plan.nr_pages)}, to which Xen clipped dom0."
    )
    return (reason,)


def _too_large_chunk(plan: Plan) -> Reasons:
    start, end = plan.total
    held = "kernel" if plan.list_outside else "kernel + p2m"
    largest = 1 << plan.era.max_order
    chunk = (
        f"{held} = {format_size(end - start)} of initial mapping ({(end - start) >> PAGE_SHIFT:,} "
        f"pages) must be one contiguous block of 2^{plan.alloc_order} pages; Xen's MAX_ORDER "
        f"{plan.era.max_order} allows 2^{plan.era.max_order} pages = {format_pages(largest)}."
    )
    if plan.list_outside:
        return (chunk,), "a smaller kernel"
    return (_no_note(plan), chunk), _or_size(NO_NOTE, plan)


def _no_note(plan: Plan) -> str:
    size = format_size(plan.p2m[1] - plan.p2m[0])
    if not plan.era.init_p2m:
        return f"Xen {plan.host.xen} does not know INIT_P2M: the list of {size} is in the mapping."
    return (
        f"The kernel has no XEN_ELFNOTE_INIT_P2M: its p2m of {plan.nr_pages:,} x "
        f"{plan.image.bits // 8} bytes = {size} lies in the initial mapping."
    )


def _too_small(plan: Plan) -> Reasons:
    chunk, initrd = 1 << plan.alloc_order, plan.initrd_pages
    start, end = plan.total
    why = (
        f"The initial mapping of {format_size(end - start)} takes a chunk of 2^{plan.alloc_order} "
        f"= {chunk:,} pages"
        + (f", the initrd {initrd:,} pages" if initrd else "")
        + f"; dom0 has {plan.nr_pages:,} pages = {format_pages(plan.nr_pages)}."
    )
    return (why,), _or_size("", plan)


def _overlap(plan: Plan) -> Reasons:
    (start, end), (first, last) = plan.p2m, plan.total
    why = (
        f"The list would be at {start:016x}->{end:016x}, the initial mapping is at "
        f"{first:016x}->{last:016x}; touching counts as overlap."
    )
    return (why,), _or_size(
        "a kernel whose INIT_P2M note is elsewhere (Linux has 0x8000000000)", plan
    )


def _no_room_for_list(plan: Plan) -> Reasons:
    data = (plan.p2m[1] - plan.p2m[0] + 4095) >> PAGE_SHIFT
    why = (
        f"Chunk and initrd take {plan.first_p2m_pfn:,} pages, the list {data:,} pages and its "
        f"tables, with {TABLE_RESERVE} pages to spare: more than the {plan.nr_pages:,} of dom0."
    )
    return (why,), _or_size("", plan)


def _in_xens_area(plan: Plan) -> Reasons:
    start, end = plan.total
    why = f"The initial mapping {start:016x}->{end:016x} meets the addresses that belong to Xen."
    return (why,), "a kernel with another VIRT_BASE"


def _no_elf(plan: Plan) -> Reasons:
    has = ", ".join(sorted(plan.era.payloads - {"none"}))
    why = (
        f"Xen {plan.host.xen} unpacks {has} and nothing else; it takes a payload of any other kind "
        f"({plan.image.payload}, perhaps) for the kernel itself."
    )
    return (why,), "a newer Xen (zstd: 4.15), or a kernel packed with what this one knows"


def _refused(plan: Plan) -> Reasons:
    return (f"Xen refuses this kernel: {plan.complaint}. No memory size helps.",), "another kernel"


_REASONS: dict[str, Callable[[Plan], Reasons]] = {
    "Not enough RAM for domain 0 allocation": _too_large_chunk,
    "Domain 0 allocation is too small for kernel image": _too_small,
    "DOM0 P->M table overlaps initial mapping": _overlap,
    "Dom0 allocation too small for initial P->M table": _no_room_for_list,
    "DOM0 image overlaps with Xen private area": _in_xens_area,
    NO_ELF: _no_elf,
    "Found 32-bit PV kernel": _refused,
    "Mismatch between Xen and DOM0 kernel": _refused,
    "Kernel does not support Dom0 operation": _refused,
    "Dom0 expects too high": _refused,
    "Domain 0 expects too high": _refused,
    "Invalid HYPERCALL_PAGE": _refused,
    "Dom0 requires supervisor-mode": _refused,
}


def _or_size(fix: str, plan: Plan) -> str:
    nr_pages = nearest_size(plan)
    if nr_pages is None:
        return fix
    which = "largest" if nr_pages < plan.nr_pages else "least"
    size = f"dom0_mem={_option(nr_pages, up=which == 'least')}"
    size += f" ({which} that fits this kernel: {nr_pages:,} pages = {format_pages(nr_pages)})"
    return f"{fix}, or {size}" if fix else size


def _option(nr_pages: int, *, up: bool) -> str:
    """The size in whole GiB or MiB as dom0_mem takes it, on the side that builds."""
    for unit, shift in (("G", 18), ("M", 8)):
        whole = -(-nr_pages >> shift) if up else nr_pages >> shift
        if whole >= 8 or unit == "M":
            return f"{whole}{unit}"
    return f"{nr_pages * 4}K"


# --- What the log shows ------------------------------------------------------------------------


def _survived(boot: Boot, plan: Plan | None) -> Fact | None:
    """The first line that Xen would not have printed if it had given up where the plan does."""
    if plan is None or plan.panic is None:
        return None
    later = ["linux_version", "linux_command_line", "map", "released", "remapped"]
    if not plan.arranged:
        later += ["physical", "dom0_alloc", "virtual", "kernel", "p2m", "total", "vcpus"]
    return boot.first(*later)


def _is_of_builder(panic: Fact) -> bool:
    """Its text is one of the dom0 builder's."""
    text = str(panic.values[0]).rstrip(".")
    known = (*_REASONS, *OF_THE_HOST, "Could not construct d", "Could not set up DOM0 guest OS")
    return any(text.startswith(start) for start in known)
