# SPDX-License-Identifier: GPL-2.0-or-later
"""The hypervisor's dom0 builder: a `Plan` becomes the page tables that dom0 finds at its entry.

Models dom0_construct(), setup_pv_physmap() and mark_pv_pt_pages_rdonly() in
xen/arch/x86/pv/dom0_build.c (SPEC B7 to B11; golden/README.md rules 9 to 14).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from xenpt import abi
from xenpt.abi import L2_SIZE, L3_SHIFT, PAGE_SHIFT, PAGE_SIZE, TABLE_SHIFT
from xenpt.engine import map_on_demand
from xenpt.errors import MappingError, PanicError
from xenpt.extents import Mapping, Runs, coalesce, expand, make_runs
from xenpt.heaprequests import NO_CHUNK, NO_LIST, NO_REST, blocks_left
from xenpt.listshape import LEAVES, leaf_runs
from xenpt.p2m import P2M
from xenpt.plan import Plan
from xenpt.xen.check import RuleError, Violation
from xenpt.xen.heap import Heap
from xenpt.xen.invariants import check_built

_NO_INITRD = "Not enough RAM for domain 0 initrd"

#: Table page of a domain at entry: pfn, count_info and type_info of its struct page_info.
PAGE_INFO = np.dtype([("pfn", "<u8"), ("count_info", "<u8"), ("type_info", "<u8")])


@dataclass(frozen=True)
class Domain:
    """A built domain, as its kernel finds it: nothing of it has run.

    :ivar initial: the initial mapping [v_start, v_end) with all its tables, the root included;
        pfn 0 is at v_start
    :ivar p2m_map: the P->M list at INIT_P2M with its own tables, or None when it is inside
    :ivar given_p2m: where a real host put the pages, or None for a modelled host
    :ivar shared_info: machine address that start_info names
    :ivar pinned: Xen has validated its tables; false for a guest that the toolstack only just built
    """

    plan: Plan
    initial: Mapping
    p2m_map: Mapping | None
    given_p2m: P2M | None = None
    shared_info: int = 0
    pinned: bool = True

    @cached_property
    def p2m(self) -> P2M:
        """pfn -> mfn of every page; a modelled host has 9/8 of the guest's size.

        :raises PanicError: the modelled host has not enough memory of the orders that Xen needs
        """
        if self.given_p2m is not None:
            return self.given_p2m
        plan = self.plan
        heap = Heap.modelled_host(plan.nr_pages, plan.host.fragmented)
        return _place(plan, self.p2m_map, heap)

    @cached_property
    def address_space(self) -> Mapping:
        """Both mappings as one, the way the root table shows them."""
        return self.initial if self.p2m_map is None else self.initial.merge(self.p2m_map)

    def page_info(self) -> npt.NDArray[np.void]:
        """Reference counts and types of all table pages at entry (golden/README.md rule 13).

        An entry that maps a table page is a reference; the root is pinned.
        """
        tables = expand(self.address_space.tables, tables=True)
        level, pfn = tables["level"], tables["pfn"]
        info = np.zeros(len(pfn), PAGE_INFO)
        root = level == level.max()
        info["pfn"] = pfn
        info["count_info"] = np.uint64(abi.PGC_ALLOCATED + 2) + self._nr_mappings(pfn) + root
        info["type_info"] = level * np.uint64(abi.PGT_L1_PAGE_TABLE) | np.uint64(abi.PGT_VALIDATED)
        info["type_info"] += np.where(root, np.uint64(abi.PGT_PINNED + 2), np.uint64(1))
        return info

    def _nr_mappings(self, pfn: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """How many entries map each of these table pages; the list's own are mapped nowhere."""
        plan = self.plan
        first, last = plan.first_p2m_pfn, plan.first_p2m_pfn + plan.nr_p2m_frames
        return ((pfn < first) | (pfn >= last)).astype(np.uint64)

    def violations(self) -> list[Violation]:
        """Every rule of Xen and of its builder that the domain breaks."""
        return check_built(self.plan, self.initial, self.p2m_map, self.p2m, pinned=self.pinned)

    def check(self) -> None:
        """:raises RuleError: a rule is broken."""
        violations = self.violations()
        if violations:
            raise RuleError(violations)

    def start_info(self) -> bytes:
        """The start_info page's structure, as the guest's word size lays it out (SPEC B11)."""
        plan = self.plan
        dtype = abi.START_INFO_64 if plan.image.bits == 64 else abi.START_INFO_32
        page = np.zeros((), dtype)
        page["magic"] = plan.magic.encode()
        page["shared_info"] = self.shared_info
        page["cmd_line"] = plan.guest.cmd_line.encode()
        page["console_info_off"] = plan.era.start_info_bytes
        page["console_info_size"] = plan.era.vga_info_bytes
        for name in ("nr_pages", "flags", "pt_base", "nr_pt_frames", "mfn_list"):
            page[name] = getattr(plan, name)
        for name in ("mod_start", "mod_len", "first_p2m_pfn", "nr_p2m_frames"):
            page[name] = getattr(plan, name)
        return page.tobytes()


def build(plan: Plan, *, p2m: P2M | None = None, shared_info: int = 0) -> Domain:
    """Build the dom0 that `plan` lays out.

    :param p2m: where a real host put the pages; None places them in a modelled host
    :raises PanicError: Xen gives up on this plan
    :raises MappingError: the kernel's VIRT_BASE is within a page, which Xen does not expect; its
        addresses are none, as those of a garbled log
    """
    if plan.panic:
        raise PanicError(plan.panic)
    base, (start, end) = plan.total[0], plan.kernel
    if base % PAGE_SIZE:
        raise MappingError(f"VIRT_BASE {base:#x} is no multiple of 4096: not modelled")
    if not base <= start <= end:
        raise MappingError(f"kernel [{start:#x}, {end:#x}): not an area behind VIRT_BASE {base:#x}")
    initial = _initial_mapping(plan)
    p2m_map = setup_pv_physmap(plan, initial) if plan.list_outside else None
    return Domain(plan, initial, p2m_map, p2m, shared_info)


# --- The initial mapping (SPEC B7, B8) -------------------------------------------------------


def _initial_mapping(plan: Plan) -> Mapping:
    order = _table_order(plan)
    first = (plan.page_tables[0] - plan.total[0]) >> PAGE_SHIFT
    rows = sorted((level, vaddr >> PAGE_SHIFT, first + k) for k, (level, vaddr) in enumerate(order))
    root = rows[-1][0]
    tables = make_runs(
        [
            (vpn, pfn, 1, 0, level, 0 if level == root else abi.TABLE_PROT)
            for level, vpn, pfn in rows
        ]
    )
    return Mapping(_initial_leaves(plan), coalesce(tables, tables=True))


def _table_order(plan: Plan) -> list[tuple[int, int]]:
    """(level, first address) of each table page, in the order in which Xen takes them."""
    v_start, v_end = plan.total
    compat = plan.image.bits == 32
    root = (3, 0) if compat else (4, 0)
    order = [] if compat and not plan.era.compat_l3_first else [root]
    seen = {root}
    for l1 in range(abi.round_down(v_start, L2_SIZE), v_end, L2_SIZE):
        for level in (1, 2, 3):
            table = level, abi.round_down(l1, 1 << (PAGE_SHIFT + TABLE_SHIFT * level))
            if table not in seen or (table == root and table not in order):
                seen.add(table)
                order.append(table)
    if compat:  # all four slots of a PAE root are populated
        order += [(2, slot << L3_SHIFT) for slot in range(4) if (2, slot << L3_SHIFT) not in seen]
    return order


def _initial_leaves(plan: Plan) -> Runs:
    """4 KiB leaves of [v_start, v_end): read-only on table pages, dirty where Xen wrote.

    Xen writes through this mapping, so the processor sets the dirty bit of each page of a loaded
    segment, of start_info and of a P->M list inside (golden/README.md rule 10).
    """
    v_start, v_end = plan.total
    image = plan.image
    base = image.virt_kstart - image.paddr[0]
    written = [(base + paddr, base + paddr + memsz) for paddr, _, memsz in image.segments]
    written.append(plan.start_info)
    if not plan.list_outside:
        written.append(plan.p2m)
    dirty = [(start & -PAGE_SIZE, abi.round_up(end, PAGE_SIZE)) for start, end in written]
    prot = abi.L1_PROT_DOM0 if image.bits == 64 else abi.L1_PROT_COMPAT
    edges = sorted({v_start, v_end, *plan.page_tables, *(edge for pair in dirty for edge in pair)})
    rows = []
    for start, end in pairwise(edges):
        flags = prot
        if any(a <= start < b for a, b in dirty):
            flags |= abi.PTE_DIRTY
        if plan.page_tables[0] <= start < plan.page_tables[1]:
            flags &= ~abi.PTE_RW
        pfn = (start - v_start) >> PAGE_SHIFT
        rows.append((start >> PAGE_SHIFT, pfn, (end - start) >> PAGE_SHIFT, 1, 1, flags))
    return coalesce(make_runs(rows))


# --- The P->M list outside the initial mapping (SPEC B9) ---------------------------------------


def setup_pv_physmap(plan: Plan, initial: Mapping) -> Mapping:
    """Map the list at INIT_P2M; table and data pages take pfns in the order of their allocation.

    A table page comes right before the first page that it maps; tables of the initial mapping
    are used where they cover the list, too.
    """
    prot = abi.L1_PROT_DOM0 | abi.PTE_DIRTY
    blocks = blocks_left(plan.host.fragmented, plan.alloc_order)
    rows = [
        (vaddr >> PAGE_SHIFT, 0, nr, 0, level, prot | (abi.PTE_PSE if level > 1 else 0))
        for level, vaddr, nr in leaf_runs(*plan.p2m, leaf=plan.host.largest_leaf, blocks=blocks)
    ]
    return map_on_demand(make_runs(rows), plan.first_p2m_pfn, existing=initial.tables)


def with_other_leaves(domain: Domain) -> Iterator[Domain]:
    """The same domain with its list outside in each other size of leaves that it has room for."""
    plan = domain.plan
    for leaf in LEAVES if plan.list_outside else ():
        if leaf == plan.host.superpages:
            continue
        other = replace(plan, host=replace(plan.host, superpages=leaf))
        mapping = setup_pv_physmap(other, domain.initial)
        if plan.first_p2m_pfn + mapping.nr_pages + mapping.nr_tables() <= plan.nr_pages:
            yield replace(domain, plan=other, p2m_map=mapping)


# --- Where the pages come from (SPEC B5, B9, B10) ----------------------------------------------


def _place(plan: Plan, p2m_map: Mapping | None, heap: Heap) -> P2M:
    """Take the domain's pages from `heap` in Xen's order: the chunk, the list, then the rest.

    The initrd was there before: it is a boot module, in one piece.

    :raises PanicError: the host has not enough memory left
    """
    stop = plan.era.panic_stop
    initrd_order = abi.get_order(plan.initrd_pages << PAGE_SHIFT)
    initrd = _take(heap, initrd_order, 1, _NO_INITRD + stop, module=True)
    chunk = _take(heap, plan.alloc_order, 1, NO_CHUNK + stop)
    nr_chunk, nr_initrd = 1 << plan.alloc_order, plan.initrd_pages
    before = nr_chunk if plan.initrd is None else (plan.initrd[0] - plan.total[0]) >> PAGE_SHIFT
    rows = [(0, chunk[0][0], 1, before)]
    if nr_initrd:
        rows.append((before, initrd[0][0], 1, nr_initrd))
    if nr_chunk > before:
        rows.append((before + nr_initrd, chunk[0][0] + before, 1, nr_chunk - before))
    pfn = plan.first_p2m_pfn
    for order, nr in () if p2m_map is None else _allocations(p2m_map):
        blocks = _take(heap, order, nr, NO_LIST + stop)
        rows += _rows(pfn, order, blocks)
        pfn += nr << order
    order = abi.MAX_ORDER
    while pfn < plan.nr_pages:  # alloc_chunk(): ever smaller orders, the largest that still fits
        order = min(order, (plan.nr_pages - pfn).bit_length() - 1)
        got = heap.alloc(order, (plan.nr_pages - pfn) >> order)
        if got is None and order == 0:
            raise PanicError(NO_REST + stop)
        if got is None:
            order -= 1
            continue
        rows += _rows(pfn, order, [got])
        pfn += got[1] << order
    return P2M.from_rows(rows)


def _take(
    heap: Heap, order: int, nr: int, panic: str, *, module: bool = False
) -> list[tuple[int, int]]:
    """`nr` blocks of 2**`order` pages, as pieces (first mfn, blocks) that each go downwards.

    :param module: it was there before all requests
    """
    pieces = []
    while nr:
        got = heap.alloc(order, nr, module=module)
        if got is None:
            raise PanicError(panic)
        pieces.append(got)
        nr -= got[1]
    return pieces


def _rows(pfn: int, order: int, pieces: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """P->M rows of allocated pieces: pfns go up, blocks go down, pages inside a block go up."""
    rows = []
    for mfn, blocks in pieces:
        if order == 0:
            rows.append((pfn, mfn, -1, blocks))
        else:
            rows += [(pfn + (i << order), mfn - (i << order), 1, 1 << order) for i in range(blocks)]
        pfn += blocks << order
    return rows


def _allocations(p2m_map: Mapping) -> list[tuple[int, int]]:
    """(order, blocks) in the order in which setup_pv_physmap() asks for them."""
    leaves, tables = p2m_map.leaves, expand(p2m_map.tables, tables=True)
    pfn = np.concatenate([leaves["pfn"], tables["pfn"]])
    nr = np.concatenate([leaves["nr"], tables["nr"]]).astype(np.int64)
    order = TABLE_SHIFT * np.concatenate([leaves["level"] - 1, np.zeros_like(tables["nr"])])
    by_pfn = np.argsort(pfn)
    nr, order = nr[by_pfn], order[by_pfn].astype(np.int64)
    first = np.flatnonzero(np.append(True, order[1:] != order[:-1]))
    return list(zip(order[first].tolist(), np.add.reduceat(nr, first).tolist(), strict=True))
