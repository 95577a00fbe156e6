# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans for the golden libxenguest builds: their inputs, and nothing that the library decided.

The inputs are those of the drivers that took the cases: Debian's kernel, perhaps with changed
notes, or a synthetic ELF whose segments and notes are in the facts; memory; a ramdisk.
"""

from dataclasses import replace
from typing import Any

import goldendata

from xenpt.domuplan import DomuPlan, plan_domu
from xenpt.inputs.config import Host
from xenpt.inputs.initrd import Initrd
from xenpt.inputs.kernel import Kernel, default_kernel
from xenpt.inputs.kerneljson import natural_machine

#: The gzip file of the s-gz cases, as golden/domu/README.md gives its lengths.
GZIP = Initrd(20201, unpacked_bytes=5120000)
#: What the driver made the library believe in the 32-bit cases.
FAKED_CAPS = "xen-3.0-x86_64 xen-3.0-x86_32p xen-3.0-x86_32"
PAE_NOTES = {"yes": "extcr3", "bimodal": "bimodal"}


def kernel_of(facts: dict[str, Any]) -> Kernel:
    """The kernel of a case."""
    source = facts["how"]["kernel"]
    return synthetic(**source["synth"]) if "synth" in source else patched(source.get("notes", ""))


def patched(notes: str) -> Kernel:
    """Debian's kernel with notes changed: `NAME=VALUE`, or `-NAME` for one blanked."""
    kernel = default_kernel()
    for note in filter(None, notes.split(",")):
        name, _, value = note.removeprefix("-").partition("=")
        if name == "INIT_P2M":
            kernel = replace(kernel, init_p2m=int(value, 0) if value else None)
        else:
            assert name == "MOD_START_PFN"
            kernel = replace(kernel, mod_start_pfn=bool(value and int(value, 0)))
    return kernel


def synthetic(bits: int = 64, segs: Any = ((0x1000000, 0x400000),), **notes: Any) -> Kernel:
    """An ELF of the driver: segments (p_paddr, p_memsz), notes with the driver's defaults."""
    base = notes.get("VIRT_BASE", 0xFFFFFFFF80000000 if bits == 64 else 0xC0000000)
    shift = base - notes.get("PADDR_OFFSET", 0)
    start, end = min(paddr for paddr, _ in segs), max(sum(segment) for segment in segs)
    return Kernel(
        bits=bits,
        pae=PAE_NOTES.get(notes.get("PAE_MODE", "yes"), "no"),
        virt_base=base,
        virt_kstart=shift + start,
        virt_kend=shift + end,
        entry=notes.get("ENTRY", shift + segs[0][0]),
        paddr=(start, end),
        segments=tuple((paddr, min(memsz, 4096), memsz) for paddr, memsz in segs),
        init_p2m=notes.get("INIT_P2M"),
        mod_start_pfn=bool(notes.get("MOD_START_PFN", 0)),
        features="!writable_page_tables|pae_pgdir_above_4gb",
        hypercall_page=notes.get("HYPERCALL_PAGE"),
        machine=natural_machine(bits),
    )


def initrd_of(how: dict[str, Any]) -> Initrd | None:
    """The ramdisk of a case; the driver's file was /ramdisk."""
    if "modfile" in how:
        return replace(GZIP, vaddr=how.get("modva", 0))
    if "mod" not in how:
        return None
    return Initrd(how["mod"], vaddr=how.get("modva", 0), name="/ramdisk")


def domu_plan(name: str) -> DomuPlan:
    """The plan of a case from its inputs."""
    facts = goldendata.facts(name, "domu")
    how = facts["how"]
    nr_pages = how.get("pages") or how["mem"] << 8
    vnuma = None
    if "vnuma" in how:
        second = nr_pages + (how["hole"] << 8)
        vnuma = [(0, nr_pages), (second, second + (how["vnuma"] << 8))]
        nr_pages += how["vnuma"] << 8
    return plan_domu(
        kernel_of(facts),
        Host(xen="4.17.7" if how["tool"] == "4.17" else "4.20.4"),
        nr_pages=nr_pages,
        initrd=initrd_of(how),
        vnuma=vnuma,
        xen_caps=FAKED_CAPS if how.get("fakecaps") else None,
        cmd_line="console=hvc0" if how.get("driver") == "xl" else "console=hvc0 root=/dev/xvda1 ro",
    )
