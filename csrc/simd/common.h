/* The operations that the kernels are written in, and what the headers of all sets share.
 *
 * Each set's header (portable.h, avx2.h, avx512.h) defines the names below for the real type that
 * SA_REAL_BITS, 32 or 64, asks for. A name means the same in every set, bit for bit; only where
 * arithmetic results in NaN may it be any NaN. tests/simd.c compares each with scalar code.
 *
 *     real, bits              a scalar; an integer of its size (defined here)
 *     vec                     a vector of LANES reals
 *     vmask                   a truth value for each lane
 *     uvec                    a vector of LANES unsigned words of 32 bits
 *     LANES                   a power of 2, at least 2 and at most 16
 *     NR_MAX                  the most vectors in a panel of the product (ukernel.inc.h)
 *     NR_BEST                 vectors in the panel whose product is fastest
 *     MR(n)                   rows of accumulators that the registers hold for n vectors
 *
 * Memory. p may have any alignment, and the bytes of the lanes named are all that is touched:
 *
 *     v_load(p)               LANES reals
 *     v_load_n(p, n)          n reals, 0 < n <= LANES, then zeros
 *     v_broadcast(p)          the real at p, in every lane
 *     v_nonzero_bytes(p)      a mask from LANES bytes: true where a byte is not 0
 *     u_load(p)               LANES words
 *     v_store(p, x)           LANES reals
 *     v_store_n(p, x, n)      the first n lanes, 0 < n <= LANES
 *     v_stream(p, x)          v_store around the caches; p is a multiple of sizeof(vec)
 *     v_stream_end()          after the last v_stream: no later store is seen before those
 *
 * Half types, where a real is a float. NaN stays NaN; a store rounds to nearest, ties to even:
 *
 *     f16_load bf16_load(p)         LANES elements of 16 bits, as reals
 *     f16_store bf16_store(p, x)    LANES reals, as such elements
 *     f16_split bf16_split(x, &even, &odd)
 *                                   of 2 LANES elements, as v_load loads them, two in a lane: the
 *                                   first of each lane (its lower half) and the second, as reals
 *
 *
 * Signed bytes, where a real is a float:
 *
 *     v_load_int8(p)          LANES of them, as reals
 *     v_split_int8(x, y)      of 4 LANES of them, as v_load loads them, four in a lane: y[i] has
 * the i-th of each lane, from its lowest byte on, as reals
 *
 * Lanes:
 *
 *     v_zero()                0 in every lane
 *     v_set(x)                the scalar x in every lane
 *     v_iota()                lane i is i
 *     v_first(x)              lane 0, a scalar
 *     v_swap(x, half)         lane i is x's lane i ^ half, a constant power of 2 below LANES
 *     v_transpose(r)          of LANES vectors, in place: lane j of r[i] and lane i of r[j] swap
 *
 * Arithmetic in each lane, rounded to nearest:
 *
 *     v_add v_sub v_mul v_div(a, b)
 *     v_fma(a, b, c)          a * b + c, rounded once
 *     v_fms(a, b, c)          a * b - c, rounded once
 *     v_max(a, b)             a > b ? a : b, so b where either is NaN
 *     v_min(a, b)             a < b ? a : b, likewise
 *     v_frexp(x, &e)          m in [3/4, 3/2), and e, where x = m * 2^e; for normal x > 0
 *     v_ldexp(x, n)           x * 2^n for whole n, as told below
 *
 * Masks:
 *
 *     v_lt v_le v_eq(a, b)    false where either is NaN
 *     v_negative(x)           true where the sign bit is set, of NaN and 0 too
 *     v_both(m, n)            true where both are
 *     v_select(m, a, b)       a where m is true, else b
 *     v_lane_bits(m)          an unsigned integer with bit i set where lane i is true
 *
 * Words, modulo 2^32:
 *
 *     u_set(x)                the word x in every lane
 *     u_add u_mul u_xor(a, b)
 *     u_shift_right(a, n)     n is a constant, 0 < n < 32
 *     u_at_least(a, b)        a mask: true where a >= b
 *
 * And v_zeroupper() clears the registers past their lowest 128 bits
 * (tests/runtime/test_registers.py says why): the last statement of every kernel in the table.
 *
 * v_ldexp(x, n), for n up to 4/3 of REAL_BIAS, is
 *
 *     0                       where n < LEAST_EXPONENT, -inf among them, whatever x is
 *     NaN                     where n and x are both NaN
 *     x * 2^n, rounded once   else, for x in (1/2, 2) */
#ifndef SA_SIMD_COMMON_H
#define SA_SIMD_COMMON_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../strict_math.h"

#if defined(__GNUC__)
#define SA_INLINE static inline __attribute__((always_inline))
#else
#define SA_INLINE static inline
#endif

/* Before a loop with a constant number of rounds: unroll all of it, so that arrays of vectors that
 * it indexes are registers. */
#if defined(__clang__)
#define SA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SA_UNROLL _Pragma("GCC unroll 64")
#else
#define SA_UNROLL
#endif

/* From here on the compiler takes the integer x for unknown. So it computes nothing from x earlier,
 * which it would have to keep in registers. */
#if defined(__GNUC__)
#define SA_OPAQUE(x) __asm__("" : "+r"(x))
#else
#define SA_OPAQUE(x) ((void)(x))
#endif

/* Ask for the cache line at p, into the second level of the caches or into the nearest. p is an
 * integer or a pointer, and any address will do, even outside of all arrays. */
#if defined(__GNUC__)
#define SA_PREFETCH(p) __builtin_prefetch((const void *)(p), 0, 2)
#define SA_PREFETCH_NEAREST(p) __builtin_prefetch((const void *)(p), 0, 3)
#else
#define SA_PREFETCH(p) ((void)(p))
#define SA_PREFETCH_NEAREST(p) ((void)(p))
#endif

/* REAL_MANTISSA: the mantissa's bits that are stored. */
#if SA_REAL_BITS == 32
typedef float real;
typedef int32_t bits;
#define REAL_MANTISSA 23
#define REAL_BIAS 127
#define REAL_MAX FLT_MAX
#define REAL_EPSILON FLT_EPSILON
#else
typedef double real;
typedef int64_t bits;
#define REAL_MANTISSA 52
#define REAL_BIAS 1023
#define REAL_MAX DBL_MAX
#define REAL_EPSILON DBL_EPSILON
#endif

/* x * 2^n rounds to 0 for every x < 2 and every n up to here. */
#define LEAST_EXPONENT (-(REAL_BIAS + REAL_MANTISSA + 1))

/* A real at any alignment. */
SA_INLINE real read_real(const char *p) {
    real x;
    memcpy(&x, p, sizeof x);
    return x;
}

SA_INLINE void write_real(char *p, real x) { memcpy(p, &x, sizeof x); }

#endif
