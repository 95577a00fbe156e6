# SPDX-License-Identifier: GPL-2.0-or-later
"""`Guest`: a built domain under Xen's rules, driven by the hypercalls and stores of its kernel.

Checked mode. The domain's frames and words are made once, of its extents; from then on nothing
but the calls and stores that the stages issue changes them, so that each validation reads what the
guest really wrote. The words are then compared with what the stages say of their result.
"""

from errno import EPERM

import numpy as np
import numpy.typing as npt

from xenpt.abi import (
    ISA_END_ADDRESS,
    MMU_MACHPHYS_UPDATE,
    PAGE_SHIFT,
    PGT_COUNT_MASK,
    PGT_TYPE_MASK,
    PGT_WRITABLE_PAGE,
    SIF_INITDOMAIN,
    XENMEM_DECREASE_RESERVATION,
    pfn_up,
    round_up,
)
from xenpt.errors import RefusedError
from xenpt.extents import IDENTITY, Frames, Ranges, column, join_ranges
from xenpt.image import materialise
from xenpt.inputs.config import USABLE, Ram
from xenpt.p2m import P2M
from xenpt.units import GIB_PAGES
from xenpt.xen.adopt import frames_of, machine_of
from xenpt.xen.dom0 import Domain
from xenpt.xen.frames import FrameTable
from xenpt.xen.hypercalls import Call
from xenpt.xen.rules import level_of

NO_FRAME = (1 << 40) - 1  # what an entry names whose pfn has no frame


class Guest:
    """A domain whose calls obey Xen's rules; `Hypercalls` gives it each of them.

    :param e820: the host's map, whose holes are no RAM; empty for a flat one

    :ivar machine: the domain's frames, types and words
    :ivar p2m: where its pages are; a modelled host's are moved behind the map's holes
    :ivar nr_calls: single calls that were made, those that are in no stage included
    """

    def __init__(self, domain: Domain, e820: tuple[Ram, ...] = ()) -> None:
        self._io, self._end = _holes(e820)
        self.p2m = _clear_of(domain.p2m, self._io)
        image = materialise(domain.address_space, self.p2m)
        order = np.argsort(-image.level.astype(np.int64), kind="stable")
        initial_domain = bool(domain.plan.flags & SIF_INITDOMAIN)
        self.machine = machine_of(
            self.fresh_frames(),
            image.mfn[order],
            image.level[order],
            image.pages[order],
            # A guest that gets a host's map (e820_host) has devices, and so rights to I/O memory.
            iomem=initial_domain or bool(e820),
            domid=0 if initial_domain else 1,
            p2m=self.p2m,
        )
        self._mfn = _frames_by_pfn(self.p2m)
        self.nr_calls = 0

    def fresh_frames(self) -> FrameTable:
        """A frame table in which the domain's frames are all unmapped."""
        start, nr = column(self.p2m.runs, "mfn"), column(self.p2m.runs, "nr")
        return frames_of(self.p2m, max(self._end, int((start + nr).max(initial=0))), self._io)

    def mfn(self, pfn: int) -> int:
        """Machine frame of a pfn of the start of the boot, or of IDENTITY + mfn."""
        if pfn >= IDENTITY:
            return pfn - IDENTITY
        return int(self._mfn[pfn]) if pfn < len(self._mfn) else NO_FRAME

    def call(self, call: Call) -> None:
        """Do a single call.

        :raises RefusedError: Xen refuses it
        """
        self.nr_calls += 1
        machine = self.machine
        match call.op:
            case "mmu_update" if call.command == MMU_MACHPHYS_UPDATE:
                maddr = self._named(call.pfn) << PAGE_SHIFT
                machine.mmu_update([(maddr | call.command, call.slot)])
            case "mmu_update":
                maddr = (self._named(call.table) << PAGE_SHIFT) + 8 * call.slot
                machine.mmu_update([(maddr | call.command, self._word(call.pfn, call.flags))])
            case "update_va_mapping":
                assert call.vaddr is not None, "an address that is not known: see standins.py"
                machine.update_va_mapping(call.vaddr, self._word(call.pfn, call.flags), call.uvmf)
            case "mmuext_op":
                mfn = 0 if call.pfn is None else self.mfn(call.pfn)
                machine.mmuext_op([(call.command, mfn, 0)])
            case "memory_op" if call.command == XENMEM_DECREASE_RESERVATION:
                machine.decrease_reservation([self._named(call.pfn)])

    def store(self, table: int, slot: int, pfn: int | None, flags: int, nr: int, step: int) -> None:
        """The guest's own stores of `nr` entries into a page.

        :raises RefusedError: -EPERM they fault: the page is a table of level 2 to 4, or mapped
            nowhere as writable; or what Xen refuses of a trapped store
        """
        mfn = self.mfn(table)
        x = self.machine.tables.frames.get(mfn)[1]
        entries = self._words(pfn, flags, nr, step)
        if x & PGT_COUNT_MASK and level_of(x) == 1:
            for i, word in enumerate(entries.tolist()):
                self.machine.store(mfn, slot + i, word)
        elif x & PGT_COUNT_MASK and x & PGT_TYPE_MASK == PGT_WRITABLE_PAGE:
            self.machine.tables.memory.words(mfn)[slot : slot + nr] = entries
        else:
            raise RefusedError(EPERM, f"page fault: store to mfn {mfn:05x} slot {slot:#x}")

    def _named(self, pfn: int | None) -> int:
        assert pfn is not None, "a frame that is not known: see standins.py"
        return self.mfn(pfn)

    def _word(self, pfn: int | None, flags: int) -> int:
        return flags if pfn is None else self.mfn(pfn) << PAGE_SHIFT | flags

    def _words(self, pfn: int | None, flags: int, nr: int, step: int) -> Frames:
        if pfn is None:
            return np.full(nr, flags, np.uint64)
        pfns = pfn + step * np.arange(nr)
        if pfn >= IDENTITY:
            mfns = (pfns - IDENTITY).astype(np.uint64)
        else:
            mfns = np.full(nr, NO_FRAME, np.uint64)
            held = pfns < len(self._mfn)
            mfns[held] = self._mfn[pfns[held]]
        return mfns << np.uint64(PAGE_SHIFT) | np.uint64(flags)


def _holes(e820: tuple[Ram, ...]) -> tuple[list[tuple[int, int]], int]:
    """Frames that are no RAM, and the end of memory.

    No RAM is the first MiB, whatever the map says, and what lies between RAM.
    """
    io, at = [(0, ISA_END_ADDRESS >> PAGE_SHIFT)], ISA_END_ADDRESS >> PAGE_SHIFT
    for entry in sorted(e820, key=lambda entry: entry.start):
        if entry.type != USABLE:
            continue
        start, end = pfn_up(entry.start), entry.end >> PAGE_SHIFT
        if start > at:
            io.append((at, start))
        at = max(at, end)
    return io, at


def _clear_of(p2m: P2M, io: Ranges) -> P2M:
    """The frames as they are, or all of them moved by whole GiB behind memory that is no RAM."""
    start, nr, step = (column(p2m.runs, name) for name in ("mfn", "nr", "step"))
    low = np.where(step < 0, start - nr + 1, start)
    held = join_ranges(np.stack((low, low + nr), axis=1))
    if not any(np.any((held[:, 0] < end) & (held[:, 1] > first)) for first, end in io):
        return p2m
    runs = p2m.runs.copy()
    runs["mfn"] += np.uint64(round_up(io[-1][1], GIB_PAGES))
    return P2M(runs)


def _frames_by_pfn(p2m: P2M) -> npt.NDArray[np.uint64]:
    end = int((column(p2m.runs, "pfn") + column(p2m.runs, "nr")).max(initial=0))
    mfns = p2m.mfn(np.arange(end))
    return np.where(mfns > np.uint64(NO_FRAME), np.uint64(NO_FRAME), mfns)
