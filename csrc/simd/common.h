/* What every instruction set's header shares: inlining, unrolling, unaligned access.
 *
 * A set's header defines, for the real type that SA_REAL_BITS asks for:
 *
 *     real, vec, vmask     the scalar, LANES of them, a truth value for each
 *     uvec                 LANES words of 32 bits, without a sign
 *     LANES, NR_MAX         lanes of a vector; vectors of a panel, at most
 *     NR_BEST               of a tile whose lanes are queries: what suits its products best
 *     MR(n)           rows of the product's accumulators for a panel of n vectors
 *     v_zero v_set v_broadcast v_load v_load_n v_store v_store_n      _n: touches n lanes, n > 0
 *     v_add v_sub v_mul v_div v_fma v_fms v_max v_min v_ldexp v_frexp
 *     v_stream v_stream_end                   a store around the caches; after the last of them
 *     v_zeroupper              clears what is past the lowest 128 bits of registers: table.inc.h
 *     v_lt v_le v_eq v_both v_select v_negative v_nonzero_bytes v_lane_bits
 *     v_first v_iota v_transpose
 *     v_swap(x, half)      lane i becomes lane i ^ half: a constant, a power of 2
 *     u_set u_load u_add u_mul u_xor u_shift_right u_at_least         modulo 2^32
 *
 * The same names mean the same operation, bit for bit, in every set:
 * v_max(a, b) is a > b ? a : b, so b where either is NaN, and v_min likewise; v_fma, and v_fms for
 * a * b - c, round once; v_first is lane 0; v_lane_bits has bit i set where lane i is true;
 * v_select(m, a, b) is a where m is true; v_negative is true where the sign bit is set, of NaN and
 * 0 too; v_nonzero_bytes reads LANES bytes; v_frexp(x, &e) returns m in [3/4, 3/2), where x is
 * m * 2^e, for normal x > 0. For whole n of at most 4/3 of the exponent range, v_ldexp(x, n) is
 *
 *     0              for n < LEAST_EXPONENT, be it -inf, whatever x is
 *     NaN            for n and x both NaN
 *     x * 2^n        rounded once, else, for x in (1/2, 2) */
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

#if defined(__clang__)
#define SA_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define SA_UNROLL _Pragma("GCC unroll 64")
#else
#define SA_UNROLL
#endif

/* From here on the compiler knows nothing of x, so it computes nothing from x ahead of time, which
 * it would have to keep in registers. */
#if defined(__GNUC__)
#define SA_OPAQUE(x) __asm__("" : "+r"(x))
#else
#define SA_OPAQUE(x) ((void)(x))
#endif

/* Ask for a cache line that is needed soon; it may lie anywhere, even outside of any array. */
#if defined(__GNUC__)
#define SA_PREFETCH(p) __builtin_prefetch((const void *)(p), 0, 2)
#define SA_PREFETCH_NEAREST(p) __builtin_prefetch((const void *)(p), 0, 3)
#else
#define SA_PREFETCH(p) ((void)(p))
#define SA_PREFETCH_NEAREST(p) ((void)(p))
#endif

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

/* What is less than 2 times 2^n rounds to 0 for all n below. */
#define LEAST_EXPONENT (-(REAL_BIAS + REAL_MANTISSA + 1))

SA_INLINE real read_real(const char *p) {
    real x;
    memcpy(&x, p, sizeof x);
    return x;
}

SA_INLINE void write_real(char *p, real x) { memcpy(p, &x, sizeof x); }

#endif
