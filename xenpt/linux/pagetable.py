# SPDX-License-Identifier: GPL-2.0-or-later
"""xen_setup_kernel_pagetable() and cleanup_highmap(): Linux takes over Xen's page tables."""

from dataclasses import replace

from xenpt.abi import (
    ENTRIES,
    L3_SIZE,
    L4_SHIFT,
    LEVELS,
    MMUEXT_NEW_BASEPTR,
    MMUEXT_PIN_L3_TABLE,
    MMUEXT_PIN_L4_TABLE,
    MMUEXT_UNPIN_TABLE,
    PAGE_SHIFT,
    PAGE_SIZE,
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_RW,
    PTE_SAVED_DIRTY,
    START_KERNEL_MAP,
    TABLE_PROT,
    TABLE_SHIFT,
    UVMF_INVLPG,
    canonical,
    round_up,
    table_slot,
)
from xenpt.cost import Cost
from xenpt.errors import UsageError
from xenpt.extents import Runs, column, expand, make_runs, tables_of
from xenpt.linux.memblock import Regions
from xenpt.linux.rules import LinuxRules
from xenpt.linux.state import EARLY_IOREMAP, PMD_SIZE, BootState, LinuxPanic, NotModelled
from xenpt.xen.hypercalls import Hypercalls

#: PAGE_KERNEL without GLOBAL, which a PV guest does not use.
PAGE_KERNEL = PTE_NX | PTE_DIRTY | PTE_ACCESSED | PTE_RW | PTE_PRESENT
_BEYOND_FIRST_GIB = (
    "kernel BUG in set_page_prot_flags(): Xen's page tables are behind the first GiB of its "
    "mapping, which is all that Linux keeps"
)
#: What Linux maps in whole L4 slots: the flag with its start, a name, bytes (x86_64/mm.rst).
_AREAS = (
    ("page_offset", "direct map", 64 << 40),
    ("vmalloc_start", "vmalloc area", 32 << 40),
    ("vmemmap_start", "struct pages", 1 << 40),
)
_LEVEL3_KERNEL = canonical((ENTRIES - 1) << L4_SHIFT) >> PAGE_SHIFT  # vpn of the last L4 slot
_FIXMAP = START_KERNEL_MAP + L3_SIZE
_LEVEL1_FIXMAP = 506  # its first slot in level2_fixmap_pgt
_STATIC_TABLES = 4  # whose entries are turned from pfns into mfns: L4, two L3, level2_fixmap_pgt


def copies_l4_entry(mfn_list: int) -> bool:
    """Whether Linux takes over the list's L4 entry: that of the first or last slot it does not."""
    return 0 < table_slot(mfn_list, LEVELS) < ENTRIES - 1


def _check_place(state: BootState) -> None:
    """No list may take an L4 entry of Linux's own areas, or lose its entry to them.

    No kernel asks for such a place.
    """
    vaddr = int(state.domain.plan.mfn_list)
    for rule, name, size in _AREAS:
        start = getattr(state.rules, rule)
        if start <= vaddr < start + size:
            raise NotModelled(
                f"the P->M list at {vaddr:#018x} lies in Linux's {name}, which is not modelled"
            )


def page_kernel_ro(rules: LinuxRules) -> int:
    """PAGE_KERNEL_RO."""
    return PAGE_KERNEL & ~PTE_RW & ~(PTE_DIRTY if rules.saved_dirty else 0)


def wrprotect(flags: int, rules: LinuxRules) -> int:
    """pte_wrprotect(): without RW; the dirty bit may move to another place (PTE_SAVED_DIRTY)."""
    flags &= ~PTE_RW
    if rules.saved_dirty and flags & PTE_DIRTY:
        flags += PTE_SAVED_DIRTY - PTE_DIRTY
    return flags


def setup_kernel_pagetable(state: BootState, hc: Hypercalls) -> tuple[BootState, Cost]:
    """Graft Xen's tables into Linux's own, pin those, and give Xen's L4 page back.

    Of Xen's initial mapping only the L2 page of the first GiB survives (its L1 pages stay in use).
    An auto-translated guest has no frames to convert, pins nothing, and loads CR3 by itself.
    Models xen_setup_kernel_pagetable() in arch/x86/xen/mmu_pv.c; SPEC F2, golden rule 15.

    :raises LinuxPanic: tables that go back lie where Linux no longer has them mapped
    :raises NotModelled: the list is where Linux has an area of its own
    """
    rules = state.rules
    pt_start, pt_end = state.pt_pfns
    outside = state.list_outside
    mfn_list = int(state.domain.plan.mfn_list)
    max_pfn_mapped = (
        state.p2m_frames[0] if outside and rules.graft_initial_p2m else state.pfn(mfn_list)
    )
    grafted = outside and rules.graft_initial_p2m and copies_l4_entry(mfn_list)
    if grafted:
        _check_place(state)
    if not rules.auto_translated:
        _load_own_tables(state, hc, grafted=grafted)
    recovered = _recover_pages(state, hc)
    memblock = state.memblock.reserve((pt_start + recovered) << PAGE_SHIFT, pt_end << PAGE_SHIFT)
    nx = state.nr_initial_l1 if rules.nx_ident_map else 0
    converted = 0 if rules.auto_translated else _STATIC_TABLES * ENTRIES
    cost = Cost(
        by_type=dict(hc.by_type),
        entries_read={"l1": 0, "l2": ENTRIES, "l3": 1, "l4": 1 + grafted},
        entries_written=1 + converted + 2 * ENTRIES + nx + grafted,
    )
    return (
        replace(
            state,
            memblock=memblock,
            max_pfn_mapped=max_pfn_mapped,
            highmap=Regions.of([(0, state.nr_initial_l1)]),
            ro_frames=Regions.of([(pt_start + recovered, pt_end), *static_frames(state)]),
            own_entries=Regions.of([(pt_start, pt_start + recovered)]),
            ro_entries=Regions.of(static_frames(state)),
        ),
        cost,
    )


def _load_own_tables(state: BootState, hc: Hypercalls, *, grafted: bool) -> None:
    """Make Linux's static tables read-only, pin its root in place of Xen's, and load it."""
    if hc.checked:
        _fill_static_tables(state, hc, grafted=grafted)
    read_only = page_kernel_ro(state.rules)
    for name, nr in state.rules.ro_tables:
        for page in range(nr):
            _set_page_prot(state, hc, name, read_only, page=page)
    hc.mmuext_op(MMUEXT_PIN_L4_TABLE, state.root_pfn)
    hc.mmuext_op(MMUEXT_UNPIN_TABLE, state.pt_pfns[0])
    if state.rules.pin_user_vsyscall:
        _set_page_prot(state, hc, "level3_user_vsyscall", read_only)
        hc.mmuext_op(MMUEXT_PIN_L3_TABLE, state.symbol_pfn("level3_user_vsyscall"))
    hc.mmuext_op(MMUEXT_NEW_BASEPTR, state.root_pfn)


def static_tables(state: BootState) -> Runs:
    """Linux's own static tables as RUN rows, each with the address that it covers first.

    :raises UsageError: symbols of them are not known
    """
    top = state.rules.page_offset >> PAGE_SHIFT
    kernel, fixmap = START_KERNEL_MAP >> PAGE_SHIFT, _FIXMAP >> PAGE_SHIFT
    sizes = dict(state.rules.ro_tables)
    rows = [
        (0, state.rules.ro_tables[0][0], 1, LEVELS, 0),
        (top, "level3_ident_pgt", 1, 3, TABLE_PROT),
        (top, "level2_ident_pgt", 1, 2, TABLE_PROT),
        (_LEVEL3_KERNEL, "level3_kernel_pgt", 1, 3, TABLE_PROT),
        (kernel, "level2_kernel_pgt", 1, 2, TABLE_PROT),
        (fixmap, "level2_fixmap_pgt", 1, 2, TABLE_PROT),
        (
            fixmap + _LEVEL1_FIXMAP * ENTRIES,
            "level1_fixmap_pgt",
            sizes.get("level1_fixmap_pgt", 1),
            1,
            TABLE_PROT,
        ),
    ]
    unknown = [name for _, name, *_ in rows if state.symbol(name) is None]
    if unknown:
        raise UsageError(f"the address of {unknown[0]} is not known: give --system-map")
    found = [
        (vpn, state.symbol_pfn(name) or 0, nr, 1, level, flags)
        for vpn, name, nr, level, flags in rows
    ]
    if state.early_table is not None:
        found.append((EARLY_IOREMAP >> PAGE_SHIFT, state.early_table, 1, 1, 1, TABLE_PROT))
    return make_runs(found)


def initial_l1(state: BootState, first: int, end: int) -> Runs:
    """Xen's L1 tables of slots [first, end) of the kernel's first GiB."""
    start = START_KERNEL_MAP >> PAGE_SHIFT
    tables = state.domain.initial.tables
    found = tables_of(tables, start + first * ENTRIES, start + end * ENTRIES)
    l1: Runs = found[found["level"] == 1]
    return l1


def _fill_static_tables(state: BootState, hc: Hypercalls, *, grafted: bool) -> None:
    """What the tables hold when they are made read-only, as Linux stores it itself.

    The entries that lead from one to the other; in both L2 tables of RAM those of Xen's L2 page;
    and the root's entry that leads to the list.
    """
    tables = expand(static_tables(state), tables=True)
    frame = {
        (int(row["level"]), int(row["vpn"]) >> (TABLE_SHIFT * int(row["level"]))): int(row["pfn"])
        for row in tables
    }
    root = frame[LEVELS, 0]
    for row in tables[tables["level"] < LEVELS]:
        level, vpn = int(row["level"]) + 1, int(row["vpn"])
        parent = root if level == LEVELS else frame[level, vpn >> (TABLE_SHIFT * level)]
        hc.store(parent, table_slot(vpn << PAGE_SHIFT, level), int(row["pfn"]), int(row["flags"]))
    l1 = initial_l1(state, 0, ENTRIES)
    slots = (column(l1, "vpn") - (START_KERNEL_MAP >> PAGE_SHIFT)) // ENTRIES
    for name, more in (("ident", PTE_NX * state.rules.nx_ident_map), ("kernel", 0)):
        table = state.symbol_pfn(f"level2_{name}_pgt")
        for slot, row in zip(slots.tolist(), l1, strict=True):
            pfn, nr, step = int(row["pfn"]), int(row["nr"]), int(row["step"])
            hc.store(table, slot, pfn, int(row["flags"]) | more, nr=nr, step=step)
    if grafted:
        mfn_list = int(state.domain.plan.mfn_list)
        vpn = mfn_list >> PAGE_SHIFT
        above = expand(tables_of(state.domain.address_space.tables, vpn, vpn + 1), tables=True)
        (l3,) = above[above["level"] == 3]
        hc.store(root, table_slot(mfn_list, LEVELS), int(l3["pfn"]), int(l3["flags"]))


def cleanup_highmap(state: BootState, hc: Hypercalls) -> BootState:
    """Drop the 2 MiB slots of the kernel's mapping outside [_text, _brk_end).

    Its hypercalls (11 set_pmd for the default kernel) are in no stage: `hc` is one aside. Up to
    max_pfn_mapped only: a list inside the mapping is left for xen_cleanhighmap(). Models
    arch/x86/mm/init_64.c.
    """
    first = -(-(state.text - START_KERNEL_MAP) // PMD_SIZE)
    last = (round_up(state.brk_end, PMD_SIZE) - 1 - START_KERNEL_MAP) // PMD_SIZE
    end = (state.max_pfn_mapped << PAGE_SHIFT) // PMD_SIZE
    kept = Regions.of([(first, last + 1), (end, max(end, ENTRIES))])
    dropped = Regions.of([(0, ENTRIES)]) - kept
    for start, stop in state.highmap - (state.highmap - dropped):
        hc.mmu_update(2, state.symbol_pfn("level2_kernel_pgt"), start, None, 0, nr=stop - start)
    return replace(state, highmap=state.highmap - dropped)


def clean_highmap(
    state: BootState, hc: Hypercalls, vaddr: int, last: int
) -> tuple[BootState, Cost]:
    """xen_cleanhighmap(): drop the 2 MiB slots of the kernel's mapping from `vaddr` to `last`.

    Both ends are included, and the addresses keep the offset of `vaddr` in its slot.
    """
    first = table_slot(vaddr, 2)
    nr = min((last - vaddr) // PMD_SIZE + 1, state.rules.cleanup.highmap_entries - first)
    kernel_last = round_up(state.brk_end, PMD_SIZE) - 1
    highmap = state.highmap
    for start, end in highmap.clip(first, first + nr):
        for slot in range(start, end):
            at = vaddr + (slot - first) * PMD_SIZE
            if at < state.text or at > kernel_last:
                with hc.optional("mmu_update"):
                    hc.mmu_update(2, state.symbol_pfn("level2_kernel_pgt"), slot, None, 0)
                    highmap = highmap.remove(slot, slot + 1)
    read = {"l1": 0, "l2": nr, "l3": 0, "l4": 0}
    return replace(state, highmap=highmap), Cost(entries_read=read)


def static_frames(state: BootState) -> list[tuple[int, int]]:
    """Frames of Linux's static tables that are now read-only, as far as symbols are known."""
    frames = []
    alone = (("level3_user_vsyscall", 1),) if state.rules.pin_user_vsyscall else ()
    for name, nr in (*state.rules.ro_tables, *alone):
        pfn = state.symbol_pfn(name)
        if pfn is not None:
            frames.append((pfn, pfn + nr))
    return frames


def _recover_pages(state: BootState, hc: Hypercalls) -> int:
    """check_pt_base() for Xen's L4, L3 and L2: those that begin the area in this order go back."""
    pt_start = state.pt_pfns[0]
    nr = 0
    for pfn in xen_table_pfns(state):
        if pfn == pt_start + nr:
            if pfn >= ENTRIES**2:
                raise LinuxPanic(_BEYOND_FIRST_GIB)
            vaddr = START_KERNEL_MAP + (pfn << PAGE_SHIFT)
            if not state.rules.auto_translated:
                hc.update_va_mapping(vaddr, pfn, PAGE_KERNEL, uvmf=UVMF_INVLPG)
                hc.clear_page(pfn)
            nr += 1
    return nr


def xen_table_pfns(state: BootState) -> list[int]:
    """Frames of Xen's L4, L3 and L2 table of the start of the kernel's mapping, in this order."""
    pfns = (_table_pfn(state.domain.initial.tables, level) for level in (4, 3, 2))
    return [pfn for pfn in pfns if pfn is not None]


def _table_pfn(tables: Runs, level: int) -> int | None:
    """Frame of the table of `level` that covers the start of the kernel's mapping."""
    vpn = START_KERNEL_MAP >> PAGE_SHIFT
    size = ENTRIES**level
    for row in tables[tables["level"] == level]:
        i = (vpn - int(row["vpn"])) // size if level < LEVELS else 0
        if 0 <= i < int(row["nr"]):
            return int(row["pfn"]) + i * int(row["step"])
    return None


def _set_page_prot(
    state: BootState, hc: Hypercalls, name: str, flags: int, *, page: int = 0
) -> None:
    vaddr, pfn = state.symbol(name), state.symbol_pfn(name)
    if vaddr is not None and pfn is not None:
        vaddr, pfn = vaddr + page * PAGE_SIZE, pfn + page
    hc.update_va_mapping(vaddr, pfn, flags)
