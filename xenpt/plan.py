# SPDX-License-Identifier: GPL-2.0-or-later
"""`plan_dom0`: where Xen's dom0 builder puts everything. Pure arithmetic, microseconds at any size.

Models dom0_construct() in xen/arch/x86/pv/dom0_build.c (SPEC B).
"""

from dataclasses import replace
from typing import Any

from xenpt import abi
from xenpt.abi import L4_SIZE, PAGE_SHIFT, WORD, pfn_up
from xenpt.arrangement import Plan
from xenpt.dom0size import MAX_PAGES, Dom0Size, dom0_compute_nr_pages
from xenpt.eras import Era, era_of
from xenpt.errors import UsageError
from xenpt.heaprequests import blocks_left
from xenpt.inputs.config import Guest, Host
from xenpt.inputs.kernel import Kernel
from xenpt.layout import initial_layout
from xenpt.listshape import ListShape, list_shape
from xenpt.panics import first_failure

__all__ = ["Plan", "plan_dom0"]

DIRECT_MAP_PAGES = 1 << 34  # 64 TiB: Linux' MAXMEM of 2^46 bytes (SPEC G3)
LIST_FIELDS = frozenset({"first_p2m_pfn", "nr_p2m_frames"})  # of start_info, from Xen 3.4


def plan_dom0(
    kernel: Kernel,
    host: Host | None = None,
    *,
    nr_pages: int | None = None,
    dom0_mem: str | None = None,
    initrd_bytes: int | None = None,
    alloc_maddr: int | None = None,
    initrd_maddr: int | None = None,
    cmd_line: str = "",
) -> Plan:
    """Plan a dom0 as the hypervisor's builder would.

    :param nr_pages: exactly its size; on a host of known memory, what dom0_mem asks for
    :param dom0_mem: Xen's option; with neither, dom0 gets what Xen gives by default
    :param initrd_bytes: length of the initrd module, None without one
    :param alloc_maddr: machine address of the first chunk, where a host layout determines it
    :param initrd_maddr: machine address of the initrd module, likewise
    :raises UsageError: no size, two sizes, or a text that Xen refuses; a Xen that is not modelled
    """
    host = host or Host()
    era = era_of(host.xen)
    guest = Guest(nr_pages, dom0_mem, initrd_bytes, cmd_line=cmd_line)
    size = _dom0_size(kernel, host, guest, era)
    initrd_bytes = initrd_bytes or 0
    list_bytes = size.nr_pages * kernel.bits // 8
    list_base = kernel.init_p2m if kernel.bits == 64 and era.init_p2m else None
    layout = initial_layout(
        kernel,
        era,
        list_bytes=list_bytes if list_base is None else 0,
        initrd_bytes=initrd_bytes,
        pv_shim=host.pv_shim,
    )
    p2m, shape = layout.p2m, ListShape(0, 0, 0, 0, 0, 0)
    if list_base is not None:
        p2m = (list_base, list_base + list_bytes)
        shape = list_shape(
            p2m[0],
            p2m[1] % WORD,
            leaf=host.largest_leaf,
            mapped=layout.total,
            blocks=blocks_left(host.fragmented, layout.alloc_order),
        )
    initrd = layout.initrd if layout.initrd and initrd_bytes else None
    initrd_pages = pfn_up(initrd_bytes) if era.initrd_in_place else 0
    chunk = 1 << layout.alloc_order
    plan = Plan(
        nr_pages=size.nr_pages,
        dom0_alloc=(
            None if alloc_maddr is None else (alloc_maddr, alloc_maddr + (chunk << PAGE_SHIFT))
        ),
        pages_to_be_allocated=size.nr_pages - chunk - initrd_pages,
        kernel=layout.kernel,
        initrd=initrd,
        p2m=p2m,
        start_info=layout.start_info,
        page_tables=layout.page_tables,
        boot_stack=layout.boot_stack,
        total=layout.total,
        entry=kernel.entry,
        nr_pt_frames=layout.nr_pt_frames,
        mfn_list=p2m[0],
        first_p2m_pfn=chunk + initrd_pages,
        nr_p2m_frames=shape.nr_frames,
        p2m_tables={"l1": shape.tables_l1, "l2": shape.tables_l2, "l3": shape.tables_l3},
        p2m_leaves={"4k": shape.leaves_4k, "2m": shape.leaves_2m, "1g": shape.leaves_1g},
        mod_start=(initrd[0] if initrd else chunk) if initrd_bytes else 0,
        mod_len=initrd_bytes,
        flags=_flags(host, era, unmapped_initrd=bool(initrd_bytes) and not initrd),
        magic=_magic(kernel, era),
        image=kernel,
        host=host,
        guest=guest,
        era=era,
        layout=layout,
        alloc_order=layout.alloc_order,
        initrd_pages=initrd_pages,
        initrd_maddr=initrd_maddr,
        pt_base=layout.page_tables[0] + _pt_base_quirk(kernel, era),
        max_pages=size.max_pages,
        list_outside=list_base is not None,
        notices=size.notices + _list_notice(kernel, era),
        undecided=frozenset() if era.init_p2m else LIST_FIELDS,
    )
    return _judged(replace(plan, beyond=limits_exceeded(plan)))


def _dom0_size(kernel: Kernel, host: Host, guest: Guest, era: Era) -> Dom0Size:
    if guest.nr_pages is not None and guest.dom0_mem is not None:
        raise UsageError("give the size of dom0 or dom0_mem, not both")
    if guest.nr_pages is not None and guest.nr_pages <= 0:
        raise UsageError(f"a dom0 of {guest.nr_pages} pages: it needs at least one")
    if guest.nr_pages is not None and host.map is None:
        return Dom0Size(guest.nr_pages, MAX_PAGES)
    text = guest.dom0_mem if guest.nr_pages is None else f"{guest.nr_pages << PAGE_SHIFT}B"
    return dom0_compute_nr_pages(kernel, host, era, text, initrd_bytes=guest.initrd_bytes or 0)


def _judged(plan: Plan) -> Plan:
    failure = first_failure(plan)
    if failure is None:
        return plan
    return replace(
        plan,
        panic=failure.panic,
        complaint=failure.complaint,
        arranged=failure.arranged,
        undecided=plan.undecided | failure.undecided,
        notices=plan.notices if failure.sized else (),
    )


def _flags(host: Host, era: Era, *, unmapped_initrd: bool) -> int:
    flags = 0 if host.pv_shim else abi.SIF_PRIVILEGED | abi.SIF_INITDOMAIN
    flags |= abi.SIF_MOD_START_PFN if unmapped_initrd else 0
    return flags | (host.pm_bits << abi.SIF_PM_SHIFT if era.pm_flags else 0)


def _magic(kernel: Kernel, era: Era) -> str:
    pae = era.shows_pae(bits=kernel.bits, pae=kernel.pae)
    return f"xen-{era.magic_version}-x86_{kernel.bits}{'p' if pae else ''}"


def _pt_base_quirk(kernel: Kernel, era: Era) -> int:
    return 0 if kernel.bits == 64 or era.compat_l3_first else 2 * abi.PAGE_SIZE


def _list_notice(kernel: Kernel, era: Era) -> tuple[str, ...]:
    if kernel.bits == 32 and kernel.init_p2m is not None and era.init_p2m:
        return ("P2M table base ignored",)
    return ()


def limits_exceeded(plan: Plan) -> tuple[dict[str, Any], ...]:
    """Limits of the real thing that the plan exceeds; `value` is the limit's."""
    wide = plan.image.bits == 64
    list_bytes = plan.p2m[1] - plan.p2m[0]
    limits = (
        (plan.nr_pages > MAX_PAGES, "pages of one domain", MAX_PAGES,
         "Xen: d->tot_pages and d->max_pages are 32-bit"),
        (wide and plan.nr_pages > DIRECT_MAP_PAGES, "pages of Linux' direct map", DIRECT_MAP_PAGES,
         "Linux: MAXMEM of 2^46 bytes with 4-level paging"),
        (plan.list_outside and list_bytes > L4_SIZE, "bytes of the P->M list", L4_SIZE,
         "Linux takes over one L4 entry of the list (xen_setup_kernel_pagetable)"),
        (plan.total[1] > WORD, "end of the address space", WORD,
         "x86-64: the initial mapping would wrap past 2^64"),
    )  # fmt: skip
    return tuple(
        {"limit": limit, "value": value, "source": source}
        for exceeded, limit, value, source in limits
        if exceeded
    )
