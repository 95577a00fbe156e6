# SPDX-License-Identifier: GPL-2.0-or-later
import pytest

from xenpt.abi import L1_PROT_DOM0, TABLE_PROT
from xenpt.errors import MappingError
from xenpt.extents import Mapping, make_runs
from xenpt.p2m import P2M
from xenpt.stream import CHUNK_ENTRIES, stream

DIRECT_MAP = 0xFFFF888000000000 >> 12
NR_PAGES = CHUNK_ENTRIES + 3 * 512  # a second chunk, and a window that is not full


def direct_map(nr_pages=NR_PAGES):
    """Every page of a guest, and L1 tables behind them."""
    leaves = make_runs([(DIRECT_MAP, 0, nr_pages, 1, 1, L1_PROT_DOM0)])
    tables = make_runs([(DIRECT_MAP, nr_pages, nr_pages // 512, 1, 1, TABLE_PROT)])
    return Mapping(leaves, tables), P2M.linear(2 * nr_pages, 0)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_entry_of_a_large_guest_is_met_once(threads):
    mapping, p2m = direct_map()
    seen = []
    found = stream(
        mapping, p2m, pfn_ranges=[(100, 1700), (NR_PAGES - 5, NR_PAGES)],
        threads=threads, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    nr_tables = NR_PAGES // 512
    assert found.ptes == NR_PAGES
    assert found.entries == NR_PAGES + nr_tables
    assert (found.changed, found.read_only) == (1605, 1605)
    assert found.tables == nr_tables + -(-nr_tables // 512)
    assert found.windows == -(-(CHUNK_ENTRIES // 512) // 8) + 1 + -(-(nr_tables // 512 + 1) // 8)
    assert seen[-1][1] == 3


def test_a_fault_names_the_window():
    mapping, p2m = direct_map()
    # A chunk is 2^23 entries of 4 KiB, 32 GiB; its first window holds 8 tables, 16 MiB.
    vaddr = (DIRECT_MAP + CHUNK_ENTRIES + 513) << 12
    with pytest.raises(MappingError, match="level 1 from 0xffff888800000000"):
        stream(mapping, p2m, flip=vaddr)


def test_a_leaf_that_is_expected_behind_the_last_table_is_missed():
    mapping, p2m = direct_map(3)
    more = make_runs([(DIRECT_MAP, 0, 3, 1, 1, L1_PROT_DOM0), (DIRECT_MAP + 512, 3, 1, 1, 1, 1)])
    with pytest.raises(MappingError, match="do not hold what the extents say"):
        stream(mapping, p2m, expected=more)


def test_a_leaf_that_is_expected_in_a_hole_between_tables_is_missed():
    base, flags = DIRECT_MAP, L1_PROT_DOM0
    first, between, last = ((base + i * 512, i * 512, 512, 1, 1, flags) for i in range(3))
    tables = make_runs([(base, 2000, 3, 1, 1, TABLE_PROT)])
    mapping, p2m = Mapping(make_runs([first, last]), tables), P2M.linear(3000, 0)
    assert stream(mapping, p2m, window_tables=1).ptes == 1024
    more = make_runs([first, between, last])
    with pytest.raises(MappingError, match="level 1 from 0xffff888000200000"):
        stream(mapping, p2m, expected=more, window_tables=1)
