# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame table: packed, and equal to a plain array of all frames."""

import numpy as np
import pytest

from xenpt.abi import PGC_ALLOCATED
from xenpt.errors import UsageError
from xenpt.xen.frames import CHUNK, FrameTable

ONE = np.array([1], np.uint64)


def test_a_frame_is_free_until_it_is_set():
    frames = FrameTable(100)
    assert frames.get(99) == (0, 0)
    frames.set(99, PGC_ALLOCATED | 1, 7)
    assert frames.get(99) == (PGC_ALLOCATED | 1, 7)
    assert frames.get(98) == (0, 0)


def test_frames_behind_the_end_of_memory_are_nobodys_and_io():
    frames = FrameTable(100, [(10, 20)])
    assert frames.get(100) == (0, 0)
    assert frames.get(-1) == (0, 0)
    assert [frames.is_io(mfn) for mfn in (9, 10, 19, 20, 99, 100)] == [
        False, True, True, False, False, True,
    ]  # fmt: skip
    assert frames.are_io(np.array([9, 10, 19, 20, 99, 100])).tolist() == [
        False, True, True, False, False, True,
    ]  # fmt: skip


def test_64_tib_of_frames_in_a_few_states_take_little_memory():
    """2**34 frames in 2**20 chunks of 16384: 20 bytes a chunk, 256 KiB for each that differs."""
    frames = FrameTable(1 << 34)
    frames.fill(0, 1 << 34, PGC_ALLOCATED | 1, 0)
    frames.add(0, 1 << 33, 1, 1)
    frames.set(5, 1, 1)
    assert frames.get(6) == (PGC_ALLOCATED | 2, 1)
    assert frames.get((1 << 34) - 1) == (PGC_ALLOCATED | 1, 0)
    assert frames.nr_bytes < 22 << 20


def test_a_chunk_that_is_uniform_again_is_stored_as_one_state():
    frames = FrameTable(4 * CHUNK)
    frames.set(0, 1, 1)
    frames.set(CHUNK, 2, 2)
    full = frames.nr_bytes
    frames.set(0, 0, 0)
    frames.compact()
    assert frames.nr_bytes < full
    assert [frames.get(mfn) for mfn in (0, CHUNK, CHUNK + 1)] == [(0, 0), (2, 2), (0, 0)]


def test_every_operation_equals_that_on_a_plain_array():
    random = np.random.default_rng(1)
    size = 5 * CHUNK - 100
    frames, plain = FrameTable(size), np.zeros((size, 2), np.uint64)
    for step in range(300):
        start, end = np.sort(random.integers(0, size, 2))
        if step % 3 == 0:  # whole chunks, as most of a domain's memory is
            start, end = start // CHUNK * CHUNK, min(end // CHUNK * CHUNK + CHUNK, size)
        start, end, value = int(start), int(end), int(random.integers(1, 1 << 60))
        match step % 5:
            case 0 | 3:
                frames.fill(start, end, value, value + 1)
                plain[start:end] = value, value + 1
            case 1:
                frames.add(start, end, 3, -2)
                plain[start:end] += np.array([3, (1 << 64) - 2], np.uint64)
            case 2:
                mfns = np.unique(random.integers(0, size, 50))
                counts = random.integers(0, 1 << 60, len(mfns)).astype(np.uint64)
                frames.scatter(mfns, counts, counts + ONE)
                plain[mfns, 0], plain[mfns, 1] = counts, counts + ONE
            case _:
                frames.compact()
        mfns = random.integers(0, size, 200)
        counts, types = frames.gather(mfns)
        assert np.array_equal(np.stack((counts, types), axis=1), plain[mfns])
        assert frames.get(start) == tuple(plain[start].tolist())


def test_ranges_outside_of_memory_are_refused():
    frames = FrameTable(CHUNK)
    with pytest.raises(UsageError, match="of a host of 0x4000"):
        frames.fill(0, CHUNK + 1, 1, 1)
