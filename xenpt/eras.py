# SPDX-License-Identifier: GPL-2.0-or-later
"""What each Xen release's dom0 builder does differently, as named flags.

Commits are those of xen.git; the release in brackets is the first whose tag contains the commit,
for 3.x the release candidates' tags. What has no commit was read from the releases' sources.
"""

import re
from dataclasses import dataclass

from xenpt.errors import UsageError

FIRST = (3, 0, 0)  # release looked at; the last is 4.22, and newer ones behave as that

#: First release that unpacks a bzImage's payload of that codec; 4.1.5 got xz before 4.2 had it.
PAYLOADS = {
    "none": (3, 4, 0), "gzip": (3, 4, 0), "bzip2": (4, 0, 0), "lzma": (4, 0, 0), "lzo": (4, 1, 0),
    "xz": (4, 1, 5), "lz4": (4, 4, 0), "zstd": (4, 15, 0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Era:
    """How one release of Xen builds a PV dom0. Sizes are in bytes, orders in powers of 2 pages."""

    # The version that was asked for, (major, minor, patch).
    version: tuple[int, int, int]
    # c6d8d541e9 (3.4.0-rc1): INIT_P2M is honoured, and start_info grows from 1152 to 1168 bytes.
    # The log of a 3.4.1-rc7 (golden record dom0-19) prints the larger struct.
    init_p2m: bool
    start_info_bytes: int
    # 70c2e55854 (3.2) gbl_caps, 9cf11fdcd9 (4.13) ext_lfb_base: what the printed end adds.
    vga_info_bytes: int
    # 9f41c22a55 (4.1): the initrd's own pages are given to dom0 instead of a copy, are not part of
    # the chunk's order, may stay unmapped (MOD_START_PFN), and are printed.
    initrd_in_place: bool
    # 4280d3ee4c (4.0.0-rc7): largest chunk 1 GiB instead of 4 GiB.
    max_order: int
    # 7a9d764630 (4.3) and its backport 2a9ef6d127 (4.2.1): a 32-bit dom0 has no spare table page,
    # its L3 comes first and pt_base is where the tables start; before, pt_base was 2 pages above.
    compat_l3_first: bool
    # 55f3362de4 (4.0): kernels without INIT_P2M get no more than their address space can map.
    legacy_clip: bool
    # ec029aaa9a (4.2): SUPPORTED_FEATURES without dom0 is refused.
    checks_dom0_feature: bool
    # 76a68b9020 (4.12): percentages in dom0_mem.
    dom0_mem_percent: bool
    # 467a09d50d (4.1): room for IOMMU tables is kept back from dom0.
    iommu_reserve: bool
    # 4be9107b34 (4.11) prints both rings, as zeros unless in the shim; 4c0a199914 (4.16) leaves
    # out what is empty, the initrd's line too.
    prints_rings: bool
    prints_empty: bool
    # 51ad90aea2 (4.4): panic texts lose their full stop.
    panic_stop: str
    # e2b1ebf4de (3.4.0-rc1) bzImage; codecs of its payload as xen/common/decompress.c has them.
    payloads: frozenset[str]
    # What libelf says of a payload that it was handed packed; reworded in 4.8.
    no_elf_text: str
    # 4.15 turns this panic into an error that the builder returns.
    hv_start_panics: bool
    # 4.16: a 32-bit kernel on a Xen without CONFIG_PV32 is told so, not only that it does not fit.
    names_missing_pv32: bool
    # What the caller of the builder says when it returned an error (xen/arch/x86/setup.c).
    construct_panic: str
    # 460060f83d (3.1) takes the "p" of magic and log line from the note PAE_MODE; d5e1795ab4 (4.18)
    # ignores it in a 64-bit kernel.
    pae_of_64bit: bool
    # xen-3.0 up to 3.0.x and again from 3.2; 3.1 put its own version there.
    magic_version: str
    # SIF_PM_MASK came with 3.3: power management bits in the flags.
    pm_flags: bool
    # Frames that Xen without BIGMEM has a frame table for: a8d2b06db7 (4.3) 16 TiB, less two frames
    # that mark the ends of lists (setup_max_pdx); before, the direct map's 5 TiB; 1 TiB before 4.0.
    max_frames: int
    # 10dcec844f (4.6): CONFIG_BIGMEM can be chosen.
    has_bigmem: bool
    # 2c99281085 (4.17): libxl's paging pool counts memory once for a guest that is not shadowed.
    libxl_counts_hap: bool

    def shows_pae(self, *, bits: int, pae: str) -> bool:
        """Magic and log line name PAE, for a kernel of that class and PAE_MODE."""
        return pae != "no" and (bits == 32 or self.pae_of_64bit)


def parse_version(text: str) -> tuple[int, int, int]:
    """(major, minor, patch) of a Xen version as logs print it: `4.17.7`, `4.14-unstable`.

    A missing patch level counts as 0; what follows the numbers does not count.

    :raises UsageError: no version, or one older than 3.0
    """
    found = re.match(r"\s*([0-9]{1,9})\.([0-9]{1,9})(?![0-9])(?:\.([0-9]{1,9}))?", text)
    if not found:
        raise UsageError(f"Xen version {text!r}: expected something like 4.17")
    version = (int(found[1]), int(found[2]), int(found[3] or 0))
    if version < FIRST:
        raise UsageError(f"Xen version {text!r}: the oldest that is modelled is 3.0")
    return version


def era_of(xen: str) -> Era:
    """The flags of Xen version `xen`.

    :raises UsageError: see `parse_version`
    """
    version = parse_version(xen)
    since = version.__ge__
    return Era(
        version=version,
        init_p2m=since((3, 4, 0)),
        start_info_bytes=1168 if since((3, 4, 0)) else 1152,
        vga_info_bytes=40 if since((4, 13, 0)) else 36 if since((3, 2, 0)) else 28,
        initrd_in_place=since((4, 1, 0)),
        max_order=18 if since((4, 0, 0)) else 20,
        compat_l3_first=since((4, 2, 1)),
        legacy_clip=since((4, 0, 0)),
        checks_dom0_feature=since((4, 2, 0)),
        dom0_mem_percent=since((4, 12, 0)),
        iommu_reserve=since((4, 1, 0)),
        prints_rings=since((4, 11, 0)),
        prints_empty=not since((4, 16, 0)),
        panic_stop="" if since((4, 4, 0)) else ".",
        payloads=frozenset(name for name, first in PAYLOADS.items() if since(first)),
        no_elf_text=f"{'ELF' if since((4, 8, 0)) else 'elf_init'}: not an ELF binary",
        hv_start_panics=not since((4, 15, 0)),
        names_missing_pv32=since((4, 16, 0)),
        construct_panic=_construct_panic(version),
        pae_of_64bit=(3, 1, 0) <= version < (4, 18, 0),
        magic_version="3.1" if version[:2] == (3, 1) else "3.0",
        pm_flags=since((3, 3, 0)),
        max_frames=_max_frames(version),
        has_bigmem=since((4, 6, 0)),
        libxl_counts_hap=since((4, 17, 0)),
    )


def _max_frames(version: tuple[int, int, int]) -> int:
    if version >= (4, 3, 0):
        return (1 << 32) - 2
    return (5 if version >= (4, 0, 0) else 1) << 28


def _construct_panic(version: tuple[int, int, int]) -> str:
    if version >= (4, 21, 0):
        return "Could not construct d0"
    if version >= (4, 14, 0):
        return "Could not construct domain 0"
    return "Could not set up DOM0 guest OS"
