# SPDX-License-Identifier: GPL-2.0-or-later
"""The initial mapping of a dom0: what lies where in it, and how many table pages it needs.

Models the first half of dom0_construct() in xen/arch/x86/pv/dom0_build.c (SPEC B3 to B5).
"""

from dataclasses import dataclass

from xenpt.abi import L2_SHIFT, L3_SHIFT, L4_SHIFT, PAGE_SIZE, get_order, round_down, round_up
from xenpt.eras import Era
from xenpt.inputs.kernel import Kernel
from xenpt.listshape import Range

TOTAL_STEP = 4 << 20  # the mapping ends on a multiple of it,
MIN_PADDING = 512 << 10  # with at least this behind the boot stack
COMPAT_L2_TABLES = 4  # a PAE guest always gets all four


@dataclass(frozen=True, slots=True)
class Layout:
    """Virtual ranges [start, end) of the initial mapping, in bytes.

    :ivar initrd: None if unmapped; empty if the kernel wants it mapped and there is none
    :ivar p2m: the list as far as it is in the mapping; empty if it lies elsewhere
    :ivar start_info: its end is the printed one, behind the console information
    :ivar xenstore: the shim's page, as is `console`; None otherwise
    :ivar nr_pt_frames: table pages
    :ivar alloc_order: order of the chunk that holds the mapping, mapped initrd excluded
    """

    kernel: Range
    initrd: Range | None
    p2m: Range
    start_info: Range
    xenstore: Range | None
    console: Range | None
    page_tables: Range
    boot_stack: Range
    total: Range
    nr_pt_frames: int
    alloc_order: int


def initial_layout(
    kernel: Kernel,
    era: Era,
    *,
    list_bytes: int,
    initrd_bytes: int = 0,
    pv_shim: bool = False,
) -> Layout:
    """Lay out the initial mapping.

    :param list_bytes: size of the P->M list if it is in the mapping, else 0
    """
    kernel_end = round_up(kernel.virt_kend, PAGE_SIZE)
    initrd = None
    list_start = kernel_end
    if not (kernel.mod_start_pfn and era.initrd_in_place):
        initrd = (kernel_end, kernel_end + initrd_bytes)
        list_start = round_up(initrd[1], PAGE_SIZE)
    p2m = (list_start, list_start + list_bytes)
    si_start = round_up(p2m[1], PAGE_SIZE)
    si_end = si_start + era.start_info_bytes
    pt_start = round_up(si_end, PAGE_SIZE)
    xenstore = console = None
    if pv_shim:
        xenstore = (pt_start, pt_start + PAGE_SIZE)
        console = (xenstore[1], xenstore[1] + PAGE_SIZE)
        pt_start = console[1]
    else:
        si_end += era.vga_info_bytes
    nr_pt_frames = nr_pt_pages(kernel.virt_base, pt_start, fixed_tables(kernel.bits, era))
    pt_end = pt_start + nr_pt_frames * PAGE_SIZE
    stack = (pt_end, pt_end + PAGE_SIZE)
    total = (kernel.virt_base, mapping_end(stack[1]))
    chunk_bytes = total[1] - total[0]
    if initrd and era.initrd_in_place:
        chunk_bytes -= round_up(initrd_bytes, PAGE_SIZE)
    return Layout(
        kernel=(kernel.virt_kstart, kernel.virt_kend),
        initrd=initrd,
        p2m=p2m,
        start_info=(si_start, si_end),
        xenstore=xenstore,
        console=console,
        page_tables=(pt_start, pt_end),
        boot_stack=stack,
        total=total,
        nr_pt_frames=nr_pt_frames,
        alloc_order=get_order(chunk_bytes),
    )


def fixed_tables(bits: int, era: Era) -> int | None:
    """Table pages above level 1 and 3 that a 32-bit guest gets at any size; None if 64-bit."""
    if bits == 64:
        return None
    return COMPAT_L2_TABLES + (0 if era.compat_l3_first else 1)


def mapping_end(stack_end: int) -> int:
    """End of the initial mapping whose boot stack ends at `stack_end`."""
    end = round_up(stack_end, TOTAL_STEP)
    return end + TOTAL_STEP if end - stack_end < MIN_PADDING else end


def nr_pt_pages(v_start: int, pt_start: int, fixed: int | None = None) -> int:
    """Smallest n >= 2 such that n table pages at `pt_start` map all of the initial mapping.

    Xen tries 2, 3, 4, ...; need() never falls as n grows, so going from n to need(n) skips only
    values that do not fit, and ends at the same n.

    :param fixed: see `fixed_tables`
    """
    n = 2
    while (needed := _need(v_start, pt_start, n, fixed)) > n:
        n = needed
    return n


def _need(v_start: int, pt_start: int, n: int, fixed: int | None) -> int:
    v_end = mapping_end(pt_start + (n + 1) * PAGE_SIZE)
    touched = [
        (round_up(v_end, 1 << shift) - round_down(v_start, 1 << shift)) >> shift
        for shift in (L2_SHIFT, L3_SHIFT, L4_SHIFT)
    ]
    if fixed is None:
        return 1 + sum(touched)
    return fixed + touched[0] + touched[2]
