# SPDX-License-Identifier: GPL-2.0-or-later
"""The toolstack's builder: a `DomuPlan` becomes the domain that a guest of `xl` finds.

Models setup_pgtables_pv(), start_info_x86_64() and vcpu_x86_64() in tools/libs/guest/xg_dom_x86.c,
and what Xen makes of the tables when their root is pinned (SPEC C6 to C9, C12, A4).
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from xenpt import abi
from xenpt.abi import PAGE_SHIFT, TABLE_SHIFT, VADDR_BITS, VPN_END, canonical
from xenpt.domuplan import DomuPlan
from xenpt.domutables import TableMap, in_xen_slots, overwritten
from xenpt.engine import clear
from xenpt.errors import PanicError
from xenpt.extents import Mapping, clip, coalesce, make_runs, sort_tables
from xenpt.p2m import P2M
from xenpt.room import require_room
from xenpt.xen.dom0 import Domain
from xenpt.xen.heap import Heap

Row = tuple[int, int, int, int, int, int]
SUPERPAGE_ORDER, SUPERPAGE_BATCH = (
    TABLE_SHIFT,
    512,
)  # extents of 2 MiB, at most that many in one call
PAGE_BATCH = 1 << 20  # pages in one call
CALL_BYTES = 160  # of memory that one call takes here, measured (a guest of 64 PiB)
LOW_MFN = 0xFF  # its page below 4 GiB for a PAE root that needs one
MFN_4G = (4 << 30) >> PAGE_SHIFT
CANONICAL_HALF = 1 << (VADDR_BITS - 1)


@dataclass(frozen=True)
class Domu(Domain):
    """A guest of the toolstack, paused before its first instruction.

    :ivar pinned: its root is pinned; False: as the library left it right before
    :ivar store_evtchn: event channel of xenstore, as libxl allocates it
    :ivar console_evtchn: event channel of the console
    """

    plan: DomuPlan
    pinned: bool = True
    store_evtchn: int = 1
    console_evtchn: int = 2

    @cached_property
    def p2m(self) -> P2M:
        """pfn -> mfn of every page; a modelled host has 9/8 of the guest's size.

        :raises PanicError: the modelled host has not enough memory of the orders that are needed
        """
        return _place(self.plan) if self.given_p2m is None else self.given_p2m

    def _nr_mappings(self, pfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Counted, as entries can be overwritten, or lie in a table that the pin drops."""
        found = np.zeros(len(pfn), np.uint64)
        for first, nr in self.address_space.leaves[["pfn", "nr"]].tolist():
            found += (pfn >= first) & (pfn < first + nr)
        return found

    def start_info(self) -> bytes:
        """The start_info page's structure, as the guest's word size lays it out (SPEC C8)."""
        plan, wide = self.plan, self.plan.image.bits == 64
        dtype = abi.START_INFO_64 if wide else abi.START_INFO_32
        page = np.zeros((), dtype)
        page["magic"] = plan.magic.encode()
        page["shared_info"] = self.shared_info
        page["cmd_line"] = plan.guest.cmd_line.encode()[:1023]
        page["store_mfn"], console_mfn = self._mfns(plan.layout.xenstore, plan.layout.console)
        page["store_evtchn"] = self.store_evtchn
        for name in ("nr_pages", "flags", "pt_base", "nr_pt_frames", "mfn_list"):
            page[name] = getattr(plan, name)
        for name in ("mod_start", "mod_len", "first_p2m_pfn", "nr_p2m_frames"):
            page[name] = getattr(plan, name)
        content = bytearray(page.tobytes())
        console = dtype.fields["console_info_off"][1] if dtype.fields else 0  # a union with dom0's
        form = "<QI" if wide else "<II"
        struct.pack_into(form, content, console, console_mfn, self.console_evtchn)
        return bytes(content)

    def registers(self) -> dict[str, int]:
        """What the first instruction of a 64-bit guest finds; the other registers are 0."""
        plan = self.plan
        root = self._mfns(plan.page_tables)[0]
        return {
            "cr3": root << PAGE_SHIFT,
            "rip": plan.entry,
            "rsi": plan.start_info[0],
            "rsp": plan.boot_stack[1],
            "rflags": abi.X86_EFLAGS_IF,
            "cs": abi.FLAT_KERNEL_CS,
            "ss": abi.FLAT_KERNEL_SS,
        }

    def _mfns(self, *pages: tuple[int, int] | None) -> list[int]:
        """Machine frames of pages of the initial mapping, given as virtual ranges."""
        pfns = [(page[0] - self.plan.total[0]) >> PAGE_SHIFT for page in pages if page]
        return [int(mfn) for mfn in self.p2m.mfn(pfns)]


def build_domu(
    plan: DomuPlan,
    *,
    p2m: P2M | None = None,
    shared_info: int = 0,
    pinned: bool = True,
    store_evtchn: int = 1,
    console_evtchn: int = 2,
) -> Domu:
    """Build the guest that `plan` lays out.

    A pin of a 64-bit root makes Xen put its own tables into L4 slots 256 to 271: what the library
    had put there is no longer part of the guest's address space.

    :param p2m: where a real host put the pages; None places them in a modelled host
    :raises PanicError: the toolstack gives up on this plan
    """
    if plan.panic:
        raise PanicError(plan.panic)
    initial = _initial_mapping(plan, pinned)
    listed = _list_mapping(plan, pinned) if plan.list_outside else None
    if pinned and plan.image.bits == 64 and any(map(in_xen_slots, plan.maps)):
        area = abi.HYPERVISOR_VIRT_START, abi.HYPERVISOR_VIRT_END
        initial, listed = clear(initial, *area), clear(listed, *area) if listed else None
    return Domu(plan, initial, listed, p2m, shared_info, pinned, store_evtchn, console_evtchn)


# --- Page tables (SPEC C5 to C7) ------------------------------------------------------------------


def _initial_mapping(plan: DomuPlan, pinned: bool) -> Mapping:
    """The first mapping, without the entries that the second one overwrites."""
    one = plan.maps[0]
    nr_pages = ((one.last - one.start) >> PAGE_SHIFT) + 1
    cuts = [0, nr_pages]
    for each in plan.maps:  # the list's own tables are in it if that ends just at 2^64
        first = min(each.tables[0].pfn, nr_pages)
        cuts[-1:-1] = first, min(first + each.nr_tables, nr_pages)
    rows: list[Row] = []
    for number, (start, end) in enumerate(pairwise(cuts)):
        flags = _leaf_flags(plan, pinned) & ~(abi.PTE_RW if number % 2 else 0)
        rows += _rows(one.start + (start << PAGE_SHIFT), end - start, start, 0, flags)
    leaves = make_runs(rows)
    if hidden := overwritten(plan.maps):
        start, end = (canonical(vaddr) >> PAGE_SHIFT for vaddr in hidden)
        leaves = np.concatenate((clip(leaves, 0, start), clip(leaves, end, VPN_END)))
    return Mapping(coalesce(leaves), _tables(plan, one, pinned))


def _list_mapping(plan: DomuPlan, pinned: bool) -> Mapping:
    one = plan.maps[1]
    nr_pages = ((one.last - one.start) >> PAGE_SHIFT) + 1
    rows = _rows(one.start, nr_pages, one.pfn, 0, _leaf_flags(plan, pinned))
    return Mapping(coalesce(make_runs(sorted(rows))), _tables(plan, one, pinned))


def _leaf_flags(plan: DomuPlan, pinned: bool) -> int:
    """The library's flags; the pin adds USER and GUEST_KERNEL to a 64-bit guest's (SPEC A4)."""
    return abi.L1_PROT_DOM0 if pinned and plan.image.bits == 64 else abi.L1_PROT_COMPAT


def _tables(plan: DomuPlan, one: TableMap, pinned: bool) -> npt.NDArray[np.void]:
    top = one.tables[0].level
    rows: list[Row] = []
    for tables in one.tables:
        flags = abi.TABLE_PROT
        if tables.level == top:
            flags = 0
        elif tables.level == 2 and top == 3 and not plan.toolstack.pae_l3_flags:
            # Not seen on a real Xen: a pin makes a PAE guest's L3 entries user and writable.
            flags = abi.PTE_PRESENT | (abi.PTE_USER | abi.PTE_RW if pinned else 0)
        rows += _rows(tables.start, tables.nr, tables.pfn, tables.level, flags)
    return sort_tables(make_runs(rows))


def _rows(start: int, nr: int, pfn: int, table_level: int, flags: int) -> list[Row]:
    """RUN rows of `nr` entries from a 48-bit address on: leaves (level 0) or tables of a level."""
    shift = PAGE_SHIFT + TABLE_SHIFT * table_level
    low = min(nr, max(0, (CANONICAL_HALF - start) >> shift)) if shift < VADDR_BITS else nr
    level = max(table_level, 1)
    rows = []
    for skip, count in ((0, low), (low, nr - low)):
        if count:
            vpn = canonical(start + (skip << shift)) >> PAGE_SHIFT
            rows.append((vpn, pfn + skip, count, 1, level, flags))
    return rows


# --- Where the pages come from (SPEC C1, C9) ------------------------------------------------------


def populate_calls(plan: DomuPlan) -> list[tuple[int, int, int]]:
    """(extents, order, first pfn) of each XENMEM_populate_physmap that the library issues.

    Models meminit_pv(); on a host that always has an extent of the order that is asked for.

    :raises NoRoomError: there would be more calls than memory holds
    """
    most = plan.nr_pages >> SUPERPAGE_ORDER if plan.toolstack.populates_2m else 0
    require_room(most // SUPERPAGE_BATCH * CALL_BYTES, "the hypercalls that populate the guest")
    calls = []
    for start, end in plan.pfn_ranges:
        pfn = start
        large = (end - start) >> SUPERPAGE_ORDER if plan.toolstack.populates_2m else 0
        for order, left, batch in (
            (SUPERPAGE_ORDER, large, SUPERPAGE_BATCH),
            (0, None, PAGE_BATCH),
        ):
            left = end - pfn if left is None else left
            while left:
                nr = min(left, batch)
                calls.append((nr, order, pfn))
                pfn, left = pfn + (nr << order), left - nr
    return calls


def _place(plan: DomuPlan) -> P2M:
    """Give the guest's pages frames of a modelled host.

    :raises PanicError: it has not enough memory left
    """
    host = Heap.modelled_host(plan.nr_pages)
    pieces = []
    for nr, order, first in populate_calls(plan):
        pfn, end = first, first + (nr << order)
        while pfn < end:
            got = host.alloc(order, (end - pfn) >> order)
            if got is None:
                where = plan.toolstack.memory_function
                raise PanicError(f"{where}: failed to allocate {plan.nr_pages:#x} pages")
            mfn, blocks = got
            i = np.arange(1 if order == 0 else blocks, dtype=np.int64) << order
            piece = np.empty((len(i), 4), np.int64)
            piece[:, 0], piece[:, 1] = pfn + i, mfn - i
            piece[:, 2:] = (-1, blocks) if order == 0 else (1, 1 << order)
            pieces.append(piece)
            pfn += blocks << order
    p2m = P2M.from_rows(np.concatenate(pieces))
    return _below_4g(plan, p2m) if plan.image.pae == "yes" and plan.image.bits == 32 else p2m


def _below_4g(plan: DomuPlan, p2m: P2M) -> P2M:
    """Exchange the root of a PAE guest whose CR3 holds no address above 4 GiB (SPEC C9)."""
    root = plan.maps[0].tables[0].pfn
    if int(p2m.mfn([root])[0]) < MFN_4G:
        return p2m
    rows = []
    for pfn, mfn, step, nr in p2m.runs.tolist():
        if not pfn <= root < pfn + nr:
            rows.append((pfn, mfn, step, nr))
            continue
        before, after = root - pfn, pfn + nr - root - 1
        rows.append((pfn, mfn, step, before))
        rows.append((root, LOW_MFN, 1, 1))
        rows.append((root + 1, mfn + (before + 1) * step, step, after))
    return P2M.from_rows([row for row in rows if row[3]])
