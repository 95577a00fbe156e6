# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux's early boot knows and changes: the state that goes from stage to stage."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpt.abi import (
    ENTRIES,
    L2_SIZE,
    PAGE_SHIFT,
    PAGE_SIZE,
    SIF_INITDOMAIN,
    START_KERNEL_MAP,
    pfn_up,
)
from xenpt.errors import XenptError
from xenpt.extents import EMPTY, Mapping, Runs
from xenpt.linux.e820 import E820
from xenpt.linux.memblock import EMPTY_MEMBLOCK, NO_REGIONS, Memblock, Range, Regions
from xenpt.linux.rules import LinuxRules
from xenpt.units import GIB_PAGES

if TYPE_CHECKING:
    from xenpt.plan import Plan
    from xenpt.xen.dom0 import Domain

PMD_SIZE: Final = L2_SIZE
LIMIT_32_BIT_PAGES: Final = 64 * GIB_PAGES
#: Where xen_relocate_p2m() maps the list: L4 slot 2, and more if it needs them.
RELOCATED_SLOT: Final = 2
RELOCATED_VADDR: Final = RELOCATED_SLOT * PAGE_SIZE * ENTRIES**3
#: First address of early_ioremap's mappings, which the table bm_pte maps (FIX_BTMAP_BEGIN).
EARLY_IOREMAP: Final = 0xFFFF_FFFF_FF20_0000
#: A page fault that early has no handler; what is left to read is Xen's line about it.
DOM0_DIES: Final = "Hardware Dom0 halted: halting machine"
#: The same in another domain, of which Xen prints nothing.
GUEST_DIES: Final = "page fault without a handler: the guest halts its only vCPU, and is gone"
#: Pages of the brk area before the page-table buffer, where a kernel's symbols do not say.
_BRK_PAGES_BEFORE_BUFFER: Final = 1


class LinuxPanic(XenptError):
    """Linux gives up; the text is its own."""


def refused_bug(function: str, op: str) -> str:
    """What Linux says where it cannot do without a hypercall of type `op` that Xen refuses."""
    return f"kernel BUG in {function}(): Xen refuses {op}"


class NotModelled(XenptError):
    """Linux goes on, but in a way that is not modelled: there is no verdict."""


def kernel_base(plan: "Plan") -> int:
    """Where Linux has frame 0 mapped: __START_KERNEL_map, with 32 bits PAGE_OFFSET."""
    return START_KERNEL_MAP if plan.image.bits == 64 else int(plan.image.virt_base)


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
    :ivar missing: pfns below nr_pages for which the builder's list has INVALID_P2M_ENTRY (a fault)
    :ivar identity: pfns below nr_pages whose P->M entries are identity (holes)
    :ivar reset: those of them that Xen's L1 tables mapped: dropped, or mapped as they are
    :ivar nr_lost: pages of holes that Xen does not take back: neither used nor given back
    :ivar unmapped: pfns that the direct map lacks, as a table was not hooked in (a fault)
    :ivar extra: pfns of RAM beyond the domain's own that is kept for ballooning
    :ivar remaps: frames that remap_memory will move, in the order in which they were found
    :ivar exchanged: pages that are RAM now, and those that were for them (ACPI NVS memory)
    :ivar highmap: 2 MiB slots of level2_kernel_pgt that are in use
    :ivar tables: page tables of the direct map that Linux made (RUN rows of tables)
    :ivar own_entries: frames whose entries in Xen's L1 tables Linux has set anew, writable
    :ivar ro_entries: frames whose entries Linux has set anew, read-only: static tables, and the
        full tables that its copy of the list shares (those of `new_list` are not in it)
    :ivar early_table: frame of early_ioremap's L1 table, once Linux has moved something by it
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
    missing: Regions = NO_REGIONS
    identity: Regions = NO_REGIONS
    reset: Regions = NO_REGIONS
    nr_lost: int = 0
    unmapped: Regions = NO_REGIONS
    extra: Regions = NO_REGIONS
    remaps: tuple[Remap, ...] = ()
    exchanged: tuple[Remap, ...] = ()
    highmap: Regions = NO_REGIONS
    tables: Runs = field(default_factory=EMPTY.copy)
    own_entries: Regions = NO_REGIONS
    ro_entries: Regions = NO_REGIONS
    early_table: int | None = None
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
    def bits(self) -> int:
        """64, or 32 for PAE."""
        return self.domain.plan.image.bits

    @property
    def base(self) -> int:
        """See kernel_base()."""
        return kernel_base(self.domain.plan)

    @property
    def p2m_per_page(self) -> int:
        """Entries of a page of the P->M list."""
        return PAGE_SIZE * 8 // self.bits

    @property
    def page_limit(self) -> int:
        """Pages of a domain that this Linux uses at most."""
        if self.bits == 32:
            return LIMIT_32_BIT_PAGES
        return self.rules.page_limit if self.initial_domain else self.rules.domu_page_limit

    @property
    def list_outside(self) -> bool:
        """The P->M list lies below the kernel's mapping: INIT_P2M was honoured, or it was moved."""
        return self.initial_list.vaddr < self.base

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

    @property
    def nr_initial_pages(self) -> int:
        """Pages from frame 0 on that these tables map."""
        start, end = self.domain.plan.total
        return int(min(end - start, ENTRIES * PMD_SIZE)) >> PAGE_SHIFT

    def paddr(self, vaddr: int) -> int:
        """Guest-physical address of one of the kernel's mapping (__pa())."""
        return vaddr - self.base

    def pfn(self, vaddr: int) -> int:
        """Frame of an address of the kernel's mapping."""
        return self.paddr(vaddr) >> PAGE_SHIFT

    def page_fault(self, vaddr: int) -> LinuxPanic:
        """What Linux says of an access to a page that is not mapped, once it has a handler."""
        if self.rules.names_fault_address:
            return LinuxPanic(f"BUG: unable to handle page fault for address: {vaddr:016x}")
        return LinuxPanic(f"BUG: unable to handle kernel paging request at {vaddr:016x}")

    def va(self, pfn: int) -> int:
        """Address of a frame in the direct map (__va())."""
        offset = self.rules.page_offset if self.bits == 64 else self.base
        return offset + (pfn << PAGE_SHIFT)
