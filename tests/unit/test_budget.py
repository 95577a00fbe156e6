# SPDX-License-Identifier: GPL-2.0-or-later
"""What a PV domain's memory is used for; golden tests hold each stage against real boots."""

from dataclasses import replace

import pytest

from xenpt.budget import inside
from xenpt.domuplan import plan_domu
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import SEED, V4_1, V6_1
from xenpt.plan import plan_dom0
from xenpt.units import pages


def rows(found):
    return {row.name: row.pages for row in found.rows}


@pytest.mark.parametrize("rules", [SEED, V6_1], ids=lambda rules: rules.name)
@pytest.mark.parametrize("size", ["1G", "8G", "600G"])
def test_rows_add_up(rules, size):
    found = inside(plan_dom0(default_kernel(), nr_pages=pages(size)), rules)
    assert sum(rows(found).values()) == found.nr_pages == pages(size)
    assert min(rows(found).values()) >= 0


def test_tables_of_8_gib_by_hand():
    found = rows(inside(plan_dom0(default_kernel(), nr_pages=1 << 21), V6_1))
    # 4096 L1 tables, 38 of which Xen's were already; L2: 7 besides level2_ident. 16 come from brk.
    assert found["direct_map_tables"] == 4096 - 38 + 7 - 16
    assert found["struct_pages"] == (1 << 21) * 64 // 4096
    assert found["vmemmap_tables"] == 64 + 1 + 1  # a section of 128 MiB each; upper levels
    # ceil(N/512) pages, an L1 for each 2^18 pfns, 2 tables above, 2 filler pages with their tables
    assert found["p2m_list"] == 4096 + 8 + 2 + 4
    assert found["unused"] == 97  # [0x9f000 and up, 1 MiB)


def test_initial_list_is_in_use_until_it_is_copied():
    plan = plan_dom0(default_kernel(), nr_pages=pages("600G"))
    assert inside(plan, V6_1).boot_pages == plan.nr_p2m_frames == 307202


def test_list_that_leaks():
    """SPEC F7: of a list that begins 4 KiB behind a 2 MiB border the mail leaks 511 pages."""
    kernel = replace(default_kernel(), init_p2m=0x8000001000)
    found = inside(plan_dom0(kernel, nr_pages=pages("4G")), SEED)
    assert rows(found)["p2m_leaked"] == 511
    assert sum(rows(found).values()) == found.nr_pages


def test_domu_beyond_512_gib_does_not_use_the_rest():
    plan = plan_domu(default_kernel(), Host(superpages="4k"), nr_pages=pages("2T"))
    found = inside(plan, V6_1)
    assert rows(found)["unused"] == (1 << 29) - (1 << 27) + 97
    assert [limit["value"] for limit in found.beyond] == [1 << 27]


def test_frames_in_holes_move_and_are_not_lost():
    e820 = (Ram(0, 0x9FC00), Ram(0x100000, 0xC0000000), Ram(0x100000000, 0x400000000))
    found = inside(plan_dom0(default_kernel(), Host(e820=e820), dom0_mem="8G,max:8G"), V6_1)
    assert rows(found)["unused"] == 1  # the page that is in part behind 0x9fc00
    assert sum(rows(found).values()) == 1 << 21


def test_no_budget_of_what_does_not_boot():
    small = plan_dom0(default_kernel(), nr_pages=pages("32M"))
    assert small.panic
    assert inside(small, V6_1) is None
    assert inside(plan_dom0(default_kernel(), nr_pages=pages("1G")), V4_1) is None
