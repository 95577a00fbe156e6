# SPDX-License-Identifier: GPL-2.0-or-later
"""The same three steps by other means: C's own loops, NumPy, numba, plain Python.

Each peer has `build(words, mfn, flags)`, `mark(words, ranges) -> changed` and `walk(words) -> runs`
over a flat array of level 1 words. The limits of the machine are `limit_read`, `limit_write` and
`limit_rmw` of peers.c.
"""

import ctypes
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
SOURCE = Path(__file__).with_name("peers.c")
PRESENT, RW, FRAME_MASK = 1, 2, 0x000FFFFFFFFFF000
ENTRIES = 512


class Peer(Protocol):
    """One way to do the three steps."""

    name: str

    def build(self, words: Words, mfn: int, flags: int) -> None:
        """Write words that map frames mfn, mfn + 1, ..."""

    def mark(self, words: Words, ranges: Words) -> int:
        """Clear RW of the words whose frames lie in sorted (k, 2) ranges; how many change."""

    def walk(self, words: Words) -> int:
        """Runs of frames of the present words, each table left at its first empty one."""

    def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
        """All steps over one chunk again and again, frames going on; how many words change."""


@cache
def library(*flags: str) -> ctypes.CDLL:
    """peers.c, compiled by this machine's compiler with `flags`."""
    built = Path(tempfile.mkdtemp()) / "peers.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, *flags, "-shared", "-fPIC", "-o", built, SOURCE], check=True)
    found = ctypes.CDLL(str(built))
    for name in ("limit_read", "loop_mark", "loop_walk"):
        getattr(found, name).restype = ctypes.c_uint64
    return found


def _at(words: Words) -> ctypes.c_void_p:
    return ctypes.c_void_p(words.ctypes.data)


def _nr(words: Words) -> ctypes.c_size_t:
    return ctypes.c_size_t(words.size)


def limit(step: str, words: Words) -> None:
    """Run limit_read, limit_write or limit_rmw over `words`."""
    getattr(library("-O3", "-march=native"), f"limit_{step}")(_at(words), _nr(words))


class Loop:
    """The kernel's loop in C, -O2 as kernels are."""

    name = "C, entry by entry"

    def build(self, words: Words, mfn: int, flags: int) -> None:
        """See Peer."""
        first, bits = ctypes.c_uint64(mfn), ctypes.c_uint64(flags)
        library("-O2").loop_build(_at(words), _nr(words), first, bits)

    def mark(self, words: Words, ranges: Words) -> int:
        """See Peer."""
        return int(
            library("-O2").loop_mark(
                _at(words), _nr(words), _at(ranges), ctypes.c_size_t(len(ranges))
            )
        )

    def walk(self, words: Words) -> int:
        """See Peer."""
        return int(library("-O2").loop_walk(_at(words), _nr(words)))

    def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
        """See Peer; the loop over chunks is in C, too."""
        return int(
            library("-O2").loop_fused(
                _at(words), _nr(words), ctypes.c_size_t(chunks), ctypes.c_uint64(mfn),
                ctypes.c_uint64(flags), _at(ranges), ctypes.c_size_t(len(ranges)),
            )
        )  # fmt: skip


def _fused(peer: Peer, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
    changed = 0
    for c in range(chunks):
        peer.build(words, mfn + c * words.size, flags)
        changed += peer.mark(words, ranges)
        peer.walk(words)
    return changed


class NumPy:
    """Idiomatic NumPy: whole arrays, no loop."""

    name = "NumPy"

    def build(self, words: Words, mfn: int, flags: int) -> None:
        """See Peer."""
        words[:] = np.arange(mfn, mfn + words.size, dtype=np.uint64) << 12 | np.uint64(flags)

    def mark(self, words: Words, ranges: Words) -> int:
        """See Peer."""
        frame = (words & FRAME_MASK) >> 12
        if len(ranges) == 1:
            inside = (frame >= ranges[0, 0]) & (frame < ranges[0, 1])
        else:
            at = np.searchsorted(ranges[:, 1], frame, side="right")
            inside = (at < len(ranges)) & (ranges[np.minimum(at, len(ranges) - 1), 0] <= frame)
        inside &= words & (PRESENT | RW) == PRESENT | RW
        words[inside] &= np.uint64(~RW & (1 << 64) - 1)
        return int(inside.sum())

    def walk(self, words: Words) -> int:
        """See Peer."""
        tables = words.reshape(-1, ENTRIES)
        present = np.logical_and.accumulate(tables & PRESENT != 0, axis=1).ravel()
        frame = (words[present] & FRAME_MASK) >> 12
        return 1 + int(np.count_nonzero(np.diff(frame) != 1)) if len(frame) else 0

    def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
        """See Peer."""
        return _fused(self, words, chunks, mfn, flags, ranges)


class NumPyInPlace(NumPy):
    """NumPy at its best for one chunk: results go into buffers that stay in the cache."""

    name = "NumPy, out="

    def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
        """See Peer."""
        line = np.arange(words.size, dtype=np.uint64) << 12 | np.uint64(flags)
        frame, hit = np.empty_like(words), np.empty(words.size, bool)
        step = np.empty(words.size - 1, np.uint64)
        changed = 0
        for c in range(chunks):
            np.add(line, np.uint64((mfn + c * words.size) << 12), out=words)
            np.right_shift(np.bitwise_and(words, FRAME_MASK, out=frame), 12, out=frame)
            if len(ranges) == 1:
                np.less(frame - ranges[0, 0], ranges[0, 1] - ranges[0, 0], out=hit)
            else:
                at = np.searchsorted(ranges[:, 1], frame, side="right")
                np.less_equal(ranges[np.minimum(at, len(ranges) - 1), 0], frame, out=hit)
                hit &= at < len(ranges)
            found = int(np.count_nonzero(hit))
            if found:
                words[hit] &= np.uint64(~RW & (1 << 64) - 1)
                changed += found
            np.bitwise_and(words, FRAME_MASK, out=frame)
            np.subtract(frame[1:], frame[:-1], out=step)
            np.count_nonzero(step != 4096)
            np.count_nonzero(words & PRESENT)
        return changed


class PlainPython:
    """Python's own loops."""

    name = "pure Python"

    def build(self, words: Words, mfn: int, flags: int) -> None:
        """See Peer."""
        for i in range(words.size):
            words[i] = (mfn + i) << 12 | flags

    def mark(self, words: Words, ranges: Words) -> int:
        """See Peer."""
        changed, pairs = 0, ranges.tolist()
        for i, word in enumerate(words.tolist()):
            frame = (word & FRAME_MASK) >> 12
            if word & PRESENT and word & RW and any(low <= frame < high for low, high in pairs):
                words[i] = word & ~RW
                changed += 1
        return changed

    def walk(self, words: Words) -> int:
        """See Peer."""
        runs = following = 0
        for table in words.reshape(-1, ENTRIES).tolist():
            for word in table:
                if not word & PRESENT:
                    break
                frame = (word & FRAME_MASK) >> 12
                runs += frame != following
                following = frame + 1
        return runs

    def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
        """See Peer."""
        return _fused(self, words, chunks, mfn, flags, ranges)


def numba_peer() -> Peer | None:
    """The kernel's loop compiled by numba for this processor; None where it is not installed."""
    try:
        import numba
    except ImportError:
        sys.stderr.write("numba is not installed: pip install 'xenpt[peers]'\n")
        return None
    jit: Any = numba.njit(nogil=True)
    u = np.uint64
    one, shift, rw, present, mask = u(1), u(12), u(RW), u(PRESENT), u(FRAME_MASK)

    @jit
    def build(words, mfn, flags):  # type: ignore[no-untyped-def]
        for i in range(words.size):
            words[i] = ((mfn + u(i)) << shift) | flags

    @jit
    def mark(words, ranges):  # type: ignore[no-untyped-def]
        changed, k = 0, len(ranges)
        for i in range(words.size):
            w = words[i]
            if not (w & present and w & rw):
                continue
            frame = (w & mask) >> shift
            if k == 1:
                if ranges[0, 0] <= frame and frame < ranges[0, 1]:
                    words[i] = w & ~rw
                    changed += 1
                continue
            low, high = 0, k
            while low < high:
                middle = (low + high) // 2
                if ranges[middle, 1] > frame:
                    high = middle
                else:
                    low = middle + 1
            if low < k and ranges[low, 0] <= frame:
                words[i] = w & ~rw
                changed += 1
        return changed

    @jit
    def walk(words):  # type: ignore[no-untyped-def]
        runs, following = 0, u(0)
        for table in range(0, words.size, ENTRIES):
            for i in range(ENTRIES):
                w = words[table + i]
                if not w & present:
                    break
                frame = (w & mask) >> shift
                if frame != following:
                    runs += 1
                following = frame + one
        return runs

    @jit
    def fused(words, chunks, mfn, flags, ranges):  # type: ignore[no-untyped-def]
        changed = runs = 0
        for c in range(chunks):
            build(words, mfn + u(c) * u(words.size), flags)
            changed += mark(words, ranges)
            runs += walk(words)
        return changed if runs else 0

    class Numba:
        """The same loops, compiled for this processor."""

        name = "numba"

        def build(self, words: Words, mfn: int, flags: int) -> None:
            """See Peer."""
            build(words, u(mfn), u(flags))

        def mark(self, words: Words, ranges: Words) -> int:
            """See Peer."""
            return int(mark(words, ranges))

        def walk(self, words: Words) -> int:
            """See Peer."""
            return int(walk(words))

        def fused(self, words: Words, chunks: int, mfn: int, flags: int, ranges: Words) -> int:
            """See Peer; the loop over chunks is compiled, too."""
            return int(fused(words, chunks, u(mfn), u(flags), ranges))

    return Numba()
