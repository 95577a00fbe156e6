# SPDX-License-Identifier: GPL-2.0-or-later
"""`CheckedMachine`: a domain whose hypercalls obey Xen's rules, on machine frames and words.

Models do_mmu_update(), do_mmuext_op(), do_update_va_mapping(), decrease_reservation() and
do_multicall() of Xen 4.17 to 4.20 for a 64-bit PV domain (SPEC E5 to E9). A hypercall that Xen
refuses raises RefusedError and leaves the state as Xen leaves it.
"""

from collections.abc import Callable, Iterable, Sequence
from errno import EINVAL, ENOSYS, EPERM, ESRCH

from xenpt.abi import (
    DOMID_SELF,
    LEVELS,
    MMU_MACHPHYS_UPDATE,
    MMU_PT_UPDATE_NO_TRANSLATE,
    MMU_PT_UPDATE_PRESERVE_AD,
    MMUEXT_CLEAR_PAGE,
    MMUEXT_COPY_PAGE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_NEW_USER_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_SET_LDT,
    MMUEXT_UNPIN_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PGC_ALLOCATED,
    PGC_COUNT_MASK,
    PGT_COUNT_MASK,
    PGT_PINNED,
    PGT_SEG_DESC_PAGE,
    PGT_TYPE_MASK,
    PGT_VALIDATED,
    PGT_WRITABLE_PAGE,
    PTE_ACCESSED,
    PTE_AVAIL,
    PTE_DIRTY,
    PTE_GLOBAL,
    PTE_NX,
    PTE_PRESENT,
    PTE_PSE,
    PTE_USER,
    XEN_SLOTS,
    table_slot,
)
from xenpt.errors import RefusedError
from xenpt.xen.entries import adjust_one, bad_flags, entry_mfn
from xenpt.xen.rules import PageTables, level_of, table_type

AVAIL_HIGH = 0x7FF << 52
#: Flags that may change without a new validation (FASTPATH_FLAG_WHITELIST).
FAST = PTE_NX | AVAIL_HIGH | PTE_AVAIL | PTE_GLOBAL | PTE_DIRTY | PTE_ACCESSED | PTE_USER
MmuextOp = tuple[int, int, int]


class CheckedMachine:
    """One PV domain, one vCPU.

    :ivar tables: types and references of its frames, and the words of its tables
    :ivar base: mfn of the current root (guest_table); 0 for none yet
    :ivar user_base: mfn of the root of user mode; 0 for none
    :ivar continuations: hypercalls that Xen enters again to drop a table that an entry held; the
        guest does not see these (golden/README.md rule 19)
    :ivar flushes: mmu_update calls that end in a flush of all CPUs (Xen 4.15 and later)
    """

    def __init__(self, tables: PageTables, *, base: int = 0) -> None:
        self.tables = tables
        self.base, self.user_base = base, 0
        self.gdt: tuple[int, ...] = ()
        self.continuations = self.flushes = 0

    # --- mmu_update --------------------------------------------------------------------------

    def mmu_update(self, requests: Iterable[tuple[int, int]], *, domid: int = DOMID_SELF) -> int:
        """Requests (ptr, val), in order, up to the first that is refused; return how many.

        :raises RefusedError: -EINVAL no page of the domain, bad flags, a frame of the wrong type,
            Xen's L4 slots; -EBUSY a writable mapping of a table; -EPERM no RAM; -ENOSYS a command
            that does not exist; -ESRCH another domain. `done` says how many requests succeeded.
        """
        if domid not in (DOMID_SELF, self.tables.domid):
            raise RefusedError(ESRCH)
        done = 0
        flush = False
        before = self.continuations
        for ptr, val in requests:
            try:
                flush |= self._mmu_request(ptr, val)
            except RefusedError as refused:
                refused.done = done
                raise
            finally:
                if flush and self.continuations > before:
                    self.flushes, flush, before = self.flushes + 1, False, self.continuations
            done += 1
        self.flushes += flush
        return done

    def _mmu_request(self, ptr: int, val: int) -> bool:
        command, ptr = ptr & 7, ptr & ~7
        mfn = ptr >> PAGE_SHIFT
        if command == MMU_MACHPHYS_UPDATE:
            self._machphys_update(mfn, val)
            return False
        if command > MMU_PT_UPDATE_NO_TRANSLATE:
            raise RefusedError(ENOSYS)
        self._get_page(mfn, "Could not get page for normal update")
        try:
            preserve_ad = command == MMU_PT_UPDATE_PRESERVE_AD
            return self._store(mfn, (ptr % PAGE_SIZE) >> 3, val, preserve_ad=preserve_ad)
        finally:
            self.tables.put_page(mfn)

    def _store(self, mfn: int, slot: int, val: int, *, preserve_ad: bool) -> bool:
        """Store a word as the type of its page asks; whether linear mappings are to be flushed."""
        x = self.tables.frames.get(mfn)[1]
        if not (x & PGT_VALIDATED and x & PGT_COUNT_MASK):
            try:
                self.tables.get_page_type(mfn, PGT_WRITABLE_PAGE)
            except RefusedError as refused:
                raise RefusedError(EINVAL, *refused.lines) from None
            self.tables.memory.words(mfn)[slot] = val
            self.tables.put_page_type(mfn)
            return False
        level = level_of(x)
        if level == 1:
            self.mod_l1_entry(mfn, slot, val, preserve_ad=preserve_ad)
            return False
        if level:
            self.mod_entry(level, mfn, slot, val, preserve_ad=preserve_ad)
            return True
        if x & PGT_TYPE_MASK != PGT_WRITABLE_PAGE:
            raise RefusedError(EINVAL)
        self.tables.memory.words(mfn)[slot] = val
        return False

    def _machphys_update(self, mfn: int, pfn: int) -> None:
        self._get_page(mfn, "Could not get page for mach->phys update")
        self.tables.m2p[mfn] = pfn
        self.tables.put_page(mfn)

    def _get_page(self, mfn: int, line: str) -> None:
        try:
            self.tables.get_page(mfn)
        except RefusedError as refused:
            raise RefusedError(EINVAL, *refused.lines, line) from None

    # --- Entries -------------------------------------------------------------------------------

    def mod_l1_entry(self, mfn: int, slot: int, new: int, *, preserve_ad: bool = False) -> None:
        """Set an entry of a table of level 1.

        :raises RefusedError: as PageTables.get_page_from_l1e
        """
        tables = self.tables
        old = int(tables.memory.words(mfn)[slot])
        if new & PTE_PRESENT:
            bad = bad_flags(new, 1, iomem=tables.iomem)
            if bad:
                raise RefusedError(EINVAL, f"Bad L1 flags {bad:#x}")
            new = adjust_one(new, 1)
            if not (old ^ new) & ~FAST:
                self._write(mfn, slot, old, new, preserve_ad=preserve_ad)
                return
            new ^= tables.get_page_from_l1e(new)
        self._write(mfn, slot, old, new, preserve_ad=preserve_ad)
        tables.put_page_from_l1e(old)

    def mod_entry(
        self, level: int, mfn: int, slot: int, new: int, *, preserve_ad: bool = False
    ) -> None:
        """Set an entry of a table of level 2, 3 or 4.

        :raises RefusedError: -EINVAL Xen's L4 slots, bad flags, or a frame that cannot be a table;
            or what the validation of that table meets
        """
        if level == LEVELS and slot in XEN_SLOTS:
            raise RefusedError(EINVAL, f"L4 update in Xen-private area, slot {slot:#x}")
        tables = self.tables
        old = int(tables.memory.words(mfn)[slot])
        if new & PTE_PRESENT:
            bad = bad_flags(new, level, iomem=tables.iomem)
            if bad:
                raise RefusedError(EINVAL, f"Bad L{level} flags {bad:x}")
            new = adjust_one(new, level)
            if not (old ^ new) & ~FAST:
                self._write(mfn, slot, old, new, preserve_ad=preserve_ad)
                return
            tables.get_page_from_entry(new, mfn, level)
        self._write(mfn, slot, old, new, preserve_ad=preserve_ad)
        superpage = old & PTE_PSE and level < LEVELS
        if old & PTE_PRESENT and entry_mfn(old) != mfn and not superpage:
            self.continuations += 1
        tables.put_page_from_entry(old, mfn, level)

    def _write(self, mfn: int, slot: int, old: int, new: int, *, preserve_ad: bool) -> None:
        kept = old & (PTE_ACCESSED | PTE_DIRTY) if preserve_ad else 0
        self.tables.memory.words(mfn)[slot] = new | kept

    # --- update_va_mapping ---------------------------------------------------------------------

    def update_va_mapping(
        self, vaddr: int, val: int, flags: int = 0, *, domid: int = DOMID_SELF
    ) -> None:
        """Set the L1 entry of an address in the current address space.

        :param flags: what to flush; the flush itself changes nothing here
        :raises RefusedError: -EINVAL no L1 table there (a superpage, a hole, Xen's own area), or
            what mod_l1_entry refuses
        """
        del flags
        if domid not in (DOMID_SELF, self.tables.domid):
            raise RefusedError(ESRCH)
        l1 = self._l1_table(vaddr)
        if l1 is None:
            raise RefusedError(EINVAL)
        try:
            self.tables.get_page(l1)
        except RefusedError as refused:
            raise RefusedError(EINVAL, *refused.lines) from None
        try:
            x = self.tables.frames.get(l1)[1]
            typed = x & PGT_VALIDATED and x & PGT_COUNT_MASK
            if not typed or x & PGT_TYPE_MASK != table_type(1):
                raise RefusedError(EINVAL)
            self.mod_l1_entry(l1, table_slot(vaddr, 1), val)
        finally:
            self.tables.put_page(l1)

    def _l1_table(self, vaddr: int) -> int | None:
        """Frame that the L2 entry of an address names, or None where there is none."""
        canonical = vaddr >> 47 in (0, (1 << 17) - 1)
        if not canonical or table_slot(vaddr, LEVELS) in XEN_SLOTS:
            return None
        mfn = self.base
        for level in (4, 3, 2):
            entry = int(self.tables.memory.words(mfn)[table_slot(vaddr, level)])
            if not entry & PTE_PRESENT or (entry & PTE_PSE and level < LEVELS):
                return None
            mfn = entry_mfn(entry)
        return mfn

    # --- mmuext_op -----------------------------------------------------------------------------

    def mmuext_op(self, ops: Iterable[MmuextOp], *, domid: int = DOMID_SELF) -> int:
        """Operations (command, arg1, arg2), in order, up to the first that is refused.

        :return: operations done
        :raises RefusedError: -EINVAL a frame that is not the domain's, of the wrong type, already
            or not pinned; what its validation meets; -ENOSYS an unknown command; `done` says how
            many operations succeeded
        """
        if domid not in (DOMID_SELF, self.tables.domid):
            raise RefusedError(ESRCH)
        done = 0
        for command, arg1, arg2 in ops:
            try:
                self._mmuext(command, arg1, arg2)
            except RefusedError as refused:
                refused.done = done
                raise
            done += 1
        return done

    def _mmuext(self, command: int, arg1: int, arg2: int) -> None:
        if MMUEXT_PIN_L1_TABLE <= command <= MMUEXT_PIN_L4_TABLE:
            self._pin(arg1, command - MMUEXT_PIN_L1_TABLE + 1)
            return
        match command:
            case c if c == MMUEXT_UNPIN_TABLE:
                self._unpin(arg1)
            case c if c == MMUEXT_NEW_BASEPTR:
                self._new_baseptr(arg1)
            case c if c == MMUEXT_NEW_USER_BASEPTR:
                self._new_user_baseptr(arg1)
            case c if c == MMUEXT_CLEAR_PAGE:
                self._clear_page(arg1)
            case c if c == MMUEXT_COPY_PAGE:
                self._copy_page(arg1, arg2)
            case c if MMUEXT_NEW_BASEPTR < c <= MMUEXT_SET_LDT:
                pass  # flushes, and the LDT's address: no frame is touched
            case _:
                raise RefusedError(ENOSYS)

    def _pin(self, mfn: int, level: int) -> None:
        tables = self.tables
        tables.get_page(mfn)
        try:
            tables.get_page_type(mfn, table_type(level))
        except RefusedError as refused:
            tables.put_page(mfn)
            line = f"Error {-refused.errno} while pinning mfn {mfn:05x}"
            raise RefusedError(refused.errno, *refused.lines, line) from None
        count_info, x = tables.frames.get(mfn)
        if x & PGT_PINNED:
            tables.put_page_and_type(mfn)
            raise RefusedError(EINVAL, f"mfn {mfn:05x} already pinned")
        tables.frames.set(mfn, count_info, x | PGT_PINNED)

    def _unpin(self, mfn: int) -> None:
        tables = self.tables
        self._get_page(mfn, f"mfn {mfn:05x} bad, or bad owner d{tables.domid}")
        count_info, x = tables.frames.get(mfn)
        if not x & PGT_PINNED:
            tables.put_page(mfn)
            raise RefusedError(EINVAL, f"mfn {mfn:05x} not pinned")
        tables.frames.set(mfn, count_info, x & ~PGT_PINNED)
        tables.put_page_and_type(mfn)
        tables.put_page(mfn)

    def _new_baseptr(self, mfn: int) -> None:
        if mfn == self.base:
            return
        self._take_root(mfn, f"Error while installing new baseptr {mfn:05x}")
        old, self.base = self.base, mfn
        if old:
            self.tables.put_page_and_type(old)

    def _new_user_baseptr(self, mfn: int) -> None:
        if mfn == self.user_base:
            return
        if mfn:
            self._take_root(mfn, f"Error %d installing new mfn {mfn:05x}")
        old, self.user_base = self.user_base, mfn
        if old:
            self.tables.put_page_and_type(old)

    def _take_root(self, mfn: int, line: str) -> None:
        try:
            self.tables.get_page_and_type(mfn, table_type(LEVELS))
        except RefusedError as refused:
            line = line.replace("%d", str(-refused.errno))
            raise RefusedError(refused.errno, *refused.lines, line) from None

    def _clear_page(self, mfn: int) -> None:
        try:
            self.tables.get_page_and_type(mfn, PGT_WRITABLE_PAGE)
        except RefusedError as refused:
            line = f"Error clearing mfn {mfn:05x}"
            raise RefusedError(EINVAL, *refused.lines, line) from None
        self.tables.memory.words(mfn)[:] = 0
        self.tables.put_page_and_type(mfn)

    def _copy_page(self, mfn: int, source: int) -> None:
        self._get_page(source, f"Error copying from mfn {source:05x}")
        try:
            self.tables.get_page_and_type(mfn, PGT_WRITABLE_PAGE)
        except RefusedError as refused:
            line = f"Error copying to mfn {mfn:05x}"
            raise RefusedError(EINVAL, *refused.lines, line) from None
        finally:
            self.tables.put_page(source)
        words = self.tables.memory.words(source).copy()
        self.tables.memory.words(mfn)[:] = words
        self.tables.put_page_and_type(mfn)

    # --- Other hypercalls ------------------------------------------------------------------------

    def decrease_reservation(self, mfns: Iterable[int]) -> int:
        """Give pages back, up to the first that is not the domain's; return how many.

        A page that is still mapped stays until its last mapping goes (guest_remove_page).
        """
        done = 0
        for mfn in mfns:
            count_info, x = self.tables.frames.get(mfn)
            if not count_info & PGC_COUNT_MASK:
                break
            if count_info & PGC_ALLOCATED:
                self.tables.frames.set(mfn, count_info & ~PGC_ALLOCATED, x)
                self.tables.put_page(mfn)
            done += 1
        return done

    def set_gdt(self, mfns: Sequence[int]) -> None:
        """Use pages as the GDT; what the descriptors in them say is not looked at.

        :raises RefusedError: -EINVAL a page that is not the domain's or is mapped writable
        """
        taken: list[int] = []
        for mfn in mfns:
            try:
                self.tables.get_page_and_type(mfn, PGT_SEG_DESC_PAGE)
            except RefusedError as refused:
                for earlier in taken:
                    self.tables.put_page_and_type(earlier)
                raise RefusedError(EINVAL, *refused.lines) from None
            taken.append(mfn)
        for old in self.gdt:
            self.tables.put_page_and_type(old)
        self.gdt = tuple(mfns)

    def multicall(self, calls: Iterable[Callable[[], object]]) -> list[int]:
        """Run calls in order, each whatever became of those before: 0, or -errno, of each."""
        results = []
        for call in calls:
            try:
                call()
                results.append(0)
            except RefusedError as refused:
                results.append(-refused.errno)
        return results

    # --- The guest's own stores ------------------------------------------------------------------

    def store(self, mfn: int, slot: int, val: int) -> None:
        """The guest's own store into a page, through a mapping that it has.

        A store into a table of level 1 traps and is made as a checked update (SPEC E10). Into any
        other page in use as a table, or into a page of others, it faults.

        :raises RefusedError: -EPERM a fault; or what the checked update refuses
        """
        count_info, x = self.tables.frames.get(mfn)
        typed = bool(x & PGT_COUNT_MASK)
        if typed and level_of(x) == 1:
            self.ptwr_emulated_update(mfn, slot, val)
        elif not count_info & PGC_COUNT_MASK or (typed and x & PGT_TYPE_MASK != PGT_WRITABLE_PAGE):
            raise RefusedError(EPERM, f"page fault: store to mfn {mfn:05x} slot {slot:#x}")
        else:
            self.tables.memory.words(mfn)[slot] = val

    def ptwr_emulated_update(self, mfn: int, slot: int, val: int) -> None:
        """A store into a table of level 1 that Xen emulates; there is no fast path.

        :raises RefusedError: as PageTables.get_page_from_l1e; the guest gets the fault instead
        """
        old = int(self.tables.memory.words(mfn)[slot])
        if val & PTE_PRESENT:
            val ^= self.tables.get_page_from_l1e(val)
        self.tables.memory.words(mfn)[slot] = adjust_one(val, 1)
        self.tables.put_page_from_l1e(old)
