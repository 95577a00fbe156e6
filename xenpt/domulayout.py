# SPDX-License-Identifier: GPL-2.0-or-later
"""The toolstack's library at work: what it gives a place, in which order, and why it gives up.

Models xc_dom_parse_image(), xc_dom_build_image() and xc_dom_boot_image() with what they call, in
tools/libs/guest/xg_dom_core.c, xg_dom_boot.c and xg_dom_x86.c (SPEC C). Texts are the library's.
"""

from dataclasses import dataclass, field
from typing import Any

from xenpt import abi
from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, WORD, is_canonical, pfn_up, round_up
from xenpt.domueras import ToolstackEra
from xenpt.domutables import PAGING, GivesUpError, TableCounter, TableMap
from xenpt.inputs.elf import EM_386, EM_X86_64
from xenpt.inputs.initrd import Initrd
from xenpt.inputs.kernel import Kernel
from xenpt.listshape import Range

MAX_FILE_BYTES = 1 << 30  # XC_DOM_DECOMPRESS_MAX
GZIP_SLACK = 16  # bytes that the library adds to what a gzip file says of its size
PV64, PAE, TWO_LEVELS = "xen-3.0-x86_64", "xen-3.0-x86_32p", "xen-3.0-x86_32"


def room_for(initrd: Initrd, era: ToolstackEra) -> int:
    """Bytes that a ramdisk takes in the guest; a file that says it is gzip can be unpacked.

    Models xc_dom_build_module() and xc_dom_check_gzip().
    """
    packed, unpacked = initrd.nr_bytes, initrd.unpacked_bytes
    if unpacked is None or initrd.vaddr or not era.unpacks_initrd:
        return packed
    if unpacked + GZIP_SLACK > MAX_FILE_BYTES:
        return packed
    return max(unpacked + GZIP_SLACK, packed if era.keeps_packed_size else 0)


@dataclass(slots=True)
class Builder:
    """Walks up the guest's addresses as the library does, and keeps what it decides.

    :ivar ranges: pfns that have memory; more than one range with vNUMA
    :ivar wanted: total_pages, if it is not just what the ranges hold
    :ivar caps: types of guests that the hypervisor knows
    :ivar va: virt_alloc_end; pfn_alloc_end follows from it
    :ivar keys: keys of the plan that are decided
    :ivar found: virtual ranges of segments and pages, by the library's names
    """

    kernel: Kernel
    era: ToolstackEra
    ranges: tuple[Range, ...]
    wanted: int | None
    initrd: Initrd | None
    caps: str
    va: int = 0
    log: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Range] = field(default_factory=dict)
    maps: list[TableMap] = field(default_factory=list)

    @property
    def nr_pages(self) -> int:
        """total_pages: the guest's memory without holes."""
        return self.wanted or sum(end - start for start, end in self.ranges)

    @property
    def pfn(self) -> int:
        """pfn_alloc_end: both cursors always move together."""
        return (self.va - self.kernel.virt_base) % WORD >> PAGE_SHIFT

    @property
    def type(self) -> str:
        """The guest type that the kernel image stands for."""
        if self.kernel.machine == EM_X86_64:
            return PV64
        pae = self.kernel.pae
        return TWO_LEVELS if pae == "no" or (pae == "bimodal" and PAE not in self.caps) else PAE

    # --- Before memory is laid out: xc_dom_module_file, xc_dom_parse_image, xc_dom_boot_mem_init

    def parse(self) -> None:
        """Look at files, kernel and memory in the order in which libxl has them looked at."""
        era, kernel = self.era, self.kernel
        if self.initrd is not None and self.initrd.nr_bytes == 0:
            raise GivesUpError(era.empty_file_text.format(name=self.initrd.name))
        if self.initrd is not None and self.initrd.nr_bytes > MAX_FILE_BYTES and era.checks_memory:
            raise GivesUpError("tried to map file which is too large")
        if era.checks_dom0_required and "!dom0" in _features(kernel):
            raise GivesUpError(
                "xc_dom_parse_elf_kernel: Kernel does not support unprivileged (DomU) operation"
            )
        if kernel.machine not in (EM_386, EM_X86_64):
            raise GivesUpError(f"xc_dom_guest_type: unknown image type {kernel.machine}")
        is_known, two_levels = self.type in self.caps.split(), self.type == TWO_LEVELS
        if not is_known and (era.checks_type_first or (two_levels and era.knows_two_levels)):
            raise GivesUpError(
                f"xc_dom_compat_check: guest type {self.type} not supported by xen kernel, sorry"
            )
        if two_levels:
            raise GivesUpError(f"{era.hooks_function}: not found (type {self.type})")
        if not is_known:  # the hypervisor does not make it a 32-bit domain
            raise GivesUpError("xc_dom_boot_mem_init: can't allocate low memory for domain")
        total = sum(end - start for start, end in self.ranges)
        if total != self.nr_pages:
            raise GivesUpError(
                f"{era.memory_function}: vNUMA page count mismatch "
                f"({total:#x} != {self.nr_pages:#x})"
            )

    # --- xc_dom_build_image

    def build_image(self) -> None:
        """Lay out the guest's memory."""
        kernel, era = self.kernel, self.era
        self.keys["magic"] = self.type
        self.va = kernel.virt_base if era.two_mappings else 0
        self.segment("kernel", kernel.virt_kend - kernel.virt_kstart, kernel.virt_kstart)
        unmapped = era.two_mappings and kernel.mod_start_pfn
        unmapped = unmapped and self.initrd is not None and not self.initrd.vaddr
        self.keys |= {"mod_start": 0, "mod_len": 0, "initrd": None, "flags": 0}
        if self.initrd is not None and not unmapped:
            start, end = self.place_initrd(self.initrd)
            self.keys |= {"initrd": (start, end), "mod_start": start, "mod_len": end - start}
        word = kernel.bits // 8
        list_bytes = round_up(self.ranges[-1][1] * word, PAGE_SIZE)
        base = self._list_base()
        if base is None:
            self._place_list(self.segment("phys2mach", list_bytes)[0], 0, 0)
        for name in ("start info", "xenstore", "console"):
            self.page(name)
        counter = self._initial_mapping()
        if unmapped and self.initrd is not None:
            first = self.pfn
            self.place_initrd(self.initrd)
            mod_len = (self.pfn - first) << PAGE_SHIFT
            self.keys |= {"mod_start": first, "mod_len": mod_len, "flags": abi.SIF_MOD_START_PFN}
        if base is not None:
            first = self.pfn
            counter.second(base, list_bytes, first)
            self.segment("phys2mach", list_bytes + (self.maps[1].nr_tables << PAGE_SHIFT))
            self._place_list(base, first, self.pfn - first)

    def _initial_mapping(self) -> TableCounter:
        base = self.kernel.virt_base
        counter = TableCounter(
            PAGING[self.kernel.bits], self.era, self.ranges[-1][1], self.log.append, self.maps
        )
        end = counter.initial(base, self.va, self.pfn)
        nr = self.maps[0].nr_tables
        start, _ = self.segment("page tables", nr << PAGE_SHIFT)
        self.page("boot stack")
        self.log.append(f"{'xc_dom_build_image':<20}: virt_alloc_end : {self.va:#x}")
        self.log.append(f"{'xc_dom_build_image':<20}: virt_pgtab_end : {end % WORD:#x}")
        if self.era.two_mappings and end != WORD:  # which is 0 to the library: nothing to pad to
            self._pad(end)
        self.keys |= {
            "start_info": self.found["start info"],
            "page_tables": (start, start + (nr << PAGE_SHIFT)),
            "boot_stack": self.found["boot stack"],
            "total": (base, end),
            "nr_pt_frames": nr,
        }
        return counter

    def _list_base(self) -> int | None:
        """Where the list goes if not into the initial mapping: below it only, and page-aligned."""
        base = self.kernel.init_p2m
        if not self.era.two_mappings or self.kernel.bits != 64 or base is None:
            return None
        return None if base >= self.kernel.virt_base or base % PAGE_SIZE else base

    def _place_list(self, start: int, first_pfn: int, nr_frames: int) -> None:
        tables = self.maps[1] if nr_frames else None
        nr_tables = {f"l{level}": tables.nr_at(level) if tables else 0 for level in (1, 2, 3)}
        self.keys |= {
            "p2m": (start, start + self.ranges[-1][1] * self.kernel.bits // 8),
            "mfn_list": start,
            "first_p2m_pfn": first_pfn,
            "nr_p2m_frames": nr_frames,
            "p2m_tables": nr_tables,
            "p2m_leaves": {"4k": nr_frames - sum(nr_tables.values()), "2m": 0, "1g": 0},
        }

    def place_initrd(self, initrd: Initrd) -> Range:
        """Give the ramdisk its segment; the end is what the library makes of it."""
        return self.segment(self.era.initrd_segment, room_for(initrd, self.era), initrd.vaddr)

    def segment(self, name: str, nr_bytes: int, vaddr: int = 0) -> Range:
        """xc_dom_alloc_segment(): take pages at `vaddr`, or (0) right here.

        :raises GivesUpError: not aligned, too low, not enough memory, or in a hole between nodes
        """
        if vaddr and self.era.two_mappings:
            self._pad(vaddr)
        elif vaddr:
            self._go_to(vaddr)
        start, pfn, pages = self.va, self.pfn, pfn_up(nr_bytes)
        self._take(name, pages)
        if self.era.two_mappings:
            self._check_holes(pfn, pages)
        end = (start + nr_bytes) % WORD if self.era.exact_segment_ends else self.va
        self.log.append(
            f"{'xc_dom_alloc_segment':<20}:   {name:<12} : {start:#x} -> {end:#x}"
            f"  (pfn {pfn:#x} + {pages:#x} pages)"
        )
        if not self.era.two_mappings:
            self._check_holes(pfn, pages)
        self.found[name] = start, end
        return start, end

    def page(self, name: str) -> None:
        """xc_dom_alloc_page(): take one page right here; before 4.7 without looking for room."""
        start, pfn = self.va, self.pfn
        if self.era.two_mappings:
            self._take(name, 1)
        else:
            self.va = (self.va + PAGE_SIZE) % WORD
        self.log.append(f"{'xc_dom_alloc_page':<20}:   {name:<12} : {start:#x} (pfn {pfn:#x})")
        self.found[name] = start, start + PAGE_SIZE

    def _take(self, name: str, pages: int) -> None:
        if self.pfn > self.nr_pages or pages > self.nr_pages - self.pfn:
            function = "chk_alloc_pages" if self.era.two_mappings else "alloc_segment"
            raise GivesUpError(
                f"xc_dom_{function}: segment {name} too large "
                f"({_hex(pages)} > {_hex(self.nr_pages)} - {_hex(self.pfn)} pages)"
            )
        self.va = (self.va + pages * PAGE_SIZE) % WORD

    def _pad(self, boundary: int) -> None:
        if boundary % PAGE_SIZE:
            raise GivesUpError(
                f"xc_dom_alloc_pad: segment boundary isn't page aligned ({_hex(boundary)})"
            )
        if boundary < self.va:
            raise GivesUpError(
                f"xc_dom_alloc_pad: segment boundary too low ({_hex(boundary)} < {_hex(self.va)})"
            )
        self._take("padding", (boundary - self.va) >> PAGE_SHIFT)

    def _go_to(self, vaddr: int) -> None:
        if vaddr % PAGE_SIZE:
            raise GivesUpError(
                f"xc_dom_alloc_segment: segment start isn't page aligned ({_hex(vaddr)})"
            )
        if vaddr < self.va:
            raise GivesUpError(
                f"xc_dom_alloc_segment: segment start too low ({_hex(vaddr)} < {_hex(self.va)})"
            )
        self.va = vaddr

    def _check_holes(self, pfn: int, pages: int) -> None:
        """The toolstack maps what it writes, which a page without memory cannot be."""
        if not self._has_memory(pfn, pfn + pages):
            raise GivesUpError(
                f"xc_dom_boot_domU_map: failed to mmap domU pages {_hex(pfn)}+{_hex(pages)} "
                "[mmap, errno=22 (Invalid argument)]"
            )

    def _has_memory(self, first: int, end: int) -> bool:
        """All pfns in [first, end) are known to the library and have memory."""
        held = sum(max(0, min(end, last) - max(first, start)) for start, last in self.ranges)
        return held == end - first and end <= self.nr_pages

    # --- xc_dom_boot_image

    def boot_image(self) -> None:
        """What can still go wrong once everything has its place."""
        if self.era.refuses_autotranslated and "!auto_translated_physmap" in _features(self.kernel):
            raise GivesUpError("PV Autotranslate guests no longer supported")
        self._check_tables()
        start, end = self.keys["total"]
        self._check_holes((self.found["start info"][0] - start) % WORD >> PAGE_SHIFT, 1)
        self._check_hypercall_page()
        pfn = self.maps[0].of(PAGING[self.kernel.bits].levels).pfn
        if not self._has_memory(0, (end - start) % WORD >> PAGE_SHIFT):
            raise GivesUpError(
                f"{self.era.late_function}: pin_table failed (pfn {_hex(pfn)}, rc=1)"
            )
        self._check_context()

    def _check_tables(self) -> None:
        start, end = self.keys["total"]
        if end % WORD <= start and not self.era.two_mappings:
            # Not a text of the library, which says nothing: the guest dies at once.
            raise GivesUpError("no page-table entry is written, as the mapping wraps at 2^64")
        for one in self.maps:
            first = one.tables[0].pfn
            if any(tables.pfn >= first + one.nr_tables for tables in one.tables):
                raise GivesUpError(f"{self.era.table_function}: xc_dom_pfn_to_ptr failed")

    def _check_hypercall_page(self) -> None:
        vaddr = self.kernel.hypercall_page
        pfn = ((vaddr or 0) - self.kernel.virt_base) % WORD >> PAGE_SHIFT
        if vaddr is not None and not self._has_memory(pfn, pfn + 1):
            raise GivesUpError(
                "setup_hypercall_page: HYPERCALL_INIT failed: 22 - Invalid argument)"
            )

    def _check_context(self) -> None:
        """Xen, not the library, looks at the registers of a 64-bit guest."""
        era = self.era
        checked = [self.kernel.entry] * era.checks_entry
        checked += [self.keys["boot_stack"][1]] * era.checks_stack
        if self.kernel.bits == 64 and not all(is_canonical(vaddr) for vaddr in checked):
            raise GivesUpError(f"{era.context_function}: SETVCPUCONTEXT failed (rc=-1)")


def _features(kernel: Kernel) -> list[str]:
    return (kernel.features or "").split("|")


def _hex(value: int) -> str:
    return f"0x{value:x}"
