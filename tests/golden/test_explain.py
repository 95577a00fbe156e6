# SPDX-License-Identifier: GPL-2.0-or-later
"""Every log of a real boot agrees with the model; one changed number in a copy is found."""

import re
from functools import cache

import goldendata
import pytest

from xenpt.errors import InputError
from xenpt.explain import explain
from xenpt.inputs.bootlog import parse_boots

LOGS = [("oracle", name) for name in goldendata.cases()] + [
    ("logs-large", path.name.removesuffix(".log.xz"))
    for path in sorted((goldendata.GOLDEN / "logs-large").glob("*.log.xz"))
]
#: Allocations of page tables, thousands of lines: the parser skips them, these tests do not copy
#: them each time.
NOISE = re.compile(r"memblock_alloc|memblock_phys_alloc|\] memblock_reserve: .*alloc_range")
HEX = "[0-9a-f]{16}"
MEM = r"\[0x([0-9a-f]{16})-0x([0-9a-f]{16})\], 0x([0-9a-f]{16}) bytes"
#: Lines of which each number in parentheses follows from others.
OVER_DETERMINED = {
    "end of the P->M map": rf"Phys-Mach map: {HEX}->({HEX})",
    "start info": rf"Start info: +({HEX})->({HEX})",
    "page tables": rf"Page tables: +({HEX})->({HEX})",
    "boot stack": rf"Boot stack: +({HEX})->({HEX})",
    "TOTAL": rf"TOTAL: +({HEX})->({HEX})",
    "loaded kernel": rf"Loaded kernel: +({HEX})->({HEX})",
    "size of Dom0 alloc.": rf"Dom0 alloc\.: +({HEX})->({HEX})",
    "pages to be allocated": r"\((\d+) pages to be allocated",
    "last_pfn": r"last_pfn = 0x([0-9a-f]+)",
    "clipped": r"memory clipped to (\d+) pages",
    "released": r"Released (\d+) page",
    "remapped": r"Remapped (\d+) page\(s\)",
    "memory": rf" memory\[0x.\]\t{MEM}",
    "reserved sizes": r"memory size = 0x([0-9a-f]+) reserved size = 0x([0-9a-f]+)",
    "memblock of kernel": None,
    "memblock of start_info": None,
    "memblock of tables": None,
    "memblock of list": None,
    "frees of the list": r"memblock_(?:phys_)?free: \[0x(\w+)-0x(\w+)\] xen_pagetable_init",
}
#: Shipped logs that have such a line (by grep), 62 in all.
NR_LOGS = dict.fromkeys(OVER_DETERMINED, 56) | {
    "last_pfn": 47,
    "clipped": 1,
    "released": 48,
    "remapped": 47,
    "memory": 32,
    "reserved sizes": 32,
    "memblock of kernel": 32,
    "memblock of start_info": 32,
    "memblock of tables": 32,
    "memblock of list": 32,
    "frees of the list": 35,
}
MOVED_LIST = {"r1g-initrd": 0x100000}  # golden/README: the lowest area that is free


#: Logs of a boot that came as far as the arrangement block.
ARRANGED = {name for folder, name in LOGS if "Dom0 alloc.:" in goldendata.log(name, folder)}


@cache
def log_lines(folder, name):
    """(number, text) of the lines of a log, without most of what is not compared."""
    lines = goldendata.log(name, folder).split("\n")
    return [("" if NOISE.search(line) else line) for line in lines]


def explained(lines, name="log"):
    [boot] = explain(parse_boots("\n".join(lines), source=name))
    return boot


def reserved_entries(name, lines):
    """what -> indices of its entries in the dumps of memblock, found by the arrangement block.

    Physical addresses of the kernel's map are virtual ones less 0xffffffff80000000; the list is
    behind the first chunk, or where it is mapped.
    """
    text = "\n".join(lines)
    found = {}

    def paddr(label):
        return int(re.search(rf"{label}: +({HEX})", text)[1], 16) & 0x7FFFFFFF

    wanted = {
        "memblock of kernel": paddr("Loaded kernel"),
        "memblock of start_info": paddr("Start info"),
        "memblock of tables": paddr("Page tables") + 4096,  # Linux takes back the first
    }
    alloc = re.search(rf"Dom0 alloc\.: +({HEX})->({HEX})", text)
    moved = re.search(r"Phys-Mach map: ffff", text)
    wanted["memblock of list"] = (
        paddr("Phys-Mach map") if moved else int(alloc[2], 16) - int(alloc[1], 16)
    )
    wanted["memblock of list"] = MOVED_LIST.get(name, wanted["memblock of list"])
    for i, line in enumerate(lines):
        entry = re.search(rf" reserved\[0x.\]\t{MEM}", line)
        for what, start in wanted.items():
            if entry and int(entry[1], 16) <= start <= int(entry[2], 16):
                found.setdefault(what, []).append(i)
    return found


def places(what, name, lines):
    """(index of the line, start, end) of each number; of frees those of the first and last line."""
    pattern = OVER_DETERMINED[what]
    indices = range(len(lines))
    if pattern is None:
        pattern = rf" reserved\[0x.\]\t{MEM}"
        indices = reserved_entries(name, lines).get(what, []) if name in ARRANGED else []
    found = [(i, re.search(pattern, lines[i])) for i in indices]
    matches = [(i, match) for i, match in found if match]
    if what == "frees of the list":
        matches = matches[:1] + matches[-1:]
    return [
        (i, *match.span(group)) for i, match in matches for group in range(1, match.re.groups + 1)
    ]


def changed(text):
    """The number with one digit changed: the fourth from its end, or a shorter one's first."""
    at = max(0, len(text) - 4)
    digit = int(text[at], 16)
    other = digit + 1 if digit < 9 else digit - 1
    return f"{text[:at]}{other:x}{text[at + 1 :]}"


@pytest.mark.parametrize("folder, name", LOGS)
def test_log_and_model_agree_in_every_line(folder, name):
    boot = explained(goldendata.log(name, folder).split("\n"), name)
    assert boot.differences == []
    assert boot.agrees
    assert all(end.predicted is not False for end in boot.ends)


def test_panics_are_predicted_not_only_tolerated():
    panics = {
        "m127m": "Domain 0 allocation is too small for kernel image",
        "p-legacy-500g": "Not enough RAM for domain 0 allocation",
        "p-overlap": "DOM0 P->M table overlaps initial mapping",
        "x4.14-k6.12": "Could not construct domain 0",
    }
    for name, text in panics.items():
        [end] = explained(log_lines("oracle", name)).ends
        assert (end.text, end.predicted) == (text, True)
    for name in ("p-slot0", "p-base+512g-2m", "p-base+512g-4k", "c520g", "m512g", "m520g"):
        [end] = explained(log_lines("oracle", name)).ends
        assert end.predicted is True


@pytest.mark.parametrize("what", OVER_DETERMINED)
def test_a_changed_number_is_a_difference_of_its_line_and_of_no_other(what):
    """One number of each log, another one from log to log; all 2357 of them pass, too."""
    compared = 0
    for turn, (folder, name) in enumerate(LOGS):
        lines = log_lines(folder, name)
        found = places(what, name, lines)
        if not found:
            continue
        i, start, end = found[turn % len(found)]
        copy = list(lines)
        copy[i] = lines[i][:start] + changed(lines[i][start:end]) + lines[i][end:]
        boot = explained(copy, name)
        assert {check.line for check in boot.differences} == {i + 1}, (name, copy[i])
        assert not boot.agrees
        compared += 1
    assert compared == NR_LOGS[what]


#: What consoles, syslog and terminals do to every line of a log.
SHAPES = {
    "CRLF": "{}\r",
    "colours": "\x1b[0;32m{}\x1b[0m",
    "stamps of syslog": "2026-11-23T22:00:00.123456+00:00 host xen[12]: {}",
    "stamps of a terminal": "[2021-05-04 10:11:12] {}",
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_what_a_console_does_to_the_lines_changes_no_check(shape):
    for folder, name in LOGS[::4]:
        lines = log_lines(folder, name)
        plain, shaped = explained(lines), explained([shape.format(line) for line in lines])
        assert shaped.checks == plain.checks, name
        assert [end.predicted for end in shaped.ends] == [end.predicted for end in plain.ends]


@pytest.mark.parametrize("side", ["head", "tail"])
def test_a_log_that_lost_its_head_or_its_tail_has_no_difference(side):
    """`xl dmesg` and dmesg are rings: what is left agrees, and what is gone is not guessed.

    Cut in four places of each log, which fall into the middle of lines.
    """
    explained_boots = 0
    for turn, (folder, name) in enumerate(LOGS):
        text = "\n".join(log_lines(folder, name))
        for at in range(1 + turn, len(text), len(text) // 4):
            try:
                boots = explain(parse_boots(text[:at] if side == "tail" else text[at:]))
            except InputError:  # too little is left
                continue
            assert all(boot.agrees for boot in boots), (name, at)
            explained_boots += len(boots)
    assert explained_boots >= 2 * len(LOGS)


def printed(record):
    """The lines that a public record was read from, as Xen prints them."""

    def span(key, label):
        if record[key] is None:
            return []
        start, end = record[key]
        return [f"(XEN)  {label + ':':<14} {start:016x}->{end:016x}"]

    pae = ", PAE" if record["pae"] else ""
    paddr = record["kernel_paddr"]
    lines = [f"(XEN) Xen version {record['xen_version']} (somebody@example.org)"]
    if paddr:
        kernel = f"{record['bits']}-bit{pae}, lsb, paddr {paddr[0]:#x} -> {paddr[1]:#x}"
        lines.append(f"(XEN)  Dom0 kernel: {kernel}")
    if record["dom0_symbol_map"]:
        lines.append("(XEN)  Dom0 symbol map {:#x} -> {:#x}".format(*record["dom0_symbol_map"]))
    alloc = span("dom0_alloc", "Dom0 alloc.")
    if alloc and record["pages_to_be_allocated"]:
        alloc[0] += f" ({record['pages_to_be_allocated']} pages to be allocated)"
    lines += ["(XEN) PHYSICAL MEMORY ARRANGEMENT:", *alloc, *span("ramdisk_phys", "Init. ramdisk")]
    lines.append("(XEN) VIRTUAL MEMORY ARRANGEMENT:")
    for key, label in (
        ("kernel", "Loaded kernel"), ("initrd", "Init. ramdisk"), ("p2m", "Phys-Mach map"),
        ("start_info", "Start info"), ("xenstore", "Xenstore ring"), ("console", "Console ring"),
        ("page_tables", "Page tables"), ("boot_stack", "Boot stack"), ("total", "TOTAL"),
    ):  # fmt: skip
        lines += span(key, label)
    return [*lines, f"(XEN)  ENTRY ADDRESS: {record['entry']:016x}"] if record["entry"] else lines


@pytest.mark.parametrize("record", goldendata.boot_logs("dom0"), ids=lambda r: r["record"])
def test_public_logs_of_xen_3_0_to_4_20_agree(record):
    boot = explained(printed(record))
    assert boot.differences == []
    assert sum(not check.given for check in boot.checks) >= 5
