# SPDX-License-Identifier: GPL-2.0-or-later
"""How much memory dom0 gets: what Xen keeps of the host, and dom0_compute_nr_pages().

All amounts are pages of 4 KiB. The frame table and the M2P are counted as Xen builds them; what
else Xen takes is a constant that was measured, see `XEN_OWN_PAGES`.
"""

from dataclasses import dataclass

from xenpt.abi import L2_SIZE, PAGE_SHIFT, PAGE_SIZE, TABLE_SHIFT, WORD, pfn_up, round_up
from xenpt.eras import Era
from xenpt.errors import UsageError
from xenpt.inputs.config import USABLE, Dom0Mem, Host, Ram, parse_dom0_mem
from xenpt.inputs.kernel import Kernel

FRAME_TABLE_ENTRY = 32  # sizeof(struct page_info)
FRAME_TABLE_ENTRY_BIGMEM = 48  # with CONFIG_BIGMEM
CHUNK_BYTES = L2_SIZE  # both tables grow by 2 MiB
PAGES_PER_CHUNK = CHUNK_BYTES >> PAGE_SHIFT
FRAMES_PER_M2P_CHUNK = CHUNK_BYTES // 8  # 1 GiB of RAM
WASTE_PAGES = 4  # a last 2 MiB chunk may stick out by so much (init_frametable_chunk)
#: Image, heap, page tables: Xen 4.17.7, 524 GiB, 1 CPU (golden case m520g). The same Xen takes 936
#: to 943 of hosts from 2 GiB up, 34 more for each CPU, 1 more for each GiB on a CPU without 1 GiB
#: pages (docs/model.md).
XEN_OWN_PAGES = 943
DEFAULT_RESERVE = 32768  # 128 MiB, or 1/16 of what is available if that is less
SHIM_RESERVE = 256  # what the shim keeps without a shim_mem option (pv_shim_mem)
MAX_PAGES = (1 << 32) - 1  # of one domain: d->tot_pages is 32-bit (SPEC G2)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Where the host's pages go before dom0 is built."""

    ram: int
    frame_table: int
    m2p: int
    xen: int

    @property
    def available(self) -> int:
        """Pages that Xen's heap offers to domains, boot modules included."""
        return max(0, self.ram - self.frame_table - self.m2p - self.xen)


@dataclass(frozen=True, slots=True)
class Dom0Size:
    """dom0's size, the cap that it may grow to, and what Xen prints about it."""

    nr_pages: int
    max_pages: int
    notices: tuple[str, ...] = ()


def host_memory(e820: tuple[Ram, ...], *, bigmem: bool = False) -> HostMemory:
    """What Xen keeps of a host with this map (SPEC B14; init_frametable, paging_init).

    :param bigmem: Xen is built with CONFIG_BIGMEM
    """
    usable = [
        (pfn_up(ram.start), ram.end >> PAGE_SHIFT)
        for ram in sorted(e820, key=lambda ram: ram.start)
        if ram.type == USABLE and ram.end >> PAGE_SHIFT > pfn_up(ram.start)
    ]
    return HostMemory(
        ram=sum(end - start for start, end in usable),
        frame_table=_frame_table_pages(
            usable, FRAME_TABLE_ENTRY_BIGMEM if bigmem else FRAME_TABLE_ENTRY
        ),
        m2p=PAGES_PER_CHUNK * _groups(usable, FRAMES_PER_M2P_CHUNK),
        xen=XEN_OWN_PAGES,
    )


def _groups(usable: list[tuple[int, int]], step: int) -> int:
    """Number of aligned groups of `step` frames that hold any RAM; `usable` is sorted."""
    nr_groups = counted = 0  # groups below `counted` are done
    for start, end in usable:
        behind = -(-end // step)
        nr_groups += max(0, behind - max(counted, start // step))
        counted = max(counted, behind)
    return nr_groups


def _frame_table_pages(usable: list[tuple[int, int]], entry_bytes: int) -> int:
    """Pages of the frame table: whole groups of frames that hold RAM, the last one cut short."""
    if not usable:
        return 0
    group = CHUNK_BYTES // (entry_bytes & -entry_bytes)  # PDX_GROUP_COUNT
    group_pages = group * entry_bytes >> PAGE_SHIFT
    # The last chunk ends with the last frame, unless a large page wastes next to nothing.
    chunks, rest = divmod(-max(end for _, end in usable) % group * entry_bytes, CHUNK_BYTES)
    if rest <= WASTE_PAGES * PAGE_SIZE:
        rest = 0
    unused = chunks * PAGES_PER_CHUNK + (rest >> PAGE_SHIFT)
    return group_pages * _groups(usable, group) - unused


def dom0_compute_nr_pages(
    kernel: Kernel,
    host: Host,
    era: Era,
    dom0_mem: str | None,
    *,
    initrd_bytes: int = 0,
    available: int | None = None,
) -> Dom0Size:
    """Dom0's size on this host, steps of SPEC B1 in Xen's order.

    :param dom0_mem: Xen's option, or None without one
    :param available: pages that Xen would find free, modules included; from the host if None
    :raises UsageError: a dom0_mem text that Xen refuses; a host whose memory is unknown

    Models dom0_compute_nr_pages() in xen/arch/x86/dom0_build.c.
    """
    notices: list[str] = []
    if dom0_mem is not None and host.pv_shim:
        notices.append("Ignoring dom0_mem param in pv-shim mode")
        dom0_mem = None
    option = parse_dom0_mem("0" if dom0_mem is None else dom0_mem, percent=era.dom0_mem_percent)
    if available is None:
        available = _available(host)
    avail = max(0, available - _kept_for_later(kernel, host, era))
    if host.shadow:
        avail = max(0, avail - paging_pages(_clamped(option, avail, host), host.max_vcpus))
    nr_pages = _clamped(option, avail, host)
    min_pages, max_pages = option.min.of(avail), option.max.of(avail)
    may_clip = not option.amount.is_absolute and (
        not option.min.is_absolute or nr_pages > min_pages
    )
    if era.legacy_clip and not (kernel.init_p2m is not None and era.init_p2m) and may_clip:
        clipped = _legacy_clip(kernel, era, nr_pages, initrd_bytes)
        if clipped is not None:
            nr_pages = max(clipped, min_pages) if option.min.is_absolute else clipped
            notices.append(f"Dom0 memory clipped to {nr_pages} pages")
    return Dom0Size(nr_pages, min(max_pages, MAX_PAGES), tuple(notices))


def _clamped(option: Dom0Mem, avail: int, host: Host) -> int:
    """The amount within its bounds: max wins over min, what is available over both."""
    reserve = SHIM_RESERVE if host.pv_shim else min(avail // 16, DEFAULT_RESERVE)
    nr_pages = option.amount.of(avail) or avail - reserve
    return min(max(nr_pages, option.min.of(avail)), option.max.of(avail), avail)


def paging_pages(nr_pages: int, max_vcpus: int) -> int:
    """Pages of the shadow pool of a PV dom0: 1 MiB a vCPU and 4 KiB a MiB (dom0_paging_pages)."""
    kib = 4 * (256 * max_vcpus + (nr_pages * 4 >> 10))
    return -(-kib // 1024) << 8


def _available(host: Host) -> int:
    e820 = host.map
    if e820 is None:
        raise UsageError("the size of dom0 depends on the host, whose memory is not given")
    return host_memory(e820, bigmem=host.bigmem).available


def _kept_for_later(kernel: Kernel, host: Host, era: Era) -> int:
    """Pages that Xen keeps back for dom0's other vCPUs and its IOMMU tables (SPEC B1.2, B1.3)."""
    per_vcpu = 1 if kernel.bits == 64 else 2  # struct vcpu, and a monitor L4
    kept = (host.max_vcpus - 1) * per_vcpu
    if host.iommu and era.iommu_reserve:
        ends = [ram.end for ram in host.map or () if ram.type == USABLE]
        max_pdx = max(ends, default=0) >> PAGE_SHIFT
        kept += sum(max_pdx >> shift for shift in range(TABLE_SHIFT, 64, TABLE_SHIFT))
    return kept


def _legacy_clip(kernel: Kernel, era: Era, nr_pages: int, initrd_bytes: int) -> int | None:
    """Pages that a kernel without INIT_P2M can map in its own way, or None if `nr_pages` fit."""
    width = kernel.bits // 8
    end_of_image = round_up(kernel.virt_kend, PAGE_SIZE)
    if not (kernel.mod_start_pfn and era.initrd_in_place):
        end_of_image += round_up(initrd_bytes, PAGE_SIZE)
    end = (end_of_image + nr_pages * width) % WORD
    if end > kernel.virt_base:
        end = (2 * end - kernel.virt_base) % WORD
    if end > kernel.virt_base and (width == 8 or end <= 1 << 32):
        return None
    top = 1 << kernel.bits
    return ((top - end_of_image) % WORD) // (2 * width)
