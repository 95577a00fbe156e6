# SPDX-License-Identifier: GPL-2.0-or-later
"""Hot loops over runs and packed page-table words.

Buffers and integers only: nothing here knows of kernels, versions, files or NumPy objects. Every
`def` checks shapes and ranges before its loop trusts them; its plain twin is in `_reference.py`.
Tables are rows of 512 words; runs are rows of six (extents.RUN), whose second column is a frame:
a pfn or an mfn, as the caller has it. The inner loops are in `_kernels.h`.
"""

import os

from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.string cimport memset

from xenpt.errors import EntryError, UsageError

cdef extern from *:
    void prefetch "__builtin_prefetch" (const void *) noexcept nogil

cdef const uint64_t FRAME_MASK = <uint64_t>0x000FFFFFFFFFF000
cdef const uint64_t FRAMES = <uint64_t>0x10000000000  # an entry's frame number has 40 bits
cdef const uint64_t NOWHERE = <uint64_t>0x7FFFFFFFFFFFFFFF  # behind every entry
cdef const uint64_t VPN_END = <uint64_t>0x10000000000000  # of a 64-bit address space

# Chosen once, when the module is loaded; XENPT_SIMD forces a smaller instruction set.
cdef const kernels_t *kernels = choose_kernels(os.environ.get("XENPT_SIMD", "").encode())
if kernels is NULL:
    raise UsageError(f"XENPT_SIMD={os.environ['XENPT_SIMD']}: not baseline, v3 or v4, or not here")


def simd() -> str:
    """Name of the instruction set that the kernels use: baseline, v3 (AVX2) or v4 (AVX-512)."""
    return kernels.name.decode()


# --- Gates ---------------------------------------------------------------------------------------
# A loop trusts what its gate has checked, so nothing that it writes may be what it reads.

cdef area_t _area(const uint64_t[:, ::1] rows) noexcept:
    cdef area_t area
    cdef Py_ssize_t nr = rows.shape[0] * rows.shape[1]
    area.start = <uintptr_t>&rows[0, 0] if nr else 0
    area.end = area.start + nr * sizeof(uint64_t)
    return area


cdef area_t _line_area(const uint64_t[::1] words) noexcept:
    cdef area_t area
    area.start = <uintptr_t>&words[0] if words.shape[0] else 0
    area.end = area.start + words.shape[0] * sizeof(uint64_t)
    return area


cdef area_t _places_area(const int64_t[::1] places) noexcept:
    cdef area_t area
    area.start = <uintptr_t>&places[0] if places.shape[0] else 0
    area.end = area.start + places.shape[0] * sizeof(int64_t)
    return area


cdef int _check_apart(area_t one, area_t other) except -1:
    if (one.start < other.end) & (other.start < one.end):
        raise ValueError("what is written overlaps what is read")
    return 0


# --- Runs ----------------------------------------------------------------------------------------

cdef inline void _close(runs_t *out) noexcept nogil:
    """Write the open run, if there is one."""
    if out.open.nr:
        if out.nr < out.room:
            out.rows[out.nr] = out.open
        out.nr += 1
        out.open.nr = 0


cdef inline void _append(runs_t *out, run_t run, uint64_t size, uint64_t unit) noexcept nogil:
    """Add entries of `size` virtual pages, growing the open run for as long as its step lasts.

    `unit` is the step of a run of one entry. The result does not depend on how the entries were
    cut into calls: each entry goes where it would go if it came alone.
    """
    cdef run_t *last = &out.open
    if run.nr == 1:
        run.step = unit
    if (
        last.nr and last.level == run.level and last.flags == run.flags
        and last.vpn + last.nr * size == run.vpn
    ):
        if last.nr == 1:
            last.step = run.frame - last.frame
        if last.frame + last.nr * last.step == run.frame:
            if run.nr == 1 or run.step == last.step:
                last.nr += run.nr
                return
            last.nr += 1
            run.vpn += size
            run.frame += run.step
            run.nr -= 1
            if run.nr == 1:
                run.step = unit
    _close(out)
    out.open = run


def coalesce(
    const uint64_t[:, ::1] runs not None,
    uint64_t[:, ::1] out not None,
    bint tables,
    bint within,
) -> int:
    """Write the canonical form of sorted `runs` to `out`; return its number of runs.

    :param out: room for twice as many runs: a run may lose its first entry to its predecessor
    :param tables: an entry covers a whole table of its level
    :param within: no run crosses the border of a table page
    :raises ValueError: a shape is wrong, a level is not in 1..4, or `out` overlaps `runs`
    """
    if runs.shape[1] != RUN_COLUMNS or out.shape[1] != RUN_COLUMNS:
        raise ValueError("coalesce: runs and out must have six columns")
    if out.shape[0] < 2 * runs.shape[0]:
        raise ValueError("coalesce: out must have room for twice the runs")
    cdef Py_ssize_t i
    for i in range(runs.shape[0]):
        if runs[i, 4] < 1 or runs[i, 4] > MAX_LEVEL:
            raise ValueError(f"coalesce: run {i} has level {runs[i, 4]}")
    if runs.shape[0] == 0:
        return 0
    _check_apart(_area(out), _area(runs))
    cdef runs_t list = _runs(out)
    with nogil:
        _coalesce(<const run_t *>&runs[0, 0], runs.shape[0], &list, tables, within)
    return list.nr


cdef runs_t _runs(uint64_t[:, ::1] out) noexcept:
    """An empty list of runs in the rows of `out`."""
    cdef runs_t list
    memset(&list, 0, sizeof(runs_t))
    list.rows = <run_t *>&out[0, 0] if out.shape[0] else NULL
    list.room = out.shape[0]
    return list


cdef void _coalesce(
    const run_t *runs, Py_ssize_t nr, runs_t *out, bint tables, bint within
) noexcept nogil:
    cdef Py_ssize_t i
    cdef int shift
    cdef uint64_t size
    for i in range(nr):
        if runs[i].nr:
            shift = <int>(TABLE_SHIFT * (runs[i].level - (0 if tables else 1)))
            size = <uint64_t>1 << shift
            if within and (runs[i].vpn >> shift) & (ENTRIES - 1) == 0:
                _close(out)
            _append(out, runs[i], size, 1 if tables else size)
    _close(out)


def list_runs(const uint64_t[::1] frames not None, uint64_t[:, ::1] out not None) -> int:
    """Write the runs of a list of frames, holes left out; return how many there are.

    A result above the rows of `out` means that it was too small: call again with that many.

    :param frames: frame of number 0, 1, ...; one of more than 40 bits is a hole
    :param out: rows (number, frame, step, nr), step 1 or -1
    :raises ValueError: `out` has not four columns, or overlaps `frames`
    """
    if out.shape[1] != 4:
        raise ValueError("list_runs: out must have four columns")
    if frames.shape[0] == 0:
        return 0
    _check_apart(_area(out), _line_area(frames))
    cdef Py_ssize_t nr
    with nogil:
        nr = _list_runs(&frames[0], frames.shape[0], out)
    return nr


cdef Py_ssize_t _list_runs(
    const uint64_t *frames, Py_ssize_t n, uint64_t[:, ::1] out
) noexcept nogil:
    """Long runs at the speed of memory; short ones are bound by the branch at each end."""
    cdef Py_ssize_t i = 0, nr, k = 0
    cdef uint64_t step
    while i < n:
        if frames[i] >= FRAMES:
            i += 1
            continue
        nr, step = 1, 1
        if i + 1 < n and frames[i + 1] < FRAMES:
            step = frames[i + 1] - frames[i]
            if step + 1 > 2 or step == 0:  # neither 1 nor -1
                step = 1
            elif i + 2 == n or frames[i + 2] != frames[i + 1] + step:
                nr = 2
            else:
                nr = kernels.match(frames + i, n - i, frames[i], step)
                while not _is_line(frames[i], nr, step):
                    nr -= 1
        if k < out.shape[0]:
            out[k, 0], out[k, 1], out[k, 2], out[k, 3] = i, frames[i], step, nr
        k += 1
        i += nr
    return k


# --- Build ---------------------------------------------------------------------------------------

def fill(uint64_t[:, ::1] pages not None, const uint64_t[:, ::1] pieces not None) -> None:
    """Write the words of `pieces` into table pages; other words stay as they are.

    :param pieces: rows (table, slot, nr, frame, step, flags); frame + i * step for word i
    :raises ValueError: a piece leaves its table, a frame has more than 40 bits, or the two overlap
    """
    _check_tables(pages)
    _check_apart(_area(pages), _area(pieces))
    if pieces.shape[1] != 6:
        raise ValueError("fill: pieces must have six columns")
    cdef Py_ssize_t i
    cdef uint64_t nr, frame, last
    for i in range(pieces.shape[0]):
        nr, frame = pieces[i, 2], pieces[i, 3]
        if pieces[i, 0] >= <uint64_t>pages.shape[0] or pieces[i, 1] >= ENTRIES:
            raise ValueError(f"fill: piece {i} is outside the tables")
        if nr < 1 or nr > ENTRIES - pieces[i, 1]:
            raise ValueError(f"fill: piece {i} leaves its table")
        last = frame + (nr - 1) * pieces[i, 4]
        if not _is_line(frame, nr, pieces[i, 4]):
            raise ValueError(f"fill: piece {i} has frames {frame:#x} to {last:#x}")
        if pieces[i, 5] & FRAME_MASK:
            raise ValueError(f"fill: piece {i} has flags {pieces[i, 5]:#x}")
    with nogil:
        for i in range(pieces.shape[0]):
            kernels.fill(
                &pages[<Py_ssize_t>pieces[i, 0], <Py_ssize_t>pieces[i, 1]], pieces[i, 2],
                pieces[i, 3] << PAGE_SHIFT | pieces[i, 5], pieces[i, 4] << PAGE_SHIFT,
            )


cdef inline bint _is_line(uint64_t frame, uint64_t nr, uint64_t step) noexcept nogil:
    """Whether frame + i * step has 40 bits for each i < nr, nr <= 2**40."""
    if frame >= FRAMES:
        return False
    if nr <= 1 or step == 0:
        return True
    if <int64_t>step > 0:
        return step < FRAMES and (FRAMES - 1 - frame) // step >= nr - 1
    step = 0 - step
    return step < FRAMES and frame // step >= nr - 1


cdef int _check_tables(const uint64_t[:, ::1] pages) except -1:
    if pages.shape[1] != ENTRIES:
        raise ValueError(f"table pages must have 512 words, not {pages.shape[1]}")
    return 0


# --- Mark ----------------------------------------------------------------------------------------

def mark(
    uint64_t[:, ::1] pages not None,
    const int64_t[::1] tables not None,
    int level,
    const uint64_t[:, ::1] ranges not None,
    uint64_t clear,
    uint64_t put,
) -> int:
    """Clear and set flags of present leaves whose frames lie in `ranges`; return how many change.

    :param tables: rows of `pages` to visit, tables of `level` (1..3)
    :param ranges: (k, 2) sorted, disjoint, half-open ranges of frames
    :raises EntryError: a superpage lies only partly in the ranges
    :raises ValueError: a shape, table, level or range is wrong, or arrays overlap
    """
    _check_marks(pages, tables, ranges, clear, put)
    if not 1 <= level < MAX_LEVEL:
        raise ValueError(f"mark: level {level}")
    if tables.shape[0] == 0 or ranges.shape[0] == 0:
        return 0
    cdef const range_t *list = <const range_t *>&ranges[0, 0]
    cdef Py_ssize_t i, after, n = tables.shape[0], k = ranges.shape[0], cursor = 0
    cdef int64_t slot = -1
    cdef uint64_t changed = 0
    with nogil:
        for i in range(n):
            if level == 1:
                after = tables[i + 1 if i + 1 < n else i]
                changed += _mark_table(
                    &pages[<Py_ssize_t>tables[i], 0], &pages[after, 0], list, k, &cursor, clear, put
                )
            else:
                slot = _mark_large(
                    &pages[<Py_ssize_t>tables[i], 0], level, list, k, &changed, clear, put
                )
                if slot >= 0:
                    break
    if slot >= 0:
        raise EntryError(
            table=tables[i], slot=slot, entry=pages[<Py_ssize_t>tables[i], <Py_ssize_t>slot],
            reason="a superpage lies only partly in the ranges",
        )
    return changed


cdef int _check_marks(
    const uint64_t[:, ::1] pages, const int64_t[::1] tables, const uint64_t[:, ::1] ranges,
    uint64_t clear, uint64_t put,
) except -1:
    cdef Py_ssize_t i
    _check_tables(pages)
    _check_apart(_area(pages), _places_area(tables))
    _check_apart(_area(pages), _area(ranges))
    for i in range(tables.shape[0]):
        if tables[i] < 0 or tables[i] >= pages.shape[0]:
            raise ValueError(f"table {tables[i]} is outside the image")
    return _check_ranges(ranges, clear, put)


cdef int _check_ranges(const uint64_t[:, ::1] ranges, uint64_t clear, uint64_t put) except -1:
    cdef Py_ssize_t i
    cdef uint64_t end = 0
    if ranges.shape[1] != 2:
        raise ValueError("ranges must have two columns")
    if (clear | put) & (FRAME_MASK | PRESENT):
        raise ValueError("flags to change must be neither frame bits nor PRESENT")
    for i in range(ranges.shape[0]):
        if ranges[i, 0] < end or ranges[i, 1] <= ranges[i, 0] or ranges[i, 1] > FRAMES:
            raise ValueError(f"range {i} is empty, unsorted or has more than 40 bits")
        end = ranges[i, 1]
    return 0


cdef inline Py_ssize_t _first_range(
    const range_t *ranges, Py_ssize_t k, uint64_t frame, Py_ssize_t guess
) noexcept nogil:
    """The first range that ends behind `frame`, or k; a right guess costs two compares."""
    cdef Py_ssize_t low = 0, high = k, middle
    if (guess == 0 or ranges[guess - 1].end <= frame) and (guess == k or ranges[guess].end > frame):
        return guess
    while low < high:
        middle = (low + high) // 2
        if ranges[middle].end > frame:
            high = middle
        else:
            low = middle + 1
    return low


cdef uint64_t _mark_table(
    uint64_t *t, const uint64_t *after, const range_t *ranges, Py_ssize_t k, Py_ssize_t *cursor,
    uint64_t clear, uint64_t put,
) noexcept nogil:
    """One table of level 1; brings the table `after` it into the cache."""
    cdef uint64_t stride = (t[1] & FRAME_MASK) - (t[0] & FRAME_MASK)
    cdef uint64_t differ = kernels.differ(t, t[0], stride, after)
    cdef uint64_t frame = (t[0] & FRAME_MASK) >> PAGE_SHIFT
    cdef uint64_t step = <uint64_t>(<int64_t>stride >> PAGE_SHIFT)
    if t[0] & PRESENT and differ & (FRAME_MASK | PRESENT) == 0 and _is_line(frame, ENTRIES, step):
        return _mark_line(t, ENTRIES, frame, step, ranges, k, cursor, clear, put)
    return _mark_scattered(t, ranges, k, cursor, clear, put)


cdef uint64_t _mark_line(
    uint64_t *t, uint64_t nr, uint64_t frame, uint64_t step, const range_t *ranges, Py_ssize_t k,
    Py_ssize_t *cursor, uint64_t clear, uint64_t put,
) noexcept nogil:
    """Words whose frames are a line: each range is one stretch of slots, whatever k is."""
    cdef uint64_t other = frame + (nr - 1) * step
    cdef uint64_t low = frame if frame < other else other
    cdef uint64_t high = other if frame < other else frame
    cdef uint64_t first, last, changed = 0
    cdef Py_ssize_t r = _first_range(ranges, k, low, cursor[0])
    cursor[0] = r
    while r < k and ranges[r].start <= high:
        _slots_in(frame, nr, step, ranges[r].start, ranges[r].end, &first, &last)
        if first < last:
            changed += kernels.flags(t + first, last - first, clear, put)
        r += 1
    return changed


cdef inline void _slots_in(
    uint64_t frame, uint64_t nr, uint64_t step, uint64_t start, uint64_t end,
    uint64_t *first, uint64_t *last,
) noexcept nogil:
    """The slots [first, last) of a line whose frames lie in [start, end)."""
    cdef uint64_t pace
    if step == 0:
        first[0], last[0] = 0, (nr if start <= frame < end else 0)
    elif <int64_t>step > 0:
        first[0] = 0 if start <= frame else (start - frame + step - 1) // step
        last[0] = 0 if end <= frame else (end - frame + step - 1) // step
    else:
        pace = 0 - step
        first[0] = 0 if frame < end else (frame - end) // pace + 1
        last[0] = 0 if frame < start else (frame - start) // pace + 1
    if last[0] > nr:
        last[0] = nr


cdef uint64_t _mark_scattered(
    uint64_t *t, const range_t *ranges, Py_ssize_t k, Py_ssize_t *cursor,
    uint64_t clear, uint64_t put,
) noexcept nogil:
    """A table of any frames: by vector where one range can hold them, else entry by entry."""
    cdef uint64_t low = FRAMES, high = 0, frame, start = 1, end = 0, to, changed = 0
    cdef Py_ssize_t i, r
    cdef bint inside = False
    for i in range(ENTRIES):
        frame = (t[i] & FRAME_MASK) >> PAGE_SHIFT
        if t[i] & PRESENT:
            low = frame if frame < low else low
            high = frame if frame > high else high
    r = _first_range(ranges, k, low, cursor[0])
    if low > high or r == k or ranges[r].start > high:
        return 0
    cursor[0] = r
    if r + 1 == k or ranges[r + 1].start > high:
        return kernels.range(
            t, FRAME_MASK, ranges[r].start << PAGE_SHIFT, ranges[r].end << PAGE_SHIFT, clear, put
        )
    for i in range(ENTRIES):
        if not t[i] & PRESENT:
            continue
        frame = (t[i] & FRAME_MASK) >> PAGE_SHIFT
        if not start <= frame < end:  # leave the range, or the gap, of the entry before
            r = _first_range(ranges, k, frame, r)
            inside = r < k and ranges[r].start <= frame
            start = ranges[r].start if inside else (ranges[r - 1].end if r else 0)
            end = ranges[r].end if inside else (ranges[r].start if r < k else FRAMES)
        if inside:
            to = (t[i] & ~clear) | put
            if to != t[i]:
                t[i] = to
                changed += 1
    return changed


cdef int64_t _mark_large(
    uint64_t *t, int level, const range_t *ranges, Py_ssize_t k, uint64_t *changed,
    uint64_t clear, uint64_t put,
) noexcept nogil:
    """The superpages of one table; the slot of one that lies only partly in the ranges, or -1."""
    cdef uint64_t size = <uint64_t>1 << (TABLE_SHIFT * (level - 1)), frame, to
    cdef Py_ssize_t i, r = 0
    for i in range(ENTRIES):
        if not (t[i] & PRESENT and t[i] & PSE):
            continue
        frame = (t[i] & FRAME_MASK) >> PAGE_SHIFT
        r = _first_range(ranges, k, frame, r)
        if r == k or ranges[r].start >= frame + size:
            continue
        if ranges[r].start > frame or ranges[r].end < frame + size:
            return i
        to = (t[i] & ~clear) | put
        if to != t[i]:
            t[i] = to
            changed[0] += 1
    return -1


def mark_gather(
    uint64_t[:, ::1] pages not None,
    const int64_t[::1] tables not None,
    const uint64_t[::1] m2p not None,
    const uint64_t[:, ::1] ranges not None,
    uint64_t clear,
    uint64_t put,
) -> int:
    """As `mark` for level 1, but `ranges` are pfns and each entry's pfn is read from `m2p`.

    For an M2P that is not the inverse of the P->M list; a frame outside it belongs to no range.

    :raises ValueError: a shape, table or range is wrong, or arrays overlap
    """
    _check_marks(pages, tables, ranges, clear, put)
    _check_apart(_area(pages), _line_area(m2p))
    if tables.shape[0] == 0 or ranges.shape[0] == 0 or m2p.shape[0] == 0:
        return 0
    cdef const range_t *list = <const range_t *>&ranges[0, 0]
    cdef Py_ssize_t i, k = ranges.shape[0], after, n = tables.shape[0]
    cdef uint64_t changed = 0
    with nogil:
        for i in range(n):
            after = tables[i + 1 if i + 1 < n else i]
            changed += _gather_table(
                &pages[<Py_ssize_t>tables[i], 0], &pages[after, 0], &m2p[0], m2p.shape[0], list, k,
                clear, put,
            )
    return changed


cdef uint64_t _gather_table(
    uint64_t *t, const uint64_t *after, const uint64_t *m2p, uint64_t nr_mfns,
    const range_t *ranges, Py_ssize_t k, uint64_t clear, uint64_t put,
) noexcept nogil:
    """Bound by the latency of one random read an entry; the prefetch keeps many in flight."""
    cdef uint64_t mfn, pfn, to, changed = 0
    cdef Py_ssize_t i, r = 0
    for i in range(ENTRIES):
        to = t[i + AHEAD] if i + AHEAD < ENTRIES else after[i + AHEAD - ENTRIES]
        mfn = (to & FRAME_MASK) >> PAGE_SHIFT
        if mfn < nr_mfns:
            prefetch(&m2p[mfn])
        mfn = (t[i] & FRAME_MASK) >> PAGE_SHIFT
        if not t[i] & PRESENT or mfn >= nr_mfns:
            continue
        pfn = m2p[mfn]
        r = _first_range(ranges, k, pfn, r)
        if r < k and ranges[r].start <= pfn:
            to = (t[i] & ~clear) | put
            if to != t[i]:
                t[i] = to
                changed += 1
    return changed


# --- Walk ----------------------------------------------------------------------------------------

def walk(
    const uint64_t[:, ::1] pages not None,
    const uint64_t[::1] mfns not None,
    const int64_t[::1] order not None,
    Py_ssize_t root,
    int level,
    uint64_t vpn,
    Py_ssize_t skip_start,
    Py_ssize_t skip_end,
    uint64_t[:, ::1] out not None,
    uint64_t[::1] counts not None,
) -> int:
    """Write the leaves below a table as canonical runs of mfns; return how many there are.

    A result above the rows of `out` means that it was too small: call again with that many.

    :param mfns: sorted mfns of the pages; `order`: which row of `pages` each one is
    :param root: row of the table to begin with, of `level` (1..4), at virtual page `vpn`
    :param skip_start: slots [skip_start, skip_end) of a level 4 table are left out: Xen's
    :param counts: out: entries read per level [1..4]; [0] entries that point outside the image
    :raises EntryError: tables that are shared so often that following them would not end soon
    :raises ValueError: a shape or the root is wrong, or arrays overlap
    """
    cdef walk_t state
    _begin_walk(&state, pages, mfns, order, root, level, out, counts)
    if out.shape[1] != RUN_COLUMNS:
        raise ValueError("walk: out must have six columns")
    state.out = _runs(out)
    state.skip_start, state.skip_end = skip_start, skip_end
    with nogil:
        _walk_table(&state, root, level, vpn)
        _close(&state.out)
    _end_walk(&state, root, counts)
    return state.out.nr


cdef int _check_image_apart(
    area_t written, const uint64_t[:, ::1] pages, const uint64_t[::1] mfns,
    const int64_t[::1] order,
) except -1:
    _check_apart(written, _area(pages))
    _check_apart(written, _line_area(mfns))
    _check_apart(written, _places_area(order))
    return 0


cdef int _begin_walk(
    walk_t *state, const uint64_t[:, ::1] pages, const uint64_t[::1] mfns,
    const int64_t[::1] order, Py_ssize_t root, int level, uint64_t[:, ::1] out,
    uint64_t[::1] counts,
) except -1:
    _check_tables(pages)
    _check_apart(_area(out), _line_area(counts))
    _check_image_apart(_area(out), pages, mfns, order)
    _check_image_apart(_line_area(counts), pages, mfns, order)
    cdef Py_ssize_t i, n = pages.shape[0]
    if mfns.shape[0] != n or order.shape[0] != n or counts.shape[0] != 5:
        raise ValueError("walk: one mfn and one place a page, and five counts")
    if not 0 <= root < n or not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"walk: no table {root} of level {level}")
    for i in range(n):
        if not 0 <= order[i] < n or (i and mfns[i] <= mfns[i - 1]):
            raise ValueError("walk: mfns must be sorted and distinct, order a permutation")
    memset(state, 0, sizeof(walk_t))
    state.image.pages = &pages[0, 0]
    state.image.mfns = &mfns[0]
    state.image.order = &order[0]
    state.image.nr = n
    state.max_visits = 64 * <uint64_t>n + 4096
    return 0


cdef int _end_walk(walk_t *state, Py_ssize_t root, uint64_t[::1] counts) except -1:
    cdef Py_ssize_t i
    for i in range(1, 5):
        counts[i] = state.read[i]
    counts[0] = state.outside
    if state.visits > state.max_visits:
        raise EntryError(
            table=root, slot=0, entry=state.image.pages[root * ENTRIES],
            reason=f"more than {state.max_visits} tables below: they share one another",
        )
    return 0


cdef inline Py_ssize_t _find(image_t *image, int level, uint64_t mfn) noexcept nogil:
    """The page that holds table `mfn`, or -1; the one behind the last found is tried first."""
    cdef Py_ssize_t low = 0, high = image.nr, middle
    middle = image.hint[level]
    if middle < image.nr and image.mfns[middle] == mfn:
        image.hint[level] = middle + 1
        return image.order[middle]
    while low < high:
        middle = (low + high) // 2
        if image.mfns[middle] < mfn:
            low = middle + 1
        else:
            high = middle
    if low == image.nr or image.mfns[low] != mfn:
        return -1
    image.hint[level] = low + 1
    return image.order[low]


cdef void _walk_table(walk_t *state, Py_ssize_t page, int level, uint64_t vpn) noexcept nogil:
    cdef const uint64_t *t = state.image.pages + page * ENTRIES
    cdef int shift = TABLE_SHIFT * (level - 1)
    cdef Py_ssize_t i, child
    cdef run_t leaf
    cdef uint64_t at
    state.visits += 1
    if state.visits > state.max_visits:
        return
    state.read[level] += ENTRIES
    if level == 1:
        _walk_words(state, t, page, vpn)
        return
    for i in range(ENTRIES):
        if not t[i] & PRESENT:
            continue
        if level == MAX_LEVEL and state.skip_start <= i < state.skip_end:
            continue
        at = vpn + (<uint64_t>i << shift)
        if level == MAX_LEVEL and i >= ENTRIES // 2:
            at += (<uint64_t>1 << 52) - (<uint64_t>1 << 36)  # the upper half of the address space
        if t[i] & PSE and level < MAX_LEVEL:
            leaf = _entry(at, t[i], level)
            _append(&state.out, leaf, <uint64_t>1 << shift, <uint64_t>1 << shift)
            continue
        child = _find(&state.image, level - 1, (t[i] & FRAME_MASK) >> PAGE_SHIFT)
        if child < 0:
            state.outside += 1
        else:
            _walk_table(state, child, level - 1, at)


cdef inline run_t _entry(uint64_t vpn, uint64_t word, int level) noexcept nogil:
    cdef run_t run
    run.vpn, run.frame, run.nr, run.step = vpn, (word & FRAME_MASK) >> PAGE_SHIFT, 1, 1
    run.level, run.flags = level, word & ~FRAME_MASK
    return run


cdef void _walk_words(
    walk_t *state, const uint64_t *t, Py_ssize_t page, uint64_t vpn
) noexcept nogil:
    """The words of a level 1 table: first the test for one line, then line by line."""
    cdef const uint64_t *after = t + ENTRIES if page + 1 < state.image.nr else t
    cdef uint64_t stride = t[1] - t[0]
    cdef run_t run
    if t[0] & PRESENT and _same_flags(t[0], t[1]) and not kernels.differ(t, t[0], stride, after):
        run = _entry(vpn, t[0], 1)
        run.nr, run.step = ENTRIES, <uint64_t>(<int64_t>stride >> PAGE_SHIFT)
        if _is_line(run.frame, ENTRIES, run.step):
            _append(&state.out, run, 1, 1)
            return
    _walk_lines(&state.out, t, ENTRIES, vpn)


cdef inline bint _same_flags(uint64_t a, uint64_t b) noexcept nogil:
    return (a ^ b) & ~FRAME_MASK == 0


cdef void _walk_lines(runs_t *out, const uint64_t *t, Py_ssize_t nr, uint64_t vpn) noexcept nogil:
    """Words line by line, holes left out. Bound by the branches at the ends of short lines."""
    cdef Py_ssize_t i = 0, n
    cdef uint64_t stride
    cdef run_t run
    while i < nr:
        if not t[i] & PRESENT:
            i += kernels.match(t + i, nr - i, 0, 0) if t[i] == 0 else 1
            continue
        run = _entry(vpn + i, t[i], 1)
        n = 1
        if i + 1 < nr and _same_flags(t[i], t[i + 1]):
            stride = t[i + 1] - t[i]
            run.step = <uint64_t>(<int64_t>stride >> PAGE_SHIFT)
            n = 2
            if i + 2 < nr and t[i + 2] == t[i + 1] + stride:
                n = kernels.match(t + i, nr - i, t[i], stride)
                while not _is_line(run.frame, n, run.step):
                    n -= 1
        run.nr = n
        _append(out, run, 1, 1)
        i += n


# --- Walk to free --------------------------------------------------------------------------------

def walk_to_free(
    const uint64_t[:, ::1] pages not None,
    const uint64_t[::1] mfns not None,
    const int64_t[::1] order not None,
    Py_ssize_t root,
    uint64_t slot,
    uint64_t begin,
    bint skip_empty_entries,
    bint flat,
    uint64_t[:, ::1] out not None,
    uint64_t[:, ::1] tables not None,
    uint64_t[::1] counts not None,
) -> tuple[int, int]:
    """Write what a walk below an L3 table frees: runs of leaves and runs of table pages, flags 0.

    Each list has an open run of its own, for tables come between the leaves: one run would end at
    every table. Returned is the number of runs of each; one above the rows of its array means that
    it was too small: call again with that many.

    :param root: row of the L3 table; `slot`: its first virtual page
    :param begin: first virtual page of the list, rounded down to 2 MiB
    :param skip_empty_entries: False: an L1 table is left at its first empty entry
    :param flat: True: one loop from `begin` that reads an L3 entry again for each L2 entry
    :param counts: out: entries read per level [1..3]; [0] entries that point outside the image
    :raises EntryError: as `walk`
    :raises ValueError: a shape or the root is wrong, or arrays overlap
    """
    cdef walk_t state
    _check_apart(_area(tables), _area(out))
    _check_apart(_area(tables), _line_area(counts))
    _check_image_apart(_area(tables), pages, mfns, order)
    _begin_walk(&state, pages, mfns, order, root, 3, out, counts)
    if out.shape[1] != RUN_COLUMNS or tables.shape[1] != RUN_COLUMNS:
        raise ValueError("walk_to_free: out and tables must have six columns")
    if begin < slot or begin - slot >= <uint64_t>ENTRIES ** 3 or begin & (ENTRIES - 1):
        raise ValueError("walk_to_free: the list begins outside the slot, or not at 2 MiB")
    state.out, state.tables = _runs(out), _runs(tables)
    with nogil:
        _free_l3(&state, root, slot, begin if flat else slot, skip_empty_entries, flat)
        _close(&state.out)
        _close(&state.tables)
    _end_walk(&state, root, counts)
    return state.out.nr, state.tables.nr


cdef void _free_l3(
    walk_t *state, Py_ssize_t page, uint64_t slot, uint64_t begin, bint skip_empty, bint flat
) noexcept nogil:
    cdef const uint64_t *t = state.image.pages + page * ENTRIES
    cdef uint64_t size = ENTRIES * ENTRIES, at, mfn = 0
    cdef Py_ssize_t i, child, first = (begin - slot) // size, from_l2 = (begin // ENTRIES) % ENTRIES
    state.visits += 1
    for i in range(first, ENTRIES):
        at = slot + i * size
        state.read[3] += 1
        if not t[i] & PRESENT:
            continue
        if t[i] & PSE:
            _append(&state.out, _freed(at, t[i], 3), size, size)
            continue
        child = _find(&state.image, 2, (t[i] & FRAME_MASK) >> PAGE_SHIFT)
        if child < 0:
            state.outside += 1
            continue
        if i > first:
            from_l2 = 0
        if flat:
            state.read[3] += ENTRIES - from_l2 - 1
        _free_l2(state, child, at, from_l2, skip_empty)
        _free_table(state, at, t[i], 2)
    for i in range(state.image.nr):
        if state.image.order[i] == page:
            mfn = state.image.mfns[i]
    _free_table(state, slot, mfn << PAGE_SHIFT, 3)


cdef void _free_l2(
    walk_t *state, Py_ssize_t page, uint64_t vpn, Py_ssize_t first, bint skip_empty
) noexcept nogil:
    cdef const uint64_t *t = state.image.pages + page * ENTRIES
    cdef uint64_t at
    cdef Py_ssize_t i, child
    state.visits += 1
    if state.visits > state.max_visits:
        return
    for i in range(first, ENTRIES):
        at = vpn + i * ENTRIES
        state.read[2] += 1
        if not t[i] & PRESENT:
            continue
        if t[i] & PSE:
            _append(&state.out, _freed(at, t[i], 2), ENTRIES, ENTRIES)
            continue
        child = _find(&state.image, 1, (t[i] & FRAME_MASK) >> PAGE_SHIFT)
        if child < 0:
            state.outside += 1
        else:
            _free_l1(state, child, at, skip_empty)
            _free_table(state, at, t[i], 1)


cdef void _free_l1(
    walk_t *state, Py_ssize_t page, uint64_t vpn, bint skip_empty
) noexcept nogil:
    cdef const uint64_t *t = state.image.pages + page * ENTRIES
    cdef const uint64_t *after = t + ENTRIES if page + 1 < state.image.nr else t
    cdef uint64_t stride = (t[1] & FRAME_MASK) - (t[0] & FRAME_MASK)
    cdef Py_ssize_t i
    cdef run_t run = _freed(vpn, t[0], 1)
    state.visits += 1
    if state.visits > state.max_visits:
        return
    run.nr, run.step = ENTRIES, <uint64_t>(<int64_t>stride >> PAGE_SHIFT)
    if (
        t[0] & PRESENT and _is_line(run.frame, ENTRIES, run.step)
        and kernels.differ(t, t[0], stride, after) & (FRAME_MASK | PRESENT) == 0
    ):
        state.read[1] += ENTRIES
        _append(&state.out, run, 1, 1)
    else:
        for i in range(ENTRIES):
            state.read[1] += 1
            if t[i] & PRESENT:
                _append(&state.out, _freed(vpn + i, t[i], 1), 1, 1)
            elif not skip_empty:
                break


cdef inline run_t _freed(uint64_t vpn, uint64_t word, int level) noexcept nogil:
    cdef run_t run = _entry(vpn, word, level)
    run.flags = 0
    return run


cdef void _free_table(walk_t *state, uint64_t vpn, uint64_t word, int level) noexcept nogil:
    """The table that `word` points to."""
    _append(&state.tables, _freed(vpn, word, level), <uint64_t>1 << TABLE_SHIFT * level, 1)


# --- Stream --------------------------------------------------------------------------------------

def stream(
    const uint64_t[:, ::1] entries not None,
    const uint64_t[:, ::1] expected not None,
    int level,
    uint64_t first,
    uint64_t last,
    uint64_t[:, ::1] window not None,
    const uint64_t[:, ::1] ranges not None,
    uint64_t clear,
    uint64_t put,
    uint64_t flip,
    uint64_t[:, ::1] scratch not None,
    uint64_t[::1] counts not None,
) -> int:
    """Build, mark and walk the tables of one level window by window; compare with what is expected.

    :param entries: sorted runs of mfns, all of `level`: what the tables hold before marking
    :param expected: sorted runs of what they must hold after it
    :param first: first entry (vpn >> 9 * (level - 1)), a table's first; `last`: the end, likewise
    :param window: buffer of some tables, used again for each window
    :param ranges: as of `mark`; only with level 1
    :param flip: an entry whose RW bit is flipped between mark and walk, for tests; or all ones
    :param scratch: room for the runs of a window, one row a word
    :param counts: out, added up: entries, changed, read-only, runs, windows, tables
    :returns: -1, or the first entry of the window that differs
    :raises ValueError: a shape, level, entry or range is wrong, or arrays overlap
    """
    _check_tables(window)
    _check_entries(entries, level)
    _check_entries(expected, level)
    if scratch.shape[1] != RUN_COLUMNS or scratch.shape[0] < window.shape[0] * ENTRIES:
        raise ValueError("stream: scratch must have six columns and a row for each word")
    if window.shape[0] < 1 or counts.shape[0] != 6 or (first | last) & (ENTRIES - 1):
        raise ValueError("stream: a window of whole tables, and six counts")
    if ranges.shape[0] and level != 1:
        raise ValueError("stream: only level 1 is marked")
    _check_ranges(ranges, clear, put)
    _check_apart(_area(window), _area(scratch))
    _check_apart(_line_area(counts), _area(window))
    _check_apart(_line_area(counts), _area(scratch))
    _check_lists_apart(_area(window), entries, expected, ranges)
    _check_lists_apart(_area(scratch), entries, expected, ranges)
    _check_lists_apart(_line_area(counts), entries, expected, ranges)
    cdef stream_t state
    cdef int64_t fault = -1
    memset(&state, 0, sizeof(stream_t))
    state.words = &window[0, 0]
    state.room = window.shape[0] * ENTRIES
    state.scratch = <run_t *>&scratch[0, 0]
    state.shift = TABLE_SHIFT * (level - 1)
    _begin_list(&state.entries, entries, first << state.shift, state.shift)
    _begin_list(&state.expected, expected, first << state.shift, state.shift)
    state.ranges = <const range_t *>&ranges[0, 0] if ranges.shape[0] else NULL
    state.nr_ranges = ranges.shape[0]
    state.clear, state.put, state.flip = clear, put, flip
    with nogil:
        fault = _stream(&state, first, last)
    counts[0] += state.nr_entries
    counts[1] += state.changed
    counts[2] += state.read_only
    counts[3] += state.nr_runs
    counts[4] += state.windows
    counts[5] += state.tables
    return fault


cdef int _check_lists_apart(
    area_t written, const uint64_t[:, ::1] entries, const uint64_t[:, ::1] expected,
    const uint64_t[:, ::1] ranges,
) except -1:
    _check_apart(written, _area(entries))
    _check_apart(written, _area(expected))
    _check_apart(written, _area(ranges))
    return 0


cdef int _check_entries(const uint64_t[:, ::1] runs, int level) except -1:
    cdef Py_ssize_t i
    cdef uint64_t at = 0, start, end
    if runs.shape[1] != RUN_COLUMNS:
        raise ValueError("runs must have six columns")
    if not 1 <= level <= MAX_LEVEL:
        raise ValueError(f"level {level}")
    cdef int shift = TABLE_SHIFT * (level - 1)
    end = VPN_END >> shift
    for i in range(runs.shape[0]):
        start = runs[i, 0] >> shift
        if runs[i, 4] != <uint64_t>level or start < at or runs[i, 2] < 1 or runs[i, 2] >= FRAMES:
            raise ValueError(f"run {i} is empty, unsorted or not of level {level}")
        if start >= end or runs[i, 2] > end - start:
            raise ValueError(f"run {i} leaves the address space")
        if not _is_line(runs[i, 1], runs[i, 2], runs[i, 3]) or runs[i, 5] & FRAME_MASK:
            raise ValueError(f"run {i} has frames of more than 40 bits, or such flags")
        at = start + runs[i, 2]
    return 0


cdef int _begin_list(
    list_t *list, const uint64_t[:, ::1] runs, uint64_t vpn, int shift
) except -1:
    """Set a cursor on the first run that ends behind `vpn`."""
    cdef Py_ssize_t low = 0, high = runs.shape[0], middle
    list.runs = <const run_t *>&runs[0, 0] if runs.shape[0] else NULL
    list.nr = runs.shape[0]
    while low < high:
        middle = (low + high) // 2
        if list.runs[middle].vpn + (list.runs[middle].nr << shift) > vpn:
            high = middle
        else:
            low = middle + 1
    list.at = low
    return 0


cdef int64_t _stream(stream_t *s, uint64_t first, uint64_t last) noexcept nogil:
    cdef uint64_t end, next_run, i, n
    cdef uint64_t *t
    cdef Py_ssize_t cursor = 0
    cdef runs_t out
    while first < last:
        next_run = _next_entry(s, &s.entries, first)
        if next_run >= first + ENTRIES:  # nothing here: go on at the table that holds the next run
            next_run = next_run & ~<uint64_t>(ENTRIES - 1) if next_run < last else last
            if _next_entry(s, &s.expected, first) < next_run:
                return first
            if next_run == last:
                return -1
            first = next_run
        n = last - first if last - first < <uint64_t>s.room else <uint64_t>s.room
        end = first + n
        _build_window(s, first, end)
        if s.nr_ranges:
            for i in range(n // ENTRIES):
                t = s.words + i * ENTRIES
                s.changed += _mark_table(
                    t, t, s.ranges, s.nr_ranges, &cursor, s.clear, s.put
                )
        if first <= s.flip < end:
            s.words[s.flip - first] ^= RW
        out.rows, out.room, out.nr, out.open.nr = s.scratch, s.room, 0, 0
        for i in range(n // ENTRIES):
            _stream_words(&out, s.words + i * ENTRIES, first + i * ENTRIES)
        _close(&out)
        s.windows += 1
        s.tables += n // ENTRIES
        s.nr_runs += out.nr
        if not _as_expected(s, &out, first, end):
            return first
        first = end
    return -1


cdef inline uint64_t _next_entry(stream_t *s, list_t *list, uint64_t first) noexcept nogil:
    """The first entry of the list at or behind `first`, or the highest number."""
    cdef uint64_t start
    while list.at < list.nr:
        start = list.runs[list.at].vpn >> s.shift
        if start + list.runs[list.at].nr > first:
            return start if start > first else first
        list.at += 1
    return NOWHERE


cdef void _build_window(stream_t *s, uint64_t first, uint64_t end) noexcept nogil:
    cdef const run_t *run
    cdef uint64_t at = first, start, n
    while at < end:
        start = _next_entry(s, &s.entries, at)
        if start > at:  # a hole
            n = (start if start < end else end) - at
            kernels.fill(s.words + (at - first), n, 0, 0)
            at += n
            continue
        run = &s.entries.runs[s.entries.at]
        start = run.vpn >> s.shift
        n = start + run.nr - at if start + run.nr < end else end - at
        kernels.fill(
            s.words + (at - first), n,
            (run.frame + (at - start) * run.step) << PAGE_SHIFT | run.flags, run.step << PAGE_SHIFT,
        )
        s.nr_entries += n
        at += n


cdef void _stream_words(runs_t *out, const uint64_t *t, uint64_t first) noexcept nogil:
    """As _walk_words, counted in entries instead of virtual pages."""
    cdef uint64_t stride = t[1] - t[0]
    cdef run_t run
    if t[0] & PRESENT and _same_flags(t[0], t[1]) and not kernels.differ(t, t[0], stride, t):
        run = _entry(first, t[0], 1)
        run.nr, run.step = ENTRIES, <uint64_t>(<int64_t>stride >> PAGE_SHIFT)
        if _is_line(run.frame, ENTRIES, run.step):
            _append(out, run, 1, 1)
            return
    _walk_lines(out, t, ENTRIES, first)


cdef bint _as_expected(stream_t *s, const runs_t *out, uint64_t first, uint64_t end) noexcept nogil:
    """Whether the walked runs map the same entries as the expected ones, however those are cut."""
    cdef const run_t *run
    cdef const run_t *want
    cdef Py_ssize_t i
    cdef uint64_t at = first, left, n, start
    for i in range(out.nr):
        run = &out.rows[i]
        if run.flags & RW == 0:
            s.read_only += run.nr
        if run.vpn < at or _next_entry(s, &s.expected, at) != run.vpn:
            return False
        at, left = run.vpn, run.nr
        while left:
            if _next_entry(s, &s.expected, at) != at:
                return False
            want = &s.expected.runs[s.expected.at]
            start = want.vpn >> s.shift
            n = start + want.nr - at if start + want.nr - at < left else left
            if want.flags != run.flags or (n > 1 and want.step != run.step):
                return False
            if want.frame + (at - start) * want.step != run.frame + (at - run.vpn) * run.step:
                return False
            at += n
            left -= n
    return _next_entry(s, &s.expected, at) >= end
