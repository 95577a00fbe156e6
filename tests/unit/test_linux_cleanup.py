# SPDX-License-Identifier: GPL-2.0-or-later
"""Freeing the initial P->M list: SPEC F7's worked examples, and lists no boot comes to free."""

from dataclasses import replace

import pytest

from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, SEED, V6_1, Boot, free_initial_p2m
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
        (4 * GIB, "1g", "v6.1", 2052, 0, 6),
        (512 * GIB + 300000, "1g", "seed", 262734, 75, 79),
        (512 * GIB + 300000, "1g", "v6.1", 262736, 512, 79),
        (1024 * GIB, "1g", "v6.1", 524290, 0, 3),
        (1024 * GIB, "4k", "seed", 525316, 524288, 525315),
        (1024 * GIB, "4k", "v6.1", 526342, 524288, 525315),
    ],
)
def test_worked_examples(nr_pages, leaf, profile, hypercalls, l1_reads, frees):
    found = cleanup(nr_pages, profile, leaf=leaf)
    assert found["hypercalls"] == hypercalls
    assert found["entries_read"]["l1"] == l1_reads
    assert found["memblock_free_calls"] == frees
    assert found["pages_leaked"] == 0


def test_a_list_off_the_2_mib_border_leaks_on_the_seed_alone():
    """4 GiB at 0x8000001000: 511 pages of the first L1 table stay read-only and reserved."""
    found = cleanup(4 * GIB, "seed", init_p2m=0x8000001000)
    assert found["hypercalls"] == 1542
    assert found["memblock_free_calls"] == 8
    assert found["entries_read"]["l1"] == 3
    assert found["pages_leaked"] == 511
    assert found["tables_freed"] == {"l1": 2, "l2": 1, "l3": 1}
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
    found = free_initial_p2m(moved, rules=V6_1).as_dict()
    assert found["unpin"] == 4 + 1 + 1
    assert found["hypercalls"] == 2066
    assert free_initial_p2m(moved, rules=SEED).as_dict()["unpin"] == 0


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
