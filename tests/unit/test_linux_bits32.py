# SPDX-License-Identifier: GPL-2.0-or-later
"""32-bit Linux as dom0 and as a guest of the toolstack: how it takes over, and where we stop.

The kernel ends at 0xc0a00000. 1 GiB is a list of 1 MiB behind it, start_info, and the tables at
0xc0b01000: one L3, four L2, and six L1 for the 12 MiB that are mapped; Xen before 4.2.1 has one
page more, and its L3 table is the third.
"""

import json

import pytest

from xenpt.cli import main
from xenpt.domuplan import plan_domu
from xenpt.errors import UsageError
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import Kernel
from xenpt.linux import PROFILES, SEED, V4_1, V4_3, V6_1, Boot, Stage, free_initial_p2m
from xenpt.linux.bits32 import mask_rw_pte
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

GIB = 1 << 18  # pages
OLD = [rules for rules in PROFILES.values() if rules.bits_32]
FACTS = {
    "bits": 32, "pae": "extcr3", "virt_base": 0xC0000000, "virt_kstart": 0xC0100000,
    "virt_kend": 0xC0A00000, "entry": 0xC0100000, "paddr": (0x100000, 0xA00000),
    "segments": ((0x100000, 0x900000, 0x900000),), "machine": 3,
}  # fmt: skip
KERNEL = Kernel(**FACTS)


def dom0(nr_pages=GIB, *, xen="4.17", kernel=KERNEL):
    return build(plan_dom0(kernel, Host(xen=xen), nr_pages=nr_pages))


def taken_over(domain, rules):
    boot = Boot(domain, rules=rules).run_to(Stage.SETUP_KERNEL_PAGETABLE)
    return boot.state, boot.results[0].cost


def test_profiles_with_32_bits_are_those_before_linux_5_9():
    assert OLD == [V4_1, SEED, V4_3]
    with pytest.raises(UsageError, match=r"v6\.1 has no 32-bit PV guests any more"):
        Boot(dom0(), rules=V6_1)


@pytest.mark.parametrize("rules", OLD, ids=lambda rules: rules.name)
def test_taking_over_xens_page_tables(rules):
    """SPEC F2: four pages made read-only, and four L1 tables that map 8 MiB more; three others."""
    state, cost = taken_over(dom0(), rules)
    assert cost.by_type["update_va_mapping"] == 4 + 4
    assert cost.by_type["mmuext_op"] == 3
    assert cost.hypercalls == 11
    assert state.max_pfn_mapped == (6 + 4) * 512 - 1
    assert state.memblock.reserved.ranges == ((0xB01000, 0xB0C000),)
    assert state.ro_frames.ranges == ((0xB01, 0xB0C),)


def test_a_small_guest_needs_fewer_tables_of_linux_itself():
    """16 MiB are eight L1 tables, of which Xen has made six."""
    state, cost = taken_over(dom0(4096), V4_3)
    assert cost.by_type["update_va_mapping"] == 2 + 4
    assert state.max_pfn_mapped == 4095


@pytest.mark.parametrize("rules", OLD, ids=lambda rules: rules.name)
def test_a_guest_of_the_toolstack_has_its_l3_table_first(rules):
    plan = plan_domu(KERNEL, Host(), nr_pages=GIB)
    state, cost = taken_over(build_domu(plan), rules)
    start, end = ((vaddr - 0xC0000000) >> 12 for vaddr in plan.page_tables)
    assert state.memblock.reserved.ranges == ((start << 12, end << 12),)
    assert state.ro_frames.ranges == ((start, end),)
    assert cost.by_type["mmuext_op"] == 3


@pytest.mark.parametrize("rules", OLD, ids=lambda rules: rules.name)
def test_pt_base_of_old_xen_is_the_third_table(rules):
    """SPEC H1: twelve pages at 0xb01000. v4.3 finds them; before, all from the list on is kept."""
    boot = Boot(dom0(xen="4.1"), rules=rules).run_to(Stage.MEMORY_SETUP)
    kept = boot.state.memblock.reserved.clip(0xA00000, 0xC00000).ranges
    finds = rules is V4_3
    assert kept == ((0xA00000, 0xB0D000 if finds else 0xB0F000),)
    [bug] = [bug for bug in boot.bugs if bug.id == "H1"]
    assert "2 pages behind the first page table" in bug.text
    assert ("finds the first by itself" if finds else "reserves 2 pages more") in bug.text
    assert "7a9d764630" in bug.fix
    assert not [bug for bug in Boot(dom0(), rules=rules).run().bugs if bug.id == "H1"]


@pytest.mark.parametrize("rules", OLD, ids=lambda rules: rules.name)
def test_32_bits_use_64_gib(rules):
    boot = Boot(dom0(80 * GIB), rules=rules).run()
    assert boot.state.max_pfn == 64 * GIB
    assert [limit["value"] for limit in boot.beyond] == [64 * GIB]


def test_frames_move_in_groups_of_1021():
    """Two groups for 2000 frames in a hole: each is mapped once, and the buffer again."""
    hole = 2000 << 12
    e820 = [Ram(0, 512 << 20), Ram((512 << 20) + hole, 4 << 30)]
    boot = Boot(dom0(), rules=V4_3, e820=e820, max_reservation=GIB).run_to(Stage.MEMORY_SETUP)
    assert boot.results[1].cost.by_type["update_va_mapping"] == 2 + 1


@pytest.mark.parametrize(
    "start, end, what",
    [
        (0x200000, 0x300000, "kernel memory"),
        (0xB02000, 0xB03000, "page table memory"),
        (0xA80000, 0xA81000, "p2m list"),
    ],
)
def test_conflicts_with_the_map_end_v4_3_even_those_of_the_list(start, end, what):
    e820 = [Ram(0, start), Ram(end, 4 << 30)]
    boot = Boot(dom0(), rules=V4_3, e820=e820, max_reservation=GIB).run()
    assert boot.panic == f"Xen hypervisor allocated {what} conflicts with E820 map"
    old = Boot(dom0(), rules=V4_1, e820=e820, max_reservation=GIB).run()
    assert "H3" in {bug.id for bug in old.bugs}


def test_what_depends_on_lowmem_is_left_open():
    """Ten times lowmem: 5 GiB are below that in any configuration, 63 GiB may be above."""
    e820 = [Ram(0, 64 << 30)]
    for most, ran in ((6 * GIB, 2), (7 * GIB, 1)):
        boot = Boot(dom0(), rules=V4_3, e820=e820, max_reservation=most).run()
        assert (boot.verdict, len(boot.results)) == ("unknown", ran)
    assert "lowmem" in boot.not_modelled


def test_the_list_stays_where_it_is():
    """SPEC F5: its pages are those of the new list, too, so that none is freed."""
    with pytest.raises(UsageError, match="goes on with the list's own pages"):
        free_initial_p2m(dom0(), rules=V4_3)


def test_no_page_becomes_writable_that_was_not():
    """SPEC F4, CONFIG_X86_32: the new RW is old RW and new RW, where the old entry is present."""
    present, rw = 1, 2
    assert mask_rw_pte(0, present | rw) == present | rw
    assert mask_rw_pte(present, present | rw) == present
    assert mask_rw_pte(present | rw, present | rw) == present | rw
    assert mask_rw_pte(present | rw, present) == present


def test_a_kernel_that_is_no_linux_is_refused():
    low = Kernel(**FACTS | {"virt_base": 0, "virt_kstart": 0x100000, "virt_kend": 0xA00000})
    plan = plan_domu(low, Host(), nr_pages=GIB)
    with pytest.raises(UsageError, match="mapped from 0 on"):
        Boot(build_domu(plan), rules=V4_3)


def test_a_check_that_is_asked_for_is_refused():
    with pytest.raises(UsageError, match="--check: not for guests of 32 bits"):
        Boot(dom0(), rules=V4_3, check=True)


def test_the_command_shows_what_is_known_and_gives_no_verdict(tmp_path, capsys):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(FACTS | {"machine": None}))
    arguments = ["boot", "1G", "--kernel", str(path), "--linux", "v4.3"]
    assert main(arguments) == 2
    out = capsys.readouterr().out
    assert out.startswith("unknown: dom0 of 1 GiB")
    assert "No verdict: how a 32-bit Linux maps its memory" in out
    assert main([*arguments, "--json"]) == 2
    data = json.loads(capsys.readouterr().out)
    assert (data["verdict"], data["panic"], len(data["stages"])) == ("unknown", None, 2)
    assert data["not_modelled"].startswith("how a 32-bit Linux")
