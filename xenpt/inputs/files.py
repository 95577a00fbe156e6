# SPDX-License-Identifier: GPL-2.0-or-later
"""Opening what the user names: a regular file that is not empty, or one clear line."""

import stat
from mmap import ACCESS_READ, mmap
from os import fstat
from pathlib import Path

from xenpt.errors import InputError

MAX_LOG_BYTES = 64 << 20
MAX_LINE = 4096  # characters of a log's line that are looked at; real ones have some hundred


def read_file(path: str | Path, *, limit: int | None = None) -> mmap:
    """A file's contents, mapped: only what is looked at is read.

    :param limit: most bytes that it may have
    :raises InputError: it is missing, unreadable, empty, too large or not a regular file
    """
    try:
        # A FIFO without a writer would block open(): ask first.
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):
            what = "a directory, not a file" if stat.S_ISDIR(mode) else "not a regular file"
            raise InputError(path, what)
        with open(path, "rb") as file:
            nr_bytes = fstat(file.fileno()).st_size
            if nr_bytes == 0:
                raise InputError(path, "empty file")
            if limit is not None and nr_bytes > limit:
                raise InputError(path, f"{nr_bytes} bytes are more than the limit of {limit}")
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise InputError(path, error.strerror or str(error)) from None
    except ValueError as error:  # a NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(path, str(error)) from None
