# SPDX-License-Identifier: GPL-2.0-or-later
"""Plans of toolstack guests: rules of SPEC C, releases that no golden build covers, and refusals.

Cases named s-, w- and b- were built for real; their results are those of golden/domu's README.
"""

import json
from dataclasses import replace

import pytest
from domucases import FAKED_CAPS, patched, synthetic

from xenpt.arrangement import JSON_KEYS
from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.inputs.config import Host
from xenpt.inputs.initrd import Initrd
from xenpt.inputs.kernel import default_kernel
from xenpt.units import pages

KA = 0xFFFFFFFF80000000
LIST = 0x8000000000
MIB = 256  # pages
UNMAPPED = {"INIT_P2M": LIST, "MOD_START_PFN": 1}


def plan_of(kernel, nr_pages, xen="4.17.7", **more):
    return plan_domu(kernel, Host(xen=xen), nr_pages=nr_pages, **more)


def outside(**notes):
    return synthetic(**{**UNMAPPED, **notes})


# --- Layout --------------------------------------------------------------------------------------


def test_worked_example_of_the_spec():
    # SPEC C, "Worked": kernel end 0xffffffff82e00000, 4 GiB, an unmapped initrd of 40 MiB.
    kernel = outside(segs=((0x1000000, 0x1E00000),))
    plan = plan_of(kernel, pages("4G"), initrd=40 << 20)
    assert plan.kernel == (0xFFFFFFFF81000000, 0xFFFFFFFF82E00000)
    first = {name: (vaddr - KA) >> 12 for name, vaddr in (
        ("start_info", plan.start_info[0]), ("xenstore", plan.layout.xenstore[0]),
        ("console", plan.layout.console[0]), ("tables", plan.page_tables[0]),
        ("stack", plan.boot_stack[0]),
    )}  # fmt: skip
    assert first == {
        "start_info": 11776, "xenstore": 11777, "console": 11778, "tables": 11779, "stack": 11806,
    }  # fmt: skip
    assert plan.nr_pt_frames == 27
    assert plan.total == (KA, 0xFFFFFFFF83000000)
    assert (plan.mod_start, plan.mod_len, plan.flags) == (12288, 10240 * 4096, 8)
    assert (plan.first_p2m_pfn, plan.nr_p2m_frames) == (22528, 2054)
    assert plan.initrd is None


@pytest.mark.parametrize(
    ("size", "tables", "nr_frames"),
    [("4G", {"l1": 4, "l2": 1, "l3": 1}, 2054), ("1T", {"l1": 1024, "l2": 2, "l3": 1}, 525315)],
)
def test_list_outside_takes_4k_leaves_and_its_own_tables(size, tables, nr_frames):
    plan = plan_of(default_kernel(), pages(size))  # SPEC C5
    assert plan.p2m_tables == tables
    assert plan.p2m_leaves == {"4k": pages(size) // 512, "2m": 0, "1g": 0}
    assert plan.nr_p2m_frames == nr_frames
    assert plan.list_outside


@pytest.mark.parametrize(("missing", "nr_tables"), [(131, 15), (144, 15), (145, 13), (150, 13)])
def test_tables_stack_and_padding_decide_how_many_4mib_are_mapped(missing, nr_tables):
    kernel = outside(segs=((0x1000000, 0x400000 - missing * 4096),))  # e-*, SPEC C4
    assert plan_of(kernel, 64 * MIB).nr_pt_frames == nr_tables


def test_exactly_enough_memory_for_the_initial_mapping_builds():
    kernel = synthetic()  # s-init-eq: virt_pgtab_end is at page 0x1800
    assert plan_of(kernel, 0x1800).panic is None
    text = "count_pgtables: not enough memory for initial mapping (0x17ff > 0x17ff)"
    assert plan_of(kernel, 0x17FF).panic == text


def test_legacy_guests_have_no_limit_of_1_gib():
    plan = plan_of(patched("-INIT_P2M"), pages("200G"))  # l200g: 400 MiB of list in the mapping
    assert plan.panic is None
    assert plan.nr_pt_frames == 241
    assert (plan.first_p2m_pfn, plan.nr_p2m_frames) == (0, 0)


def test_a_legacy_list_can_fill_the_address_space_up_to_the_last_4_mib():
    # Nothing is left of [KA + 0x4a00000, 2^64) but the list, 3 pages, tables, stack, 512 KiB. With
    # all but 4 MiB mapped: 1022 L1, 2 L2, L3, L4. [deduction: the cap of golden/domu/README.md]
    room = (1 << 31) - (4 << 20) - 0x4A00000 - (3 + 1026 + 129) * 4096
    most = room // 4096 * 512
    plan = plan_of(patched("-INIT_P2M"), most)
    assert plan.panic is None
    assert plan.total[1] == (1 << 64) - (4 << 20)
    assert most >> 18 == 982  # GiB
    assert plan_of(patched("-INIT_P2M"), most + 512).panic.startswith("the toolstack never ends: ")


def test_mapped_initrd_lies_before_the_magic_pages_with_its_exact_length():
    plan = plan_of(synthetic(INIT_P2M=LIST), 64 * MIB, initrd=4097)
    assert plan.initrd == (KA + 0x1400000, KA + 0x1401001)
    assert (plan.mod_start, plan.mod_len, plan.flags) == (KA + 0x1400000, 4097, 0)
    assert plan.start_info[0] == KA + 0x1402000


def test_vnuma_holes_count_for_the_list_but_not_for_nr_pages():
    vnuma = [(0, 64 * MIB), (80 * MIB, 112 * MIB)]  # s-vnuma-hole
    plan = plan_of(outside(), None, vnuma=vnuma)
    assert (plan.nr_pages, plan.p2m_size) == (24576, 28672)
    assert plan.p2m == (LIST, LIST + 28672 * 8)
    assert plan.nr_p2m_frames == 56 + 3


def test_xen_caps_may_come_from_xl_info():
    plan = plan_of(synthetic(bits=32), 64 * MIB, xen_caps="xen-3.0-x86_64 hvm-3.0-x86_32")
    text = "guest type xen-3.0-x86_32p not supported by xen kernel, sorry"
    assert plan.panic == f"xc_dom_compat_check: {text}"
    no_pv32 = plan_domu(synthetic(bits=32), Host(xen="4.17.7", pv32=False), nr_pages=64 * MIB)
    assert no_pv32.panic == plan.panic


@pytest.mark.parametrize(
    ("base", "nr_l2"), [(0xC0000000, 1), (0x3F000000, 4), (0, 4)], ids=["high", "lowoff", "low"]
)
def test_pae_guest_gets_l2_tables_up_to_the_last_slot(base, nr_l2):
    kernel = synthetic(bits=32, segs=((0x100000, 0x400000),), VIRT_BASE=base, INIT_P2M=0x40000000)
    plan = plan_of(kernel, 64 * MIB)
    assert plan.maps[0].nr_at(2) == nr_l2
    assert plan.magic == "xen-3.0-x86_32p"
    assert not plan.list_outside
    assert plan.p2m[1] - plan.p2m[0] == 64 * MIB * 4


# --- gzip ----------------------------------------------------------------------------------------

GZIP = Initrd(20201, unpacked_bytes=5120000)


@pytest.mark.parametrize(
    ("xen", "initrd", "mod_len"),
    [
        ("4.17.7", GZIP, 5120016),  # s-gz-m
        ("4.17.7", replace(GZIP, vaddr=KA + 0x2000000), 20201),  # s-gz-va
        ("4.20.0", GZIP, 20201),
        ("4.19.6", GZIP, 5120016),
        ("4.17.7", Initrd(20201, unpacked_bytes=1 << 30), 20201),
        ("4.17.7", Initrd(20201, unpacked_bytes=4), 20201),
        ("4.10.0", Initrd(20201, unpacked_bytes=4), 4096),  # 20 bytes, in whole pages
    ],
)
def test_gzip_initrd_takes_its_unpacked_size_and_16_bytes(xen, initrd, mod_len):
    plan = plan_of(synthetic(), 2048 * MIB, xen, initrd=initrd)
    assert plan.mod_len == mod_len


# --- Releases ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xen", "mod_len"),
    [("4.6.6", 8192), ("4.16.7", 8192), ("4.17.4", 8192), ("4.17.5", 4097), ("4.18.2", 8192),
     ("4.18.3", 4097), ("4.19.0", 4097), ("4.22.0", 4097)],
)  # fmt: skip
def test_mapped_initrd_is_rounded_to_pages_before_4c3a618b0a(xen, mod_len):
    assert plan_of(synthetic(), 64 * MIB, xen, initrd=4097).mod_len == mod_len


def test_before_4_7_list_and_initrd_are_inside_whatever_the_notes_say():
    plan = plan_of(outside(), 64 * MIB, "4.6.6", initrd=8192)
    assert plan.initrd == (KA + 0x1400000, KA + 0x1402000)
    assert plan.p2m == (KA + 0x1402000, KA + 0x1422000)
    assert plan.start_info[0] == KA + 0x1422000
    assert (plan.flags, plan.first_p2m_pfn, plan.nr_p2m_frames) == (0, 0, 0)
    assert not any("padding" in line for line in plan.log)
    assert plan.log[-7] == (
        "nr_page_tables: 0x0000007fffffffff/39: 0xffffff8000000000 -> 0xffffffffffffffff, "
        "1 table(s)"
    )


def test_before_4_7_one_page_too_many_passes_the_check_and_fails_the_pin():
    # It needs 0x1800 pages; behind the kernel (0x1400) lie 12 pages of list and 3 more.
    kernel = synthetic()
    text = "not enough memory for initial mapping"
    assert plan_of(kernel, 0x17FE, "4.6.6").panic == f"count_pgtables: {text} (0x17ff > 0x17fe)"
    pinned = "arch_setup_bootlate: pin_table failed (pfn 0x140f, rc=1)"
    assert plan_of(kernel, 0x17FF, "4.6.6").panic == pinned
    assert plan_of(kernel, 0x1800, "4.6.6").panic is None
    # Before 4.3 nothing looked at it (5bb2be127b).
    assert plan_of(kernel, 0x1500, "4.2.5").panic == pinned.replace("0x140f", "0x140e")


def test_before_4_7_a_low_pae_guest_gets_one_more_l2_table_not_all_four():
    kernel = synthetic(bits=32, segs=((0x100000, 0x400000),), VIRT_BASE=0)
    old, new = plan_of(kernel, 128 * MIB, "4.6.6"), plan_of(kernel, 128 * MIB, "4.7.0")
    assert (old.maps[0].nr_at(2), new.maps[0].nr_at(2)) == (2, 4)
    assert "count_pgtables: PAE: extra l2 page table for l3#3" in old.log


def test_before_4_7_segments_are_refused_in_other_words():
    def refusal(kernel, nr_pages=64 * MIB, **more):
        return plan_of(kernel, nr_pages, "4.6.6", **more).panic

    kernel = synthetic()
    assert refusal(kernel, 16 * MIB) == (
        "xc_dom_alloc_segment: segment kernel too large (0x400 > 0x1000 - 0x1000 pages)"
    )
    assert refusal(synthetic(segs=((0x1000800, 0x400000),))) == (
        "xc_dom_alloc_segment: segment start isn't page aligned (0xffffffff81000800)"
    )
    assert refusal(kernel, initrd=Initrd(4096, vaddr=KA + 0x13FF000)) == (
        "xc_dom_alloc_segment: segment start too low (0xffffffff813ff000 < 0xffffffff81400000)"
    )


@pytest.mark.parametrize(
    ("xen", "text"),
    [("4.17.7", "'/r': zero length file"), ("4.11.0", "'/r': zero length file"),
     ("4.10.4", "failed to mmap file '/r': Invalid argument"),
     ("4.6.6", "failed to mmap file: Invalid argument"),
     ("4.3.4", "xc_dom_malloc_filemap: failed (on file `/r')")],
)  # fmt: skip
def test_an_empty_initrd_is_refused(xen, text):
    plan = plan_of(default_kernel(), 512 * MIB, xen, initrd=Initrd(0, name="/r"))
    assert plan.panic == text


@pytest.mark.parametrize("xen", ["3.4.0", "4", "new"])
def test_a_toolstack_that_is_not_modelled_is_refused(xen):
    with pytest.raises(UsageError):
        plan_of(default_kernel(), 512 * MIB, xen)


# --- When the library gives up -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        (
            replace(default_kernel(), features="!dom0"),
            "xc_dom_parse_elf_kernel: Kernel does not support unprivileged (DomU) operation",
        ),
        (replace(default_kernel(), machine=8), "xc_dom_guest_type: unknown image type 8"),
        (
            replace(default_kernel(), features="!auto_translated_physmap"),
            "PV Autotranslate guests no longer supported",
        ),
        (
            replace(default_kernel(), hypercall_page=KA - 4096),
            "setup_hypercall_page: HYPERCALL_INIT failed: 22 - Invalid argument)",
        ),
        (
            synthetic(VIRT_BASE=KA + 0x2000000, PADDR_OFFSET=0x2000000),
            "xc_dom_alloc_pad: segment boundary too low (0xffffffff81000000 < 0xffffffff82000000)",
        ),
    ],
)
def test_kernels_that_the_toolstack_refuses(kernel, text):
    assert plan_of(kernel, 512 * MIB).panic == text


def test_a_32_bit_kernel_without_pae_is_refused_for_what_the_hypervisor_says():
    kernel = synthetic(bits=32, PAE_MODE="no")
    text = "guest type xen-3.0-x86_32 not supported by xen kernel, sorry"
    assert plan_of(kernel, 64 * MIB).panic == f"xc_dom_compat_check: {text}"
    assert plan_of(kernel, 64 * MIB, "4.2.5").panic == f"xc_dom_compat_check: {text}"
    hooks = "not found (type xen-3.0-x86_32)"
    # Before 1787cc1679 (4.16) the layout's own check came first.
    assert plan_of(kernel, 64 * MIB, "4.15.0").panic == f"xc_dom_set_arch_hooks: {hooks}"
    assert plan_of(kernel, 64 * MIB, "4.6.6").panic == f"xc_dom_find_arch_hooks: {hooks}"
    assert plan_of(kernel, 64 * MIB, xen_caps=FAKED_CAPS).panic == f"xc_dom_set_arch_hooks: {hooks}"


def test_before_4_16_a_32_bit_domain_is_asked_for_before_anything_looks_at_the_guest_type():
    # Seen with Xen 4.14.6, whose hypervisor is built without CONFIG_PV32.
    text = "xc_dom_boot_mem_init: can't allocate low memory for domain"
    for xen in ("4.14.6", "4.15.7"):
        plan = plan_domu(synthetic(bits=32), Host(xen=xen, pv32=False), nr_pages=64 * MIB)
        assert plan.panic == text
        assert plan.log == ()
    plan = plan_domu(synthetic(bits=32), Host(xen="4.16.0", pv32=False), nr_pages=64 * MIB)
    assert plan.panic.startswith("xc_dom_compat_check: guest type xen-3.0-x86_32p not")


def test_a_list_that_encloses_the_initial_mapping_aborts_the_toolstack():
    kernel = synthetic(
        segs=((0, 0x100000),), VIRT_BASE=KA + 0x400000, INIT_P2M=KA + 0x200000, MOD_START_PFN=1
    )
    assert plan_of(kernel, 4096 * MIB).panic == (  # s-enclose
        "count_pgtables: Assertion `map->lvls[l].from >= map_cmp->lvls[l].from || "
        "map->lvls[l].to <= map_cmp->lvls[l].to' failed."
    )


def test_a_list_without_a_table_of_its_own_cannot_be_built():
    share = synthetic(
        VIRT_BASE=KA + 0x100000, PADDR_OFFSET=0x100000, INIT_P2M=KA + 0x80000, MOD_START_PFN=1
    )
    assert plan_of(share, 512 * MIB).panic == "get_pg_table: xc_dom_pfn_to_ptr failed"  # s-vb-over
    # ee21f10d70 (4.14) renamed the function.
    assert plan_of(share, 512 * MIB, "4.13.0").panic == "get_pg_table_x86: xc_dom_pfn_to_ptr failed"


def test_overlap_is_only_noticed_below_the_middle_of_the_address_space():
    low = synthetic(VIRT_BASE=LIST, INIT_P2M=LIST - 0x1000, MOD_START_PFN=1)
    assert plan_of(low, 64 * MIB).panic == "count_pgtables: overlapping mappings"
    high = synthetic(INIT_P2M=KA - 0x1000, MOD_START_PFN=1)
    plan = plan_of(high, 64 * MIB)
    assert plan.panic is None
    text = "31 pages from pfn 0 on are not mapped there, the list is"
    assert plan.warnings == (f"the P->M list overwrites the initial mapping: {text}",)


def test_a_list_that_begins_in_a_table_of_the_initial_mapping_and_ends_behind_it():
    # The mapping has the L1 tables of [KA, KA + 24 MiB), the list needs those of 32 MiB.
    kernel = synthetic(VIRT_BASE=KA + 0x100000, PADDR_OFFSET=0x100000, INIT_P2M=KA, MOD_START_PFN=1)
    plan = plan_of(kernel, pages("16G"))
    assert plan.p2m_tables == {"l1": 4, "l2": 0, "l3": 0}
    assert "overwrites the initial mapping: 5888 pages from pfn 0 on" in plan.warnings[0]
    assert plan.total == (KA + 0x100000, KA + 0x1800000)


def test_wrapping_past_2_64_aborts_or_fails_later():
    notes = {"VIRT_BASE": 0xFFFFFFFFFF000000}
    outside_list = synthetic(segs=((0, 0x400000),), INIT_P2M=LIST, **notes)
    plan = plan_of(outside_list, 64 * MIB, initrd=16 << 20)  # w-initrd-m
    assert plan.panic.startswith("count_pgtables: Assertion `")
    inside = plan_of(synthetic(segs=((0, 0x900000),), **notes), 4096 * MIB)  # w-p2m
    assert inside.panic == "get_pg_table: xc_dom_pfn_to_ptr failed"
    old = plan_of(synthetic(segs=((0, 0x900000),), **notes), 4096 * MIB, "4.6.6")
    assert "wraps at 2^64" in old.panic


@pytest.mark.parametrize("xen", ["4.6.6", "4.17.7"])
def test_a_mapping_that_would_end_at_2_64_is_said_to_loop_for_ever(xen):
    kernel = synthetic(segs=((0, 0xE00000),), VIRT_BASE=0xFFFFFFFFFF000000)  # w-full
    assert plan_of(kernel, 0x4000, xen).panic.startswith("the toolstack never ends: ")


TOP = 0xFFFFFFFFFF000000  # 16 MiB below 2^64, which takes 11 tables


@pytest.mark.parametrize(("nr_pages", "is_built"), [(0xF50, False), (0xF51, True), (0xF52, False)])
def test_a_mapping_that_fits_to_the_page_ends_at_2_64(nr_pages, is_built):
    # Seen in `make oracle CASES=domu-top`: 0xf51 pages of kernel, 32 of list, 3 magic ones, 11
    # tables, the stack and 128 more are all that there is.
    plan = plan_of(synthetic(segs=((0, nr_pages * 4096),), VIRT_BASE=TOP), 0x4000)
    assert (plan.panic is None) == is_built
    if is_built:
        assert plan.total == (TOP, 1 << 64)
        assert plan.log[-1] == "xc_dom_build_image  : virt_pgtab_end : 0x0"
        assert plan.warnings == ()
        assert plan.nr_pt_frames == 11
        assert plan.page_tables[0] == TOP + 0xF74000
    else:
        assert plan.panic.startswith("the toolstack never ends: ")


def test_a_mapping_that_ends_at_2_64_leaves_what_follows_inside_of_it():
    # domu-top-list: 0xf71 pages of kernel, 3 magic ones, 11 tables, the stack; no padding is taken.
    kernel = outside(segs=((0, 0xF71000),), VIRT_BASE=TOP)
    plan = plan_of(kernel, 0x4000, initrd=7)
    assert (plan.mod_start, plan.first_p2m_pfn) == (0xF80, 0xF81)
    assert len(plan.warnings) == 1
    assert "the library forgets its padding" in plan.warnings[0]
    inside = synthetic(segs=((0, 0xF51000),), VIRT_BASE=TOP)
    assert "wraps at 2^64" in plan_of(inside, 0x4000, "4.6.6").panic


@pytest.mark.parametrize(
    ("base", "xen", "refused_by"),
    [
        (0x900000000000, "4.17.7", "vcpu_x86_64"),  # domu-no-address
        (0x900000000000, "4.1.4", "launch_vm"),
        (0x900000000000, "4.1.3", None),  # before 73db9f65da
        (0x7FFFFEC00000, "4.17.7", "vcpu_x86_64"),  # the kernel ends at 2^47, behind it the stack
        (0x7FFFFEC00000, "4.7.2", "vcpu_x86_64"),
        (0x7FFFFEC00000, "4.7.1", None),  # before f3fa3abf3e
        (0x7FFFFEC00000, "4.6.5", "launch_vm"),
        (0x7FFFFEC00000, "4.6.4", None),
    ],
)
def test_xen_takes_no_registers_that_are_no_addresses(base, xen, refused_by):
    plan = plan_of(synthetic(VIRT_BASE=base), 64 * MIB, xen)
    text = f"{refused_by}: SETVCPUCONTEXT failed (rc=-1)"
    assert plan.panic == (text if refused_by else None)


@pytest.mark.parametrize("base", [0xFFFF800000000000, 0x800000000000], ids=["b-xen", "b-noncanon"])
def test_a_list_in_xens_slots_is_built_and_warned_of(base):
    plan = plan_of(patched(f"INIT_P2M={base:#x}"), 512 * MIB)
    assert plan.panic is None
    assert plan.mfn_list == base
    assert len(plan.warnings) == 1
    assert "Xen's own address range" in plan.warnings[0]
    assert str(plan).splitlines()[-1] == f"warning: {plan.warnings[0]}"


def test_vnuma_that_does_not_add_up_is_refused():
    vnuma = [(0, 64 * MIB), (64 * MIB, 96 * MIB)]
    plan = plan_of(outside(), 64 * MIB, vnuma=vnuma)
    assert plan.panic == "meminit_pv: vNUMA page count mismatch (0x6000 != 0x4000)"
    assert plan_of(outside(), 96 * MIB, vnuma=vnuma).panic is None


def test_segments_and_the_mapping_need_memory_behind_them():
    # A hole in the kernel; then one in the padding, which only the pin meets.
    def with_hole(start, end):
        return plan_of(outside(), None, vnuma=[(0, start), (end, 64 * MIB + end - start)]).panic

    assert with_hole(0x1100, 0x1200) == (
        "xc_dom_boot_domU_map: failed to mmap domU pages 0x1000+0x400 "
        "[mmap, errno=22 (Invalid argument)]"
    )
    assert with_hole(0x1400, 0x1401) == (  # start_info, domu-hole-start-info
        "xc_dom_boot_domU_map: failed to mmap domU pages 0x1400+0x1 "
        "[mmap, errno=22 (Invalid argument)]"
    )
    assert with_hole(0x1700, 0x1710) == "bootlate_pv: pin_table failed (pfn 0x1403, rc=1)"
    assert with_hole(0x2000, 0x3000) is None


def test_before_4_7_a_segment_was_logged_before_it_was_mapped():
    vnuma = [(0, 0x1100), (0x1200, 0x5000)]
    assert plan_of(outside(), None, vnuma=vnuma).log == ()
    (line,) = plan_of(outside(), None, "4.6.6", vnuma=vnuma).log
    assert line.startswith("xc_dom_alloc_segment:   kernel       : 0xffffffff81000000 -> ")


@pytest.mark.parametrize("vnuma", [[(5, 5)], [(0, 512), (100, 600)], [(512, 1024), (0, 512)]])
def test_vnuma_ranges_that_are_none(vnuma):
    with pytest.raises(UsageError, match="vNUMA"):
        plan_of(outside(), None, vnuma=vnuma)


@pytest.mark.parametrize("nr_pages", [None, 0, -1])
def test_a_guest_of_no_size(nr_pages):
    with pytest.raises(UsageError, match="at least one"):
        plan_of(outside(), nr_pages)


def test_a_ramdisk_of_more_than_1_gib_is_refused():
    plan = plan_of(outside(), pages("8G"), initrd=(1 << 30) + 1)
    assert plan.panic == "tried to map file which is too large"


# --- What a plan says ----------------------------------------------------------------------------


def test_json_has_the_keys_of_a_dom0_plan_and_null_for_what_is_not_decided():
    facts = plan_of(default_kernel(), 512 * MIB).as_dict()
    assert tuple(facts) == (*JSON_KEYS, "warnings")
    json.dumps(facts)
    assert [key for key, value in facts.items() if value is None] == [
        "panic", "dom0_alloc", "pages_to_be_allocated", "initrd",
    ]  # fmt: skip
    assert facts["p2m"] == [LIST, LIST + 512 * MIB * 8]
    early = plan_of(default_kernel(), 16 * MIB).as_dict()
    known = {key for key, value in early.items() if value is not None}
    assert known == {"nr_pages", "panic", "kernel", "entry", "magic", "beyond", "warnings"}


def test_text_is_the_librarys_log_and_its_last_words():
    lines = str(plan_of(default_kernel(), 16 * MIB)).splitlines()
    assert lines == [
        "xc_dom_chk_alloc_pages: segment kernel too large (0x3a00 > 0x1000 - 0x1000 pages)"
    ]
    assert str(plan_of(default_kernel(), 512 * MIB)).startswith(
        "xc_dom_alloc_segment:   kernel       : 0xffffffff81000000 -> 0xffffffff84a00000  "
        "(pfn 0x1000 + 0x3a00 pages)\n"
    )


def test_beyond_names_the_limits_of_the_real_thing():
    plan = plan_of(default_kernel(), pages("64T"))
    assert [item["limit"] for item in plan.beyond] == ["pages of one domain"]
    assert plan.panic is None
