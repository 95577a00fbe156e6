# SPDX-License-Identifier: GPL-2.0-or-later
"""The plain twin of each function of `_core`: slow, obvious, entry by entry; the oracle of tests.

Same names, arguments and results; the checks of arguments are `_core`'s alone.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from xenpt.errors import EntryError

_Words = npt.NDArray[np.uint64]
_Rows = npt.NDArray[np.int64]
Entry = tuple[int, int, int, int]  # vpn, frame, level, flags

ENTRIES = 512
PRESENT, RW, PSE = 0x1, 0x2, 0x80
FRAME_MASK = 0x000FFFFFFFFFF000
WORD = (1 << 64) - 1
UPPER_HALF = (1 << 52) - (1 << 36)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _entries(runs: _Words, unit: int = 0) -> Iterator[Entry]:
    """Each entry of runs; one entry covers 512**(level - 1 + unit) virtual pages."""
    for vpn, frame, nr, step, level, flags in runs.tolist():
        for i in range(nr):
            size = ENTRIES ** (level - 1 + unit)
            yield vpn + i * size, frame + i * _signed(step), level, flags


class _Runs:
    """Runs grown entry by entry: an entry joins the last run if that run's step leads to it."""

    def __init__(self, unit: int = 0) -> None:
        self.rows: list[list[int]] = []
        self.unit, self.open = unit, False

    def close(self) -> None:
        self.open = False

    def add(self, vpn: int, frame: int, level: int, flags: int) -> None:
        size = ENTRIES ** (level - 1 + self.unit)
        last = self.rows[-1] if self.open else None
        if last and last[4:] == [level, flags] and last[0] + last[2] * size == vpn:
            if last[2] == 1:
                last[3] = frame - last[1]
            if last[1] + last[2] * last[3] == frame:
                last[2] += 1
                return
        self.rows.append([vpn, frame, 1, 1 if self.unit else size, level, flags])
        self.open = True

    def write(self, out: _Words) -> int:
        for row, values in zip(out, self.rows, strict=False):
            row[:] = [value & WORD for value in values]
        return len(self.rows)


def coalesce(runs: _Words, out: _Words, tables: bool, within: bool) -> int:
    grown = _Runs(unit=int(tables))
    for vpn, frame, level, flags in _entries(runs, int(tables)):
        if within and vpn // ENTRIES ** (level - 1 + int(tables)) % ENTRIES == 0:
            grown.close()
        grown.add(vpn, frame, level, flags)
    return grown.write(out)


def list_runs(frames: _Words, out: _Words) -> int:
    rows: list[list[int]] = []
    for number, frame in enumerate(frames.tolist()):
        if frame >> 40:
            continue
        last = rows[-1] if rows else None
        if last and last[0] + last[3] == number:
            step = frame - last[1] if last[3] == 1 else last[2]
            if step in (1, -1) and last[1] + last[3] * step == frame:
                last[2:] = [step, last[3] + 1]
                continue
        rows.append([number, frame, 1, 1])
    for row, values in zip(out, rows, strict=False):
        row[:] = [value & WORD for value in values]
    return len(rows)


def fill(pages: _Words, pieces: _Words) -> None:
    for table, slot, nr, frame, step, flags in pieces.tolist():
        for i in range(nr):
            pages[table, slot + i] = (frame + i * _signed(step)) << 12 | flags


def mark(pages: _Words, tables: _Rows, level: int, ranges: _Words, clear: int, put: int) -> int:
    changed, size = 0, ENTRIES ** (level - 1)
    for table in tables.tolist():
        for slot, word in enumerate(pages[table].tolist()):
            if not word & PRESENT or (level > 1 and not word & PSE):
                continue
            frame = (word & FRAME_MASK) >> 12
            inside = sum(
                max(0, min(end, frame + size) - max(start, frame)) for start, end in ranges.tolist()
            )
            if 0 < inside < size:
                reason = "a superpage lies only partly in the ranges"
                raise EntryError(table=table, slot=slot, entry=word, reason=reason)
            to = word & ~clear | put
            if inside and to != word:
                pages[table, slot] = to
                changed += 1
    return changed


def mark_gather(
    pages: _Words, tables: _Rows, m2p: _Words, ranges: _Words, clear: int, put: int
) -> int:
    changed = 0
    for table in tables.tolist():
        for slot, word in enumerate(pages[table].tolist()):
            mfn = (word & FRAME_MASK) >> 12
            if not word & PRESENT or mfn >= len(m2p):
                continue
            to = word & ~clear | put
            inside = any(start <= int(m2p[mfn]) < end for start, end in ranges.tolist())
            if inside and to != word:
                pages[table, slot] = to
                changed += 1
    return changed


def _row(mfns: _Words, order: _Rows, word: int) -> int | None:
    found = np.flatnonzero(mfns == np.uint64((word & FRAME_MASK) >> 12))
    return int(order[found[0]]) if len(found) else None


def walk(
    pages: _Words, mfns: _Words, order: _Rows, root: int, level: int, vpn: int,
    skip_start: int, skip_end: int, out: _Words, counts: _Words,
) -> int:  # fmt: skip
    grown, read = _Runs(), [0] * 5

    def table(page: int, level: int, vpn: int) -> None:
        for slot, word in enumerate(pages[page].tolist()):
            read[level] += 1
            at = vpn + slot * ENTRIES ** (level - 1)
            if level == 4 and slot >= ENTRIES // 2:
                at += UPPER_HALF
            if not word & PRESENT or (level == 4 and skip_start <= slot < skip_end):
                continue
            if level == 1 or (word & PSE and level < 4):
                grown.add(at, (word & FRAME_MASK) >> 12, level, word & ~FRAME_MASK)
                continue
            child = _row(mfns, order, word)
            if child is None:
                read[0] += 1
            else:
                table(child, level - 1, at)

    table(root, level, vpn)
    counts[:] = read
    return grown.write(out)


def walk_to_free(
    pages: _Words, mfns: _Words, order: _Rows, root: int, slot: int, begin: int,
    skip_empty_entries: bool, flat: bool, out: _Words, tables: _Words, counts: _Words,
) -> tuple[int, int]:  # fmt: skip
    freed, freed_tables, read = _Runs(), _Runs(unit=1), [0] * 5

    def free_table(page: int, level: int, vpn: int) -> None:
        mfn = next(int(mfn) for mfn, row in zip(mfns, order, strict=True) if row == page)
        freed_tables.add(vpn, mfn, level, 0)

    def l1(page: int, vpn: int) -> None:
        for i, word in enumerate(pages[page].tolist()):
            read[1] += 1
            if word & PRESENT:
                freed.add(vpn + i, (word & FRAME_MASK) >> 12, 1, 0)
            elif not skip_empty_entries:
                break
        free_table(page, 1, vpn)

    def l2_entry(word: int, vpn: int) -> None:
        read[2] += 1
        if word & PRESENT and word & PSE:
            freed.add(vpn, (word & FRAME_MASK) >> 12, 2, 0)
        elif word & PRESENT:
            child = _row(mfns, order, word)
            if child is None:
                read[0] += 1
            else:
                l1(child, vpn)

    # One loop over 2 MiB steps, as the seed has it; depth first only reads L3 entries less often.
    vpn = begin if flat else slot
    entered = False
    while vpn < slot + ENTRIES**3:
        word = int(pages[root, vpn // ENTRIES**2 % ENTRIES])
        if flat or not entered:
            read[3] += 1
        child = _row(mfns, order, word) if word & PRESENT and not word & PSE else None
        if child is None:
            if word & PRESENT and word & PSE:
                freed.add(vpn, (word & FRAME_MASK) >> 12, 3, 0)
            elif word & PRESENT:
                read[0] += 1
            vpn = vpn // ENTRIES**2 * ENTRIES**2 + ENTRIES**2
            continue
        l2_entry(int(pages[child, vpn // ENTRIES % ENTRIES]), vpn)
        vpn += ENTRIES
        entered = vpn % ENTRIES**2 != 0
        if not entered:
            free_table(child, 2, vpn - ENTRIES**2)
    free_table(root, 3, slot)
    counts[:] = read
    return freed.write(out), freed_tables.write(tables)


def stream(
    entries: _Words, expected: _Words, level: int, first: int, last: int, window: _Words,
    ranges: _Words, clear: int, put: int, flip: int, scratch: _Words, counts: _Words,
) -> int:  # fmt: skip
    size, span = ENTRIES ** (level - 1), len(window) * ENTRIES
    assert len(scratch) >= span  # only the core needs it
    held = {vpn // size: frame << 12 | flags for vpn, frame, _, flags in _entries(entries)}
    want = {vpn // size: frame << 12 | flags for vpn, frame, _, flags in _entries(expected)}
    while first < last:
        later = [at for at in held if at >= first]
        start = min(later, default=last) if min(later, default=last) >= first + ENTRIES else first
        start = min(start // ENTRIES * ENTRIES, last)
        if any(first <= at < start for at in want):
            return first
        first, end = start, min(start + span, last)
        if first >= last:
            break
        words = {at: held[at] for at in range(first, end) if at in held}
        counts[0] += np.uint64(len(words))
        for at, word in words.items():
            frame = (word & FRAME_MASK) >> 12
            if any(low <= frame < high for low, high in ranges.tolist()):
                words[at] = word & ~clear | put
                counts[1] += np.uint64(words[at] != word)
        if first <= flip < end:
            words[flip] = words.get(flip, 0) ^ RW
        grown = _Runs()
        for at, word in sorted(words.items()):
            if word & PRESENT:
                counts[2] += np.uint64(not word & RW)
                grown.add(at, (word & FRAME_MASK) >> 12, 1, word & ~FRAME_MASK)
        counts[3] += np.uint64(len(grown.rows))
        counts[4] += np.uint64(1)
        counts[5] += np.uint64((end - first) // ENTRIES)
        if {at: w for at, w in words.items() if w & PRESENT} != {
            at: w for at, w in want.items() if first <= at < end
        }:
            return first
        first = end
    return -1
