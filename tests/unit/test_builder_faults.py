# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that is fragmented or out of memory: how many requests the builder makes, how it ends.

dom0 of 4 GiB, default kernel: a chunk of 128 MiB (order 15), a list of 8 MiB (4 leaves of 2 MiB,
an L3 and an L2 table), and the rest. dom0 of 600 GiB: a list of 1200 MiB, 1 GiB and 88 x 2 MiB.
"""

from dataclasses import replace

import pytest

from xenpt.builderfaults import builder_outcomes
from xenpt.domuplan import plan_domu
from xenpt.errors import PanicError, UsageError
from xenpt.faults import FALLBACK, PANIC, Fragmented, OutOfMemory
from xenpt.heaprequests import heap_requests
from xenpt.inputs.config import Host
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import V6_1, free_initial_p2m
from xenpt.plan import plan_dom0
from xenpt.units import pages
from xenpt.xen.dom0 import build


def plan(size="4G", **host):
    return plan_dom0(default_kernel(), Host(**host), nr_pages=pages(size))


def test_the_builder_asks_for_each_leaf_table_and_block():
    """1013758 pages behind chunk and list: three blocks of 2^18, then one each of 2^17, 2^16,
    2^14, 2^13, 2^12, 2^10, and 2^9 down to 2^1.
    """
    found = heap_requests(plan())
    assert (found.chunk, found.listed, found.rest) == (1, 6, 3 + 15)
    assert 3 * 2**18 + sum(2**k for k in (17, 16, 14, 13, 12, 10, *range(1, 10))) == 1013758


@pytest.mark.parametrize(
    ("nth", "panic"),
    [
        (1, "Not enough RAM for domain 0 allocation"),
        (2, "Not enough RAM for DOM0 P->M table"),
        (7, "Not enough RAM for DOM0 P->M table"),
        (8, "Not enough RAM for DOM0 reservation"),
        (25, "Not enough RAM for DOM0 reservation"),
        (26, None),
    ],
)
def test_out_of_memory_ends_with_the_panic_of_whatever_is_asked_for(nth, panic):
    found = plan(oom=nth)
    assert found.panic == panic
    (outcome,) = builder_outcomes(found)
    assert outcome.fault == OutOfMemory("xen", nth)
    assert outcome.end == (PANIC if panic else None)
    assert outcome.text == (panic or "the builder makes 25 requests")
    if panic:
        with pytest.raises(PanicError, match=panic):
            build(found)


def test_an_old_xen_panics_with_a_full_stop_and_what_it_did_not_decide_is_null():
    found = plan(oom=2, xen="4.3")
    assert found.panic == "Not enough RAM for DOM0 P->M table."
    assert "Page tables:" in str(found)  # the arrangement is printed before
    assert found.as_dict()["nr_p2m_frames"] is None
    found = plan(oom=25)
    assert found.as_dict()["nr_p2m_frames"] == 2050
    assert found.as_dict()["mod_start"] is None


@pytest.mark.parametrize(
    ("order", "larger", "leaves", "tables"),
    [
        (18, 0, {"4k": 0, "2m": 88, "1g": 1}, {"l1": 0, "l2": 1, "l3": 1}),
        (17, 2, {"4k": 0, "2m": 88, "1g": 1}, {"l1": 0, "l2": 1, "l3": 1}),
        (9, 1, {"4k": 0, "2m": 600, "1g": 0}, {"l1": 0, "l2": 2, "l3": 1}),
        (8, 1, {"4k": 307200, "2m": 0, "1g": 0}, {"l1": 600, "l2": 2, "l3": 1}),
        (8, 2, {"4k": 45056, "2m": 0, "1g": 1}, {"l1": 88, "l2": 1, "l3": 1}),
        (8, 12, {"4k": 39936, "2m": 10, "1g": 1}, {"l1": 78, "l2": 1, "l3": 1}),
    ],
)
def test_a_leaf_that_finds_no_block_becomes_smaller_ones(order, larger, leaves, tables):
    """SPEC B9. The chunk takes the first large block, then the list's leaves in their order.

    Order 17 has the chunk's own 2^15 pages for small; order 9 has 2 MiB blocks for small.
    """
    found = plan("600G", fragmented=Fragmented(order, larger))
    assert found.p2m_leaves == leaves
    assert found.p2m_tables == tables
    assert found.nr_p2m_frames == 307200 + sum(tables.values())
    built = build(found)
    assert built.p2m_map is not None
    assert built.p2m_map.nr_tables() == sum(tables.values())
    assert free_initial_p2m(built, rules=V6_1).cost.pages_freed == found.nr_p2m_frames


def test_attempts_that_fail_are_requests_too():
    """600 GiB at order 8: 1 attempt at 1 GiB, 600 at 2 MiB; 307200 leaves and 603 tables."""
    assert heap_requests(plan("600G", fragmented=Fragmented(8, 1))).listed == 307803 + 601
    assert heap_requests(plan("600G", fragmented=Fragmented(9, 1))).listed == 603 + 1
    # The rest of a dom0 of 4 GiB at order 17: one attempt at 2^18, 7 x 2^17, then as above.
    assert heap_requests(plan(fragmented=Fragmented(17, 0))).rest == 1 + 7 + 14


def test_a_host_without_one_large_block_has_no_dom0():
    found = plan(fragmented=Fragmented(14, 0))
    assert found.panic == "Not enough RAM for domain 0 allocation"
    assert builder_outcomes(found)[0].end == PANIC
    assert plan(fragmented=Fragmented(15, 0)).panic is None  # the chunk is no larger than that


def test_a_chunk_that_no_host_has_is_not_the_fault_s():
    """600 GiB without INIT_P2M: a chunk of 2 GiB, above Xen's largest."""
    kernel = replace(default_kernel(), init_p2m=None)
    for faulty in ({"oom": 1}, {"fragmented": Fragmented(9, 0)}):
        found = plan_dom0(kernel, Host(**faulty), nr_pages=pages("600G"))
        assert found.panic == "Not enough RAM for domain 0 allocation"
        assert builder_outcomes(found)[0].end is None


def test_what_a_fragmented_host_changes_is_said():
    (outcome,) = builder_outcomes(plan("600G", fragmented=Fragmented(9, 1)))
    assert (outcome.end, outcome.where) == (FALLBACK, "build")
    assert "600 x 2 MiB leaves, not 1 x 1 GiB + 88 x 2 MiB" in outcome.text
    assert "blocks of 2^9 pages" in outcome.text
    (outcome,) = builder_outcomes(plan("600G", fragmented=Fragmented(18, 0)))
    assert outcome.end is None


def test_smaller_leaves_may_leave_no_room_for_the_list():
    """128 GiB, of which an initrd leaves room for chunk, list, L3, L2 and 3 tables to spare.

    In 4 KiB leaves the list's 65536 pages need 128 L1 tables more.
    """
    size, chunk = 1 << 25, 1 << 15
    initrd = (size - chunk - 65536 - 2 - 3) << 12
    whole = plan_dom0(default_kernel(), Host(), nr_pages=size, initrd_bytes=initrd)
    assert whole.panic is None
    host = Host(fragmented=Fragmented(8, 1))
    assert plan_dom0(default_kernel(), host, nr_pages=size, initrd_bytes=initrd).panic == (
        "Dom0 allocation too small for initial P->M table"
    )


def test_the_frames_of_a_fragmented_host_are_in_small_blocks():
    found = build(plan("1G", fragmented=Fragmented(9, 1)))
    assert found.violations() == []
    rows = found.p2m.runs
    assert rows["nr"][rows["pfn"] >= 32768].max() <= 512
    assert rows["nr"].max() == 32768  # the chunk


def test_the_toolstack_gives_up_when_an_extent_is_not_served():
    """1 GiB + 2 pages: 512 extents of 2 MiB and two pages."""
    for nth, panics in ((1, True), (512, True), (514, True), (515, False)):
        found = plan_domu(default_kernel(), Host(oom=nth), nr_pages=(1 << 18) + 2)
        assert (found.panic == "meminit_pv: failed to allocate 0x40002 pages") is panics
        (outcome,) = builder_outcomes(found)
        assert outcome.end == (PANIC if panics else None)
    assert outcome.text == "the builder makes 514 requests"


def test_a_fragmented_host_is_not_modelled_for_the_toolstack():
    host = Host(fragmented=Fragmented(8, 1))
    with pytest.raises(UsageError, match="--fault fragmented=8:1: only for --builder dom0"):
        plan_domu(default_kernel(), host, nr_pages=1 << 18)
