# SPDX-License-Identifier: GPL-2.0-or-later
"""`Cost`: exact counts of what one stage does. Every number here is counted, none is modelled."""

from dataclasses import dataclass, field, fields
from typing import Any

from xenpt.shown import Shown

HYPERCALL_TYPES = ("mmu_update", "update_va_mapping", "mmuext_op", "memory_op", "multicall")
TABLE_LEVELS = ("l1", "l2", "l3", "l4")


def _by_type() -> dict[str, int]:
    return dict.fromkeys(HYPERCALL_TYPES, 0)


def _by_level() -> dict[str, int]:
    return dict.fromkeys(TABLE_LEVELS, 0)


@dataclass(frozen=True, slots=True)
class Cost(Shown):
    """What one stage of a boot does, counted.

    A hypercall is one trap of the guest: a batch of several calls is one `multicall`, and a
    restart of a call that Xen pre-empted is not counted (SPEC F, counting convention).
    """

    by_type: dict[str, int] = field(default_factory=_by_type)  # hypercalls of the guest
    entries_read: dict[str, int] = field(default_factory=_by_level)  # by walks, per level
    entries_written: int = 0  # by the guest's own stores
    lookup_reads: int = 0  # by lookup_address(), 4 a page
    memblock_free_calls: int = 0
    pages_freed: int = 0  # given back to the allocator
    pages_leaked: int = 0  # neither used nor given back
    tables_freed: dict[str, int] = field(default_factory=_by_level)

    @property
    def hypercalls(self) -> int:
        """Hypercalls of all types."""
        return sum(self.by_type.values())

    def __add__(self, other: "Cost") -> "Cost":
        total: dict[str, Any] = {}
        for f in fields(self):
            a, b = getattr(self, f.name), getattr(other, f.name)
            total[f.name] = {k: a[k] + b[k] for k in a} if isinstance(a, dict) else a + b
        return Cost(**total)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON-ready data; `hypercalls` is the sum of `by_type`."""
        return {"hypercalls": self.hypercalls} | {
            f.name: getattr(self, f.name) for f in fields(self)
        }
