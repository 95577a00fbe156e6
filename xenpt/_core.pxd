# SPDX-License-Identifier: GPL-2.0-or-later
from libc.stdint cimport int64_t, uint64_t, uintptr_t


cdef extern from "_simd.h":
    ctypedef struct kernels_t:
        const char *name
        void (*fill)(uint64_t *, size_t, uint64_t, uint64_t) noexcept nogil
        uint64_t (*differ)(const uint64_t *, uint64_t, uint64_t, const uint64_t *) noexcept nogil
        size_t (*match)(const uint64_t *, size_t, uint64_t, uint64_t) noexcept nogil
        size_t (*flags)(uint64_t *, size_t, uint64_t, uint64_t) noexcept nogil
        size_t (*range)(
            uint64_t *, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t
        ) noexcept nogil
    const kernels_t *choose_kernels(const char *name)

cdef enum:
    ENTRIES = 512
    TABLE_SHIFT = 9
    PAGE_SHIFT = 12
    MAX_LEVEL = 4
    RUN_COLUMNS = 6
    PRESENT = 0x1
    RW = 0x2
    PSE = 0x80
    AHEAD = 64  # entries between the prefetch of an M2P word and its use

# One run, in the column order of extents.RUN.
ctypedef struct run_t:
    uint64_t vpn
    uint64_t frame
    uint64_t nr
    uint64_t step
    uint64_t level
    uint64_t flags

# Runs being written: the last one is open. `nr` may pass `room`: then it only counts.
ctypedef struct runs_t:
    run_t *rows
    Py_ssize_t room
    Py_ssize_t nr
    run_t open

# Addresses [start, end) of an array in this process.
ctypedef struct area_t:
    uintptr_t start
    uintptr_t end

# A half-open range of frames.
ctypedef struct range_t:
    uint64_t start
    uint64_t end

# The tables of an image, found by their mfn; `hint` is the page found last on each level.
ctypedef struct image_t:
    const uint64_t *pages
    const uint64_t *mfns
    const int64_t *order
    Py_ssize_t nr
    Py_ssize_t hint[5]

ctypedef struct walk_t:
    image_t image
    runs_t out
    runs_t tables
    uint64_t read[5]
    uint64_t outside
    uint64_t visits
    uint64_t max_visits
    Py_ssize_t skip_start
    Py_ssize_t skip_end

# Sorted runs with a cursor.
ctypedef struct list_t:
    const run_t *runs
    Py_ssize_t nr
    Py_ssize_t at

ctypedef struct stream_t:
    uint64_t *words
    Py_ssize_t room
    run_t *scratch
    int shift
    list_t entries
    list_t expected
    const range_t *ranges
    Py_ssize_t nr_ranges
    uint64_t clear
    uint64_t put
    uint64_t flip
    uint64_t nr_entries
    uint64_t changed
    uint64_t read_only
    uint64_t nr_runs
    uint64_t windows
    uint64_t tables
