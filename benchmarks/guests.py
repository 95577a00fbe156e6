# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests to measure with: a direct map whose every count is worked out by hand."""

import numpy as np
import numpy.typing as npt

from xenpt.abi import ENTRIES, L1_PROT_DOM0, LEVELS, TABLE_PROT
from xenpt.extents import Mapping, make_runs
from xenpt.p2m import P2M

FLAGS = L1_PROT_DOM0
BASE_VPN = 0xFFFF888000000000 >> 12
FIRST_MFN = 1 << 20


def direct_map(nr_pages: int, *, chunk: int | None = None) -> tuple[Mapping, P2M]:
    """A guest whose pages and tables are one line of host frames, or chunks of it in turned order.

    :param nr_pages: a multiple of 512; tables have the pfns behind
    :param chunk: pages of a chunk of host memory; None: all in one
    """
    rows, first, nr = [], nr_pages, nr_pages
    for level in range(1, LEVELS):
        nr = -(-nr // ENTRIES)
        rows.append((BASE_VPN, first, nr, 1, level, TABLE_PROT))
        first += nr
    rows.append((0, first, 1, 1, LEVELS, 0))
    mapping = Mapping(make_runs([(BASE_VPN, 0, nr_pages, 1, 1, FLAGS)]), make_runs(rows))
    total = first + 1
    if chunk is None:
        return mapping, P2M.linear(total, FIRST_MFN)
    starts = np.arange(0, total, chunk)
    length = np.minimum(chunk, total - starts)
    place = FIRST_MFN + (starts[::-1] // chunk) * chunk  # the first chunk has the last frames
    return mapping, P2M.from_rows(np.stack((starts, place, np.ones_like(starts), length), axis=1))


def spread(nr_pages: int, count: int) -> npt.NDArray[np.int64]:
    """`count` ranges of pfns that hold one page in 400 of a guest."""
    start = np.arange(count) * (nr_pages // count)
    return np.stack((start, start + max(nr_pages // count // 400, 1)), axis=1)
