# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux finds at its entry, and which kernels and guests are modelled there."""

from collections.abc import Sequence

from xenpt.abi import L3_SIZE, PAGE_SHIFT, START_KERNEL_MAP, pfn_up
from xenpt.dom0size import MAX_PAGES
from xenpt.errors import PanicError, UsageError
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.rules import LinuxRules
from xenpt.linux.state import BootState, InitialList, kernel_base
from xenpt.plan import Plan
from xenpt.xen.dom0 import Domain


def initial_state(
    domain: Domain,
    rules: LinuxRules,
    *,
    e820: Sequence[E820Entry] | None = None,
    max_reservation: int | None = None,
) -> BootState:
    """What Linux finds at its entry.

    :raises PanicError: the plan has no domain
    :raises UsageError: a kernel that is not where this Linux is, or not of its word size
    """
    plan = domain.plan
    if plan.panic:
        raise PanicError(plan.panic)
    _check_kernel(plan, rules)
    limit = plan.max_pages if max_reservation is None else max_reservation
    if plan.nr_pages > MAX_PAGES:  # Xen's answer has no more bits; the arithmetic goes on
        limit = max(limit, int(plan.nr_pages))
    return BootState(
        domain, rules, tuple(e820 or ()), limit, _initial_list(domain), _initrd(domain)
    )


def _check_kernel(plan: Plan, rules: LinuxRules) -> None:
    bits, start = plan.image.bits, int(plan.total[0])
    if bits == 32 and not rules.bits_32:
        raise UsageError(f"Linux {rules.name} has no 32-bit PV guests any more: try --linux v4.3")
    if bits == 32 and (not start or start % L3_SIZE or start != plan.image.virt_base):
        raise UsageError(
            f"this kernel is mapped from {start:x} on: a 32-bit Linux begins on a border of 1 GiB, "
            "not at 0"
        )
    if bits == 64 and start < START_KERNEL_MAP:
        raise UsageError(
            f"Linux {rules.name} is modelled as a 64-bit kernel from {START_KERNEL_MAP:x} on; "
            f"this kernel is mapped from {start:x} on"
        )
    if rules.auto_translated and (bits == 32 or not rules.asks_auto_translated):
        raise UsageError(
            f"Linux {rules.name} with {bits} bits is not modelled as an auto-translated guest"
        )


def _initial_list(domain: Domain) -> InitialList:
    plan = domain.plan
    vaddr = int(plan.mfn_list)
    first, nr = plan.first_p2m_pfn, plan.nr_p2m_frames
    if domain.p2m_map is None:
        first = (vaddr - kernel_base(plan)) >> PAGE_SHIFT
        nr = pfn_up(plan.nr_pages * plan.image.bits // 8)
    return InitialList(vaddr, domain.p2m_map, (int(first), int(first) + int(nr)))


def _initrd(domain: Domain) -> tuple[int, int] | None:
    plan = domain.plan
    if not plan.mod_len:
        return None
    start = int(plan.mod_start)
    start = start << PAGE_SHIFT if plan.initrd is None else start - kernel_base(plan)
    return start, start + int(plan.mod_len)
