# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot whose calls are recorded one by one has the counts and the end of one that only counts."""

import numpy as np
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from xenpt.extents import expand
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, V6_1, Boot
from xenpt.linux.addressspace import address_space
from xenpt.linux.state import NotModelled
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build

ROOM = 1 << 36  # bytes of RAM behind the last hole


@st.composite
def boots(draw):
    """Arguments of a boot: a small domain, any leaves, and a map with up to three holes."""
    nr_pages = draw(st.integers(40_000, 600_000))
    plan = plan_dom0(
        default_kernel(),
        Host(superpages=draw(st.sampled_from(["4k", "2m", "1g"]))),
        nr_pages=nr_pages,
        initrd_bytes=draw(st.sampled_from([None, 1, 4097, 9_999_999])),
    )
    mapped_end = plan.total[1] - plan.total[0]  # behind it lie initrd and list, which may move
    start, e820 = 0, []
    edges = draw(st.lists(st.integers(mapped_end, 1 << 33), max_size=6, unique=True))
    holes = [(0x9FC00, 0x100000), *zip(*[iter(sorted(edges))] * 2, strict=False)]
    for low, high in holes:
        e820.append(Ram(start, low))
        start = high
    e820.append(Ram(start, start + ROOM))
    more = draw(st.sampled_from([0, 1, 100_000]))
    return build(plan), PROFILES[draw(st.sampled_from(sorted(PROFILES)))], e820, nr_pages + more


def run(boot):
    """The boot, run to its end; maps that leave too little RAM for an answer are not drawn."""
    try:
        return boot.run()
    except NotModelled:
        reject()


@settings(max_examples=25)
@given(boots())
def test_counting_and_recording_agree(arguments):
    domain, rules, e820, limit = arguments
    counted, recorded = (
        run(Boot(domain, rules=rules, e820=e820, max_reservation=limit, record=record, check=False))
        for record in (False, True)
    )
    for fast, slow in zip(counted.results, recorded.results, strict=True):
        assert fast.cost == slow.cost
        assert fast.mmuext == slow.mmuext
        traps = sum(call.nr for call in slow.calls if not call.batched)
        assert traps == slow.cost.hypercalls
    assert counted.state.memblock == recorded.state.memblock
    assert counted.state.ro_frames == recorded.state.ro_frames
    assert np.array_equal(counted.state.tables, recorded.state.tables)
    assert counted.panic == recorded.panic
    if rules.page_offset == V6_1.page_offset and not counted.panic:  # whose symbols are known
        fast, slow = (address_space(boot.state) for boot in (counted, recorded))
        fast.mapping.check()
        assert np.array_equal(fast.mapping.leaves, slow.mapping.leaves)
        assert np.array_equal(fast.mapping.tables, slow.mapping.tables)
        assert np.array_equal(fast.aliases, slow.aliases)


@settings(max_examples=25)
@given(boots())
def test_frames_of_tables_are_distinct_and_in_nobody_elses_use(arguments):
    domain, rules, e820, limit = arguments
    boot = run(Boot(domain, rules=rules, e820=e820, max_reservation=limit, check=False))
    assume(not boot.panic)  # of v4.1, for one, which cannot use a list outside
    pfns = expand(boot.state.tables, tables=True)["pfn"].astype(np.int64)
    assert len(np.unique(pfns)) == len(pfns)
    first, end = boot.state.p2m_frames
    assert not np.any((pfns >= first) & (pfns < end))
    pt_start, pt_end = boot.state.pt_pfns
    assert not np.any((pfns > pt_start) & (pfns < pt_end))  # Xen's L4 page was given back
    assert all(boot.state.memblock.reserved.meets(int(p) << 12, int(p) + 1 << 12) for p in pfns)
