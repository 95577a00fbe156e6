/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Leaf kernels of _core, included by _simd.h once for each instruction set with
 *   KERNEL(name)   the name of a kernel in this set
 *   VECTOR_BYTES   the width of its registers
 * Each works on the 64-bit words of one page table, without branches in its inner loop.
 *
 * A *line* of words is affine: word i is first + i * stride. The tables of a guest nearly always
 * are, so the test for it comes first everywhere, and a whole table is then one run.
 */
typedef uint64_t KERNEL(vector) __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
#define VECTOR KERNEL(vector)
#define LANES (VECTOR_BYTES / 8)
#define PARTS (XENPT_LINE / LANES) /* registers that hold the words of a cache line */

/* The line's words that fall into part p of its first cache line. */
static inline VECTOR KERNEL(part)(uint64_t first, uint64_t stride, int p)
{
    VECTOR v;

    for (int i = 0; i < LANES; i++)
        v[i] = first + (uint64_t)(p * LANES + i) * stride;
    return v;
}

static inline uint64_t KERNEL(any_bits)(const VECTOR *parts)
{
    uint64_t bits = 0;

    for (int p = 0; p < PARTS; p++)
        for (int i = 0; i < LANES; i++)
            bits |= parts[p][i];
    return bits;
}

/* Write a line of words. Bound by the store port: one register a cycle. */
static void KERNEL(fill)(uint64_t *restrict t, size_t nr, uint64_t first, uint64_t stride)
{
    VECTOR line[PARTS];
    uint64_t step = stride * XENPT_LINE;
    size_t i = 0;

    for (int p = 0; p < PARTS; p++)
        line[p] = KERNEL(part)(first, stride, p);
    for (; i + XENPT_LINE <= nr; i += XENPT_LINE)
        for (int p = 0; p < PARTS; p++, line[p - 1] += step)
            *(VECTOR *)(t + i + p * LANES) = line[p];
    for (; i < nr; i++)
        t[i] = first + i * stride;
}

/*
 * Bits in which any of 512 words differs from a line; brings the table at `next` into the cache
 * meanwhile, since the processor's own prefetch stops at the page's end. In cache it is bound by
 * two operations a register (add, combine), in memory by the read bandwidth.
 */
static uint64_t KERNEL(differ)(
    const uint64_t *restrict t, uint64_t first, uint64_t stride, const uint64_t *next)
{
    VECTOR line[PARTS], all[PARTS];
    uint64_t step = stride * XENPT_LINE;

    for (int p = 0; p < PARTS; p++) {
        line[p] = KERNEL(part)(first, stride, p);
        all[p] = line[p] ^ line[p];
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < XENPT_ENTRIES; i += XENPT_LINE) {
        __builtin_prefetch(next + i);
        for (int p = 0; p < PARTS; p++) {
            all[p] |= *(const VECTOR *)(t + i + p * LANES) ^ line[p];
            line[p] += step;
        }
    }
    return KERNEL(any_bits)(all);
}

/* Words at the start of t that lie on a line. Bound by the compare; looks once a cache line. */
static size_t KERNEL(match)(const uint64_t *restrict t, size_t nr, uint64_t first, uint64_t stride)
{
    VECTOR line[PARTS], all[PARTS];
    uint64_t step = stride * XENPT_LINE;
    size_t i = 0;

    for (int p = 0; p < PARTS; p++)
        line[p] = KERNEL(part)(first, stride, p);
    for (; i + XENPT_LINE <= nr; i += XENPT_LINE) {
        for (int p = 0; p < PARTS; p++) {
            all[p] = *(const VECTOR *)(t + i + p * LANES) ^ line[p];
            line[p] += step;
        }
        if (KERNEL(any_bits)(all))
            break;
    }
    while (i < nr && t[i] == first + i * stride)
        i++;
    return i;
}

/*
 * Clear and set flags of the present words; returns how many words change. Stores only where
 * something does, so words that are already right cost a read. Bound by three operations a word.
 */
static size_t KERNEL(flags)(uint64_t *restrict t, size_t nr, uint64_t clear, uint64_t put)
{
    uint64_t changed = 0;

    for (size_t i = 0; i < nr; i++) {
        uint64_t w = t[i], to = (w & ~clear) | put;
        changed += (w & XENPT_PRESENT) & (w != to);
    }
    if (changed)
        for (size_t i = 0; i < nr; i++) {
            uint64_t w = t[i], here = 0 - (w & XENPT_PRESENT);
            t[i] = (w & ~(clear & here)) | (put & here);
        }
    return changed;
}

/*
 * The same for those of 512 words whose address bits lie in [low, high). Addresses have 52 bits,
 * so the sign of a difference is the comparison, and every instruction set can do it in a vector.
 */
static size_t KERNEL(range)(
    uint64_t *restrict t, uint64_t mask, uint64_t low, uint64_t high, uint64_t clear, uint64_t put)
{
    uint64_t changed = 0;

    for (size_t i = 0; i < XENPT_ENTRIES; i++) {
        uint64_t w = t[i], a = w & mask, to = (w & ~clear) | put;
        uint64_t in = (((low - 1) - a) & (a - high)) >> 63;
        changed += in & (w & XENPT_PRESENT) & (w != to);
    }
    if (changed)
        for (size_t i = 0; i < XENPT_ENTRIES; i++) {
            uint64_t w = t[i], a = w & mask;
            uint64_t in = (((low - 1) - a) & (a - high)) >> 63;
            uint64_t here = 0 - (in & w & XENPT_PRESENT);
            t[i] = (w & ~(clear & here)) | (put & here);
        }
    return changed;
}

static const kernels_t KERNEL(kernels) = {
    XENPT_TEXT(VECTOR_SET), KERNEL(fill), KERNEL(differ), KERNEL(match), KERNEL(flags), KERNEL(range),
};

#undef VECTOR
#undef LANES
#undef PARTS
