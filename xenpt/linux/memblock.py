# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's early allocator: lists of memory and of what is reserved of it (mm/memblock.c).

All values are bytes of guest-physical addresses in half-open ranges. A change returns a new
object. Allocation is top-down, as on x86.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, round_down, round_up

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Regions:
    """Sorted, disjoint ranges; those that touch are merged, as memblock_merge_regions() does."""

    ranges: tuple[Range, ...] = ()

    @classmethod
    def of(cls, ranges: Iterable[Range]) -> "Regions":
        """The union of `ranges`, in any order; empty ones are dropped."""
        merged: list[Range] = []
        for start, end in sorted(ranges):
            if start >= end:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[Range]:
        return iter(self.ranges)

    def add(self, start: int, end: int) -> "Regions":
        """With [start, end) in it."""
        return Regions.of((*self.ranges, (start, end)))

    def remove(self, start: int, end: int) -> "Regions":
        """Without [start, end)."""
        return self - Regions.of([(start, end)])

    def clip(self, start: int, end: int) -> "Regions":
        """The part inside [start, end)."""
        return Regions(
            tuple((max(a, start), min(b, end)) for a, b in self.ranges if a < end and b > start)
        )

    def __sub__(self, other: "Regions") -> "Regions":
        left: list[Range] = []
        cuts = other.ranges
        at = 0
        for start, end in self.ranges:
            while at < len(cuts) and cuts[at][1] <= start:
                at += 1
            k = at
            while k < len(cuts) and cuts[k][0] < end:
                if cuts[k][0] > start:
                    left.append((start, cuts[k][0]))
                start = max(start, cuts[k][1])
                k += 1
            if start < end:
                left.append((start, end))
        return Regions(tuple(left))

    def meets(self, start: int, end: int) -> bool:
        """Whether any of [start, end) is in it."""
        return any(a < end and b > start for a, b in self.ranges)

    @property
    def size(self) -> int:
        """Bytes in all ranges."""
        return sum(end - start for start, end in self.ranges)

    def as_list(self) -> list[list[int]]:
        """[[start, end), ...] for JSON."""
        return [list(r) for r in self.ranges]


NO_REGIONS = Regions()


@dataclass(frozen=True, slots=True)
class Memblock:
    """memblock.memory and memblock.reserved.

    :ivar requests: allocations that were asked for
    :ivar fails_from: number of the request from which on none is served (a fault), or None
    """

    memory: Regions = NO_REGIONS
    reserved: Regions = NO_REGIONS
    requests: int = 0
    fails_from: int | None = None

    def reserve(self, start: int, end: int) -> "Memblock":
        """memblock_reserve() of [start, end)."""
        return replace(self, reserved=self.reserved.add(start, end))

    def free(self, start: int, end: int) -> "Memblock":
        """memblock_phys_free() of [start, end)."""
        return replace(self, reserved=self.reserved.remove(start, end))

    def find(self, size: int, align: int, start: int, end: int) -> int | None:
        """Highest free address in [start, end) for `size` bytes; None if there is none.

        Models memblock_find_in_range() with top-down allocation; page 0 is never found.
        """
        free = self.memory.clip(max(start, PAGE_SIZE), end) - self.reserved
        for low, high in reversed(free.ranges):
            at = round_down(high - size, align)
            if at >= low:
                return at
        return None

    def ask(self, nr: int = 1) -> tuple["Memblock", int]:
        """Count up to `nr` requests, as many as are served, and the first that is not.

        :returns: the new memblock, and how many are served
        """
        if self.fails_from is None:
            return replace(self, requests=self.requests + nr), nr
        served = max(0, min(nr, self.fails_from - 1 - self.requests))
        return replace(self, requests=self.requests + min(nr, served + 1)), served

    def take_pages(self, nr: int, start: int, end: int) -> tuple["Memblock", tuple[Range, ...]]:
        """Allocate `nr` single pages, each in its turn the highest free one in [start, end).

        :returns: the new memblock, and descending runs of frames as (highest pfn, pages); together
            they hold fewer pages than `nr` if memory runs out
        """
        memblock, nr = self.ask(nr)
        runs: list[Range] = []
        free = self.memory.clip(max(start, PAGE_SIZE), end) - self.reserved
        taken: list[Range] = []
        for low, high in reversed(free.ranges):
            first, last = round_up(low, PAGE_SIZE) >> PAGE_SHIFT, high >> PAGE_SHIFT
            pages = min(nr, last - first)
            if pages > 0:
                runs.append((last - 1, pages))
                taken.append(((last - pages) << PAGE_SHIFT, last << PAGE_SHIFT))
                nr -= pages
            if not nr:
                break
        reserved = Regions.of((*self.reserved.ranges, *taken))
        return replace(memblock, reserved=reserved), tuple(runs)

    def as_dict(self) -> dict[str, list[list[int]]]:
        """JSON-ready lists of [start, end) in bytes."""
        return {"memory": self.memory.as_list(), "reserved": self.reserved.as_list()}


EMPTY_MEMBLOCK = Memblock()
