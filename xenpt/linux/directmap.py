# SPDX-License-Identifier: GPL-2.0-or-later
"""init_mem_mapping(): the direct map of all RAM in 4 KiB pages (arch/x86/mm/init.c, init_64.c).

Under Xen PV there are no large pages, so each 2 MiB of RAM needs an L1 table. Tables that Xen or
an earlier call made are kept, entries and all. SPEC F4.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from xenpt.abi import (
    ENTRIES,
    ISA_END_ADDRESS,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_TLB_FLUSH_LOCAL,
    PAGE_SHIFT,
    PTE_GUEST_KERNEL,
    PTE_RW,
    PTE_USER,
    START_KERNEL_MAP,
    TABLE_SHIFT,
    round_down,
    round_up,
)
from xenpt.cost import Cost
from xenpt.extents import IDENTITY, Frames, Ints, Runs, column, expand, run_array, tables_of
from xenpt.linux.e820 import RAM
from xenpt.linux.memblock import Memblock, Range, Regions
from xenpt.linux.pagetable import PAGE_KERNEL, initial_l1, page_kernel_ro, wrprotect
from xenpt.linux.rules import LinuxRules
from xenpt.linux.state import PMD_SIZE, BootState, LinuxPanic
from xenpt.xen.hypercalls import Hypercalls

_LIVE_TABLE = (
    "kernel BUG in pin_pagetable_pfn(): the table would map a page table of Xen's writable, one "
    "behind the first GiB of Xen's mapping"
)
STEP_SHIFT = 8  # get_new_step_size(): 2 MiB, 512 MiB, 128 GiB, 32 TiB
#: PAGE_KERNEL as Xen stores it for the kernel of a 64-bit PV guest (golden rule 15).
KERNEL_PTE = PAGE_KERNEL | PTE_USER | PTE_GUEST_KERNEL


def kernel_ro_pte(rules: LinuxRules) -> int:
    """PAGE_KERNEL_RO as Xen stores it."""
    return page_kernel_ro(rules) | PTE_USER | PTE_GUEST_KERNEL


@dataclass(frozen=True, slots=True)
class _Work:
    """The direct map while it grows.

    :ivar held: numbers of the tables that exist, by level 1 .. 3; a number is pfn // 512**level
    :ivar buffer: frames [next, end) of the brk area that are left for tables
    :ivar mapped: pfns [min_pfn_mapped, max_pfn_mapped) that tables may be taken from
    """

    state: BootState
    memblock: Memblock
    held: dict[int, Regions]
    buffer: Range
    tables: tuple[Runs, ...] = ()
    mapped: Range = (0, 0)
    taken: tuple[Range, ...] = ()


def init_mem_mapping(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Map [0, 1 MiB), then RAM from the top downwards, in ranges that grow with what is mapped.

    :raises LinuxPanic: no page is left for a table; a table that Linux has kept is among the
        pages to map
    """
    if _kept_table_behind(state):
        raise LinuxPanic(_LIVE_TABLE)
    brk_end = state.pfn(state.brk_end)
    work = _Work(
        state=state,
        memblock=state.memblock,
        held={
            1: Regions.of([(0, state.nr_initial_l1)]),
            2: Regions.of([(0, 1)]),
            3: Regions.of([(0, 1)]),
        },
        buffer=(brk_end - state.rules.pgt_buf_pages, brk_end),
    )
    work = _map(work, hc, 0, ISA_END_ADDRESS >> PAGE_SHIFT, from_buffer=True)
    end = max(e.end for e in state.linux_e820 if e.type == RAM) >> PAGE_SHIFT << PAGE_SHIFT
    work = _map_top_down(work, hc, ISA_END_ADDRESS, end)
    hc.mmuext_op(MMUEXT_NEW_BASEPTR, state.root_pfn)
    hc.mmuext_op(MMUEXT_TLB_FLUSH_LOCAL)
    tables = np.concatenate((state.tables, *work.tables))
    ro = Regions.of((*state.ro_frames, *work.taken, *_list_ro(state)))
    return (
        replace(
            state,
            memblock=work.memblock,
            max_pfn_mapped=end >> PAGE_SHIFT,
            tables=tables,
            ro_frames=ro,
        ),
        Cost(by_type=dict(hc.by_type), entries_written=_nr_ptes(state)),
    )


def _kept_table_behind(state: BootState) -> bool:
    """Whether Xen's L1 tables of the first GiB, which stay in use, lie behind that GiB.

    There the direct map is new, and would map them writable.
    """
    start, end = (vaddr >> PAGE_SHIFT for vaddr in state.domain.plan.total)
    if end - start <= ENTRIES**2:
        return False
    kept = tables_of(state.domain.initial.tables, start, start + ENTRIES**2)
    frames = expand(kept[kept["level"] == 1], tables=True)["pfn"]
    return bool((frames >= ENTRIES**2).any())


def _list_ro(state: BootState) -> Regions:
    """Frames of the list that are mapped read-only (mask_rw_pte): by entries that are stored now.

    Xen's L1 tables hold those of a list that was moved to low memory, and these stay as they are.
    """
    rules = state.rules
    ignored = rules.asks_writable_tables and rules.writable_page_tables
    if not state.list_outside or not rules.ro_initial_p2m or ignored:
        return Regions()
    first, end = state.p2m_frames
    return Regions.of([(max(first, state.nr_initial_pages), end)])


def _nr_ptes(state: BootState) -> int:
    """PTEs that are stored: of all pages mapped, those that Xen's L1 tables do not hold already."""
    held = Regions.of([(0, state.nr_initial_pages << PAGE_SHIFT)])
    if not state.rules.map_holes_identity:
        held -= Regions(tuple((a << PAGE_SHIFT, b << PAGE_SHIFT) for a, b in state.reset))
    return (state.memblock.memory.add(0, ISA_END_ADDRESS) - held).size >> PAGE_SHIFT


def _map_top_down(work: _Work, hc: Hypercalls, start: int, end: int) -> _Work:
    """memory_map_top_down(): begin with a free 2 MiB block near the end, so that tables for the
    next, larger range can come from what is mapped.
    """
    memblock, served = work.memblock.ask()
    work = replace(work, memblock=memblock)
    block = memblock.find(PMD_SIZE, PMD_SIZE, start, end) if served else None
    if block is not None:
        real_end = block + PMD_SIZE
    else:
        real_end = max(start, round_down(end, PMD_SIZE))
        if not work.state.rules.align_without_block:
            real_end = PMD_SIZE
    step, done, last = PMD_SIZE, 0, real_end
    work = replace(work, mapped=(real_end >> PAGE_SHIFT, 0))
    while last > start:
        first = max(round_down(last - 1, step), start) if last > step else start
        work = _map_ram(work, hc, first, last)
        done += work.memblock.memory.clip(first, last).size
        last = first
        work = replace(work, mapped=(last >> PAGE_SHIFT, work.mapped[1]))
        if done >= step:
            step <<= STEP_SHIFT
    if real_end < end:
        work = _map_ram(work, hc, real_end, end)
    return work


def _map_ram(work: _Work, hc: Hypercalls, start: int, end: int) -> _Work:
    """init_range_memory_mapping(): one call for each piece of RAM in bytes [start, end)."""
    buffer_start, buffer_end = (pfn << PAGE_SHIFT for pfn in work.buffer)
    for low, high in work.memblock.memory.clip(start, end):
        # The buffer may not be used for mapping itself: it is not writable twice.
        from_buffer = max(low, buffer_start) >= min(high, buffer_end)
        work = _map(work, hc, low >> PAGE_SHIFT, high >> PAGE_SHIFT, from_buffer=from_buffer)
        work = replace(work, mapped=(work.mapped[0], max(work.mapped[1], high >> PAGE_SHIFT)))
    return work


def _map(work: _Work, hc: Hypercalls, start: int, end: int, *, from_buffer: bool) -> _Work:
    """kernel_physical_mapping_init() of pfns [start, end)."""
    new = {level: _covering(start, end, level) - work.held[level] for level in (1, 2, 3)}
    nr = sum(regions.size for regions in new.values())
    work, frames = _alloc_low_pages(work, nr, from_buffer=from_buffer)
    rows = _table_rows(new, frames, work)
    if hc.checked:
        _store_ptes(work, hc, rows, start, end)
    _issue(work, hc, rows, end)
    if work.state.rules.flush_each_mapping:
        hc.mmuext_op(MMUEXT_TLB_FLUSH_LOCAL)
    held = {level: Regions.of((*work.held[level], *new[level])) for level in new}
    taken = tuple((min(p, p + (n - 1) * s), max(p, p + (n - 1) * s) + 1) for p, n, s in frames)
    return replace(work, held=held, tables=(*work.tables, rows), taken=(*work.taken, *taken))


def _covering(start: int, end: int, level: int) -> Regions:
    """Numbers of the tables of `level` that cover pfns [start, end)."""
    shift = TABLE_SHIFT * level
    return Regions.of([(start >> shift, ((end - 1) >> shift) + 1)])


_Frames = list[tuple[int, int, int]]  # (first pfn, pages, step), in the order of allocation


def _alloc_low_pages(work: _Work, nr: int, *, from_buffer: bool) -> tuple[_Work, _Frames]:
    """alloc_low_pages(), `nr` times one page: from the brk area, then the highest mapped page."""
    frames: _Frames = []
    first, end = work.buffer
    if from_buffer and nr and first < end:
        pages = min(nr, end - first)
        frames.append((first, pages, 1))
        work = replace(work, buffer=(first + pages, end))
        nr -= pages
    if nr:
        low, high = (pfn << PAGE_SHIFT for pfn in work.mapped)
        memblock, runs = work.memblock.take_pages(nr, low, high)
        frames += [(pfn, pages, -1) for pfn, pages in runs]
        if sum(pages for _, pages in runs) < nr:
            raise _no_low_page(work, from_buffer=from_buffer)
        work = replace(work, memblock=memblock)
    return work, frames


def _no_low_page(work: _Work, *, from_buffer: bool) -> LinuxPanic:
    """What alloc_low_pages() says when memblock has no page for it."""
    rules, (low, high) = work.state.rules, work.mapped
    if rules.low_pages_extend_brk and from_buffer:
        return LinuxPanic("kernel BUG in extend_brk(): the brk area is closed")
    nothing_mapped = low >= high and not rules.low_pages_extend_brk
    text = "ran out of memory" if nothing_mapped else "can not alloc memory"
    return LinuxPanic(f"Kernel panic - not syncing: alloc_low_pages: {text}")


def _table_rows(new: dict[int, Regions], frames: _Frames, work: _Work) -> Runs:
    """Rows of the new tables in the order in which they are hooked in: children first.

    A table is allocated before its children and hooked behind them.
    """
    pieces = [_pieces(low, high, level) for level in new for low, high in new[level]]
    if not pieces:
        return run_array([], [], [], [], [], [])
    start, end, level = np.ascontiguousarray(np.concatenate(pieces).T)
    first_page, last_page = start << (TABLE_SHIFT * level), end << (TABLE_SHIFT * level)
    # Each sort has one key, and is quick, since every level is sorted already.
    taken_order = np.argsort(first_page << 2 | 3 - level, kind="stable")
    position = np.empty(len(start), np.int64)
    nr = end - start
    position[taken_order] = np.cumsum(nr[taken_order]) - nr[taken_order]
    hooked = np.argsort(last_page << 2 | level, kind="stable")
    rows = np.stack((first_page, nr, level, position), axis=1)[hooked]
    rows = _cut(rows, np.cumsum([n for _, n, _ in frames])[:-1])
    bounds = np.cumsum([0, *(n for _, n, _ in frames)])
    at = np.searchsorted(bounds, rows[:, 3], side="right") - 1
    origin, _, step = np.array(frames, np.int64)[at].T
    pfn = origin + (rows[:, 3] - bounds[at]) * step
    vpn = (work.state.rules.page_offset >> PAGE_SHIFT) + rows[:, 0]
    flags = frame_flags(work.state, pfn)
    return run_array(vpn, pfn, rows[:, 1], step, rows[:, 2], flags)


def _pieces(low: int, high: int, level: int) -> Ints:
    """Table numbers [low, high) as rows (start, end, level), each with one parent.

    Above level 1 each table is a row: its children come between it and the next.
    """
    size = ENTRIES if level == 1 else 1
    inner = np.arange(low // size + 1, -(-high // size)) * size
    edges = np.concatenate(([low], inner, [high]))
    return np.stack((edges[:-1], edges[1:], np.full(len(edges) - 1, level)), axis=1)


def _cut(rows: Ints, cuts: Ints) -> Ints:
    """Rows (first page, nr, level, position) split where their positions cross a cut."""
    for cut in cuts.tolist():
        hit = np.flatnonzero((rows[:, 3] < cut) & (rows[:, 3] + rows[:, 1] > cut))
        for k in hit.tolist():
            page, nr, level, position = rows[k].tolist()
            head = cut - position
            tail = [page + (head << (TABLE_SHIFT * level)), nr - head, level, cut]
            rows[k, 1] = head
            rows = np.insert(rows, k + 1, tail, axis=0)
    return rows


def frame_flags(state: BootState, pfn: Ints) -> Frames:
    """Bits of the entries that map the frames: Xen's own in its L1 tables, else Linux's."""
    flags = np.full(len(pfn), KERNEL_PTE, np.uint64)
    for k in np.flatnonzero(pfn < state.nr_initial_l1 * ENTRIES).tolist():
        found = state.domain.initial.translate(START_KERNEL_MAP + (int(pfn[k]) << PAGE_SHIFT))
        flags[k] = found[2] if found else 0
    return flags


def _store_ptes(work: _Work, hc: Hypercalls, rows: Runs, start: int, end: int) -> None:
    """phys_pte_init() of pfns [start, end): Linux's own stores, into new tables before they are
    hooked in, else into live ones.

    A pfn that has no frame yet gets no entry; of those that Xen's L1 tables map only the unmapped
    ones do.
    """
    state = work.state
    for pfn in expand(rows, tables=True)["pfn"].tolist():
        hc.clear_page(pfn)
    held = Regions.of([(0, state.nr_initial_pages)])
    if not state.rules.map_holes_identity:
        held -= state.reset
    tables = _l1_frames(work, rows)
    read_only = _list_ro(state)
    for low, high in Regions.of([(start, min(end, state.nr_pages))]) - held:
        for first, stop in _cut_at(low, high, (*state.identity, *read_only)):
            base, flags = 0, PAGE_KERNEL
            if state.identity.meets(first, stop):
                base = IDENTITY
            elif read_only.meets(first, stop):
                flags &= ~PTE_RW
            slot, table = first % ENTRIES, tables[first // ENTRIES]
            hc.store(table, slot, base + first, flags, nr=stop - first)


def _l1_frames(work: _Work, rows: Runs) -> dict[int, int]:
    """Frames of the L1 tables of the direct map by their number: Xen's, older ones, new ones."""
    found: dict[int, int] = {}
    for top, runs in (
        (START_KERNEL_MAP >> PAGE_SHIFT, initial_l1(work.state, 0, ENTRIES)),
        *((work.state.rules.page_offset >> PAGE_SHIFT, runs) for runs in (*work.tables, rows)),
    ):
        single = expand(runs[runs["level"] == 1], tables=True)
        number = (column(single, "vpn") - top) // ENTRIES
        found |= zip(number.tolist(), single["pfn"].tolist(), strict=True)
    return found


def _cut_at(low: int, high: int, edges: Iterable[Range]) -> Iterator[Range]:
    """[low, high) cut at tables' borders and at the ends of other ranges."""
    cuts = {low, high, *range(round_up(low, ENTRIES), high, ENTRIES)}
    cuts.update(edge for pair in edges for edge in pair if low < edge < high)
    yield from pairwise(sorted(cuts))


def _issue(work: _Work, hc: Hypercalls, rows: Runs, end: int) -> None:
    """Hook the new tables in; clear what lies behind `end` in the last L2 and L3 pages."""
    page_offset = work.state.rules.page_offset
    protect = partial(wrprotect, rules=work.state.rules)
    parents = _parents(work, rows) if hc.one_by_one else np.full(len(rows), -1)
    last = {level: (end - 1) >> (TABLE_SHIFT * level) for level in (2, 3)}
    hooks = {
        level: _last_row(
            rows, level, (page_offset >> PAGE_SHIFT) + (last[level] << (TABLE_SHIFT * level))
        )
        for level in last
    }
    head = len(rows) - sum(hook is not None for hook in hooks.values())
    hc.hook_tables(rows[:head], parents[:head], page_offset, protect)
    for level, hook in hooks.items():
        table = _frame_of(work, rows, level, last[level])
        for slot, nr in _empty_slots(work.state, level, end):
            hc.mmu_update(level, table, slot, None, 0, nr=nr)
        if hook is not None:
            one = slice(hook, hook + 1)
            hc.hook_tables(rows[one], parents[one], page_offset, protect)


def _last_row(rows: Runs, level: int, vpn: int) -> int | None:
    """Index of the row of the table at `vpn`, if the call made it: one of the last two."""
    for k in range(max(len(rows) - 2, 0), len(rows)):
        if int(rows["level"][k]) == level and int(rows["vpn"][k]) == vpn:
            return k
    return None


def _empty_slots(state: BootState, level: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs (slot, nr) of the last visited table that begin at or behind `end` and hold no RAM."""
    shift = TABLE_SHIFT * (level - 1)
    table = (end - 1) >> (shift + TABLE_SHIFT)
    first, stop = -(-end >> shift), (table + 1) << TABLE_SHIFT
    ram = Regions.of(
        (e.start >> PAGE_SHIFT >> shift, -(-e.end >> (PAGE_SHIFT + shift)))
        for e in state.linux_e820
        if e.type == RAM
    )
    if first < stop:
        for low, high in Regions.of([(first, stop)]) - ram:
            yield low & (ENTRIES - 1), high - low


def _parents(work: _Work, rows: Runs) -> Ints:
    """Frame of the parent of each row, or -1 where symbols are not known."""
    parents = np.full(len(rows), -1, np.int64)
    top = work.state.rules.page_offset >> PAGE_SHIFT
    for level in (1, 2, 3):
        shift = TABLE_SHIFT * (level + 1)
        children = np.flatnonzero(rows["level"] == level)
        number = (column(rows[children], "vpn") - top) >> shift
        above = rows[rows["level"] == level + 1]
        new = dict(
            zip(
                ((column(above, "vpn") - top) >> shift).tolist(), above["pfn"].tolist(), strict=True
            )
        )
        for n in set(number.tolist()) - new.keys():
            older = _frame_of(work, rows[:0], level + 1, n)
            new[n] = -1 if older is None else older
        parents[children] = [new[n] for n in number.tolist()]
    return parents


def _frame_of(work: _Work, rows: Runs, level: int, number: int) -> int | None:
    """Frame of one table of the direct map, by its number; None where symbols are not known."""
    state = work.state
    if level == 4:
        return state.root_pfn
    if number == 0:
        return state.symbol_pfn("level2_ident_pgt" if level == 2 else "level3_ident_pgt")
    vpn = (state.rules.page_offset >> PAGE_SHIFT) + (number << (TABLE_SHIFT * level))
    for group in (rows, *work.tables):
        hit = group[(group["level"] == level) & (group["vpn"] == vpn)]
        if len(hit):
            return int(hit["pfn"][0])
    return None
