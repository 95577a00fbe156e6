# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs that a boot meets without giving up: each with its numbers, and none where it is fixed."""

import re
from dataclasses import replace

import pytest

from xenpt.cli import main
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import SEED, V4_1, V4_3, V6_1, Boot, Stage
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

GIB = 1 << 18  # pages
NAMES_A_COMMIT = re.compile(r'\b[0-9a-f]{10,12}\b|".{20,}"')  # a hash, or a subject


def boot(nr_pages, rules, *, initrd=None, leaf="1g", e820=None, limit=None, **kernel):
    image = replace(default_kernel(), **kernel)
    plan = plan_dom0(image, Host(superpages=leaf), nr_pages=nr_pages, initrd_bytes=initrd)
    return Boot(build(plan), rules=rules, e820=e820, max_reservation=limit).run()


def bugs(*arguments, **how):
    met = boot(*arguments, **how).bugs
    for bug in met:
        assert NAMES_A_COMMIT.search(bug.fix) or bug.fix.startswith("none is known")
    return {bug.id: bug.text for bug in met}


def test_a_plain_boot_meets_none():
    for rules in (SEED, V4_3, V6_1):
        assert bugs(4 * GIB, rules) == {}


def test_a_list_off_the_2_mib_border_leaks():
    off = 0x8000001000
    assert bugs(4 * GIB, V4_3, init_p2m=off)["H4"].startswith("511 pages of the P->M list")
    assert "H4" not in bugs(4 * GIB, V6_1, init_p2m=off)


LOST = "lie in holes of the E820 map and lose their frames"


def test_holes_under_list_and_initrd_take_their_frames_away_on_the_seed():
    """List at pfns [33000, 33514) behind an initrd of 232 pages; hole at [32768, 33024)."""
    e820 = [Ram(0, 0x8000000), Ram(0x8100000, 2 << 30)]
    seed = boot(GIB, SEED, initrd=232 << 12, e820=e820)
    met = [bug.text.partition(":")[0] for bug in seed.bugs]
    assert met[:2] == [f"24 pages of the P->M list {LOST}", f"232 pages of the initrd {LOST}"]
    assert (seed.verdict, seed.beyond) == ("boots", [])  # a bug, and no limit that is passed
    assert "H3" not in bugs(GIB, V6_1, initrd=232 << 12, e820=e820)
    behind = [Ram(0, 0x8800000), Ram(0x9000000, 2 << 30)]  # 514 pages at 0x8000000
    assert "H3" not in bugs(GIB, SEED, e820=behind)


@pytest.mark.parametrize("rules", [SEED, V4_1])
def test_holes_under_kernel_and_tables_are_not_seen_before_v4_3(rules):
    """Kernel pfns [0x1000, 0x4a00), tables [0x4a01, 0x4a2a); holes [0x1100, 0x1200), [0x4a10, ..).

    No RAM is left to move to: the frames go back to Xen one by one, and are lost as well.
    """
    image = replace(default_kernel(), init_p2m=None) if rules is V4_1 else default_kernel()
    tables = 0x4C01000 if rules is V4_1 else 0x4A01000  # a list of 1 GiB is 2 MiB, and start_info
    e820 = [Ram(0, 0x1100000), Ram(0x1200000, tables + 0xF000), Ram(tables + 0x100000, 1 << 30)]
    plan = plan_dom0(image, Host(), nr_pages=GIB)
    assert plan.page_tables[0] & 0x7FFFFFFF == tables
    left = Boot(build(plan), rules=rules, e820=e820, max_reservation=GIB)
    met = [bug.text.partition(":")[0] for bug in left.run_to(Stage.MEMORY_SETUP).bugs]
    nr_tables = plan.nr_pt_frames - 0xF
    assert met[:2] == [
        f"{nr_tables} pages of the page tables {LOST}",
        f"256 pages of the kernel {LOST}",
    ]


def test_v4_3_may_move_the_list_over_itself():
    """List at [0x8000000, 0x8802000), moved to 0x7ff0000: 2054 pages, 16 of them before it."""
    e820 = [Ram(0x1000000, 0x4A2B000), Ram(0x7FF0000, 0x8800000), Ram(0x8810000, 16 << 30)]
    assert bugs(4 * GIB, V4_3, e820=e820)["H12"].startswith(
        "the P->M list is moved over 2,038 pages of itself"
    )
    assert "H12" not in bugs(4 * GIB, V6_1, e820=e820)


def test_room_that_is_found_in_the_brk_area_is_used_twice():
    """1 GiB: 515 pages from 0x4400000 on, where the brk area begins; 17 pages of that are used."""
    e820 = [Ram(0x1000000, 0x8000000), Ram(0x8100000, 2 << 30)]
    assert bugs(GIB, V6_1, e820=e820)["brk"].startswith("the P->M list is moved over 17 pages")


def test_a_hole_over_the_brk_area_is_not_seen_by_v4_3():
    e820 = [Ram(0, 0x4400000), Ram(0x4A00000, 2 << 30)]
    assert "H15" in bugs(GIB, V4_3, e820=e820)


def test_ram_beyond_the_reservation_is_marked_unusable():
    """256 MiB of a host of 8 GiB, growing to 512: 7.5 GiB."""
    how = {"e820": [Ram(0, 8 << 30)], "limit": GIB // 2}
    assert bugs(GIB // 4, V4_3, **how)["H13"].startswith("1,966,080 pages")
    assert "H13" not in bugs(GIB // 4, V6_1, **how)


def test_ram_that_ends_with_the_domain_hides_the_room_behind_it():
    """SPEC H14: RAM ends at nr_pages, where the search begins: 256 pages are released."""
    e820 = [Ram(0, 0x9000000), Ram(0x9100000, 0x10000000), Ram(8 << 30, 16 << 30)]
    found = bugs(GIB // 4, V4_3, e820=e820, limit=GIB // 2)
    assert found["H14"].startswith("256 pages of holes are given back to Xen")
    assert "H14" not in bugs(GIB // 4, V6_1, e820=e820, limit=GIB // 2)


def test_cleanup_highmap_runs_on_where_the_list_is_far_up():
    """SPEC H10: an initrd of 2 GiB; pfn 32768 + 524288 is slot 1088 of 512."""
    for rules in (SEED, V6_1):
        text = bugs(8 * GIB, rules, initrd=2 << 30)["H10"]
        assert text == "cleanup_highmap() runs 576 entries past level2_kernel_pgt"


@pytest.mark.parametrize("rules", [V4_1, V6_1])
def test_the_4_mib_of_padding_leave_a_stale_slot_behind_a_list_inside(rules):
    """List of 729088 pages: 0x4a00000 to 0x4f90000, tables to 0x4fbc000; slots 37 to 40 go.

    Less than 512 KiB are left to 0x5000000, so that Xen maps up to 0x5400000: slot 41, too.
    """
    assert bugs(729088, rules, init_p2m=None)["H7"].startswith("1 stale")
    assert "H7" not in bugs(GIB // 4, rules, init_p2m=None)


def test_large_leaves_are_walked_as_tables_before_the_list_is_freed():
    assert bugs(1024 * GIB, V4_3)["H9"].startswith("2 data pages")
    assert "H9" not in bugs(1024 * GIB, V4_3, leaf="2m")
    assert "H9" not in bugs(1024 * GIB, V6_1)


def test_unpinning_what_linux_did_not_pin_is_a_bug_and_so_is_the_reverse():
    """SPEC H5, E5: Linux knows its own tables by their address alone."""
    assert "unpin of a table never pinned" in boot(GIB // 4, V6_1, init_p2m=2 << 39).panic
    e820 = [Ram(0, 0x8000000), Ram(0x8100000, 2 << 30)]
    rules = replace(V6_1, cleanup=replace(V6_1.cleanup, unpin_relocated=False))
    assert "a pinned page table" in boot(GIB // 4, rules, e820=e820).panic


def test_xenpt_boot_warns(capsys):
    assert main(["boot", "1T", "--linux", "v4.3"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "bug H9: 2 data pages" in out
    assert "Fix: 6f84f8d1587f" in out


@pytest.mark.parametrize("rules", [SEED, V6_1])
def test_warnings_are_in_the_json_object(rules):
    shown = boot(8 * GIB, rules, initrd=2 << 30).as_dict()["warnings"]
    assert shown == [
        {
            "id": "H10",
            "text": "cleanup_highmap() runs 576 entries past level2_kernel_pgt",
            "fix": "none is known",
        }
    ]


def test_a_list_that_ends_with_the_first_gib_is_cleaned_beyond_its_table():
    """SPEC H6: 473 GiB are 946 MiB of list; tables from 0x3fc01000 on, rounded up to 4 MiB.

    Both ends are included: slots 510 to 512, of 0 to 511.
    """
    text = "xen_cleanhighmap() walks 1 entry past level2_kernel_pgt"
    assert bugs(473 * GIB, V4_1, init_p2m=None)["H6"] == text
    assert "H6" not in bugs(473 * GIB, V6_1, init_p2m=None)
