# SPDX-License-Identifier: GPL-2.0-or-later
"""Host and guest settings: `Host`, `Guest`, and Xen's dom0_mem and e820 texts."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, WORD
from xenpt.errors import InputError, UsageError
from xenpt.faults import Fragmented
from xenpt.inputs.files import MAX_LINE, MAX_LOG_BYTES
from xenpt.units import pages

LEAF_SIZES = ("4k", "2m", "1g")
USABLE = "usable"  # what Xen and Linux call RAM in an e820 map
MAX_E820_ENTRIES = 1024  # E820MAX of Xen (asm/e820.h)
MAX_RAM_ADDRESS = 1 << 52  # bytes: the largest physical address of x86-64
_AMOUNT = re.compile(
    r"(?:0[xX](?P<hex>[0-9a-fA-F]{1,40})|(?P<number>[0-9]{1,40}))(?P<unit>[tTgGmMkKbB%]?)"
)
_AMOUNT_SHIFTS = {"T": 40, "G": 30, "M": 20, "K": 10, "B": 0, "": 10}
_XEN_E820 = re.compile(r"\[([0-9a-f]{16}), ([0-9a-f]{16})\] (\([^)]+\)|type \d+)")
_OLD_XEN_E820 = re.compile(r"\b([0-9a-f]{16}) - ([0-9a-f]{16}) (\([^)]+\)|type \d+)")
_LINUX_E820 = re.compile(r"(?:Xen|BIOS-e820): \[mem 0x([0-9a-f]{1,16})-0x([0-9a-f]{1,16})\] (.+)")


@dataclass(frozen=True, slots=True)
class Ram:
    """One entry of a host's e820 map: machine addresses [start, end) in bytes, and its type."""

    start: int
    end: int
    type: str = USABLE


@dataclass(frozen=True, slots=True)
class Host:
    """The machine and its Xen.

    :ivar xen: version as `xl info` or the log prints it
    :ivar memory: RAM in pages, or None where nothing depends on it; a text ("2 TiB") is converted
    :ivar superpages: largest leaf of the P->M list: what the processor has and Xen may use
    :ivar e820: the machine's map as Xen prints it, or None for one RAM entry [0, memory)
    :ivar max_vcpus: of dom0
    :ivar iommu: IOMMU tables are kept for dom0 (not off, not passthrough)
    :ivar shadow: dom0 may be shadowed (pv-l1tf=dom0): memory for that, and no 1 GiB leaf; Xen 4.12
    :ivar pv_shim: Xen itself runs in a guest, for one PV guest of its own
    :ivar pv32: built with CONFIG_PV32: 32-bit PV guests, and a second M2P for them
    :ivar bigmem: built with CONFIG_BIGMEM: more than 16 TiB, and a larger frame table
    :ivar pm_bits: power management bits that start_info's flags carry (3: P and C states)
    :ivar fragmented: its large blocks are few (a fault), or None
    :ivar oom: number of the request for a domain's memory from which on none is served (a fault)
    """

    xen: str = "4.17"
    memory: int | None = None
    superpages: str = "1g"
    e820: tuple[Ram, ...] | None = None
    max_vcpus: int = 1
    iommu: bool = False
    shadow: bool = False
    pv_shim: bool = False
    pv32: bool = True
    bigmem: bool = False
    pm_bits: int = 3
    fragmented: Fragmented | None = None
    oom: int | None = None

    @property
    def map(self) -> tuple[Ram, ...] | None:
        """The machine's e820 map, flat if only its size is known; None if neither is."""
        if self.e820 is not None or self.memory is None:
            return self.e820
        return flat_e820(self.memory)

    @property
    def largest_leaf(self) -> str:
        """Largest leaf that Xen uses for the P->M list; shadow code has no 1 GiB (96f6ee15ad)."""
        return "2m" if self.shadow and self.superpages == "1g" else self.superpages

    def __post_init__(self) -> None:
        memory: object = self.memory
        if isinstance(memory, str):
            object.__setattr__(self, "memory", pages(memory))
        object.__setattr__(self, "superpages", self.superpages.lower())
        if self.superpages not in LEAF_SIZES:
            raise UsageError(f"leaf size {self.superpages!r}: expected 4k, 2m or 1g")


@dataclass(frozen=True, slots=True)
class Guest:
    """What dom0 is given.

    :ivar nr_pages: its size in pages, if that is given exactly
    :ivar dom0_mem: Xen's option, if the size follows from the host
    :ivar initrd_bytes: length of the initrd module; None without one (0 is a module, but empty)
    :ivar builder: "dom0" (the hypervisor's) or "toolstack"
    :ivar cmd_line: kernel command line
    """

    nr_pages: int | None = None
    dom0_mem: str | None = None
    initrd_bytes: int | None = None
    builder: str = "dom0"
    cmd_line: str = ""

    def __post_init__(self) -> None:
        if self.initrd_bytes is not None and not 0 <= self.initrd_bytes < WORD // 2:
            raise UsageError(f"an initrd of {self.initrd_bytes:#x} bytes")


@dataclass(frozen=True, slots=True)
class MemSize:
    """One amount of dom0_mem: `pages` plus `percent` of what is available, or all but that."""

    pages: int = 0
    percent: int = 0
    minus: bool = False

    @property
    def is_absolute(self) -> bool:
        """Xen takes it for a wish that must not be clipped: positive, with a size part."""
        return not self.minus and self.pages > 0

    def of(self, available: int) -> int:
        """The amount in pages, modulo 2**64 as Xen computes it."""
        amount = (self.pages + self.percent * available // 100) % WORD
        return (available - amount) % WORD if self.minus else amount


@dataclass(frozen=True, slots=True)
class Dom0Mem:
    """Xen's dom0_mem option: the amount, its lower and its upper bound."""

    amount: MemSize = MemSize()
    min: MemSize = MemSize()
    max: MemSize = MemSize(pages=(1 << 63) - 1)


def parse_dom0_mem(text: str, *, percent: bool = True) -> Dom0Mem:
    """Read `[min:<amt>,][max:<amt>,][<amt>]` as Xen's parse_dom0_mem() does.

    An amount is a size, `<n>%` or `<size>+<n>%`, negative if it begins with `-`. A size is a
    number (0x: hex, leading 0: octal) with T, G, M, K or B; a bare one is in KiB. A later part
    overrides an earlier one of its kind; less than a page counts as nothing.

    :param percent: this Xen knows percentages (4.12)
    :raises UsageError: Xen would refuse the text with -EINVAL
    """
    parts: dict[str, MemSize] = {}
    for part in text.split(","):
        bound, colon, amount = part.rpartition(":")
        if colon and bound not in ("min", "max"):
            raise UsageError(f"dom0_mem {text!r}: {bound + colon!r} is neither min: nor max:")
        parts[bound or "amount"] = _parse_amount(text, amount, percent)
    return Dom0Mem(**parts)


def _parse_amount(text: str, amount: str, percent_known: bool) -> MemSize:
    minus = amount.startswith("-")
    pages = percent = 0
    items = amount.removeprefix("-").split("+")
    for position, item in enumerate(items):
        found = _AMOUNT.fullmatch(item)
        if not found:
            raise UsageError(f"dom0_mem {text!r}: {item!r} is no size and no percentage")
        number = int(found["hex"], 16) if found["hex"] else _decimal_or_octal(text, found["number"])
        if found["unit"] == "%":
            if not percent_known:
                raise UsageError(f"dom0_mem {text!r}: percentages need Xen 4.12 or later")
            if number >= 100:
                raise UsageError(f"dom0_mem {text!r}: percentage must be below 100")
            if position + 1 < len(items):
                raise UsageError(f"dom0_mem {text!r}: a percentage must come last")
            percent = number
        elif position:
            raise UsageError(f"dom0_mem {text!r}: only one size, and it must come first")
        else:
            shift = _AMOUNT_SHIFTS[found["unit"].upper()]
            pages = ((number << shift) % WORD) >> PAGE_SHIFT
    return MemSize(pages, percent, minus)


def _decimal_or_octal(text: str, number: str) -> int:
    try:
        return int(number, 8 if number.startswith("0") else 10)
    except ValueError:
        raise UsageError(f"dom0_mem {text!r}: {number!r} begins like octal") from None


def parse_e820(lines: Iterable[str], *, source: object = "e820") -> tuple[Ram, ...]:
    """The machine's map from Xen's or Linux's log lines; other lines are skipped.

    Xen: ` [0000000000000000, 000000000009fbff] (usable)`, or ` 0000000000000000 -
    000000000009fc00 (usable)` before 4.14. Linux: `Xen: [mem 0x0-0x9efff] usable`,
    `BIOS-e820: [mem ...]`. If a log has both, Xen's lines are the machine's and win.

    :raises InputError: no such line; entries that overlap, or end before they start; too many; RAM
        at an address that no x86 processor has
    """
    xen: list[Ram] = []
    linux: list[Ram] = []
    for line in lines:
        if found := _XEN_E820.search(line):
            xen.append(Ram(int(found[1], 16), int(found[2], 16) + 1, found[3].strip("()")))
        elif found := _OLD_XEN_E820.search(line):
            xen.append(Ram(int(found[1], 16), int(found[2], 16), found[3].strip("()")))
        elif found := _LINUX_E820.search(line):
            linux.append(Ram(int(found[1], 16), int(found[2], 16) + 1, found[3].strip()))
    entries = sorted(set(xen or linux), key=lambda ram: ram.start)
    if not entries:
        raise InputError(source, "no e820 line of Xen or Linux in it")
    if len(entries) > MAX_E820_ENTRIES:
        raise InputError(source, f"{len(entries)} e820 entries: Xen takes {MAX_E820_ENTRIES}")
    for ram, following in zip(entries, [*entries[1:], None], strict=True):
        if ram.end <= ram.start:
            raise InputError(source, f"e820 entry {ram.start:#x} ends before it starts")
        if ram.type == USABLE and ram.end > MAX_RAM_ADDRESS:
            raise InputError(source, f"e820 entry {ram.start:#x}: RAM beyond 2^52, past all of x86")
        if following and following.start < ram.end:
            raise InputError(source, f"e820 entry {following.start:#x} overlaps {ram.start:#x}")
    return tuple(entries)


def read_e820(path: str | Path) -> tuple[Ram, ...]:
    """The machine's map from a log file or a pipe, see `parse_e820`.

    :raises InputError: the file cannot be read, has no end, or holds no map
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_LOG_BYTES + 1)
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from error
    if len(raw) > MAX_LOG_BYTES:
        raise InputError(path, f"more than the {MAX_LOG_BYTES >> 20} MiB that a log may have")
    lines = re.finditer(rf"[^\r\n]{{1,{MAX_LINE}}}", raw.decode("utf-8", "replace"))
    return parse_e820((line[0] for line in lines), source=path)


def flat_e820(nr_pages: int) -> tuple[Ram, ...]:
    """One RAM entry [0, memory)."""
    return (Ram(0, nr_pages * PAGE_SIZE),)
