# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults that strike while Linux boots: out of memory, refused hypercalls, holes, e820 conflicts.

Numbers are of a dom0 of 1 GiB with the default kernel: Xen's mapping of 76 MiB has 38 L1 tables,
so that the direct map needs 512 - 38 = 474 more.
"""

from dataclasses import replace

import pytest

from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.faults import (
    FALLBACK,
    LEAK,
    PANIC,
    UNNOTICED,
    Conflict,
    Hole,
    OutOfMemory,
    Refused,
)
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import SEED, V4_1, V4_3, V6_1, Boot, Stage
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

GIB = 1 << 18  # pages
DIES = "Hardware Dom0 halted: halting machine"
NO_PAGE = "Kernel panic - not syncing: alloc_p2m_page: Failed to allocate 4096 bytes align=0x1000"
NO_TABLE = "Kernel panic - not syncing: set_pte_phys: cannot allocate page data"
NO_LOW_PAGE = "Kernel panic - not syncing: alloc_low_pages: can not alloc memory"
CLOSED = "kernel BUG in extend_brk(): the brk area is closed"
HOLE_BEHIND = (Ram(0, 0x9FC00), Ram(1 << 20, 1 << 40))


def domain(nr_pages=GIB, *, initrd_bytes=None, leaf="1g"):
    host = Host(superpages=leaf)
    return build(plan_dom0(default_kernel(), host, nr_pages=nr_pages, initrd_bytes=initrd_bytes))


def booted(*faults, nr_pages=GIB, rules=V6_1, built=None, **boot):
    built = built or domain(nr_pages)
    return Boot(built, rules=rules, faults=faults, check=False, **boot).run()


def only(boot):
    (outcome,) = boot.faults
    return outcome


# --- Out of memory -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nth", "stage", "panic"),
    [
        # The 2 MiB block to begin with; 16 tables come from the brk area, 458 from memblock.
        (1, Stage.INIT_MEM_MAPPING, CLOSED),
        (2, Stage.INIT_MEM_MAPPING, CLOSED),
        (459, Stage.INIT_MEM_MAPPING, CLOSED),
        # 8 sections: one block, L3, L2, L1 tables of each; the struct page of pfn 1 is the first.
        (460, Stage.PAGING_INIT, "BUG: unable to handle page fault for address: ffffea0000000040"),
        (463, Stage.PAGING_INIT, "BUG: unable to handle page fault for address: ffffea0000000040"),
        (464, Stage.PAGING_INIT, "BUG: unable to handle page fault for address: ffffea0000200000"),
        (470, Stage.PAGING_INIT, "BUG: unable to handle page fault for address: ffffea0000e00000"),
        # Two fillers, their tables, the first page; L3, L2, L1 table; 511 pages more.
        (471, Stage.P2M_COPIED, NO_PAGE),
        (475, Stage.P2M_COPIED, NO_PAGE),
        (476, Stage.P2M_COPIED, NO_TABLE),
        (478, Stage.P2M_COPIED, NO_TABLE),
        (479, Stage.P2M_COPIED, NO_PAGE),
        (989, Stage.P2M_COPIED, NO_PAGE),
    ],
)
def test_linux_runs_out_of_memory_at_each_of_its_requests(nth, stage, panic):
    boot = booted(OutOfMemory("linux", nth))
    assert boot.panic == panic
    assert (only(boot).where, only(boot).end, only(boot).text) == (stage.value, PANIC, panic)
    assert len(boot.results) == list(Stage).index(stage)


def test_a_range_that_holds_the_page_table_buffer_does_not_turn_to_the_brk_area():
    """160 MB: behind the first table all is one range, with 15 pages of the buffer in it."""
    assert booted(OutOfMemory("linux", 2), nr_pages=40_000).panic == NO_LOW_PAGE


def test_memory_that_runs_out_behind_the_last_request_strikes_nobody():
    boot = booted(OutOfMemory("linux", 990))
    assert (boot.verdict, only(boot).end) == ("boots", None)
    assert only(boot).text == "Linux's stages ask memblock 989 times"


def test_a_table_of_the_list_among_many_blocks_is_named_where_it_is_missing():
    """2 GiB: two L1 tables of the list; of the second the page before it is there."""
    asked = booted(nr_pages=2 * GIB).state.memblock.requests
    # Behind the second block's first page and table there are 511 pages.
    for nth, panic in ((asked - 512, NO_PAGE), (asked - 511, NO_TABLE), (asked - 510, NO_PAGE)):
        assert booted(OutOfMemory("linux", nth), nr_pages=2 * GIB).panic == panic


@pytest.mark.parametrize(
    ("nth", "panic"),
    [
        # 6 tables from the brk area; 468 pages and the block from memblock, then as above.
        (1, NO_LOW_PAGE),
        (469, NO_LOW_PAGE),
        (470, "Failed to allocate 16777216 bytes align=0x200000 nid=0 from=0x1000000 max_addr=0x0"),
        (471, "Failed to allocate 4096 bytes align=0x1000 nid=0 from=0x1000000 max_addr=0x0"),
        (481, "Out of memory"),
        (486, "Out of memory"),
    ],
)  # fmt: skip
def test_v4_3_gives_up_in_other_words(nth, panic):
    assert booted(OutOfMemory("linux", nth), rules=V4_3).panic.endswith(panic)


def test_without_anything_mapped_v4_3_says_that_memory_ran_out():
    rules = replace(V4_3, pgt_buf_pages=0)
    panic = booted(OutOfMemory("linux", 2), rules=rules).panic
    assert panic == "Kernel panic - not syncing: alloc_low_pages: ran out of memory"


def test_v4_1_dies_before_it_asks_for_memory():
    outcome = only(booted(OutOfMemory("linux", 1), rules=V4_1))
    assert (outcome.end, outcome.text) == (None, "the boot ends before")


# --- Refused hypercalls ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nth", "function"),
    [(1, "set_page_prot_flags"), (8, "set_page_prot_flags"), (9, "pin_pagetable_pfn"),
     (10, "pin_pagetable_pfn"), (11, "set_page_prot_flags"), (12, "pin_pagetable_pfn"),
     (13, "set_page_prot_flags"), (14, "set_page_prot_flags"), (15, "xen_memory_setup")],
)  # fmt: skip
def test_a_refused_call_of_the_take_over_is_a_bug(nth, function):
    """SPEC F2: 8 x read-only, pin, unpin, read-only, pin, new base, writable; then the map.

    The new base only warns, but then Xen's L4 table is in use, and cannot be made writable.
    """
    boot = booted(Refused(nth))
    assert boot.panic.startswith(f"kernel BUG in {function}(): ")
    assert only(boot).end == PANIC


def test_without_xen_s_answer_linux_takes_its_own_limit():
    """xen_get_max_pages(); a map of 1 TiB has room for ten times 1 GiB beyond it."""
    e820 = [Ram(0, 1 << 40)]
    boot = booted(Refused(2, "memory_op"), e820=e820, max_reservation=GIB)
    outcome, plain = only(boot), booted(e820=e820, max_reservation=GIB)
    assert (outcome.end, outcome.where) == (FALLBACK, "memory_setup")
    assert plain.state.extra.size == 0
    assert boot.state.extra.size == 10 * GIB
    assert [r.cost.by_type["memory_op"] for r in (boot.results[1], plain.results[1])] == [2, 2]


def test_frames_that_xen_does_not_take_back_are_lost():
    """97 pages between 0x9fc00 and 1 MiB have no other place; the 50th is refused."""
    e820 = [Ram(0, 0x9FC00), Ram(1 << 20, 1 << 30)]
    boot = booted(Refused(52, "memory_op"), e820=e820)
    outcome, cost = only(boot), boot.results[1].cost
    assert (outcome.end, outcome.where) == (LEAK, "memory_setup")
    assert cost.by_type["memory_op"] == 2 + 50
    assert cost.pages_leaked == 97 - 49
    assert "Failed to release pfn d0" in outcome.text  # 0x9f + 49
    assert outcome.text.endswith("lost, 48 pages")


def test_nobody_looks_whether_a_hole_was_unmapped():
    e820 = [Ram(0, 0x9FC00), Ram(1 << 20, 1 << 30)]
    boot = booted(Refused(2 + 97 + 1, "memory_setup"), e820=e820)
    assert (boot.verdict, only(boot).end) == ("boots", UNNOTICED)
    assert boot.results[1].cost == booted(e820=e820).results[1].cost


def hook(boot, level, slot):
    """Number of the call of init_mem_mapping() that sets an entry of a table of `level`."""
    (calls,) = (r.calls for r in boot.results if r.name == "init_mem_mapping")
    singles = [call for calls_ in calls for call in calls_.each()]
    return 1 + next(
        i
        for i, call in enumerate(singles)
        if call.op == "mmu_update" and (call.level, call.slot) == (level, slot) and call.pfn
    )


def test_a_table_that_is_not_hooked_in_kills_who_allocates_behind_it():
    """The 2 MiB that are mapped first, slot 511, have the next tables."""
    built = domain()
    nth = hook(booted(built=built, record=True), 2, 511)
    boot = booted(Refused(nth, "init_mem_mapping"), built=built)
    assert (boot.panic, only(boot).end) == (DIES, PANIC)
    assert len(boot.results) == 2


def test_a_table_that_is_not_hooked_in_where_nobody_allocates_is_a_warning():
    """Slot 64 maps pfns 0x8000 to 0x8200: 512 of the list's 514 pages, which nobody looks up."""
    built = domain()
    nth = hook(booted(built=built, record=True), 2, 64)
    for record in (False, True):
        boot = booted(Refused(nth, "init_mem_mapping"), built=built, record=record)
        assert (boot.verdict, only(boot).end) == ("boots", UNNOTICED)
        assert "512 pages of RAM from pfn 0x8000 on are not mapped" in only(boot).text
        assert boot.cleanup.cost.by_type["update_va_mapping"] == 2
        assert boot.cleanup.cost.pages_freed == 514


@pytest.mark.parametrize(
    ("nth", "panic"),
    [
        (1, "kernel BUG in make_lowmem_page_readonly(): Xen refuses update_va_mapping"),
        (2, "BUG: unable to handle page fault for address: ffffea0000000040"),
        (6, "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"),
        (8, "BUG: unable to handle page fault for address: ffffea0000000040"),
        (10, "BUG: unable to handle page fault for address: ffffea0000002000"),
    ],
)
def test_struct_pages_that_are_not_mapped_fault_at_once(nth, panic):
    """L3 and L2 table: read-only, hooked in; L1: read-only, pinned, hooked in; then an entry for
    the struct pages of every 64 pfns, of which pfn 0 is no RAM.
    """
    boot = booted(Refused(nth, "paging_init"))
    assert (boot.panic, only(boot).where) == (panic, "paging_init")


def test_struct_pages_of_no_ram_may_be_missing():
    """1 GiB and 64 MiB: the last section is RAM only in its first half. 9 x (3 + 512) + 4 calls."""
    boot = booted(Refused(9 * 515 + 4, "paging_init"), nr_pages=GIB + (1 << 14))
    assert (boot.verdict, only(boot).end) == ("boots", UNNOTICED)


@pytest.mark.parametrize(
    ("nth", "end", "text"),
    [
        (1, PANIC, "kernel BUG in xen_mc_flush(): Xen refuses multicall"),
        (2, UNNOTICED, "P->M entries of holes"),  # the table of missing entries, which nobody uses
        (5, UNNOTICED, "P->M entries of holes"),  # that of identity entries
        (1030, UNNOTICED, "P->M entries of holes"),  # the last entry of the two
        (1031, PANIC, "BUG: unable to handle page fault for address: ffffc90000000000"),  # L3, RO
        (1039, PANIC, "BUG: unable to handle page fault for address: ffffc90000000000"),  # page 0
        (1040, PANIC, "BUG: unable to handle page fault for address: ffffc90000001000"),  # page 1
    ],
)
def test_entries_of_the_copied_list_that_are_not_set(nth, end, text):
    """2 x (multicall of read-only, pin); 2 x 512 entries; L3, L2: read-only, hooked in; L1: a
    multicall of two, hooked in; then the pages.
    """
    outcome = only(booted(Refused(nth, "vmalloc_p2m_tree")))
    assert (outcome.end, outcome.where) == (end, "vmalloc_p2m_tree")
    assert outcome.text.startswith(text)


@pytest.mark.parametrize(
    ("nth", "why"),
    [
        (1, "Xen refuses update_va_mapping"),
        (512, "Xen refuses update_va_mapping"),
        (513, "the page is still a page table"),
        (514, "Xen refuses update_va_mapping"),
        (515, "the page is still a page table"),
        (516, "Xen refuses update_va_mapping"),
    ],
)
def test_freeing_the_list_ends_with_any_refusal(nth, why):
    """One leaf of 2 MiB; L2 table: its entry, itself; L3 table likewise."""
    boot = booted(Refused(nth, "p2m_free"))
    assert boot.panic == f"kernel BUG in make_lowmem_page_readwrite(): {why}"
    assert booted(Refused(517, "p2m_free")).verdict == "boots"


def test_a_list_inside_leaves_a_stale_entry():
    """xen_cleanhighmap() only warns: one of its 2 MiB entries stays, and shows as such."""
    built = build(plan_dom0(replace(default_kernel(), init_p2m=None), Host(), nr_pages=8 * GIB))
    plain, boot = booted(built=built), booted(Refused(1, "p2m_free"), built=built)
    assert only(boot).end == UNNOTICED
    assert boot.state.highmap.size == plain.state.highmap.size + 1
    assert boot.cleanup.cost.hypercalls == plain.cleanup.cost.hypercalls
    assert boot.cleanup.set_entries["l2"] == plain.cleanup.set_entries["l2"] - 1


@pytest.mark.parametrize(
    ("nth", "function"),
    [(1, "set_pte_mfn"), (2, "xen_update_mem_tables"), (3, "xen_update_mem_tables"),
     (2 + 2 * 97, "set_pte_mfn")],
)  # fmt: skip
def test_moving_the_frames_of_holes_ends_with_any_refusal(nth, function):
    """One group of 97: its page, M2P entry and mapping of each, the buffer's own page again."""
    boot = booted(Refused(nth, "remap_memory"), e820=HOLE_BEHIND)
    assert boot.panic.startswith(f"kernel BUG in {function}(): ")


def test_calls_are_counted_over_the_stages_or_by_type():
    assert only(booted(Refused(14))).where == "setup_kernel_pagetable"
    assert only(booted(Refused(16))).where == "memory_setup"
    assert only(booted(Refused(6, "mmuext_op"))).where == "init_mem_mapping"  # behind 4 of F2
    total = sum(r.cost.hypercalls for r in booted().results)
    inside = 2 * sum(r.cost.by_type["multicall"] for r in booted().results)
    outcome = only(booted(Refused(total + inside + 1)))
    assert (outcome.end, outcome.text) == (None, f"{total + inside:,} such calls are made")


@pytest.mark.parametrize(
    ("nth", "end", "text"),
    [
        (3, PANIC, DIES),  # the L3 table is mapped, to be filled
        (4, UNNOTICED, "xen_mc_flush() warns and goes on: the TLB may keep"),
        (9, PANIC, "kernel BUG in pin_pagetable_pfn(): the table is still mapped writable"),
        (11, PANIC, "kernel BUG in make_lowmem_page_readonly(): Xen refuses update_va_mapping"),
        (12, PANIC, "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"),
        (17, PANIC, "kernel BUG in pin_pagetable_pfn(): the table is still mapped writable"),
        (21, PANIC, DIES),  # set_pgd() of the new list, which is then written
        (22, PANIC, DIES),  # a table of the old list is mapped, to be read
        (24, UNNOTICED, "an early mapping stays until its slot is used again"),
        (34, UNNOTICED, "xen_mc_flush() warns and goes on: the old P->M list stays mapped"),
    ],
)
def test_moving_the_list_ends_with_most_refusals(nth, end, text):
    """Two memory_op; L3, L2, L1 mapped (set_pte, INVLPG); each unmapped (two calls), read-only,
    pinned; set_pgd; three tables on the way mapped and unmapped; the old set_pgd(0).
    """
    conflict, refused = booted(Conflict("list"), Refused(nth, "memory_setup")).faults
    assert (refused.end, refused.where) == (end, "memory_setup")
    assert refused.text.startswith(text)
    assert (conflict.end == FALLBACK) is (end == UNNOTICED)


@pytest.mark.parametrize(
    ("start", "function", "where"),
    [
        (0x8000000, "set_pte_mfn", "memory_setup"),  # the hole begins with the list's L3 table
        (0x7FFF000, "xen_update_mem_tables", "remap_memory"),  # one page earlier
    ],
)
def test_tables_of_an_old_list_that_stay_in_use_cannot_become_ram_elsewhere(start, function, where):
    faults = (Conflict(None, start, 0x8202000), Refused(34, "memory_setup"))
    boot = booted(*faults, e820=[Ram(0, 1 << 40)])
    assert boot.panic == f"kernel BUG in {function}(): the old list's tables are still in use"
    assert (boot.faults[1].where, boot.faults[1].end) == (where, PANIC)


# --- Holes in the list -------------------------------------------------------------------------


def test_pages_that_xen_mapped_stay_mapped():
    boot = booted(Hole(0x4C00 - 3, 10))  # Xen's mapping ends at pfn 0x4c00
    assert only(boot).text == (
        "7 pages not in the direct map: a page fault at the first use; "
        "3 pages that Xen mapped, whose frames Linux does not know"
    )
    assert only(booted(Hole(0x10))).text == (
        "1 page that Xen mapped, whose frames Linux does not know"
    )


def test_a_page_of_missing_entries_is_not_copied_but_shared():
    """One page and one request less; the entry is set all the same (SPEC F5)."""
    plain, boot = booted(), booted(Hole(0x10000, 512))
    copied = [b.results[4].cost.by_type for b in (plain, boot)]
    assert copied[0] == copied[1]
    assert boot.state.memblock.requests == plain.state.memblock.requests - 1
    assert (only(boot).end, boot.verdict) == (UNNOTICED, "boots")
    assert only(boot).text.startswith("512 pages not in the direct map")


def test_a_whole_block_of_missing_entries_is_one_entry():
    """4 GiB, 512 entries and a table (multicall, set_pmd) less, one set_pmd more."""
    plain, boot = booted(nr_pages=4 * GIB), booted(Hole(0x40000, GIB), nr_pages=4 * GIB)
    before, after = (b.results[4].cost.by_type for b in (plain, boot))
    assert before["multicall"] - after["multicall"] == 1
    assert before["mmu_update"] - after["mmu_update"] == 512
    assert plain.state.memblock.requests - boot.state.memblock.requests == 513


def test_a_hole_where_the_first_tables_come_from_ends_the_boot():
    boot = booted(Hole(GIB - 512, 512))
    assert (boot.panic, only(boot).where) == (DIES, "init_mem_mapping")


def test_pages_of_the_list_that_it_does_not_name_are_lost():
    """In 4 KiB leaves the L3, L2 and L1 tables are pfns 0x8000 to 0x8002, then data."""
    built = domain(leaf="4k")
    boot = booted(Hole(0x8010, 4), built=built)
    assert (only(boot).end, only(boot).where) == (LEAK, "p2m_free")
    assert boot.cleanup.cost.pages_leaked == 4
    assert boot.cleanup.cost.pages_freed == 512 + 3 - 4
    assert boot.bugs == []
    held = boot.state.memblock.reserved
    assert held.clip(0x8000 << 12, 0x8203 << 12).ranges == ((0x8010 << 12, 0x8014 << 12),)
    assert not held.meets(0, 4096)  # page 0 is freed in their place


def test_tables_of_the_list_lie_between_its_pages():
    """2 GiB in 4 KiB leaves: L3, L2, L1, 512 pages, L1 at 0x8000 + 515, 512 pages."""
    built = domain(2 * GIB, leaf="4k")
    boot = booted(Hole(0x8000 + 513, 2), built=built)
    assert boot.cleanup.cost.pages_leaked == 2
    assert boot.cleanup.cost.pages_freed == 1024 + 4 - 2
    with pytest.raises(UsageError, match="frames of the list's own tables"):
        booted(Hole(0x8000 + 515), built=built)


@pytest.mark.parametrize(
    ("symbol", "panic"),
    [
        ("init_top_pgt", "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"),
        ("level3_user_vsyscall", "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"),
        ("level3_kernel_pgt", DIES),
    ],
)
def test_linux_needs_the_frames_of_its_own_tables(symbol, panic):
    pfn = default_kernel().symbols[symbol] - 0xFFFF_FFFF_8000_0000 >> 12
    boot = booted(Hole(pfn))
    assert (boot.panic, only(boot).where) == (panic, "setup_kernel_pagetable")


def test_linux_needs_the_frames_of_xen_s_upper_tables():
    """dom0's begin with L4, L1, L2, L3 at pfn 0x4a01 (SPEC B7); L1 tables are not followed."""
    pin = "kernel BUG in pin_pagetable_pfn(): Xen refuses mmuext_op"
    for pfn, panic in ((0x4A01, pin), (0x4A02, None), (0x4A03, DIES), (0x4A04, DIES)):
        assert booted(Hole(pfn)).panic == panic


def test_frames_of_an_e820_hole_that_the_list_does_not_name_cannot_move():
    """[0x9f, 0x100) move as one group, which is noted in its first frame."""
    bug = "kernel BUG in {}(): Xen refuses {}"
    boot = booted(Hole(0x9F), e820=HOLE_BEHIND)
    assert boot.panic == bug.format("set_pte_mfn", "update_va_mapping")
    assert only(boot).where == "memory_setup"
    boot = booted(Hole(0xA0), e820=HOLE_BEHIND)
    assert boot.panic == bug.format("xen_update_mem_tables", "mmu_update")
    assert only(boot).where == "remap_memory"


@pytest.mark.parametrize(
    ("hole", "rules", "why"),
    [
        (Hole(GIB - 1, 2), V6_1, "the domain has the pfns 0 to 0x3ffff"),
        (Hole(0x8000), V6_1, "frames of the list's own tables or large leaves"),
        (Hole(0x1000), SEED, "where init_level4_pgt is in the kernel is not known"),
    ],
)
def test_holes_that_cannot_be_followed_are_refused(hole, rules, why):
    with pytest.raises(UsageError, match=f"^--fault {hole}: {why}"):
        booted(hole, rules=rules)


# --- E820 conflicts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "panic"),
    [
        ("kernel", "Xen hypervisor allocated kernel memory conflicts with E820 map"),
        ("tables", "Xen hypervisor allocated page table memory conflicts with E820 map"),
    ],
)
def test_what_cannot_move_ends_the_boot(place, panic):
    boot = booted(Conflict(place))
    assert boot.panic == panic
    assert (only(boot).where, only(boot).end, only(boot).text) == ("memory_setup", PANIC, panic)


def test_list_and_initrd_move():
    boot = booted(Conflict("list"))
    assert (boot.verdict, only(boot).end) == ("boots", FALLBACK)
    assert only(boot).text == "the P->M list moves to pfn 0x10"  # behind the 64 KiB kept below
    assert boot.results[5].cost.pages_freed == 512 + 1 + 1 + 1  # data, L1, L2, L3 of its own
    built = domain(initrd_bytes=8192)
    boot = booted(Conflict("initrd"), built=built)
    assert only(boot).text == "the initrd moves to 0x10000"


def test_a_list_without_room_to_move_to_ends_the_boot():
    """8 GiB: 16 MiB of list at 0x8000000; the 6 MiB between brk area and start_info are no room."""
    e820 = [Ram(0, 0x10000), Ram(0x1000000, 0x4A2B000), Ram(0x8000000, 0x9002000)]
    boot = booted(Conflict("list"), nr_pages=8 * GIB, e820=e820)
    assert boot.panic == "Can't find new memory area for p2m needed due to E820 map conflict"
    assert only(boot).end == PANIC


def test_start_info_in_a_hole_is_gone_for_those_who_unmap_holes():
    boot = booted(Conflict("start_info"))
    assert (boot.panic, only(boot).where) == (DIES, "init_mem_mapping")
    boot = booted(Conflict("start_info"), rules=V4_3)
    assert (boot.verdict, only(boot).end) == ("boots", UNNOTICED)


def test_before_v4_3_nobody_looks():
    for place, nr in (("list", 514), ("tables", 41)):
        boot = booted(Conflict(place), rules=SEED, e820=[Ram(0, 1 << 40)])
        assert (boot.verdict, only(boot).end) == ("boots", UNNOTICED)
        assert only(boot).text.startswith(f"{nr:,} frames of the hole move to RAM elsewhere")
        assert boot.bugs[0].id == "H3"


def test_before_v4_3_the_kernel_s_pages_are_exchanged_under_its_feet():
    """They are mapped to the host's frames of the same numbers; later ones look before."""
    boot = booted(Conflict("kernel"), rules=SEED)
    assert (boot.panic, only(boot).where, only(boot).end) == (DIES, "memory_setup", PANIC)
    guest = build_domu(plan_domu(default_kernel(), Host(), nr_pages=GIB))  # has no such rights
    boot = booted(Conflict("kernel"), rules=SEED, built=guest)
    assert (boot.panic, only(boot).end) == (None, UNNOTICED)
    assert only(boot).text.endswith("while the kernel stays mapped to them")


def test_a_hole_of_no_frames_changes_the_map_alone():
    boot = booted(Conflict(None, 2 << 30, 3 << 30), e820=[Ram(0, 4 << 30)])
    assert only(boot).text == "262,144 pages less of RAM, none of which the domain has yet"
    boot = booted(Conflict(None, 2 << 30, 3 << 30))
    assert only(boot).end is None


def test_a_place_that_a_guest_does_not_have_is_refused():
    with pytest.raises(UsageError, match=r"^--fault e820=initrd: this guest has no initrd"):
        booted(Conflict("initrd"))


def test_two_faults_are_both_spoken_of():
    boot = booted(Hole(0x10000, 512), Refused(2, "memory_op"), OutOfMemory("linux", 10**6))
    assert [outcome.end for outcome in boot.faults] == [UNNOTICED, FALLBACK, None]
