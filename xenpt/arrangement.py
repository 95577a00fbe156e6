# SPDX-License-Identifier: GPL-2.0-or-later
"""`Plan`: the arrangement of a dom0's memory, as data and as each release of Xen prints it."""

from dataclasses import dataclass
from typing import Any

from xenpt.eras import Era
from xenpt.inputs.config import Guest, Host
from xenpt.inputs.kernel import Kernel
from xenpt.layout import Layout
from xenpt.listshape import Range
from xenpt.shown import Shown
from xenpt.units import format_address

UNKNOWN_ADDRESS = "?" * 16  # a machine address that no host layout determines
JSON_KEYS = (
    "nr_pages", "panic", "dom0_alloc", "pages_to_be_allocated", "kernel", "initrd", "p2m",
    "start_info", "page_tables", "boot_stack", "total", "entry", "nr_pt_frames", "mfn_list",
    "first_p2m_pfn", "nr_p2m_frames", "p2m_tables", "p2m_leaves", "mod_start", "mod_len",
    "flags", "magic", "beyond",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Shown):
    """Where everything of a dom0 will be. Ranges are half-open (start, end) byte addresses.

    The fields up to `beyond` are the keys of the `plan` JSON object. A plan that panics has its
    arithmetic, too, as far as it makes sense; what Xen never came to decide is `undecided`, and
    null in JSON.

    :ivar panic: exact text of whoever gives up, or None
    :ivar dom0_alloc: machine addresses of the first chunk; None without a host layout
    :ivar pages_to_be_allocated: pages that come after chunk and initrd
    :ivar kernel: its virtual range; the kernel itself is `image`
    :ivar initrd: virtual range; None if unmapped or absent
    :ivar p2m: virtual range of the list, 8 bytes a page (4 if 32-bit), not rounded
    :ivar start_info: its end is the printed one, behind the console information
    :ivar nr_pt_frames: table pages of the initial mapping
    :ivar first_p2m_pfn: pages of chunk and initrd together
    :ivar nr_p2m_frames: frames of a list outside the initial mapping, its tables included
    :ivar p2m_tables: table pages of such a list, by "l1", "l2", "l3"
    :ivar p2m_leaves: leaves of such a list, by "4k", "2m", "1g"
    :ivar mod_start: virtual address of the initrd, or its pfn if unmapped; 0 without one
    :ivar beyond: limits of the real thing that this plan exceeds: `limit`, `value`, `source`
    :ivar layout: the initial mapping in full
    :ivar alloc_order: the first chunk has 2**alloc_order pages
    :ivar initrd_pages: the initrd's own pages; 0 where it is copied into the chunk
    :ivar initrd_maddr: machine address of the initrd module, if known
    :ivar pt_base: as start_info has it: 2 pages off for a 32-bit dom0 of Xen before 4.2.1
    :ivar max_pages: what the domain may grow to
    :ivar list_outside: the list is outside the initial mapping
    :ivar notices: lines that Xen prints before the arrangement
    :ivar arranged: Xen comes as far as printing the arrangement
    :ivar complaint: line that Xen prints right before the panic
    """

    nr_pages: int
    panic: str | None = None
    dom0_alloc: Range | None
    pages_to_be_allocated: int
    kernel: Range
    initrd: Range | None
    p2m: Range
    start_info: Range
    page_tables: Range
    boot_stack: Range
    total: Range
    entry: int
    nr_pt_frames: int
    mfn_list: int
    first_p2m_pfn: int
    nr_p2m_frames: int
    p2m_tables: dict[str, int]
    p2m_leaves: dict[str, int]
    mod_start: int
    mod_len: int
    flags: int
    magic: str
    beyond: tuple[dict[str, Any], ...] = ()
    image: Kernel
    host: Host
    guest: Guest
    era: Era
    layout: Layout
    alloc_order: int
    initrd_pages: int
    initrd_maddr: int | None
    pt_base: int
    max_pages: int
    list_outside: bool
    notices: tuple[str, ...]
    arranged: bool = True
    complaint: str | None = None
    undecided: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """The `plan` JSON object; ranges are lists."""
        return {
            key: None if key in self.undecided else _plain(getattr(self, key)) for key in JSON_KEYS
        }

    def __str__(self) -> str:
        """Xen's lines about this dom0: notices, the arrangement block, complaint and panic."""
        block = arrangement_lines(self) if self.arranged else []
        end = [text for text in (self.complaint, self.panic) if text]
        return "\n".join([*self.notices, *block, *end])


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def arrangement_lines(plan: Plan) -> list[str]:
    """PHYSICAL and VIRTUAL MEMORY ARRANGEMENT of a plan that comes so far, without `(XEN) `.

    Machine addresses that are not known print as question marks, in their columns.
    """
    lines = ["PHYSICAL MEMORY ARRANGEMENT:", _line("Dom0 alloc.", plan.dom0_alloc)]
    if plan.pages_to_be_allocated:
        lines[-1] += f" ({plan.pages_to_be_allocated} pages to be allocated)"
    initrd_bytes, start = plan.guest.initrd_bytes, plan.initrd_maddr
    if initrd_bytes is not None and plan.era.initrd_in_place:
        module = None if start is None else (start, start + initrd_bytes)
        lines.append(_line("Init. ramdisk", module))
    lines.append("VIRTUAL MEMORY ARRANGEMENT:")
    lines += [_line(label, where) for label, where in _virtual_ranges(plan)]
    return [*lines, f" ENTRY ADDRESS: {format_address(plan.entry)}"]


def _virtual_ranges(plan: Plan) -> list[tuple[str, Range | None]]:
    layout, era = plan.layout, plan.era
    initrd = layout.initrd or (0, 0)
    ranges: list[tuple[str, Range | None]] = [("Loaded kernel", plan.kernel)]
    if era.prints_empty or initrd[1] > initrd[0]:
        ranges.append(("Init. ramdisk", initrd))
    ranges += [("Phys-Mach map", plan.p2m), ("Start info", plan.start_info)]
    if layout.xenstore or (era.prints_rings and era.prints_empty):
        ranges.append(("Xenstore ring", layout.xenstore or (0, 0)))
        ranges.append(("Console ring", layout.console or (0, 0)))
    ranges += [("Page tables", plan.page_tables), ("Boot stack", plan.boot_stack)]
    return [*ranges, ("TOTAL", plan.total)]


def _line(label: str, where: Range | None) -> str:
    start, end = map(format_address, where) if where else (UNKNOWN_ADDRESS,) * 2
    return f" {label + ':':<14} {start}->{end}"


def kernel_lines(plan: Plan) -> list[str]:
    """What Xen says of the kernel image itself, before the arrangement."""
    kernel = plan.image
    pae = plan.era.shows_pae(bits=kernel.bits, pae=kernel.pae)
    start, end = kernel.paddr
    width = f"{kernel.bits}-bit{', PAE' if pae else ''}"
    order = "msb" if kernel.big_endian else "lsb"
    lines = [f" Dom0 kernel: {width}, {order}, paddr {start:#x} -> {end:#x}"]
    if symbols := symbol_map(kernel):
        lines.append(f" Dom0 symbol map {symbols[0]:#x} -> {symbols[1]:#x}")
    return lines


def symbol_map(kernel: Kernel) -> Range | None:
    """Physical range of the symbol table that BSD_SYMTAB puts behind the image, or None."""
    end = kernel.paddr[0] + kernel.virt_kend - kernel.virt_kstart
    if end <= kernel.paddr[1]:
        return None
    word = kernel.bits // 8
    return -(-kernel.paddr[1] // word) * word, end
