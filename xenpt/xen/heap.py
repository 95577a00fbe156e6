# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's page allocator, as far as it decides which machine frames a new domain gets.

A buddy allocator over the host's RAM: blocks of 2**order pages, aligned to their size; the
highest zone (power-of-two range of addresses) that can serve a request does, from its smallest
sufficient block, and a block that is too large gives its upper half. A real Xen's free lists
also depend on what it did before; a real layout can therefore be given to the builder instead.

Models alloc_heap_pages() in xen/common/page_alloc.c.
"""

from collections.abc import Iterable

from xenpt.abi import MAX_ORDER
from xenpt.faults import Fragmented

FIRST_FREE_MFN = 0x100  # of a modelled host: behind the first MiB


class Heap:
    """Free machine frames of a host, in runs of equal blocks.

    :param ranges: half-open mfn ranges of free RAM
    :param fragmented: serve only so many large blocks
    """

    def __init__(
        self, ranges: Iterable[tuple[int, int]], fragmented: Fragmented | None = None
    ) -> None:
        self._small = MAX_ORDER if fragmented is None else fragmented.order
        self._large_blocks = 0 if fragmented is None else fragmented.larger
        # free[zone][order]: runs [first mfn, blocks] of touching blocks, highest address last.
        self._free: dict[int, list[list[list[int]]]] = {}
        for start, end in sorted(ranges):
            self._free_range(start, end)
        self._zones = sorted(self._free, reverse=True)

    @classmethod
    def modelled_host(cls, nr_pages: int, fragmented: Fragmented | None = None) -> "Heap":
        """A host for a guest of `nr_pages`: 9/8 of that, and room for one largest block."""
        return cls([(FIRST_FREE_MFN, nr_pages * 9 // 8 + (1 << MAX_ORDER))], fragmented)

    @property
    def nr_free_pages(self) -> int:
        """Pages that are free."""
        return sum(
            nr << order
            for zone in self._free.values()
            for order, runs in enumerate(zone)
            for _, nr in runs
        )

    def alloc(self, order: int, nr: int = 1, *, module: bool = False) -> tuple[int, int] | None:
        """Take up to `nr` blocks of 2**`order` pages, as that many single requests would.

        :param module: the place of a boot module: no request, so that no fault meets it
        :returns: (mfn of the first block, blocks taken); each block lies right below the one
            before it. None when no block of that order is left.
        """
        limited = order > self._small and not module
        got = self._alloc(order, min(nr, self._large_blocks) if limited else nr)
        if limited and got is not None:
            self._large_blocks -= got[1]
        return got

    def _alloc(self, order: int, nr: int) -> tuple[int, int] | None:
        for zone in self._zones if nr else ():
            lists = self._free[zone]
            for size in range(order, MAX_ORDER + 1):
                if not lists[size]:
                    continue
                run = lists[size][-1]
                # Of a larger block the upper part goes, down to the last request.
                blocks = min(nr, run[1]) if size == order else 1
                take = blocks if size == order else min(nr, 1 << (size - order))
                end = run[0] + (run[1] << size)
                run[1] -= blocks
                if not run[1]:
                    lists[size].pop()
                start = end - (take << order)
                if size > order:
                    self._free_range(end - (1 << size), start)
                return end - (1 << order), take
        return None

    def _free_range(self, start: int, end: int) -> None:
        """Cut [start, end) into the largest aligned blocks, as init_heap_pages() does."""
        while start < end:
            zone = start.bit_length()
            stop = min(end, 1 << zone) if start else min(end, 1)
            lists = self._free.setdefault(zone, [[] for _ in range(MAX_ORDER + 1)])
            align = (start & -start).bit_length() - 1 if start else 0
            order = min(align, (stop - start).bit_length() - 1, MAX_ORDER)
            nr = (stop - start) >> MAX_ORDER if order == MAX_ORDER else 1
            lists[order].append([start, nr])
            start += nr << order
