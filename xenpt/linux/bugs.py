# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs of a generation of Linux that a boot runs into without giving up: leaks and overwriting.

Each is found in the state that the stages leave, with numbers; SPEC H has the evidence. The commit
of mainline Linux that mends it is named: by hash, or by subject where no hash is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from xenpt.abi import ENTRIES, PAGE_SHIFT, PAGE_SIZE, pfn_up, round_up, table_slot
from xenpt.linux.cleanup import Cleanup, highmap_ranges
from xenpt.linux.e820 import UNUSABLE, holes, in_one_ram_entry
from xenpt.linux.memblock import Range, Regions
from xenpt.linux.setup import memory_setup
from xenpt.linux.state import PMD_SIZE, BootState
from xenpt.units import counted
from xenpt.xen.hypercalls import Hypercalls

_SERIES = 'Linux 4.3: 808fdb71936c to "xen: move p2m list if conflicting with e820 map"'


@dataclass(frozen=True, slots=True)
class Bug:
    """One bug that a boot met.

    :ivar id: number in SPEC H
    :ivar text: what happens, with its size
    :ivar fix: what is known of the fix
    """

    id: str
    text: str
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """One element of `warnings` of the `boot` JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the stages of a boot left behind, as far as they have run.

    :ivar memory_ops: hypercalls of that type in xen_memory_setup(), or None before it
    """

    state: BootState
    cleanup: Cleanup | None = None
    memory_ops: int | None = None


def bugs_met(seen: Seen) -> list[Bug]:
    """Bugs that show in the stages that have run, in the order of the stages."""
    return [bug for find in _FINDERS for bug in find(seen)]


def _base_of_tables(seen: Seen) -> Iterator[Bug]:
    """H1: an old Xen names a table that is not the first."""
    plan = seen.state.domain.plan
    nr = (int(plan.pt_base) - int(plan.page_tables[0])) // PAGE_SIZE
    if nr and seen.state.max_pfn_mapped:
        held = "and Linux finds the first by itself"
        if not seen.state.rules.find_pt_base:
            held = f"so that Linux reserves {nr} pages more than there are"
        text = f"start_info's pt_base is {nr} pages behind the first page table, {held}"
        yield Bug("H1", text, "Xen 4.2.1 and 4.3 (7a9d764630)")


def _taken_from_use(seen: Seen) -> Iterator[Bug]:
    """H3: frames in holes move to other pfns or go back to Xen, and nobody looks who uses them."""
    state = seen.state
    if state.rules.check_conflicts:
        return
    taken = state.identity.clip(0, state.max_pfn)
    used = {"P->M list": state.p2m_frames, "page tables": state.pt_pfns, "kernel": _kernel(state)}
    if state.initrd:
        used["initrd"] = state.initrd[0] >> PAGE_SHIFT, pfn_up(state.initrd[1])
    for name, pfns in used.items():
        nr = taken.clip(*pfns).size
        if nr:
            text = (
                f"{nr:,} pages of the {name} lie in holes of the E820 map and lose their frames: "
                "a real boot may die of it"
            )
            yield Bug("H3", text, _SERIES)


def _list_found_free(seen: Seen) -> Iterator[Bug]:
    """H12: the place that is found for the list is the list's own."""
    state, plan = seen.state, seen.state.domain.plan
    if state.initial_list.vaddr == plan.mfn_list or state.rules.reserve_before_search:
        return
    first, nr = int(plan.first_p2m_pfn), int(plan.nr_p2m_frames)
    hit = Regions.of([state.p2m_frames]).clip(first, first + nr).size
    if hit:
        text = f"the P->M list is moved over {hit:,} pages of itself before it is copied"
        yield Bug("H12", text, '7ecec8503af3 ("xen/setup: Don\'t relocate p2m over existing one")')


def _moved_into_brk(seen: Seen) -> Iterator[Bug]:
    """The brk area is not reserved yet when room is looked for."""
    state = seen.state
    brk = state.pfn(state.brk_start), state.pfn(state.brk_end)
    moved = {}
    if state.initial_list.vaddr != state.domain.plan.mfn_list:
        moved["P->M list"] = state.p2m_frames
    if state.initrd:
        moved["initrd"] = state.initrd[0] >> PAGE_SHIFT, pfn_up(state.initrd[1])
    for name, pfns in moved.items():
        hit = Regions.of([pfns]).clip(brk[0], brk[1]).size
        if hit:
            text = f"the {name} is moved over {hit:,} pages of the brk area, which Linux uses later"
            yield Bug("brk", text, "none is known; found by the model, not seen in a boot")


def _brk_in_a_hole(seen: Seen) -> Iterator[Bug]:
    """H15: the kernel's end is taken before the brk area."""
    state = seen.state
    if state.rules.check_brk or not state.rules.check_conflicts or not state.linux_e820:
        return
    whole = tuple(pfn << PAGE_SHIFT for pfn in _kernel(state))
    if not in_one_ram_entry(state.e820, *whole):
        text = "the brk area lies in a hole of the E820 map, and the check does not see it"
        yield Bug(
            "H15",
            text,
            'Linux 6.12 and 6.1.y: fac1bceeeb04 ("xen: use correct end address of kernel ...")',
        )


def _unusable(seen: Seen) -> Iterator[Bug]:
    """H13: RAM that the domain cannot have hides what is there from drivers."""
    state = seen.state
    if state.rules.drop_excess_ram:
        return
    given = sum(e.end - e.start for e in state.e820 if e.type == UNUSABLE)
    nr = sum(e.end - e.start for e in state.linux_e820 if e.type == UNUSABLE) - given
    if nr > 0:
        text = f"{nr >> PAGE_SHIFT:,} pages of the host's RAM are marked as unusable"
        fix = 'f5775e0b6116 ("x86/xen: discard RAM regions above the maximum reservation")'
        yield Bug("H13", text, fix)


def _released(seen: Seen) -> Iterator[Bug]:
    """H14: RAM that ends where the search begins is taken for a place without room."""
    state = seen.state
    if state.rules.pfn_range_inclusive or seen.memory_ops is None or not any(holes(state.e820)):
        return
    hc = Hypercalls()
    fixed = BootState(
        domain=state.domain,
        rules=replace(state.rules, pfn_range_inclusive=True, check_conflicts=False),
        e820=state.e820,
        max_reservation=state.max_reservation,
        initial_list=state.initial_list,
    )
    memory_setup(fixed, hc)
    nr = seen.memory_ops - hc.by_type["memory_op"]
    if nr > 0:
        text = f"{nr:,} pages of holes are given back to Xen, and not moved"
        yield Bug("H14", text, "abed7d0710e8: <= in place of < in xen_find_pfn_range()")


def _moved_behind_memory(seen: Seen) -> Iterator[Bug]:
    """Frames that move out of holes to pfns behind the last one of memory."""
    memory = seen.state.memblock.memory
    end = memory.ranges[-1][1] >> PAGE_SHIFT if memory.ranges else 0
    nr = sum(max(0, target + nr - max(end, target)) for _, target, nr in seen.state.remaps)
    if nr:
        text = f"{nr:,} pages move out of holes to behind the end of memory, and are lost"
        fix = 'dd14be92fbf5 ("xen: use same main loop for counting and remapping pages")'
        yield Bug("count", text, fix)


def _highmap_overrun(seen: Seen) -> Iterator[Bug]:
    """H10, H6: loops over level2_kernel_pgt that leave it."""
    state = seen.state
    slots = (state.domain.plan.first_p2m_pfn << PAGE_SHIFT) // PMD_SIZE
    if seen.memory_ops is not None and seen.state.domain.p2m_map is not None and slots > ENTRIES:
        past = counted(slots - ENTRIES, "entry", "entries")
        text = f"cleanup_highmap() runs {past} past level2_kernel_pgt"
        yield Bug("H10", text, "none is known")
    if seen.cleanup is None or state.list_outside:
        return
    for vaddr, last in highmap_ranges(state):
        end = table_slot(vaddr, 2) + (last - vaddr) // PMD_SIZE + 1
        over = min(end, state.rules.cleanup.highmap_entries) - ENTRIES
        if over > 0:
            past = counted(over, "entry", "entries")
            text = f"xen_cleanhighmap() walks {past} past level2_kernel_pgt"
            yield Bug("H6", text, "1cf38741308c: 512 entries bound the loop of xen_cleanhighmap()")


def _stale_slots(seen: Seen) -> Iterator[Bug]:
    """H7: Xen's mapping goes on for up to 4.5 MiB behind the tables, what is cleaned does not."""
    if seen.cleanup is None or seen.state.list_outside:
        return
    last = round_up(seen.state.paddr(seen.state.brk_end), PMD_SIZE) // PMD_SIZE
    stale = seen.state.highmap.clip(last, ENTRIES).size
    if stale:
        entries = counted(stale, "stale entry", "stale entries")
        text = f"{entries} of 2 MiB left mapped behind the kernel, where modules go"
        fix = '"Call xen_cleanhighmap() with 4MB aligned for page tables mapping" (in 4.14.y)'
        if seen.state.rules.cleanup.align_table_range_end:
            fix = "none is known"
        yield Bug("H7", text, fix)


def _pinned_walk(seen: Seen) -> Iterator[Bug]:
    """H9 (deduced): the walk that marks tables as pinned takes large pages for tables."""
    leaves = seen.state.domain.plan.p2m_leaves
    moved = seen.state.initial_list.vaddr != seen.state.domain.plan.mfn_list
    if not seen.state.rules.marks_pinned_first or seen.cleanup is None or moved or not leaves["1g"]:
        return
    text = (
        f"{leaves['1g']} data pages of the list in 1 GiB leaves are walked as if they were tables"
    )
    fix = '6f84f8d1587f ("xen, mm: allow deferred page initialization for xen pv domains")'
    yield Bug("H9", text, fix)


def _leaked(seen: Seen) -> Iterator[Bug]:
    """H4: a table is left at its first empty entry."""
    nr = 0 if seen.cleanup is None else seen.cleanup.cost.pages_leaked
    nr -= seen.state.missing.clip(*seen.state.p2m_frames).size  # a fault's, which are no bug
    if nr > 0:
        text = f"{nr:,} pages of the P->M list stay read-only and reserved for ever"
        fix = '"x86/xen: Change __xen_pgd_walk() and xen_cleanmfnmap() to support p4d" (4.12)'
        yield Bug("H4", text, fix)


def _kernel(state: BootState) -> Range:
    end = int(state.domain.plan.image.virt_kend)
    return state.pfn(state.text), pfn_up(state.paddr(end))


_FINDERS: tuple[Callable[[Seen], Iterator[Bug]], ...] = (
    _base_of_tables, _taken_from_use, _list_found_free, _moved_into_brk, _brk_in_a_hole, _unusable,
    _released, _moved_behind_memory, _highmap_overrun, _stale_slots, _pinned_walk, _leaked,
)  # fmt: skip
