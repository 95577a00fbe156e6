# SPDX-License-Identifier: GPL-2.0-or-later
"""The gates of `_core`: each function refuses what its loop could not trust."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from xenpt import _core
from xenpt.abi import ENTRIES, PTE_RW
from xenpt.errors import EntryError
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
        _core.walk_to_free(PAGES, MFNS, ORDER, 0, slot, begin, True, True, OUT, OUT.copy(), COUNTS)


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


# --- Every function: types, shapes, overlaps -----------------------------------------------------

RUNS = words(make_runs([(0, 0, 1, 1, 1, 1)]))
LIMITS = u64((0, 1))


def good():
    """Arguments of every function, fresh ones: outputs first changed are nobody else's."""
    pages, out = np.zeros((2, ENTRIES), np.uint64), np.zeros((4, 6), np.uint64)
    image = {"pages": pages, "mfns": MFNS.copy(), "order": ORDER.copy(), "root": 0}
    marks = {"clear": PTE_RW, "put": 0}
    return {
        "coalesce": {"runs": RUNS.copy(), "out": out, "tables": False, "within": False},
        "list_runs": {"frames": MFNS.copy(), "out": np.zeros((4, 4), np.uint64)},
        "fill": {"pages": pages, "pieces": u64((0, 0, 1, 5, 1, 1))},
        "mark": {"pages": pages, "tables": TABLES.copy(), "level": 1, "ranges": LIMITS.copy()}
        | marks,
        "mark_gather": {
            "pages": pages, "tables": TABLES.copy(), "m2p": MFNS.copy(), "ranges": LIMITS.copy(),
        } | marks,
        "walk": image | {
            "level": 1, "vpn": 0, "skip_start": 0, "skip_end": 0, "out": out,
            "counts": COUNTS.copy(),
        },
        "walk_to_free": image | {
            "slot": 0, "begin": 0, "skip_empty_entries": True, "flat": True, "out": out,
            "tables": out.copy(), "counts": COUNTS.copy(),
        },
        "stream": {
            "entries": RUNS.copy(), "expected": RUNS.copy(), "level": 1, "first": 0, "last": 512,
            "window": pages, "ranges": LIMITS.copy(), **marks, "flip": (1 << 64) - 1,
            "scratch": np.zeros((1024, 6), np.uint64), "counts": np.zeros(6, np.uint64),
        },
    }  # fmt: skip


WRITTEN = {
    "coalesce": ["out"], "list_runs": ["out"], "fill": ["pages"], "mark": ["pages"],
    "mark_gather": ["pages"], "walk": ["out", "counts"],
    "walk_to_free": ["out", "tables", "counts"],
    "stream": ["window", "scratch", "counts"],
}  # fmt: skip
ARRAYS = [
    (name, key)
    for name, given in good().items()
    for key, value in given.items()
    if isinstance(value, np.ndarray)
]


def call(name, given):
    return getattr(_core, name)(*given.values())


def test_every_function_is_looked_at():
    public = {name for name in dir(_core) if name[0] != "_" and callable(getattr(_core, name))}
    assert public - {"EntryError", "UsageError"} == WRITTEN.keys() | {"simd"}


@pytest.mark.parametrize("name", WRITTEN)
def test_good_arguments_are_taken(name):
    assert call(name, good()[name]) in (None, *range(-1, 5), (0, 1))


@pytest.mark.parametrize("name, key", ARRAYS)
@pytest.mark.parametrize(
    "change, error",
    [
        (lambda _: None, TypeError),
        (lambda a: a.tolist(), TypeError),
        (lambda a: a.astype(np.uint32), ValueError),
        (lambda a: a.astype(np.float64), ValueError),
        (lambda a: a.astype(a.dtype.newbyteorder(">")), ValueError),
        (lambda a: a.view(np.int64 if a.dtype == np.uint64 else np.uint64), ValueError),
        (lambda a: a[np.newaxis], ValueError),
        (lambda a: np.repeat(a, 2, axis=-1)[..., ::2], ValueError),
        (
            lambda a: np.asfortranarray(np.repeat(a, 2, axis=0)) if a.ndim == 2 else a[::-1],
            ValueError,
        ),
    ],
    ids=["none", "list", "narrow", "real", "swapped", "sign", "dimension", "strided", "order"],
)
def test_an_array_of_another_kind_is_refused(name, key, change, error):
    given = good()[name]
    with pytest.raises(error):
        call(name, given | {key: change(given[key])})


@pytest.mark.parametrize("name, key", [(name, key) for name in WRITTEN for key in WRITTEN[name]])
def test_what_is_written_must_be_writable(name, key):
    given = good()[name]
    given[key].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        call(name, given)


@pytest.mark.parametrize(
    "name, written, read",
    [
        (name, written, key)
        for name, keys in WRITTEN.items()
        for written in keys
        for of, key in ARRAYS
        if of == name and key != written
    ],
)
def test_what_is_written_must_not_be_what_is_read(name, written, read):
    """Each pair in one block of memory, the second beginning at the last word of the first."""
    given = good()[name]
    first, second = given[written], given[read]
    block = np.zeros(first.size + second.size - 1, np.uint64)
    block[: first.size] = first.ravel()
    block[first.size - 1 :] = second.ravel().view(np.uint64)
    given[written] = block[: first.size].reshape(first.shape)
    given[read] = block[first.size - 1 :].view(second.dtype).reshape(second.shape)
    with pytest.raises(ValueError, match="overlaps"):
        call(name, given)


@pytest.mark.parametrize("name, key", ARRAYS)
def test_an_empty_array_is_refused_or_nothing_to_do(name, key):
    given = good()[name]
    given[key] = given[key][:0]
    with contextlib.suppress(ValueError):
        assert call(name, given) in (None, 0, 1, 2, -1, (0, 1))


@pytest.mark.parametrize(
    "name, key",
    [(name, key) for name, given in good().items() for key in given if type(given[key]) is int],
)
@pytest.mark.parametrize("value", [-(1 << 63) - 1, 1 << 64, "1", None])
def test_a_number_that_is_no_word_is_refused(name, key, value):
    with pytest.raises((TypeError, OverflowError)):
        call(name, good()[name] | {key: value})


def test_stream_refuses_runs_that_leave_the_address_space():
    given = good()["stream"]
    for start, nr in (((1 << 52) - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 1)):
        given["entries"] = words(make_runs([(start, 0, nr, 1, 1, 1)]))
        with pytest.raises(ValueError, match="run 0 leaves the address space"):
            call("stream", given)


# --- Tables that point to themselves, to one another, to nowhere ---------------------------------


def image(entries, nr_pages=2):
    """Pages with mfn 5, 6, ... and entries {(page, slot): mfn}."""
    pages = np.zeros((nr_pages, ENTRIES), np.uint64)
    for (page, slot), mfn in entries.items():
        pages[page, slot] = mfn << 12 | 0x67
    return pages, np.arange(5, 5 + nr_pages, dtype=np.uint64), np.arange(nr_pages)


def test_a_self_map_is_walked_down_to_its_last_level():
    """Slot 3 of the root names the root: the leaf behind 3, 3, 3, 3 is the root itself."""
    counts, out = np.zeros(5, np.uint64), np.zeros((4, 6), np.uint64)
    nr = _core.walk(*image({(0, 3): 5}, 1), 0, 4, 0, 0, 0, out, counts)
    assert nr == 1
    assert out[0].tolist() == [3 * (1 + 512 + 512**2 + 512**3), 5, 1, 1, 1, 0x67]
    assert counts.tolist() == [0, 512, 512, 512, 512]


@pytest.mark.parametrize("walk", ["walk", "walk_to_free"])
def test_tables_that_all_name_themselves_come_to_an_end(walk):
    pages, mfns, order = image({(0, slot): 5 for slot in range(ENTRIES)}, 1)
    counts, out = np.zeros(5, np.uint64), np.zeros((4, 6), np.uint64)
    arguments = (4, 0, 0, 0, out) if walk == "walk" else (0, 0, True, True, out, out.copy())
    with pytest.raises(EntryError, match="share one another"):
        getattr(_core, walk)(pages, mfns, order, 0, *arguments, counts)


def test_entries_that_point_outside_are_counted():
    counts, out = np.zeros(5, np.uint64), np.zeros((4, 6), np.uint64)
    nr = _core.walk(
        *image({(0, 0): 4, (0, 1): (1 << 40) - 1, (0, 2): 6}), 0, 4, 0, 0, 0, out, counts
    )
    assert nr == 0
    assert counts.tolist() == [2, 0, 0, 512, 512]
