# SPDX-License-Identifier: GPL-2.0-or-later
"""Ramdisks: their length, and what a gzip file says of its unpacked one."""

import stat
from dataclasses import dataclass
from pathlib import Path

from xenpt.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"
_MIN_GZIP_BYTES = 6  # the magic and the 4 bytes of the length; libxenguest asks for no more


@dataclass(frozen=True, slots=True)
class Initrd:
    """A ramdisk.

    :ivar nr_bytes: length of the file
    :ivar unpacked_bytes: of a gzip file, the length in its last 4 bytes; None for other files
    :ivar vaddr: virtual address that it is forced to; 0 without, as always with xl
    :ivar name: of the file, as the user gave it
    """

    nr_bytes: int
    unpacked_bytes: int | None = None
    vaddr: int = 0
    name: str = "ramdisk"


def read_initrd(path: str | Path) -> Initrd:
    """A ramdisk from its file; only the ends are read. An empty file is one, too.

    :raises InputError: it is missing, unreadable or not a regular file
    """
    try:
        # A FIFO without a writer would block open(): ask first.
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(path, "not a regular file")
        with open(path, "rb") as file:
            magic = file.read(len(GZIP_MAGIC))
            if magic != GZIP_MAGIC or found.st_size < _MIN_GZIP_BYTES:
                return Initrd(found.st_size, name=str(path))
            file.seek(-4, 2)
            return Initrd(found.st_size, int.from_bytes(file.read(4), "little"), name=str(path))
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(path, str(error)) from None
