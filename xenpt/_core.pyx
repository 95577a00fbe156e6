# SPDX-License-Identifier: GPL-2.0-or-later
"""Hot loops over runs and packed page-table words.

Buffers and integers only: nothing here knows of kernels, versions, files or NumPy objects. Every
`def` checks shapes and ranges before its loop trusts them; its plain twin is in `_reference.py`.
"""

from libc.stdint cimport int64_t, uint64_t


# --- Runs: columns vpn, pfn, nr, step, level, flags (extents.RUN) --------------------------------

def coalesce(const uint64_t[:, ::1] runs not None, uint64_t[:, ::1] out not None, bint tables) -> int:
    """Write the canonical form of sorted `runs` to `out`; return its number of runs.

    :param out: room for twice as many runs: a run may lose its first entry to its predecessor
    :raises ValueError: a shape is wrong, or a level is not in 1..4
    """
    if runs.shape[1] != 6 or out.shape[1] != 6 or out.shape[0] < 2 * runs.shape[0]:
        raise ValueError("coalesce: runs must be (n, 6) and out (2n, 6)")
    cdef Py_ssize_t i
    for i in range(runs.shape[0]):
        if runs[i, 4] < 1 or runs[i, 4] > 4:
            raise ValueError(f"coalesce: run {i} has level {runs[i, 4]}")
    cdef Py_ssize_t nr
    with nogil:
        nr = _coalesce(runs, out, tables)
    return nr


cdef Py_ssize_t _coalesce(
    const uint64_t[:, ::1] runs, uint64_t[:, ::1] out, bint tables
) noexcept nogil:
    cdef Py_ssize_t i, k = -1
    cdef uint64_t vpn, pfn, nr, step, level, flags, size, one
    for i in range(runs.shape[0]):
        vpn, pfn, nr = runs[i, 0], runs[i, 1], runs[i, 2]
        step, level, flags = runs[i, 3], runs[i, 4], runs[i, 5]
        if nr == 0:
            continue
        size = <uint64_t>1 << (9 * (level - (0 if tables else 1)))
        one = 1 if tables else size
        if nr == 1:
            step = one
        if (
            k >= 0 and out[k, 4] == level and out[k, 5] == flags
            and out[k, 0] + out[k, 2] * size == vpn
        ):
            if out[k, 2] == 1:
                out[k, 3] = pfn - out[k, 1]
            if out[k, 1] + out[k, 2] * out[k, 3] == pfn:
                if nr == 1 or step == out[k, 3]:
                    out[k, 2] += nr
                    continue
                out[k, 2] += 1
                vpn, pfn, nr = vpn + size, pfn + step, nr - 1
                if nr == 1:
                    step = one
        k += 1
        out[k, 0], out[k, 1], out[k, 2] = vpn, pfn, nr
        out[k, 3], out[k, 4], out[k, 5] = step, level, flags
    return k + 1
