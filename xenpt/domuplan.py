# SPDX-License-Identifier: GPL-2.0-or-later
"""`plan_domu`: where the toolstack's library puts everything of a PV guest. Pure arithmetic.

Models xc_dom_build_image() and what precedes it in tools/libs/guest/xg_dom_core.c and
xg_dom_x86.c, as libxl calls them (SPEC C).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from xenpt.abi import PAGE_SHIFT, SIF_MOD_START_PFN, TABLE_SHIFT, WORD, pfn_up
from xenpt.arrangement import JSON_KEYS, Plan
from xenpt.domueras import ToolstackEra, toolstack_era
from xenpt.domulayout import PAE, PV64, Builder
from xenpt.domutables import GivesUpError, TableMap, in_xen_slots, overwritten
from xenpt.eras import era_of
from xenpt.errors import UsageError
from xenpt.inputs.config import Guest, Host
from xenpt.inputs.initrd import Initrd
from xenpt.inputs.kernel import Kernel
from xenpt.layout import Layout
from xenpt.listshape import Range
from xenpt.plan import limits_exceeded

__all__ = ["DomuPlan", "plan_domu"]

MAXMEM_SLACK_PAGES = 256  # LIBXL_MAXMEM_CONSTANT: what libxl adds to maxmem


@dataclass(frozen=True, slots=True, kw_only=True)
class DomuPlan(Plan):
    """Where everything of a guest of the toolstack will be; see Plan for the common part.

    :ivar toolstack: what its release does
    :ivar maps: the initial mapping and, if there is one, that of the list; pfns and tables
    :ivar pfn_ranges: the guest's pfns that have memory; more than one with vNUMA
    :ivar log: the library's detail lines about the layout, without `domainbuilder: detail: `
    :ivar warnings: what the library gets wrong without a word
    """

    toolstack: ToolstackEra
    maps: tuple[TableMap, ...]
    pfn_ranges: tuple[Range, ...]
    log: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def p2m_size(self) -> int:
        """Entries of the list: pfns up to the end of the last range."""
        return self.pfn_ranges[-1][1]

    def as_dict(self) -> dict[str, Any]:
        """The `plan` JSON object, and `warnings`; `super()` does not work in a slotted class."""
        return Plan.as_dict(self) | {"warnings": list(self.warnings)}

    def __str__(self) -> str:
        """The library's detail lines, what it does not say, and why it gives up."""
        warnings = [f"warning: {text}" for text in self.warnings]
        return "\n".join([*self.log, *warnings, *([self.panic] if self.panic else [])])


def plan_domu(
    kernel: Kernel,
    host: Host | None = None,
    *,
    nr_pages: int | None = None,
    initrd: Initrd | int | None = None,
    vnuma: Sequence[Range] | None = None,
    xen_caps: str | None = None,
    cmd_line: str = "",
) -> DomuPlan:
    """Plan a guest as `xl create` would have it built.

    :param nr_pages: its memory; xl can only ask for whole MiB, users of the library for any
    :param initrd: the ramdisk, or the length of one that is not gzip
    :param vnuma: pfn ranges of its memory; the sum must be nr_pages, if that is given, too
    :param xen_caps: types of guests that the hypervisor knows, as `xl info` prints them; None for
        those of `host`
    :raises UsageError: no size, ranges that are none, a Xen that is not modelled
    """
    host = host or Host()
    ranges = _pfn_ranges(nr_pages, vnuma)
    module = Initrd(initrd) if isinstance(initrd, int) else initrd
    caps = xen_caps or f"{PV64} {PAE if host.pv32 else ''}"
    builder = Builder(kernel, toolstack_era(host.xen), ranges, nr_pages, module, caps)
    panic = None
    try:
        builder.parse()
        _populate(builder, host)
        builder.build_image()
        builder.boot_image()
    except GivesUpError as error:
        panic = str(error)
    guest = Guest(
        builder.nr_pages,
        initrd_bytes=module.nr_bytes if module else None,
        builder="toolstack",
        cmd_line=cmd_line,
    )
    plan = _filled(builder, host, guest, panic)
    return replace(plan, beyond=limits_exceeded(plan), warnings=_warnings(plan))


def _pfn_ranges(nr_pages: int | None, vnuma: Sequence[Range] | None) -> tuple[Range, ...]:
    if vnuma is None and (nr_pages is None or nr_pages <= 0):
        raise UsageError(f"a guest of {nr_pages or 'no'} pages: it needs at least one")
    ranges = tuple(vnuma or ((0, nr_pages or 0),))
    if any(start >= end for start, end in ranges) or any(
        before[1] > after[0] for before, after in pairwise(ranges)
    ):
        raise UsageError(f"vNUMA ranges {ranges}: expected sorted, disjoint [start, end) of pfns")
    return ranges


def _populate(builder: Builder, host: Host) -> None:
    """xc_dom_mem_init(): memory is asked for before anything has its place.

    Where an extent of 2 MiB cannot be had single pages are asked for, in vain, too.

    :raises GivesUpError: the host is out of memory (a fault)
    """
    if host.fragmented is not None:
        raise UsageError(f"--fault {host.fragmented}: only for --builder dom0")
    if host.oom is not None and host.oom <= nr_extents(builder.era, builder.ranges):
        text = f"failed to allocate {builder.nr_pages:#x} pages"
        raise GivesUpError(f"{builder.era.memory_function}: {text}")


def nr_extents(era: ToolstackEra, ranges: Sequence[Range]) -> int:
    """Extents that meminit_pv() asks for: of 2 MiB as many as fit, then single pages."""
    nr = 0
    for start, end in ranges:
        large = (end - start) >> TABLE_SHIFT if era.populates_2m else 0
        nr += large + (end - start - (large << TABLE_SHIFT))
    return nr


_UNDECIDED: dict[str, Any] = {
    "initrd": None, "p2m": (0, 0), "start_info": (0, 0), "page_tables": (0, 0),
    "boot_stack": (0, 0), "total": (0, 0), "nr_pt_frames": 0, "mfn_list": 0, "first_p2m_pfn": 0,
    "nr_p2m_frames": 0, "p2m_tables": {}, "p2m_leaves": {}, "mod_start": 0, "mod_len": 0,
    "flags": 0, "magic": "",
}  # fmt: skip


def _filled(builder: Builder, host: Host, guest: Guest, panic: str | None) -> DomuPlan:
    kernel, found = builder.kernel, builder.found
    keys = _UNDECIDED | builder.keys
    known = {"nr_pages", "panic", "kernel", "entry", "beyond"} | builder.keys.keys()
    kernel_range = (kernel.virt_kstart, kernel.virt_kend)
    layout = Layout(
        kernel=kernel_range,
        initrd=keys["initrd"],
        p2m=(0, 0) if keys["nr_p2m_frames"] else keys["p2m"],
        start_info=keys["start_info"],
        xenstore=found.get("xenstore"),
        console=found.get("console"),
        page_tables=keys["page_tables"],
        boot_stack=keys["boot_stack"],
        total=keys["total"],
        nr_pt_frames=keys["nr_pt_frames"],
        alloc_order=0,
    )
    return DomuPlan(
        nr_pages=builder.nr_pages,
        panic=panic,
        dom0_alloc=None,
        pages_to_be_allocated=0,
        kernel=kernel_range,
        entry=kernel.entry,
        **keys,
        image=kernel,
        host=host,
        guest=guest,
        era=era_of(host.xen),
        layout=layout,
        alloc_order=0,
        initrd_pages=pfn_up(keys["mod_len"]),
        initrd_maddr=None,
        pt_base=keys["page_tables"][0],
        max_pages=builder.nr_pages + MAXMEM_SLACK_PAGES,
        list_outside=bool(keys["nr_p2m_frames"]),
        notices=(),
        undecided=frozenset(JSON_KEYS) - known,
        toolstack=builder.era,
        maps=tuple(builder.maps),
        pfn_ranges=builder.ranges,
        log=tuple(builder.log),
        warnings=(),
    )


def _warnings(plan: DomuPlan) -> tuple[str, ...]:
    """What goes wrong without the library's noticing (SPEC C12)."""
    if plan.panic:
        return ()
    texts = []
    for what, one in zip(("initial mapping", "P->M list"), plan.maps, strict=False):
        if plan.image.bits == 64 and in_xen_slots(one):
            texts.append(
                f"the {what} lies in Xen's own address range: at the pin Xen puts its own tables "
                "there, and the guest finds the M2P table or nothing"
            )
    if plan.total[1] == WORD and (plan.list_outside or plan.flags & SIF_MOD_START_PFN):
        texts.append(
            "the initial mapping ends just at 2^64, where the library forgets its padding: the "
            "pages that it maps behind the boot stack are those of the ramdisk or the P->M list"
        )
    if overlap := overwritten(plan.maps):
        first = (overlap[0] - plan.maps[0].start) >> PAGE_SHIFT
        nr = (overlap[1] - overlap[0]) >> PAGE_SHIFT
        texts.append(
            f"the P->M list overwrites the initial mapping: {nr} pages from pfn {first} on are "
            "not mapped there, the list is"
        )
    return tuple(texts)
