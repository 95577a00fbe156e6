# SPDX-License-Identifier: GPL-2.0-or-later
"""Boots of any size: the closed forms of SPEC F2 to F5, the JSON object, and where Linux stops."""

from dataclasses import replace

import pytest

from xenpt.cost import HYPERCALL_TYPES
from xenpt.domuplan import plan_domu
from xenpt.errors import PanicError, UsageError
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, SEED, V4_1, V4_3, V6_1, V6_12, Boot, Stage, free_initial_p2m
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import Domain, build
from xenpt.xen.domu import build_domu

GIB = 1 << 18  # pages


def domain(nr_pages, **kernel):
    return build(plan_dom0(replace(default_kernel(), **kernel), Host(), nr_pages=nr_pages))


def costs(nr_pages, rules=V6_1, **boot):
    results = Boot(domain(nr_pages), rules=rules, check=False, **boot).run().results
    return {result.name: result.cost for result in results}


def test_stages_have_their_names_and_order():
    assert [r.name for r in Boot(domain(GIB // 4)).run().results] == [
        "setup_kernel_pagetable",
        "memory_setup",
        "init_mem_mapping",
        "paging_init",
        "vmalloc_p2m_tree",
        "p2m_free",
        "remap_memory",
    ]


def guest(nr_pages):
    return build_domu(plan_domu(default_kernel(), Host(), nr_pages=nr_pages))


@pytest.mark.parametrize("rules, dom0, domu", [(SEED, 12, 14), (V4_3, 12, 14), (V6_1, 14, 16)])
def test_taking_over_the_page_tables(rules, dom0, domu):
    """SPEC F2: the root page alone goes back; of a guest of the toolstack L3 and L2, too."""
    assert costs(GIB, rules)["setup_kernel_pagetable"].hypercalls == dom0
    taken = Boot(guest(GIB), rules=rules).run_to(Stage.SETUP_KERNEL_PAGETABLE).results[0].cost
    assert taken.hypercalls == domu


def test_taking_over_the_page_tables_on_v4_1():
    """A list inside the kernel's mapping: what is mapped ends where it starts."""
    boot = Boot(domain(GIB, init_p2m=None), rules=V4_1).run_to(Stage.SETUP_KERNEL_PAGETABLE)
    assert boot.results[0].cost.hypercalls == 12
    assert boot.state.max_pfn_mapped == 0x4A00000 >> 12
    assert boot.run().verdict == "boots"


@pytest.mark.parametrize("rules", PROFILES.values(), ids=PROFILES)
def test_start_info_and_a_list_inside_are_reserved_in_every_generation(rules):
    """1 GiB: 512 pages of list from 0x4a00000 on, start_info; then Xen's root page, given back."""
    state = Boot(domain(GIB, init_p2m=None), rules=rules).run_to(Stage.MEMORY_SETUP).state
    held = state.memblock.reserved.clip(0x4A00000, 0x4A00000 + (514 << 12))
    assert held.size == 513 << 12


@pytest.mark.parametrize("rules, pages", [(SEED, 1), (V4_3, 3), (V6_1, 3)])
def test_store_and_console_pages_of_a_guest_are_reserved_since_v4_3(rules, pages):
    """They lie behind start_info, before the page tables."""
    state = Boot(guest(GIB), rules=rules).run_to(Stage.MEMORY_SETUP).state
    first = 0x4A00000
    assert state.memblock.reserved.clip(first, first + 0x3000).size == pages << 12


@pytest.mark.parametrize("rules, gib", [(SEED, 500), (V4_3, 512), (V6_1, 512)])
def test_a_guest_of_the_toolstack_uses_512_gib_at_most(rules, gib):
    """xen_512gb_limit of v4.3 and later; MAX_DOMAIN_PAGES before."""
    state = Boot(guest(520 * GIB), rules=rules).run_to(Stage.MEMORY_SETUP).state
    assert state.max_pfn == gib * GIB


@pytest.mark.parametrize(
    "rules, kinds",
    [(V4_3, {"usable", "reserved", "unusable"}), (V6_1, {"usable", "reserved"})],
)
def test_ram_that_no_balloon_reaches_is_unusable_or_dropped(rules, kinds):
    """SPEC H13: a dom0 of 1 GiB that may have 2 GiB of a host of 8."""
    boot = Boot(domain(GIB), rules=rules, e820=[Ram(0, 8 << 30)], max_reservation=2 * GIB)
    table = boot.run_to(Stage.MEMORY_SETUP).state.linux_e820
    assert {entry.type for entry in table} == kinds
    assert max(entry.end for entry in table if entry.type == "usable") == 2 << 30


def test_v6_12_keeps_no_ram_between_512_kib_and_1_mib():
    memory = Boot(domain(GIB), rules=V6_12).run_to(Stage.MEMORY_SETUP).state.memblock.memory
    assert memory.ranges[0] == (0x1000, 0x80000)


@pytest.mark.parametrize("rules, asks", [(SEED, True), (V4_3, True), (V6_1, False)])
def test_a_list_is_not_made_read_only_where_tables_may_be_writable(rules, asks):
    """SPEC F4: the mail and v4.3 ask for XENFEAT_writable_page_tables, later ones do not."""
    rules = replace(rules, writable_page_tables=True)
    state = Boot(domain(GIB), rules=rules).run_to(Stage.INIT_MEM_MAPPING).state
    assert state.ro_frames.meets(*state.p2m_frames) is not asks


@pytest.mark.parametrize("rules, first", [(V4_3, 0x7FF0), (V6_1, 0x8810)])
def test_v4_3_may_find_the_pages_of_the_old_list_to_be_free(rules, first):
    """SPEC H12. 4 GiB: list at [0x8000000, 0x8802000), of which a hole takes the last pages.

    Room for 2054 pages is in [0x7ff0000, 0x8800000), if the list there is not reserved.
    """
    e820 = [
        Ram(0x1000000, 0x4A2B000), Ram(0x7FF0000, 0x8800000), Ram(0x8810000, 16 << 30),
    ]  # fmt: skip
    state = Boot(domain(4 * GIB), rules=rules, e820=e820).run_to(Stage.MEMORY_SETUP).state
    assert state.p2m_frames == (first, first + 2054)


def test_v4_3_checks_the_kernel_without_its_brk_area():
    """SPEC H15: the default kernel's __bss_stop is at 0x4400000."""
    e820 = [Ram(0, 0x4400000), Ram(0x4A00000, 8 << 30)]
    assert "kernel memory" in Boot(domain(GIB), e820=e820).run().panic
    assert Boot(domain(GIB), rules=V4_3, e820=e820).run().verdict == "boots"


def test_direct_map_of_1_tib():
    """SPEC F4: 3 calls a new L1 table, 2 an upper one; 38 L1 tables are Xen's; cr3 and flush."""
    cost = costs(1024 * GIB)["init_mem_mapping"]
    nr_l1, nr_upper = 524288 - 38, 1023 + 1
    assert cost.hypercalls == 3 * nr_l1 + 2 * nr_upper + 2
    assert cost.by_type["mmu_update"] == nr_l1 + nr_upper


def test_vmemmap_of_1_tib():
    """SPEC F4b: 8192 sections of 128 MiB; without a hypercall for each entry in the seed."""
    cost = costs(1024 * GIB)["paging_init"]
    assert cost.by_type["mmu_update"] == 513 * 8192 + 16 + 1
    assert cost.by_type["update_va_mapping"] == 8192 + 16 + 1
    assert cost.by_type["mmuext_op"] == 8192
    assert costs(256 * GIB, SEED)["paging_init"].by_type["mmu_update"] == 2048 + 4 + 1


def test_copy_of_the_list_of_1_tib():
    """SPEC F5: a call a page of 512 pfns, two traps a table, 1026 for the fillers."""
    cost = costs(1024 * GIB)["vmalloc_p2m_tree"]
    assert cost.hypercalls == 524288 + 2 * 1024 + 2 * 2 + 2 * 1 + 1026


def test_a_small_domain_maps_fillers_up_to_the_hotplug_limit():
    """512 GiB of pfns are 512 blocks; a domain of 1 GiB has one of its own."""
    assert costs(GIB)["vmalloc_p2m_tree"].by_type["mmu_update"] == 1024 + 512 + 1 + 511 + 2
    rules = replace(V6_1, hotplug_limit_gib=0)
    assert costs(GIB, rules)["vmalloc_p2m_tree"].by_type["mmu_update"] == 1024 + 512 + 1 + 2


def test_a_flat_map_moves_no_frame():
    found = costs(GIB)
    assert found["remap_memory"].hypercalls == 0
    assert found["memory_setup"].by_type["memory_op"] == 2


def test_the_seed_uses_500_gib_of_a_larger_domain_and_says_so():
    """SPEC F3: MAX_DOMAIN_PAGES. The list has all pages; the direct map ends at 500 GiB."""
    boot = Boot(domain(600 * GIB), rules=SEED).run()
    assert boot.state.memblock.memory.ranges[-1][1] == 500 << 30
    [beyond] = boot.as_dict()["beyond"]
    assert beyond["value"] == 131072000
    assert Boot(domain(500 * GIB), rules=SEED).as_dict()["beyond"] == []
    assert Boot(domain(600 * GIB)).as_dict()["beyond"] == []


@pytest.mark.parametrize("rules, panic", [(SEED, True), (V4_3, False), (V6_1, False)])
def test_memory_beyond_the_tree_for_xens_tools_ends_the_seed(rules, panic):
    """alloc_p2m() of 4.1: the tree has 512^3 = 2^27 pages; 600 GiB are pfn 600 << 18.

    dom0 of 1 GiB that may have 2: the GiB for ballooning is RAM of the host at 600 GiB.
    """
    e820 = [Ram(0, 1 << 30), Ram(600 << 30, 700 << 30)]
    boot = Boot(domain(GIB), rules=rules, e820=e820, max_reservation=2 * GIB, check=False).run()
    if panic:
        assert boot.panic.startswith("kernel BUG in p2m_top_index(): pfn 0x9600000 ")
        assert boot.results[-1].name == Stage.PAGING_INIT.value
    else:
        assert boot.verdict == "boots"


def test_a_list_beyond_the_tree_is_not_the_end_of_the_seed():
    """xen_build_mfn_list_list() stops at 2^27 pages since 3.19: it boots, and uses 500 GiB."""
    flat = Boot(domain(600 * GIB), rules=SEED).run()
    assert flat.verdict == "boots"
    assert flat.results[4].cost.entries_written == 600 * GIB


def test_the_copy_ends_with_memory_and_not_with_a_longer_list():
    """A GiB in a hole makes [500, 501) GiB extra memory: the area ends there, or at 512 GiB."""
    e820 = [Ram(0, 3 << 30), Ram(4 << 30, 700 << 30)]
    boot = Boot(domain(600 * GIB), rules=SEED, e820=e820).run()
    assert boot.state.max_p2m_pfn == 512 * GIB
    assert boot.results[4].cost.entries_written == 511 * GIB


def test_entries_behind_the_map_are_identity():
    """A guest of 520 GiB without a map: RAM ends at 512 GiB and 8 MiB, as does what is copied."""
    boot = Boot(guest(520 * GIB), rules=V6_1).run()
    assert boot.results[4].cost.entries_written == 512 * GIB + 2048


@pytest.mark.parametrize("rules", PROFILES.values(), ids=PROFILES)
def test_dom0_takes_unusable_memory_of_the_host_for_ram(rules):
    """xen_ignore_unusable(): Xen has RAM there in its pfns, and refuses identity mappings."""
    e820 = [Ram(0, 512 << 20), Ram(512 << 20, 513 << 20, "unusable"), Ram(513 << 20, 2 << 30)]
    image = {"init_p2m": None} if rules is V4_1 else {}
    boot = Boot(domain(GIB, **image), rules=rules, e820=e820).run_to(Stage.MEMORY_SETUP)
    assert not boot.state.identity.meets(512 << 8, 513 << 8)
    assert boot.state.memblock.memory.clip(1 << 20, 1 << 30).size == 1023 << 20


def test_a_boot_is_json_ready_and_its_counts_add_up():
    boot = Boot(domain(GIB)).run()
    shown = boot.as_dict()
    keys = ["verdict", "panic", "not_modelled", "plan", "stages", "cleanup", "memblock"]
    assert list(shown) == [*keys, "checked", "moves", "beyond", "warnings", "faults"]
    assert shown["verdict"] == "boots"
    assert set(shown["memblock"]) == {"setup", "cleanup"}
    for stage in shown["stages"]:
        assert stage["hypercalls"] == sum(stage["by_type"][op] for op in HYPERCALL_TYPES)
    assert boot.cost.hypercalls == sum(stage["hypercalls"] for stage in shown["stages"])
    assert shown["cleanup"]["hypercalls"] == 514 + 2  # golden/README: c1g


def test_what_is_freed_is_no_more_reserved_and_nothing_else_changes():
    """SPEC I10."""
    boot = Boot(domain(4 * GIB)).run_to(Stage.P2M_COPIED)
    before = boot.state.memblock.reserved
    after = boot.run_to(Stage.P2M_FREE).state.memblock.reserved
    first, end = boot.state.p2m_frames
    assert end - first == 2050
    assert after == before.remove(first << 12, end << 12)
    assert not boot.state.ro_frames.meets(first, end)


def test_run_to_goes_on_where_it_stopped():
    boot = Boot(domain(GIB // 4)).run_to(Stage.MEMORY_SETUP)
    assert len(boot.run_to(Stage.MEMORY_SETUP).results) == 2
    assert boot.run().cost == Boot(domain(GIB // 4)).run().cost
    assert len(boot.run().results) == 7


def test_a_kernel_without_symbols_costs_the_same_calls():
    image = replace(default_kernel(), symbols=None)
    plan = plan_dom0(image, Host(), nr_pages=4 * GIB)
    bare = Boot(build(plan), record=True).run()
    assert [r.cost.by_type for r in bare.results[:1]] == [
        costs(4 * GIB)["setup_kernel_pagetable"].by_type
    ]
    assert bare.cleanup.as_dict()["hypercalls"] == 2052


def test_a_plan_that_panics_has_no_boot():
    plan = plan_dom0(default_kernel(), Host(), nr_pages=1000)
    with pytest.raises(PanicError, match="Domain 0 allocation is too small for kernel image"):
        Boot(Domain(plan, None, None))


def test_a_hole_over_the_kernel_or_its_tables_stops_linux():
    hole = [Ram(0, 16 << 20), Ram(20 << 20, 8 << 30)]
    boot = Boot(domain(GIB), e820=hole).run()
    assert boot.verdict == "panics"
    assert "kernel memory conflicts with E820 map" in boot.panic
    assert [result.name for result in boot.results] == ["setup_kernel_pagetable"]
    tables = [Ram(0, 0x4A00000), Ram(0x4B00000, 8 << 30)]
    assert "page table memory" in Boot(domain(GIB), e820=tables).run().panic


HOLE_OVER_THE_LIST = [Ram(0, 0x8000000), Ram(0x8100000, 2 << 30)]


def test_a_hole_over_the_list_makes_mainline_move_it():
    """1 GiB: 512 pages of list, three tables, to the first free RAM: [1 MiB, _text), see golden."""
    hole = [Ram(0, 0x9F000), Ram(0x100000, 0x8000000), Ram(0x8100000, 2 << 30)]
    boot = Boot(domain(GIB), e820=hole).run()
    assert boot.state.initial_list.vaddr == 1 << 40
    assert boot.state.p2m_frames == (256, 256 + 515)
    memory_setup, cleanup = boot.results[1].cost, boot.cleanup.as_dict()
    assert memory_setup.pages_freed == 514  # Xen's: one 2 MiB leaf and two tables
    assert (cleanup["hypercalls"], cleanup["unpin"]) == (515 + 3 + 3, 3)
    assert cleanup["tables_freed"] == {"l1": 1, "l2": 1, "l3": 1}
    assert boot.variants == {"2m": boot.cleanup, "4k": boot.cleanup}


def test_the_first_free_ram_may_begin_behind_the_first_64_kib():
    """The list of 256 MiB and its tables are 131 pages; [64 KiB, 640 KiB) has 144."""
    boot = Boot(domain(1 << 16), e820=HOLE_OVER_THE_LIST).run()
    assert boot.state.p2m_frames == (16, 16 + 131)


def test_no_room_for_the_list_stops_linux():
    e820 = [Ram(0, 0x1000), Ram(0xFFF000, 0x8000000), Ram(0x8100000, 0x8101000)]
    boot = Boot(domain(64 * GIB), e820=e820).run()
    assert boot.verdict == "panics"
    assert boot.panic == "Can't find new memory area for p2m needed due to E820 map conflict"


def test_room_that_the_domain_does_not_have_is_no_room():
    """xen_find_free_area() asks the host's map; the domain has no page there."""
    e820 = [Ram(0, 0x1000), Ram(0xFFF000, 0x8000000), Ram(1 << 42, 1 << 43)]
    boot = Boot(domain(64 * GIB), e820=e820, max_reservation=64 * GIB).run()
    assert boot.panic == "Hardware Dom0 halted: halting machine"


def test_frames_of_a_domain_beyond_16_tib_move_like_those_of_any_other():
    """The map's hole of 1 GiB: Xen could not answer how many pages there are, and is not asked."""
    nr_pages = 32 << 28
    e820 = [Ram(0, 3 << 30), Ram(4 << 30, nr_pages + GIB << 12)]
    boot = Boot(domain(nr_pages), e820=e820).run()
    assert boot.verdict == "boots"
    assert sum(remap.nr for remap in boot.state.moved) == GIB
    assert boot.beyond[0]["value"] == (1 << 32) - 1


def test_a_frame_that_moves_to_a_page_without_a_table_ends_the_boot():
    """609 frames leave holes for pfns from 0xa5a0 on, as that RAM begins inside page 0xa59f; Linux
    keeps one page less than those, [0xa5a0, 0xa800), and 0xa800 begins the next 2 MiB.
    """
    low = [Ram(0, 0x9F000), Ram(0x100000, 0x9000000), Ram(0x9200000, 0xA000000)]
    built = domain(0xA000)
    boot = Boot(built, e820=[*low, Ram(0xA59F800, 8 << 30)], max_reservation=0xA000).run()
    assert boot.panic.endswith("Failed to update kvirt mapping for pfn=43008")  # 0xa800
    aligned = [*low, Ram(0xA5A0000, 8 << 30)]
    assert Boot(built, e820=aligned, max_reservation=0xA000).run().verdict == "boots"


def test_frames_without_room_behind_are_released_one_by_one():
    """A map with holes but no RAM behind nr_pages: XENMEM_decrease_reservation for each."""
    e820 = [Ram(0, 0x9FC00), Ram(1 << 20, 1 << 30)]
    cost = costs(GIB, e820=e820)["memory_setup"]
    assert cost.by_type["memory_op"] == 2 + 97
    assert cost.by_type["update_va_mapping"] == 97


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (SEED, "Out of memory"),
        (
            replace(V6_1, page_limit=SEED.page_limit),
            "alloc_p2m_page: Failed to allocate 4096 bytes align=0x1000",
        ),
    ],
    ids=["bootmem", "memblock"],
)
def test_a_list_that_is_larger_than_what_linux_uses_cannot_be_copied(rules, text):
    boot = Boot(domain(160 << 28), rules=rules).run()  # twice 320 GiB in 500 GiB of memory
    assert boot.panic == f"Kernel panic - not syncing: {text}"
    assert boot.results[-1].name == Stage.PAGING_INIT.value


@pytest.mark.parametrize("rules", [SEED, V6_1], ids=["seed", "v6.1"])
def test_struct_pages_without_room_are_no_panic_of_linux(rules):
    # All but the first 160 MiB lies behind 4 GiB and is not there before remap_memory().
    e820 = [Ram(0, 160 << 20), Ram(4 << 30, 20 << 30)]
    boot = Boot(domain(GIB), rules=rules, e820=e820, check=False).run()
    assert boot.verdict == "unknown"
    assert "struct pages of 82 sections" in boot.not_modelled
    assert boot.results[-1].name == Stage.INIT_MEM_MAPPING.value
    assert len(boot.run().results) == 3


NO_NOTE = replace(default_kernel(), init_p2m=None)


@pytest.mark.parametrize("rules", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize(
    "nr_pages, stage, text",
    [
        (256 * GIB, None, None),
        (243195 * 512, None, "set_page_prot_flags()"),
        (243193 * 512, Stage.MEMORY_SETUP, "pin_pagetable_pfn()"),
        (600 * GIB, None, "set_page_prot_flags()"),
    ],
    ids=["inside", "L2 is behind", "L1s are behind", "all is behind"],
)
def test_linux_keeps_the_first_gib_of_xens_mapping_only(rules, nr_pages, stage, text):
    """SPEC F2d: with the list inside, a toolstack's guest may have more (dom0's chunk may not).

    Kernel to pfn 0x4a00, list, three pages, then L4, L3, L2, L2, L1s: at 243193 pages of list the
    first L1 table is pfn 0x4a00 + 243193 + 3 + 4 = 2^18; two pages more, and the first L2 is there.
    """
    boot = Boot(build_domu(plan_domu(NO_NOTE, Host(), nr_pages=nr_pages)), rules=rules).run()
    if text is None:
        assert boot.verdict == "boots"
        return
    assert boot.panic.startswith(f"kernel BUG in {text}")
    assert [result.name for result in boot.results][-1:] == ([stage.value] if stage else [])


def test_a_list_in_the_kernels_own_l4_slot_is_not_taken_over():
    """SPEC F2e: slots 0 and 511 are not copied."""
    boot = Boot(domain(GIB, init_p2m=511 << 39 | 0xFFFF << 48)).run()
    assert (boot.panic, boot.results) == ("Hardware Dom0 halted: halting machine", [])


def test_of_a_guest_that_dies_early_xen_prints_nothing():
    across = replace(default_kernel(), init_p2m=(2 << 39) - (1 << 20))
    boot = Boot(build_domu(plan_domu(across, Host(), nr_pages=GIB))).run()
    assert boot.panic.startswith("page fault without a handler: the guest halts")


@pytest.mark.parametrize("rules", [V4_1, SEED])
def test_an_auto_translated_guest_takes_over_tables_without_hypercalls(rules):
    """SPEC F2j: Xen's root page goes back all the same; the map is taken as it is."""
    rules = replace(rules, auto_translated=True)
    e820 = [Ram(0, 0x9F000), Ram(1 << 20, 1 << 30), Ram(4 << 30, 5 << 30)]
    kernel = {"init_p2m": None} if rules.name == "v4.1" else {}
    boot = Boot(domain(GIB, **kernel), rules=rules, e820=e820).run()
    assert [(r.name, r.cost.hypercalls) for r in boot.results] == [
        ("setup_kernel_pagetable", 0),
        ("memory_setup", 1),
    ]
    state = boot.state
    assert state.memblock.memory.ranges == ((4096, 0x9F000), (1 << 20, 1 << 30), (4 << 30, 5 << 30))
    assert (state.remaps, len(state.identity.ranges), state.max_pfn) == ((), 0, 5 * GIB)
    first = 0x4A00000 if kernel else 0x8000000  # list: 2 MiB of it, with two tables outside
    nr = 512 if kernel else 514
    assert state.memblock.reserved.clip(first, first + (nr << 12)).size == nr << 12
    assert boot.verdict == "unknown"
    assert "auto-translated" in boot.not_modelled
    with pytest.raises(UsageError, match="nothing to free"):
        free_initial_p2m(boot.domain, rules=rules)


def test_later_profiles_are_not_modelled_as_auto_translated_guests():
    for rules in (V4_3, V6_1):
        with pytest.raises(UsageError, match="auto-translated"):
            Boot(domain(GIB), rules=replace(rules, auto_translated=True))


def test_moves_are_known_after_the_stage_that_makes_them():
    boot = Boot(domain(GIB // 4))
    assert set(boot.moves.values()) == {None}
    assert boot.run_to(Stage.MEMORY_SETUP).moves["remapped_pages"] == 0
    assert boot.moves["list_area_bytes"] is None
    assert boot.run().moves["list_area_bytes"] == 1 << 30  # the hotplug limit, 512 GiB
