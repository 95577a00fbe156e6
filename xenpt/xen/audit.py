# SPDX-License-Identifier: GPL-2.0-or-later
"""The same rules on page tables as words: a built domain's image, or a real dump.

The walk over the words is a loop of _core; all else works on the runs that it gives, and on the
few words of levels 2 to 4.
"""

import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    PAGE_SHIFT,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    TABLE_SHIFT,
    XEN_SLOTS,
)
from xenpt.extents import Ranges, Runs, clip, column, join_ranges, run_array
from xenpt.image import UPPER_HALF, PageTableImage
from xenpt.p2m import P2M
from xenpt.xen.check import Mapped, Violation, violations

FLAGS = np.uint64(~PTE_MFN_MASK & (1 << 64) - 1)


def check_image(
    image: PageTableImage,
    p2m: P2M,
    *,
    other: Ranges = (),
    superpages: Ranges = (),
    adjusted: bool = True,
) -> list[Violation]:
    """Every rule that the words of an image break.

    :param other: mfns [start, end) that are not in `p2m`, but that the domain may map
    :param superpages: vpns [start, end) in which large leaves are the builder's
    :param adjusted: Xen has validated the tables
    :raises EntryError: tables that share one another beyond any real use
    """
    broken, tables, linear = _table_entries(image)
    mapped = Mapped(
        _without(image.walk().leaves, linear),
        tables,
        p2m.mfn_ranges([(0, _end(p2m))]),
        other=other,
        superpages=superpages,
        adjusted=adjusted,
    )
    return [*broken, *violations(mapped)]


def _without(leaves: Runs, windows: Ranges) -> Runs:
    """Leaves outside of linear page tables: in there tables show as pages, all read-only."""
    for start, end in join_ranges(windows).tolist():
        leaves = np.concatenate((clip(leaves, 0, start), clip(leaves, end, 1 << 52)))
    return leaves


def _end(p2m: P2M) -> int:
    return int((column(p2m.runs, "pfn") + column(p2m.runs, "nr")).max(initial=0))


def _table_entries(
    image: PageTableImage,
) -> tuple[list[Violation], Runs, list[tuple[int, int]]]:
    """Entries that lead to no table of the level below; a RUN row for each that does; and vpns
    [start, end) of those that are linear page tables (a read-only entry that names a table of its
    own level, SPEC E4).
    """
    top = image.root()
    root = run_array(
        [int(image.vaddr[top]) >> PAGE_SHIFT], image.mfn[top], 1, 1, int(image.level[top]), 0
    )
    rows, broken, windows = [root], [], []
    by_mfn = np.argsort(image.mfn)
    for level in range(int(image.level[top]), 1, -1):
        at = image.tables(level)
        words = image.pages[at]
        table = (words & np.uint64(PTE_PRESENT) != 0) & (
            (words & np.uint64(PTE_PSE) == 0) | (level == LEVELS)
        )
        if level == LEVELS:
            table[:, XEN_SLOTS.start : XEN_SLOTS.stop] = False
        row, slot = np.nonzero(table)
        word = words[row, slot]
        mfn = (word & np.uint64(PTE_MFN_MASK)) >> np.uint64(PAGE_SHIFT)
        vpn = _vpn(image, at[row], slot, level)
        found = np.minimum(np.searchsorted(image.mfn, mfn, sorter=by_mfn), len(by_mfn) - 1)
        child = by_mfn[found]
        held = image.mfn[child] == mfn
        right = held & (image.level[child] == level - 1)
        linear = held & (image.level[child] == level) & (word & np.uint64(PTE_RW) == 0)
        pages = ENTRIES ** (level - 1)
        windows += [(start, start + pages) for start in vpn[linear].tolist()]
        for i in np.flatnonzero(~right & ~linear).tolist():
            what = f"an L{int(image.level[child[i]])} table" if held[i] else "no table of the image"
            broken.append(
                Violation(
                    "wrong type",
                    f"{what}, where an L{level - 1} table must be",
                    int(vpn[i]) << PAGE_SHIFT,
                    level,
                    int(word[i]),
                )
            )
        rows.append(run_array(vpn[right], mfn[right], 1, 1, level - 1, word[right] & FLAGS))
    return broken, np.concatenate(rows), windows


def _vpn(
    image: PageTableImage,
    at: np.ndarray[tuple[int], np.dtype[np.int64]],
    slot: np.ndarray[tuple[int], np.dtype[np.int64]],
    level: int,
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First virtual page that an entry of a table covers, with the sign of its address."""
    base = (image.vaddr[at] >> np.uint64(PAGE_SHIFT)).astype(np.int64)
    vpn = base + (slot << (TABLE_SHIFT * (level - 1)))
    return np.where(slot >= ENTRIES // 2, vpn + UPPER_HALF, vpn) if level == LEVELS else vpn
