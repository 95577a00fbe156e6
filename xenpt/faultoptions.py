# SPDX-License-Identifier: GPL-2.0-or-later
"""The option --fault: which command takes which faults, and where each of them goes."""

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace

from xenpt.abi import PAGE_SIZE, PTE_PRESENT
from xenpt.engine import clear
from xenpt.errors import UsageError
from xenpt.extents import Mapping
from xenpt.faults import (
    LEAK,
    Corrupted,
    Fault,
    Fragmented,
    Outcome,
    OutOfMemory,
    is_of_host,
    of_kind,
    parse_faults,
)
from xenpt.inputs.config import Host
from xenpt.linux import Cleanup, Stage
from xenpt.xen.corruption import entry_of
from xenpt.xen.dom0 import Domain


def faults_of(options: Namespace) -> tuple[Fault, ...]:
    """The faults that --fault names.

    :raises UsageError: a text that is none, or a fault that the command has no use for
    """
    faults = parse_faults(options.fault, [stage.value for stage in Stage])
    for fault in faults:
        walked = options.command == "cleanup" and isinstance(fault, Corrupted)
        if options.command != "boot" and not is_of_host(fault) and not walked:
            raise UsageError(f"--fault {fault}: only for xenpt boot")
    engine = getattr(options, "engine", "extents")
    if engine != "extents" and faults:
        raise UsageError(f"--engine {engine}: not with --fault")
    return faults


def faulty_host(host: Host, faults: Iterable[Fault]) -> Host:
    """A host with the faults that concern the builder's memory."""
    blocks = of_kind(faults, Fragmented)
    ooms = [fault.nth for fault in of_kind(faults, OutOfMemory) if fault.who == "xen"]
    return replace(host, fragmented=blocks[0] if blocks else None, oom=ooms[0] if ooms else None)


def without_pages(domain: Domain, faults: Iterable[Fault]) -> Mapping | None:
    """The list's mapping without the pages whose entries a fault empties; None without such faults.

    :raises UsageError: a fault that does anything else
    """
    mapping = domain.p2m_map
    for fault in of_kind(faults, Corrupted):
        entry = entry_of(domain, fault)
        start, end = domain.plan.p2m
        in_list = mapping is not None and start <= entry.vaddr < end
        if not in_list or fault.level != 1 or entry.new & PTE_PRESENT:
            raise UsageError(
                f"--fault {fault}: for xenpt cleanup, only an L1 entry of the list that is emptied"
            )
        assert mapping is not None
        mapping = clear(mapping, entry.vaddr, entry.vaddr + PAGE_SIZE)
    return mapping if of_kind(faults, Corrupted) else None


def with_lost_pages(
    cleanup: Cleanup, whole: Cleanup, faults: Sequence[Fault]
) -> tuple[Cleanup, list[Outcome]]:
    """A walk over a list with empty entries, and what they cost: what is freed of `whole` only."""
    lost = whole.cost.pages_freed + whole.cost.pages_leaked - cleanup.cost.pages_freed
    cost = replace(cleanup.cost, pages_leaked=lost)
    others = whole.cost.pages_leaked
    text = f"frames of the P->M list that are not freed: {lost:,}, without the fault {others:,}"
    outcomes = [Outcome(f, "p2m_free", LEAK, text) for f in of_kind(faults, Corrupted)]
    return replace(cleanup, cost=cost), outcomes
