# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's rules once more, as plainly as they can be said: one dictionary a frame, one entry a time.

Written from SPEC E and the functions that it names, without a look at xenpt.xen: the other side of
tests/property/test_rules_stateful.py. Errors are negated errno numbers, as a guest sees them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PRESENT, RW, USER, PWT, PCD, ACCESSED, DIRTY, PAT, GLOBAL = (1 << bit for bit in range(9))
KERNEL = 1 << 52
NX = 1 << 63
FRAME_BITS = 0x000F_FFFF_FFFF_F000
EPERM, EBUSY, EINVAL, ENOSYS = -1, -16, -22, -38
XEN_SLOTS = range(256, 272)
#: Bits that may change without taking new references.
HARMLESS = ACCESSED | DIRTY | USER | GLOBAL | 0xE00 | NX | 0x7FF << 52


class Refused(Exception):
    """A negated errno, as its only argument."""

    @property
    def errno(self) -> int:
        return int(self.args[0])


@dataclass
class Frame:
    """One frame: general references, type ("writable", "gdt", or a level) and its references."""

    refs: int = 1
    type: str | int | None = None
    count: int = 0
    pinned: bool = False
    allocated: bool = True


class XenModel:
    """Frames [first, end) are the domain's; those of `io` are no RAM, nor those from `top` on.

    Nobody may write to those of `read_only`, which are no RAM, either.
    """

    def __init__(
        self,
        first: int,
        end: int,
        *,
        io: Sequence[int],
        top: int,
        privileged: bool,
        read_only: Sequence[int] = (),
    ) -> None:
        self.frames = {mfn: Frame() for mfn in range(first, end)}
        self.words: dict[int, dict[int, int]] = {mfn: {} for mfn in range(first, end)}
        self.linear = dict.fromkeys(range(first, end), 0)
        self.io, self.top, self.privileged = io, top, privileged
        self.read_only = read_only
        self.m2p: dict[int, int] = {}
        self.base = self.user_base = 0
        self.gdt: tuple[int, ...] = ()

    # --- references ---

    def owned(self, mfn: int) -> bool:
        return mfn in self.frames and self.frames[mfn].refs > 0

    def get_page(self, mfn: int) -> None:
        if not self.owned(mfn):
            raise Refused(EINVAL)
        self.frames[mfn].refs += 1

    def put_page(self, mfn: int) -> None:
        frame = self.frames[mfn]
        frame.refs -= 1
        if frame.refs == 0:
            frame.type, frame.count = None, 0

    def get_type(self, mfn: int, kind: str | int) -> None:
        frame = self.frames[mfn]
        if frame.count == 0:
            frame.type, frame.count = kind, 1
            if kind in (1, 2, 3, 4):
                self.validate(mfn, kind)
        elif frame.type == kind:
            frame.count += 1
        else:
            raise Refused(EINVAL)

    def put_type(self, mfn: int) -> None:
        frame = self.frames[mfn]
        if frame.count == 1 and frame.type in (1, 2, 3, 4):
            for slot in sorted(self.entries(mfn), reverse=True):
                self.drop_entry(frame.type, mfn, self.words[mfn][slot])
        frame.count -= 1
        if frame.count == 0:
            frame.type = None

    def get_page_and_type(self, mfn: int, kind: str | int) -> None:
        self.get_page(mfn)
        try:
            self.get_type(mfn, kind)
        except Refused:
            self.put_page(mfn)
            raise

    def put_page_and_type(self, mfn: int) -> None:
        self.put_type(mfn)
        self.put_page(mfn)

    # --- tables ---

    def entries(self, mfn: int) -> list[int]:
        """Slots of present entries that are the guest's."""
        is_root = self.frames[mfn].type == 4
        return [
            slot
            for slot, word in self.words[mfn].items()
            if word & PRESENT and not (is_root and slot in XEN_SLOTS)
        ]

    def validate(self, mfn: int, level: int) -> None:
        self.linear[mfn] = 0
        taken: list[int] = []
        for slot in sorted(self.entries(mfn)):
            word = self.words[mfn][slot]
            try:
                flips = self.take_entry(level, mfn, word)
            except Refused:
                for done in reversed(taken):
                    self.drop_entry(level, mfn, self.words[mfn][done])
                self.frames[mfn].type, self.frames[mfn].count = None, 0
                raise
            self.words[mfn][slot] = self.adjusted(level, word ^ flips)
            taken.append(slot)
        if level == 4:
            for slot in XEN_SLOTS:  # now Xen's own, which are not looked at here
                self.words[mfn].pop(slot, None)

    def adjusted(self, level: int, word: int) -> int:
        if level == 4:
            return word | USER | ACCESSED
        if level > 1:
            return word | USER
        if not word & USER:
            word |= USER | KERNEL
        return word if word & KERNEL else word | GLOBAL

    def check_flags(self, level: int, word: int) -> None:
        bad = PWT | PCD | PAT | GLOBAL
        if level == 1:
            bad = 0 if self.privileged else PWT | PCD | PAT
        if word & bad:
            raise Refused(EINVAL)

    def is_io(self, mfn: int) -> bool:
        return mfn in self.io or mfn >= self.top

    def take_entry(self, level: int, table: int, word: int) -> int:
        """Take an entry's references; the bits that Xen flips in it."""
        self.check_flags(level, word)
        mfn = (word & FRAME_BITS) >> 12
        if level == 1:
            return self.take_leaf(mfn, word)
        try:
            self.get_page_and_type(mfn, level - 1)
        except Refused as refused:
            if refused.errno != EINVAL or not self.take_linear(level, table, mfn, word):
                raise
        return 0

    def take_leaf(self, mfn: int, word: int) -> int:
        if self.is_io(mfn):
            if not self.privileged:
                raise Refused(EINVAL if mfn == FRAME_BITS >> 12 else EPERM)
            mode = word & (PWT | PCD | PAT)
            cacheable = mode in (0, PWT, PAT | PWT)  # write-back, write-through, write-protect
            cached = mode ^ (PWT | PCD) if cacheable else 0
            return cached | (word & RW if mfn in self.read_only else 0)
        if not self.owned(mfn):
            raise Refused(EBUSY)
        if word & RW:
            if self.frames[mfn].count and self.frames[mfn].type != "writable":
                raise Refused(EBUSY)
            self.get_type(mfn, "writable")
        self.get_page(mfn)
        return 0

    def take_linear(self, level: int, table: int, mfn: int, word: int) -> bool:
        """An entry may name a table of its own level, read-only, and not in chains."""
        if word & RW:
            return False
        if mfn == table:
            return True
        if not self.owned(mfn) or self.linear[table] < 0 or self.linear[mfn] > 0:
            return False
        frame = self.frames[mfn]
        if frame.type != level or not frame.count:
            return False
        self.linear[table] += 1
        self.linear[mfn] -= 1
        frame.refs += 1
        frame.count += 1
        return True

    def drop_entry(self, level: int, table: int, word: int) -> None:
        mfn = (word & FRAME_BITS) >> 12
        if not word & PRESENT:
            return
        if level == 1:
            if self.is_io(mfn):
                return
            if word & RW:
                self.put_type(mfn)
            self.put_page(mfn)
        elif mfn != table:
            linear = self.frames[mfn].type == level
            self.put_type(mfn)
            if linear:
                self.linear[mfn] += 1
                self.linear[table] -= 1
            self.put_page(mfn)

    # --- hypercalls; each returns 0 or a negated errno ---

    def mmu_update(self, ptr: int, val: int) -> int:
        command, mfn, slot = ptr & 7, ptr >> 12, (ptr & 0xFFF) >> 3
        if command > 3:
            return ENOSYS
        if not self.owned(mfn):
            return EINVAL
        if command == 1:
            self.m2p[mfn] = val
            return 0
        frame = self.frames[mfn]
        level = frame.type
        try:
            if not frame.count or level == "writable":
                self.words[mfn][slot] = val
            elif not isinstance(level, int):  # the GDT
                return EINVAL
            else:
                self.set_entry(level, mfn, slot, val, keep=command == 2)
        except Refused as refused:
            return refused.errno
        return 0

    def set_entry(
        self, level: int, mfn: int, slot: int, val: int, *, keep: bool = False, fast: bool = True
    ) -> None:
        if level == 4 and slot in XEN_SLOTS:
            raise Refused(EINVAL)
        self.frames[mfn].count += 1  # Xen locks the page with a type reference
        self.frames[mfn].refs += 1
        try:
            self.change_entry(level, mfn, slot, val, keep=keep, fast=fast)
        finally:
            self.frames[mfn].count -= 1
            self.frames[mfn].refs -= 1

    def change_entry(
        self, level: int, mfn: int, slot: int, val: int, *, keep: bool, fast: bool
    ) -> None:
        old = self.words[mfn].get(slot, 0)
        kept = old & (ACCESSED | DIRTY) if keep else 0
        new = val
        if val & PRESENT:
            self.check_flags(level, val)
            new = self.adjusted(level, val)
            if fast and not (old ^ new) & ~HARMLESS:
                self.words[mfn][slot] = new | kept
                return
            new ^= self.take_entry(level, mfn, new)
        self.words[mfn][slot] = self.adjusted(level, new) | kept if new & PRESENT else new | kept
        self.drop_entry(level, mfn, old)

    def update_va_mapping(self, vaddr: int, val: int) -> int:
        if not (vaddr < 1 << 47 or vaddr >= (1 << 64) - (1 << 47)):
            return EINVAL
        if vaddr >> 39 & 511 in XEN_SLOTS:
            return EINVAL
        mfn = self.base
        for shift in (39, 30, 21):
            word = self.words.get(mfn, {}).get(vaddr >> shift & 511, 0)
            if not word & PRESENT:
                return EINVAL
            mfn = (word & FRAME_BITS) >> 12
        frame = self.frames[mfn]
        if frame.type != 1 or not frame.count:
            return EINVAL
        try:
            self.set_entry(1, mfn, vaddr >> 12 & 511, val)
        except Refused as refused:
            return refused.errno
        return 0

    def pin(self, level: int, mfn: int) -> int:
        try:
            self.get_page_and_type(mfn, level)
        except Refused as refused:
            return refused.errno
        if self.frames[mfn].pinned:
            self.put_page_and_type(mfn)
            return EINVAL
        self.frames[mfn].pinned = True
        return 0

    def unpin(self, mfn: int) -> int:
        if not self.owned(mfn) or not self.frames[mfn].pinned:
            return EINVAL
        self.frames[mfn].pinned = False
        self.put_page_and_type(mfn)
        return 0

    def new_baseptr(self, mfn: int) -> int:
        if mfn == self.base:
            return 0
        try:
            self.get_page_and_type(mfn, 4)
        except Refused as refused:
            return refused.errno
        old, self.base = self.base, mfn
        if old:
            self.put_page_and_type(old)
        return 0

    def new_user_baseptr(self, mfn: int) -> int:
        if mfn == self.user_base:
            return 0
        try:
            if mfn:
                self.get_page_and_type(mfn, 4)
        except Refused as refused:
            return refused.errno
        old, self.user_base = self.user_base, mfn
        if old:
            self.put_page_and_type(old)
        return 0

    def plain(self, mfn: int) -> bool:
        """Whether a page can be written as data."""
        return self.owned(mfn) and (
            not self.frames[mfn].count or self.frames[mfn].type == "writable"
        )

    def clear_page(self, mfn: int) -> int:
        if not self.plain(mfn):
            return EINVAL
        self.words[mfn] = {}
        return 0

    def copy_page(self, mfn: int, source: int) -> int:
        if not self.owned(source) or not self.plain(mfn):
            return EINVAL
        self.words[mfn] = dict(self.words[source])
        return 0

    def set_gdt(self, mfns: Sequence[int]) -> int:
        taken: list[int] = []
        for mfn in mfns:
            try:
                self.get_page_and_type(mfn, "gdt")
            except Refused:
                for done in taken:
                    self.put_page_and_type(done)
                return EINVAL
            taken.append(mfn)
        for old in self.gdt:
            self.put_page_and_type(old)
        self.gdt = tuple(mfns)
        return 0

    def decrease_reservation(self, mfns: Sequence[int]) -> int:
        """Pages given back, up to the first that is not the domain's."""
        done = 0
        for mfn in mfns:
            if not self.owned(mfn):
                break
            if self.frames[mfn].allocated:
                self.frames[mfn].allocated = False
                self.put_page(mfn)
            done += 1
        return done

    def store(self, mfn: int, slot: int, val: int) -> int:
        """The guest's own store: plain, emulated for a table of level 1, else a fault."""
        if self.plain(mfn):
            self.words[mfn][slot] = val
        elif self.owned(mfn) and self.frames[mfn].type == 1:
            try:
                self.set_entry(1, mfn, slot, val, fast=False)
            except Refused as refused:
                return refused.errno
        else:
            return EPERM
        return 0
