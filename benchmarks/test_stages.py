# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's verbs over sizes, each timed alone; its result is checked, its counts are kept."""

from dataclasses import asdict

import numpy as np
import pytest

from xenpt.abi import ENTRIES, L1_PROT_DOM0, PTE_PSE, TABLE_PROT
from xenpt.engine import WalkRules, map_on_demand, mark_read_only, walk_to_free
from xenpt.extents import Mapping, make_runs
from xenpt.image import materialise, new_arena
from xenpt.p2m import P2M
from xenpt.stream import stream

GIB = 1 << 18
PACKED = {"256 MiB": GIB // 4, "1 GiB": GIB, "8 GiB": 8 * GIB}
GUESTS = {"64 GiB": 64 * GIB, "1 TiB": 1024 * GIB, "8 TiB": 8192 * GIB, "64 TiB": 65536 * GIB}
LIST_VPN = 0x8000000000 >> 12
SEED = WalkRules(skip_empty_entries=False, flat=True)


def direct_map(nr_pages):
    """Contiguous pages, and L1 and L2 tables behind them; no root."""
    nr_l1 = nr_pages // ENTRIES
    tables = [(0, nr_pages, nr_l1, 1, 1, TABLE_PROT)]
    nr_l2 = -(-nr_l1 // ENTRIES)
    tables.append((0, nr_pages + nr_l1, nr_l2, 1, 2, TABLE_PROT))
    tables.append((0, nr_pages + nr_l1 + nr_l2, 1, 1, 3, TABLE_PROT))
    leaves = make_runs([(0, 0, nr_pages, 1, 1, L1_PROT_DOM0)])
    return Mapping(leaves, make_runs(tables)), P2M.linear(2 * nr_pages, 0)


def list_mapping(nr_pages, level):
    """The P->M list of a guest of `nr_pages` in leaves of one size."""
    pages = nr_pages // ENTRIES
    size = ENTRIES ** (level - 1)
    flags = L1_PROT_DOM0 | (PTE_PSE if level > 1 else 0)
    return map_on_demand(make_runs([(LIST_VPN, 0, pages // size, size, level, flags)]), nr_pages)


@pytest.mark.benchmark(group="build")
@pytest.mark.parametrize("size", PACKED)
def test_build_packed(benchmark, size):
    mapping, p2m = direct_map(PACKED[size])
    arena = new_arena(mapping.nr_tables())
    image = benchmark(materialise, mapping, p2m, arena=arena)
    assert int(np.count_nonzero(image.pages)) == PACKED[size] + mapping.nr_tables() - 1
    benchmark.extra_info["entries"] = PACKED[size] + mapping.nr_tables() - 1


@pytest.mark.benchmark(group="build")
@pytest.mark.parametrize("size", GUESTS)
def test_build_the_list_as_extents(benchmark, size):
    mapping = benchmark(list_mapping, GUESTS[size], 1)
    assert mapping.nr_tables(1) == GUESTS[size] // ENTRIES**2
    benchmark.extra_info["tables"] = mapping.nr_tables()


@pytest.mark.benchmark(group="mark")
@pytest.mark.parametrize("size", PACKED)
def test_mark_packed(benchmark, size):
    mapping, p2m = direct_map(PACKED[size])
    image = materialise(mapping, p2m)
    again = image.pages.copy()

    def fresh():
        image.pages[:] = again  # marking consumes the image
        return ([(1000, 1000 + ENTRIES)], p2m), {}

    changed = benchmark.pedantic(image.mark_read_only, setup=fresh, rounds=5)
    assert changed == ENTRIES
    benchmark.extra_info["changed"] = changed


@pytest.mark.benchmark(group="mark")
@pytest.mark.parametrize("nr_runs", [1, 1000, 100_000])
def test_mark_extents(benchmark, nr_runs):
    leaves = make_runs([(4 * i, 3 * i, 3, 1, 1, L1_PROT_DOM0) for i in range(nr_runs)])
    _, changed = benchmark(mark_read_only, leaves, [(0, 3 * nr_runs // 2)])
    assert changed == 3 * nr_runs // 2
    benchmark.extra_info["changed"] = changed


@pytest.mark.benchmark(group="walk")
@pytest.mark.parametrize("size", PACKED)
def test_walk_packed(benchmark, size):
    mapping, p2m = direct_map(PACKED[size])
    image = materialise(mapping, p2m)
    walk = benchmark(image.walk)
    assert len(walk.leaves) == 1
    assert walk.entries_read["l1"] == PACKED[size]
    benchmark.extra_info["entries_read"] = walk.entries_read


@pytest.mark.benchmark(group="walk")
@pytest.mark.parametrize("size", ["64 GiB"])
def test_stream(benchmark, size):
    mapping, p2m = direct_map(GUESTS[size])
    found = benchmark(stream, mapping, p2m, pfn_ranges=[(5, 10)])
    assert (found.ptes, found.changed) == (GUESTS[size], 5)
    benchmark.extra_info["counts"] = asdict(found)


@pytest.mark.benchmark(group="free")
@pytest.mark.parametrize("level", [1, 2, 3], ids=["4k", "2m", "1g"])
@pytest.mark.parametrize("size", ["1 TiB", "64 TiB"])
def test_free_the_list_as_extents(benchmark, size, level):
    mapping = list_mapping(GUESTS[size], level)
    walk = benchmark(walk_to_free, mapping, LIST_VPN << 12, SEED)
    assert walk.pages_freed == GUESTS[size] // ENTRIES + mapping.nr_tables()
    assert walk.leaked_pages == 0
    benchmark.extra_info["entries_read"] = walk.entries_read


@pytest.mark.benchmark(group="free")
@pytest.mark.parametrize("size", ["64 GiB", "1 TiB"])
def test_free_the_list_packed(benchmark, size):
    mapping = list_mapping(GUESTS[size], 1)
    p2m = P2M.linear(2 * GUESTS[size], 0)
    image = materialise(mapping, p2m)
    walk = benchmark(image.walk_to_free, LIST_VPN << 12, SEED, p2m)
    assert walk.entries_read["l1"] == GUESTS[size] // ENTRIES
    benchmark.extra_info["entries_read"] = walk.entries_read
