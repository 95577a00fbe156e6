# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpt.listshape import ListShape, last_leaf_start, list_shape

L1, L2, L3, L4 = 1 << 12, 1 << 21, 1 << 30, 1 << 39
SIZES = {"4k": (L1,), "2m": (L2, L1), "1g": (L3, L2, L1)}


def walk(start, end, leaf, mapped):
    """setup_pv_physmap() as it goes: the leaves as (address, size), and the new tables."""
    present = {
        (size, slot)
        for size in (L2, L3, L4)
        for slot in range(mapped[0] // size, -(-mapped[1] // size) if mapped[1] > mapped[0] else 0)
    }
    leaves, tables, va = [], [], start
    while va < end:
        for size in (L4, L3, L2):  # the tables of level 3, 2, 1 cover so much
            fits = size < L4 and va % size == 0 and end >= va + size and size in SIZES[leaf]
            if (size, va // size) not in present:
                if fits:
                    leaves.append((va, size))
                    va += size
                    break
                present.add((size, va // size))
                tables.append(size)
        else:
            leaves.append((va, L1))
            va = (va + L1) // L1 * L1
    return leaves, tables


def shape_of(leaves, tables):
    sizes = [size for _, size in leaves]
    return ListShape(
        sizes.count(L1), sizes.count(L2), sizes.count(L3),
        tables.count(L2), tables.count(L3), tables.count(L4),
    )  # fmt: skip


def near(step, count):
    """Addresses close to a multiple of `step`, aligned to pages or not at all."""
    return st.builds(
        lambda slot, page, byte: max(0, slot * step + page * L1 + byte),
        st.integers(0, count),
        st.integers(-3, 3),
        st.sampled_from([0, 0, 0, 8, 4088]),
    )


LISTS = st.tuples(
    st.one_of(near(L4, 3), near(L3, 5), near(L2, 5)),
    st.one_of(near(L3, 3), near(L2, 9), st.integers(1, 9 * L1)),
).filter(lambda pair: pair[1] > 0)


@given(LISTS, st.sampled_from(["2m", "1g"]))
def test_closed_form_equals_the_walk(pair, leaf):
    start, end = pair[0], pair[0] + pair[1]
    leaves, tables = walk(start, end, leaf, (0, 0))
    assert list_shape(start, end, leaf=leaf) == shape_of(leaves, tables)
    assert last_leaf_start(start, end, leaf=leaf) == leaves[-1][0]


@given(st.one_of(near(L3, 5), near(L2, 5)), st.integers(1, 3 * L2))
def test_closed_form_equals_the_walk_with_4k_leaves(start, size):
    leaves, tables = walk(start, start + size, "4k", (0, 0))
    assert list_shape(start, start + size, leaf="4k") == shape_of(leaves, tables)
    assert last_leaf_start(start, start + size, leaf="4k") == leaves[-1][0]


@given(
    st.integers(0, 3000), st.integers(1, 3000), st.integers(1, 3000), st.booleans(),
    st.sampled_from(["2m", "1g"]), st.sampled_from([0, L2 - 2 * L1, L3 - L2, L4 - L3]),
)  # fmt: skip
def test_tables_of_the_initial_mapping_are_shared(gap, nr_mapped, nr_pages, before, leaf, base):
    mapped = (base + L1, base + (1 + nr_mapped) * L1)
    start = mapped[1] + gap * L1
    if before:  # the list first, then the mapping
        start, mapped = (
            base,
            (base + (nr_pages + gap) * L1, base + (nr_pages + gap + nr_mapped) * L1),
        )
    end = start + nr_pages * L1
    assert list_shape(start, end, leaf=leaf, mapped=mapped) == shape_of(
        *walk(start, end, leaf, mapped)
    )


# SPEC B9: pages, base, leaf -> L3, L2, L1 tables, 4K data, 2M, 1G, frames in all
TABLE_OF_B9 = [
    (1048576, L4, "1g", (1, 1, 0, 0, 4, 0), 2050),
    (1048577, L4, "1g", (1, 1, 1, 1, 4, 0), 2052),
    (134217728, L4, "1g", (1, 0, 0, 0, 0, 1), 262145),
    (134217728, L4, "2m", (1, 1, 0, 0, 512, 0), 262146),
    (134517728, L4, "1g", (1, 1, 1, 74, 1, 1), 262733),
    (268435456, L4, "1g", (1, 0, 0, 0, 0, 2), 524289),
    (268435456, L4, "2m", (1, 2, 0, 0, 1024, 0), 524291),
    (1048576, L4 + L1, "1g", (1, 1, 2, 512, 3, 0), 2052),
]


@pytest.mark.parametrize("nr_pages, base, leaf, counts, frames", TABLE_OF_B9)
def test_table_of_spec_b9(nr_pages, base, leaf, counts, frames):
    shape = list_shape(base, base + 8 * nr_pages, leaf=leaf)
    l3, l2, l1, data, n2, n1 = counts
    assert shape == ListShape(data, n2, n1, l1, l2, l3)
    assert shape.nr_frames == frames


@pytest.mark.parametrize(
    "nr_pages, leaves, tables",
    [
        # SPEC I14, by hand: one entry less than 1 GiB of list is 511 x 2 MiB and 512 x 4 KiB
        ((1 << 27) - 1, (512, 511, 0), (1, 1, 1)),
        (1 << 27, (0, 0, 1), (0, 0, 1)),
        ((1 << 27) + 1, (1, 0, 1), (1, 1, 1)),
        # 8N mod 2 MiB in {0, 8, 4096, 2M - 8}
        (262144, (0, 1, 0), (0, 1, 1)),
        (262145, (1, 1, 0), (1, 1, 1)),
        (262144 + 512, (1, 1, 0), (1, 1, 1)),
        (262144 + 262143, (512, 1, 0), (1, 1, 1)),
        (1, (1, 0, 0), (1, 1, 1)),
    ],
)
def test_borders_of_leaf_sizes(nr_pages, leaves, tables):
    assert list_shape(L4, L4 + 8 * nr_pages) == ListShape(*leaves, *tables)


def test_list_beyond_one_l4_slot_goes_on():
    shape = list_shape(L4, L4 + 8 * (1 << 36) + 8)  # 512 GiB of list and one entry
    assert shape == ListShape(1, 0, 512, 1, 1, 2)


def test_start_inside_a_page_maps_one_page_more():
    shape = list_shape(L4 + 8, L4 + 8 + L1)  # SPEC B14
    assert (shape.leaves_4k, shape.nr_tables) == (2, 3)


def test_empty_list_has_nothing():
    assert list_shape(L4, L4) == ListShape(0, 0, 0, 0, 0, 0)
    assert list_shape(L4, 0) == ListShape(0, 0, 0, 0, 0, 0)
