# SPDX-License-Identifier: GPL-2.0-or-later
"""A built domain with one wrong word in its page tables: what is wrong, and what Xen says of it.

Xen validates the tables of a guest of the toolstack when their root is pinned. It never validates
those that its own dom0 builder wrote: types and references are set by hand (SPEC B7, E12).
"""

from dataclasses import dataclass

import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    MMUEXT_PIN_L4_TABLE,
    PAGE_SHIFT,
    TABLE_SHIFT,
    VPN_END,
    table_slot,
)
from xenpt.domuplan import DomuPlan
from xenpt.errors import RefusedError, UsageError
from xenpt.extents import expand, tables_of
from xenpt.faults import Corrupted
from xenpt.image import PageTableImage, materialise
from xenpt.xen.adopt import frames_of
from xenpt.xen.audit import check_image
from xenpt.xen.check import Violation
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.dom0 import Domain
from xenpt.xen.domu import build_domu
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry that a fault is about.

    :ivar vaddr: first address that it maps
    :ivar old, new: its word without and with the fault
    """

    level: int
    vaddr: int
    old: int
    new: int

    @property
    def nr_pages(self) -> int:
        """Pages of 4 KiB behind it."""
        return 1 << TABLE_SHIFT * (self.level - 1)


def entry_of(domain: Domain, fault: Corrupted) -> Entry:
    """The entry of a built domain.

    :raises UsageError: no table of that level covers the address
    """
    vpn, level = fault.vaddr >> PAGE_SHIFT, fault.level
    if not vpn < VPN_END or not _table_exists(domain, vpn, level):
        raise UsageError(f"--fault {fault}: no L{level} table maps that address")
    first = vpn >> TABLE_SHIFT * (level - 1) << TABLE_SHIFT * (level - 1)
    old = _word(domain, vpn, level)
    new = fault.word if fault.word is not None else old ^ 1 << (fault.flip or 0)
    return Entry(level, first << PAGE_SHIFT, old, new)


def _table_exists(domain: Domain, vpn: int, level: int) -> bool:
    tables = tables_of(domain.address_space.tables, vpn, vpn + 1)
    return bool(np.any(tables["level"] == level))


def _word(domain: Domain, vpn: int, level: int) -> int:
    space = domain.address_space
    leaf = space.translate(vpn << PAGE_SHIFT)
    if leaf is not None and leaf[1] == level:
        pfn = leaf[0] - (vpn & (ENTRIES ** (level - 1) - 1))
        return int(domain.p2m.mfn([pfn])[0]) << PAGE_SHIFT | leaf[2]
    tables = tables_of(space.tables, vpn, vpn + 1)
    below = expand(tables[tables["level"] == level - 1], tables=True)
    if not len(below):
        return 0
    return int(domain.p2m.mfn(below["pfn"][:1])[0]) << PAGE_SHIFT | int(below["flags"][0])


def corrupted_image(domain: Domain, entry: Entry) -> PageTableImage:
    """All page tables of the domain as words, the wrong one among them."""
    image = materialise(domain.address_space, domain.p2m)
    row = image.root()
    if entry.level < LEVELS:
        shift = PAGE_SHIFT + TABLE_SHIFT * entry.level
        covers = image.vaddr >> np.uint64(shift) == np.uint64(entry.vaddr >> shift)
        row = int(np.flatnonzero(covers & (image.level == entry.level))[0])
    image.pages[row, table_slot(entry.vaddr, entry.level)] = entry.new
    return image


def violations(domain: Domain, entry: Entry) -> list[Violation]:
    """Rules that the domain breaks with the wrong word."""
    plan = domain.plan
    listed = (plan.p2m[0] >> PAGE_SHIFT, -(-plan.p2m[1] >> PAGE_SHIFT))
    return check_image(
        corrupted_image(domain, entry),
        domain.p2m,
        superpages=[listed] if domain.p2m_map is not None else (),
        adjusted=domain.pinned,
    )


def refusal_of_pin(domain: Domain, fault: Corrupted) -> RefusedError | None:
    """What Xen answers to the toolstack's pin of the root; None if it takes it.

    None, too, for dom0: nothing is validated when it is built.
    """
    if not isinstance(domain.plan, DomuPlan):
        return None
    plain = build_domu(domain.plan, p2m=domain.p2m, pinned=False)
    image = corrupted_image(plain, entry_of(plain, fault))
    tables = PageTables(frames_of(plain.p2m), Memory(), iomem=False, domid=1)
    tables.memory.put(image.mfn.tolist(), image.pages)
    pfns = plain.p2m.pfn(image.mfn)  # the M2P, as far as lines of the log name pages by it
    tables.m2p = dict(zip(image.mfn.tolist(), pfns.tolist(), strict=True))
    try:
        CheckedMachine(tables).mmuext_op([(MMUEXT_PIN_L4_TABLE, int(image.mfn[image.root()]), 0)])
    except RefusedError as refused:
        return refused
    return None


def pin_failed(plan: DomuPlan) -> str:
    """What the library says of it."""
    pfn = plan.maps[0].of(LEVELS).pfn
    return f"{plan.toolstack.late_function}: pin_table failed (pfn {pfn:#x}, rc=-1)"
