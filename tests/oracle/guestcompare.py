# SPDX-License-Identifier: GPL-2.0-or-later
"""What the real toolstack built against what the model says that it builds.

Inputs are the kernel's file, the ramdisk's, the amount of memory and what guests the hypervisor
knows. Of the real guest the model is told where the host put its pages, shared_info included, and
the numbers of its event channels.
"""

import re
import tempfile
from dataclasses import replace
from itertools import zip_longest
from signal import SIGXFSZ

from oracle.compare import (
    Result,
    compare_lines,
    compare_page_info,
    compare_start_info,
    compare_tables,
    tables_of,
)
from oracle.guestboot import Built, Point, ramdisk_name
from oracle.guests import Guest
from oracle.memory import XEN_SLOTS

from xenpt.abi import PAGE_SHIFT, START_INFO_32, START_INFO_64
from xenpt.domuplan import DomuPlan, plan_domu
from xenpt.domutables import ENDLESS
from xenpt.inputs.config import Host
from xenpt.inputs.initrd import Initrd, read_initrd
from xenpt.inputs.kernel import Kernel, kernel_from_bytes
from xenpt.p2m import P2M
from xenpt.xen.domu import Domu, build_domu

CMD_LINE = "console=hvc0 root=/dev/xvda1 ro"
_DETAIL = "domainbuilder: detail: "
#: The lines that are about the layout.
_LAYOUT = (
    "xc_dom_alloc_segment:", "xc_dom_alloc_page   :", "count_pgtables:", "xc_dom_build_image  :",
)  # fmt: skip
_CLASSES = "Internal error|Out of memory|Invalid kernel"  # of errors; behind the text
_LAST_WORDS = re.compile(
    rf"^xc: error: panic: [^:]+:\d+: (?P<panic>.*?)\n?: (?:{_CLASSES})$"
    r"|^\S+: [^:]+:\d+: (?P<abort>.*Assertion.*)$"
    r"|^domainbuilder: detail: (?P<detail>PV Autotranslate.*)$"  # the one that is no error to it
    r"|^(?P<program>failed: .*)$",
    re.MULTILINE,
)


def compare_guest(built: Built, debian: Kernel) -> list[Result]:
    """All comparisons of one guest; `debian` is what the packaged kernel asks for."""
    plan = plan_of(built, debian)
    results = [compare_layout(built, plan)]
    if plan.panic is None and built.before is not None:
        results += _compare_point("before the pin", built.before, plan)
    if plan.panic is None and built.after is not None:
        results += _compare_point("after the pin", built.after, plan, pinned=True)
        results.append(compare_registers(built, plan))
    return results


def plan_of(built: Built, debian: Kernel) -> DomuPlan:
    """What the model expects of the guest's inputs."""
    guest = built.guest
    (version,) = set(re.findall(r"Xen version (\d\S*)", built.xen))
    known = re.search(r"^guests that Xen knows: (.*)$", built.log, re.MULTILINE)
    kernel = kernel_from_bytes(guest.kernel, guest.name) if guest.kernel else debian
    second_at = guest.nr_pages + guest.hole
    nodes = [(0, guest.nr_pages), (second_at, second_at + guest.second)]
    return plan_domu(
        kernel,
        Host(xen=version),
        nr_pages=guest.nr_pages + guest.second,
        initrd=_initrd(guest),
        xen_caps=known[1] if known else None,
        vnuma=nodes if guest.second else None,
        cmd_line=CMD_LINE,
    )


def _initrd(guest: Guest) -> Initrd | None:
    if guest.ramdisk is None:
        return None
    with tempfile.NamedTemporaryFile() as file:
        file.write(guest.ramdisk)
        file.flush()
        return replace(read_initrd(file.name), name=ramdisk_name(guest))


def compare_layout(built: Built, plan: DomuPlan) -> Result:
    """What the library logged about the layout, line for line, and how it came to its end."""
    lines = [line.removeprefix(_DETAIL).rstrip() for line in built.log.splitlines()]
    real = [line for line in lines if line.startswith(_LAYOUT)]
    ended = last_words(built)
    if ended == ENDLESS and len(real) > len(plan.log):
        real = real[: len(plan.log)]
    model = list(plan.log)
    if ended or plan.panic:
        real.append(ended or "it built the guest")
        model.append(plan.panic or "it builds the guest")
    numbers = sum(len(re.findall(r"0x[0-9a-f]+|\b\d+ table", line)) or 1 for line in real)
    pairs = zip_longest(model, real, fillvalue="nothing")
    return compare_lines("guest: layout", numbers, pairs, len(model), len(real))


def last_words(built: Built) -> str | None:
    """Why there is no guest, in the words of whoever gave up; None if there is one."""
    if built.ended:
        return built.ended
    if built.status == -SIGXFSZ:
        return ENDLESS  # it logged until it was ended
    if built.after or (built.before and built.guest.pretend):
        return None
    found = _LAST_WORDS.search(built.log)
    return found[found.lastgroup or 0] if found else f"status {built.status}"


def _compare_point(when: str, real: Point, plan: DomuPlan, *, pinned: bool = False) -> list[Result]:
    domain = _domain(real, plan, pinned=pinned)
    skip = XEN_SLOTS if pinned else range(0)
    model = domain.start_info()
    dtype = START_INFO_64 if plan.image.bits == 64 else START_INFO_32
    results = [
        compare_start_info(real.start_info[: len(model)], model, dtype),
        compare_tables("tables", real.tables, tables_of(domain), skip=skip),
    ]
    if pinned:
        results.append(compare_page_info(real.page_info, domain))
    return [replace(result, subject=f"guest: {result.subject} {when}") for result in results]


def _domain(real: Point, plan: DomuPlan, *, pinned: bool) -> Domu:
    return build_domu(
        plan,
        p2m=P2M.from_list(real.p2m),
        # To Xen a guest that only pretends has 64 bits; what does not fit is lost.
        shared_info=(real.shared_info << PAGE_SHIFT) % (1 << plan.image.bits),
        pinned=pinned,
        store_evtchn=real.evtchns[0],
        console_evtchn=real.evtchns[1],
    )


def compare_registers(built: Built, plan: DomuPlan) -> Result:
    """Those of the first instruction that the library sets."""
    if built.after is None:
        return Result("guest: registers")
    model = _domain(built.after, plan, pinned=True).registers()
    pairs = (
        (f"{name} {model.get(name, 0):#x}", f"{name} {value:#x}")
        for name, value in built.registers.items()
    )
    return compare_lines("guest: registers", len(model), pairs, len(model), len(built.registers))
