# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen's dom0 builder asks of Xen's heap: how many requests, and what a faulty host does to it.

A request is one alloc_domheap_pages() of dom0_construct(), setup_pv_physmap() and alloc_chunk()
in xen/arch/x86/pv/dom0_build.c, those that fail included; an initrd is no request, but a module.
"""

from dataclasses import dataclass, replace

from xenpt.abi import TABLE_SHIFT, WORD
from xenpt.arrangement import Plan
from xenpt.faults import Fragmented
from xenpt.listshape import Run, leaf_runs

NO_CHUNK = "Not enough RAM for domain 0 allocation"
NO_LIST = "Not enough RAM for DOM0 P->M table"
NO_REST = "Not enough RAM for DOM0 reservation"


@dataclass(frozen=True, slots=True)
class HeapRequests:
    """Requests for the first chunk (always 1), for the list outside, for the rest."""

    chunk: int
    listed: int
    rest: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.chunk + self.listed + self.rest

    def failing(self, nth: int) -> str | None:
        """Panic of a builder whose `nth` request and all behind it fail; None if it makes less."""
        for nr, text in ((self.chunk, NO_CHUNK), (self.listed, NO_LIST), (self.rest, NO_REST)):
            if nth <= nr:
                return text
            nth -= nr
        return None


def blocks_left(blocks: Fragmented | None, chunk_order: int) -> Fragmented | None:
    """Large blocks of a fragmented host that are left when the first chunk has taken its own."""
    if blocks is None or chunk_order <= blocks.order:
        return blocks
    return replace(blocks, larger=max(0, blocks.larger - 1))


def heap_requests(plan: Plan) -> HeapRequests:
    """Requests of a builder that gets through."""
    blocks = blocks_left(plan.host.fragmented, plan.alloc_order)
    listed = 0
    if plan.list_outside:
        listed = sum(plan.p2m_tables.values()) + sum(plan.p2m_leaves.values())
    if blocks is not None and plan.list_outside:
        listed += _failed(plan, blocks)
        orders = {"2m": TABLE_SHIFT, "1g": 2 * TABLE_SHIFT}
        used = sum(plan.p2m_leaves[leaf] for leaf, order in orders.items() if order > blocks.order)
        blocks = replace(blocks, larger=blocks.larger - used)
    return HeapRequests(1, listed, rest_requests(plan, blocks))


def _failed(plan: Plan, blocks: Fragmented) -> int:
    """Attempts at a large leaf of the list that found no block: one for each slot of its size."""
    start, end, leaf = plan.p2m[0], plan.p2m[1] % WORD, plan.host.largest_leaf
    wanted, served = (leaf_runs(start, end, leaf=leaf, blocks=of) for of in (None, blocks))
    return sum(_slots(wanted, level) - _slots(served, level) for level in (3, 2))


def _slots(runs: list[Run], level: int) -> int:
    """Slots of the size of a leaf of `level` that leaves of that or of a larger size fill."""
    return sum(nr << TABLE_SHIFT * (of - level) for of, _, nr in runs if of >= level)


def rest_requests(plan: Plan, blocks: Fragmented | None) -> int:
    """Requests of alloc_chunk() until dom0 has all its pages: ever smaller orders, as they fit."""
    pages = plan.nr_pages - plan.first_p2m_pfn - plan.nr_p2m_frames
    order, nr, left = plan.era.max_order, 0, 0 if blocks is None else blocks.larger
    while pages > 0:
        order = min(order, pages.bit_length() - 1)
        taken = pages >> order
        if blocks is not None and order > blocks.order:
            taken, left = min(taken, left), left - min(taken, left)
            if not taken:  # each larger order is tried once, in vain
                nr += order - blocks.order
                order = blocks.order
                continue
        nr += taken
        pages -= taken << order
    return nr
