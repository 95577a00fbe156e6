# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame table of a domain that a builder made, from its page tables alone.

The builders set types and references by hand (mark_pv_pt_pages_rdonly, SPEC B7 to B10) and never
validate: dom0's P->M list has superpages that no guest could make. What they set is what entries
imply: one general reference for each entry that maps a frame, a type reference where it is
writable or leads to a table, and one of each for a pin and for the current root.
"""

from collections.abc import Iterable

import numpy as np

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    PGC_ALLOCATED,
    PGT_COUNT_MASK,
    PGT_PINNED,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
    PTE_PSE,
    PTE_RW,
)
from xenpt.extents import column
from xenpt.p2m import P2M
from xenpt.xen import entries
from xenpt.xen.checked import CheckedMachine
from xenpt.xen.entries import entry_mfn, present_slots
from xenpt.xen.frames import FrameTable, Words
from xenpt.xen.memory import Memory
from xenpt.xen.rules import PageTables, table_type

ALLOCATED = PGC_ALLOCATED | 1  # a page that nothing maps


def frames_of(
    p2m: P2M, nr_frames: int | None = None, io: Iterable[tuple[int, int]] = ()
) -> FrameTable:
    """A frame table in which the domain has the frames of `p2m`, all unmapped.

    :param nr_frames: end of host memory; default: that of the domain's highest frame
    :param io: mfn ranges that are no RAM
    """
    mfn, nr = column(p2m.runs, "mfn"), column(p2m.runs, "nr")
    start = np.where(column(p2m.runs, "step") < 0, mfn - nr + 1, mfn)
    end = int((start + nr).max(initial=0))
    frames = FrameTable(end if nr_frames is None else nr_frames, tuple(io))
    order = np.argsort(start)
    start, nr = start[order], nr[order]
    # Pieces that touch are filled as one: a chunk that is filled whole takes no memory.
    first = np.flatnonzero(np.append(True, start[1:] != start[:-1] + nr[:-1])[: len(start)])
    total = np.add.reduceat(nr, first) if len(first) else nr
    for begin, length in zip(start[first].tolist(), total.tolist(), strict=True):
        frames.fill(begin, begin + length, ALLOCATED, 0)
    return frames


def adopt(tables: PageTables, mfns: Iterable[int], levels: Iterable[int]) -> None:
    """Give the frames of page tables, and all frames that they map, what their entries imply."""
    for mfn, level in zip(mfns, levels, strict=True):
        words = tables.memory.words(mfn)
        if level == 1:
            taken = entries.l1_references(words, tables.frames, iomem=True, checked=False)
            entries.take(taken, tables.frames)
            continue
        for slot in present_slots(words, level):
            _adopt_entry(tables, int(words[slot]), level)


def _adopt_entry(tables: PageTables, entry: int, level: int) -> None:
    mfn = entry_mfn(entry)
    if entry & PTE_PSE and level < LEVELS:
        typed = np.uint64(PGT_WRITABLE_PAGE | PGT_VALIDATED if entry & PTE_RW else 0)
        for _, _, pairs in tables.frames.split(mfn, mfn + ENTRIES ** (level - 1)):
            pairs[:, 0] += np.uint64(1)
            pairs[:, 1] = (pairs[:, 1] | typed) + np.uint64(bool(entry & PTE_RW))
        return
    count_info, x = tables.frames.get(mfn)
    typed_x = table_type(level - 1) | PGT_VALIDATED | ((x & PGT_COUNT_MASK) + 1)
    tables.frames.set(mfn, count_info + 1, typed_x)


def machine_of(
    frames: FrameTable,
    mfns: Iterable[int],
    levels: Iterable[int],
    pages: Words,
    *,
    pinned: bool = True,
    iomem: bool = True,
    domid: int = 0,
    p2m: P2M | None = None,
) -> CheckedMachine:
    """A domain at its entry: its tables in use, its root current and, with `pinned`, pinned.

    :param mfns: frames of the table pages, the root first
    :param levels: level of each
    :param pages: (n, 512) words of each
    :param iomem: see PageTables, as `domid` and `p2m`
    """
    mfns = [int(mfn) for mfn in mfns]
    tables = PageTables(frames, Memory(), iomem=iomem, domid=domid, p2m=p2m)
    tables.memory.put(mfns, pages)
    adopt(tables, mfns, [int(level) for level in levels])
    count_info, x = frames.get(mfns[0])
    held = 1 + pinned
    typed = table_type(LEVELS) | PGT_VALIDATED | (PGT_PINNED if pinned else 0)
    frames.set(mfns[0], count_info + held, typed | ((x & PGT_COUNT_MASK) + held))
    return CheckedMachine(tables, base=mfns[0])
