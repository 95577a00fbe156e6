# SPDX-License-Identifier: GPL-2.0-or-later
"""`P2M`: which machine frames a domain's pages have, as runs, and the inverse."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xenpt import _core
from xenpt.abi import INVALID_P2M_ENTRY
from xenpt.errors import MappingError
from xenpt.extents import (
    Frames,
    Ints,
    Ranges,
    Runs,
    coalesce,
    column,
    entries_in,
    entry_pages,
    join_ranges,
    words,
)

#: One run of the P->M list, as rows of golden `entry_p2m_runs`: pfn + i has mfn + i * step.
P2M_RUN = np.dtype([("pfn", "<u8"), ("mfn", "<u8"), ("step", "<i8"), ("nr", "<u8")])


@dataclass(frozen=True, slots=True)
class P2M:
    """A domain's frames: runs of pfn -> mfn, sorted by pfn, and the inverse.

    :ivar runs: P2M_RUN array, sorted by pfn, disjoint; step 1 or -1 (a debug Xen, single pages)
    """

    runs: Runs

    @classmethod
    def linear(cls, nr_pages: int, first_mfn: int) -> "P2M":
        """All pages in one piece of host memory."""
        return cls(np.array([(0, first_mfn, 1, nr_pages)], P2M_RUN))

    @classmethod
    def from_rows(cls, rows: npt.ArrayLike) -> "P2M":
        """Rows [pfn, mfn, step, length], as golden `entry_p2m_runs` has them.

        :raises MappingError: not a permutation of the domain's frames
        """
        table = np.asarray(rows, np.int64).reshape(-1, 4)
        runs = np.empty(len(table), P2M_RUN)
        for i, name in enumerate(P2M_RUN.names or ()):
            runs[name] = table[:, i]
        p2m = cls(runs)
        p2m.check()
        return p2m

    @classmethod
    def from_list(cls, mfns: npt.ArrayLike) -> "P2M":
        """The runs of a whole P->M list (mfn of pfn 0, 1, ...).

        Entries of more than 40 bits (invalid, foreign, identity) are holes.

        :raises MappingError: an mfn occurs twice
        """
        frames = np.ascontiguousarray(mfns, np.uint64)
        runs = np.empty(1024, P2M_RUN)
        nr = _core.list_runs(frames, words(runs))
        if nr > len(runs):
            runs = np.empty(nr, P2M_RUN)
            _core.list_runs(frames, words(runs))
        p2m = cls(runs[:nr].copy())
        p2m.check()
        return p2m

    def m2p(self) -> Frames:
        """The M2P as an array, up to the highest mfn; INVALID where not the domain's."""
        pfn, mfn, step, nr = self._inverse()
        out = np.full(int((pfn + nr).max(initial=0)), INVALID_P2M_ENTRY, np.uint64)
        i = np.arange(int(nr.sum())) - np.repeat(np.cumsum(nr) - nr, nr)
        out[np.repeat(pfn, nr) + i] = (np.repeat(mfn, nr) + i * np.repeat(step, nr)).astype("<u8")
        return out

    @property
    def nr_pages(self) -> int:
        """Pages that have a frame."""
        return int(self.runs["nr"].sum())

    def mfn(self, pfns: npt.ArrayLike) -> Frames:
        """Machine frames of guest frames; INVALID_P2M_ENTRY where there is none."""
        return _look_up(np.asarray(pfns, np.uint64), *self._columns())

    def pfn(self, mfns: npt.ArrayLike) -> Frames:
        """Guest frames of machine frames (the M2P); INVALID_P2M_ENTRY for other domains'."""
        return _look_up(np.asarray(mfns, np.uint64), *self._inverse())

    def to_mfn(self, runs: Runs, *, tables: bool = False) -> Runs:
        """The same leaves (or table pages) with machine frames in their pfn column.

        :raises MappingError: a page has no frame, or a superpage no contiguous ones
        """
        return _translate(runs, *self._columns(), tables=tables)

    def to_pfn(self, runs: Runs, *, tables: bool = False) -> Runs:
        """The inverse of `to_mfn`.

        :raises MappingError: a frame is not the domain's
        """
        return _translate(runs, *self._inverse(), tables=tables)

    def mfn_ranges(self, pfn_ranges: Ranges) -> npt.NDArray[np.int64]:
        """Sorted, disjoint ranges of the machine frames of `pfn_ranges`; holes are left out."""
        pfn, mfn, step, nr = self._columns()
        ranges = join_ranges(pfn_ranges)
        run, which = _overlaps(pfn, pfn + nr, ranges[:, 0], ranges[:, 1])
        first = np.maximum(ranges[which, 0], pfn[run]) - pfn[run]
        last = np.minimum(ranges[which, 1], pfn[run] + nr[run]) - pfn[run] - 1
        ends = np.stack((mfn[run] + first * step[run], mfn[run] + last * step[run]))
        return join_ranges(np.stack((ends.min(axis=0), ends.max(axis=0) + 1), axis=1))

    def check(self) -> None:
        """:raises MappingError: pfns unsorted or twice, mfns twice, a step other than 1 or -1."""
        pfn, mfn, step, nr = self._columns()
        if np.any(nr < 1) or np.any((np.abs(step) != 1) & (nr > 1)):
            raise MappingError("a P->M run of no page, or of a step other than 1 or -1")
        if np.any(pfn[:-1] + nr[:-1] > pfn[1:]):
            raise MappingError("P->M runs that are not sorted by pfn or overlap")
        low = np.where(step < 0, mfn - nr + 1, mfn)
        order = np.argsort(low)
        low, nr = low[order], nr[order]
        if np.any(low < 0):
            raise MappingError("a P->M run that falls below mfn 0")
        twice = np.flatnonzero(low[:-1] + nr[:-1] > low[1:])
        if len(twice):
            raise MappingError(f"mfn {int(low[twice[0] + 1]):#x} is in the P->M list twice")

    def _inverse(self) -> tuple[Ints, Ints, Ints, Ints]:
        """Columns of the runs mfn -> pfn, sorted by mfn."""
        pfn, mfn, step, nr = self._columns()
        down = (step < 0) & (nr > 1)
        low, at_low = np.where(down, mfn - nr + 1, mfn), np.where(down, pfn + nr - 1, pfn)
        order = np.argsort(low)
        return low[order], at_low[order], step[order], nr[order]

    def _columns(self) -> tuple[Ints, Ints, Ints, Ints]:
        pfn, mfn, step, nr = (column(self.runs, name) for name in P2M_RUN.names or ())
        return pfn, mfn, step, nr


def _look_up(keys: Frames, start: Ints, value: Ints, step: Ints, nr: Ints) -> Frames:
    """value + (key - start) * step in the run that holds each key, else INVALID_P2M_ENTRY."""
    out = np.full(keys.shape, INVALID_P2M_ENTRY, np.uint64)
    if not len(start):
        return out
    at = np.maximum(np.searchsorted(start.astype(np.uint64), keys, side="right") - 1, 0)
    i = keys.astype(np.int64) - start[at]
    inside = (i >= 0) & (i < nr[at])
    out[inside] = (value[at] + i * step[at])[inside].astype(np.uint64)
    return out


def _overlaps(start: Ints, end: Ints, starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Pairs (i, j) of ranges [start, end) and of sorted, disjoint [starts, ends) that may meet."""
    at = np.searchsorted(ends, start, side="right")
    count = np.maximum(np.searchsorted(starts, end, side="left") - at, 0)
    i = np.repeat(np.arange(len(start)), count)
    return i, np.arange(len(i)) - np.repeat(np.cumsum(count) - count - at, count)


def _translate(runs: Runs, start: Ints, value: Ints, step: Ints, nr: Ints, *, tables: bool) -> Runs:
    """Runs whose frames are looked up in sorted frame runs, cut where those end."""
    start, value, step, nr = _join_lines(start, value, step, nr)
    frame, count, pace = (column(runs, name) for name in ("pfn", "nr", "step"))
    size = np.ones_like(count) if tables else entry_pages(column(runs, "level"))
    other = frame + (count - 1) * pace
    low, high = np.minimum(frame, other), np.maximum(frame, other)
    run, which = _overlaps(low, high + size, start, start + nr)
    first, last = entries_in(
        frame[run], count[run], pace[run], start[which], start[which] + nr[which] - size[run] + 1
    )
    hit = (first < last) & ((size[run] == 1) | (step[which] == 1))
    run, which, first, last = run[hit], which[hit], first[hit], last[hit]
    order = np.lexsort((first, run))
    run, which, first, last = run[order], which[order], first[order], last[order]
    found = np.zeros(len(runs), np.int64)
    np.add.at(found, run, last - first)
    if np.any(found != count):
        row = runs[int(np.argmax(found != count))]
        raise MappingError(
            f"frames of the run at vpn {int(row['vpn']):#x} (frame {int(row['pfn']):#x}, "
            f"level {int(row['level'])}) are not all the domain's, or not contiguous"
        )
    out = runs[run]
    out["vpn"] = column(out, "vpn") + first * entry_pages(column(out, "level") + tables)
    out["pfn"] = value[which] + (frame[run] + first * pace[run] - start[which]) * step[which]
    out["nr"] = last - first
    out["step"] = pace[run] * step[which]
    return coalesce(out, tables=tables)


def _join_lines(start: Ints, value: Ints, step: Ints, nr: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Ascending frame runs that go on in the next one, joined: a superpage may span them."""
    step = np.where(nr == 1, 1, step)
    joins = (start[:-1] + nr[:-1] == start[1:]) & (value[:-1] + nr[:-1] == value[1:])
    joins &= (step[:-1] == 1) & (step[1:] == 1)
    first = np.flatnonzero(np.append(True, ~joins)) if len(start) else np.empty(0, np.int64)
    return start[first], value[first], step[first], np.add.reduceat(nr, first) if len(nr) else nr
