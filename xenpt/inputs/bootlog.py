# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot logs -> facts: what Xen and Linux printed about dom0's memory, boot by boot.

Reads `xl dmesg`, serial, dmesg, journal and mixed logs: timestamps of any style, syslog prefixes,
CRLF and colour codes do not matter, nor does text glued in front of a line. Nothing is judged
here; a line whose numbers are cut off is kept apart as damaged, and so is a last line that does
not end.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xenpt.errors import InputError
from xenpt.inputs.files import MAX_LINE, MAX_LOG_BYTES, read_file

Value = int | str | None

_ESCAPES = re.compile(
    r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]{0,256}\x07|[ -/]*[0-~])|[\x00\x07\x08]"
)
#: What a log may have; no boot in tests/golden has more than 4,184 such lines.
MAX_FACTS, MAX_BOOTS = 1 << 18, 1 << 8
_XEN = "(XEN)"
_HEX = r"(0x[0-9a-f]{1,16})\b"
_NUMBER = r"(\d{1,15})"
_ADDRESS = r"([0-9a-f]{16}|[0-9a-f]{8})(?![0-9a-f])"
_SPAN = rf"{_ADDRESS}->{_ADDRESS}"
_MEM = r"\[(?:mem )?(0x[0-9a-f]{1,16})-(0x[0-9a-f]{1,16})\]"
_FREE = r"memblock_(?:phys_)?free: +"
#: What Xen prints when it will not have a kernel, before the panic that names no reason.
COMPLAINTS = (
    "ELF: not an ELF binary",
    "Found 32-bit PV kernel, but CONFIG_PV32 missing",
    "Mismatch between Xen and DOM0 kernel",
    "Kernel does not support Dom0 operation",
    "Dom0 expects too high a hypervisor start address",
    "DOM0 image overlaps with Xen private area.",
    "Invalid HYPERCALL_PAGE field in ELF notes.",
    "Failed to load the kernel binary",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One line that says something, or a part of one.

    :ivar kind: key of PATTERNS
    :ivar line: its number in the file, from 1
    :ivar values: the pattern's groups: numbers as int, others as text, None for a missing one
    :ivar text: the line from the first word of the pattern on, without timestamps
    """

    kind: str
    line: int
    values: tuple[Value, ...]
    text: str

    def number(self, position: int = 0) -> int:
        """A value that is a number by its pattern."""
        value = self.values[position]
        assert isinstance(value, int)
        return value

    @property
    def span(self) -> tuple[int, int]:
        """The first two values as they were printed."""
        return self.number(0), self.number(1)


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot in a log: what Xen printed, what its dom0 printed, or both.

    :ivar first_line: number of its first line in the file
    :ivar facts: in the order of the log
    :ivar damaged: lines that begin like a fact, but whose numbers are cut off or garbled
    """

    first_line: int
    facts: list[Fact] = field(default_factory=list)
    damaged: list[Fact] = field(default_factory=list)

    def all(self, *kinds: str) -> list[Fact]:
        """Facts of these kinds, in the order of the log."""
        return [fact for fact in self.facts if fact.kind in kinds]

    def first(self, *kinds: str) -> Fact | None:
        """The first fact of these kinds."""
        return next((fact for fact in self.facts if fact.kind in kinds), None)

    def has(self, *kinds: str) -> bool:
        """Whether there is a fact of these kinds."""
        return self.first(*kinds) is not None


#: kind -> (texts, of which every such line has one, pattern, how to read its groups: x a number in
#: hexadecimal, d a decimal one, t a text).
PATTERNS: dict[str, tuple[str, str, str]] = {
    # Xen
    "xen_version": ("Xen version ", r"Xen version (\d+\.\d+\S*) ", "t"),
    "xen_command_line": ("Command line:", r"\(XEN\).*?Command line: ?(.*)", "t"),
    "xen_map_header": ("RAM map:", r"\(XEN\).*RAM map:", ""),
    "xen_map": ("] (", r"\[([0-9a-f]{16}), ([0-9a-f]{16})\] \(([^)]+)\)", "xxt"),
    "old_xen_map": (" - ", r"(?<!\w)([0-9a-f]{16}) - ([0-9a-f]{16}) \(([^)]+)\)", "xxt"),
    "iommu": ("I/O virtualisation", r"I/O virtualisation (enabled|disabled)", "t"),
    "l1tf": ("L1TF shadowing", r"PV L1TF shadowing: Dom0 (enabled|disabled)", "t"),
    "vcpus": ("Dom0 has maximum", rf"Dom0 has maximum {_NUMBER} VCPUs", "d"),
    "note": (
        "ELF: note|elf_xen_parse_note",
        r"(?:ELF: note|elf_xen_parse_note): ([A-Z_0-9]+) ?= ?(0x[0-9a-f]{1,16}\b|\".*\")",
        "tt",
    ),
    "address": (
        "virt_base|paddr_offset|p2m_base",
        rf" (virt_base|elf_paddr_offset|p2m_base) += {_HEX}",
        "tx",
    ),
    "dom0_kernel": (
        "Dom0 kernel:",
        rf"Dom0 kernel: (32|64)-bit(, PAE)?, (lsb|msb), paddr {_HEX} -> {_HEX}",
        "dttxx",
    ),
    "symbol_map": ("Dom0 symbol map", rf"Dom0 symbol map {_HEX} -> {_HEX}", "xx"),
    "clipped": ("memory clipped", rf"Dom0 memory clipped to {_NUMBER} pages", "d"),
    "physical": ("PHYSICAL MEMORY", r"PHYSICAL MEMORY ARRANGEMENT:", ""),
    "virtual": ("VIRTUAL MEMORY", r"VIRTUAL MEMORY ARRANGEMENT:", ""),
    "dom0_alloc": (
        "Dom0 alloc.:",
        rf"Dom0 alloc\.: +{_SPAN}(?:\s*$| \({_NUMBER} pages to be allocated\))",
        "xxd",
    ),
    "ramdisk": ("Init. ramdisk:", rf"Init\. ramdisk: +{_SPAN}", "xx"),
    "kernel": ("Loaded kernel:", rf"Loaded kernel: +{_SPAN}", "xx"),
    "p2m": ("Phys-Mach map:", rf"Phys-Mach map: +{_SPAN}", "xx"),
    "start_info": ("Start info:", rf"Start info: +{_SPAN}", "xx"),
    "xenstore": ("Xenstore ring:", rf"Xenstore ring: +{_SPAN}", "xx"),
    "console": ("Console ring:", rf"Console ring: +{_SPAN}", "xx"),
    "page_tables": ("Page tables:", rf"Page tables: +{_SPAN}", "xx"),
    "boot_stack": ("Boot stack:", rf"Boot stack: +{_SPAN}", "xx"),
    "total": ("TOTAL:", rf"TOTAL: +{_SPAN}", "xx"),
    "entry": ("ENTRY ADDRESS:", rf"ENTRY ADDRESS: {_ADDRESS}", "x"),
    "complaint": ("|".join(COMPLAINTS), "|".join(map(re.escape, COMPLAINTS)), ""),
    "dom0_ended": ("halted|crashed", r"(?:Hardware Dom0|Domain 0|Dom0) (halted|crashed)", "t"),
    # Linux
    "linux_version": ("Linux version ", r"Linux version (\d+\.\d+\S*)", "t"),
    "linux_command_line": ("Command line:", r"(?<!\w)Command line: ?(.*)", "t"),
    "booted_on": ("Xen version: ", r"Xen version: (\d+\.\d+\S*)", "t"),
    "released": ("Released ", rf"Released {_NUMBER} page\(s\)", "d"),
    "map": ("Xen: [mem", rf"Xen: {_MEM} +(.+)", "xxt"),
    "last_pfn": ("last_pfn =", rf"last_pfn = {_HEX} max_arch_pfn = 0x[0-9a-f]+", "x"),
    "brk": ("setup_arch", rf"memblock_reserve: +{_MEM}.* setup_arch\+", "xx"),
    "memory_added": ("memblock_add:", rf"memblock_add: +{_MEM}.* e820__?memblock_setup", "xx"),
    "configuration": ("MEMBLOCK conf", r"MEMBLOCK configuration:", ""),
    "memblock_sizes": (
        "reserved size",
        rf"memory size = {_HEX} reserved size = {_HEX}",
        "xx",
    ),
    "memory_count": ("memory.cnt", rf"memory\.cnt += {_HEX}", "x"),
    "reserved_count": ("reserved.cnt", rf"reserved\.cnt += {_HEX}", "x"),
    "memory": (
        "memory[0x",
        rf"memory\[0x[0-9a-f]+\]\s+{_MEM},? {_HEX} bytes( on node \d+)?",
        "xxxt",
    ),
    "reserved": (
        "reserved[0x",
        rf"reserved\[0x[0-9a-f]+\]\s+{_MEM},? {_HEX} bytes",
        "xxx",
    ),
    "direct_map_probe": ("init_mem_map", rf"{_FREE}{_MEM}.* init_mem_mapping\+", "xx"),
    "list_freed": ("xen_pagetable", rf"{_FREE}{_MEM}.* xen_pagetable_\w+\+", "xx"),
    "remap_freed": ("xen_remap", rf"{_FREE}{_MEM}.* xen_remap_memory\+", "xx"),
    # Its ends are exclusive.
    "ramdisk_moved": ("initrd moved", rf"initrd moved from {_MEM} to {_MEM}", "xxxx"),
    "ramdisk_used": ("RAMDISK:", rf"RAMDISK: {_MEM}", "xx"),
    "p2m_area": ("p2m virtual area", r"p2m virtual area at \S+, size is ([0-9a-f]{1,16})\b", "x"),
    "remapped": ("Remapped ", rf"Remapped {_NUMBER} page\(s\)", "d"),
    "memory_available": ("Memory: ", rf"Memory: \d+[kK]/{_NUMBER}[kK] available", "d"),
    # Ends
    "e820_conflict": (
        "conflicts with E820",
        r"(Xen hypervisor allocated [\w ]+ memory conflicts with E820 map)",
        "t",
    ),
    "mapping_failed": (
        "Failed to update kernel mapping",
        rf"Failed to update kernel mapping for mfn={_NUMBER} pfn={_NUMBER}\b",
        "dd",
    ),
    "early_exception": (
        "early exception",
        rf"early exception {_HEX}.* cr2 {_HEX}",
        "xx",
    ),
    "kernel_bug": ("kernel BUG at", r"kernel BUG at (\S+?)!?\s*$", "t"),
    "kernel_panic": ("Kernel panic", r"Kernel panic - not syncing: (.*)", "t"),
}
_XEN_PANIC = "Panic on CPU"
_BY_TEXT: dict[str, list[tuple[str, re.Pattern[str], str]]] = {_XEN_PANIC: []}
for _kind, (_texts, _regex, _types) in PATTERNS.items():
    for _text in _texts.split("|"):
        _BY_TEXT.setdefault(_text, []).append((_kind, re.compile(_regex), _types))
#: A line with none of these says nothing.
_ANY_TEXT = re.compile("|".join(map(re.escape, _BY_TEXT)))
#: Kinds of which a garbled line is worth telling.
_DAMAGE_SHOWN = frozenset(
    {"dom0_kernel", "dom0_alloc", "ramdisk", "kernel", "p2m", "start_info", "page_tables"}
    | {"boot_stack", "total", "entry", "memory", "reserved", "last_pfn"}
)
#: Lines of page tables and other allocations, thousands with memblock=debug.
_NOISE = ("memblock_alloc", "memblock_phys_alloc", " alloc_range")
_STAMP = re.compile(r"^\s*(?:\[(?:\s*\d+\.\d+|[0-9a-f]{16}|\d{4}-\d\d-\d\d[ T][\d:.,+Z-]+)\]\s?)*")


def read_boots(path: str | Path) -> list[Boot]:
    """The boots in a log file, or in standard input if it is called `-`.

    :raises InputError: it cannot be read, there is no boot of Xen or of its dom0 in it, or there
        are more than MAX_FACTS lines or MAX_BOOTS boots
    """
    if path == "-":
        return parse_boots(_decoded(_standard_input()), source="standard input")
    return parse_boots(_decoded(bytes(read_file(path, limit=MAX_LOG_BYTES))), source=path)


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("standard input", "it is closed")
    try:
        data = sys.stdin.buffer.read(MAX_LOG_BYTES + 1)
    except OSError as error:
        raise InputError("standard input", error.strerror or str(error)) from error
    if len(data) > MAX_LOG_BYTES:
        raise InputError("standard input", f"more than {MAX_LOG_BYTES >> 20} MiB")
    return data


def parse_boots(text: str, *, source: object = "log") -> list[Boot]:
    """The boots in a log, in its order.

    A boot begins with Xen's banner; what Linux prints belongs to the Xen before it, unless that
    has a dom0 already. A log that begins in the middle has its first boot from there on.

    :raises InputError: there is none
    """
    boots: list[Boot] = []
    for nr_facts, (fact, damaged) in enumerate(_facts(text), start=1):
        if nr_facts > MAX_FACTS or len(boots) > MAX_BOOTS:
            raise InputError(source, f"more than {MAX_FACTS} lines or {MAX_BOOTS} boots to explain")
        if not boots or _begins_anew(boots[-1], fact):
            boots.append(Boot(fact.line))
        (boots[-1].damaged if damaged else boots[-1].facts).append(fact)
    boots = [boot for boot in boots if _is_boot(boot)]
    if not boots:
        raise InputError(source, "no boot of Xen or of a Xen dom0 in this log")
    return boots


def _begins_anew(boot: Boot, fact: Fact) -> bool:
    if fact.kind == "xen_version":
        return bool(boot.facts)
    return fact.kind == "linux_version" and boot.has("linux_version")


def _is_boot(boot: Boot) -> bool:
    """Something of Xen's builder or of a dom0's early boot is there, not only a version."""
    return boot.has(
        "xen_version", "dom0_kernel", "dom0_alloc", "kernel", "p2m", "total", "xen_panic", "map",
        "released", "remapped", "booted_on",
    )  # fmt: skip


def _facts(text: str) -> Iterator[tuple[Fact, bool]]:
    """Every fact, and whether it is damaged."""
    panicking = False  # Xen says why in its next words
    last = text.count("\n") + 1  # empty, unless the log ends in the middle of a line
    for number, line in enumerate(_lines(text), start=1):
        if not panicking and not _ANY_TEXT.search(line):
            continue
        if any(noise in line for noise in _NOISE):
            continue
        for fragment in _fragments(line):
            if panicking and (said := _xen_text(fragment)):
                yield Fact("xen_panic", number, (said,), said), False
                panicking = False
            if _XEN in fragment and _XEN_PANIC in fragment:
                panicking = True
            for fact, damaged in _facts_of(fragment, number):
                yield fact, damaged or (number == last and bool(fact.values))


def _lines(text: str) -> Iterator[str]:
    """As text.split("\\n"), one at a time."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _fragments(line: str) -> Iterable[str]:
    """Parts of a line that were lines of their own: a serial console glues them together."""
    for part in re.split(r"\r+", _ESCAPES.sub("", line)):
        before, *after = part.split(_XEN)
        if before.strip():
            yield before[:MAX_LINE]
        for xen in after:
            yield (_XEN + xen)[:MAX_LINE]


def _xen_text(fragment: str) -> str:
    """What Xen says in a fragment; empty for stars, blank lines and others' words."""
    if _XEN not in fragment:
        return ""
    return _STAMP.sub("", fragment.partition(_XEN)[2].lstrip(" ")).strip(" *\t")


def _facts_of(fragment: str, number: int) -> Iterator[tuple[Fact, bool]]:
    for text in dict.fromkeys(_ANY_TEXT.findall(fragment)):
        for kind, regex, types in _BY_TEXT[text]:
            found = regex.search(fragment)
            if found and not (kind == "linux_command_line" and _XEN in fragment):
                values = tuple(map(_value, types, found.groups()))
                yield Fact(kind, number, values, found[0].strip()), False
                return
            if kind in _DAMAGE_SHOWN:
                yield Fact(kind, number, (), fragment.strip()), True


def _value(how: str, text: str | None) -> Value:
    if text is None or how == "t":
        return text
    return int(text, 16 if how == "x" else 10)
