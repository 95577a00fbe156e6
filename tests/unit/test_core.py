# SPDX-License-Identifier: GPL-2.0-or-later
"""The gates of `_core`: each function refuses what its loop could not trust."""

import os
import subprocess
import sys

import numpy as np
import pytest

from xenpt import _core
from xenpt.abi import ENTRIES, PTE_RW
from xenpt.extents import RUN, make_runs, words

PAGES = np.zeros((2, ENTRIES), np.uint64)
TABLES = np.array([0, 1])
NO_RANGES = np.empty((0, 2), np.uint64)
ORDER = np.array([0, 1])
MFNS = np.array([5, 6], np.uint64)
OUT = np.zeros((4, 6), np.uint64)
COUNTS = np.zeros(5, np.uint64)
NONE = np.empty((0, 6), np.uint64)


def u64(*rows):
    return np.array(rows, np.uint64)


@pytest.mark.parametrize(
    "piece, reason",
    [
        ((2, 0, 1, 0, 1, 0), "outside the tables"),
        ((0, 512, 1, 0, 1, 0), "outside the tables"),
        ((0, 1, 512, 0, 1, 0), "leaves its table"),
        ((0, 0, 0, 0, 1, 0), "leaves its table"),
        ((0, 0, 2, (1 << 40) - 1, 1, 0), "has frames"),
        ((0, 0, 2, 0, (1 << 64) - 1, 0), "has frames"),
        ((0, 0, 1, 0, 1, 1 << 12), "has flags"),
    ],
)
def test_fill_refuses(piece, reason):
    with pytest.raises(ValueError, match=reason):
        _core.fill(PAGES.copy(), u64(piece))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"tables": np.array([2])}, "table 2 is outside"),
        ({"tables": np.array([-1])}, "table -1 is outside"),
        ({"level": 4}, "level 4"),
        ({"ranges": u64((5, 5))}, "range 0"),
        ({"ranges": u64((5, 7), (6, 9))}, "range 1"),
        ({"ranges": u64((5, 1 << 41))}, "range 0"),
        ({"ranges": np.empty((0, 3), np.uint64)}, "two columns"),
        ({"clear": 1}, "PRESENT"),
        ({"put": 1 << 12}, "frame bits"),
        ({"pages": np.zeros((1, 8), np.uint64)}, "512 words"),
    ],
)
def test_mark_refuses(change, reason):
    given = {"pages": PAGES, "tables": TABLES, "level": 1, "ranges": NO_RANGES} | {
        "clear": PTE_RW, "put": 0,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=reason):
        _core.mark(*given.values())


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"root": 2}, "no table 2"),
        ({"level": 0}, "of level 0"),
        ({"mfns": MFNS[::-1].copy()}, "sorted"),
        ({"order": np.array([0, 2])}, "permutation"),
        ({"order": ORDER[:1]}, "one mfn and one place"),
        ({"out": OUT[:, :5].copy()}, "six columns"),
        ({"counts": COUNTS[:4]}, "five counts"),
    ],
)
def test_walk_refuses(change, reason):
    given = {
        "pages": PAGES, "mfns": MFNS, "order": ORDER, "root": 0, "level": 1, "vpn": 0,
        "skip_start": 0, "skip_end": 0, "out": OUT, "counts": COUNTS,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=reason):
        _core.walk(*given.values())


@pytest.mark.parametrize("slot, begin", [(512, 0), (0, 1), (0, 512**3)])
def test_walk_to_free_refuses_a_list_outside_its_slot(slot, begin):
    with pytest.raises(ValueError, match="begins outside"):
        _core.walk_to_free(PAGES, MFNS, ORDER, 0, slot, begin, True, True, OUT, OUT, COUNTS)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"level": 5}, "level 5"),
        ({"first": 1}, "whole tables"),
        ({"scratch": OUT}, "a row for each word"),
        ({"ranges": u64((1, 2)), "level": 2, "entries": NONE, "expected": NONE}, "only level 1"),
        ({"entries": words(make_runs([(0, 0, 1, 1, 2, 1)]))}, "run 0"),
        ({"entries": words(make_runs([(4, 0, 2, 1, 1, 1), (5, 0, 1, 1, 1, 1)]))}, "run 1"),
        ({"entries": words(make_runs([(0, (1 << 40) - 1, 2, 1, 1, 1)]))}, "run 0"),
    ],
)
def test_stream_refuses(change, reason):
    runs = words(make_runs([(0, 0, 1, 1, 1, 1)]))
    given = {
        "entries": runs, "expected": runs, "level": 1, "first": 0, "last": 512, "window": PAGES,
        "ranges": NO_RANGES, "clear": PTE_RW, "put": 0, "flip": (1 << 64) - 1,
        "scratch": np.zeros((1024, 6), np.uint64), "counts": np.zeros(6, np.uint64),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=reason):
        _core.stream(*given.values())


def test_coalesce_refuses_a_small_buffer():
    with pytest.raises(ValueError, match="twice"):
        _core.coalesce(
            words(make_runs([(0, 0, 1, 1, 1, 1)])), words(np.empty(1, RUN)), False, False
        )


def test_an_unknown_instruction_set_is_refused():
    probe = [sys.executable, "-c", "import xenpt._core"]
    done = subprocess.run(
        probe, env=os.environ | {"XENPT_SIMD": "mmx"}, capture_output=True, text=True
    )
    assert done.returncode
    assert "XENPT_SIMD=mmx" in done.stderr
