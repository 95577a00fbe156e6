# SPDX-License-Identifier: GPL-2.0-or-later
"""The largest dom0 that boots on a host, with and without INIT_P2M: by search over the model.

Xen's plan of each size that is tried says whether it builds; the result is built and booted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from xenpt.abi import PAGE_SHIFT
from xenpt.dom0size import MAX_PAGES
from xenpt.inputs.config import USABLE, Host
from xenpt.inputs.kernel import Kernel
from xenpt.linux import Boot, LinuxRules
from xenpt.plan import plan_dom0
from xenpt.xen import build


@dataclass(frozen=True, slots=True)
class LargestDom0:
    """What a kernel gets of a host.

    :ivar init_p2m: the kernel has the note
    :ivar nr_pages: of the largest dom0 that boots; 0 if none does
    :ivar default_pages: what Xen gives without dom0_mem; `clipped`: for want of the note
    :ivar default_panic: why that does not boot, or None
    """

    init_p2m: bool
    nr_pages: int
    default_pages: int
    clipped: bool
    default_panic: str | None

    def as_dict(self) -> dict[str, Any]:
        """One element of `largest_dom0` in JSON."""
        return {
            "init_p2m": self.init_p2m,
            "nr_pages": self.nr_pages,
            "without_dom0_mem": {
                "nr_pages": self.default_pages,
                "clipped": self.clipped,
                "panic": self.default_panic,
            },
        }


def largest_dom0(kernel: Kernel, host: Host, rules: LinuxRules) -> tuple[LargestDom0, ...]:
    """The largest dom0 of a kernel, and then of the same kernel without the note, if it has it."""
    kernels = (kernel, replace(kernel, init_p2m=None)) if kernel.init_p2m is not None else (kernel,)
    return tuple(_largest(each, host, rules) for each in kernels)


def _largest(kernel: Kernel, host: Host, rules: LinuxRules) -> LargestDom0:
    default = plan_dom0(kernel, host)
    return LargestDom0(
        init_p2m=kernel.init_p2m is not None,
        nr_pages=_search(kernel, host, rules),
        default_pages=default.nr_pages,
        clipped=any("clipped" in notice for notice in default.notices),
        default_panic=_panic(kernel, host, rules, None),
    )


def _search(kernel: Kernel, host: Host, rules: LinuxRules) -> int:
    """The largest size that Xen builds, and of those the largest that Linux boots with."""
    ram_pages = (
        sum(ram.end - ram.start for ram in host.map or () if ram.type == USABLE) >> PAGE_SHIFT
    )
    found = min(plan_dom0(kernel, host, nr_pages=max(ram_pages, 1)).nr_pages, MAX_PAGES)
    found = _largest_that(lambda n: plan_dom0(kernel, host, nr_pages=n).panic is None, found)
    return _largest_that(lambda n: _panic(kernel, host, rules, n) is None, found)


def _largest_that(fits: Callable[[int], bool], at_most: int) -> int:
    """Down from `at_most` by halves to a size that fits, and up again; 0 if none does."""
    good, too_large = at_most, at_most + 1
    while good and not fits(good):
        good, too_large = good // 2, good
    while too_large - good > 1:
        middle = (good + too_large) // 2
        good, too_large = (middle, too_large) if fits(middle) else (good, middle)
    return good


def _panic(kernel: Kernel, host: Host, rules: LinuxRules, nr_pages: int | None) -> str | None:
    """Why a dom0 of this size does not boot, or None if it does."""
    plan = plan_dom0(kernel, host, nr_pages=nr_pages)
    if plan.panic:
        return plan.panic
    return Boot(build(plan), rules=rules, e820=plan.host.map, check=False).run().panic
