# SPDX-License-Identifier: GPL-2.0-or-later
import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]
_Rows = npt.NDArray[np.int64]

def simd() -> str: ...
def coalesce(runs: _Words, out: _Words, tables: bool, within: bool) -> int: ...
def list_runs(frames: _Words, out: _Words) -> int: ...
def fill(pages: _Words, pieces: _Words) -> None: ...
def mark(pages: _Words, tables: _Rows, level: int, ranges: _Words, clear: int, put: int) -> int: ...
def mark_gather(
    pages: _Words, tables: _Rows, m2p: _Words, ranges: _Words, clear: int, put: int
) -> int: ...
def walk(
    pages: _Words,
    mfns: _Words,
    order: _Rows,
    root: int,
    level: int,
    vpn: int,
    skip_start: int,
    skip_end: int,
    out: _Words,
    counts: _Words,
) -> int: ...
def walk_to_free(
    pages: _Words,
    mfns: _Words,
    order: _Rows,
    root: int,
    slot: int,
    begin: int,
    skip_empty_entries: bool,
    flat: bool,
    out: _Words,
    tables: _Words,
    counts: _Words,
) -> tuple[int, int]: ...
def stream(
    entries: _Words,
    expected: _Words,
    level: int,
    first: int,
    last: int,
    window: _Words,
    ranges: _Words,
    clear: int,
    put: int,
    flip: int,
    scratch: _Words,
    counts: _Words,
) -> int: ...
