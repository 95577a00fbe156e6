# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes that Xen, its toolstack or Linux do not go beyond, each with its source.

They are limits that no page table shows; those that a plan or a boot runs into are theirs to tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from xenpt.dom0size import MAX_PAGES
from xenpt.eras import Era
from xenpt.errors import UsageError
from xenpt.inputs.config import Host
from xenpt.linux import LinuxRules
from xenpt.units import TIB_PAGES

#: Frames of Xen's direct map with CONFIG_BIGMEM: L4 slots 265 to 510.
BIGMEM_FRAMES: Final = 123 * TIB_PAGES
Version = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, and what it was held against; both in pages.

    :ivar value: the largest size that is within it
    :ivar size: of the host or guest in question
    """

    limit: str
    value: int
    source: str
    size: int

    @property
    def passed(self) -> bool:
        """The size is beyond it."""
        return self.size > self.value

    def as_dict(self) -> dict[str, Any]:
        """One element of `beyond`."""
        return {"limit": self.limit, "value": self.value, "source": self.source}


def xen_frames(host: Host, era: Era) -> int:
    """End of the frames that this Xen makes use of (setup_max_pdx); RAM behind it is ignored.

    :raises UsageError: CONFIG_BIGMEM of a Xen that does not have it
    """
    if not host.bigmem:
        return era.max_frames
    if not era.has_bigmem:
        raise UsageError(f"Xen {host.xen} has no CONFIG_BIGMEM: it came with 4.6")
    return BIGMEM_FRAMES


def host_limits(host: Host, era: Era, ram_pages: int, end_frame: int) -> Iterator[Limit]:
    """Limits of a host's RAM, and of the frame where it ends."""
    source = "CONFIG_BIGMEM: DIRECTMAP_SIZE (10dcec844f)" if host.bigmem else "FRAMETABLE_SIZE"
    frames = xen_frames(host, era)
    yield Limit("frames that Xen uses", frames, f"Xen: setup_max_pdx(), {source}", end_frame)
    if era.version >= (4, 17, 0):
        source = "SUPPORT.md, Physical Memory (8dac2928c2)"
        yield Limit("pages of RAM with security support", 12 * TIB_PAGES, source, ram_pages)
    elif era.version >= (4, 10, 0):
        source = "SUPPORT.md of xen.git after XSA-385 (c49ee0329f), before 4.17"
        yield Limit("pages of RAM with security support", 8 * TIB_PAGES, source, ram_pages)
    if (4, 3, 0) <= era.version < (4, 19, 0) and not host.bigmem:
        source = "Xen: beyond it, BUG() in free_heap_pages() without 64d32b75e6 (4.19)"
        yield Limit("frames that Xen boots with", frames, source, end_frame)


def guest_limits(nr_pages: int, kind: str, era: Era, rules: LinuxRules) -> Iterator[Limit]:
    """Limits of a guest's memory; `rules` are those of the Linux in a PV guest."""
    for first, end, limit, value, source in _GUEST + (_PV_GUEST if kind == "pv" else ()):
        if first <= era.version < end:
            yield Limit(limit, value, source, nr_pages)
    if kind != "pv":
        return
    source = f"Linux {rules.name}: xen_memory_setup() in arch/x86/xen/setup.c"
    if rules.domu_page_limit < rules.page_limit:
        source += ", unless xen_512gb_limit is off"
    yield Limit("pages of a PV guest that Linux uses", rules.domu_page_limit, source, nr_pages)


_FIRST: Final = (3, 0, 0)
_ALWAYS: Final = (99, 0, 0)
_Known = tuple[Version, Version, str, int, str]  # from this Xen, before that one, limit ... source
_GUEST: Final[tuple[_Known, ...]] = (
    (_FIRST, _ALWAYS, "pages of one domain", MAX_PAGES,
     "Xen: d->tot_pages and d->max_pages are 32-bit"),
    ((4, 17, 0), _ALWAYS, "pages of a guest with security support", 8 * TIB_PAGES,
     "SUPPORT.md, Guest Limits (8dac2928c2)"),
    (_FIRST, (4, 8, 0), "pages of a guest that libxl can name", 2 * TIB_PAGES,
     "libxl: KiB in 32 bits, some of them signed: 57f8b13c72 (4.8)"),
    (_FIRST, (4, 15, 0), "pages of a guest in a bitmap of libxc", 8 * TIB_PAGES,
     "libxc: sizes of bitmaps were 32-bit: 50a5215f30 (4.15)"),
)  # fmt: skip
_PV_GUEST: Final[tuple[_Known, ...]] = (
    (_FIRST, (4, 7, 0), "pages of a PV guest whose list the tools can read", TIB_PAGES // 2,
     "three levels of the tools' tree; linear list: dac6d3b1a4, dc6d609371 (4.7)"),
    (_FIRST, (4, 10, 0), "pages of a PV guest that can be saved or migrated", TIB_PAGES - 1,
     "libxc: records of 8 MiB, just under 1 TiB: e48e33e219 (4.10)"),
    ((4, 10, 0), _ALWAYS, "pages of a PV guest that can be saved or migrated", 16 * TIB_PAGES - 1,
     "libxenguest: records of 128 MiB, nearly 16 TiB (e48e33e219)"),
    ((4, 7, 0), (4, 16, 0), "pages of a PV guest of Linux 4.14 or later in xl dump-core", 0,
     "libxc knows the tools' tree only: bd7a29c3d0 (4.16)"),
)  # fmt: skip
