# SPDX-License-Identifier: GPL-2.0-or-later
"""What Xen's dom0 builder asks of Xen's heap: how many requests, and what a faulty host does to it.

A request is one alloc_domheap_pages() of dom0_construct(), setup_pv_physmap() and alloc_chunk()
in xen/arch/x86/pv/dom0_build.c, those that fail included; an initrd is no request, but a module.
"""

from dataclasses import dataclass, replace

from xenpt.abi import TABLE_SHIFT, WORD
from xenpt.arrangement import Plan
from xenpt.faults import FALLBACK, PANIC, Fragmented, OutOfMemory, Outcome
from xenpt.listshape import Run, leaf_runs, list_shape

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
    return HeapRequests(1, listed, _rest(plan, blocks))


def _failed(plan: Plan, blocks: Fragmented) -> int:
    """Attempts at a large leaf of the list that found no block: one for each slot of its size."""
    start, end, leaf = plan.p2m[0], plan.p2m[1] % WORD, plan.host.largest_leaf
    wanted, served = (leaf_runs(start, end, leaf=leaf, blocks=of) for of in (None, blocks))
    return sum(_slots(wanted, level) - _slots(served, level) for level in (3, 2))


def _slots(runs: list[Run], level: int) -> int:
    """Slots of the size of a leaf of `level` that leaves of that or of a larger size fill."""
    return sum(nr << TABLE_SHIFT * (of - level) for of, _, nr in runs if of >= level)


def _rest(plan: Plan, blocks: Fragmented | None) -> int:
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


def builder_outcomes(plan: Plan) -> list[Outcome]:
    """What came of the faults of the host that `plan` is built on."""
    found = []
    if plan.host.fragmented is not None:
        found.append(_fragmented(plan, plan.host.fragmented))
    if plan.host.oom is not None:
        found.append(_out_of_memory(plan, OutOfMemory("xen", plan.host.oom)))
    return found


def _out_of_memory(plan: Plan, fault: OutOfMemory) -> Outcome:
    requests = heap_requests(plan)
    text = requests.failing(fault.nth)
    if text is None:
        return Outcome.none(fault, f"the builder makes {requests.total:,} requests")
    if plan.panic != text + plan.era.panic_stop:
        return Outcome.none(fault, "the builder gives up before")
    return Outcome(fault, "build", PANIC, plan.panic)


def _fragmented(plan: Plan, fault: Fragmented) -> Outcome:
    if fault.larger == 0 and plan.alloc_order > fault.order and plan.panic:
        return Outcome(fault, "build", PANIC, plan.panic)
    if plan.panic:
        return Outcome.none(fault, "the builder gives up")
    texts = []
    if plan.list_outside:
        start, end = plan.p2m[0], plan.p2m[1] % WORD
        wanted = list_shape(start, end, leaf=plan.host.largest_leaf, mapped=plan.total)
        leaves = {"1g": wanted.leaves_1g, "2m": wanted.leaves_2m, "4k": wanted.leaves_4k}
        if leaves != plan.p2m_leaves:
            texts.append(f"the P->M list gets {_in_words(plan.p2m_leaves)} leaves, "
                         f"not {_in_words(leaves)}")  # fmt: skip
    if heap_requests(plan).rest != _rest(plan, None):
        texts.append(f"the rest of dom0 comes in blocks of 2^{fault.order} pages or less")
    if not texts:
        return Outcome.none(fault, "no larger block is asked for than the host has")
    return Outcome(fault, "build", FALLBACK, "; ".join(texts))


def _in_words(leaves: dict[str, int]) -> str:
    names = {"1g": "1 GiB", "2m": "2 MiB", "4k": "4 KiB"}
    return " + ".join(f"{leaves[k]:,} x {size}" for k, size in names.items() if leaves[k])
