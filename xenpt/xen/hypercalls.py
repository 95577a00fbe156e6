# SPDX-License-Identifier: GPL-2.0-or-later
"""Every hypercall of a guest's early boot goes through one `Hypercalls` object.

It counts them by type, and on demand keeps them in order. One call is one trap of the guest: a
batch of several calls is one multicall, and a restart of a call that Xen pre-empted is not a call.
The arguments are those that Xen's checks look at, with guest frames (pfn) in place of machine
frames, so that the checks can live here and not in the stages.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from xenpt.abi import (
    ENTRIES,
    MMU_MACHPHYS_UPDATE,
    MMU_NORMAL_PT_UPDATE,
    MMUEXT_PIN_L1_TABLE,
    PAGE_SHIFT,
    PTE_RW,
    TABLE_PROT,
    UVMF_NONE,
    table_slot,
)
from xenpt.cost import HYPERCALL_TYPES
from xenpt.errors import RefusedError
from xenpt.extents import Runs


@dataclass(frozen=True, slots=True)
class Call:
    """`nr` calls in a row; call i has the next page, slot and frame of call i - 1.

    :ivar op: one of cost.HYPERCALL_TYPES
    :ivar command: the mmuext or memory_op command, or the low bits of mmu_update's pointer
    :ivar vaddr: update_va_mapping: virtual address; call i is 4096 * i further
    :ivar table: mmu_update: frame of the table page, None for the M2P or where it is unknown
    :ivar slot: mmu_update: position of the entry in its table, or the pfn that an M2P entry
        gets; call i is i further
    :ivar level: mmu_update: level of the table
    :ivar pfn: frame that the new entry maps, or that the command is about, named by its pfn at
        the start of the boot, or by IDENTITY + mfn; None for neither
    :ivar step: call i has frame pfn + i * step
    :ivar flags: entry bits without the frame; 0 with pfn None is an empty entry
    :ivar uvmf: update_va_mapping: what to flush
    :ivar batched: one of the calls of a multicall, which is not a trap of its own
    :ivar may_fail: Linux goes on alike when Xen refuses it
    """

    op: str
    nr: int = 1
    command: int = 0
    vaddr: int | None = None
    table: int | None = None
    slot: int = 0
    level: int = 0
    pfn: int | None = None
    step: int = 1
    flags: int = 0
    uvmf: int = UVMF_NONE
    batched: bool = False
    may_fail: bool = False

    def each(self) -> Iterator["Call"]:
        """The calls one by one."""
        if self.nr == 1:
            yield self
            return
        for i in range(self.nr):
            yield replace(
                self,
                nr=1,
                vaddr=None if self.vaddr is None else self.vaddr + (i << PAGE_SHIFT),
                slot=self.slot + i if self.op == "mmu_update" else self.slot,
                pfn=None if self.pfn is None else self.pfn + i * self.step,
            )


def read_only(flags: int) -> int:
    """Bits of an entry without RW."""
    return flags & ~PTE_RW


class Xen(Protocol):
    """The other side of the hypercall page, where there is one: `xenpt.xen.guest.Guest`."""

    def call(self, call: Call) -> None:
        """Do a single call.

        :raises RefusedError: Xen refuses it
        """

    def store(self, table: int, slot: int, pfn: int | None, flags: int, nr: int, step: int) -> None:
        """The guest's own stores into a page that is, or will be, a page table.

        :raises RefusedError: they fault
        """


class Hypercalls:
    """The guest's side of the hypercall page.

    :param gate: asked with each single call (its `nr` is 1), in order and those of a multicall
        included, before it is counted; raises RefusedError where Xen refuses it
    :param xen: does each call that the gate lets pass (checked mode)

    :ivar by_type: traps by type
    :ivar calls: calls by type, those inside a multicall included
    :ivar mmuext: mmuext operations by command, those inside a multicall included
    :ivar log: the calls in order, or None if they are only counted
    """

    def __init__(
        self,
        *,
        record: bool = False,
        gate: Callable[[Call], None] | None = None,
        xen: Xen | None = None,
    ) -> None:
        self.by_type = dict.fromkeys(HYPERCALL_TYPES, 0)
        self.calls = dict.fromkeys(HYPERCALL_TYPES, 0)
        self.mmuext: dict[int, int] = {}
        self.log: list[Call] | None = [] if record else None
        self._gate, self._xen = gate, xen
        self._times = 1
        self._batch: list[Call] | None = None

    @property
    def one_by_one(self) -> bool:
        """Whether each call matters, with all of its arguments, and not their number alone."""
        return self.log is not None or self._gate is not None or self.checked

    @property
    def checked(self) -> bool:
        """Whether there is a Xen that does the calls, so that the guest's own stores matter."""
        return self._xen is not None

    def aside(self) -> "Hypercalls":
        """For calls that are in no stage: done in checked mode, counted nowhere."""
        return Hypercalls(xen=self._xen)

    def update_va_mapping(
        self,
        vaddr: int | None,
        pfn: int | None,
        flags: int,
        *,
        nr: int = 1,
        uvmf: int = UVMF_NONE,
        may_fail: bool = False,
    ) -> None:
        """Set the L1 entries that map `nr` pages from `vaddr` to consecutive frames from `pfn`."""
        self._issue(
            Call(
                "update_va_mapping",
                nr,
                vaddr=vaddr,
                pfn=pfn,
                flags=flags,
                uvmf=uvmf,
                may_fail=may_fail,
            )
        )

    def mmu_update(
        self,
        level: int,
        table: int | None,
        slot: int,
        pfn: int | None,
        flags: int,
        *,
        nr: int = 1,
        step: int = 1,
    ) -> None:
        """Set `nr` consecutive entries of a table, one call each; pfn None with flags 0 clears."""
        self._issue(
            Call(
                "mmu_update",
                nr,
                MMU_NORMAL_PT_UPDATE,
                table=table,
                slot=slot,
                level=level,
                pfn=pfn,
                flags=flags,
                step=step,
            )
        )

    def machphys_update(self, frame: int, pfn: int) -> None:
        """Set the M2P entry of what was the frame of pfn `frame` to `pfn`."""
        self._issue(Call("mmu_update", 1, MMU_MACHPHYS_UPDATE, pfn=frame, slot=pfn))

    def mmuext_op(self, command: int, pfn: int | None = None) -> None:
        """One mmuext operation (MMUEXT_...) on the frame `pfn`."""
        self._issue(Call("mmuext_op", 1, command, pfn=pfn))

    def memory_op(self, command: int, *, pfn: int | None = None, nr: int = 1) -> None:
        """`nr` memory operations (XENMEM_...), about consecutive frames from `pfn` if given."""
        self._issue(Call("memory_op", nr, command, pfn=pfn))

    def store(
        self,
        table: int | None,
        slot: int,
        pfn: int | None,
        flags: int,
        *,
        nr: int = 1,
        step: int = 1,
    ) -> None:
        """The guest's own stores of `nr` entries into a page: no hypercalls, and so not counted.

        Into a live table of level 1 they trap, and Xen makes them (SPEC E10). Arguments as those of
        `mmu_update`.
        """
        if self._xen is not None:
            assert table is not None, "a table of unknown place: see standins.py"
            self._xen.store(table, slot, pfn, flags, nr, step)

    def clear_page(self, pfn: int) -> None:
        """The guest fills a page with zeros before it becomes a table, or when it no longer is."""
        self.store(pfn, 0, None, 0, nr=ENTRIES)

    def hook_tables(
        self,
        tables: Runs,
        parents: np.ndarray,
        page_offset: int,
        protect: Callable[[int], int] = read_only,
    ) -> None:
        """Early boot's new page tables, in order: made read-only, pinned if of level 1, hooked in.

        :param tables: RUN rows of tables; no row crosses a table of its parent's level
        :param parents: frame of the parent of each row
        :param page_offset: virtual start of the direct map, through which they become read-only
        :param protect: the bits of such an entry, of those that it has while it is writable

        Models xen_alloc_pte_init, xen_alloc_pmd_init and set_pmd, set_pud, set_pgd behind them.
        """
        if not self.one_by_one:
            nr = int(tables["nr"].sum())
            nr_l1 = int(tables["nr"][tables["level"] == 1].sum())
            self._count("update_va_mapping", nr)
            self._count("mmu_update", nr)
            self._count_mmuext(MMUEXT_PIN_L1_TABLE, nr_l1)
            self._count("mmuext_op", nr_l1)
            return
        for row, parent in zip(tables, parents, strict=True):
            level, slot = (
                int(row["level"]),
                table_slot(int(row["vpn"]) << PAGE_SHIFT, int(row["level"]) + 1),
            )
            for i in range(int(row["nr"])):
                pfn = int(row["pfn"]) + i * int(row["step"])
                flags = protect(int(row["flags"]))
                self.update_va_mapping(page_offset + (pfn << PAGE_SHIFT), pfn, flags)
                if level == 1:
                    self.mmuext_op(MMUEXT_PIN_L1_TABLE, pfn)
                self.mmu_update(level + 1, int(parent), slot + i, pfn, TABLE_PROT)

    @contextmanager
    def multicall(self) -> Iterator[None]:
        """The calls of the block are one trap; a single one is issued as itself (xen_mc_flush)."""
        self._batch = []
        yield
        batch, self._batch = self._batch, None
        if len(batch) == 1:
            self._issue(batch[0])
        elif batch:
            self._issue(Call("multicall"))
            for call in batch:
                self._issue(replace(call, batched=True))

    def repeat(self, nr: int) -> Iterator[int]:
        """Steps 0 .. nr-1 of a loop whose steps issue the same types of calls.

        Where each call matters every step is taken; else the first alone, counted `nr` times.
        """
        if self.one_by_one or nr <= 1:
            yield from range(nr)
            return
        self._times *= nr
        yield 0
        self._times //= nr

    def _issue(self, call: Call) -> None:
        if self._batch is not None:
            self._batch.append(call)
        elif self._gate is None and self._xen is None:
            self._count_call(call)
            if self.log is not None and call.nr:
                self.log.append(call)
        else:
            self._issue_singly(call)

    def _issue_singly(self, call: Call) -> None:
        """Ask for each call before it is counted; the log then has those that were made."""
        done = 0
        try:
            for single in call.each():
                self._ask(single)
                self._count_call(single)
                done += 1
        finally:
            if self.log is not None and done:
                self.log.append(replace(call, nr=done))

    def _ask(self, call: Call) -> None:
        try:
            if self._gate is not None:
                self._gate(call)
            if self._xen is not None:
                self._xen.call(call)
        except RefusedError:
            if not call.may_fail:
                raise

    @contextmanager
    def optional(self, op: str) -> Iterator[list[RefusedError]]:
        """Calls that the guest can do without: a refusal of one ends the block, and no more.

        The refusal is then in the list.
        """
        refusals: list[RefusedError] = []
        try:
            yield refusals
        except RefusedError as refused:
            self._count(op, 1)  # it was a trap all the same
            refusals.append(refused)

    def _count_call(self, call: Call) -> None:
        if call.batched:
            self.calls[call.op] += call.nr * self._times
        else:
            self._count(call.op, call.nr)
        if call.op == "mmuext_op":
            self._count_mmuext(call.command, call.nr)

    def _count(self, op: str, nr: int) -> None:
        self.by_type[op] += nr * self._times
        self.calls[op] += nr * self._times

    def _count_mmuext(self, command: int, nr: int) -> None:
        self.mmuext[command] = self.mmuext.get(command, 0) + nr * self._times
