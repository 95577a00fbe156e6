# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux's early boot knows and changes: the state that goes from stage to stage."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpt.abi import ENTRIES, PAGE_SHIFT, PAGE_SIZE, SIF_INITDOMAIN, START_KERNEL_MAP, pfn_up
from xenpt.errors import XenptError
from xenpt.extents import EMPTY, Mapping, Runs
from xenpt.linux.e820 import E820
from xenpt.linux.memblock import EMPTY_MEMBLOCK, NO_REGIONS, Memblock, Range, Regions
from xenpt.linux.rules import LinuxRules

if TYPE_CHECKING:
    from xenpt.xen.dom0 import Domain

PMD_SIZE: Final = 1 << 21
#: Where xen_relocate_p2m() maps the list: L4 slot 2, and more if it needs them.
RELOCATED_SLOT: Final = 2
RELOCATED_VADDR: Final = RELOCATED_SLOT * PAGE_SIZE * ENTRIES**3
#: A page fault that early has no handler; what is left to read is Xen's line about it.
DOM0_DIES: Final = "Hardware Dom0 halted: halting machine"
#: Pages of the brk area before the page-table buffer, where a kernel's symbols do not say.
_BRK_PAGES_BEFORE_BUFFER: Final = 1


class LinuxPanic(XenptError):
    """Linux gives up; the text is its own."""


class NotModelled(XenptError):
    """Linux goes on, but in a way that is not modelled: there is no verdict."""


@dataclass(frozen=True, slots=True)
class InitialList:
    """The P->M list that Linux starts with: where Xen put it, or where Linux moved it.

    :ivar vaddr: start_info's mfn_list
    :ivar mapping: the list outside the kernel's mapping with its own tables; None inside
    :ivar pfns: frames [first, end), its tables included
    """

    vaddr: int
    mapping: Mapping | None
    pfns: Range


class Remap(NamedTuple):
    """`nr` frames that move from the pfns of an E820 hole to RAM pfns at the end."""

    pfn: int
    target_pfn: int
    nr: int


@dataclass(frozen=True, slots=True)
class BootState:
    """A domain on its way through the stages. Frames are pfns, addresses bytes.

    :ivar e820: the map that Xen gives, sanitised
    :ivar initial_list: the list in use until it is copied
    :ivar initrd: bytes [start, end) of the initrd, or None
    :ivar max_reservation: pages that XENMEM_maximum_reservation answers
    :ivar max_pfn: pages that Linux uses, at most its limit
    :ivar max_pfn_mapped: Linux's variable of that name
    :ivar max_p2m_pfn: xen_max_p2m_pfn, end of what the P->M tree will cover
    :ivar linux_e820: the map that Linux makes of `e820`
    :ivar identity: pfns below nr_pages whose P->M entries are identity (holes)
    :ivar extra: pfns of RAM beyond the domain's own that is kept for ballooning
    :ivar remaps: frames that remap_memory will move, in the order in which they were found
    :ivar highmap: 2 MiB slots of level2_kernel_pgt that are in use
    :ivar tables: page tables of the direct map that Linux made (RUN rows of tables)
    :ivar own_entries: frames whose entries in Xen's L1 tables Linux has set anew, writable
    :ivar ro_entries: frames whose entries Linux has set anew, read-only: static tables, and those
        of its copy of the list (not in `ro_frames`)
    :ivar vmemmap: struct pages, mapped by paging_init
    :ivar new_list: Linux's copy of the list, each table once
    :ivar aliases: entries that point to a table that `new_list` has once: RUN rows of level 2
    :ivar moved: those of `remaps` that have been moved
    :ivar ro_frames: frames that are read-only in the direct map: the P->M list outside, and page
        tables, but for those of Linux's copy of the list
    """

    domain: "Domain"
    rules: LinuxRules
    e820: E820
    max_reservation: int
    initial_list: InitialList
    initrd: Range | None = None
    memblock: Memblock = EMPTY_MEMBLOCK
    max_pfn: int = 0
    max_pfn_mapped: int = 0
    max_p2m_pfn: int = 0
    linux_e820: E820 = ()
    identity: Regions = NO_REGIONS
    extra: Regions = NO_REGIONS
    remaps: tuple[Remap, ...] = ()
    highmap: Regions = NO_REGIONS
    tables: Runs = field(default_factory=EMPTY.copy)
    own_entries: Regions = NO_REGIONS
    ro_entries: Regions = NO_REGIONS
    vmemmap: Mapping | None = None
    new_list: Mapping | None = None
    aliases: Runs = field(default_factory=EMPTY.copy)
    moved: tuple[Remap, ...] = ()
    ro_frames: Regions = NO_REGIONS

    @property
    def nr_pages(self) -> int:
        """start_info's nr_pages."""
        return int(self.domain.plan.nr_pages)

    @property
    def initial_domain(self) -> bool:
        """Whether start_info has SIF_INITDOMAIN."""
        return bool(self.domain.plan.flags & SIF_INITDOMAIN)

    @property
    def page_limit(self) -> int:
        """Pages of a domain that this Linux uses at most."""
        return self.rules.page_limit if self.initial_domain else self.rules.domu_page_limit

    @property
    def list_outside(self) -> bool:
        """The P->M list lies below the kernel's mapping: INIT_P2M was honoured, or it was moved."""
        return self.initial_list.vaddr < START_KERNEL_MAP

    @property
    def p2m_frames(self) -> tuple[int, int]:
        """Frames [first, end) of the list and of its tables."""
        return self.initial_list.pfns

    @property
    def pt_pfns(self) -> tuple[int, int]:
        """Frames [start, end) of Xen's page tables of the initial mapping."""
        start, end = self.domain.plan.page_tables
        return self.pfn(start), self.pfn(end)

    @property
    def nr_initial_l1(self) -> int:
        """L1 tables of Xen's initial mapping in the first GiB, all that Linux keeps."""
        start, end = self.domain.plan.total
        return min(-(-(end - start) // PMD_SIZE), ENTRIES)

    def symbol(self, name: str) -> int | None:
        """Virtual address of a kernel symbol; None if it is not known, or not Linux's address."""
        vaddr = (self.domain.plan.image.symbols or {}).get(name, 0)
        return vaddr if vaddr >= START_KERNEL_MAP else None

    def symbol_pfn(self, name: str) -> int | None:
        """Frame of a kernel symbol, or None if it is not known."""
        vaddr = self.symbol(name)
        return None if vaddr is None else self.pfn(vaddr)

    @property
    def root_pfn(self) -> int | None:
        """Frame of Linux's own L4 table, or None if it is not known."""
        return self.symbol_pfn(self.rules.ro_tables[0][0])

    @property
    def text(self) -> int:
        """_text, or the start of the image where it is not known."""
        return self.symbol("_text") or int(self.domain.plan.image.virt_kstart)

    @property
    def brk_start(self) -> int:
        """Start of the brk area, or the end of its used part where it is not known."""
        return self.symbol("__brk_base") or self.brk_end

    @property
    def brk_end(self) -> int:
        """_brk_end once the page-table buffer has been taken from the brk area.

        Its value is only known from a boot; else the buffer is put behind __brk_base, or at the
        end of the image.
        """
        known = self.symbol("_brk_end")
        if known is not None:
            return known
        buffer = self.rules.pgt_buf_pages * PAGE_SIZE
        base = self.symbol("__brk_base")
        if base is not None:
            return base + _BRK_PAGES_BEFORE_BUFFER * PAGE_SIZE + buffer
        return pfn_up(int(self.domain.plan.image.virt_kend)) << PAGE_SHIFT

    @staticmethod
    def pfn(vaddr: int) -> int:
        """Frame of an address of the kernel's mapping (__pa() >> PAGE_SHIFT)."""
        return (vaddr - START_KERNEL_MAP) >> PAGE_SHIFT

    def va(self, pfn: int) -> int:
        """Address of a frame in the direct map (__va())."""
        return self.rules.page_offset + (pfn << PAGE_SHIFT)
