# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that a result will need is guessed before any of it is taken.

Most of what xenpt keeps does not grow with a guest's memory. What does asks here first, so that a
size which is too large is one line at once, and not a machine that swaps.
"""

import resource
from pathlib import Path

from xenpt.errors import NoRoomError
from xenpt.units import format_size

#: Less than this is not asked for.
SMALL_BYTES = 64 << 20


def require_room(nr_bytes: int, what: str) -> None:
    """Refuse what would not fit.

    :param nr_bytes: a guess, from counts times measured bytes
    :param what: what needs it, as the beginning of a sentence
    :raises NoRoomError: less is free
    """
    if nr_bytes < SMALL_BYTES:
        return
    free = free_bytes()
    if nr_bytes > free:
        needed = format_size(nr_bytes)
        raise NoRoomError(f"{what} need about {needed} of memory, {format_size(free)} are free")


def free_bytes() -> int:
    """Bytes that this process may still take: of the machine, and of its own limit (ulimit -v)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = _kib("/proc/meminfo", "MemAvailable") << 10
    if limit != resource.RLIM_INFINITY:
        free = min(free, max(0, limit - (_kib("/proc/self/status", "VmSize") << 10)))
    return free


def _kib(path: str, name: str) -> int:
    """A line of /proc as `MemAvailable:  20181448 kB`; no limit where there is no such file."""
    try:
        lines = Path(path).read_text("ascii", "replace").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return 1 << 50 if name == "MemAvailable" else 0
