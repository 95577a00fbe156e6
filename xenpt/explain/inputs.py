# SPDX-License-Identifier: GPL-2.0-or-later
"""From the lines of a log to the inputs of the model.

Several lines may speak of one input. Each value that any of them gives is a candidate; the
combination under which the model explains the most lines is taken, and lines that disagree with
it are the differences. A line that stands alone for an input is an input, not a check.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from xenpt.abi import L4_SIZE, PAGE_SHIFT, START_KERNEL_MAP, get_order, pfn_up
from xenpt.dom0size import MAX_PAGES, Dom0Size, dom0_compute_nr_pages
from xenpt.eras import PAYLOADS, era_of
from xenpt.errors import UsageError
from xenpt.explain.findings import Evidence
from xenpt.inputs.bootlog import Boot, Fact
from xenpt.inputs.config import (
    MAX_E820_ENTRIES,
    MAX_RAM_ADDRESS,
    Host,
    Ram,
    parse_dom0_mem,
)
from xenpt.inputs.kernel import DEFAULT_KERNEL, Kernel, default_kernel
from xenpt.inputs.kerneljson import natural_machine
from xenpt.plan import Plan, plan_dom0

#: Where a log does not say: releases that print or lay out differently, the newest first.
USUAL_XENS = ("4.20", "4.17", "4.14", "4.11", "4.10", "4.2.1", "4.1", "4.0", "3.4", "3.3", "3.0")
XEN_KINDS = ("xen_version", "booted_on")
USUAL_BASE = {64: START_KERNEL_MAP, 32: 0xC0000000}
USUAL_LIST = L4_SIZE  # INIT_P2M of Linux since 4.3
NO_ELF = "ELF: not an ELF binary"
#: What Xen says of a kernel that it refuses -> what must be so then, though no line says it.
REFUSED_HOST = {
    "Found 32-bit PV kernel, but CONFIG_PV32 missing": {"pv32": False},
    "Mismatch between Xen and DOM0 kernel": {"pv32": False},
}
REFUSED_KERNEL: dict[str, dict[str, Any]] = {
    "Kernel does not support Dom0 operation": {"supported_features": 0},
    "Dom0 expects too high a hypervisor start address": {"hv_start_low": 1 << 32},
    "Invalid HYPERCALL_PAGE field in ELF notes.": {"hypercall_page": 0},
}

Image = tuple[int, int, int, int]  # paddr start and end, virtual start and end


@dataclass(frozen=True, slots=True)
class Inputs:
    """One combination of what the lines of a log give.

    :ivar values: name ("base", "image", "initrd", "list", "pages") -> the value taken
    :ivar evidence: name -> all values, with the lines that give them
    :ivar host: machine and Xen; its map is None if the log has none
    :ivar asked: what Xen makes of dom0_mem and the host; None if they do not say
    :ivar asked_exactly: dom0_mem names the size, and the host has it
    :ivar plan: what the model makes of the inputs; None if nothing says dom0's size
    """

    values: dict[str, Any]
    evidence: dict[str, Evidence]
    host: Host
    asked: Dom0Size | None
    asked_exactly: bool
    plan: Plan | None

    @property
    def max_pages(self) -> int:
        """What dom0 may grow to."""
        return MAX_PAGES if self.asked is None else self.asked.max_pages

    def lines(self, name: str) -> tuple[int, ...]:
        """Lines that give the value that was taken."""
        return self.evidence[name].lines(self.values[name])

    def rests_on(self, name: str, line: int) -> bool:
        """Whether this line alone gives the value that was taken."""
        return set(self.lines(name)) == {line}


def all_inputs(boot: Boot) -> Iterator[Inputs]:
    """Every combination of the lines' values, the most trusted first.

    :raises UsageError: a version of Xen that is not modelled; an initrd that ends too early
    """
    known = host_of(boot)
    xens = (known.xen,) if boot.has(*XEN_KINDS) else USUAL_XENS
    bases, initrds = _bases(boot), _initrds(boot)
    for xen, base in product(xens, bases.values):
        host = replace(known, xen=xen)
        images = _images(boot, base)
        for image in images.values:
            kernel = _kernel(boot, host, base, image)
            for initrd in initrds.values:
                fixed = {"base": base, "image": image, "initrd": initrd}
                evidence = {"base": bases, "image": images, "initrd": initrds}
                yield from _sized(boot, host, kernel, fixed, evidence)


def _sized(
    boot: Boot, host: Host, kernel: Kernel, fixed: dict[str, Any], evidence: dict[str, Evidence]
) -> Iterator[Inputs]:
    initrd = fixed["initrd"]
    for has_list in (False, True) if boot.has("clipped") else (True, False):
        image = replace(kernel, init_p2m=USUAL_LIST if has_list else None)
        asked, exactly = _asked(boot, host, image, initrd)
        pages = _pages(boot, host, kernel, asked, initrd)
        for nr_pages in pages.values:
            lists = _lists(boot, kernel, nr_pages)
            for init_p2m in lists.values:
                if (init_p2m is not None) != has_list:
                    continue
                plan = None
                if nr_pages is not None and nr_pages > 0:
                    image = replace(image, init_p2m=init_p2m)
                    bare = replace(host, e820=None)
                    plan = plan_dom0(image, bare, nr_pages=nr_pages, initrd_bytes=initrd)
                values = fixed | {"pages": nr_pages, "list": init_p2m}
                found = evidence | {"pages": pages, "list": lists}
                yield Inputs(values, found, host, asked, exactly, plan)


# --- The host ----------------------------------------------------------------------------------


def host_of(boot: Boot) -> Host:
    """The machine and its Xen, as far as Xen printed them."""
    version = boot.first(*XEN_KINDS)
    changes: dict[str, Any] = {}
    for complaint in boot.all("complaint"):
        changes |= REFUSED_HOST.get(complaint.text, {})
    vcpus, iommu, shadow = (boot.first(kind) for kind in ("vcpus", "iommu", "l1tf"))
    return Host(
        xen=str(version.values[0]) if version else USUAL_XENS[0],
        e820=machine_map(boot),
        max_vcpus=vcpus.number() if vcpus else 1,
        iommu=bool(iommu and iommu.values[0] == "enabled"),
        shadow=bool(shadow and shadow.values[0] == "enabled"),
        **changes,
    )


def machine_map(boot: Boot) -> tuple[Ram, ...] | None:
    """Xen's own e820 map; None if the log has none, lost its start, or has one that is none.

    That is one with more entries than Xen takes, or with addresses past all of x86: garbled lines.
    """
    if not boot.has("xen_version", "xen_map_header"):
        return None
    entries = [
        Ram(start, end + (fact.kind == "xen_map"), str(fact.values[2]))
        for fact in boot.all("xen_map", "old_xen_map")
        for start, end in [fact.span]
    ]
    if not 0 < len(entries) <= MAX_E820_ENTRIES:
        return None
    if max(ram.end for ram in entries) > MAX_RAM_ADDRESS:
        return None
    return tuple(sorted(entries, key=lambda ram: ram.start))


def dom0_mem(boot: Boot) -> tuple[str, Fact] | None:
    """Xen's dom0_mem option and the line that has it; of several options the last counts."""
    fact = boot.first("xen_command_line")
    texts = re.findall(r"(?<!\S)dom0_mem=(\S+)", str(fact.values[0])) if fact else []
    return (texts[-1], fact) if texts and fact else None


def _asked(
    boot: Boot, host: Host, kernel: Kernel, initrd_bytes: int | None
) -> tuple[Dom0Size | None, bool]:
    if not boot.has("xen_command_line"):
        return None, False
    option = dom0_mem(boot)
    text = option[0] if option else None
    era = era_of(host.xen)
    try:
        wanted = parse_dom0_mem(text or "0", percent=era.dom0_mem_percent).amount
    except UsageError:  # Xen complains, and goes on without it
        return None, False
    if host.e820 is None:
        if not wanted.is_absolute or wanted.percent:
            return None, False
        limit = parse_dom0_mem(text or "0").max.of(0)
        return Dom0Size(wanted.pages, min(limit, MAX_PAGES)), True
    size = dom0_compute_nr_pages(kernel, host, era, text, initrd_bytes=initrd_bytes or 0)
    return size, wanted.is_absolute and not wanted.percent and size.nr_pages == wanted.pages


# --- The kernel --------------------------------------------------------------------------------


def _bits(boot: Boot) -> int:
    fact = boot.first("dom0_kernel")
    return fact.number() if fact else 64


def _named(boot: Boot, name: str) -> tuple[int, Fact] | None:
    """An address of the kernel's notes or of libelf's summary, where Xen was verbose."""
    for fact in boot.all("note", "address"):
        if fact.values[0] == name:
            value = fact.values[1]
            number = int(value, 16) if isinstance(value, str) and value[:2] == "0x" else value
            return (number, fact) if isinstance(number, int) else None
    return None


def _bases(boot: Boot) -> Evidence:
    found = Evidence()
    for name in ("VIRT_BASE", "virt_base"):
        if named := _named(boot, name):
            found.add(named[0], named[1])
    found.add(USUAL_BASE[_bits(boot)], None)
    if total := boot.first("total"):
        found.add(total.number(), total)
    kernel, image = boot.first("kernel"), boot.first("dom0_kernel")
    if kernel and image:
        for i in (0, 1):
            found.add(kernel.number(i) - image.number(3 + i), kernel)
    return found


def _images(boot: Boot, base: int) -> Evidence:
    """Where images may be: paddr start and end, virtual start and end.

    Linux has its physical addresses count from the virtual base, others from elsewhere
    (PADDR_OFFSET). With BSD_SYMTAB the virtual end is behind the symbol table.
    """
    found = Evidence()
    image, symbols, kernel = (boot.first(k) for k in ("dom0_kernel", "symbol_map", "kernel"))
    if image:
        start, end = image.number(3), image.number(4)
        whole_end = symbols.number(1) if symbols else end
        found.add((start, end, base + start, base + whole_end), image)
        if kernel:
            offset = kernel.number() - start
            found.add((start, end, offset + start, offset + whole_end), image)
    if kernel:
        first, last = kernel.span
        if base <= first < last:
            paddr_end = image.number(4) if image and symbols else last - base
            found.add((first - base, paddr_end, first, last), kernel)
    if not found.values:
        start, end = default_kernel().paddr
        behind = _behind_image(boot, base)
        if behind and behind.number() - base > start:
            end = behind.number() - base
        found.add((start, end, base + start, base + end), behind)
    return found


def _behind_image(boot: Boot, base: int) -> Fact | None:
    """The line of what is next to the image, for logs that begin later than the image's own."""
    list_line = boot.first("p2m")
    return list_line if list_line and list_line.number() >= base else boot.first("start_info")


def _kernel(boot: Boot, host: Host, base: int, image: Image) -> Kernel:
    fact, entry = boot.first("dom0_kernel"), boot.first("entry")
    start, end, virt_start, virt_end = image
    changes: dict[str, Any] = {"machine": natural_machine(_bits(boot))}
    for complaint in boot.all("complaint"):
        changes |= REFUSED_KERNEL.get(complaint.text, {})
        if complaint.text == NO_ELF:
            has = era_of(host.xen).payloads
            changes["payload"] = next((name for name in PAYLOADS if name not in has), None)
    return Kernel(
        bits=_bits(boot),
        pae="extcr3" if fact and fact.values[1] else "no" if _bits(boot) == 32 else "yes",
        virt_base=base,
        virt_kstart=virt_start,
        virt_kend=virt_end,
        entry=entry.number() if entry else virt_start,
        paddr=(start, end),
        segments=((start, end - start, end - start),),
        symbols=default_kernel().symbols if is_default_kernel(boot) else None,
        mod_start_pfn=not any(any(fact.span) for fact in ramdisks(boot)[1]),
        **changes,
    )


def is_odd(kernel: Kernel) -> bool:
    """A virtual base of its own, and yet physical addresses that do not count from it."""
    counts_from = kernel.virt_kstart - kernel.paddr[0]
    return kernel.virt_base not in (counts_from, USUAL_BASE[kernel.bits])


def is_default_kernel(boot: Boot) -> bool:
    """The log's Linux has the name of the shipped default kernel, so its symbols may be that's."""
    fact = boot.first("linux_version")
    return bool(fact and f"debian-{fact.values[0]}.json" == DEFAULT_KERNEL)


def ramdisks(boot: Boot) -> tuple[list[Fact], list[Fact]]:
    """The initrd's lines of the physical and of the virtual block."""
    virtual = boot.first("virtual")
    physical: list[Fact] = []
    mapped: list[Fact] = []
    for fact in boot.all("ramdisk"):
        is_mapped = fact.line > virtual.line if virtual else fact.span[1] in (0, fact.span[1] >> 47)
        (mapped if is_mapped else physical).append(fact)
    return physical, mapped


# --- Sizes -------------------------------------------------------------------------------------


def _initrds(boot: Boot) -> Evidence:
    """Lengths of the initrd.

    :raises UsageError: a line whose initrd ends before it begins
    """
    found = Evidence()
    physical, mapped = ramdisks(boot)
    listed = [*physical, *(fact for fact in mapped if fact.span[1]), *boot.all("ramdisk_moved")]
    for fact in listed:
        start, end = fact.span
        if end < start:
            raise UsageError(f"line {fact.line}: an initrd from {start:#x} to {end:#x}")
        found.add(end - start, fact)
    if not found.values:
        found.add(None, None)
    return found


def _pages(
    boot: Boot, host: Host, kernel: Kernel, asked: Dom0Size | None, initrd_bytes: int | None
) -> Evidence:
    found = Evidence()
    option = dom0_mem(boot)
    if asked is not None:
        found.add(asked.nr_pages, option[1] if option else None)
    for fact in boot.all("clipped"):
        found.add(fact.number(), fact)
    if list_line := boot.first("p2m"):
        start, end = list_line.span
        found.add((end - start) * 8 // kernel.bits, list_line)
    alloc, total = boot.first("dom0_alloc"), boot.first("total")
    in_place = era_of(host.xen).initrd_in_place
    if alloc:
        initrd_pages = pfn_up(initrd_bytes or 0) if in_place else 0
        rest = alloc.values[2] if isinstance(alloc.values[2], int) else 0
        start, end = alloc.span
        chunks = [(end - start) >> PAGE_SHIFT]
        if total and total.span[1] > total.span[0]:
            mapped = 0 if kernel.mod_start_pfn else initrd_pages << PAGE_SHIFT
            chunks.append(1 << get_order(total.span[1] - total.span[0] - mapped))
        for chunk in chunks:
            found.add(rest + chunk + initrd_pages, alloc)
    if not found.values:
        found.add(None, None)
    return found


def _lists(boot: Boot, kernel: Kernel, nr_pages: int | None) -> Evidence:
    """INIT_P2M as the kernel may have it; None for a list inside the initial mapping."""
    found = Evidence()
    if kernel.bits == 32:
        found.add(None, None)
        return found
    for name in ("INIT_P2M", "p2m_base"):
        if named := _named(boot, name):
            found.add(named[0], named[1])
    line = boot.first("p2m")
    if line:
        found.add(line.number(), line)
        if nr_pages is not None and line.span[1] >= 8 * nr_pages:
            found.add(line.span[1] - 8 * nr_pages, line)
    else:
        found.add(USUAL_LIST, None)
    found.add(None, boot.first("clipped") if not line else None)
    return found
