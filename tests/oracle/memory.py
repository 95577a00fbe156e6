# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of the machine that QEMU emulates: by machine address, by virtual address, as tables.

Its RAM is a memory file which this process maps as well, so that reading costs nothing, and
which is as small as what the machine has touched.
"""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    PAGE_SHIFT,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    TABLE_SHIFT,
    table_slot,
)

Words = npt.NDArray[np.uint64]
XEN_SLOTS = range(256, 272)  # of the root
_HOLE_START, _HOLE_END = 0xC0000000, 1 << 32


class Table(NamedTuple):
    """One page of a page table."""

    mfn: int
    level: int
    vaddr: int
    words: Words


class Memory:
    """RAM of `nr_bytes`, of which `below_4g` lie in one piece from 0 and the others at 4 GiB.

    :ivar fd: of the memory file; a child process inherits it
    """

    def __init__(self, nr_bytes: int, below_4g: int | None = None) -> None:
        self.nr_bytes = nr_bytes
        self.below_4g = below_4g or (nr_bytes if nr_bytes < 0xE0000000 else _HOLE_START)
        self.fd = os.memfd_create("ram", 0)
        os.ftruncate(self.fd, nr_bytes)
        self._map = mmap.mmap(self.fd, nr_bytes, mmap.MAP_SHARED, mmap.PROT_READ)

    def read(self, maddr: int, nr_bytes: int) -> bytes:
        """Bytes at a machine address."""
        at = maddr if maddr < self.below_4g else maddr - _HOLE_END + self.below_4g
        return self._map[at : at + nr_bytes]

    def words(self, maddr: int, nr: int) -> Words:
        """`nr` 64-bit words at a machine address."""
        return np.frombuffer(self.read(maddr, 8 * nr), "<u8")

    def translate(self, root: int, vaddr: int) -> tuple[int, int]:
        """Machine address of a virtual one, and how many bytes follow it in the same leaf.

        :param root: machine address of the L4 table (CR3)
        :raises LookupError: it is not mapped
        """
        table = root
        for level in range(LEVELS, 0, -1):
            entry = int(self.words((table & PTE_MFN_MASK) + 8 * table_slot(vaddr, level), 1)[0])
            if not entry & PTE_PRESENT:
                raise LookupError(f"{vaddr:#018x} is not mapped")
            if level == 1 or (level < LEVELS and entry & PTE_PSE):
                size = 1 << (PAGE_SHIFT + TABLE_SHIFT * (level - 1))
                inside = vaddr & (size - 1)
                return entry & PTE_MFN_MASK & ~(size - 1) | inside, size - inside
            table = entry
        raise AssertionError("not reached")

    def read_virtual(self, root: int, vaddr: int, nr_bytes: int) -> bytes:
        """Bytes at a virtual address, see `translate`."""
        parts = []
        while nr_bytes:
            maddr, size = self.translate(root, vaddr)
            parts.append(self.read(maddr, min(nr_bytes, size)))
            vaddr, nr_bytes = vaddr + len(parts[-1]), nr_bytes - len(parts[-1])
        return b"".join(parts)

    def tables(self, root: int, *, levels: int = LEVELS, skip: range = XEN_SLOTS) -> list[Table]:
        """All table pages that CR3 `root` leads to, see `guest_tables`."""

        def words_of(mfn: int) -> Words:
            return self.words(mfn << PAGE_SHIFT, ENTRIES)

        return guest_tables(words_of, root >> PAGE_SHIFT, levels=levels, skip=skip)

    def close(self) -> None:
        """Free it."""
        self._map.close()
        os.close(self.fd)


def guest_tables(
    words_of: Callable[[int], Words],
    root_mfn: int,
    *,
    levels: int = LEVELS,
    skip: range = XEN_SLOTS,
) -> list[Table]:
    """All table pages of a guest, each once, the root first.

    :param words_of: contents of a machine frame
    :param levels: 4, or 3 for PAE
    :param skip: slots of an L4 root that are not followed
    """
    return list(_walk(words_of, root_mfn, levels, 0, skip, set()))


def _walk(
    words_of: Callable[[int], Words],
    mfn: int,
    level: int,
    vaddr: int,
    skip: range,
    seen: set[int],
) -> Iterator[Table]:
    if mfn in seen:
        return
    seen.add(mfn)
    words = words_of(mfn)
    yield Table(mfn, level, vaddr, words)
    if level == 1:
        return
    leaf = np.uint64(PTE_PSE if level < LEVELS else 0)
    present = (words & np.uint64(PTE_PRESENT) != 0) & (words & leaf == 0)
    for slot in np.flatnonzero(present).tolist():
        if level == LEVELS and slot in skip:
            continue
        below = vaddr + (slot << (PAGE_SHIFT + TABLE_SHIFT * (level - 1)))
        if level == LEVELS and slot >= ENTRIES // 2:
            below |= 0xFFFF << 48
        target = (int(words[slot]) & PTE_MFN_MASK) >> PAGE_SHIFT
        yield from _walk(words_of, target, level - 1, below, skip, seen)


def l1_of(tables: Mapping[int, Table], root_mfn: int, vaddr: int) -> int:
    """mfn of the L1 table that maps `vaddr`; 0 where there is none."""
    mfn = root_mfn
    for level in range(LEVELS, 1, -1):
        if mfn not in tables:
            return 0
        mfn = (int(tables[mfn].words[table_slot(vaddr, level)]) & PTE_MFN_MASK) >> PAGE_SHIFT
    return mfn
