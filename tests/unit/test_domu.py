# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that the toolstack builds: what no golden dump shows, by hand from SPEC C and A4."""

from dataclasses import replace

import numpy as np
import pytest
from domucases import patched, synthetic

from xenpt.abi import INVALID_P2M_ENTRY
from xenpt.domuplan import plan_domu
from xenpt.errors import PanicError
from xenpt.image import materialise
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.p2m import P2M
from xenpt.units import pages
from xenpt.xen.domu import build_domu, populate_calls

KA = 0xFFFFFFFF80000000
MIB = 256  # pages


def plan_of(kernel, nr_pages=64 * MIB, xen="4.17.7", **more):
    return plan_domu(kernel, Host(xen=xen), nr_pages=nr_pages, **more)


def flags_at(domain, vaddr):
    return domain.address_space.translate(vaddr)[2]


def test_the_pin_makes_leaves_user_and_guest_kernel_and_leaves_tables_as_they_are():
    plan = plan_of(default_kernel(), 512 * MIB)
    before, after = build_domu(plan, pinned=False), build_domu(plan)
    table = plan.page_tables[0]
    assert (flags_at(before, KA), flags_at(before, table)) == (0x23, 0x21)
    assert (flags_at(after, KA), flags_at(after, table)) == (0x10000000000027, 0x10000000000025)
    assert (flags_at(before, 0x8000000000), flags_at(after, 0x8000000000)) == (
        0x23, 0x10000000000027,
    )  # fmt: skip
    assert np.array_equal(before.initial.tables, after.initial.tables)
    assert set(after.initial.tables["flags"].tolist()) == {0, 0x67}


@pytest.mark.parametrize(
    ("xen", "pinned", "flags"), [("4.14.0", False, 0x67), ("4.13.5", False, 1), ("4.13.5", True, 7)]
)
def test_entries_of_a_pae_l3_were_only_present_before_4_14(xen, pinned, flags):
    domain = build_domu(plan_of(synthetic(bits=32), xen=xen), pinned=pinned)
    tables = domain.initial.tables
    assert set(tables["flags"][tables["level"] == 2].tolist()) == {flags}
    assert set(tables["flags"][tables["level"] == 1].tolist()) == {0x67}
    assert set(domain.initial.leaves["flags"].tolist()) == {0x23, 0x21}


def test_before_4_7_a_low_pae_guest_has_its_last_l2_table_in_slot_3():
    kernel = synthetic(bits=32, segs=((0x100000, 0x400000),), VIRT_BASE=0)
    plan = plan_of(kernel, 128 * MIB, "4.6.6")
    domain = build_domu(plan, p2m=P2M.linear(128 * MIB, 0x1000))
    image = materialise(domain.address_space, domain.p2m)
    first = plan.maps[0].tables[0].pfn + 0x1000
    root = image.pages[image.index(first)]
    assert np.flatnonzero(root).tolist() == [0, 3]  # L3, then both L2s, then the L1s
    assert [int(word) >> 12 for word in root[[0, 3]]] == [first + 1, first + 2]
    assert np.flatnonzero(image.pages[image.index(first + 1)]).tolist() == [0, 1, 2, 3]
    assert not image.pages[image.index(first + 2)].any()


def test_a_64_bit_guest_of_4_6_has_the_page_order_of_later_ones():
    old = build_domu(plan_of(patched("-INIT_P2M,-MOD_START_PFN"), 512 * MIB, "4.6.6"))
    new = build_domu(plan_of(patched("-INIT_P2M,-MOD_START_PFN"), 512 * MIB, "4.17.7"))
    assert np.array_equal(old.initial.tables, new.initial.tables)
    assert np.array_equal(old.initial.leaves, new.initial.leaves)
    assert old.p2m_map is new.p2m_map is None


def test_list_over_the_tables_hides_them_and_their_references():
    # The list [KA - 4 KiB, KA + 127 pages) covers pfns 0..126: the kernel is there, the tables too.
    kernel = synthetic(segs=((0, 0x40000),), INIT_P2M=KA - 0x1000, MOD_START_PFN=1)
    plan = plan_of(kernel, 256 * MIB)
    first, end = ((vaddr - KA) >> 12 for vaddr in plan.page_tables)
    assert (first, end) == (67, 72)  # L4, L3, L2 and 2 L1, for 4 MiB
    info = build_domu(plan).page_info()
    own = (info["pfn"] >= first) & (info["pfn"] < end)
    assert set((info["count_info"][own] & 7).tolist()) == {2, 3}  # the root is pinned
    assert set((info["count_info"][~own] & 7).tolist()) == {2}


def test_tables_of_a_list_inside_of_the_initial_mapping_are_read_only_there():
    # domu-top-list: the mapping ends just at 2^64, and the list begins in it, behind the stack.
    top = 0xFFFFFFFFFF000000
    kernel = synthetic(segs=((0, 0xF71000),), VIRT_BASE=top, INIT_P2M=0x8000000000, MOD_START_PFN=1)
    plan = plan_of(kernel, 0x4000)
    domain = build_domu(plan, pinned=False)
    data = plan.first_p2m_pfn
    flags = [flags_at(domain, top + (pfn << 12)) for pfn in range(data + 31, data + 36)]
    assert flags == [0x23, 0x21, 0x21, 0x21, 0x23]  # 32 pages of list, then its L3, L2 and L1
    own = domain.page_info()["pfn"] >= data
    assert set((domain.page_info()["count_info"][own] & 7).tolist()) == {3}  # one more than usual


def test_a_kernel_in_xens_slots_keeps_its_root_which_nothing_maps():
    plan = plan_of(synthetic(VIRT_BASE=0xFFFF800000000000))  # domu-xen-kernel
    info = build_domu(plan).page_info()
    assert info["count_info"].tolist() == [(1 << 63) + 3]
    assert len(build_domu(plan, pinned=False).page_info()) == plan.nr_pt_frames


def test_what_lies_in_xens_slots_is_replaced_by_the_pin():
    plan = plan_of(patched("INIT_P2M=0x7fffffff0000"), 512 * MIB)  # crosses into slot 256
    before, after = build_domu(plan, pinned=False), build_domu(plan)
    assert before.address_space.nr_pages - after.address_space.nr_pages == 256 - 16
    for domain, in_slot in ((before, True), (after, False)):
        image = materialise(domain.address_space, domain.p2m)
        root = image.pages[image.root()]
        assert bool(root[255])
        assert bool(root[256]) == in_slot


def test_memory_is_asked_for_in_2m_extents_then_pages_range_by_range():
    plan = plan_of(default_kernel(), pages("2G") + 3)
    assert populate_calls(plan) == [(512, 9, 0), (512, 9, 262144), (3, 0, 524288)]
    old = plan_of(default_kernel(), (1 << 20) + 5, "4.5.0")  # before 415b58c184
    assert populate_calls(old) == [(1 << 20, 0, 0), (5, 0, 1 << 20)]
    vnuma = plan_of(synthetic(), None, vnuma=[(0, 64 * MIB), (80 * MIB, 112 * MIB)])
    assert populate_calls(vnuma) == [(32, 9, 0), (16, 9, 20480)]


def test_a_modelled_host_gives_each_page_a_frame_of_its_own():
    vnuma = [(0, 64 * MIB), (80 * MIB, 112 * MIB + 7)]
    domain = build_domu(plan_of(synthetic(), None, vnuma=vnuma))
    p2m = domain.p2m
    assert p2m.nr_pages == 96 * MIB + 7
    assert p2m.mfn([64 * MIB - 1, 64 * MIB])[1] == INVALID_P2M_ENTRY
    first = p2m.mfn(np.arange(0, 1024))
    assert np.all(np.diff(first[:512].astype(np.int64)) == 1)  # within an extent up,
    assert int(first[512]) == int(first[0]) - 512  # from extent to extent down
    p2m.check()
    assert domain.page_info().size == 15


def test_root_of_a_pae_guest_with_a_32_bit_cr3_lies_below_4_gib():
    for pae, low in (("yes", True), ("extcr3", False)):
        kernel = replace(synthetic(bits=32), pae=pae)
        plan = plan_of(kernel, pages("16G"))
        p2m = build_domu(plan).p2m
        root = plan.maps[0].tables[0].pfn
        assert (int(p2m.mfn([root])[0]) < 1 << 20) == low
        assert p2m.nr_pages == plan.nr_pages
        p2m.check()


def test_a_plan_that_gives_up_cannot_be_built():
    plan = plan_of(default_kernel(), 16 * MIB)
    with pytest.raises(PanicError, match="segment kernel too large"):
        build_domu(plan)


def test_a_long_command_line_is_cut_as_strncpy_does():
    plan = plan_of(default_kernel(), 512 * MIB, cmd_line="x" * 3000)
    assert build_domu(plan).start_info()[128 : 128 + 1024] == b"x" * 1023 + b"\0"
