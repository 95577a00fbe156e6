# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole guests word by word: `stream` in constant memory, a loop over windows of a few tables.

Each window is built in a buffer that stays in the cache, marked, walked as hardware would walk it,
and compared with what the extents say; then the buffer is used again. Every entry of every table
is made and read, so a 64 TiB guest is 17 billion entries, whatever its extents are. `pack` does the
same with all tables in memory at once, for as long as they fit.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from xenpt import _core
from xenpt.abi import ENTRIES, LEVELS, PAGE_SHIFT, PTE_RW, TABLE_SHIFT
from xenpt.engine import mark_read_only
from xenpt.errors import MappingError
from xenpt.extents import (
    RUN,
    Mapping,
    Ranges,
    Runs,
    coalesce,
    column,
    join_ranges,
    sort_leaves,
    words,
)
from xenpt.image import materialise, new_arena
from xenpt.p2m import P2M

#: Tables of a window: 32 KiB, which the first-level cache of current processors (48 KiB) holds.
WINDOW_TABLES = 8
#: Entries of one call: some milliseconds, so that progress and an interrupt get their turn.
CHUNK_ENTRIES = 1 << 23
NEVER = (1 << 64) - 1
#: Called with the number of parts that are done, and that of all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StreamResult:
    """What a stream made and met, all levels together.

    :ivar entries: entries built, tables' and leaves'; `ptes`: those of level 1
    :ivar changed: entries that the mark changed
    :ivar read_only: entries without RW that the walk met
    :ivar runs: runs that the walk found, counted anew in each window
    :ivar tables: tables built, and `windows` of them; packed tables are one window
    """

    entries: int
    ptes: int
    changed: int
    read_only: int
    runs: int
    windows: int
    tables: int


class _List:
    """Runs of one level, cut out by entry number (vpn >> shift) in O(log runs)."""

    def __init__(self, runs: Runs, level: int) -> None:
        self.runs = runs
        self.start = column(runs, "vpn") >> (TABLE_SHIFT * (level - 1))
        self.end = self.start + column(runs, "nr")

    def reach(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        """The runs that reach into entries [first, last), as words."""
        low = int(np.searchsorted(self.end, first, side="right"))
        return words(self.runs[low : int(np.searchsorted(self.start, last, side="left"))])


@dataclass(frozen=True, slots=True)
class _Level:
    """The words of the tables of one level: before the mark and after it, as runs of mfns."""

    level: int
    entries: _List
    expected: _List
    ranges: npt.NDArray[np.uint64]

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Half-open stretches of entries: whole tables, those that hold any or should."""
        first = np.concatenate((self.entries.start, self.expected.start)) // ENTRIES * ENTRIES
        last = -(-np.concatenate((self.entries.end, self.expected.end)) // ENTRIES) * ENTRIES
        for start, end in join_ranges(np.stack((first, last), axis=1)).tolist():
            for at in range(start, end, CHUNK_ENTRIES):
                yield at, min(at + CHUNK_ENTRIES, end)


def stream(
    mapping: Mapping,
    p2m: P2M,
    *,
    pfn_ranges: Ranges = (),
    expected: Runs | None = None,
    threads: int = 1,
    progress: Progress | None = None,
    flip: int | None = None,
    window_tables: int = WINDOW_TABLES,
) -> StreamResult:
    """Build, mark read-only and walk every table of `mapping`, and compare with its extents.

    :param pfn_ranges: frames whose 4 KiB leaves the mark makes read-only; superpages, few as they
        are, are marked as extents only
    :param expected: leaves after the mark; default: what `engine.mark_read_only` gives
    :param threads: of Python, each over chunks of its own; the loops hold no lock
    :param progress: called with (chunks done, chunks in all) after each
    :param flip: virtual address of a 4 KiB leaf whose RW bit is flipped in its window, for tests
    :param window_tables: tables of a window
    :raises MappingError: the words of a window are not what the extents say; names its address
    """
    after = mark_read_only(mapping.leaves, pfn_ranges)[0] if expected is None else expected
    ranges = p2m.mfn_ranges(pfn_ranges).view(np.uint64)
    jobs = [
        (level, *chunk)
        for level in _levels(mapping, after, p2m, ranges)
        for chunk in level.chunks()
    ]

    left: SimpleQueue[int] = SimpleQueue()
    for number in range(len(jobs)):
        left.put(number)

    def run(worker: int) -> npt.NDArray[np.uint64]:
        """Jobs for as long as there are any left; the sums of their counts by level.

        Whoever is free takes the next: a core that others use, too, then gets fewer.
        """
        # On page borders: words that cross a cache line cost a quarter of the speed.
        window = new_arena(window_tables)
        scratch = words(np.empty(window_tables * ENTRIES, RUN))
        sums = np.zeros((LEVELS + 1, 6), np.uint64)
        with suppress(Empty):
            while True:
                job = jobs[left.get_nowait()]
                _chunk(*job, window, scratch, NEVER if flip is None else flip, sums)
                if progress is not None and worker == 0:
                    progress(len(jobs) - left.qsize(), len(jobs))
        return sums

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(run, range(threads)) if threads > 1 else [run(0)])
    sums = np.sum(parts, axis=0)
    entries, changed, read_only, runs, windows, tables = (int(n) for n in sums.sum(axis=0))
    return StreamResult(entries, int(sums[1, 0]), changed, read_only, runs, windows, tables)


def pack(mapping: Mapping, p2m: P2M, *, pfn_ranges: Ranges = ()) -> StreamResult:
    """Like `stream`, with every table in one arena, found through the entries that point to it.

    :param mapping: with all its tables, at least up to the highest level that it has
    :raises MappingError: the words are not what the extents say
    :raises NoRoomError: the tables are more than memory holds
    """
    expected = p2m.to_mfn(mark_read_only(mapping.leaves, pfn_ranges)[0])
    image = materialise(mapping, p2m)
    changed = image.mark_read_only(pfn_ranges, p2m)
    tops = image.tables(int(image.level.max()))
    walks = [image.walk(int(top)) for top in tops]
    found = coalesce(sort_leaves(np.concatenate([walk.leaves for walk in walks])))
    if not np.array_equal(found, expected) or any(walk.outside for walk in walks):
        raise MappingError("packed page tables do not hold what the extents say")
    ptes = int(found["nr"][found["level"] == 1].sum())
    entries = int(found["nr"].sum()) + len(image.pages) - len(tops)
    read_only = int(found["nr"][found["flags"] & PTE_RW == 0].sum())
    return StreamResult(entries, ptes, changed, read_only, len(found), 1, len(image.pages))


def _levels(
    mapping: Mapping, after: Runs, p2m: P2M, ranges: npt.NDArray[np.uint64]
) -> list[_Level]:
    """What the tables of each level hold: leaves, and the tables of the level below."""
    before, after = p2m.to_mfn(mapping.leaves), p2m.to_mfn(after)
    tables = p2m.to_mfn(mapping.tables, tables=True)
    levels = []
    for level in range(1, LEVELS + 1):
        below = tables[tables["level"] == level - 1]
        below["level"] = level
        entries, expected = (
            sort_leaves(np.concatenate((leaves[leaves["level"] == level], below)))
            for leaves in ((before if level == 1 else after), after)
        )
        if len(entries):
            marks = ranges if level == 1 else ranges[:0]
            levels.append(_Level(level, _List(entries, level), _List(expected, level), marks))
    return levels


def _chunk(
    job: _Level,
    first: int,
    last: int,
    window: npt.NDArray[np.uint64],
    scratch: npt.NDArray[np.uint64],
    flip: int,
    sums: npt.NDArray[np.uint64],
) -> None:
    """Stream entries [first, last) of one level, and add its counts to that level's row."""
    fault = _core.stream(
        job.entries.reach(first, last), job.expected.reach(first, last), job.level, first, last,
        window, job.ranges, PTE_RW, 0, flip >> PAGE_SHIFT if job.level == 1 else NEVER, scratch,
        sums[job.level],
    )  # fmt: skip
    if fault >= 0:
        vaddr = fault << (TABLE_SHIFT * (job.level - 1)) << PAGE_SHIFT
        raise MappingError(
            f"tables of level {job.level} from {vaddr:#018x} on do not hold what the extents say"
        )
