# SPDX-License-Identifier: GPL-2.0-or-later
"""How many leaves and tables Xen's dom0 builder needs for a P->M list outside the initial mapping.

Closed form of setup_pv_physmap() in xen/arch/x86/pv/dom0_build.c, which goes page by page: a leaf
of 1 GiB or 2 MiB wherever one is aligned and fits, else 4 KiB, and a table when first needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from xenpt.abi import (
    L2_SHIFT,
    L3_SHIFT,
    L4_SHIFT,
    PAGE_SHIFT,
    PAGE_SIZE,
    TABLE_SHIFT,
    round_down,
    round_up,
)
from xenpt.faults import Fragmented

#: Leaves from the largest down, as options name them, and their size in words.
LEAVES: Final = {"1g": "1 GiB", "2m": "2 MiB", "4k": "4 KiB"}
Range = tuple[int, int]
Run = tuple[int, int, int]  # (level, first virtual address, leaves)


@dataclass(frozen=True, slots=True)
class ListShape:
    """Leaves of each size and table pages of each level. All fields are counts."""

    leaves_4k: int
    leaves_2m: int
    leaves_1g: int
    tables_l1: int
    tables_l2: int
    tables_l3: int

    @property
    def nr_tables(self) -> int:
        """Table pages of all levels."""
        return self.tables_l1 + self.tables_l2 + self.tables_l3

    @property
    def nr_data_pages(self) -> int:
        """Pages of 4 KiB that the list itself takes."""
        return (
            self.leaves_4k + (self.leaves_2m << TABLE_SHIFT) + (self.leaves_1g << 2 * TABLE_SHIFT)
        )

    @property
    def nr_frames(self) -> int:
        """start_info.nr_p2m_frames: data and table pages."""
        return self.nr_data_pages + self.nr_tables


def list_shape(
    start: int,
    end: int,
    *,
    leaf: str = "1g",
    mapped: Range = (0, 0),
    blocks: Fragmented | None = None,
) -> ListShape:
    """Shape of a list at virtual addresses [start, end), which need not be page-aligned.

    An unaligned start spends its slots on 4 KiB pages: the walk tests the address as it is and
    masks it only after the first page (SPEC B14).

    :param leaf: largest leaf, "4k", "2m" or "1g"
    :param mapped: what the initial mapping covers; its tables are there already
    :param blocks: large blocks that are left for it on a fragmented host; None: enough
    """
    if end <= start:
        return ListShape(0, 0, 0, 0, 0, 0)
    nr_4k, nr_2m, nr_1g = (
        sum(nr for of, _, nr in leaf_runs(start, end, leaf=leaf, blocks=blocks) if of == level)
        for level in (1, 2, 3)
    )
    return ListShape(
        leaves_4k=nr_4k,
        leaves_2m=nr_2m,
        leaves_1g=nr_1g,
        tables_l1=_new_tables(start, end, L2_SHIFT, mapped) - nr_2m - (nr_1g << TABLE_SHIFT),
        tables_l2=_new_tables(start, end, L3_SHIFT, mapped) - nr_1g,
        tables_l3=_new_tables(start, end, L4_SHIFT, mapped),
    )


def leaves_in_words(leaves: Mapping[str, int]) -> str:
    """`1 x 1 GiB + 88 x 2 MiB` of {"4k": 0, "2m": 88, "1g": 1}."""
    return " + ".join(f"{leaves[k]:,} x {size}" for k, size in LEAVES.items() if leaves[k])


def leaf_runs(
    start: int, end: int, *, leaf: str = "1g", blocks: Fragmented | None = None
) -> list[Run]:
    """The leaves of a list at [start, end): (level, first virtual address, count), upwards."""
    runs = _wanted_runs(start, end, leaf)
    return runs if blocks is None else _served_runs(runs, blocks)


def _served_runs(runs: list[Run], blocks: Fragmented) -> list[Run]:
    """Where a block cannot be had for a leaf, its slot is filled with the next smaller ones."""
    left, served = blocks.larger, []
    for level, vaddr, nr in runs:
        large = TABLE_SHIFT * (level - 1) > blocks.order
        got = min(nr, left) if large else nr
        left -= got if large else 0
        lower = 2 if level == 3 and blocks.order >= TABLE_SHIFT else 1
        smaller = (nr - got) << TABLE_SHIFT * (level - lower)
        behind = vaddr + (got << PAGE_SHIFT + TABLE_SHIFT * (level - 1))
        served += [(level, vaddr, got), (lower, behind, smaller)]
    joined = []
    for level, group in groupby((run for run in served if run[2]), key=lambda run: run[0]):
        of_level = list(group)
        joined.append((level, of_level[0][1], sum(nr for _, _, nr in of_level)))
    return joined


def _wanted_runs(start: int, end: int, leaf: str) -> list[Run]:
    low, high = round_down(start, PAGE_SIZE), round_up(end, PAGE_SIZE)
    large = _whole_slots(start, end, L2_SHIFT) if leaf != "4k" else (0, 0)
    huge = _whole_slots(start, end, L3_SHIFT) if leaf == "1g" else (0, 0)
    if large[0] == large[1]:
        return [(1, low, (high - low) >> PAGE_SHIFT)]
    large_low, large_high = large[0] << L2_SHIFT, large[1] << L2_SHIFT
    if huge[0] == huge[1]:
        huge_low = huge_high = large_high
    else:
        huge_low, huge_high = huge[0] << L3_SHIFT, huge[1] << L3_SHIFT
    runs = [
        (1, low, (large_low - low) >> PAGE_SHIFT),
        (2, large_low, (huge_low - large_low) >> L2_SHIFT),
        (3, huge_low, (huge_high - huge_low) >> L3_SHIFT),
        (2, huge_high, (large_high - huge_high) >> L2_SHIFT),
        (1, large_high, (high - large_high) >> PAGE_SHIFT),
    ]
    return [run for run in runs if run[2]]


def last_leaf_start(
    start: int, end: int, *, leaf: str = "1g", blocks: Fragmented | None = None
) -> int:
    """Where the last leaf of the list [start, end) begins; `start` if it is the only one."""
    level, vaddr, nr = leaf_runs(start, end, leaf=leaf, blocks=blocks)[-1]
    return max(start, vaddr + ((nr - 1) << PAGE_SHIFT + TABLE_SHIFT * (level - 1)))


def _whole_slots(start: int, end: int, shift: int) -> Range:
    """Slots of 2**shift bytes that lie wholly in [start, end), as numbers [first, behind)."""
    first = round_up(start, 1 << shift) >> shift
    return first, max(first, end >> shift)


def _touched_slots(start: int, end: int, shift: int) -> Range:
    return start >> shift, round_up(end, 1 << shift) >> shift


def _new_tables(start: int, end: int, shift: int, mapped: Range) -> int:
    """Slots of 2**shift bytes that [start, end) touches and `mapped` does not."""
    first, behind = _touched_slots(start, end, shift)
    if mapped[0] >= mapped[1]:
        return behind - first
    there_first, there_behind = _touched_slots(*mapped, shift)
    return behind - first - max(0, min(behind, there_behind) - max(first, there_first))
