# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every domain that a builder made, as it finds itself: SPEC I1 to I5.

Checked on runs, so that 64 TiB take no longer than 1 GiB; rules about single entries are those of
check.py.
"""

import numpy as np

from xenpt.abi import INVALID_P2M_ENTRY, LEVELS, PAGE_SHIFT, PTE_RW, VPN_END
from xenpt.domuplan import DomuPlan
from xenpt.errors import MappingError
from xenpt.extents import Mapping, Runs, column, entry_pages, expand, join_ranges
from xenpt.p2m import P2M
from xenpt.plan import Plan
from xenpt.xen.check import Mapped, Pairs, Violation, violations

END_STEP = 4 << 20  # v_end is a multiple of it
PADDING = 512 << 10  # at least that much is mapped behind the boot stack
VPN_BITS = VPN_END - 1


def check_built(
    plan: Plan, initial: Mapping, p2m_map: Mapping | None, p2m: P2M, *, pinned: bool = True
) -> list[Violation]:
    """Every rule that a built domain breaks; the words of its violations hold machine frames.

    :param pinned: Xen has validated its tables
    """
    whole = _address_space(initial, p2m_map)
    if isinstance(whole, Violation):
        return [whole]
    mapped = Mapped(
        whole.leaves,
        whole.tables,
        _frames(p2m.runs),
        superpages=[(plan.p2m[0] >> PAGE_SHIFT, -(-plan.p2m[1] >> PAGE_SHIFT))] if p2m_map else (),
        adjusted=pinned and plan.image.bits == 64,
        word=lambda pfn, flags: _word(p2m, pfn, flags),
    )
    return [
        *violations(mapped),
        *_layout(plan, initial),
        *_table_order(plan, initial),
        *_initial_mapping(plan, initial),
        *_read_only(plan, whole),
        *_list_frames(plan, p2m_map),
        *_p2m(plan, p2m),
        *_large_leaves_aligned(whole.leaves, p2m),
    ]


def _address_space(initial: Mapping, p2m_map: Mapping | None) -> Mapping | Violation:
    try:
        return initial if p2m_map is None else initial.merge(p2m_map)
    except MappingError as error:
        return Violation("two mappings", str(error))


def _frames(p2m_runs: Runs) -> Pairs:
    start = column(p2m_runs, "pfn")
    return join_ranges(np.stack((start, start + column(p2m_runs, "nr")), axis=1))


def _word(p2m: P2M, pfn: int, flags: int) -> int:
    mfn = int(p2m.mfn([pfn])[0])
    return (0 if mfn == INVALID_P2M_ENTRY else mfn << PAGE_SHIFT) | flags


def _layout(plan: Plan, initial: Mapping) -> list[Violation]:
    """I1: the tables are as many as planned; what is mapped ends on 4 MiB with enough padding."""
    found = []
    if initial.nr_tables() + len(_spare(plan)) != plan.nr_pt_frames:
        text = f"{initial.nr_tables()} table pages, {plan.nr_pt_frames} planned"
        found.append(Violation("table count", text, plan.page_tables[0]))
    end, padding = plan.total[1], plan.total[1] - plan.boot_stack[1]
    if end % END_STEP or not PADDING <= padding < END_STEP + PADDING:
        text = f"ends with {padding >> 10} KiB behind the boot stack"
        found.append(Violation("end of mapping", text, end))
    return found


def _spare(plan: Plan) -> list[int]:
    """pfns among the tables that no table uses: of a compat guest before 4.2.1, the last (B4)."""
    spare = plan.image.bits == 32 and not plan.era.compat_l3_first
    return [((plan.page_tables[1] - plan.total[0]) >> PAGE_SHIFT) - 1] if spare else []


def _table_order(plan: Plan, initial: Mapping) -> list[Violation]:
    """I3: the levels of the table pages in the order of their frames.

    The toolstack takes all tables of a level at once, the root first. Xen takes each before the
    first page that needs it: the root, then the first table of each level from below; a compat root
    comes last before 4.2.1.
    """
    tables = expand(initial.tables, tables=True)
    levels = tables["level"][np.argsort(tables["pfn"])].tolist()
    root = max(levels)
    if isinstance(plan, DomuPlan):
        expected = sorted(levels, reverse=True)
    elif root < LEVELS and not plan.era.compat_l3_first:
        expected = list(range(1, root + 1))
    else:
        expected = [root, *range(1, root)]
    if levels[: len(expected)] == expected:
        return []
    text = f"levels {levels[:4]} instead of {expected[:4]}"
    return [Violation("table order", text, plan.page_tables[0])]


def _initial_mapping(plan: Plan, initial: Mapping) -> list[Violation]:
    """I2: each page of [v_start, v_end) is mapped by one 4 KiB leaf, each to another frame.

    Where a list overwrote leaves (SPEC C12), they are in its mapping and missing here.
    """
    leaves = initial.leaves
    start, end = (vaddr >> PAGE_SHIFT for vaddr in plan.total)
    vpn, nr = column(leaves, "vpn") & VPN_BITS, column(leaves, "nr")
    outside = leaves[(vpn < start & VPN_BITS) | (vpn + nr > ((end - 1) & VPN_BITS) + 1)]
    found = [
        Violation(
            "initial mapping",
            "outside of the range that was planned",
            int(row["vpn"]) << PAGE_SHIFT,
        )
        for row in outside
    ]
    low = np.where(column(leaves, "step") < 0, column(leaves, "pfn") - nr + 1, leaves["pfn"])
    order = np.argsort(low)
    low, nr = low[order].astype(np.int64), nr[order]
    for at in np.flatnonzero(low[:-1] + nr[:-1] > low[1:]).tolist():
        found.append(Violation("initial mapping", f"pfn {int(low[at + 1]):#x} is mapped twice"))
    return found


def _read_only(plan: Plan, whole: Mapping) -> list[Violation]:
    """I2: of all leaves, only those of table pages lack RW."""
    tables = {*expand(whole.tables, tables=True)["pfn"].tolist(), *_spare(plan)}
    read_only = expand(whole.leaves[whole.leaves["flags"] & PTE_RW == 0])
    return [
        Violation(
            "read-only",
            f"pfn {int(row['pfn']):#x} is no page table",
            int(row["vpn"]) << PAGE_SHIFT,
            int(row["level"]),
        )
        for row in read_only
        if int(row["pfn"]) not in tables
    ]


def _list_frames(plan: Plan, p2m_map: Mapping | None) -> list[Violation]:
    """I5: the list's data and tables fill [first_p2m_pfn, + nr_p2m_frames) without a gap."""
    if p2m_map is None:
        return []
    leaves, tables = p2m_map.leaves, expand(p2m_map.tables, tables=True)
    first, nr = column(leaves, "pfn"), column(leaves, "nr")
    size = entry_pages(column(leaves, "level"))
    dense = column(leaves, "step") == size
    rows = expand(leaves[~dense & (nr > 1)])
    pieces = [
        np.stack((first, first + size * np.where(dense, nr, 1)), axis=1),
        np.stack(
            (column(rows, "pfn"), column(rows, "pfn") + entry_pages(column(rows, "level"))), axis=1
        ),
        np.stack((column(tables, "pfn"), column(tables, "pfn") + 1), axis=1),
    ]
    start, end = plan.first_p2m_pfn, plan.first_p2m_pfn + plan.nr_p2m_frames
    held = join_ranges(np.concatenate(pieces))
    held = held[(held[:, 1] > start) & (held[:, 0] < end)]  # tables shared with the rest are not
    total = p2m_map.nr_pages + len(tables)
    if held.tolist() == [[start, end]] and total >= end - start:
        return []
    text = f"frames {held.tolist()[:4]} instead of [{start:#x}, {end:#x})"
    return [Violation("list frames", text, plan.p2m[0])]


def _p2m(plan: Plan, p2m: P2M) -> list[Violation]:
    """I4: the list is a permutation of the domain's frames, as many as it has pages."""
    found = []
    try:
        p2m.check()
    except MappingError as error:
        found.append(Violation("P->M list", str(error)))
    if p2m.nr_pages != plan.nr_pages:
        text = f"{p2m.nr_pages} frames for {plan.nr_pages} pages"
        found.append(Violation("P->M list", text))
    return found


def _large_leaves_aligned(leaves: Runs, p2m: P2M) -> list[Violation]:
    """A1: a large leaf's frames are one aligned block of host memory."""
    large = expand(leaves[leaves["level"] > 1])
    if not len(large):
        return []
    mfn = p2m.mfn(large["pfn"]).astype(np.int64)
    return [
        Violation(
            "superpage",
            f"mfn {int(mfn[i]):#x} is not aligned to its size",
            int(large["vpn"][i]) << PAGE_SHIFT,
            int(large["level"][i]),
            _word(p2m, int(large["pfn"][i]), int(large["flags"][i])),
        )
        for i in np.flatnonzero(mfn % entry_pages(column(large, "level"))).tolist()
    ]
