# SPDX-License-Identifier: GPL-2.0-or-later
"""Every dom0 that was booted under QEMU: arrangement, start_info, list and panics, from its inputs.

The inputs are the options it was started with, the kernel's headers and notes, and the machine's
e820 map: dom0_mem goes through Xen's own way from the host's memory to dom0's size.
"""

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from goldendata import cases, facts, log
from goldenplan import kernel_of, largest_leaf

from xenpt.arrangement import kernel_lines
from xenpt.inputs.config import Host, parse_e820
from xenpt.inputs.kernel import default_kernel
from xenpt.plan import plan_dom0
from xenpt.units import pages

CASES = cases()
ENTRY_CASES = cases(dump="entry")


def plan_of(name):
    case = facts(name)
    options, xen = case["options"], case["xen"]
    physical = xen["physical_memory_arrangement"]
    return plan_dom0(
        kernel_of(name),
        Host(
            xen=xen["version"],
            e820=parse_e820(log(name).split("Linux version")[0].splitlines()),
            superpages=largest_leaf(name),
        ),
        dom0_mem=options["dom0_mem"],
        initrd_bytes=options["initrd_size"],
        alloc_maddr=physical.get("dom0_alloc", [None])[0],
        initrd_maddr=physical.get("init_ramdisk", [None])[0],
    )


def xen_lines(text):
    """Xen's lines of a log, without prefix and time stamp."""
    found = re.findall(r"^(?:.*)\(XEN\) (?:\[[ .0-9a-f]*\] )?(.*?)\r?$", text, re.MULTILINE)
    return [line.rstrip() for line in found]


def printed_of(lines):
    """What Xen printed of the arrangement and of a panic."""
    printed = []
    if "PHYSICAL MEMORY ARRANGEMENT:" in lines:
        start = lines.index("PHYSICAL MEMORY ARRANGEMENT:")
        end = next(i for i, line in enumerate(lines) if line.startswith(" ENTRY ADDRESS:"))
        printed += lines[start : end + 1]
    printed += [line for line in lines if line.startswith(("Dom0 memory clipped", "ELF: not"))]
    for before, line in pairwise(lines):
        if before == "Panic on CPU 0:":
            printed.append(line)
    return printed


@pytest.mark.parametrize("name", CASES)
def test_plan_prints_what_real_xen_printed(name):
    printed = printed_of(xen_lines(log(name)))
    assert printed
    assert str(plan_of(name)).split("\n") == printed


@pytest.mark.parametrize("name", CASES)
def test_plan_prints_the_kernel_line_of_real_xen(name):
    line = facts(name)["xen"]["dom0_kernel"]
    if line is None:
        assert plan_of(name).complaint == "ELF: not an ELF binary"
    else:
        assert kernel_lines(plan_of(name)) == [f" {line}"]


@pytest.mark.parametrize("name", ENTRY_CASES)
def test_plan_gives_the_start_info_that_the_guest_found(name):
    real, plan = facts(name)["dump"]["entry"]["start_info"], plan_of(name)
    fields = (
        "nr_pages", "flags", "pt_base", "nr_pt_frames", "mfn_list", "mod_start", "mod_len",
        "first_p2m_pfn", "nr_p2m_frames", "magic",
    )  # fmt: skip
    assert {key: getattr(plan, key) for key in fields} == {key: real[key] for key in fields}


@pytest.mark.parametrize("name", ENTRY_CASES)
def test_plan_counts_the_tables_and_large_leaves_of_the_dump(name):
    dump, plan = facts(name)["dump"]["entry"], plan_of(name)
    own = {"4": 1, "3": 1, "2": 1, "1": plan.nr_pt_frames - 3}  # initial mapping within one 1 GiB
    expected = {level: own[level] + plan.p2m_tables.get(f"l{level}", 0) for level in own}
    assert dump["pages_per_level"] == expected
    large = {level: sum(dump["flags"].get(f"L{level} leaf", {}).values()) for level in (2, 3)}
    assert (large[2], large[3]) == (plan.p2m_leaves["2m"], plan.p2m_leaves["1g"])


LARGE = {
    "xen417_debian61_dom0_4G": ("4G", True),
    "xen417_dom0_64G": ("64G", True),
    "xen417_dom0_600G": ("600G", True),
    "xen417_noINITP2M_473G_ok": ("473G", False),
    "xen417_noINITP2M_474G_panic": ("474G", False),
    "xen417_noINITP2M_600G_panic": ("600G", False),
    "xen417_noINITP2M_nodom0mem_clipped_panic": (None, False),
}


@pytest.mark.parametrize("name", LARGE)
def test_plan_prints_what_real_xen_printed_of_large_hosts(name):
    text = log(name, "logs-large")
    size, has_note = LARGE[name]
    kernel = default_kernel()
    if not has_note:
        kernel = replace(kernel, init_p2m=None)
    lines = xen_lines(text)
    alloc = next((line for line in lines if line.startswith(" Dom0 alloc.:")), None)
    plan = plan_dom0(
        kernel,
        Host(e820=parse_e820(text.split("Linux version")[0].splitlines())),
        dom0_mem=size,
        alloc_maddr=int(alloc.split()[2].split("->")[0], 16) if alloc else None,
    )
    assert str(plan).split("\n") == printed_of(lines)
    assert plan.nr_pages == (pages(size) if size else 129368064)
