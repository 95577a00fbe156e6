# SPDX-License-Identifier: GPL-2.0-or-later
"""Operations of the time model, counted by hand for small guests."""

import pytest

from xenpt.domuplan import plan_domu
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, Boot, free_initial_p2m
from xenpt.linux.work import build_work, free_work
from xenpt.plan import plan_dom0
from xenpt.timing import OPERATIONS
from xenpt.xen import build

MIB, GIB = 1 << 8, 1 << 18  # pages


def work_of(*, profile="v6.1", e820=None, **settings):
    plan = plan_dom0(default_kernel(), Host(e820=e820), **settings)
    boot = Boot(build(plan), rules=PROFILES[profile], e820=e820, check=False).run()
    return {result.name: result.work for result in boot.results}


def test_2_gib_in_one_piece():
    """1024 blocks of 2 MiB, of which Xen's 38 L1 tables are kept (76 MiB, TOTAL of the layout)."""
    found = work_of(nr_pages=2 * GIB)
    assert found["setup_kernel_pagetable"] == {"setup_kernel_pagetable": 1}
    assert found["memory_setup"] == {
        "memory_setup": 1, "hole_page": 0, "hole_frame": 0, "hole_group": 0,
    }  # fmt: skip
    mapping = found["init_mem_mapping"]
    assert mapping["pinned_l1"] == 1024 - 38
    assert mapping["pinned_entry"] == mapping["direct_map_pte"] == (1024 - 38) * 512
    assert mapping["absent_pte"] == 0
    assert mapping["new_table"] == 1024 - 38 + 1  # one more L2 table, of the second GiB
    # 16 sections of 128 MiB: one L1 table and 512 entries each, an L2 and an L3 over them
    assert found["paging_init"] == {
        "paging_init": 1, "set_pte": 16 * 513 + 2, "pinned_l1": 16, "new_table": 18,
    }  # fmt: skip
    copy = found["vmalloc_p2m_tree"]
    assert copy["list_page"] == 1024
    assert copy["scanned_entry"] == 512 * GIB - 2 * GIB  # up to the hotplug limit
    assert (copy["extra_page"], copy["extra_table"]) == (0, 0)
    # a list of 4 MiB: two leaves of 2 MiB in one L2, one L3
    assert found["p2m_free"] == {
        "freed_frame": 1026, "freed_block": 4, "dropped_l1": 0, "dropped_table": 2,
        "walked_entry": 1024,
    }  # fmt: skip
    assert found["remap_memory"] == {
        "remap_memory": 0, "moved_frame": 0, "hole_group": 0, "first_mapped": 0,
    }  # fmt: skip


def test_a_hole_moves_its_frames_behind_the_end():
    """A hole of 16 MiB at 256 MiB in 512 MiB: 4096 frames, in 9 groups of up to 509."""
    hole = 256 * MIB << 12, 272 * MIB << 12
    e820 = (Ram(0, hole[0]), Ram(hole[0], hole[1], "reserved"), Ram(hole[1], 4 * GIB << 12))
    found = work_of(dom0_mem="512M,max:512M", e820=e820)
    setup = found["memory_setup"]
    assert (setup["hole_frame"], setup["hole_group"], setup["hole_page"]) == (4096, 9 + 1, 0)
    mapping = found["init_mem_mapping"]
    assert mapping["absent_pte"] == 4096
    assert mapping["direct_map_pte"] - mapping["pinned_entry"] == 4096
    moved = found["remap_memory"]
    assert (moved["moved_frame"], moved["first_mapped"], moved["hole_group"]) == (4096, 4096, 10)
    copy = found["vmalloc_p2m_tree"]
    assert copy["list_page"] == (512 - 16) * MIB // 512
    assert copy["extra_page"] == 4096
    assert copy["extra_table"] == 0  # 512 MiB + 16 MiB: the L1 table of the first GiB has room


def test_room_to_balloon_into_is_mapped_without_frames():
    found = work_of(dom0_mem="1G,max:3G", e820=(Ram(0, 4 * GIB << 12),))
    assert found["init_mem_mapping"]["absent_pte"] == 2 * GIB
    assert found["vmalloc_p2m_tree"]["extra_page"] == 2 * GIB
    assert found["vmalloc_p2m_tree"]["extra_table"] == 2  # of its second and third GiB
    assert found["remap_memory"]["moved_frame"] == 0


@pytest.mark.parametrize("leaf, blocks, l1", [("4k", 2048 + 6, 4), ("2m", 4 + 2, 0)])
def test_leaves_of_the_list(leaf, blocks, l1):
    """4 GiB: a list of 8 MiB, 2048 pages."""
    plan = plan_dom0(default_kernel(), Host(superpages=leaf), nr_pages=4 * GIB)
    work = free_work(free_initial_p2m(build(plan)).cost)
    assert work == {
        "freed_frame": 2048 + l1 + 2, "freed_block": blocks, "dropped_l1": l1, "dropped_table": 2,
        "walked_entry": 512 * (l1 + 2),
    }  # fmt: skip


def test_only_operations_that_have_constants():
    for profile in PROFILES:
        for work in work_of(nr_pages=GIB, profile=profile).values():
            assert set(work or ()) <= set(OPERATIONS)


def test_what_was_never_measured():
    trapped = work_of(nr_pages=GIB, profile="seed")
    assert trapped["paging_init"] is None  # its entries are written by trapped stores
    inside = free_initial_p2m(build(plan_dom0(default_kernel(), nr_pages=GIB))).cost
    assert free_work(inside) is not None
    e820 = (Ram(0, 100 * MIB << 12), Ram(200 * MIB << 12, 8 * GIB << 12))
    moved = work_of(nr_pages=GIB, e820=e820)  # the list, at 128 MiB, is in the hole
    assert (moved["memory_setup"], moved["p2m_free"]) == (None, None)
    assert moved["init_mem_mapping"] is not None


def test_xen_builds_dom0_and_the_toolstack_does_not():
    assert build_work(plan_dom0(default_kernel(), nr_pages=GIB)) == {"build": 1, "build_page": GIB}
    assert build_work(plan_domu(default_kernel(), nr_pages=GIB)) is None
