# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbols that an x86-64 Linux carries inside itself: its kallsyms tables, read from a vmlinux.

A distribution's image is stripped, but has these for its own stack traces. Of their layout
(scripts/kallsyms.c) three things are used that check themselves: token_index is computed from
token_table, markers from names, and offsets end at a relative_base that is a kernel address.
"""

import re
import struct

import numpy as np

Symbols = dict[str, int]
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_NR_TOKENS, _MARKER_STEP = 256, 256
_KERNEL = range(0xFFFFFFFF80000000, 1 << 64)


class NoKallsymsError(Exception):
    """The image has no kallsyms tables, or of a form that is not known here."""


def read_kallsyms(image: bytes) -> Symbols:
    """Name -> address of each symbol; of names that occur twice the first.

    :raises NoKallsymsError: no tables found
    """
    tokens_at, index_end, tokens = _tokens(image)
    for at in _counts(image, tokens_at):
        (nr,) = struct.unpack_from("<I", image, at)
        names = _names(image, at + 8, nr, tokens_at)
        if names is not None:
            break
    else:
        raise NoKallsymsError("no table of names before the table of tokens")
    offsets_first = (at - 8 - 4 * nr) & ~7, at - 8  # before Linux 6.5
    offsets_last = _align(index_end), _align(_align(index_end) + 4 * nr)
    for start, base_at in (offsets_first, offsets_last):
        (base,) = struct.unpack_from("<Q", image, base_at)
        if base in _KERNEL:
            addresses = _addresses(np.frombuffer(image, "<i4", nr, start), base)
            texts = (b"".join(tokens[code] for code in name) for name in names)
            # the first character is the type; reversed, so that the first of a name wins
            pairs = zip((text[1:].decode("latin-1") for text in texts), addresses, strict=True)
            return dict(reversed(list(pairs)))
    raise NoKallsymsError("no table of offsets beside the names")


def _align(at: int) -> int:
    return (at + 7) & ~7


def _tokens(image: bytes) -> tuple[int, int, list[bytes]]:
    """Where token_table starts, where token_index ends, and the tokens by their code.

    Digits are never compressed away, so their tokens stand side by side at their own codes.
    """
    for found in re.finditer(re.escape(_DIGITS), image):
        start = found.start()
        for _ in range(ord("0") + 1):
            start = image.rindex(b"\0", 0, start)
        start += 1
        tokens = image[start : start + 8192].split(b"\0")[:_NR_TOKENS]
        ends = np.cumsum([len(token) + 1 for token in tokens])
        index = np.append(0, ends[:-1]).astype("<u2").tobytes()
        at = _align(start + int(ends[-1]))
        if image.startswith(index, at):
            return start, at + len(index), tokens
    raise NoKallsymsError("no table of tokens")


def _counts(image: bytes, end: int) -> list[int]:
    """Where num_syms may be: a plausible number, padded to 8 bytes, somewhat before `end`."""
    start = max(0, end - (16 << 20)) & ~7
    words = np.frombuffer(image, "<u8", (end - start) // 8, start)
    return (start + 8 * np.flatnonzero((words > 10_000) & (words < 1_000_000))).tolist()


def _names(image: bytes, at: int, nr: int, limit: int) -> list[bytes] | None:
    """The `nr` names at `at`, still compressed, if markers of every 256th follow; else None."""
    first, names, markers = at, [], []
    for i in range(nr):
        if i % _MARKER_STEP == 0:
            markers.append(at - first)
        length = image[at]
        at += 1
        if length & 0x80:  # two bytes, since Linux 6.1
            length = length & 0x7F | image[at] << 7
            at += 1
        if not length or at + length > limit:
            return None
        names.append(image[at : at + length])
        at += length
    table = np.array(markers, "<u4").tobytes()
    return names if image[_align(at) :][: len(table)] == table else None


def _addresses(offsets: np.ndarray, base: int) -> list[int]:
    """Up to Linux 6.14 a negative offset is an address, a positive one is per-CPU, absolute."""
    if (offsets < 0).any():
        return [base - 1 - o if o < 0 else o for o in offsets.tolist()]
    return [base + o for o in offsets.tolist()]
