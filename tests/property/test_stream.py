# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream of windows makes and finds the words that extents and packed images hold."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import hosts, pfn_ranges, scattered

from xenpt.abi import LEVELS, PTE_RW
from xenpt.engine import mark_read_only
from xenpt.errors import MappingError
from xenpt.extents import coalesce, expand
from xenpt.image import materialise
from xenpt.stream import pack, stream


@given(hosts(), st.data(), st.integers(1, 16), st.sampled_from([1, 2]))
@settings(max_examples=100)
def test_stream_counts_what_the_other_forms_count(host, data, window_tables, threads):
    ranges = data.draw(pfn_ranges(host.nr_pages))
    try:
        leaves, _ = mark_read_only(host.mapping.leaves, ranges)
    except MappingError:
        assume(False)
    found = stream(
        host.mapping, host.p2m, pfn_ranges=ranges, threads=threads, window_tables=window_tables
    )
    image = materialise(host.mapping, host.p2m)
    small = [image.tables(1)]
    assert found.ptes == host.mapping.nr_leaves(1)
    below = host.mapping.nr_tables() - host.mapping.nr_tables(LEVELS)
    assert found.entries == sum(host.mapping.nr_leaves(n) for n in (1, 2, 3)) + below
    packed = pack(host.mapping, host.p2m, pfn_ranges=ranges)
    from_root = 0 if host.mapping.nr_tables(LEVELS) else host.mapping.nr_tables(3)
    assert packed.entries == found.entries - from_root
    assert (packed.ptes, packed.read_only) == (found.ptes, found.read_only)
    before = image.pages[small[0]].copy()
    image.mark_read_only(ranges, host.p2m)
    assert found.changed == int((before != image.pages[small[0]]).sum())
    assert found.read_only == int(leaves["nr"][leaves["flags"] & PTE_RW == 0].sum())


@given(scattered(), st.data())
def test_one_flipped_rw_bit_in_any_window_is_found(host, data):
    row = data.draw(st.sampled_from(expand(host.mapping.leaves).tolist()))
    with pytest.raises(MappingError, match="do not hold what the extents say"):
        stream(
            host.mapping, host.p2m, flip=row[0] << 12, window_tables=data.draw(st.integers(1, 9))
        )


@given(scattered(), st.data())
def test_any_other_expectation_is_refused(host, data):
    entries = expand(host.mapping.leaves)
    at = data.draw(st.integers(0, len(entries) - 1))
    kind = data.draw(st.sampled_from(["frame", "flags", "missing", "more"]))
    if kind == "frame":
        other = (at + 1) % len(entries)
        assume(entries["pfn"][at] != entries["pfn"][other])
        entries["pfn"][at] = entries["pfn"][other]
    elif kind == "flags":
        entries["flags"][at] ^= np.uint64(PTE_RW)
    elif kind == "missing":
        entries = np.delete(entries, at)
    else:
        assume(int(entries["vpn"][at]) + 1 not in entries["vpn"])
        entries = np.insert(entries, at + 1, entries[at])
        entries["vpn"][at + 1] += 1
    with pytest.raises(MappingError, match="do not hold what the extents say"):
        stream(host.mapping, host.p2m, expected=coalesce(entries))
