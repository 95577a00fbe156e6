# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen prints of dom0, line by line, against the plan."""

from collections.abc import Iterator

from xenpt.abi import PAGE_SHIFT
from xenpt.arrangement import symbol_map
from xenpt.explain.findings import Check, span
from xenpt.explain.inputs import Inputs, dom0_mem, ramdisks
from xenpt.inputs.bootlog import Boot
from xenpt.plan import Plan
from xenpt.units import format_address, format_pages


def xen_checks(boot: Boot, inputs: Inputs) -> list[Check]:
    """Every line of Xen that the plan predicts."""
    plan = inputs.plan
    if plan is None:
        return []
    checks = [*_size_checks(boot, inputs, plan), *_image_checks(boot, inputs, plan)]
    checks += _physical_checks(boot, inputs, plan)
    checks += _virtual_checks(boot, inputs, plan)
    return sorted(checks, key=lambda check: check.line)


def _size_checks(boot: Boot, inputs: Inputs, plan: Plan) -> Iterator[Check]:
    option, asked = dom0_mem(boot), inputs.asked
    if option and asked and inputs.asked_exactly:
        yield Check(
            option[1].line,
            "dom0_mem",
            f"{asked.nr_pages} pages",
            f"{plan.nr_pages} pages",
            given=inputs.rests_on("pages", option[1].line),
            why=f"dom0_mem={option[0]}; other lines say {format_pages(plan.nr_pages)}",
        )
    for fact in boot.all("clipped"):
        clipped = asked.nr_pages if asked and asked.notices else plan.nr_pages
        image = plan.image
        yield Check(
            fact.line,
            "Dom0 memory clipped",
            f"{fact.number()} pages",
            f"{clipped} pages",
            given=asked is None,
            why=f"(0 - {image.virt_kend:#x}) / 16, as the kernel has no INIT_P2M note",
        )


def _image_checks(boot: Boot, inputs: Inputs, plan: Plan) -> Iterator[Check]:
    image = plan.image
    if fact := boot.first("dom0_kernel"):
        yield Check(
            fact.line,
            "Dom0 kernel",
            f"paddr {fact.number(3):#x} -> {fact.number(4):#x}",
            f"paddr {image.paddr[0]:#x} -> {image.paddr[1]:#x}",
            given=inputs.rests_on("image", fact.line),
            why="the loaded kernel less the virtual base",
        )
    if fact := boot.first("symbol_map"):
        symbols = symbol_map(image)
        yield Check(
            fact.line,
            "Dom0 symbol map",
            "{:#x} -> {:#x}".format(*fact.span),
            "{:#x} -> {:#x}".format(*symbols) if symbols else "none",
            why="behind the image, to the next word",
        )


def _physical_checks(boot: Boot, inputs: Inputs, plan: Plan) -> Iterator[Check]:
    if fact := boot.first("dom0_alloc"):
        start, end = fact.span
        size = 1 << (plan.alloc_order + PAGE_SHIFT)
        printed = fact.values[2] if isinstance(fact.values[2], int) else 0
        initrd = " and the initrd's" if plan.initrd_pages else ""
        # A log that ends here may have lost the line of the initrd.
        rest = plan.pages_to_be_allocated if boot.has("ramdisk", "virtual") else printed
        yield Check(
            fact.line,
            "Dom0 alloc.",
            span(start, end) + _rest(printed),
            span(start, start + size) + _rest(rest),
            why=f"2^{plan.alloc_order} pages hold the initial mapping; of {plan.nr_pages} pages, "
            f"all but these{initrd} come later",
        )
    for fact in ramdisks(boot)[0]:
        start, length = fact.number(), plan.guest.initrd_bytes or 0
        yield Check(
            fact.line,
            "Init. ramdisk",
            span(*fact.span),
            span(start, start + length),
            given=inputs.rests_on("initrd", fact.line),
            why=f"{length} bytes",
        )


def _rest(nr_pages: int) -> str:
    return f" ({nr_pages} pages to be allocated)" if nr_pages else ""


def _virtual_checks(boot: Boot, inputs: Inputs, plan: Plan) -> Iterator[Check]:
    layout, list_input = plan.layout, "pages" if plan.list_outside else "image"
    ranges = (
        ("kernel", "Loaded kernel", plan.kernel, "image"),
        ("p2m", "Phys-Mach map", plan.p2m, list_input),
        ("start_info", "Start info", plan.start_info, "image"),
        ("xenstore", "Xenstore ring", layout.xenstore or (0, 0), ""),
        ("console", "Console ring", layout.console or (0, 0), ""),
        ("page_tables", "Page tables", plan.page_tables, ""),
        ("boot_stack", "Boot stack", plan.boot_stack, ""),
        ("total", "TOTAL", plan.total, ""),
    )
    reasons = _reasons(plan)
    for kind, what, where, rests in ranges:
        if fact := boot.first(kind):
            given = bool(rests) and inputs.rests_on(rests, fact.line)
            log, model = span(*fact.span), span(*where)
            yield Check(fact.line, what, log, model, given=given, why=reasons[kind])
    for fact in ramdisks(boot)[1]:
        log, model = span(*fact.span), span(*(layout.initrd or (0, 0)))
        yield Check(fact.line, "Init. ramdisk (mapped)", log, model, why="behind the kernel")
    if fact := boot.first("entry"):
        yield Check(
            fact.line,
            "ENTRY ADDRESS",
            format_address(fact.number()),
            format_address(plan.entry),
            given=True,
            why="the kernel's ENTRY note",
        )


def _reasons(plan: Plan) -> dict[str, str]:
    """Where each range comes from."""
    width = plan.image.bits // 8
    outside = plan.list_outside
    where = "at INIT_P2M" if outside else "inside the initial mapping, behind the kernel"
    nr_bytes = plan.start_info[1] - plan.start_info[0]
    before = "kernel" if outside else "list"
    return {
        "kernel": "paddr of the image plus the virtual base",
        "p2m": f"{width} bytes for each of {plan.nr_pages} pages, {where}",
        "start_info": f"the page behind the {before}; {nr_bytes} bytes in Xen {plan.host.xen}",
        "xenstore": "only the shim has one",
        "console": "only the shim has one",
        "page_tables": f"{plan.nr_pt_frames} tables map all of the initial mapping",
        "boot_stack": "one page behind the tables",
        "total": "to a multiple of 4 MiB, with 512 KiB to spare",
    }
