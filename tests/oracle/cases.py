# SPDX-License-Identifier: GPL-2.0-or-later
"""The boots that are compared: how large the machine and dom0 are, and what is special."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One boot.

    :ivar host: RAM of the machine, as QEMU takes it (2G)
    :ivar dom0: dom0_mem of Xen, and dom0's limit
    :ivar below_4g: where the machine's RAM hole begins, if not where it usually does; at 140M it
        is inside of dom0's first pages, so that Linux has to move its P->M list
    :ivar quiet: no memblock=debug, the log of which grows with memory
    :ivar silent: Linux prints nothing while it boots
    :ivar partial: Linux is told to use less memory than it has (mem=), which the model does not
        know: of what it does itself, only setup and the free of the list are compared
    :ivar xen: more options of Xen
    :ivar linux: more options of Linux
    :ivar cpu: what QEMU emulates, if it is not the usual
    :ivar seconds: what the boot may take
    """

    name: str
    host: str
    dom0: str
    initrd_bytes: int | None = None
    below_4g: str | None = None
    quiet: bool = False
    silent: bool = False
    partial: bool = False
    xen: str = ""
    linux: str = ""
    cpu: str | None = None
    seconds: int = 90


# fmt: off
_ALL = (
    Case("512m", "4G", "512M"),
    Case("2g", "4G", "2G"),
    Case("2g-initrd", "4G", "2G", initrd_bytes=12345678),
    Case("8g-relocated", "10G", "8G", below_4g="140M", quiet=True),
    # a list with leaves of 1 GiB, 2 MiB and 4 KiB; without mem= this one takes three minutes
    Case(
        "520g", "524G", "520G", quiet=True, partial=True,
        xen="bootscrub=0", linux="mem=4G", seconds=200,
    ),
    # above 1 TiB, which QEMU's usual processor cannot address; takes 17 GB of this machine's RAM.
    # With an Intel processor Xen would show the guest a copy of its root table (XPTI).
    Case(
        "1032g", "1060G", "1032G", quiet=True, partial=True, xen="bootscrub=0 xpti=no",
        linux="mem=6G", cpu="Nehalem,phys-bits=46,+pdpe1gb", seconds=300,
    ),
    Case("160m", "4G", "160M"),
    Case("2g-1page", "4G", "2097148K"),
    Case("1g-initrd-empty", "4G", "1G", initrd_bytes=0),
    Case("1g-initrd-1byte", "4G", "1G", initrd_bytes=1),
    Case("1g-initrd-1page", "4G", "1G", initrd_bytes=4096),
    Case("1g-initrd-moved", "4G", "1G", initrd_bytes=40000001, below_4g="160M"),
    Case("8g", "10G", "8G", quiet=True),
    Case("127m-panics", "4G", "127M"),
)
# fmt: on
CASES = {case.name: case for case in _ALL}
QUICK = "512m", "2g", "2g-initrd"
DEFAULT = *QUICK, "8g-relocated", "520g"
BY_HAND = ("1032g",)  # not among "all"


def dom0_mem(case: Case) -> str:
    """Xen's option of that name: a size and, for what Linux may balloon into, the same limit."""
    return f"{case.dom0},max:{case.dom0}"


def nr_bytes(size: str) -> int:
    """Bytes of a size of this module, 140M."""
    number, unit = re.fullmatch(r"(\d+)([KMG])", size).groups()
    return int(number) << {"K": 10, "M": 20, "G": 30}[unit]
