# SPDX-License-Identifier: GPL-2.0-or-later
"""Entries as Xen reads them: which flags are refused, which are added, what one refers to.

Models the masks of xen/arch/x86/mm.c and adjust_guest_l1e() .. l4e() of pv/mm.h (SPEC A4, A5) for
64-bit domains; and, for a whole L1 table at once, get_page_from_l1e() and put_page_from_l1e().
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xenpt.abi import (
    ENTRIES,
    LEVELS,
    PAGE_SHIFT,
    PGC_COUNT_MASK,
    PGT_COUNT_MASK,
    PGT_TYPE_MASK,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
    PTE_ACCESSED,
    PTE_GLOBAL,
    PTE_GUEST_KERNEL,
    PTE_MFN_MASK,
    PTE_PCD,
    PTE_PRESENT,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
    PTE_USER,
    WORD,
    XEN_SLOTS,
)
from xenpt.xen.frames import FrameTable, Mask, Mfns, Words

CACHE_FLAGS = PTE_PWT | PTE_PCD | PTE_PSE  # PSE is PAT in an L1 entry
UNCACHED = PTE_PWT | PTE_PCD  # _PAGE_UC
#: Whether each PWT | PCD << 1 | PAT << 2 is uncached or write-combining in XEN_MSR_PAT.
_PAT_UNCACHED = (False, False, True, True, True, False, True, True)


def entry_mfn(entry: int) -> int:
    """The frame that an entry names."""
    return (entry & PTE_MFN_MASK) >> PAGE_SHIFT


def bad_flags(entry: int, level: int, *, iomem: bool) -> int:
    """Flags that a guest's entry of `level` may not have; cache flags are for `iomem` domains."""
    return entry & _disallowed(level, iomem=iomem)


def _disallowed(level: int, *, iomem: bool) -> int:
    if level > 1:
        return CACHE_FLAGS | PTE_GLOBAL
    return 0 if iomem else CACHE_FLAGS


def io_flips(entry: int, frames: FrameTable) -> int:
    """Bits to flip in an L1 entry of a frame that is no RAM: not cached, perhaps not writable."""
    pat = (entry & (PTE_PWT | PTE_PCD)) >> 3 | (entry & PTE_PSE) >> 5
    flips = 0 if _PAT_UNCACHED[pat] else (entry & CACHE_FLAGS) ^ UNCACHED
    return flips | (entry & PTE_RW if frames.is_read_only_io(entry_mfn(entry)) else 0)


def adjust_one(entry: int, level: int) -> int:
    """The entry as Xen stores it (adjust_guest_l1e .. l4e)."""
    if not entry & PTE_PRESENT:
        return entry
    if level > 1:
        return entry | PTE_USER | (PTE_ACCESSED if level == LEVELS else 0)
    if not entry & PTE_USER:
        entry |= PTE_USER | PTE_GUEST_KERNEL
    if not entry & PTE_GUEST_KERNEL:
        entry |= PTE_GLOBAL
    return entry


def adjust(words: Words) -> Words:
    """`adjust_one` of many L1 entries."""
    present = words & PTE_PRESENT != 0
    kernel = present & (words & PTE_USER == 0)
    words = words | np.where(kernel, np.uint64(PTE_USER | PTE_GUEST_KERNEL), np.uint64(0))
    user = present & (words & PTE_GUEST_KERNEL == 0)
    return words | np.where(user, np.uint64(PTE_GLOBAL), np.uint64(0))


def present_slots(words: Words, level: int) -> list[int]:
    """Positions of the present entries; of an L4 table, of those that are not Xen's."""
    slots: list[int] = np.flatnonzero(words & PTE_PRESENT).tolist()
    return [s for s in slots if s not in XEN_SLOTS] if level == LEVELS else slots


@dataclass(slots=True)
class L1References:
    """What the entries of an L1 table refer to, up to the first one that is refused.

    :ivar end: slot of the refused entry, else 512
    :ivar mfns: RAM frames that entries before it map, each once
    :ivar nr_refs: entries that map each
    :ivar nr_writable: entries that map each writable
    :ivar flips: bits to flip in each word before `end`
    """

    end: int
    mfns: Mfns
    nr_refs: npt.NDArray[np.int64]
    nr_writable: npt.NDArray[np.int64]
    flips: Words


def l1_references(
    words: Words, frames: FrameTable, *, iomem: bool, checked: bool = True
) -> L1References:
    """References of an L1 table's entries; `checked` is for a table that is to be validated."""
    slots = np.flatnonzero(words & PTE_PRESENT)
    entry = words[slots]
    mfn = ((entry & PTE_MFN_MASK) >> PAGE_SHIFT).astype(np.int64)
    io = frames.are_io(mfn)
    end = ENTRIES
    flips = np.zeros(ENTRIES, np.uint64)
    if checked:
        bad = _refused(entry, mfn, io, frames, iomem=iomem)
        if bad.any():
            end = int(slots[np.argmax(bad)])
        for slot, word in zip(slots[io].tolist(), entry[io].tolist(), strict=True):
            flips[slot] = io_flips(word, frames)
    ram = ~io & (slots < end)
    mfn, writable = mfn[ram], entry[ram] & PTE_RW != 0
    if np.all(mfn[1:] > mfn[:-1]):  # as tables mostly are
        return L1References(end, mfn, np.ones_like(mfn), writable.astype(np.int64), flips[:end])
    mfns, at = np.unique(mfn, return_inverse=True)
    nr_refs = np.bincount(at, minlength=len(mfns))
    nr_writable = np.bincount(at[writable], minlength=len(mfns))
    return L1References(end, mfns, nr_refs, nr_writable, flips[:end])


def _refused(entry: Words, mfn: Mfns, io: Mask, frames: FrameTable, *, iomem: bool) -> Mask:
    bad: Mask = entry & np.uint64(_disallowed(1, iomem=iomem)) != 0
    if not iomem:
        bad |= io
    count_info, type_info = frames.gather(mfn)
    bad |= ~io & (count_info & PGC_COUNT_MASK == 0)
    other = type_info & np.uint64(PGT_TYPE_MASK) != np.uint64(PGT_WRITABLE_PAGE)
    bad |= ~io & (entry & PTE_RW != 0) & other & (type_info & PGT_COUNT_MASK != 0)
    return bad


def take(taken: L1References, frames: FrameTable) -> int:
    """Take the references; frames without a type become writable where an entry is.

    :return: the frames that changed type
    """
    count_info, type_info = frames.gather(taken.mfns)
    fresh = (taken.nr_writable > 0) & (type_info & PGT_COUNT_MASK == 0)
    changes = fresh & (type_info & np.uint64(PGT_TYPE_MASK) != np.uint64(PGT_WRITABLE_PAGE))
    kept = type_info & np.uint64(~(PGT_TYPE_MASK | PGT_VALIDATED) % WORD)
    type_info = np.where(fresh, kept | np.uint64(PGT_WRITABLE_PAGE | PGT_VALIDATED), type_info)
    frames.scatter(
        taken.mfns,
        count_info + taken.nr_refs.astype(np.uint64),
        type_info + taken.nr_writable.astype(np.uint64),
    )
    return int(changes.sum())


def drop(taken: L1References, frames: FrameTable) -> None:
    """Drop the references; a frame whose last one goes is free."""
    count_info, type_info = frames.gather(taken.mfns)
    count_info = count_info - taken.nr_refs.astype(np.uint64)
    type_info = type_info - taken.nr_writable.astype(np.uint64)
    free = count_info & PGC_COUNT_MASK == 0
    count_info[free] = type_info[free] = 0
    frames.scatter(taken.mfns, count_info, type_info)
