# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes of the faults of a host when a guest is built on it: `Outcome` of each."""

from xenpt.abi import WORD
from xenpt.arrangement import Plan
from xenpt.domuplan import DomuPlan, nr_extents
from xenpt.faults import FALLBACK, PANIC, Fragmented, Outcome, OutOfMemory
from xenpt.heaprequests import NO_CHUNK, heap_requests, rest_requests
from xenpt.listshape import leaves_in_words, list_shape

BUILD = "build"


def builder_outcomes(plan: Plan) -> list[Outcome]:
    """What came of the faults of the host that `plan` is built on."""
    found = []
    if plan.host.fragmented is not None:
        found.append(_fragmented(plan, plan.host.fragmented))
    if plan.host.oom is not None:
        found.append(_out_of_memory(plan, OutOfMemory("xen", plan.host.oom)))
    return found


def _out_of_memory(plan: Plan, fault: OutOfMemory) -> Outcome:
    if isinstance(plan, DomuPlan):
        total = nr_extents(plan.toolstack, plan.pfn_ranges)
        panics = f"{plan.toolstack.memory_function}: failed to allocate" in (plan.panic or "")
    else:
        requests = heap_requests(plan)
        total, text = requests.total, requests.failing(fault.nth)
        panics = text is not None and plan.panic == text + plan.era.panic_stop
    if plan.alloc_order > plan.era.max_order:
        panics = False  # anyway
    if plan.panic is None:
        return Outcome.none(fault, f"the builder makes {total:,} requests")
    if not panics:
        return Outcome.none(fault, "the builder gives up before")
    return Outcome(fault, BUILD, PANIC, plan.panic)


def _fragmented(plan: Plan, fault: Fragmented) -> Outcome:
    no_block = fault.larger == 0 and fault.order < plan.alloc_order <= plan.era.max_order
    if no_block and plan.panic == NO_CHUNK + plan.era.panic_stop:
        return Outcome(fault, BUILD, PANIC, plan.panic)
    if plan.panic:
        return Outcome.none(fault, "the builder gives up")
    texts = []
    if plan.list_outside:
        start, end = plan.p2m[0], plan.p2m[1] % WORD
        wanted = list_shape(start, end, leaf=plan.host.largest_leaf, mapped=plan.total)
        leaves = {"1g": wanted.leaves_1g, "2m": wanted.leaves_2m, "4k": wanted.leaves_4k}
        if leaves != plan.p2m_leaves:
            got, wish = leaves_in_words(plan.p2m_leaves), leaves_in_words(leaves)
            texts.append(f"the P->M list gets {got} leaves, not {wish}")
    if heap_requests(plan).rest != rest_requests(plan, None):
        texts.append(f"the rest of dom0 comes in blocks of 2^{fault.order} pages or less")
    if not texts:
        return Outcome.none(fault, "no larger block is asked for than the host has")
    return Outcome(fault, BUILD, FALLBACK, "; ".join(texts))
