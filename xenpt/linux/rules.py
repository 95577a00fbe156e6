# SPDX-License-Identifier: GPL-2.0-or-later
"""What each generation of Linux does in its early boot under Xen, as behaviour flags.

A stage asks for a flag, never for a version. Sources: Linux 4.1.5 (4.2.8 is the same), the LKML
mail "xen: eliminate scalability issues from initial mapping setup" (V3 04/15) on top of it for
`seed`, 4.3.3 (the mail as merged, 8f5b0c639872) and 6.1.192; SPEC F1 to F8. What v6.12 changes is
seen in its boots only. Functions are of arch/x86/xen/ unless another file is named.
"""

from dataclasses import dataclass, replace
from typing import Final

from xenpt.units import GIB_PAGES

#: Static tables that xen_setup_kernel_pagetable makes read-only before it pins the L4, in order.
_RO_TABLES_V4_1: Final = (
    ("init_level4_pgt", 1),
    ("level3_ident_pgt", 1),
    ("level3_kernel_pgt", 1),
    ("level3_user_vsyscall", 1),
    ("level2_ident_pgt", 1),
    ("level2_kernel_pgt", 1),
    ("level2_fixmap_pgt", 1),
    ("level1_fixmap_pgt", 1),
)
_RO_TABLES_V6_1: Final = (
    ("init_top_pgt", 1),
    ("level3_ident_pgt", 1),
    ("level3_kernel_pgt", 1),
    ("level2_ident_pgt", 1),
    ("level2_kernel_pgt", 1),
    ("level2_fixmap_pgt", 1),
    ("level1_fixmap_pgt", 2),  # FIXMAP_PMD_NUM
)


@dataclass(frozen=True, slots=True)
class CleanupRules:
    """How the initial P->M mapping outside the kernel's is freed: xen_cleanmfnmap(), mmu.c."""

    # The mail stops an L1 table at its first empty entry, and so leaks the pages of a list that
    # does not begin on a 2 MiB border; xen_cleanmfnmap_pmd() of mainline goes on (since v4.12).
    skip_empty_entries: bool
    # The mail has one loop that steps by 2 MiB and reads the L3 entry again for each step, and
    # begins at the list's own slots; mainline walks each table once, from its first entry.
    depth_first: bool
    # The mail and v4.3 take the whole tree out of the L4 table before they walk it; later the L4
    # entry is the last to be cleared.
    root_entry_first: bool
    # Mainline clears the entry of each L1 and L2 table that it frees: v4.3 that of an L1 table
    # before its pages, later ones when it is empty. The mail clears none of them.
    clear_table_entries: bool
    # xen_relocate_p2m() of v4.3 pins the tables that it builds, so that they are unpinned here;
    # the mail has neither step.
    unpin_relocated: bool
    # The page tables' virtual range that xen_cleanhighmap() clears behind the list: v6.1 rounds
    # its end up to the 4 MiB of Xen's initial mapping; before, its size to 2 MiB (SPEC H7).
    align_table_range_end: bool
    # Entries of level2_kernel_pgt that bound the loop: the mail's 4.1 base compares with
    # PAGE_SIZE entries, eight tables further, and v4.3 still does (SPEC H6).
    highmap_entries: int


@dataclass(frozen=True, slots=True)
class LinuxRules:
    """One generation of Linux. Sizes in pages unless named otherwise."""

    name: str
    page_offset: int  # __PAGE_OFFSET of the 4-level layout
    vmalloc_start: int
    vmemmap_start: int
    # CONFIG_X86_32 with Xen PV, removed in 5.9; v4.3 then looks for the first of Xen's page tables,
    # and does not take start_info's word for it (xen_find_pt_base(), SPEC H1).
    bits_32: bool
    find_pt_base: bool
    # XENFEAT_auto_translated_physmap, which Xen 4.4 to 4.10 reported to PVH guests alone (version 1
    # of PVH): page tables hold pfns, and there is no P->M list. Modelled for 4.1 and the mail.
    auto_translated: bool
    asks_auto_translated: bool
    # xen_setup_kernel_pagetable()
    ro_tables: tuple[tuple[str, int], ...]
    # v6.1 makes level3_user_vsyscall read-only behind the unpin and pins it on its own (5.10
    # does the first only, SPEC F2).
    pin_user_vsyscall: bool
    nx_ident_map: bool  # v6.1 sets NX in level2_ident_pgt's entries
    # pte_wrprotect() since 6.6 keeps the dirty bit of an entry in bit 58, and PAGE_KERNEL_RO is not
    # dirty: seen in the tables of 6.12.
    saved_dirty: bool
    # The mail copies the L4 entry of the P->M list and takes first_p2m_pfn as max_pfn_mapped.
    graft_initial_p2m: bool
    # setup.c, xen_memory_setup()
    page_limit: int  # of a domain: MAX_DOMAIN_PAGES (500 GiB), later MAXMEM (64 TiB)
    domu_page_limit: int  # xen_512gb_limit of an unprivileged domain
    # Before v4.3 nobody looks whether list, initrd, tables or kernel lie in holes (SPEC H3).
    check_conflicts: bool
    # The kernel's end in that check: _end, or without it __bss_stop, before the brk area (H15).
    check_brk: bool
    # ACPI NVS memory in the place of kernel or tables is exchanged for RAM behind dom0's
    # (be35d91c8880, 6.12); the kernel of 6.1.192 has no such text.
    moves_nvs: bool
    # xen_count_remap_pages() raises the limit by what will move; before, what was moved is added.
    count_remap_first: bool
    # It takes a page that is RAM in part for RAM, which moves nevertheless: one page too few may be
    # had. One loop does both since dd14be92fbf5 (in 4.4.13).
    counts_ram_in_part: bool
    # xen_reserve_xen_mfnlist() of v6.1 reserves a list before it looks for room for it elsewhere;
    # v4.3 may find the list's own pages to be free (SPEC H12; mended by 7ecec8503af3).
    reserve_before_search: bool
    # xen_reserve_special_pages(): start_info, and of an unprivileged domain the xenstore and
    # console pages. Before: all from a list inside the kernel's map to pt_base, else start_info.
    reserve_special_pages: bool
    # Bytes of RAM kept of the first MiB, 0 for as many as there are: seen in dom0's maps of 6.12
    # and 7.2, whose first usable entry is [0, 0x80000). A domain without rights to I/O memory could
    # not map what lies behind as it is.
    low_ram_bytes: int
    # RAM that the domain may not even balloon into: UNUSABLE in the mail, dropped since
    # f5775e0b6116 (SPEC H13).
    drop_excess_ram: bool
    # A hole's pages below max_pfn_mapped: mapped to the same machine page, later unmapped.
    map_holes_identity: bool
    # xen_find_pfn_range(): <= since abed7d0710e8, < before (SPEC H14).
    pfn_range_inclusive: bool
    # mm/init.c, init_mem_mapping()
    pgt_buf_pages: int  # INIT_PGT_BUF_SIZE: tables from the brk area
    # With no free 2 MiB block for the first range: [1 MiB, 2 MiB) first, or down from the last
    # whole 2 MiB of memory.
    align_without_block: bool
    flush_each_mapping: bool  # __flush_tlb_all() in every kernel_physical_mapping_init()
    # mask_rw_pte() of the mail, xen_make_pte_init() later: the list's frames are mapped read-only.
    ro_initial_p2m: bool
    # XENFEAT_writable_page_tables, which the hypervisors modelled here report to no PV guest: the
    # mail and v4.3 map the list writable then; later ones do not ask (`asks_writable_tables`).
    writable_page_tables: bool
    asks_writable_tables: bool
    # mmu_pv.c, xen_pagetable_init(): set_pte is a hypercall before paging_init() (v6.1), not a
    # trapped store.
    set_pte_hypercall: bool
    # The walk that marks all tables as pinned comes before the free of the list, and knows no
    # large pages (SPEC H9); since 6f84f8d1587f of 2018 it comes behind it (xen_after_bootmem).
    marks_pinned_first: bool
    # p2m.c, xen_vmalloc_p2m_tree(): CONFIG_XEN_(BALLOON_)MEMORY_HOTPLUG_LIMIT in GiB; 0 without.
    hotplug_limit_gib: int
    # alloc_p2m(): whoever gives a P->M page of its own to a pfn asks for its place in the tree for
    # Xen's tools, which ends at 2^27 pages, and dies beyond; v4.3 asks below that alone
    # (c70727a5bc18, "xen: allow more than 512 GB of RAM for 64 bit pv-domains").
    dies_beyond_tools_tree: bool
    # alloc_p2m_page() asks bootmem, which gives up in its own words; memblock since 5.1.
    list_pages_by_bootmem: bool
    # alloc_low_pages() (mm/init.c) gives up by itself; v6.1 first turns to extend_brk(), which
    # BUGs, as reserve_brk() has closed the brk area by then.
    low_pages_extend_brk: bool
    # vmemmap's early allocations give up by themselves (memblock_virt_alloc_try_nid()); v6.1 leaves
    # sections without struct pages, and faults when it initialises those (memmap_init_range()).
    memmap_alloc_panics: bool
    # "unable to handle page fault for address: ..." since 5.1, "... kernel paging request at ...".
    names_fault_address: bool
    cleanup: CleanupRules


V4_1: Final = LinuxRules(
    name="v4.1",
    page_offset=0xFFFF_8800_0000_0000,
    vmalloc_start=0xFFFF_C900_0000_0000,
    vmemmap_start=0xFFFF_EA00_0000_0000,
    bits_32=True,
    find_pt_base=False,
    auto_translated=False,
    asks_auto_translated=True,
    ro_tables=_RO_TABLES_V4_1,
    pin_user_vsyscall=False,
    nx_ident_map=False,
    saved_dirty=False,
    graft_initial_p2m=False,
    page_limit=500 * GIB_PAGES,
    domu_page_limit=500 * GIB_PAGES,
    check_conflicts=False,
    check_brk=False,
    moves_nvs=False,
    count_remap_first=False,
    counts_ram_in_part=False,
    reserve_before_search=False,
    reserve_special_pages=False,
    low_ram_bytes=0,
    drop_excess_ram=False,
    map_holes_identity=True,
    pfn_range_inclusive=False,
    pgt_buf_pages=6,
    align_without_block=False,
    flush_each_mapping=True,
    ro_initial_p2m=False,
    writable_page_tables=False,
    asks_writable_tables=True,
    set_pte_hypercall=False,
    marks_pinned_first=True,
    hotplug_limit_gib=512,
    dies_beyond_tools_tree=True,
    list_pages_by_bootmem=True,
    low_pages_extend_brk=False,
    memmap_alloc_panics=True,
    names_fault_address=False,
    cleanup=CleanupRules(
        skip_empty_entries=False,
        depth_first=False,
        root_entry_first=True,
        clear_table_entries=False,
        unpin_relocated=False,
        align_table_range_end=False,
        highmap_entries=4096,
    ),
)

#: The founding mail.
SEED: Final = replace(V4_1, name="seed", graft_initial_p2m=True, ro_initial_p2m=True)

V4_3: Final = replace(
    SEED,
    name="v4.3",
    find_pt_base=True,
    asks_auto_translated=False,
    page_limit=1 << 34,
    domu_page_limit=512 * GIB_PAGES,
    check_conflicts=True,
    count_remap_first=True,
    counts_ram_in_part=True,
    reserve_special_pages=True,
    dies_beyond_tools_tree=False,
    cleanup=replace(SEED.cleanup, clear_table_entries=True, unpin_relocated=True),
)

V6_1: Final = LinuxRules(
    name="v6.1",
    page_offset=0xFFFF_8880_0000_0000,
    vmalloc_start=0xFFFF_C900_0000_0000,
    vmemmap_start=0xFFFF_EA00_0000_0000,
    bits_32=False,
    find_pt_base=True,
    auto_translated=False,
    asks_auto_translated=False,
    ro_tables=_RO_TABLES_V6_1,
    pin_user_vsyscall=True,
    nx_ident_map=True,
    saved_dirty=False,
    graft_initial_p2m=True,
    page_limit=1 << 34,
    domu_page_limit=512 * GIB_PAGES,
    check_conflicts=True,
    check_brk=True,
    moves_nvs=False,
    count_remap_first=True,
    counts_ram_in_part=False,
    reserve_before_search=True,
    reserve_special_pages=True,
    low_ram_bytes=0,
    drop_excess_ram=True,
    map_holes_identity=False,
    pfn_range_inclusive=True,
    pgt_buf_pages=16,
    align_without_block=True,
    flush_each_mapping=False,
    ro_initial_p2m=True,
    writable_page_tables=False,
    asks_writable_tables=False,
    set_pte_hypercall=True,
    marks_pinned_first=False,
    hotplug_limit_gib=512,
    dies_beyond_tools_tree=False,
    list_pages_by_bootmem=False,
    low_pages_extend_brk=True,
    memmap_alloc_panics=False,
    names_fault_address=True,
    cleanup=CleanupRules(
        skip_empty_entries=True,
        depth_first=True,
        root_entry_first=False,
        clear_table_entries=True,
        unpin_relocated=True,
        align_table_range_end=True,
        highmap_entries=512,
    ),
)

V6_12: Final = replace(V6_1, name="v6.12", low_ram_bytes=0x80000, saved_dirty=True, moves_nvs=True)

PROFILES: Final = {rules.name: rules for rules in (V4_1, SEED, V4_3, V6_1, V6_12)}
MAINLINE: Final = V6_1
