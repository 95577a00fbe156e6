# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's rules for page tables: which type a frame has, who refers to it, what an entry may be.

Models xen/arch/x86/mm.c of Xen 4.17 to 4.20 for 64-bit PV domains, built without debugging
(SPEC E1 to E8, A4, A5). One CPU, so that nothing is half done when a rule is asked: an operation
that Xen would pre-empt and continue is done at once, and only its result is modelled. Words in
log lines are Xen's. Refusals are raised as RefusedError; the state is then what Xen leaves.
"""

from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EPERM

import numpy as np

from xenpt.abi import (
    ENTRIES,
    INVALID_P2M_ENTRY,
    LEVELS,
    PAGE_SHIFT,
    PGC_COUNT_MASK,
    PGT_COUNT_MASK,
    PGT_TYPE_MASK,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
    PTE_MFN_MASK,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    TABLE_SHIFT,
    XEN_SLOTS,
)
from xenpt.errors import RefusedError
from xenpt.p2m import P2M
from xenpt.xen import entries
from xenpt.xen.entries import bad_flags, entry_mfn, present_slots
from xenpt.xen.frames import FrameTable
from xenpt.xen.memory import Memory

TYPE_SHIFT = 61


def table_type(level: int) -> int:
    """PGT_l1_page_table .. PGT_l4_page_table."""
    return level << TYPE_SHIFT


def level_of(type_info: int) -> int:
    """Level of a page-table type, 0 for any other type."""
    level = (type_info & PGT_TYPE_MASK) >> TYPE_SHIFT
    return level if 1 <= level <= 4 else 0


class _FailedAtError(RefusedError):
    """An entry of a table that is being validated is refused."""

    def __init__(self, slot: int, errno: int, *lines: str) -> None:
        super().__init__(errno, *lines)
        self.slot = slot


@dataclass(slots=True)
class Work:
    """What the rules did, counted; nothing here is modelled.

    :ivar validated: tables validated, by level (index 0 unused)
    :ivar devalidated: tables whose last type reference went, by level
    :ivar puts: general references dropped from frames by dropped entries
    :ivar type_changes: frames that changed type on their first reference; Xen filters a flush here
    """

    validated: list[int] = field(default_factory=lambda: [0] * 5)
    devalidated: list[int] = field(default_factory=lambda: [0] * 5)
    puts: int = 0
    type_changes: int = 0


class PageTables:
    """Types and references of one domain's frames, and the words of its page tables.

    :param p2m: what the M2P says before the first update of it

    :ivar frames: the frame table
    :ivar memory: words of pages
    :ivar iomem: whether the domain may map frames that are no RAM (dom0)
    :ivar linear_pt: CONFIG_PV_LINEAR_PT
    :ivar work: counts
    :ivar linear: linear_pt_count of tables where it is not 0: entries if positive, uses if negative
    """

    def __init__(
        self,
        frames: FrameTable,
        memory: Memory,
        *,
        iomem: bool = True,
        linear_pt: bool = True,
        domid: int = 0,
        p2m: P2M | None = None,
    ) -> None:
        self.frames, self.memory = frames, memory
        self.iomem, self.linear_pt, self.domid = iomem, linear_pt, domid
        self.m2p: dict[int, int] = {}
        self._p2m = p2m
        self.work = Work()
        self.linear: dict[int, int] = {}

    # --- References ----------------------------------------------------------------------------

    def get_page(self, mfn: int) -> None:
        """Take a general reference.

        :raises RefusedError: -EINVAL, the frame is not the domain's
        """
        count_info, type_info = self.frames.get(mfn)
        if not count_info & PGC_COUNT_MASK:
            raise RefusedError(
                EINVAL,
                f"Error mfn {mfn:05x}: rd=d{self.domid} od=NULL "
                f"caf={count_info:08x} taf={type_info:016x}",
            )
        self.frames.set(mfn, count_info + 1, type_info)

    def put_page(self, mfn: int) -> None:
        """Drop a general reference; the last one frees the frame."""
        count_info, type_info = self.frames.get(mfn)
        count_info -= 1
        if not count_info & PGC_COUNT_MASK:
            count_info = type_info = 0  # back in the heap
        self.frames.set(mfn, count_info, type_info)

    def get_page_type(self, mfn: int, wanted: int) -> None:
        """Take a type reference; a frame without any changes its type, and a table is validated.

        :raises RefusedError: -EINVAL, the frame has references of another type, or its contents
            are no such table (then with the errno of the entry that is at fault)
        """
        count_info, x = self.frames.get(mfn)
        if not x & PGT_COUNT_MASK:
            if x & PGT_TYPE_MASK != wanted:
                self.work.type_changes += 1
                x = x & ~(PGT_TYPE_MASK | PGT_VALIDATED) | wanted
        elif x & PGT_TYPE_MASK != wanted:
            raise self._bad_type(mfn, x, wanted)
        x += 1
        if wanted == PGT_WRITABLE_PAGE:
            x |= PGT_VALIDATED
        self.frames.set(mfn, count_info, x)
        if not x & PGT_VALIDATED:
            self._validate_page(mfn, wanted)

    def _bad_type(self, mfn: int, saw: int, wanted: int) -> RefusedError:
        # A table that refers to its own level may yet be allowed as a linear page table.
        if wanted == table_type(level_of(saw) - 1) and level_of(saw) > 1:
            return RefusedError(EINVAL)
        return RefusedError(
            EINVAL,
            f"Bad type (saw {saw:016x} != exp {wanted:016x}) "
            f"for mfn {mfn:05x} (pfn {self.pfn(mfn):05x})",
        )

    def put_page_type(self, mfn: int, *, parent: int | None = None) -> None:
        """Drop a type reference; a table that loses its last one is de-validated.

        :param parent: the table whose entry is dropped, to undo a linear reference
        """
        count_info, x = self.frames.get(mfn)
        linear = parent is not None and self._same_type(x, parent)
        if not (x - 1) & PGT_COUNT_MASK and x & PGT_VALIDATED and level_of(x):
            self.frames.set(mfn, count_info, x & ~PGT_VALIDATED)
            self._demote(mfn, level_of(x))
            count_info, x = self.frames.get(mfn)
        self.frames.set(mfn, count_info, x - 1)
        if linear and parent is not None:
            self._count_linear(mfn, 1)
            self._count_linear(parent, -1)

    def _same_type(self, x: int, parent: int) -> bool:
        return x & PGT_TYPE_MASK == self.frames.get(parent)[1] & PGT_TYPE_MASK

    def get_page_and_type(self, mfn: int, wanted: int) -> None:
        """Take a general and a type reference.

        :raises RefusedError: either is refused; neither is then held
        """
        self.get_page(mfn)
        try:
            self.get_page_type(mfn, wanted)
        except RefusedError:
            self.put_page(mfn)
            raise

    def put_page_and_type(self, mfn: int, *, parent: int | None = None) -> None:
        """Drop a type and a general reference."""
        self.put_page_type(mfn, parent=parent)
        self.put_page(mfn)
        self.work.puts += 1

    # --- Validation ------------------------------------------------------------------------------

    def _validate_page(self, mfn: int, wanted: int) -> None:
        self.linear.pop(mfn, None)
        level = level_of(wanted)
        try:
            if level == 1:
                self._promote_l1_table(mfn)
            elif level:
                self._promote_table(mfn, level)
        except _FailedAtError as failed:
            count_info, x = self.frames.get(mfn)
            line = (
                f"Error while validating mfn {mfn:05x} (pfn {self.pfn(mfn):05x}) for type "
                f"{wanted:016x}: caf={count_info:08x} taf={x:016x}"
            )
            # A table of level 2 to 4 that failed behind its first slot is torn down as a partly
            # validated one, which keeps its type; any other is forgotten.
            keep = level > 1 and failed.slot > 0
            self.frames.set(mfn, count_info, (x & PGT_TYPE_MASK) if keep else 0)
            raise RefusedError(failed.errno, *failed.lines, line) from None
        self.work.validated[level] += 1
        count_info, x = self.frames.get(mfn)
        self.frames.set(mfn, count_info, x | PGT_VALIDATED)

    def _promote_l1_table(self, mfn: int) -> None:
        words = self.memory.words(mfn)
        taken = entries.l1_references(words, self.frames, iomem=self.iomem)
        refusal = None if taken.end == ENTRIES else self.l1e_refusal(int(words[taken.end]))
        self.work.type_changes += entries.take(taken, self.frames)
        words[: taken.end] = entries.adjust(words[: taken.end] ^ taken.flips)
        if refusal is not None:
            entries.drop(taken, self.frames)
            line = f"Failure {-refusal.errno} in promote_l1_table: slot {taken.end:#x}"
            raise _FailedAtError(taken.end, refusal.errno, *refusal.lines, line)

    def _promote_table(self, mfn: int, level: int) -> None:
        words = self.memory.words(mfn)
        for slot in present_slots(words, level):
            entry = int(words[slot])
            try:
                self.get_page_from_entry(entry, mfn, level)
            except RefusedError as failed:
                for earlier in present_slots(words[:slot], level)[::-1]:
                    self.put_page_from_entry(int(words[earlier]), mfn, level)
                line = f"Failure {-failed.errno} in promote_l{level}_table: slot {slot:#x}"
                raise _FailedAtError(slot, failed.errno, *failed.lines, line) from None
            words = self.memory.words(mfn)  # validation below may have moved the arena
            words[slot] = entries.adjust_one(entry, level)
        if level == LEVELS:  # init_xen_l4_slots(): Xen's own entries, which are empty here
            words[XEN_SLOTS.start : XEN_SLOTS.stop] = 0

    def _demote(self, mfn: int, level: int) -> None:
        self.work.devalidated[level] += 1
        words = self.memory.words(mfn)
        if level == 1:
            taken = entries.l1_references(words, self.frames, iomem=True, checked=False)
            entries.drop(taken, self.frames)
            self.work.puts += int(taken.nr_refs.sum())
            return
        for slot in present_slots(words, level)[::-1]:
            self.put_page_from_entry(int(words[slot]), mfn, level)

    # --- Entries ---------------------------------------------------------------------------------

    def get_page_from_l1e(self, entry: int) -> int:
        """Take the references of a present L1 entry; return the flag bits that Xen flips in it.

        :raises RefusedError: -EINVAL bad flags, -EPERM no RAM and no rights, -EBUSY a frame of
            others, or a writable mapping of a frame in use as a table
        """
        refusal = self.l1e_refusal(entry)
        if refusal is not None:
            raise refusal
        mfn = entry_mfn(entry)
        if self.frames.is_io(mfn):
            return entries.io_flips(entry, self.frames)
        if entry & PTE_RW:
            self.get_page_type(mfn, PGT_WRITABLE_PAGE)
        self.get_page(mfn)
        return 0

    def l1e_refusal(self, entry: int) -> RefusedError | None:
        """Why a present L1 entry is refused, or None."""
        bad = bad_flags(entry, 1, iomem=self.iomem)
        if bad:
            return RefusedError(EINVAL, f"Bad L1 flags {bad:#x}")
        mfn = entry_mfn(entry)
        if self.frames.is_io(mfn):
            return self._mmio_refusal(mfn)
        count_info, x = self.frames.get(mfn)
        if not count_info & PGC_COUNT_MASK:
            line = f"pg_owner d{self.domid} l1e_owner d{self.domid}, but real_pg_owner d-1"
            return self._could_not_pin(entry, mfn, line)
        if entry & PTE_RW and x & PGT_COUNT_MASK and x & PGT_TYPE_MASK != PGT_WRITABLE_PAGE:
            bad_type = self._bad_type(mfn, x, PGT_WRITABLE_PAGE).lines
            line = "Could not get page type PGT_writable_page"
            return self._could_not_pin(entry, mfn, *bad_type, line)
        return None

    def _mmio_refusal(self, mfn: int) -> RefusedError | None:
        if self.iomem:
            return None
        if mfn == PTE_MFN_MASK >> PAGE_SHIFT:
            return RefusedError(EINVAL)
        line = f"d{self.domid} non-privileged attempt to map MMIO space {mfn:05x}"
        return RefusedError(EPERM, line)

    def _could_not_pin(self, entry: int, mfn: int, *lines: str) -> RefusedError:
        return RefusedError(
            EBUSY,
            *lines,
            f"Error getting mfn {mfn:05x} (pfn {self.pfn(mfn):05x}) from L1 entry {entry:016x} "
            f"for l1e_owner d{self.domid}, pg_owner d{self.domid}",
        )

    def put_page_from_l1e(self, entry: int) -> None:
        """Drop the references of an L1 entry, if it is present and maps RAM."""
        mfn = entry_mfn(entry)
        if not entry & PTE_PRESENT or self.frames.is_io(mfn):
            return
        if entry & PTE_RW:
            self.put_page_and_type(mfn)
        else:
            self.put_page(mfn)
            self.work.puts += 1

    def get_page_from_entry(self, entry: int, table: int, level: int) -> None:
        """Take the references of a present entry of level 2 to 4 in the frame `table`.

        :raises RefusedError: -EINVAL bad flags (PSE among them) or a frame that cannot be a table
        """
        bad = bad_flags(entry, level, iomem=self.iomem)
        if bad:
            raise RefusedError(EINVAL, f"Bad L{level} flags {bad:x}")
        try:
            self.get_page_and_type(entry_mfn(entry), table_type(level - 1))
        except RefusedError as refused:
            if refused.errno != EINVAL or not self._get_linear(entry, table, level, refused):
                raise

    def put_page_from_entry(self, entry: int, table: int, level: int) -> None:
        """Drop the references of an entry of level 2 to 4: of a superpage, those of each page."""
        mfn = entry_mfn(entry)
        if not entry & PTE_PRESENT or mfn == table:
            return
        if entry & PTE_PSE and level < 4:
            self._put_data_pages(mfn, 1 << (TABLE_SHIFT * (level - 1)), bool(entry & PTE_RW))
        else:
            self.put_page_and_type(mfn, parent=table)

    def _put_data_pages(self, mfn: int, nr: int, writable: bool) -> None:
        self.work.puts += nr
        for first, end, pairs in self.frames.split(mfn, mfn + nr):
            pairs -= np.array([1, int(writable)], np.uint64)
            if not np.all(pairs[:, 0] & np.uint64(PGC_COUNT_MASK)):
                freed = np.arange(first, end)[(pairs[:, 0] & np.uint64(PGC_COUNT_MASK)) == 0]
                zero = np.zeros(len(freed), np.uint64)
                self.frames.scatter(freed, zero, zero)

    def _get_linear(self, entry: int, table: int, level: int, refused: RefusedError) -> bool:
        """Whether an entry may refer to a table of its own level (get_lN_linear_pagetable)."""
        if not self.linear_pt:
            return False
        if entry & PTE_RW:
            line = "Attempt to create linear p.t. with write perms"
            refused.lines = (*refused.lines, line)
            return False
        mfn = entry_mfn(entry)
        if mfn == table:
            return True
        count_info, x = self.frames.get(mfn)
        uses, has = self.linear.get(mfn, 0), self.linear.get(table, 0)
        wanted = table_type(level) | PGT_VALIDATED
        if (
            not count_info & PGC_COUNT_MASK
            or has < 0
            or uses > 0
            or x & (PGT_TYPE_MASK | PGT_VALIDATED) != wanted
        ):
            return False
        self._count_linear(table, 1)
        self._count_linear(mfn, -1)
        self.frames.set(mfn, count_info + 1, x + 1)
        return True

    def _count_linear(self, mfn: int, nr: int) -> None:
        count = self.linear.pop(mfn, 0) + nr
        if count:
            self.linear[mfn] = count

    def pfn(self, mfn: int) -> int:
        """What the M2P says of a frame; all ones for nothing."""
        if mfn in self.m2p or self._p2m is None:
            return self.m2p.get(mfn, INVALID_P2M_ENTRY)
        return int(self._p2m.pfn([mfn])[0])
