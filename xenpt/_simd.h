/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The leaf kernels of _kernels.h for each level of x86-64, and the choice of the best that the
 * machine has. Elsewhere (aarch64, ...) there is the baseline alone, in whatever vectors the
 * compiler has for it. Needs GCC or Clang, for their vector types.
 */
#ifndef XENPT_SIMD_H
#define XENPT_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define XENPT_ENTRIES 512
#define XENPT_LINE 8 /* words of a cache line */
#define XENPT_PRESENT UINT64_C(1)
#define XENPT_TEXT(x) XENPT_TEXT_(x)
#define XENPT_TEXT_(x) #x
#define XENPT_JOIN(a, b) XENPT_JOIN_(a, b)
#define XENPT_JOIN_(a, b) a##_##b
#define KERNEL(name) XENPT_JOIN(name, VECTOR_SET)

typedef struct {
    const char *name;
    void (*fill)(uint64_t *, size_t, uint64_t, uint64_t);
    uint64_t (*differ)(const uint64_t *, uint64_t, uint64_t, const uint64_t *);
    size_t (*match)(const uint64_t *, size_t, uint64_t, uint64_t);
    size_t (*flags)(uint64_t *, size_t, uint64_t, uint64_t);
    size_t (*range)(uint64_t *, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
} kernels_t;

#define VECTOR_SET baseline
#define VECTOR_BYTES 16
#include "_kernels.h"
#undef VECTOR_SET
#undef VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define XENPT_CLONES 1
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define VECTOR_SET v3
#define VECTOR_BYTES 32
#include "_kernels.h"
#undef VECTOR_SET
#undef VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define VECTOR_SET v4
#define VECTOR_BYTES 64
#include "_kernels.h"
#undef VECTOR_SET
#undef VECTOR_BYTES
#pragma GCC pop_options
#endif

/* The kernels called `name`, or the best of this machine for an empty name; NULL if it lacks them. */
static const kernels_t *choose_kernels(const char *name)
{
#ifdef XENPT_CLONES
    int v3, v4;

    __builtin_cpu_init();
    v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma");
    v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
    if (v4 && (!*name || !strcmp(name, "v4")))
        return &kernels_v4;
    if (v3 && (!*name || !strcmp(name, "v3")))
        return &kernels_v3;
#endif
    if (!*name || !strcmp(name, "baseline"))
        return &kernels_baseline;
    return NULL;
}

#endif
