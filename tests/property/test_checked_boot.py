# SPDX-License-Identifier: GPL-2.0-or-later
"""A boot under Xen's rules has the costs, the state and the warnings of one that only counts.

That it gets through at all is half of the test: behind each stage checked mode compares every
word of every table, every type and every count with what the stage says (linux/agreement.py).
"""

from dataclasses import replace

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from xenpt.domuplan import plan_domu
from xenpt.inputs.config import Host, Ram
from xenpt.inputs.kernel import default_kernel
from xenpt.linux import PROFILES, Boot, with_rules
from xenpt.linux.state import NotModelled
from xenpt.plan import plan_dom0
from xenpt.xen.dom0 import build
from xenpt.xen.domu import build_domu

ROOM = 1 << 34  # bytes of RAM behind the last hole
#: Flags that each generation may have without a call that Xen refuses: not `ro_initial_p2m=no`,
#: nor `root_entry_first=no` where nobody clears tables' entries (unit/test_linux_checked.py).
CHANGES = (
    "skip_empty_entries=yes", "skip_empty_entries=no", "depth_first=yes", "depth_first=no",
    "root_entry_first=yes", "clear_table_entries=yes",
    "align_table_range_end=yes", "align_table_range_end=no", "nx_ident_map=yes", "nx_ident_map=no",
    "saved_dirty=yes", "saved_dirty=no", "low_ram_bytes=0x80000", "map_holes_identity=yes",
    "map_holes_identity=no", "set_pte_hypercall=yes", "set_pte_hypercall=no", "pgt_buf_pages=0",
    "pgt_buf_pages=64", "flush_each_mapping=yes", "align_without_block=no",
    "pin_user_vsyscall=yes", "pin_user_vsyscall=no", "hotplug_limit_gib=0",
    "page_offset=0xffff890000000000", "count_remap_first=no", "pfn_range_inclusive=no",
)  # fmt: skip


@st.composite
def boots(draw):
    """A built domain and the other arguments of Boot."""
    kernel, nr_pages = default_kernel(), draw(st.integers(40_000, 70_000))
    if draw(st.booleans()):
        kernel = replace(kernel, init_p2m=None)
    initrd = draw(st.sampled_from([None, 1, 4097, 9_999_999]))
    rules = PROFILES[draw(st.sampled_from(sorted(PROFILES)))]
    rules = with_rules(rules, draw(st.lists(st.sampled_from(CHANGES), max_size=3, unique=True)))
    host = Host(superpages=draw(st.sampled_from(["4k", "2m"])))
    if draw(st.booleans()):
        plan = plan_domu(kernel, host, nr_pages=nr_pages, initrd=initrd)
        return build_domu(plan), rules, None, None
    plan = plan_dom0(kernel, host, nr_pages=nr_pages, initrd_bytes=initrd)
    mapped_end = plan.total[1] - plan.total[0]  # behind it lie initrd and list, which may move
    start, e820 = 0, []
    edges = draw(st.lists(st.integers(mapped_end, 1 << 29), max_size=4, unique=True))
    low = draw(st.sampled_from([[(0x9FC00, 0x100000)], [(0x80000, 0x100000)], []]))
    for first, end in [*low, *zip(*[iter(sorted(edges))] * 2, strict=False)]:
        e820.append(Ram(start, first))
        start = end
    e820.append(Ram(start, start + draw(st.sampled_from([ROOM, nr_pages << 12]))))
    more = draw(st.sampled_from([0, 1, 100_000]))
    return build(plan), rules, e820, nr_pages + more


def run(arguments, *, check):
    domain, rules, e820, limit = arguments
    try:
        return Boot(domain, rules=rules, e820=e820, max_reservation=limit, check=check).run()
    except NotModelled:
        reject()


@settings(max_examples=20, deadline=None)
@given(boots())
def test_checked_and_fast_boots_agree(arguments):
    fast, checked = (run(arguments, check=check) for check in (False, True))
    assert fast.panic == checked.panic
    assert fast.checked is None
    assert [r.cost for r in fast.results] == [r.cost for r in checked.results]
    assert [r.mmuext for r in fast.results] == [r.mmuext for r in checked.results]
    assert fast.cleanup == checked.cleanup
    assert [bug.as_dict() for bug in fast.bugs] == [bug.as_dict() for bug in checked.bugs]
    assert fast.beyond == checked.beyond
    for name in ("memblock", "linux_e820", "identity", "extra", "remaps", "moved", "highmap"):
        assert getattr(fast.state, name) == getattr(checked.state, name), name
    assert np.array_equal(fast.state.tables, checked.state.tables)
    if checked.checked is not None and checked.results:
        counted = sum(r.cost.hypercalls for r in checked.results)
        assert checked.checked["calls"] >= counted
        assert checked.checked["words"] > 0
