# SPDX-License-Identifier: GPL-2.0-or-later
"""The guests that the real toolstack builds: how large, of which kernel, with which ramdisk.

But for Debian's, kernels are a page of code and their notes, as nothing of them ever runs.
"""

import gzip
import random
from dataclasses import dataclass

from elfbuilder import Image, notes

MIB = 256  # pages
KA, LIST = 0xFFFFFFFF80000000, 0x8000000000
_RWX = 7


@dataclass(frozen=True)
class Guest:
    """One guest.

    :ivar nr_pages: its memory; of more than one node, that of the first
    :ivar kernel: an ELF file; None for the packaged kernel
    :ivar hole: pages without memory between the nodes
    :ivar second: pages of a second node
    :ivar pretend: the library is told that the hypervisor knows 32-bit guests, and has to end
        before the pin
    """

    name: str
    nr_pages: int
    kernel: bytes | None = None
    ramdisk: bytes | None = None
    hole: int = 0
    second: int = 0
    pretend: bool = False

    @property
    def bits(self) -> int:
        """Word size, as the ELF file says."""
        return 32 if self.kernel and self.kernel[4] == 1 else 64


def kernel_image(
    base: int = KA,
    start: int = 0x1000000,
    nr_bytes: int = 0x400000,
    bits: int = 64,
    **changes: int | str,
) -> bytes:
    """A kernel at [base + start, base + start + nr_bytes)."""
    changed = {"VIRT_BASE": base, "ENTRY": base + start, "PAE_MODE": "yes", **changes}
    segment = (start, b"code", nr_bytes, _RWX)
    note_segment = notes(changed, size=bits // 8)
    return Image(bits=bits, entry=start, segments=[segment], note_segment=note_segment).build()


def _random(nr_bytes: int) -> bytes:
    return random.Random(nr_bytes).randbytes(nr_bytes)


def _list_at(vaddr: int, base: int = KA, **more: int) -> bytes:
    """A kernel that asks for its list at `vaddr` and can find its ramdisk unmapped."""
    return kernel_image(base, INIT_P2M=vaddr, MOD_START_PFN=1, **more)


_MAPPED, _OUTSIDE = kernel_image(), _list_at(LIST)
_SHORT = gzip.compress(_random(50000), mtime=0)[:-4] + bytes([10, 0, 0, 0])  # says it is 10 bytes
_SMALL = {"start": 0, "nr_bytes": 0x40000}
_TOP = 0xFFFFFFFFFF000000  # 16 MiB below 2^64
_ALL = (
    Guest("domu-512m", 512 * MIB),
    Guest("domu-initrd", 512 * MIB, ramdisk=_random(1234567)),
    Guest("domu-initrd-mapped", 64 * MIB, kernel_image(INIT_P2M=LIST), _random(4097)),
    Guest("domu-initrd-gzip", 64 * MIB, _OUTSIDE, gzip.compress(bytes(5000000), mtime=0)),
    Guest("domu-initrd-lies", 64 * MIB, kernel_image(INIT_P2M=LIST), _SHORT),
    Guest("domu-legacy", 1024 * MIB, _MAPPED, _random(12345)),
    Guest("domu-odd", 64 * MIB + 3, _list_at(LIST + 8, nr_bytes=0x400123)),
    # the list shares no L3 table with the kernel but begins at no border; shares L4, L3 and L2;
    # crosses from one L4 slot into the next
    Guest("domu-list-2g", 2048 * MIB, _list_at(LIST + 0x3FFFF000)),
    Guest("domu-list-near", 64 * MIB, _list_at(KA - 0x200000)),
    Guest("domu-list-512g", 64 * MIB, _list_at(LIST - 0x1000)),
    Guest("domu-hole", 64 * MIB, _OUTSIDE, hole=16 * MIB, second=32 * MIB),
    Guest("domu-hole-legacy", 64 * MIB, _MAPPED, hole=16 * MIB, second=32 * MIB),
    Guest("domu-pae", 512 * MIB, kernel_image(0xC0000000, bits=32), _random(4097), pretend=True),
    Guest("domu-pae-low", 64 * MIB, kernel_image(0, 0x100000, bits=32), pretend=True),
    Guest("domu-pae-1g", 64 * MIB, kernel_image(0x3F000000, 0x100000, bits=32), pretend=True),
    # what the library does without a word: a list over the kernel, over the tables themselves, in
    # Xen's slots, from the guest's into Xen's; a kernel there; a mapping that ends just at 2^64,
    # behind which it leaves no room, so that ramdisk and list begin in it
    Guest("domu-overwrites", 1024 * MIB, _list_at(KA - 0x100000)),
    Guest("domu-hides", 256 * MIB, _list_at(KA - 0x1000, **_SMALL)),
    Guest("domu-xen-slots", 64 * MIB, _list_at(0xFFFF800000000000)),
    Guest("domu-xen-crossed", 64 * MIB, _list_at(0x7FFFFFFF0000)),
    Guest("domu-xen-kernel", 64 * MIB, kernel_image(0xFFFF800000000000)),
    Guest("domu-top", 64 * MIB, kernel_image(_TOP, 0, 0xF51000)),
    Guest("domu-top-list", 64 * MIB, _list_at(LIST, _TOP, start=0, nr_bytes=0xF71000), b"ramdisk"),
    # when it gives up, aborts or never ends
    Guest("domu-small", 16 * MIB, _OUTSIDE),
    Guest("domu-small-map", 0x1808, _OUTSIDE),
    Guest("domu-small-initrd", 32 * MIB, _OUTSIDE, _random(16 << 20)),
    Guest("domu-small-list", 0x180F, _OUTSIDE),
    Guest("domu-initrd-empty", 64 * MIB, _OUTSIDE, b""),
    Guest("domu-unaligned", 64 * MIB, kernel_image(start=0x1000800)),
    Guest("domu-dom0", 64 * MIB, kernel_image(FEATURES="!dom0")),
    Guest("domu-translated", 64 * MIB, kernel_image(FEATURES="!auto_translated_physmap")),
    Guest("domu-hypercalls", 64 * MIB, kernel_image(HYPERCALL_PAGE=KA - 0x1000)),
    Guest("domu-hole-kernel", 0x1100, _MAPPED, hole=0x100, second=64 * MIB),
    Guest("domu-hole-start-info", 0x1400, _OUTSIDE, hole=1, second=64 * MIB),
    Guest("domu-hole-padding", 0x1700, _OUTSIDE, hole=0x10, second=64 * MIB),
    Guest("domu-no-address", 64 * MIB, kernel_image(0x900000000000)),
    Guest("domu-pae-refused", 64 * MIB, kernel_image(0xC0000000, bits=32)),
    Guest("domu-pae-wraps", 64 * MIB, kernel_image(0xFF000000, 0, 0xF80000, bits=32), pretend=True),
    Guest("domu-encloses", 1040 * MIB, _list_at(KA + 0x1FF000, KA + 0x200000, **_SMALL)),
    Guest("domu-no-table", 128 * MIB, _list_at(KA + 0x80000, KA + 0x100000, start=0xF00000)),
    Guest("domu-overlap", 64 * MIB, _list_at(LIST - 0x1000, LIST)),
    Guest("domu-wraps", 1024 * MIB, kernel_image(_TOP, 0, 0xF00000)),
    Guest("domu-wraps-initrd", 64 * MIB, kernel_image(_TOP, 0, INIT_P2M=LIST), _random(16 << 20)),
    Guest("domu-endless", 0x4000, kernel_image(_TOP, 0, 0xE00000)),
)
GUESTS = {guest.name: guest for guest in _ALL}
