# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.abi import L1_PROT_DOM0, PTE_PSE, TABLE_PROT
from xenpt.errors import MappingError
from xenpt.extents import Mapping, coalesce, expand, make_runs, split_at_tables

RW = L1_PROT_DOM0
NO_TABLES = make_runs([])


def test_coalesce_joins_contiguous_runs_and_keeps_others():
    runs = make_runs(
        [
            (0, 100, 2, 1, 1, RW),
            (2, 102, 1, 1, 1, RW),
            (3, 103, 1, 1, 1, RW & ~2),  # other flags
            (5, 105, 1, 1, 1, RW & ~2),  # a hole before it
        ]
    )
    assert coalesce(runs).tolist() == [
        (0, 100, 3, 1, 1, RW),
        (3, 103, 1, 1, 1, RW & ~2),
        (5, 105, 1, 1, 1, RW & ~2),
    ]


def test_coalesce_gives_a_single_superpage_the_step_of_contiguous_memory():
    leaf = make_runs([(512, 7, 1, 99, 2, RW | PTE_PSE)])
    assert coalesce(leaf)["step"].tolist() == [512]


def test_coalesce_grows_descending_runs_from_single_entries():
    runs = make_runs([(i, 50 - i, 1, 1, 1, RW) for i in range(4)])
    assert coalesce(runs).tolist() == [(0, 50, 4, -1, 1, RW)]


def test_coalesce_tables_covers_512_times_as_much():
    tables = make_runs([(0, 10, 1, 1, 1, TABLE_PROT), (512, 523, 1, 1, 1, TABLE_PROT)])
    assert coalesce(tables, tables=True).tolist() == [(0, 10, 2, 513, 1, TABLE_PROT)]


def test_coalesce_refuses_a_level_that_is_none():
    with pytest.raises(ValueError, match="level 9"):
        coalesce(make_runs([(0, 0, 1, 1, 9, RW)]))


def test_expand_and_split_keep_every_entry():
    run = make_runs([(510, 7, 1030, -1, 1, RW)])
    pieces = split_at_tables(run)
    assert pieces["nr"].tolist() == [2, 512, 512, 4]
    assert pieces["vpn"].tolist() == [510, 512, 1024, 1536]
    assert expand(pieces).tolist() == expand(run).tolist()
    assert expand(run)["pfn"][:3].tolist() == [7, 6, 5]


def test_counts_and_translation_of_a_mapping():
    # 2 MiB at vaddr 0x200000 from pfn 1000, three 4 KiB pages behind it, downwards.
    leaves = make_runs([(512, 1000, 1, 512, 2, RW | PTE_PSE), (1024, 70, 3, -1, 1, RW)])
    mapping = Mapping(leaves, make_runs([(1024, 5, 1, 1, 1, TABLE_PROT)]))
    mapping.check()
    assert (mapping.nr_pages, mapping.nr_leaves(1), mapping.nr_leaves(2)) == (515, 3, 1)
    assert (mapping.nr_tables(), mapping.nr_tables(1), mapping.nr_tables(2)) == (1, 1, 0)
    assert mapping.translate(0x200000 + 0x7123) == (1007, 2, RW | PTE_PSE)
    assert mapping.translate(0x401000) == (69, 1, RW)
    assert mapping.translate(0x403000) is None
    assert mapping.translate(0x1FFFFF) is None


def test_window_takes_whole_leaves_and_the_tables_above_them():
    leaves = make_runs([(0, 0, 2048, 1, 1, RW)])
    tables = make_runs([(0, 5000, 4, 1, 1, TABLE_PROT), (0, 6000, 1, 1, 2, TABLE_PROT)])
    part = Mapping(leaves, tables).window(600 * 4096, 1100 * 4096)
    assert part.leaves.tolist() == [(600, 600, 500, 1, 1, RW)]
    assert part.tables.tolist() == [
        (512, 5001, 2, 1, 1, TABLE_PROT),
        (0, 6000, 1, 1, 2, TABLE_PROT),
    ]


@pytest.mark.parametrize("start, end", [(4096, 1 << 22), (0, 4096), (4096, 8192)])
def test_window_refuses_to_cut_a_superpage(start, end):
    leaves = make_runs([(0, 0, 2, 512, 2, RW | PTE_PSE)])
    with pytest.raises(MappingError, match="crosses an end"):
        Mapping(leaves, NO_TABLES).window(start, end)


def test_merge_shares_tables_and_refuses_overlap():
    upper = make_runs([(0, 9, 1, 1, 4, 0)])
    low = Mapping(make_runs([(0, 0, 4, 1, 1, RW)]), upper)
    high = Mapping(make_runs([(4, 4, 4, 1, 1, RW)]), upper)
    both = low.merge(high)
    assert both.leaves.tolist() == [(0, 0, 8, 1, 1, RW)]
    assert both.tables.tolist() == upper.tolist()
    with pytest.raises(MappingError, match="overlap"):
        low.merge(low)


@pytest.mark.parametrize(
    "row, reason",
    [
        ((1, 0, 1, 512, 2, RW | PTE_PSE), "misaligned"),
        ((0, 0, 0, 1, 1, RW), "empty"),
        ((0, 0, 1, 1, 4, RW), "level 4"),
        ((0, 0, 1, 512, 2, RW), "without PSE"),
        ((0, 0, 1, 1, 1, 0), "not present"),
    ],
)
def test_check_names_what_is_wrong(row, reason):
    with pytest.raises(MappingError, match=reason):
        Mapping(make_runs([row]), NO_TABLES).check()
