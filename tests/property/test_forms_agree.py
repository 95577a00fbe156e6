# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents and packed words are two forms of one state: same contents, same verbs, same counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import hosts, lists, pfn_ranges, scattered

from xenpt.abi import ENTRIES
from xenpt.engine import WalkRules, mark_read_only, mark_writable, walk_to_free
from xenpt.errors import EntryError, MappingError
from xenpt.extents import Mapping, expand
from xenpt.image import materialise

RULES = [WalkRules(skip, flat) for skip in (False, True) for flat in (False, True)]


@given(hosts())
@settings(max_examples=100)
def test_materialise_and_summarise_are_inverse(host):
    image = materialise(host.mapping, host.p2m)
    back = image.summarise(host.p2m)
    assert back.leaves.tolist() == host.mapping.leaves.tolist()
    assert back.tables.tolist() == host.mapping.tables.tolist()


@given(hosts(), st.data())
def test_both_forms_translate_alike(host, data):
    image = materialise(host.mapping, host.p2m)
    row = data.draw(st.sampled_from(expand(host.mapping.leaves).tolist()))
    vaddr = (row[0] << 12) + data.draw(st.integers(-5000, 5000))
    found = host.mapping.translate(vaddr) if vaddr >= 0 else None
    if found is None:
        assert vaddr < 0 or image.translate(vaddr) is None
    else:
        pfn, level, flags = found
        assert image.translate(vaddr) == (int(host.p2m.mfn(pfn)), level, flags)


@given(hosts(), st.data())
@settings(max_examples=100)
def test_marking_both_forms_gives_the_same_state_and_count(host, data):
    ranges = data.draw(pfn_ranges(host.nr_pages))
    image = materialise(host.mapping, host.p2m)
    leaves = host.mapping.leaves
    for mark, packed in (
        (mark_read_only, image.mark_read_only),
        (mark_writable, image.mark_writable),
    ):
        try:
            leaves, changed = mark(leaves, ranges)
        except MappingError:
            with pytest.raises(EntryError):
                packed(ranges, host.p2m)
            return
        assert packed(ranges, host.p2m) == changed
        assert image.summarise(host.p2m).leaves.tolist() == leaves.tolist()


@given(lists(), st.sampled_from(RULES))
@settings(max_examples=100)
def test_walking_to_free_both_forms_gives_the_same_events_and_counts(host, rules):
    vaddr = int(host.mapping.leaves["vpn"][0]) << 12
    image = materialise(host.mapping, host.p2m)
    extents, packed = (
        walk_to_free(host.mapping, vaddr, rules),
        image.walk_to_free(vaddr, rules, host.p2m),
    )
    assert packed.entries_read == extents.entries_read
    assert packed.leaked_pages == extents.leaked_pages
    assert packed.leaves.tolist() == extents.leaves.tolist()
    assert packed.tables.tolist() == extents.tables.tolist()


@given(lists(), st.sampled_from(RULES))
def test_frees_and_leaks_add_up_and_nothing_is_freed_twice(host, rules):
    walk = walk_to_free(host.mapping, int(host.mapping.leaves["vpn"][0]) << 12, rules)
    total = host.mapping.nr_pages + host.mapping.nr_tables()
    assert walk.pages_freed + walk.leaked_pages == total
    events = walk.events
    starts = np.concatenate(
        [
            e["pfn"] + np.arange(e["nr"]).astype(np.uint64) * e["step"].astype(np.uint64)
            for e in events
        ]
    )
    pages = np.repeat(events["pages"], events["nr"].astype(np.int64))
    order = np.argsort(starts)
    assert np.all(starts[order][:-1] + pages[order][:-1] <= starts[order][1:])


@given(scattered(), st.data())
def test_a_window_of_an_image_is_part_of_the_whole(host, data):
    whole = materialise(host.mapping, host.p2m)
    row = data.draw(st.sampled_from(expand(host.mapping.leaves).tolist()))
    vaddr = row[0] << 12
    part = materialise(host.mapping, host.p2m, (vaddr, vaddr + 1))
    assert sorted(part.level.tolist()) == [1, 2, 3, 4]
    for i, mfn in enumerate(part.mfn.tolist()):
        assert part.pages[i].tolist() == whole.pages[whole.index(mfn)].tolist()
    assert part.translate(vaddr) == whole.translate(vaddr)


@given(hosts(), st.data())
def test_a_p2m_and_its_inverse(host, data):
    pfns = np.array(data.draw(st.lists(st.integers(0, host.nr_pages - 1), max_size=20)), np.uint64)
    assert host.p2m.pfn(host.p2m.mfn(pfns)).tolist() == pfns.tolist()
    leaves = host.mapping.leaves
    assert host.p2m.to_pfn(host.p2m.to_mfn(leaves)).tolist() == leaves.tolist()


@given(scattered())
def test_counts_of_a_mapping_add_up(host):
    mapping: Mapping = host.mapping
    assert mapping.nr_pages == sum(mapping.nr_leaves(n) * ENTRIES ** (n - 1) for n in (1, 2, 3))
    assert mapping.nr_tables() == sum(mapping.nr_tables(n) for n in (1, 2, 3, 4))
