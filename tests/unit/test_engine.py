# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.abi import L1_PROT_DOM0, PTE_DIRTY, PTE_PSE, PTE_RW, TABLE_PROT
from xenpt.engine import (
    WalkRules,
    clear,
    map_on_demand,
    mark_read_only,
    mark_writable,
    walk_to_free,
)
from xenpt.errors import MappingError
from xenpt.extents import Mapping, make_runs

PAGE = L1_PROT_DOM0 | PTE_DIRTY
LARGE = PAGE | PTE_PSE
BASE = 0x8000000000
BASE_VPN = BASE >> 12
SEED = WalkRules(skip_empty_entries=False, flat=True)
MAINLINE = WalkRules(skip_empty_entries=True, flat=False)


def p2m_list(*parts, base_vpn=BASE_VPN, first_pfn=43008):
    """The list's mapping of parts (level, nr), as setup_pv_physmap() would allocate it."""
    rows, vpn = [], base_vpn
    for level, nr in parts:
        size = 512 ** (level - 1)
        rows.append((vpn, 0, nr, size, level, LARGE if level > 1 else PAGE))
        vpn += nr * size
    return map_on_demand(make_runs(rows), first_pfn)


#: SPEC B9: nr_pages of the guest, the parts of its list, (T3, T2, T1), F.
LISTS = {
    "4 GiB": ([(2, 4)], (1, 1, 0), 2050),
    "4 GiB + 1 page": ([(2, 4), (1, 1)], (1, 1, 1), 2052),
    "512 GiB": ([(3, 1)], (1, 0, 0), 262145),
    "512 GiB, no 1G": ([(2, 512)], (1, 1, 0), 262146),
    "512 GiB + 300000": ([(3, 1), (2, 1), (1, 74)], (1, 1, 1), 262733),
    "1 TiB": ([(3, 2)], (1, 0, 0), 524289),
    "1 TiB, no 1G": ([(2, 1024)], (1, 2, 0), 524291),
}


@pytest.mark.parametrize("name", LISTS)
def test_map_on_demand_needs_the_frames_of_spec_b9(name):
    parts, tables, nr_frames = LISTS[name]
    mapping = p2m_list(*parts)
    assert tuple(mapping.nr_tables(level) for level in (3, 2, 1)) == tables
    assert mapping.nr_pages + mapping.nr_tables() == nr_frames


def test_map_on_demand_takes_each_table_right_before_its_first_use():
    # Golden rule 11, 2G+4K: L3, L2, 2M, 2M, L1, 4K.
    mapping = p2m_list((2, 2), (1, 1), first_pfn=100)
    assert mapping.tables.tolist() == [
        (BASE_VPN + 1024, 1126, 1, 1, 1, TABLE_PROT),
        (BASE_VPN, 101, 1, 1, 2, TABLE_PROT),
        (BASE_VPN, 100, 1, 1, 3, TABLE_PROT),
    ]
    assert mapping.leaves.tolist() == [
        (BASE_VPN, 102, 2, 512, 2, LARGE),
        (BASE_VPN + 1024, 1127, 1, 1, 1, PAGE),
    ]


def test_map_on_demand_interleaves_l1_tables_with_their_pages():
    mapping = p2m_list((1, 1025), first_pfn=0)
    assert mapping.leaves["pfn"].tolist() == [3, 516, 1029]
    assert mapping.tables[0].tolist() == (BASE_VPN, 2, 3, 513, 1, TABLE_PROT)


# --- Mark ----------------------------------------------------------------------------------------


def test_mark_cuts_runs_at_the_ranges_and_counts_what_changed():
    leaves = make_runs([(0, 100, 100, 1, 1, PAGE)])
    marked, changed = mark_read_only(leaves, [(110, 120), (150, 1000), (0, 50)])
    assert changed == 60
    read_only = PAGE & ~PTE_RW
    assert marked.tolist() == [
        (0, 100, 10, 1, 1, PAGE),
        (10, 110, 10, 1, 1, read_only),
        (20, 120, 30, 1, 1, PAGE),
        (50, 150, 50, 1, 1, read_only),
    ]
    assert mark_read_only(marked, [(110, 120)])[1] == 0
    restored, changed = mark_writable(marked, [(0, 1 << 40)])
    assert (changed, restored.tolist()) == (60, leaves.tolist())


def test_mark_follows_descending_runs():
    leaves = make_runs([(0, 20, 10, -1, 1, PAGE)])  # pfns 20, 19, .. 11
    marked, changed = mark_read_only(leaves, [(12, 15)])
    assert changed == 3
    assert [(r["vpn"], r["nr"]) for r in marked if not r["flags"] & PTE_RW] == [(6, 3)]


def test_mark_takes_superpages_whole_and_refuses_a_part():
    leaves = make_runs([(0, 1000, 4, 512, 2, LARGE)])
    marked, changed = mark_read_only(leaves, [(1512, 1800), (1800, 2024)])
    assert changed == 1
    assert marked["flags"].tolist() == [LARGE, LARGE & ~PTE_RW, LARGE]
    with pytest.raises(MappingError, match="part of a superpage"):
        mark_read_only(leaves, [(1512, 2023)])


def test_clear_drops_leaves_and_the_tables_inside():
    leaves = make_runs([(0, 0, 2048, 1, 1, PAGE)])
    tables = make_runs([(0, 5000, 4, 1, 1, TABLE_PROT), (0, 6000, 1, 1, 2, TABLE_PROT)])
    left = clear(Mapping(leaves, tables), 512 * 4096, 1537 * 4096)
    assert left.leaves.tolist() == [(0, 0, 512, 1, 1, PAGE), (1537, 1537, 511, 1, 1, PAGE)]
    assert left.tables["vpn"].tolist() == [0, 1536, 0]


# --- Walk and free: the stated counts of SPEC F7 -------------------------------------------------

#: name: (parts, base page, rules) -> (frames freed, memblock_free calls, l3, l2, l1, leaked)
WALKS = {
    "4 GiB seed": ([(2, 4)], 0, SEED, (2050, 6, 1023, 512, 0, 0)),
    "4 GiB mainline": ([(2, 4)], 0, MAINLINE, (2050, 6, 512, 512, 0, 0)),
    "512 GiB + 300000 seed": ([(3, 1), (2, 1), (1, 74)], 0, SEED, (262733, 79, 1023, 512, 75, 0)),
    "512 GiB + 300000 mainline": (
        [(3, 1), (2, 1), (1, 74)], 0, MAINLINE, (262733, 79, 512, 512, 512, 0),
    ),
    "unaligned base, seed": ([(1, 511), (2, 3), (1, 1)], 1, SEED, (1541, 8, 1023, 512, 3, 511)),
    "unaligned base, mainline": (
        [(1, 511), (2, 3), (1, 1)], 1, MAINLINE, (2052, 519, 512, 512, 1024, 0),
    ),
    "4K only 1 TiB, seed": (
        [(1, 524288)], 0, SEED, (525315, 525315, 512 + 511 * 2, 1024, 1024 * 512, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WALKS)
def test_walk_to_free_counts_of_spec_f7(name):
    parts, offset, rules, expected = WALKS[name]
    mapping = p2m_list(*parts, base_vpn=BASE_VPN + offset)
    walk = walk_to_free(mapping, (BASE_VPN + offset) << 12, rules)
    read = walk.entries_read
    assert (
        walk.pages_freed, walk.nr_frees, read["l3"], read["l2"], read["l1"], walk.leaked_pages,
    ) == expected  # fmt: skip
    assert {f"l{n}": mapping.nr_tables(n) for n in (1, 2, 3, 4)} == walk.tables_freed


def test_walk_frees_data_before_its_table_and_tables_before_their_parents():
    mapping = p2m_list((2, 2), (1, 2), first_pfn=100)
    events = walk_to_free(mapping, BASE, MAINLINE).events
    assert [(e["table"], e["level"], e["pfn"], e["nr"], e["pages"]) for e in events] == [
        (False, 2, 102, 2, 512),
        (False, 1, 1127, 2, 1),
        (True, 1, 1126, 1, 1),
        (True, 2, 101, 1, 1),
        (True, 3, 100, 1, 1),
    ]


def test_walk_visits_one_l4_slot_only():
    # A list across an L4 border (SPEC I13): what lies behind it is leaked, tables included.
    base = BASE_VPN + 512**3 - 512
    mapping = p2m_list((2, 3), base_vpn=base)
    walk = walk_to_free(mapping, base << 12, SEED)
    assert (walk.pages_freed, walk.leaked_pages) == (512 + 2, 1024 + 2)
    assert (walk.entries_read["l3"], walk.entries_read["l2"]) == (1, 1)


def test_walk_without_a_table_in_the_slot_is_an_error():
    with pytest.raises(MappingError, match="no L3 table"):
        walk_to_free(p2m_list((2, 1)), 0x10000000000, SEED)
