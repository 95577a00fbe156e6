# SPDX-License-Identifier: GPL-2.0-or-later
"""What Linux does when Xen refuses one of its hypercalls: a BUG, a warning, or nothing at all.

Three kinds of callers: those that BUG (set_page_prot_flags, pin_pagetable_pfn, set_pte_mfn, ...);
batches, of which xen_mc_flush() says "WARNING" and goes on, so that an entry stays as it was; and
those that do not look at the result. What follows from an entry that stays as it was is deduced.
Sources: arch/x86/xen/mmu_pv.c, multicalls.c, setup.c, p2m.c of 6.1.192; that batches only warn is
older than 4.1 (multicalls.c of 3.x), and the callers of 4.1 to 4.3 are taken to be the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from errno import EINVAL

import numpy as np

from xenpt.abi import (
    ENTRIES,
    MMU_MACHPHYS_UPDATE,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L1_TABLE,
    MMUEXT_PIN_L4_TABLE,
    PAGE_SHIFT,
    PTE_RW,
    UVMF_INVLPG,
    XENMEM_DECREASE_RESERVATION,
    XENMEM_MAXIMUM_RESERVATION,
    pfn_up,
)
from xenpt.errors import RefusedError
from xenpt.extents import Runs, column
from xenpt.faults import FALLBACK, LEAK, PANIC, UNNOTICED, Refused
from xenpt.linux.e820 import in_one_ram_entry
from xenpt.linux.memblock import NO_REGIONS, Regions
from xenpt.linux.missing import frames_of_tables, stage_that_moves
from xenpt.linux.stages import Stage
from xenpt.linux.state import DOM0_DIES, BootState, refused_bug
from xenpt.linux.vmemmap import STRUCT_PAGE_BYTES
from xenpt.xen.hypercalls import Call

_WARNS = "xen_mc_flush() warns and goes on"
_PAGES_OF_STRUCTS = (1 << PAGE_SHIFT) // STRUCT_PAGE_BYTES  # pages whose struct pages fill one


@dataclass(frozen=True, slots=True)
class Reaction:
    """What comes of one refused call.

    :ivar end: as Outcome.end
    :ivar text: panic or consequence
    :ivar raises: the stage must meet the refusal itself: it gives up, or does without
    :ivar unmapped: pfns that the direct map lacks from then on
    :ivar dies_in: a later stage that gives up with `text`
    """

    end: str
    text: str
    raises: bool = False
    unmapped: Regions = NO_REGIONS
    dies_in: Stage | None = None


class Refuser:
    """The gate of one stage: refuses the `nth` call that it is asked about.

    :param before, after: the state as the stage finds it, and as it leaves it without the fault
    :ivar reaction: what came of it; None as long as nothing was refused
    """

    def __init__(
        self, fault: Refused, nth: int, stage: Stage, before: BootState, after: BootState
    ) -> None:
        self.fault, self.stage, self.before, self.after = fault, stage, before, after
        self.reaction: Reaction | None = None
        self._left, self._pins = nth, 0

    def __call__(self, call: Call) -> None:
        """:raises RefusedError: Xen refuses it, and the caller has to see that."""
        if self.fault.where in (None, self.stage.value, call.op):
            self._left -= 1
            if not self._left:
                self.reaction = _REACTIONS[self.stage](self, call)
                if self.reaction.raises:
                    raise RefusedError(EINVAL)
        is_pin = MMUEXT_PIN_L1_TABLE <= call.command <= MMUEXT_PIN_L4_TABLE
        self._pins += call.op == "mmuext_op" and is_pin

    # --- The stages -------------------------------------------------------------------------------

    def setup_kernel_pagetable(self, call: Call) -> Reaction:
        """xen_setup_kernel_pagetable()."""
        if call.op == "update_va_mapping":
            return _bug("set_page_prot_flags", call)
        if call.command == MMUEXT_NEW_BASEPTR:  # the old root stays in use, as a table
            text = "kernel BUG in set_page_prot_flags(): Xen's L4 table is still in use"
            return Reaction(PANIC, text, raises=True)
        return _bug("pin_pagetable_pfn", call)

    def memory_setup(self, call: Call) -> Reaction:
        """xen_memory_setup()."""
        if call.op == "memory_op":
            return self._memory_op(call)
        if call.op == "update_va_mapping":
            return self._in_memory_setup(call)
        if call.op == "mmuext_op":
            if MMUEXT_PIN_L1_TABLE <= call.command <= MMUEXT_PIN_L4_TABLE:
                return _bug("pin_pagetable_pfn", call)
            return Reaction(UNNOTICED, f"{_WARNS}: the TLB may keep an early mapping that is gone")
        if call.level == 1:
            return self._early_mapping(call)
        if call.pfn is not None:  # the new list's table: its first word cannot be written
            return Reaction(PANIC, DOM0_DIES, raises=True)
        return self._old_list_stays()

    def _old_list_stays(self) -> Reaction:
        """A frame of its tables that is to move cannot be mapped writable."""
        mapping = self.before.initial_list.mapping
        tables = NO_REGIONS
        if mapping is not None:
            tables = Regions.of(frames_of_tables(mapping.tables))
        stage = stage_that_moves(tables, self.after)
        text = "kernel BUG in {}(): the old list's tables are still in use"
        if stage is Stage.MEMORY_SETUP:
            return Reaction(PANIC, text.format("set_pte_mfn"), raises=True)
        if stage is Stage.REMAP_MEMORY:
            return Reaction(PANIC, text.format("xen_update_mem_tables"), dies_in=stage)
        return Reaction(UNNOTICED, f"{_WARNS}: the old P->M list stays mapped, and its frames held")

    def _memory_op(self, call: Call) -> Reaction:
        state = self.before
        if call.command == XENMEM_MAXIMUM_RESERVATION:
            text = f"xen_get_max_pages() takes Linux's own limit of {state.page_limit:,} pages"
            return Reaction(FALLBACK, text, raises=True)
        if call.command == XENMEM_DECREASE_RESERVATION:
            text = f"WARNING: Failed to release pfn {call.pfn:x}: it and those behind it are lost"
            return Reaction(LEAK, text, raises=True)
        return _bug("xen_memory_setup", call)

    def _in_memory_setup(self, call: Call) -> Reaction:
        if call.uvmf == UVMF_INVLPG:
            return _bug("set_pte_mfn", call)
        if call.pfn is not None and not call.flags & PTE_RW:
            return _bug("make_lowmem_page_readonly", call)
        text = (
            f"the result is not looked at: {call.vaddr or 0:#x}, in a hole, stays as it is mapped"
        )
        return Reaction(UNNOTICED, text)

    def _early_mapping(self, call: Call) -> Reaction:
        """set_pte() of early_ioremap, which does not look at the result."""
        state = self.before
        if call.pfn is not None:
            return Reaction(PANIC, DOM0_DIES, raises=True)
        first, end = state.p2m_frames
        moves = not in_one_ram_entry(self.after.e820, first << PAGE_SHIFT, end << PAGE_SHIFT)
        nr_pages = pfn_up(8 * state.nr_pages)
        nr_tables = sum(-(-nr_pages // ENTRIES**level) for level in (1, 2, 3))
        if moves and self._pins < nr_tables:  # of a table that is to be pinned
            text = "kernel BUG in pin_pagetable_pfn(): the table is still mapped writable"
            return Reaction(PANIC, text, raises=True)
        return Reaction(UNNOTICED, "an early mapping stays until its slot is used again")

    def init_mem_mapping(self, call: Call) -> Reaction:
        """init_mem_mapping()."""
        if call.op == "update_va_mapping":
            return _bug("make_lowmem_page_readonly", call)
        if call.op == "mmuext_op":
            if call.command == MMUEXT_PIN_L1_TABLE:
                return _bug("pin_pagetable_pfn", call)
            return Reaction(UNNOTICED, f"{_WARNS}: root and TLB are as they should be")
        if call.pfn is None:
            return Reaction(UNNOTICED, f"{_WARNS}: the entry is empty anyway")
        found = _table(self.after.tables, call.pfn)
        if found is None:  # a stage that gives up anyway, of which no tables are known
            return Reaction(UNNOTICED, f"{_WARNS}: a page table is not hooked in")
        vpn, level = found
        first = vpn - (self.before.rules.page_offset >> PAGE_SHIFT)
        pfns = Regions.of([(first, first + ENTRIES**level)])
        nr = sum(pfns.clip(a >> PAGE_SHIFT, b >> PAGE_SHIFT).size for a, b in self._ram())
        text = f"{_WARNS}: {nr:,} pages of RAM from pfn {first:#x} on are not mapped"
        return Reaction(UNNOTICED, f"{text}, and fault at their first use", unmapped=pfns)

    def _ram(self) -> Regions:
        return self.after.memblock.memory

    def paging_init(self, call: Call) -> Reaction:
        """paging_init(): struct pages are written right behind it (memmap_init_range())."""
        if call.op == "update_va_mapping":
            return _bug("make_lowmem_page_readonly", call)
        if call.op == "mmuext_op":
            return _bug("pin_pagetable_pfn", call)
        vmemmap = self.after.vmemmap
        if vmemmap is None:
            return Reaction(UNNOTICED, f"{_WARNS}: some struct pages are not mapped")
        found = (_leaf if call.level == 1 else _table)(
            vmemmap.leaves if call.level == 1 else vmemmap.tables, call.pfn
        )
        assert found is not None
        vpn, level = found
        nr_pages = ENTRIES**level
        start = ((vpn << PAGE_SHIFT) - self.before.rules.vmemmap_start) // STRUCT_PAGE_BYTES
        end = start + nr_pages * _PAGES_OF_STRUCTS
        ram = self._ram().clip(start << PAGE_SHIFT, end << PAGE_SHIFT)
        if not ram.size:
            text = "the result is not looked at: these struct pages are of no RAM"
            return Reaction(UNNOTICED, text)
        return self._fault_at(
            self.before.rules.vmemmap_start + (ram.ranges[0][0] >> PAGE_SHIFT) * STRUCT_PAGE_BYTES
        )

    def vmalloc_p2m_tree(self, call: Call) -> Reaction:
        """xen_vmalloc_p2m_tree(): batches, and set_pte() without a look at the result."""
        if call.op == "multicall":
            return _bug("xen_mc_flush", call)
        new_list, state = self.after.new_list, self.before
        found = None
        if new_list is not None and call.level == 1:
            found = _leaf(new_list.leaves, call.pfn)
        elif new_list is not None:
            found = _table(new_list.tables, call.pfn)
        own = NO_REGIONS
        if found is not None:
            first = ((found[0] << PAGE_SHIFT) - state.rules.vmalloc_start) // 8
            own = Regions.of([(first, first + ENTRIES ** (found[1] + 1))])
            own = own.clip(0, state.nr_pages) - state.identity - state.missing
        if not own.size:
            text = "P->M entries of holes cannot be read, and fault when they are"
            return Reaction(UNNOTICED, text)
        return self._fault_at(state.rules.vmalloc_start + 8 * own.ranges[0][0])

    def p2m_free(self, call: Call) -> Reaction:
        """xen_pagetable_p2m_free()."""
        if call.op == "update_va_mapping":
            return _bug("make_lowmem_page_readwrite", call)
        if call.op == "mmuext_op":
            return _bug("pin_pagetable_pfn", call)
        if self.before.list_outside:
            text = "kernel BUG in make_lowmem_page_readwrite(): the page is still a page table"
            return Reaction(PANIC, text, raises=True)
        text = f"{_WARNS}: 2 MiB of the old list stay mapped where modules go"
        return Reaction(UNNOTICED, text, raises=True)

    def remap_memory(self, call: Call) -> Reaction:
        """xen_remap_memory()."""
        if call.op == "update_va_mapping" and call.uvmf == UVMF_INVLPG:
            return _bug("set_pte_mfn", call)
        assert call.op == "update_va_mapping" or call.command == MMU_MACHPHYS_UPDATE
        return _bug("xen_update_mem_tables", call)

    def _fault_at(self, vaddr: int) -> Reaction:
        return Reaction(PANIC, str(self.before.page_fault(vaddr)), raises=True)


_REACTIONS: dict[Stage, Callable[[Refuser, Call], Reaction]] = {
    stage: getattr(Refuser, stage.value) for stage in Stage
}


def _bug(function: str, call: Call) -> Reaction:
    return Reaction(PANIC, refused_bug(function, call.op), raises=True)


def _table(tables: Runs, pfn: int | None) -> tuple[int, int] | None:
    """(first virtual page, level) of the table with that frame; None if there is none."""
    hit = _position(tables, pfn)
    if hit is None:
        return None
    row, i = hit
    level = int(tables["level"][row])
    return int(tables["vpn"][row]) + i * ENTRIES**level, level


def _leaf(leaves: Runs, pfn: int | None) -> tuple[int, int] | None:
    """(virtual page, 0) of the 4 KiB leaf with that frame; None if there is none, or many."""
    hit = _position(leaves, pfn)
    if hit is None or (leaves["nr"][hit[0]] > 1 and not leaves["step"][hit[0]]):
        return None
    return int(leaves["vpn"][hit[0]]) + hit[1], 0


def _position(runs: Runs, pfn: int | None) -> tuple[int, int] | None:
    """(row, entry) that has the frame, or None."""
    if pfn is None:
        return None
    first, nr, step = (column(runs, name) for name in ("pfn", "nr", "step"))
    pace = np.where(step == 0, 1, step)
    i = (pfn - first) // pace
    fits = ((pfn - first) % pace == 0) & (i >= 0) & (i < np.where(step == 0, 1, nr))
    hits = np.flatnonzero(fits)
    return (int(hits[0]), int(i[hits[0]])) if len(hits) else None
