/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the engine is measured against. limit_*: what this machine can do with so many bytes at
 * all, compiled for this very processor. loop_*: one entry at a time, with volatile accesses and a
 * decision each, as a kernel's own loops over page tables have it.
 */
#include <stddef.h>
#include <stdint.h>

#define PRESENT UINT64_C(1)
#define RW UINT64_C(2)
#define FRAME_MASK UINT64_C(0x000FFFFFFFFFF000)
#define ENTRIES 512

typedef uint64_t line_t __attribute__((vector_size(64)));

uint64_t limit_read(const uint64_t *t, size_t n)
{
    const line_t *p = (const line_t *)t;
    line_t a = { 0 }, b = a, c = a, d = a;

    for (size_t i = 0; i < n / 8; i += 4) {
        a |= p[i];
        b |= p[i + 1];
        c |= p[i + 2];
        d |= p[i + 3];
    }
    a |= b | c | d;
    return a[0] | a[1] | a[2] | a[3] | a[4] | a[5] | a[6] | a[7];
}

void limit_write(uint64_t *t, size_t n)
{
    line_t *p = (line_t *)t;
    line_t v = { 1, 2, 3, 4, 5, 6, 7, 8 };

    for (size_t i = 0; i < n / 8; i++) {
        p[i] = v;
        __asm__ volatile("" ::: "memory"); /* or the compiler calls memset */
    }
}

void limit_rmw(uint64_t *t, size_t n)
{
    line_t *p = (line_t *)t;

    for (size_t i = 0; i < n / 8; i++)
        p[i] ^= 2;
}

void loop_build(uint64_t *t, size_t n, uint64_t mfn, uint64_t flags)
{
    volatile uint64_t *p = t;

    for (size_t i = 0; i < n; i++)
        p[i] = (mfn + i) << 12 | flags;
}

static int inside(uint64_t frame, const uint64_t *ranges, size_t k)
{
    size_t low = 0, high = k;

    if (k == 1)
        return frame >= ranges[0] && frame < ranges[1];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ranges[2 * middle + 1] > frame)
            high = middle;
        else
            low = middle + 1;
    }
    return low < k && ranges[2 * low] <= frame;
}

size_t loop_mark(uint64_t *t, size_t n, const uint64_t *ranges, size_t k)
{
    volatile uint64_t *p = t;
    size_t changed = 0;

    for (size_t i = 0; i < n; i++) {
        uint64_t w = p[i];
        if (w & PRESENT && w & RW && inside((w & FRAME_MASK) >> 12, ranges, k)) {
            p[i] = w & ~RW;
            changed++;
        }
    }
    return changed;
}

/* Frees of a walk that leaves each table at its first empty entry, neighbours joined. */
size_t loop_walk(const uint64_t *t, size_t n)
{
    const volatile uint64_t *p = t;
    uint64_t next = 0;
    size_t runs = 0;

    for (size_t table = 0; table < n; table += ENTRIES)
        for (size_t i = 0; i < ENTRIES; i++) {
            uint64_t w = p[table + i];
            if (!(w & PRESENT))
                break;
            if ((w & FRAME_MASK) >> 12 != next)
                runs++;
            next = ((w & FRAME_MASK) >> 12) + 1;
        }
    return runs;
}

/* All three steps over one chunk that stays in the cache, `chunks` times. */
size_t loop_fused(uint64_t *t, size_t n, size_t chunks, uint64_t mfn, uint64_t flags,
                  const uint64_t *ranges, size_t k)
{
    size_t changed = 0, runs = 0;

    for (size_t c = 0; c < chunks; c++, mfn += n) {
        loop_build(t, n, mfn, flags);
        changed += loop_mark(t, n, ranges, k);
        runs += loop_walk(t, n);
    }
    return runs ? changed : 0;
}
