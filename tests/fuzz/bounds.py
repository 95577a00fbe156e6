# SPDX-License-Identifier: GPL-2.0-or-later
"""What one run of a parser may take, and what it may raise."""

import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from xenpt.errors import XenptError
from xenpt.inputs import payload
from xenpt.units import SizeWarning

#: Processor time of one run; the slowest honest one takes a tenth of it.
MOST_SECONDS = 10.0
#: Address space that one run may add: xz and lzma may ask for 256 MiB, and all else is far less.
MOST_BYTES = 512 << 20


#: Output of a payload: what holds at this bound holds at the real one of 1 GiB.
MOST_OUTPUT_BYTES = 16 << 20


class TooSlow(Exception):
    """A run took more time than it may."""


@contextmanager
def bounded() -> Iterator[None]:
    """Refusals of xenpt end here; whatever else is raised goes through, as does a run too slow.

    Memory beyond the bound is refused by the kernel, and so is a MemoryError. A warning, of NumPy
    say that a number overflows, is an error.
    """
    unbounded = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, unbounded[1]))
    begin = time.process_time()
    try:
        with (
            warnings.catch_warnings(),
            patch.object(payload, "MAX_KERNEL_BYTES", MOST_OUTPUT_BYTES),
        ):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", SizeWarning)
            yield
    except XenptError as refusal:
        if "\n" in str(refusal):
            raise ValueError("a refusal of more than one line") from refusal
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unbounded)
    seconds = time.process_time() - begin
    if seconds > MOST_SECONDS:
        raise TooSlow(f"{seconds:.1f} s")
