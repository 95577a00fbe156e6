# SPDX-License-Identifier: GPL-2.0-or-later
"""Single pages from memblock, one after the other, without a list of them all."""

from collections.abc import Sequence

import numpy as np

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE
from xenpt.errors import XenptError
from xenpt.extents import Ints, Runs, entry_pages, run_array, sort_leaves
from xenpt.linux.memblock import Memblock, Range

_NO_ROWS = np.empty((0, 4), np.int64)


def placed(first: Ints | int, position: Ints | int, nr: Ints | int, pace: int = 1) -> Ints:
    """Rows (first, position, nr, pace): what page i of a row is for begins at `first`.

    Page i is the one that was taken after position + i * pace others.
    """
    rows = np.empty((np.size(first), 4), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] = first, position, nr, pace
    return rows


def joined(rows: Sequence[Ints]) -> Ints:
    """Pieces of such rows in one; a row that goes on where the last one ends becomes part of it."""
    whole = np.concatenate(rows)
    first, position, nr, pace = whole.T
    goes_on = (first[:-1] + nr[:-1] == first[1:]) & (position[:-1] + nr[:-1] == position[1:])
    goes_on &= (pace[:-1] == 1) & (pace[1:] == 1)
    start = np.flatnonzero(np.append(True, ~goes_on))
    out: Ints = whole[start]
    out[:, 2] = np.add.reduceat(nr, start)
    return out


def again(rows: Ints, nr: int, shift: int, pace: int) -> Ints:
    """The rows `nr` times, each time for what lies `shift` further, with pages `pace` later."""
    if shift == 1 and len(rows) == 1 and rows[0, 2] == 1:
        return placed(int(rows[0, 0]), int(rows[0, 1]), nr, pace)
    moves = np.arange(nr)[:, np.newaxis, np.newaxis] * np.array([shift, pace, 0, 0])
    repeated: Ints = (rows + moves).reshape(-1, 4)
    return repeated


class Pages:
    """The highest free page, then the next lower one, and so on.

    :param without: what to raise when there is none
    :ivar nr: pages taken so far
    """

    def __init__(self, memblock: Memblock, without: XenptError) -> None:
        self._memblock, self._without = memblock, without
        self._served = memblock.fails_from and max(0, memblock.fails_from - 1 - memblock.requests)
        top = memblock.memory.ranges[-1][1] if memblock.memory.ranges else 0
        free = memblock.memory.clip(PAGE_SIZE, top) - memblock.reserved
        self._free = [(a >> PAGE_SHIFT, b >> PAGE_SHIFT) for a, b in free]
        self._taken: list[Range] = []
        self.nr = 0

    @property
    def left(self) -> int:
        """Pages that can still be taken."""
        free = sum(end - start for start, end in self._free)
        return free if self._served is None else min(free, max(0, self._served - self.nr))

    def next(self, without: XenptError | None = None) -> int:
        """Frame of the next page.

        :param without: what to raise instead, when there is none
        :raises XenptError: there is none
        """
        if without is not None and not self.left:
            raise without
        self.skip(1)
        return self._taken[-1][0]

    def skip(self, nr: int) -> None:
        """Take `nr` pages that nobody names.

        :raises XenptError: there are fewer
        """
        if self._served is not None and self.nr + nr > self._served:
            raise self._without
        self.nr += nr
        while nr > 0:
            if not self._free:
                raise self._without
            start, end = self._free.pop()
            got = min(nr, end - start)
            nr -= got
            if self._taken and self._taken[-1][0] == end:
                self._taken[-1] = (end - got, self._taken[-1][1])
            elif got:
                self._taken.append((end - got, end))
            if end - got > start:
                self._free.append((start, end - got))

    def place(self, rows: Sequence[Ints], level: int, flags: int, *, tables: bool) -> Runs:
        """Runs of entries whose frames were taken here, sorted by vpn.

        :param rows: pieces of an array of rows (vpn, position, nr, pace), see `placed`
        :param tables: the entries are table pages of `level`, not leaves
        """
        vpn, position, nr, pace = np.concatenate((_NO_ROWS, *rows)).T
        size = int(entry_pages(np.array([level + tables]))[0])
        bounds = np.cumsum([0, *(end - start for start, end in self._taken)])
        for bound in bounds[1:-1].tolist():  # cut rows whose frames lie in two ranges
            cut = (position < bound) & (position + (nr - 1) * pace >= bound)
            kept = -((position - bound) // pace)[cut]
            vpn = np.append(vpn, vpn[cut] + kept * size)
            position = np.append(position, position[cut] + kept * pace[cut])
            left = nr[cut] - kept
            nr, pace = np.append(nr, left), np.append(pace, pace[cut])
            nr[: len(cut)][cut] = kept
        at = np.searchsorted(bounds, position, side="right") - 1
        ends = np.array([end for _, end in self._taken], np.int64)
        pfn = ends[at] - 1 - (position - bounds[at])
        return sort_leaves(run_array(vpn, pfn, nr, -pace, level, np.uint64(flags)))

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Frames taken so far, as [start, end)."""
        return tuple(self._taken)

    @property
    def memblock(self) -> Memblock:
        """The allocator with what was taken reserved."""
        memblock, _ = self._memblock.ask(self.nr)
        for start, end in self._taken:
            memblock = memblock.reserve(start << PAGE_SHIFT, end << PAGE_SHIFT)
        return memblock


def take_block(
    memblock: Memblock, nr_bytes: int, align: int, without: XenptError
) -> tuple[Memblock, int]:
    """Allocate the highest aligned block: the memblock with it reserved, and its first byte.

    :raises XenptError: `without`, if no block is that large
    """
    top = memblock.memory.ranges[-1][1] if memblock.memory.ranges else 0
    memblock, served = memblock.ask()
    start = memblock.find(nr_bytes, align, 0, top) if served else None
    if start is None:
        raise without
    return memblock.reserve(start, start + nr_bytes), start
