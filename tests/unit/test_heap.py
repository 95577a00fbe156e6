# SPDX-License-Identifier: GPL-2.0-or-later
import random

import pytest

from xenpt.abi import MAX_ORDER
from xenpt.xen.heap import Heap


def test_a_request_takes_the_upper_half_of_the_smallest_block_that_serves_it() -> None:
    heap = Heap([(0x100, 0x300)])  # one block of 256 pages in each of two zones
    assert heap.alloc(0) == (0x2FF, 1)
    assert heap.alloc(0) == (0x2FE, 1)
    assert heap.alloc(4) == (0x2E0, 1)  # 0x2F0..0x2FD is only whole up to order 3
    assert heap.alloc(3) == (0x2F0, 1)


def test_the_highest_zone_serves_first_whatever_its_blocks() -> None:
    heap = Heap([(0x1000, 0x1001), (0x2000, 0x4000)])
    assert heap.alloc(0) == (0x3FFF, 1)


def test_nothing_left_of_an_order_is_none() -> None:
    heap = Heap([(1, 1 << 9)])
    assert heap.alloc(9) is None
    assert heap.alloc(8) == (0x100, 1)
    assert heap.nr_free_pages == 255


def test_the_largest_chunk_is_one_gib() -> None:
    heap = Heap([(0, 1 << 20)])
    assert heap.alloc(MAX_ORDER, 4) == (2 << MAX_ORDER | 1 << MAX_ORDER, 2)  # the upper zone's two


@pytest.mark.parametrize("seed", range(40))
def test_many_at_once_are_the_same_blocks_as_one_by_one(seed: int) -> None:
    rng = random.Random(seed)
    ram = [(rng.randrange(1, 5000), rng.randrange(5000, 3_000_000))]
    bulk, single = Heap(ram), Heap(ram)
    for _ in range(12):
        order, nr = rng.choice([0, 0, 3, 9, MAX_ORDER]), rng.randrange(1, 400)
        got: list[int] = []
        while nr and (piece := bulk.alloc(order, nr)):
            got += [piece[0] - (i << order) for i in range(piece[1])]
            nr -= piece[1]
        want = [block[0] for _ in got if (block := single.alloc(order))]
        assert got == want
    assert bulk.nr_free_pages == single.nr_free_pages
