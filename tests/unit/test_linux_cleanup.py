# SPDX-License-Identifier: GPL-2.0-or-later
"""Freeing the initial P->M list: SPEC F7's worked examples, and lists no boot comes to free."""

from dataclasses import replace

import pytest

from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, SEED, V4_1, V4_3, V6_1, Boot, Stage, free_initial_p2m
from xenpt.linux.state import LinuxPanic
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

GIB = 1 << 18  # pages


def domain(nr_pages, *, leaf="1g", **kernel):
    image = replace(default_kernel(), **kernel)
    return build(plan_dom0(image, Host(superpages=leaf), nr_pages=nr_pages))


def cleanup(nr_pages, profile, **how):
    return free_initial_p2m(domain(nr_pages, **how), rules=PROFILES[profile]).as_dict()


def test_4_gib_of_the_seed():
    found = cleanup(4 * GIB, "seed")
    assert found["hypercalls"] == 2051
    assert found["memblock_free_calls"] == 6
    assert found["entries_read"] == {"l1": 0, "l2": 512, "l3": 1023}
    assert found["lookup_reads"] == 4 * 2050
    assert (found["set_l2"], found["set_l3"], found["set_l4"]) == (0, 0, 1)


@pytest.mark.parametrize(
    "nr_pages, leaf, profile, hypercalls, l1_reads, frees",
    [
        (4 * GIB, "1g", "v4.3", 2052, 0, 6),
        (4 * GIB, "1g", "v6.1", 2052, 0, 6),
        (512 * GIB + 300000, "1g", "seed", 262734, 75, 79),
        (512 * GIB + 300000, "1g", "v4.3", 262736, 75, 79),
        (512 * GIB + 300000, "1g", "v6.1", 262736, 512, 79),
        (1024 * GIB, "1g", "v6.1", 524290, 0, 3),
        (1024 * GIB, "4k", "seed", 525316, 524288, 525315),
        (1024 * GIB, "4k", "v4.3", 526342, 524288, 525315),
        (1024 * GIB, "4k", "v6.1", 526342, 524288, 525315),
    ],
)
def test_worked_examples(nr_pages, leaf, profile, hypercalls, l1_reads, frees):
    found = cleanup(nr_pages, profile, leaf=leaf)
    assert found["hypercalls"] == hypercalls
    assert found["entries_read"]["l1"] == l1_reads
    assert found["memblock_free_calls"] == frees
    assert found["pages_leaked"] == 0


def test_a_list_off_the_2_mib_border_leaks_until_v4_12():
    """4 GiB at 0x8000001000: 511 pages of the first L1 table stay read-only and reserved."""
    found = cleanup(4 * GIB, "seed", init_p2m=0x8000001000)
    assert found["hypercalls"] == 1542
    assert found["memblock_free_calls"] == 8
    assert found["entries_read"]["l1"] == 3
    assert found["pages_leaked"] == 511
    assert found["tables_freed"] == {"l1": 2, "l2": 1, "l3": 1}
    merged = cleanup(4 * GIB, "v4.3", init_p2m=0x8000001000)
    assert (merged["pages_leaked"], merged["hypercalls"]) == (511, 1542 + 2 + 1)
    assert cleanup(4 * GIB, "v6.1", init_p2m=0x8000001000)["pages_leaked"] == 0


@pytest.mark.parametrize("profile, read", [("seed", 3 + 2), ("v6.1", 3 + 1)])
def test_a_list_in_the_kernels_map_costs_a_call_for_each_2_mib_and_one_free(profile, read):
    """2 GiB: list at 0x4a00000, 4 MiB: slots 37, 38 and, both ends being included, 39.

    The tables begin at 0x4e01000: slot 39 again; the seed's range goes on to 0x5001000.
    """
    found = cleanup(2 * GIB, profile, init_p2m=None)
    assert found["hypercalls"] == found["set_l2"] == 3
    assert found["update_va_mapping"] == 0
    assert found["memblock_free_calls"] == 1
    assert found["pages_freed"] == 1024
    assert found["entries_read"] == {"l1": 0, "l2": read, "l3": 0}


def test_a_relocated_list_is_unpinned_by_mainline():
    """SPEC F7: 4 GiB at 2 * 512 GiB, where Linux itself puts a list, in 4 KiB pages."""
    moved = domain(4 * GIB, leaf="4k", init_p2m=2 << 39)
    for rules in (V4_3, V6_1):
        found = free_initial_p2m(moved, rules=rules).as_dict()
        assert found["unpin"] == 4 + 1 + 1
        assert found["hypercalls"] == 2066
    assert free_initial_p2m(moved, rules=SEED).as_dict()["unpin"] == 0


def test_v4_3_takes_the_root_entry_out_first_and_each_table_before_its_pages():
    """512 MiB at 512 GiB: L3, L2, one L1 of 256 pages (SPEC F7: v4.3 adds set_pmd and set_pud)."""
    boot = Boot(domain(GIB // 2), rules=V4_3, record=True).run_to(Stage.P2M_FREE)
    calls = [(call.op, call.level, call.nr) for call in boot.results[-1].calls]
    made_writable = ("update_va_mapping", 0, 1)
    root, table, upper = (("mmu_update", level, 1) for level in (4, 2, 3))
    assert calls == [root, table, *[made_writable] * 257, upper, *[made_writable] * 2]
    assert boot.cleanup.set_entries == {"l2": 1, "l3": 1, "l4": 1}


def test_v4_1_has_no_way_to_use_a_list_outside():
    """Its L4 entry is not copied, as that of slot 0 is not by later ones (p-slot0)."""
    boot = Boot(domain(4 * GIB), rules=V4_1).run()
    assert boot.panic == "Hardware Dom0 halted: halting machine"
    assert boot.results == []
    with pytest.raises(LinuxPanic, match="BUG"):
        free_initial_p2m(domain(4 * GIB), rules=V4_1)


@pytest.mark.parametrize("base", [1 << 30, (2 << 39) - (2 << 20), (2 << 39) - 4096])
def test_linux_dies_of_a_list_in_slot_0_or_across_two_slots(base):
    """p-slot0, p-base+512g-2m, p-base+512g-4k: Xen halts, with nothing from Linux's own panic()."""
    boot = Boot(domain(2 * GIB, init_p2m=base)).run()
    assert boot.verdict == "panics"
    assert boot.panic == "Hardware Dom0 halted: halting machine"
    assert boot.cleanup is None
    assert boot.as_dict()["cleanup"] is None
    assert boot.as_dict()["memblock"]["cleanup"] is None


def test_a_cleanup_alone_says_what_the_second_slot_of_a_list_leaks():
    """512 GiB - 2 MiB: one 2 MiB leaf is in slot 1, one in slot 2 with an L3 and an L2 table."""
    found = cleanup(2 * GIB, "v6.1", init_p2m=(2 << 39) - (2 << 20))
    assert found["pages_leaked"] == 512 + 2
    assert found["hypercalls"] == 512 + 2 + 2


def test_variants_are_the_same_list_with_other_leaves():
    boot = Boot(domain(1024 * GIB), rules=SEED).run()
    variants = boot.as_dict()["cleanup"]["variants"]
    assert set(variants) == {"2m", "4k"}
    assert variants["4k"]["hypercalls"] == 525316
    assert variants["2m"]["hypercalls"] == 1 + 524291  # SPEC B9
