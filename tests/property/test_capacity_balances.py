# SPDX-License-Identifier: GPL-2.0-or-later
"""Every page of a host is in one row of its budget, at any size and with any options."""

from hypothesis import given, settings
from hypothesis import strategies as st

from xenpt.capacity import GuestGroup, capacity
from xenpt.inputs.config import Host, Ram
from xenpt.vendors import DOM0_RULES, KINDS

TIB_PAGES = 1 << 28


@st.composite
def hosts(draw):
    """A flat host, or one with holes and odd borders; up to 200 TiB."""
    bigmem = draw(st.booleans())
    xen = draw(st.sampled_from(["4.14", "4.17", "4.20"] + ([] if bigmem else ["3.4", "4.2"])))
    if draw(st.booleans()):
        return Host(xen=xen, bigmem=bigmem, memory=draw(st.integers(4096, 200 * TIB_PAGES)))
    entries, at = [Ram(0, 64 << 20)], 64 << 20
    for _ in range(draw(st.integers(1, 5))):
        start = at + draw(st.sampled_from([0, 0x9FC00, 1 << 30, 5 << 40]))
        end = start + draw(st.integers(1 << 12, 20 << 40))
        kind = draw(st.sampled_from(["usable", "usable", "reserved"]))
        entries.append(Ram(start, end, kind))
        at = end
    return Host(xen=xen, bigmem=bigmem, e820=tuple(entries))


groups = st.lists(
    st.builds(
        GuestGroup,
        number=st.integers(1, 1000),
        nr_pages=st.integers(1, 4 * TIB_PAGES),
        kind=st.sampled_from(KINDS),
        vcpus=st.integers(1, 512),
    ),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(hosts(), st.sampled_from(list(DOM0_RULES)), groups)
def test_rows_and_the_next_tib_add_up(host, rule, guests):
    found = capacity(host, dom0_rule=rule, guests=guests)
    assert sum(row.pages for row in found.rows) == found.nr_pages
    assert sum(found.next_tib.values()) == TIB_PAGES
    assert all(row.pages >= 0 for row in found.rows if row.name != "left")
    for group in guests:
        need, room = found.need(group), found.room(group)
        whole = group.nr_pages + need.pool + need.slack
        assert room == 0 or room * whole <= found.left < (room + 1) * whole


@settings(max_examples=25, deadline=None)
@given(st.integers(1 << 17, 6 << 28), st.sampled_from(["8G", "8G,max:8G", "25%", "1G+5%"]))
def test_what_dom0_holds_adds_up_to_dom0(nr_pages, dom0_mem):
    found = capacity(Host(memory=nr_pages), dom0_mem=dom0_mem)
    if found.inside is not None:
        assert sum(row.pages for row in found.inside.rows) == found.dom0.nr_pages
