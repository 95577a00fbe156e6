# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people of Xen write them, and back: powers of two throughout."""

import re
import warnings
from typing import Final

from xenpt.abi import PAGE_SHIFT, PAGE_SIZE, WORD
from xenpt.errors import UsageError

MIB_PAGES: Final = 1 << (20 - PAGE_SHIFT)
GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
TIB_PAGES: Final = 1 << (40 - PAGE_SHIFT)
_SHIFTS = {"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(
    r"(0x[0-9a-f]{1,40}|[0-9]{1,40}(?:\.[0-9]{1,40})?)\s*([kmgtp]?)(i?b)?",
    re.IGNORECASE | re.ASCII,  # or else the sign of the kelvin would be a K
)


class SizeWarning(UserWarning):
    """A size that was understood, but perhaps not as it was meant; its text is one line."""


def parse_size(text: str) -> int:
    """Bytes of a size such as `600G`, `2TiB`, `1234567K`, `1.5T`, `0x40000000`.

    K, M, G, T, P are powers of two, as in Xen; `600GB` is read as 600 GiB with a `SizeWarning`.

    :raises UsageError: no size, a bare number, not a whole number of bytes, 2**64 or more
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"size {text!r}: expected something like 600G, 2TiB or 0x40000000")
    number, unit, suffix = found[1], found[2].upper(), (found[3] or "").upper()
    if number[:2].lower() == "0x":
        if unit or suffix:
            raise UsageError(f"size {text!r}: a hex size is in bytes and takes no unit")
        nr_bytes = int(number, 16)
    elif unit:
        if suffix == "B":
            meant = f"{number}{unit}iB"
            warnings.warn(f"size {text!r} is taken as {meant}", SizeWarning, stacklevel=2)
        nr_bytes = _scaled(text, number, _SHIFTS[unit])
    elif suffix == "B":
        nr_bytes = _scaled(text, number, 0)
    else:
        raise UsageError(f"size {text!r}: unit missing, did you mean {number}G?")
    if nr_bytes >= WORD:
        raise UsageError(f"size {text!r}: 2**64 bytes or more")
    return nr_bytes


def _scaled(text: str, number: str, shift: int) -> int:
    whole, _, decimals = number.partition(".")
    scaled, rest = divmod(int(whole + decimals) << shift, int("1" + "0" * len(decimals)))
    if rest:
        raise UsageError(f"size {text!r}: not a whole number of bytes")
    return scaled


def pages(size: str | int) -> int:
    """Pages of 4 KiB in a size text (or in bytes, if an int); a remainder is dropped as in Xen.

    :raises UsageError: see `parse_size`; less than one page
    """
    nr_bytes = parse_size(size) if isinstance(size, str) else size
    if nr_bytes < PAGE_SIZE:
        raise UsageError(f"size {size!r}: less than one page of 4 KiB")
    return nr_bytes >> PAGE_SHIFT


def sizes(first: str, last: str) -> list[int]:
    """Pages of `first`, and of each doubling of it up to and including `last`."""
    start, end = pages(first), pages(last)
    return [start << i for i in range((end // start).bit_length())] if end >= start else []


def format_size(nr_bytes: int) -> str:
    """A size for people: `600 GiB`, `473.74 GiB`, `2 TiB`, `96 B`; two decimals at most."""
    shift = min(max(abs(nr_bytes).bit_length() - 1, 0) // 10 * 10, 50)
    unit = {0: "B", 10: "KiB", 20: "MiB", 30: "GiB", 40: "TiB", 50: "PiB"}[shift]
    number = f"{nr_bytes / (1 << shift):,.2f}".rstrip("0").rstrip(".")
    return f"{number} {unit}"


def format_pages(nr_pages: int) -> str:
    """A number of 4 KiB pages as a size for people."""
    return format_size(nr_pages << PAGE_SHIFT)


def counted(nr: int, one: str, more: str | None = None) -> str:
    """A number of things: "1 page", "2,048 pages"; `more` is their plural if not one with -s."""
    return f"{nr:,} {one if nr == 1 else more or one + 's'}"


def format_seconds(seconds: float) -> str:
    """A time for people: `1,645 s`, `1.53 s`, `257.4 ms`, `91 us`."""
    if seconds >= 1:
        return f"{seconds:,.{0 if seconds >= 100 else 2}f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.0f} us"


def format_address(address: int) -> str:
    """An address as Xen's log prints it: 16 hex digits, no prefix, modulo 2**64."""
    return f"{address % WORD:016x}"
