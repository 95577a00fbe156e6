# SPDX-License-Identifier: GPL-2.0-or-later
"""Each function of `_core` does what its plain twin does, on the same words."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import Host, lists, pfn_ranges, scattered, small_leaves

from xenpt import _core, _reference
from xenpt.abi import ENTRIES, PTE_RW
from xenpt.errors import EntryError
from xenpt.extents import RUN, make_runs, split_at_tables, words
from xenpt.image import materialise

TWINS = (_core, _reference)
WORDS = st.builds(
    lambda frame, flags, present: frame << 12 | flags | present,
    st.one_of(st.integers(0, 40), st.integers((1 << 40) - 20, (1 << 40) - 1)),
    st.sampled_from([0, PTE_RW, 0x67, 1 << 63, 1 << 52]),
    st.sampled_from([0, 1, 1, 1]),
)


def both(call):
    """The results of the two twins: values, or the error's text."""
    results = []
    for twin in TWINS:
        try:
            results.append(call(twin))
        except EntryError as error:
            results.append(str(error))
    return results


def table_of(cells):
    """A table page whose words repeat a short list of lines (first word, stride, length)."""
    page = np.zeros(ENTRIES, np.uint64)
    at = 0
    for word, stride, nr in cells:
        for i in range(min(nr, ENTRIES - at)):
            page[at] = (word + i * stride) & ((1 << 64) - 1)
            at += 1
    return page


TABLES = st.lists(
    st.lists(
        st.tuples(
            WORDS, st.sampled_from([4096, 4096, -4096, 0, 8192, 1, 1 << 51]), st.integers(1, 512)
        ),
        max_size=8,
    ).map(table_of),
    min_size=1,
    max_size=3,
).map(np.array)
RANGES = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 30)), max_size=6).map(
    lambda pairs: np.array(
        [(1000 * i + start, 1000 * i + start + nr) for i, (start, nr) in enumerate(pairs)]
        + [((1 << 40) - 10, (1 << 40) - 2)],
        np.uint64,
    ).reshape(-1, 2)
)
NEAR = st.lists(st.integers(0, 60), min_size=2, max_size=10, unique=True).map(
    lambda cuts: np.array(sorted(cuts)[: len(cuts) // 2 * 2], np.uint64).reshape(-1, 2)
)


@given(small_leaves(), st.booleans(), st.booleans())
def test_coalesce(leaves, tables, within):
    runs = split_at_tables(leaves[0])
    if tables:
        runs["vpn"] *= 512

    def call(twin):
        out = np.zeros(2 * len(runs), RUN)
        nr = twin.coalesce(words(runs), words(out), tables, within)
        return out[:nr].tolist()

    core, reference = both(call)
    assert core == reference


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.sampled_from([1, 1, 2]), st.sampled_from([-1, 1, 0, 7]))
    )
)
def test_coalesce_is_independent_of_how_runs_were_cut(cells):
    rows, vpn = [], 0
    for pfn, nr, step in cells:
        rows.append((vpn, pfn + 100, nr, step, 1, 1))
        vpn += nr
    runs = make_runs(rows)

    def call(twin):
        out = np.zeros(2 * len(runs), RUN)
        nr = twin.coalesce(words(runs), words(out), False, False)
        return out[:nr].tolist()

    core, reference = both(call)
    assert core == reference


@given(scattered())
def test_fill(host: Host):
    image = materialise(host.mapping, host.p2m)
    pieces = split_at_tables(host.p2m.to_mfn(host.mapping.leaves))
    slot = pieces["vpn"] & np.uint64(511)
    rows = np.stack(
        [
            np.zeros_like(slot),
            slot,
            pieces["nr"],
            pieces["pfn"],
            pieces["step"].view("<u8"),
            pieces["flags"],
        ],
        axis=1,
    )
    results = []
    for twin in TWINS:
        pages = np.zeros((1, ENTRIES), np.uint64)
        twin.fill(pages, rows)
        results.append(pages.tolist())
    assert results[0] == results[1]
    assert image.pages.any()


@given(TABLES, st.one_of(RANGES, NEAR), st.sampled_from([(PTE_RW, 0), (0, PTE_RW)]))
@settings(max_examples=300)
def test_mark(pages, ranges, flags):
    tables = np.arange(len(pages))

    def call(twin):
        copy = pages.copy()
        return twin.mark(copy, tables, 1, ranges, *flags), copy.tolist()

    core, reference = both(call)
    assert core == reference


@given(lists(), st.data())
def test_mark_superpages(host, data):
    image = materialise(host.mapping, host.p2m)
    ranges = host.p2m.mfn_ranges(data.draw(pfn_ranges(host.nr_pages))).view(np.uint64)

    def call(twin):
        copy = image.pages.copy()
        return [
            twin.mark(copy, image.tables(n), n, ranges, PTE_RW, 0) for n in (2, 3)
        ], copy.tolist()

    core, reference = both(call)
    assert core == reference


@given(TABLES, st.lists(st.integers(0, 50), min_size=1, max_size=60), NEAR)
def test_mark_gather(pages, m2p, ranges):
    tables = np.arange(len(pages))

    def call(twin):
        copy = pages.copy()
        changed = twin.mark_gather(copy, tables, np.array(m2p, np.uint64), ranges, PTE_RW, 0)
        return changed, copy.tolist()

    core, reference = both(call)
    assert core == reference


@given(TABLES, st.integers(1, 4))
@settings(max_examples=300)
def test_walk_of_any_words(pages, level):
    mfns, order = np.arange(len(pages), dtype=np.uint64) + 3, np.arange(len(pages))[::-1].copy()

    def call(twin):
        out, counts = np.zeros(4096, RUN), np.zeros(5, np.uint64)
        nr = twin.walk(pages, mfns, order, 0, level, 0, 1, 2, words(out), counts)
        return nr, out[:nr].tolist(), counts.tolist()

    core, reference = both(call) if level < 3 else (None, None)
    assert core == reference


@given(lists(), st.booleans(), st.booleans())
@settings(max_examples=60)
def test_walk_to_free(host, skip, flat):
    image = materialise(host.mapping, host.p2m)
    at = int(image.tables(3)[0])
    slot = int(image.vaddr[at]) >> 12
    begin = int(host.mapping.leaves["vpn"][0]) // ENTRIES * ENTRIES
    order = np.argsort(image.mfn)

    def call(twin):
        out, tables, counts = np.zeros(9000, RUN), np.zeros(9000, RUN), np.zeros(5, np.uint64)
        nr, nr_tables = twin.walk_to_free(
            image.pages, image.mfn[order], order, at, slot, begin, skip, flat, words(out),
            words(tables), counts,
        )  # fmt: skip
        return out[:nr].tolist(), tables[:nr_tables].tolist(), counts.tolist()

    core, reference = both(call)
    assert core == reference


@given(small_leaves(), RANGES, st.integers(1, 4), st.data())
@settings(max_examples=60)
def test_stream(leaves, ranges, nr_tables, data):
    entries = leaves[0]
    start = int(entries["vpn"][0]) // ENTRIES * ENTRIES
    end = -(-int(entries["vpn"][-1] + entries["nr"][-1]) // ENTRIES) * ENTRIES
    flip = data.draw(st.sampled_from([(1 << 64) - 1, start, int(entries["vpn"][-1])]))
    use = data.draw(st.booleans())
    lacks = data.draw(st.sampled_from([*range(len(entries)), None]))
    held = entries if lacks is None else np.delete(entries, lacks)

    def call(twin):
        window = np.full((nr_tables, ENTRIES), 7, np.uint64)
        scratch, counts = np.zeros(nr_tables * ENTRIES, RUN), np.zeros(6, np.uint64)
        fault = twin.stream(
            words(held), words(entries), 1, start, end, window,
            ranges if use else ranges[:0], PTE_RW, 0, flip, words(scratch), counts,
        )  # fmt: skip
        return fault, counts.tolist() if fault < 0 else None

    core, reference = both(call)
    assert core == reference


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, -1, 0, 2]), st.integers(1, 70))))
def test_list_runs(cells):
    hole = [(1 << 64) - 1, 1 << 62, 1 << 40]
    frames = []
    for start, step, nr in cells:
        frames += [hole[start % 3]] if step == 2 else [start + 100 + i * step for i in range(nr)]

    def call(twin):
        out = np.zeros((len(frames) + 1, 4), np.uint64)
        nr = twin.list_runs(np.array(frames, np.uint64), out)
        return nr, out.tolist(), twin.list_runs(np.array(frames, np.uint64), out[:1])

    core, reference = both(call)
    assert core == reference
