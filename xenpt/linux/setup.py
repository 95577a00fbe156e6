# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_memory_setup() and xen_remap_memory() (arch/x86/xen/setup.c): memory against the E820 map.

A pv domain's pfns start as [0, nr_pages). Where the map has holes, the frames there move to RAM
pfns at the end; what lies beyond is kept for ballooning. SPEC F3.
"""

from dataclasses import replace

from xenpt.abi import (
    ENTRIES,
    ISA_END_ADDRESS,
    ISA_START_ADDRESS,
    PAGE_SHIFT,
    PAGE_SIZE,
    UVMF_INVLPG,
    WORD,
    XENMEM_DECREASE_RESERVATION,
    XENMEM_MACHINE_MEMORY_MAP,
    XENMEM_MAXIMUM_RESERVATION,
    XENMEM_MEMORY_MAP,
    pfn_up,
    round_up,
)
from xenpt.cost import Cost
from xenpt.extents import IDENTITY
from xenpt.inputs.config import Ram as E820Entry
from xenpt.linux.e820 import (
    E820,
    RAM,
    RESERVED,
    UNUSABLE,
    count_remap_pages,
    find_pfn_range,
    flat_map,
    holes,
    ignore_unusable,
    ram_regions,
    sanitize,
)
from xenpt.linux.memblock import Regions
from xenpt.linux.pagetable import PAGE_KERNEL
from xenpt.linux.relocate import exchange_nvs, resolve_conflicts
from xenpt.linux.state import PMD_SIZE, BootState, LinuxPanic, NotModelled, Remap
from xenpt.xen.hypercalls import Hypercalls

GROUP_WORDS = 3  # of a group's first frame, which lists the group behind them
EXTRA_MEM_RATIO = 10
MAXMEM_PAGES = 1 << 34
#: MAXMEM of 32 bits is what lies between PAGE_OFFSET and vmalloc's area: up to 728 MiB, less with
#: some configurations. So much is there in any case.
LOWMEM_32_BIT_PAGES = (512 << 20) >> PAGE_SHIFT
DOMU_SLACK_BYTES = 8 << 20  # RAM that an unprivileged domain adds where Xen has no map for it
_NO_TABLE = "kernel BUG in xen_update_mem_tables(): Failed to update kvirt mapping for"
LOW_RESERVED_BYTES = 64 << 10  # CONFIG_X86_RESERVE_LOW
_NOT_EXCHANGED = (
    "ACPI NVS memory lay where Xen has put kernel or page tables; this Linux has exchanged it for "
    "RAM behind its own and goes on, but what the P->M entries of it cost is not modelled"
)
_NO_RATIO = (
    "how much memory for ballooning a 32-bit Linux keeps depends on its lowmem, which is not "
    "modelled: lower the limit, as with dom0_mem=max:4G"
)


def memory_setup(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Make Linux's memory map: find holes, move frames out of them, reserve what is in use.

    An empty `state.e820` stands for the flat map of an initial domain, and for no map (-ENOSYS)
    of an unprivileged one. The initial domain takes what the host calls unusable for RAM: Xen has
    RAM there in its pfns (xen_ignore_unusable()).

    :raises LinuxPanic: something that Xen put into a hole cannot be moved
    :raises NotModelled: a 32-bit guest that may grow beyond ten times its lowmem
    """
    rules = state.rules
    limit = state.page_limit
    max_pfn = min(limit, state.nr_pages)
    e820 = given_map(state)
    if rules.low_ram_bytes and state.initial_domain:
        e820 = (*e820, E820Entry(rules.low_ram_bytes, ISA_END_ADDRESS, RESERVED))
    state = exchange_nvs(replace(state, e820=sanitize(e820), max_pfn=max_pfn))
    e820 = state.e820
    hc.memory_op(XENMEM_MACHINE_MEMORY_MAP if state.initial_domain else XENMEM_MEMORY_MAP)
    max_pages = limit
    if state.initial_domain:
        with hc.optional("memory_op"):
            hc.memory_op(XENMEM_MAXIMUM_RESERVATION)
            max_pages = min(state.max_reservation, limit)
    p2m_size = round_up(state.nr_pages, state.p2m_per_page)
    state = replace(state, max_p2m_pfn=p2m_size)
    if rules.count_remap_first:  # before any frame moves: mainline's order
        max_pages += count_remap_pages(e820, max_pfn, ram_in_part=rules.counts_ram_in_part)
        state = _reserve_early(_keep_extra(state, max_pages - max_pfn))
        state, cost = resolve_conflicts(state, hc)
        state, _ = _move_out_of_holes(state, hc)
    else:
        state, moved = _move_out_of_holes(state, hc)
        state = _reserve_early(_keep_extra(state, max(max_pages - max_pfn, 0) + moved))
        state, cost = resolve_conflicts(state, hc)
    buffer = state.symbol_pfn("xen_remap_buf")
    if state.remaps and buffer is not None:
        own_entries = state.own_entries.add(buffer, buffer + 1)
        state = replace(state, own_entries=own_entries)
    cost = replace(cost, by_type=dict(hc.by_type), pages_leaked=state.nr_lost)
    return _reserve_brk(state), cost


def given_map(state: BootState) -> E820:
    """The map that Xen gives, or what Linux takes where it gives none."""
    if state.initial_domain:
        return ignore_unusable(state.e820) or flat_map(state.nr_pages << PAGE_SHIFT)
    nr_bytes = min(state.page_limit, state.nr_pages) << PAGE_SHIFT
    return state.e820 or flat_map(nr_bytes + DOMU_SLACK_BYTES)


def auto_xlated_memory_setup(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """The map is taken as it is: pfns of an auto-translated guest need not move (PVH v1).

    Models xen_auto_xlated_memory_setup() of 4.1 and of the mail.
    """
    e820 = sanitize(state.e820 or flat_map(state.nr_pages << PAGE_SHIFT))
    hc.memory_op(XENMEM_MEMORY_MAP)
    linux_e820 = sanitize((*e820, E820Entry(0, PAGE_SIZE, RESERVED)))
    max_pfn = ram_regions(linux_e820).ranges[-1][1] >> PAGE_SHIFT
    state = replace(state, e820=e820, linux_e820=linux_e820, max_pfn=max_pfn)
    state, cost = resolve_conflicts(_reserve_early(state), hc)
    return _reserve_brk(state), replace(cost, by_type=dict(hc.by_type))


def remap_memory(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Give the frames of holes their new pfns: P->M list, M2P and direct map.

    The groups are chained last first (by source: no complete trace has two). Models
    xen_remap_memory().

    :raises NotModelled: the list's entries of exchanged memory are to be set, too
    :raises LinuxPanic: a new pfn has no table in the direct map (see _unmapped_target)
    """
    if state.exchanged:
        raise NotModelled(_NOT_EXCHANGED)
    if not state.remaps:
        return state, Cost()
    pfn = _unmapped_target(state)
    if pfn is not None:
        raise LinuxPanic(f"{_NO_TABLE} pfn={pfn}")
    buffer = state.symbol("xen_remap_buf")
    memory_end = state.memblock.memory.ranges[-1][1] >> PAGE_SHIFT  # high_memory
    moved = sum(nr for _, _, nr in state.remaps)
    # Where calls are only counted, all groups of a stretch are one: holes may have millions.
    parts = [
        (part, len(_group_starts(state, part)))
        for remap in state.remaps
        for part in (_groups(state, remap) if hc.one_by_one else [remap])
    ]
    for (pfn, target, nr), nr_groups in reversed(parts):
        for _ in hc.repeat(nr_groups):
            hc.update_va_mapping(buffer, pfn, PAGE_KERNEL, uvmf=UVMF_INVLPG)
        mapped = min(nr, max(memory_end - target, 0))
        for k in hc.repeat(mapped):
            hc.machphys_update(pfn + k, target + k)
            hc.update_va_mapping(state.va(target + k), pfn + k, PAGE_KERNEL)
        for k in hc.repeat(nr - mapped):
            hc.machphys_update(pfn + mapped + k, target + mapped + k)
    hc.update_va_mapping(buffer, state.symbol_pfn("xen_remap_buf"), PAGE_KERNEL, uvmf=UVMF_INVLPG)
    memblock, extra = state.memblock, state.extra
    for _, target, nr in state.remaps:
        memblock = memblock.free(target << PAGE_SHIFT, (target + nr) << PAGE_SHIFT)
        extra = extra.remove(target, target + nr)
    return (
        replace(state, memblock=memblock, extra=extra, moved=state.remaps),
        Cost(by_type=dict(hc.by_type), pages_freed=moved),
    )


def _unmapped_target(state: BootState) -> int | None:
    """First pfn that frames move to where Linux's own map has no RAM in its whole 2 MiB, or None.

    Each RAM entry of Xen's map that begins inside a page costs the extra memory one page, but not
    the frames that move.
    """
    tables = Regions.of(
        (start // PMD_SIZE * ENTRIES, -(-end // PMD_SIZE) * ENTRIES)
        for start, end in state.memblock.memory
    )
    targets = Regions.of((remap.target_pfn, remap.target_pfn + remap.nr) for remap in state.remaps)
    missing = (targets - tables).ranges
    return missing[0][0] if missing else None


def _keep_extra(state: BootState, extra_pages: int) -> BootState:
    """Linux's own map: RAM up to max_pfn, then as much as may be ballooned into."""
    extra_pages = max(0, min(EXTRA_MEM_RATIO * min(state.max_pfn, MAXMEM_PAGES), extra_pages))
    mem_end = state.max_pfn << PAGE_SHIFT
    behind = ram_regions(state.e820).clip(mem_end, WORD).size >> PAGE_SHIFT
    if state.bits == 32 and min(extra_pages, behind) > EXTRA_MEM_RATIO * LOWMEM_32_BIT_PAGES:
        raise NotModelled(_NO_RATIO)
    out: list[E820Entry] = []
    extra, max_p2m_pfn = state.extra, state.max_p2m_pfn
    for entry in state.e820:
        if entry.type != RAM:
            out.append(entry)
            continue
        end, middle = entry.end, min(max(entry.start, mem_end), entry.end)
        out.append(E820Entry(entry.start, middle, RAM))
        if middle < end and extra_pages:
            last = min(end, middle + (extra_pages << PAGE_SHIFT))
            first_pfn, end_pfn = pfn_up(middle), last >> PAGE_SHIFT
            extra_pages -= end_pfn - first_pfn
            extra, max_p2m_pfn = extra.add(first_pfn, end_pfn), end_pfn
            out.append(E820Entry(middle, last, RAM))
            middle = last
        if not state.rules.drop_excess_ram:
            out.append(E820Entry(middle, end, UNUSABLE))
    out.append(E820Entry(ISA_START_ADDRESS, ISA_END_ADDRESS, RESERVED))
    out.append(E820Entry(0, PAGE_SIZE, RESERVED))  # trim_bios_range()
    ram = [E820Entry(a, b, RAM) for a, b in ram_regions(tuple(e for e in out if e.start < e.end))]
    table = sanitize([e for e in out if e.type != RAM] + ram)
    return replace(state, linux_e820=table, extra=extra, max_p2m_pfn=max_p2m_pfn)


def _reserve_early(state: BootState) -> BootState:
    """What is reserved before the list is: low memory, kernel, start_info, initrd, extra memory.

    The page tables are since setup_kernel_pagetable.
    """
    ranges = [
        (0, LOW_RESERVED_BYTES),
        (state.paddr(state.text), state.paddr(state.brk_start)),
        _special_pages(state),
    ]
    if state.initrd:
        ranges.append((state.initrd[0], round_up(state.initrd[1], PAGE_SIZE)))
    ranges += [(a << PAGE_SHIFT, b << PAGE_SHIFT) for a, b in state.extra]
    reserved = Regions.of((*state.memblock.reserved, *ranges))
    memblock = replace(state.memblock, memory=ram_regions(state.linux_e820), reserved=reserved)
    return replace(state, memblock=memblock)


def _special_pages(state: BootState) -> tuple[int, int]:
    """start_info and what lies with it: see LinuxRules.reserve_special_pages."""
    plan = state.domain.plan
    start = int(plan.start_info[0])
    end = start + PAGE_SIZE
    if state.rules.reserve_special_pages:
        end += 0 if state.initial_domain else 2 * PAGE_SIZE  # xenstore and console
    elif not state.list_outside:
        start, end = int(plan.mfn_list), int(plan.pt_base)
    return state.paddr(start), state.paddr(end)


def _reserve_brk(state: BootState) -> BootState:
    """The brk area as far as it is used; memblock is then as e820__memblock_setup() leaves it."""
    start, end = state.paddr(state.brk_start), state.paddr(state.brk_end)
    return replace(state, memblock=state.memblock.reserve(start, end))


def _move_out_of_holes(state: BootState, hc: Hypercalls) -> tuple[BootState, int]:
    """xen_set_identity_and_remap(); also the pages moved or released."""
    moved, remap_pfn = 0, 0
    for start, end in holes(state.e820):
        state, remap_pfn, nr = _treat_hole(state, hc, start, end, remap_pfn or state.max_pfn)
        moved += nr
    map_end = state.e820[-1].end >> PAGE_SHIFT
    behind = state.identity.add(map_end, round_up(state.nr_pages, state.p2m_per_page))
    return replace(state, identity=behind), moved


def _treat_hole(
    state: BootState, hc: Hypercalls, start: int, end: int, remap_pfn: int
) -> tuple[BootState, int, int]:
    """xen_set_identity_and_remap_chunk() for the hole of pfns [start, end)."""
    limit, remaps, lost = state.max_pfn, list(state.remaps), 0
    pfn, inclusive = start, state.rules.pfn_range_inclusive
    while pfn < min(end, limit):
        remap_pfn, room = find_pfn_range(state.e820, remap_pfn, inclusive=inclusive)
        nr = min(min(end, limit) - pfn, room)
        if not nr:
            lost += _release(hc, pfn, min(end, limit), state.missing)
            break
        _save_groups(state, hc, Remap(pfn, remap_pfn, nr))
        remaps.append(Remap(pfn, remap_pfn, nr))
        pfn, remap_pfn = pfn + nr, remap_pfn + nr
    mapped = min(end, state.max_pfn_mapped + 1) - start
    if mapped > 0:
        identity = state.rules.map_holes_identity
        hc.update_va_mapping(
            state.va(start),
            IDENTITY + start if identity else None,
            PAGE_KERNEL if identity else 0,
            nr=mapped,
            may_fail=True,
        )
    p2m_size = round_up(state.nr_pages, state.p2m_per_page)
    identity_pfns = state.identity.add(start, min(end, p2m_size))
    reset = state.reset.add(start, min(start + mapped, state.nr_initial_pages))
    state = replace(
        state,
        remaps=tuple(remaps),
        identity=identity_pfns,
        reset=reset,
        nr_lost=state.nr_lost + lost,
    )
    return state, remap_pfn, max(min(end, limit) - start, 0)


def _release(hc: Hypercalls, start: int, end: int, missing: Regions) -> int:
    """Give the frames of pfns [start, end) back, up to the first that Xen refuses; the pages lost.

    Pages without a frame are passed over. Models xen_set_identity_and_release_chunk().
    """
    held = Regions.of([(start, end)]) - missing
    before = hc.calls["memory_op"]
    with hc.optional("memory_op") as refusals:
        for low, high in held:
            hc.memory_op(XENMEM_DECREASE_RESERVATION, pfn=low, nr=high - low)
    given = hc.calls["memory_op"] - before - len(refusals)
    return held.size - given


def _save_groups(state: BootState, hc: Hypercalls, remap: Remap) -> None:
    """Map each group's first frame, to note the group in it; then the buffer's own frame again."""
    buffer = state.symbol("xen_remap_buf")
    starts = _group_starts(state, remap)
    for i in hc.repeat(len(starts)):
        hc.update_va_mapping(buffer, starts[i], PAGE_KERNEL, uvmf=UVMF_INVLPG)
    hc.update_va_mapping(buffer, state.symbol_pfn("xen_remap_buf"), PAGE_KERNEL, uvmf=UVMF_INVLPG)


def _groups(state: BootState, remap: Remap) -> list[Remap]:
    """The groups of a stretch of frames, all but the last of full size."""
    size, away = remap_size(state), remap.target_pfn - remap.pfn
    end = remap.pfn + remap.nr
    return [Remap(pfn, pfn + away, min(size, end - pfn)) for pfn in _group_starts(state, remap)]


def _group_starts(state: BootState, remap: Remap) -> range:
    """First frame of each group."""
    return range(remap.pfn, remap.pfn + remap.nr, remap_size(state))


def remap_size(state: BootState) -> int:
    """REMAP_SIZE: frames of one group, 509 of a 64-bit guest."""
    return state.p2m_per_page - GROUP_WORDS
