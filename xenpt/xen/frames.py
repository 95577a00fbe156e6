# SPDX-License-Identifier: GPL-2.0-or-later
"""Xen's frame table: count_info and type_info of every machine frame, packed.

Most frames of a large domain are in the same state as their neighbours. So frames are kept in
chunks of 16384: a chunk whose frames all agree is one pair of words, any other is a row of an
array. 64 TiB take 20 MB as long as nothing differs, and 16 bytes a frame where everything does.

The words are Xen's own (asm/mm.h of 4.17 to 4.20): count_info holds PGC_allocated and the general
references, type_info the type, PGT_pinned, PGT_validated and the type references. A frame whose
count_info is 0 is not the domain's.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from xenpt.errors import UsageError

CHUNK_SHIFT = 14
CHUNK = 1 << CHUNK_SHIFT  # frames
WHOLE = -1  # row of a chunk whose frames all agree
Words = npt.NDArray[np.uint64]
Mfns = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class FrameTable:
    """State of machine frames [0, nr_frames); mutable.

    :ivar nr_frames: the end of host memory (Xen max_page)
    :ivar io: disjoint mfn ranges [start, end) below it that are no RAM (owner dom_io)
    :ivar read_only_io: mfn ranges, of `io` or behind memory, that no domain may write
        (mmio_ro_ranges: MMCFG, MSI-X tables, ...)
    """

    def __init__(
        self,
        nr_frames: int,
        io: Sequence[tuple[int, int]] = (),
        read_only_io: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.nr_frames, self.io, self.read_only_io = nr_frames, tuple(io), tuple(read_only_io)
        nr_chunks = -(-nr_frames >> CHUNK_SHIFT)
        self._row = np.full(nr_chunks, WHOLE, np.int32)
        self._whole = np.zeros((nr_chunks, 2), np.uint64)
        self._rows = np.empty((0, CHUNK, 2), np.uint64)
        self._nr_rows = 0

    @property
    def nr_bytes(self) -> int:
        """Memory in use for frame states."""
        return self._row.nbytes + self._whole.nbytes + self._rows.nbytes

    # --- One frame ---------------------------------------------------------------------------

    def get(self, mfn: int) -> tuple[int, int]:
        """(count_info, type_info) of a frame; (0, 0) behind the end of memory."""
        if not 0 <= mfn < self.nr_frames:
            return 0, 0
        row = self._row[mfn >> CHUNK_SHIFT]
        pair = self._whole[mfn >> CHUNK_SHIFT] if row < 0 else self._rows[row, mfn & (CHUNK - 1)]
        return int(pair[0]), int(pair[1])

    def set(self, mfn: int, count_info: int, type_info: int) -> None:
        """Set both words of a frame."""
        pair = self._dense(mfn >> CHUNK_SHIFT)[mfn & (CHUNK - 1)]
        pair[0], pair[1] = count_info, type_info

    def is_io(self, mfn: int) -> bool:
        """Whether the frame is no RAM, or behind the end of memory."""
        return mfn >= self.nr_frames or any(start <= mfn < end for start, end in self.io)

    def is_read_only_io(self, mfn: int) -> bool:
        """Whether an entry of the frame, which is no RAM, loses RW."""
        return any(start <= mfn < end for start, end in self.read_only_io)

    # --- Many frames --------------------------------------------------------------------------

    def gather(self, mfns: Mfns) -> tuple[Words, Words]:
        """count_info and type_info of many frames; 0 behind the end of memory."""
        chunk = self._common_chunk(mfns)
        if chunk is not None and self._row[chunk] >= 0:  # nearly always: one table's frames
            pairs = self._rows[self._row[chunk]][mfns & (CHUNK - 1)]
            return pairs[:, 0], pairs[:, 1]
        inside = (mfns >= 0) & (mfns < self.nr_frames)
        at = np.where(inside, mfns, 0)
        row = self._row[at >> CHUNK_SHIFT]
        pairs = self._whole[at >> CHUNK_SHIFT]
        dense = row >= 0
        pairs[dense] = self._rows[row[dense], at[dense] & (CHUNK - 1)]
        pairs[~inside] = 0
        return pairs[:, 0], pairs[:, 1]

    def _common_chunk(self, mfns: Mfns) -> int | None:
        """The one chunk that holds all of the frames, or None."""
        if not len(mfns):
            return None
        low, high = int(mfns.min()), int(mfns.max())
        same = low >> CHUNK_SHIFT == high >> CHUNK_SHIFT and low >= 0 and high < self.nr_frames
        return low >> CHUNK_SHIFT if same else None

    def are_io(self, mfns: Mfns) -> Mask:
        """`is_io` of many frames."""
        io: Mask = mfns >= self.nr_frames
        for start, end in self.io:
            io |= (mfns >= start) & (mfns < end)
        return io

    def scatter(self, mfns: Mfns, count_info: Words, type_info: Words) -> None:
        """Set both words of many frames, each named once."""
        chunk = self._common_chunk(mfns)
        chunks = [chunk] if chunk is not None else np.unique(mfns >> CHUNK_SHIFT).tolist()
        for chunk in chunks:
            here = slice(None) if len(chunks) == 1 else mfns >> CHUNK_SHIFT == chunk
            pairs, at = self._dense(chunk), mfns[here] & (CHUNK - 1)
            pairs[at, 0] = count_info[here]
            pairs[at, 1] = type_info[here]

    def fill(self, start: int, end: int, count_info: int, type_info: int) -> None:
        """Set frames [start, end) to one state.

        :raises UsageError: frames behind the end of memory
        """
        for chunk, first, last in self._pieces(start, end):
            if last - first == CHUNK:
                self._release(chunk)
                self._whole[chunk] = count_info, type_info
            else:
                self._dense(chunk)[first:last] = count_info, type_info

    def states(self, start: int, end: int) -> Iterator[tuple[int, int, Words]]:
        """(first, end, pairs) pieces that cover [start, end); a piece in one state has one pair."""
        for chunk, first, last in self._pieces(start, end):
            base, row = chunk << CHUNK_SHIFT, self._row[chunk]
            pairs = self._whole[chunk : chunk + 1] if row < 0 else self._rows[row, first:last]
            yield base + first, base + last, pairs

    def add(self, start: int, end: int, count: int, type_count: int) -> None:
        """Add references to frames [start, end); both numbers may be negative.

        :raises UsageError: frames behind the end of memory
        """
        delta = np.array([count, type_count], np.int64).view(np.uint64)  # wraps as it should
        for _, _, pairs in self.split(start, end):
            pairs += delta

    def split(self, start: int, end: int) -> Iterator[tuple[int, int, Words]]:
        """As `states`, but each pair may be changed in place."""
        for chunk, first, last in self._pieces(start, end):
            base = chunk << CHUNK_SHIFT
            if last - first < CHUNK:
                self._dense(chunk)
            row = self._row[chunk]
            pairs = self._whole[chunk : chunk + 1] if row < 0 else self._rows[row, first:last]
            yield base + first, base + last, pairs

    def compact(self) -> None:
        """Store chunks whose frames agree again as one pair; frees what they took."""
        keep = []
        for chunk in np.flatnonzero(self._row >= 0).tolist():
            pairs = self._rows[self._row[chunk]]
            if np.all(pairs == pairs[0]):
                self._whole[chunk] = pairs[0]
                self._row[chunk] = WHOLE
            else:
                keep.append(chunk)
        self._rows = self._rows[self._row[keep]] if keep else self._rows[:0].copy()
        self._row[keep] = np.arange(len(keep))
        self._nr_rows = len(keep)

    # --- Chunks -------------------------------------------------------------------------------

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        if not 0 <= start <= end <= len(self._row) << CHUNK_SHIFT:
            raise UsageError(f"frames [{start:#x}, {end:#x}) of a host of {self.nr_frames:#x}")
        for chunk in range(start >> CHUNK_SHIFT, -(-end >> CHUNK_SHIFT)):
            base = chunk << CHUNK_SHIFT
            yield chunk, max(start - base, 0), min(end - base, CHUNK)

    def _dense(self, chunk: int) -> Words:
        """The pairs of a chunk, to be changed."""
        row = int(self._row[chunk])
        if row < 0:
            row = self._new_row()
            self._rows[row] = self._whole[chunk]
            self._row[chunk] = row
        pairs: Words = self._rows[row]
        return pairs

    def _new_row(self) -> int:
        if self._nr_rows == len(self._rows):
            grown = np.empty((max(4, len(self._rows) * 3 // 2), CHUNK, 2), np.uint64)
            grown[: self._nr_rows] = self._rows[: self._nr_rows]
            self._rows = grown
        self._nr_rows += 1
        return self._nr_rows - 1

    def _release(self, chunk: int) -> None:
        """Forget the row of a chunk; the last row takes its place."""
        row = int(self._row[chunk])
        if row < 0:
            return
        last = self._nr_rows - 1
        if row != last:
            self._rows[row] = self._rows[last]
            self._row[np.flatnonzero(self._row == last)[0]] = row
        self._row[chunk] = WHOLE
        self._nr_rows = last
