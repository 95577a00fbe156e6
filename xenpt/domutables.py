# SPDX-License-Identifier: GPL-2.0-or-later
"""How many page tables libxenguest makes for a mapping, which addresses each covers, and where.

Addresses wrap at 2**64 as they do in the library; what follows from that is its own behaviour,
not an error of the model. Ranges are inclusive here, as the library's are: `last` is a byte that
belongs to the range.

Models count_pgtables() and alloc_pgtables_pv() in tools/libs/guest/xg_dom_x86.c, and
nr_page_tables() in the same file before Xen 4.7 (SPEC C4 to C6, C11, C12).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xenpt.abi import (
    HYPERVISOR_VIRT_END,
    HYPERVISOR_VIRT_START,
    LEVELS,
    PAGE_SHIFT,
    PAGE_SIZE,
    TABLE_SHIFT,
    VADDR_BITS,
    WORD,
)
from xenpt.domueras import ToolstackEra
from xenpt.listshape import Range

PADDING_PAGES = 128  # at least 512 KiB behind the boot stack
END_MASK = (4 << 20) - 1  # the initial mapping ends below a multiple of 4 MiB
PAE_LAST_SLOT = 0xC000_0000  # the L3 slot that must have an L2, as Xen maps something there
MAX_MAPPINGS = 2
#: Not a text of the library, which says nothing: it counts until it is killed.
ENDLESS = "the toolstack never ends: it looks for the end of the initial mapping at 2^64 for ever"


class GivesUpError(Exception):
    """The toolstack gives up; the message is its own text."""


@dataclass(frozen=True, slots=True)
class Paging:
    """Page-table format of a guest.

    :ivar levels: 4, or 3 for PAE
    :ivar vaddr_mask: what the library keeps of a virtual address
    """

    levels: int
    vaddr_mask: int

    @property
    def is_pae(self) -> bool:
        """A 32-bit guest."""
        return self.levels < LEVELS


PAGING = {64: Paging(4, (1 << VADDR_BITS) - 1), 32: Paging(3, (1 << 32) - 1)}


@dataclass(frozen=True, slots=True)
class TableRange:
    """Tables of one level, in touching pages, that cover touching addresses.

    :ivar level: 1 for tables of 4 KiB leaves
    :ivar start: first address that the first covers; both 0 if another mapping has them all
    :ivar last: last address that the last one covers
    :ivar pfn: of the first table page
    :ivar nr: table pages
    """

    level: int
    start: int
    last: int
    pfn: int
    nr: int


@dataclass(frozen=True, slots=True)
class TableMap:
    """One mapping of consecutive pfns, and the table pages that are its own.

    :ivar start: first virtual address, without sign extension
    :ivar last: last virtual address, likewise; below `start` if the mapping wraps
    :ivar pfn: what `start` shows
    :ivar tables: from the highest level down
    """

    start: int
    last: int
    pfn: int
    tables: tuple[TableRange, ...]

    @property
    def nr_tables(self) -> int:
        """Table pages of all levels."""
        return sum(tables.nr for tables in self.tables)

    def nr_at(self, level: int) -> int:
        """Table pages of one level."""
        return sum(tables.nr for tables in self.tables if tables.level == level)

    def of(self, level: int) -> TableRange:
        """The tables of one level; PAE before Xen 4.7 can have a last one apart."""
        return next(tables for tables in self.tables if tables.level == level)


def in_xen_slots(one: TableMap) -> bool:
    """Any of the mapping lies in L4 slots 256 to 271."""
    mask = PAGING[64].vaddr_mask
    start, end = HYPERVISOR_VIRT_START & mask, HYPERVISOR_VIRT_END & mask
    return one.start < end and one.last >= start


def overwritten(maps: Sequence[TableMap]) -> Range | None:
    """Addresses [start, end), without sign extension, of the first mapping that the second has."""
    if len(maps) < 2:
        return None
    start = max(one.start for one in maps)
    end = min(one.last for one in maps) + 1
    return (start, end) if start < end else None


@dataclass(slots=True)
class TableCounter:
    """Counts tables, mapping by mapping, as the library does.

    :ivar p2m_size: entries of the P->M list
    :ivar log: where the library's detail lines go
    :ivar maps: what was counted so far
    """

    paging: Paging
    era: ToolstackEra
    p2m_size: int
    log: Callable[[str], None]
    maps: list[TableMap] = field(default_factory=list)

    def initial(self, virt_base: int, cursor: int, pfn: int) -> int:
        """Find the end of the initial mapping, which holds its own tables; return that end.

        It is 2^64 if the mapping fits to the page, and wraps if it goes further.

        :param cursor: virtual address where the tables will be, and `pfn` that page
        :raises GivesUpError: it does not fit into the domain, or the search never ends
        """
        extra = 1 + PADDING_PAGES  # the boot stack
        pages, tried = extra, set()
        while pages not in tried:
            tried.add(pages)
            last = (cursor + pages * PAGE_SIZE) % WORD | END_MASK
            found = self._count_initial(virt_base, last, pfn)
            pages = found.nr_tables + extra
            if (cursor + pages * PAGE_SIZE) % WORD <= (last + 1) % WORD:
                self.maps.append(found)
                return last + 1
        raise GivesUpError(ENDLESS)

    def second(self, start: int, nr_bytes: int, pfn: int) -> None:
        """Count the tables of a list of whole pages at `start`; they follow its data.

        :param pfn: first page of the list
        :raises GivesUpError: the list does not fit, or meets the initial mapping in a way that
            the library notices
        """
        last = (start + nr_bytes - 1) % WORD
        self.maps.append(self._count(start, last, pfn, pfn + (nr_bytes >> PAGE_SHIFT)))

    def _count_initial(self, virt_base: int, last: int, table_pfn: int) -> TableMap:
        if self.era.two_mappings:
            return self._count(virt_base, last, 0, table_pfn)
        return self._count_before_4_7(virt_base, last, table_pfn)

    def _count(self, start: int, last: int, pfn: int, table_pfn: int) -> TableMap:
        if len(self.maps) == MAX_MAPPINGS:
            raise GivesUpError("count_pgtables: too many mappings")
        self._check_memory(pfn + ((last - start) % WORD >> PAGE_SHIFT))
        for other in self.maps:  # here the library forgets to mask: only low addresses ever meet
            if start < other.last and last > other.start:
                raise GivesUpError("count_pgtables: overlapping mappings")
        mask, top = self.paging.vaddr_mask, self.paging.levels
        area = start & mask, last & mask
        tables = [TableRange(top, 0, 0, table_pfn, 0)]
        if not self.maps:
            tables = [TableRange(top, 0, mask, table_pfn, 1)]
        for level in range(top - 1, 0, -1):
            own = self._own_range(level, area, last)
            table_pfn += tables[-1].nr
            shift = PAGE_SHIFT + TABLE_SHIFT * level
            nr = ((own[1] - own[0]) >> shift) + 1 if own[0] < own[1] else 0
            tables.append(TableRange(level, *own, table_pfn, nr))
            self.log(
                f"count_pgtables: {(1 << shift) - 1:#018x}/{shift}: "
                f"{own[0]:#018x} -> {own[1] % WORD:#018x}, {nr} table(s)"
            )
        return TableMap(*area, pfn, tuple(tables))

    def _own_range(self, level: int, area: tuple[int, int], last: int) -> tuple[int, int]:
        """What tables of `level` cover of `area`, whole tables, less what earlier mappings have."""
        mask = (1 << (PAGE_SHIFT + TABLE_SHIFT * level)) - 1
        start, end = area[0] & ~mask, area[1] | mask
        if self.paging.is_pae and not self.maps and last < PAE_LAST_SLOT and level == 2:
            self.log("count_pgtables: PAE: extra l2 page table for l3#3")
            end = self.paging.vaddr_mask
        for other in (earlier.of(level) for earlier in self.maps):
            if start >= other.start and end <= other.last:
                return 0, 0
            if start < other.start and end > other.last:
                raise GivesUpError(
                    "count_pgtables: Assertion `map->lvls[l].from >= map_cmp->lvls[l].from || "
                    "map->lvls[l].to <= map_cmp->lvls[l].to' failed."
                )
            if other.start <= start <= other.last:
                start = other.last + 1
            if other.start <= end <= other.last:
                end = other.start - 1
        return start, end

    def _count_before_4_7(self, virt_base: int, last: int, table_pfn: int) -> TableMap:
        self._check_memory((last - virt_base) % WORD >> PAGE_SHIFT)
        mask, top = self.paging.vaddr_mask, self.paging.levels
        tables = []
        for level in range(top, 0, -1):
            shift = 32 if self.paging.is_pae and level == top else PAGE_SHIFT + TABLE_SHIFT * level
            slots = (1 << shift) - 1
            start, end = virt_base & ~slots, last | slots
            nr = ((end - start) % WORD >> shift) + 1
            covered = (0, mask) if level == top else (start & mask, end & mask)
            tables.append(TableRange(level, *covered, table_pfn, nr))
            table_pfn += nr
            self.log(
                f"nr_page_tables: {slots:#018x}/{shift}: "
                f"{start:#018x} -> {end:#018x}, {nr} table(s)"
            )
            if self.paging.is_pae and level == 2 and last < PAE_LAST_SLOT:
                tables.append(TableRange(2, PAE_LAST_SLOT, mask, table_pfn, 1))
                table_pfn += 1
        if self.paging.is_pae and last < PAE_LAST_SLOT:
            self.log("count_pgtables: PAE: extra l2 page table for l3#3")
        return TableMap(virt_base & mask, last & mask, 0, tuple(tables))

    def _check_memory(self, last_pfn: int) -> None:
        if self.era.checks_memory and last_pfn >= self.p2m_size + self.era.memory_slack:
            raise GivesUpError(
                "count_pgtables: not enough memory for initial mapping "
                f"({last_pfn:#x} > {self.p2m_size:#x})"
            )
