# SPDX-License-Identifier: GPL-2.0-or-later
"""Every dom0 record of public boot logs, line for line, and the panics among them.

What a record must give as input: the kernel (its range, entry, physical range, symbol table, notes
as far as the lines betray them), dom0's size, the initrd's length and the machine addresses. All
else is predicted: where list, start_info, tables, stack and end are, what is left to allocate,
which lines this release prints and how.
"""

import pytest
from goldendata import boot_logs

from xenpt.abi import START_KERNEL_MAP
from xenpt.arrangement import kernel_lines
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import Kernel
from xenpt.plan import plan_dom0

# Xen of the records that do not name it: from the record's remark, or its source and year.
XEN_UNNAMED = {
    "dom0-17": "4.4.3",  # "Xen 4.4.x per the reporter's other log"
    "dom0-18": "4.15-unstable",  # review in 2021 of the patch that drops zero lines in 4.16
    "dom0-20": "4.14",  # QubesOS 4.1, December 2020
    "dom0-21": "4.17",  # QubesOS 4.2, August 2024
}
RECORDS = boot_logs("dom0")


def xen_of(record):
    return record["xen_version"] or XEN_UNNAMED[record["record"]]


def name_of(record):
    return f"{record['record']}-xen-{xen_of(record)}"


def kernel_of(record):
    """The kernel of a record, from the lines that are about it alone."""
    start, end = record["kernel"]
    virt_base = 0xC0000000 if record["bits"] == 32 else START_KERNEL_MAP
    p2m_start = record["p2m"][0]
    outside = record["bits"] == 64 and p2m_start >> 39 != start >> 39
    mapped_initrd = record["initrd"] not in (None, [0, 0])
    return Kernel(
        bits=record["bits"],
        pae="extcr3",  # PAE_MODE "yes": every log of a Xen that prints it has it
        virt_base=virt_base if start >= virt_base else 0,
        virt_kstart=start,
        virt_kend=end,
        entry=record["entry"],
        paddr=tuple(record["kernel_paddr"] or (0, 0)),
        segments=(),
        init_p2m=p2m_start if outside else None,
        mod_start_pfn=not mapped_initrd,
        machine=62 if record["bits"] == 64 else 3,
    )


def initrd_of(record):
    """(bytes, machine address) of the initrd module."""
    if record["ramdisk_phys"]:
        start, end = record["ramdisk_phys"]
        return end - start, start
    if record["initrd"] and record["initrd"][1] > record["initrd"][0]:  # copied: no machine address
        return record["initrd"][1] - record["initrd"][0], None
    return None, None


def line(label, where):
    return f" {label:<14} {where[0]:016x}->{where[1]:016x}"


def printed_lines(record):
    """The block as that Xen printed it: of each line what the record holds of it."""
    rest = record["pages_to_be_allocated"]
    lines = [
        "PHYSICAL MEMORY ARRANGEMENT:",
        line("Dom0 alloc.:", record["dom0_alloc"]) + f" ({rest} pages to be allocated)",
    ]
    for label, key in (
        ("Init. ramdisk:", "ramdisk_phys"),
        ("VIRTUAL", None),
        ("Loaded kernel:", "kernel"),
        ("Init. ramdisk:", "initrd"),
        ("Phys-Mach map:", "p2m"),
        ("Start info:", "start_info"),
        ("Xenstore ring:", "xenstore"),
        ("Console ring:", "console"),
        ("Page tables:", "page_tables"),
        ("Boot stack:", "boot_stack"),
        ("TOTAL:", "total"),
    ):
        if key is None:
            lines.append("VIRTUAL MEMORY ARRANGEMENT:")
        elif record[key] is not None:
            lines.append(line(label, record[key]))
    return [*lines, f" ENTRY ADDRESS: {record['entry']:016x}"]


def plan_of(record):
    size, maddr = initrd_of(record)
    start, end = record["p2m"]
    return plan_dom0(
        kernel_of(record),
        Host(xen=xen_of(record)),
        nr_pages=(end - start) // (record["bits"] // 8),
        initrd_bytes=size,
        alloc_maddr=record["dom0_alloc"][0],
        initrd_maddr=maddr,
    )


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_plan_prints_the_block_of_a_real_log(record):
    assert str(plan_of(record)).split("\n") == printed_lines(record)


@pytest.mark.parametrize(
    "record",
    [record for record in RECORDS if record["kernel_paddr"]],
    ids=name_of,
)
def test_plan_prints_the_kernel_line_of_a_real_log(record):
    pae = ", PAE" if record["pae"] else ""
    start, end = record["kernel_paddr"]
    lines = [f" Dom0 kernel: {record['bits']}-bit{pae}, lsb, paddr {start:#x} -> {end:#x}"]
    if record["dom0_symbol_map"]:
        lines.append(" Dom0 symbol map {:#x} -> {:#x}".format(*record["dom0_symbol_map"]))
    assert kernel_lines(plan_of(record)) == lines


def test_records_cover_what_they_are_here_for():
    assert len(RECORDS) == 25
    assert sum(record["initrd"] == [0, 0] for record in RECORDS) == 12  # zero lines
    assert {record["bits"] for record in RECORDS} == {32, 64}
    assert sum(record["dom0_symbol_map"] is not None for record in RECORDS) == 1
    assert len(boot_logs("failures")) == 2


def test_failure_of_4_1_has_its_full_stop():
    record = boot_logs("failures")[0]
    # The log does not tell what the host had free; any too small one shows the text.
    plan = plan_dom0(
        kernel_of(RECORDS[12]), Host(xen=record["xen_version"], memory="64M"),
        dom0_mem=record["dom0_mem"],
    )  # fmt: skip
    assert plan.panic == record["panic"]
    assert str(plan) == record["panic"]


def test_failure_of_a_32_bit_kernel_on_a_xen_without_pv32():
    record = boot_logs("failures")[1]
    kernel = kernel_of(RECORDS[18])
    # 4.16-unstable of a date before 4.16 learnt to name CONFIG_PV32: as 4.15 in this.
    plan = plan_dom0(kernel, Host(xen="4.15", pv32=False), nr_pages=1 << 18)
    assert (plan.panic, plan.complaint) == (record["panic"], record["message"])
    assert str(plan) == f"{record['message']}\n{record['panic']}"
