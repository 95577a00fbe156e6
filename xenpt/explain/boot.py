# SPDX-License-Identifier: GPL-2.0-or-later
"""`explain`: a log's boots, each with the inputs under which the model explains it best."""

import re
from collections.abc import Iterable, Iterator
from itertools import islice, product

from xenpt.abi import START_KERNEL_MAP
from xenpt.errors import MappingError
from xenpt.explain.findings import MAX_CANDIDATES, Explained
from xenpt.explain.inputs import XEN_KINDS, Inputs, all_inputs, dom0_mem, is_default_kernel, is_odd
from xenpt.explain.linuxends import linux_ends
from xenpt.explain.linuxlines import brk_lines, linux_checks, map_only_checks
from xenpt.explain.memory import Memory, Setting, mem_limit, predict, profiles
from xenpt.explain.panics import panic_agrees, xen_ends
from xenpt.explain.xenlines import xen_checks
from xenpt.inputs.bootlog import Boot
from xenpt.inputs.kernel import default_kernel
from xenpt.linux.state import LinuxPanic, NotModelled
from xenpt.plan import Plan
from xenpt.units import format_address, format_pages

#: Lines that only Linux prints, and that the model predicts.
LINUX_KINDS = (
    "map", "released", "last_pfn", "brk", "memory_added", "configuration", "direct_map_probe",
    "list_freed", "remap_freed", "ramdisk_used", "p2m_area", "remapped", "memory_available",
)  # fmt: skip
UNLIKELY = 1.5  # lines that inputs of no known kernel must explain more than others
#: Combinations of inputs that are tried, and what they may cost in lines looked at.
MAX_COMBINATIONS, MAX_LINES_TRIED = 1 << 10, 1 << 22
LARGE_LIST = 1 << 27  # pages from which on a list may have leaves of 1 GiB


def explain(boots: Iterable[Boot]) -> list[Explained]:
    """Explain every boot of a log.

    :raises UsageError: a Xen that is not modelled
    """
    return [explain_boot(boot) for boot in boots]


def explain_boot(boot: Boot) -> Explained:
    """Explain one boot."""
    inputs = best_inputs(boot)
    checks = xen_checks(boot, inputs)
    ends = xen_ends(boot, inputs)
    setting = None
    if not ends:
        setting, memory, panic = best_setting(boot, inputs)
        if memory is not None:
            checks += linux_checks(boot, memory, setting)
        elif panic is None:
            checks += map_only_checks(boot, setting.mem_limit)
        if inputs.plan is not None:
            ends = linux_ends(boot, inputs.plan, memory, panic)
    return Explained(
        boot.first_line,
        _title(boot, inputs),
        _inputs_in_words(boot, inputs, setting),
        tuple(sorted(checks, key=lambda check: check.line)),
        tuple(ends),
        tuple(_notes(boot, inputs)),
    )


def best_inputs(boot: Boot) -> Inputs:
    """The inputs under which the fewest lines of Xen differ; of equals, the most trusted."""
    best, fewest = None, None
    most = min(MAX_COMBINATIONS, MAX_LINES_TRIED // (len(boot.facts) + 1))
    for inputs in islice(all_inputs(boot), max(1, most)):
        wrong = _misfit(boot, inputs)
        if fewest is None or wrong < fewest:
            best, fewest = inputs, wrong
        if wrong == 0:
            break
    assert best is not None
    return best


def _misfit(boot: Boot, inputs: Inputs) -> float:
    """Lines that differ; what Xen makes of the host is only known nearly, so it counts half."""
    if inputs.plan is None:
        return 1000.0
    differ = sum(not check.agrees for check in xen_checks(boot, inputs))
    differ += panic_agrees(boot, inputs.plan) is False
    asked, nr_pages = inputs.asked, inputs.plan.nr_pages
    vague = asked is not None and not inputs.asked_exactly and asked.nr_pages != nr_pages
    return differ + vague / 2 + (UNLIKELY if is_odd(inputs.plan.image) else 0)


def best_setting(boot: Boot, inputs: Inputs) -> tuple[Setting, Memory | None, str | None]:
    """Linux's part likewise; also the text with which Linux gives up, if it does."""
    plan, machine = inputs.plan, inputs.host.e820
    best: tuple[int, Setting, Memory | None, str | None] | None = None
    for setting in _settings(boot, inputs):
        if plan is None or machine is None or not _is_modelled(boot, plan):
            return setting, None, None
        try:
            memory, panic = predict(plan, machine, inputs.max_pages, setting), None
        except LinuxPanic as error:
            memory, panic = None, str(error)
        except (MappingError, NotModelled):  # a list where no list can be: a garbled line
            memory, panic = None, None
        wrong = 1000 if panic is None or boot.has("e820_conflict") else 1001
        if memory is not None:
            wrong = sum(not check.agrees for check in linux_checks(boot, memory, setting))
        if best is None or wrong < best[0]:
            best = wrong, setting, memory, panic
        if wrong == 0:
            break
    assert best is not None
    return best[1:]


def _is_modelled(boot: Boot, plan: Plan) -> bool:
    """Linux said something, is where a 64-bit Linux is, and the log tells what it may grow to."""
    is_linux = plan.image.bits == 64 and plan.total[0] >= START_KERNEL_MAP
    said = boot.has(*LINUX_KINDS, "e820_conflict", "mapping_failed")
    return is_linux and said and boot.has("xen_command_line")


def _settings(boot: Boot, inputs: Inputs) -> Iterator[Setting]:
    options = [str(fact.values[0]) for fact in boot.all("linux_command_line")]
    limit = mem_limit(options[-1]) if options else None  # Xen's own, cut off, may be the first
    large = inputs.plan is not None and inputs.plan.nr_pages >= LARGE_LIST
    leaves = ["1g", "2m"] if large else ["1g"]
    brk = boot.first("brk")
    brk_start = brk.span[0] if brk else None
    choices = product(_brk_ends(boot, inputs), profiles(_version(boot)), leaves)
    for brk_end, rules, leaf in choices:
        yield Setting(rules, brk_start, brk_end, leaf, limit)


def _version(boot: Boot) -> tuple[int, int] | None:
    fact = boot.first("linux_version")
    found = re.match(r"(\d+)\.(\d+)", str(fact.values[0])) if fact else None
    return (int(found[1]), int(found[2])) if found else None


def _brk_ends(boot: Boot, inputs: Inputs) -> list[int | None]:
    """Where the kernel's reserved memory may end: as a line of its own says, or an entry."""
    ends: dict[int | None, None] = {}
    for fact in boot.all("brk"):
        ends.setdefault(fact.span[1] + 1)
    start, end = inputs.plan.image.paddr if inputs.plan else (0, 0)
    for fact in boot.all("reserved"):
        if start <= fact.span[0] < end and fact.span[0] - start < fact.number(2):
            ends.setdefault(fact.span[1] + 1)
            ends.setdefault(fact.span[0] + fact.number(2))
    known = (default_kernel().symbols or {}).get("_brk_end")
    if is_default_kernel(boot) and known:
        ends.setdefault(known - START_KERNEL_MAP)
    return list(ends)[:MAX_CANDIDATES] or [None]


# --- In words -----------------------------------------------------------------------------------


def _title(boot: Boot, inputs: Inputs) -> str:
    linux = boot.first("linux_version")
    whose = [f"Xen {inputs.host.xen}"] if boot.has(*XEN_KINDS) else ["Xen"]
    whose += [f"Linux {linux.values[0]}"] if linux else []
    whose += [f"dom0 of {format_pages(inputs.plan.nr_pages)}"] if inputs.plan else []
    return ", ".join(whose)


def _inputs_in_words(
    boot: Boot, inputs: Inputs, setting: Setting | None
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the model was given, with the lines that say so."""
    plan = inputs.plan
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, kinds in (("Xen", XEN_KINDS), ("Linux", ("linux_version",))):
        if fact := boot.first(*kinds):
            found[name] = (str(fact.values[0]), (fact.line,))
    if plan is not None:
        start, end = plan.image.paddr
        size = f"{plan.nr_pages} pages = {format_pages(plan.nr_pages)}"
        base = format_address(plan.image.virt_base)
        where = "none" if plan.image.init_p2m is None else f"{plan.image.init_p2m:#x}"
        found |= {
            "dom0's size": (size, _said(inputs, "pages")),
            "kernel image": (f"paddr {start:#x} -> {end:#x}", _said(inputs, "image")),
            "virtual base": (base, _said(inputs, "base")),
            "INIT_P2M": (where, _said(inputs, "list")),
        }
        if (nr_bytes := plan.guest.initrd_bytes) is not None:
            found["initrd"] = (f"{nr_bytes} bytes", _said(inputs, "initrd"))
    if inputs.host.e820:
        entries = tuple(fact.line for fact in boot.all("xen_map", "old_xen_map"))
        found["machine's map"] = (f"{len(inputs.host.e820)} entries", (entries[0], entries[-1]))
    if setting is not None and setting.brk_end is not None and boot.has("configuration"):
        lines = tuple(brk_lines(boot, setting.brk_end))
        found["end of the kernel"] = (f"{setting.brk_end:#x} (its brk area)", lines)
    return found


def _said(inputs: Inputs, name: str) -> tuple[int, ...]:
    return tuple(sorted(set(inputs.lines(name)) - {0}))


def _notes(boot: Boot, inputs: Inputs) -> Iterator[str]:
    for fact in boot.damaged:
        yield f"line {fact.line} is cut off or garbled, and was not compared: {fact.text}"
    plan, asked, option = inputs.plan, inputs.asked, dom0_mem(boot)
    if not boot.has(*XEN_KINDS):
        yield f"Xen's version is not in the log: compared with what {inputs.host.xen} does."
    if plan is None:
        yield "No line says how large dom0 is, so that Xen's part was not compared."
    elif asked is not None and not inputs.asked_exactly:
        how = f"dom0_mem={option[0]}" if option else "no dom0_mem"
        same = asked.nr_pages == plan.nr_pages
        said = "as the lines say" if same else f"the lines say {plan.nr_pages}"
        yield f"{how} on this host: the model estimates {asked.nr_pages} pages, {said}."
    lost = [] if inputs.host.e820 else ["Xen's e820 map"]
    lost += [] if boot.has("xen_command_line") else ["Xen's command line"]
    if boot.has(*LINUX_KINDS) and lost:
        compared = "only compared with its own map"
        if not boot.has("linux_version"):
            compared = "not compared, since its own map may begin before the log, too"
        yield f"{' and '.join(lost)} not in the log: Linux's memory was {compared}."
