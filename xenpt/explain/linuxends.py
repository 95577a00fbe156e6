# SPDX-License-Identifier: GPL-2.0-or-later
"""How Linux's boot ended, where the model has something to say about it."""

from xenpt.abi import L4_SIZE
from xenpt.explain.findings import End
from xenpt.explain.memory import Memory, list_is_seen
from xenpt.inputs.bootlog import Boot, Fact
from xenpt.plan import Plan
from xenpt.units import format_size

_NOT_ENOUGH = (
    "No prediction: Xen's e820 map or its command line is not in the log, or Linux does here what "
    "is not modelled."
)
OTHER_ENDS = ("kernel_bug", "kernel_panic", "dom0_ended")
PAST_LIST_SETUP = ("p2m_area", "remapped", "list_freed", "ramdisk_used", "memory_available")


def linux_ends(boot: Boot, plan: Plan, memory: Memory | None, panic: str | None) -> list[End]:
    """Linux's end, or one that the model predicts and the log does not have."""
    conflict, failed = boot.first("e820_conflict"), boot.first("mapping_failed")
    exception, other = boot.first("early_exception"), boot.first(*OTHER_ENDS)
    unknown = memory is None and panic is None
    if unknown and (fact := conflict or failed):
        return [End(fact.line, fact.text, None, (_NOT_ENOUGH,))]
    if conflict:
        return [_conflict(conflict, panic)]
    if panic is not None:
        later = boot.first("released", "map", *PAST_LIST_SETUP)
        text = f"Linux goes on, where the model has it give up: {panic}"
        return [End(later.line, text, False, (panic,))] if later else []
    if failed:
        return [_failed_mapping(failed, memory)]
    if exception:
        return [_early_exception(exception, plan)]
    if not list_is_seen(plan):
        return _unseen_list(boot, plan)
    return [_other(other)] if other else []


def _conflict(fact: Fact, panic: str | None) -> End:
    text = str(fact.values[0])
    agrees = panic is not None and text in panic
    if not agrees:
        return End(fact.line, text, False, ("In the model there is no such conflict.",))
    why = (
        "Xen puts these pages at fixed places of dom0's memory, and there the host's map has no "
        "RAM: Linux has to leave them free for the hardware."
    )
    fix = "firmware settings that move the hole; for ACPI tables in the way, Linux 6.12 or newer"
    return End(fact.line, text, True, (why,), fix)


def _failed_mapping(fact: Fact, memory: Memory | None) -> End:
    pfn = fact.number(1)
    predicted = memory.failing_pfn if memory else None
    if predicted is None:
        return End(fact.line, fact.text, False, ("In the model all moved pages are mapped.",))
    why = (
        f"Pages move out of holes to pfn {predicted} first, which mem= puts behind the end of "
        "memory: it is not in the direct map."
    )
    return End(fact.line, fact.text, predicted == pfn, (why,), "no mem=, or dom0_mem instead of it")


def _early_exception(fact: Fact, plan: Plan) -> End:
    where = fact.number(1)
    if list_is_seen(plan):
        why = ("The model has nothing here that would fault.",)
        return End(fact.line, fact.text, False, why)
    start, end = plan.p2m
    lost = where if start // L4_SIZE == 0 else (start // L4_SIZE + 1) * L4_SIZE
    in_lost_part = lost <= where < end if start // L4_SIZE else start <= where < end
    return End(fact.line, fact.text, in_lost_part, _why_unseen(plan), _FIX_UNSEEN)


_FIX_UNSEEN = "an INIT_P2M note on a multiple of 512 GiB, not 0 (Linux has 0x8000000000)"


def _why_unseen(plan: Plan) -> tuple[str, ...]:
    start, end = plan.p2m
    if start < L4_SIZE:
        where = "lies in L4 slot 0, which Linux clears"
    else:
        slot = start // L4_SIZE
        where = f"crosses from L4 slot {slot} to {slot + 1}, and Linux takes over one slot only"
    return (f"The list at {start:016x}->{end:016x} ({format_size(end - start)}) {where}.",)


def _unseen_list(boot: Boot, plan: Plan) -> list[End]:
    later = boot.first(*PAST_LIST_SETUP)
    if later:
        text = "Linux goes on, where the model has it die"
        return [End(later.line, text, False, _why_unseen(plan))]
    fact = boot.first("dom0_ended")
    return [End(fact.line, fact.text, True, _why_unseen(plan), _FIX_UNSEEN)] if fact else []


def _other(fact: Fact) -> End:
    why = "Not a matter of what is modelled: memory, page tables and the P->M list."
    return End(fact.line, fact.text, None, (why,))
