/* AVX2 and FMA: 8 floats or 4 doubles in a vector, 16 vectors. See common.h. */
#ifndef SA_SIMD_H
#define SA_SIMD_H

#include <immintrin.h>

#include "common.h"

#define MM(name) _mm256_##name
#if SA_REAL_BITS == 32
typedef __m256 vec;
#define LANES 8
#define FIRST _mm256_cvtss_f32
#define SI(name) _mm256_##name##_epi32
#define AS_BITS _mm256_castps_si256
#define AS_REAL _mm256_castsi256_ps
#define SET_BITS _mm256_set1_epi32
#else
typedef __m256d vec;
#define LANES 4
#define FIRST _mm256_cvtsd_f64
#define SI(name) _mm256_##name##_epi64
#define AS_BITS _mm256_castpd_si256
#define AS_REAL _mm256_castsi256_pd
#define SET_BITS _mm256_set1_epi64x
#endif
typedef vec vmask; /* a lane is true where its sign bit is set */
#define CMP OP(cmp)

#include "x86.h"

/* 12 accumulators, n operands and a broadcast fit the 16 registers. */
#define NR_MAX 3
#define NR_BEST 3
#define MR(n) ((n) == 3 ? 4 : (n) == 2 ? 6 : 12)

/* clang, where all 16 registers are in use, moves accumulators about (.6 of the speed), unless the
 * other factor is in a register of its own. */
#if defined(__clang__)
#define KEEP_IN_REGISTER(x) __asm__("" : "+x"(x))
#endif

/* The first n lanes, of v_load_n and v_store_n. */
SA_INLINE __m256i tail_mask(int n) {
    static const bits ones_then_zeros[2 * LANES] = {
        -1, -1, -1, -1,
#if LANES == 8
        -1, -1, -1, -1,
#endif
    };
    return _mm256_loadu_si256((const void *)(ones_then_zeros + LANES - n));
}

SA_INLINE vec v_load_n(const void *p, int n) { return OP(maskload)(p, tail_mask(n)); }
SA_INLINE void v_store_n(void *p, vec x, int n) { OP(maskstore)(p, tail_mask(n), x); }

SA_INLINE vmask v_both(vmask a, vmask b) { return OP (and)(a, b); }
SA_INLINE vec v_select(vmask m, vec a, vec b) { return OP(blendv)(b, a, m); }
SA_INLINE vmask v_negative(vec x) { return x; }
SA_INLINE unsigned v_lane_bits(vmask m) { return (unsigned)OP(movemask)(m); }
SA_INLINE vmask v_nonzero_bytes(const char *p) {
#if SA_REAL_BITS == 32
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
#else
    int32_t four;
    memcpy(&four, p, sizeof four);
    __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
#endif
    return AS_REAL(SI(cmpgt)(wide, _mm256_setzero_si256()));
}

SA_INLINE vmask u_at_least(uvec a, uvec b) {
    uvec same = UI(cmpeq_epi32)(UI(max_epu32)(a, b), a);
#if LANES == 8
    return AS_REAL(same);
#else
    return AS_REAL(_mm256_cvtepi32_epi64(same));
#endif
}

SA_INLINE __m256i to_int(vec x) {
#if SA_REAL_BITS == 32
    return _mm256_cvtps_epi32(x);
#else
    return _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(x));
#endif
}

SA_INLINE vec power_of_two(__m256i n) {
    return AS_REAL(SI(slli)(SI(add)(n, SET_BITS(REAL_BIAS)), REAL_MANTISSA));
}

/* Mostly all lanes stay normal numbers. Else in two steps, since 2^n itself may be none; only the
 * last can round. */
SA_INLINE vec v_ldexp(vec x, vec n) {
    vec size = OP(andnot)(v_set((real)-0.0), n);
    if (v_lane_bits(v_le(size, v_set(REAL_BIAS - 2))) == (1u << LANES) - 1)
        return AS_REAL(SI(add)(AS_BITS(x), SI(slli)(to_int(n), REAL_MANTISSA)));
    vmask none = v_lt(n, v_set(LEAST_EXPONENT));
    n = v_max(n, v_set(LEAST_EXPONENT));
    __m256i half = to_int(v_mul(n, v_set((real)0.5)));
    __m256i rest = SI(sub)(to_int(n), half);
    return v_mul(v_mul(v_select(none, v_zero(), x), power_of_two(half)), power_of_two(rest));
}

SA_INLINE vec v_frexp(vec x, vec *e) {
    const __m256i mantissa = SET_BITS(((bits)1 << REAL_MANTISSA) - 1);
    const vec one = v_set(1), magic = v_set((real)((bits)3 << (REAL_MANTISSA - 1)));
    __m256i b = AS_BITS(x);
    vec m = AS_REAL(_mm256_or_si256(_mm256_and_si256(b, mantissa), AS_BITS(one)));
    vmask high = v_le(v_set((real)1.5), m);
    /* The biased exponent, dropped into the mantissa of `magic`, is magic + exponent. */
    __m256i biased = SI(srli)(b, REAL_MANTISSA);
    vec exponent = v_sub(AS_REAL(SI(add)(biased, AS_BITS(magic))), magic);
    exponent = v_sub(exponent, v_set(REAL_BIAS));
    *e = v_select(high, v_add(exponent, one), exponent);
    return v_select(high, v_mul(m, v_set((real)0.5)), m);
}

#if SA_REAL_BITS == 32

SA_INLINE vec v_load_int8(const void *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
SA_INLINE void v_split_int8(vec x, vec y[4]) {
    __m256i b = _mm256_castps_si256(x);
    y[0] = _mm256_cvtepi32_ps(SI(srai)(SI(slli)(b, 24), 24));
    y[1] = _mm256_cvtepi32_ps(SI(srai)(SI(slli)(b, 16), 24));
    y[2] = _mm256_cvtepi32_ps(SI(srai)(SI(slli)(b, 8), 24));
    y[3] = _mm256_cvtepi32_ps(SI(srai)(b, 24));
}
SA_INLINE vec f16_load(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
SA_INLINE void f16_store(void *p, vec x) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
SA_INLINE vec bf16_load(const void *p) {
    return AS_REAL(SI(slli)(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
SA_INLINE void f16_split(vec x, vec *even, vec *odd) {
    const __m256i evens_odds =
        _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4, 5, 8, 9, 12,
                         13, 2, 3, 6, 7, 10, 11, 14, 15);
    __m256i halves = _mm256_shuffle_epi8(AS_BITS(x), evens_odds);
    __m256i sorted = _mm256_permute4x64_epi64(halves, 0xd8);
    *even = _mm256_cvtph_ps(_mm256_castsi256_si128(sorted));
    *odd = _mm256_cvtph_ps(_mm256_extracti128_si256(sorted, 1));
}
SA_INLINE void bf16_split(vec x, vec *even, vec *odd) {
    *even = AS_REAL(SI(slli)(AS_BITS(x), 16));
    *odd = AS_REAL(_mm256_and_si256(AS_BITS(x), SET_BITS((int)0xffff0000)));
}
SA_INLINE void bf16_store(void *p, vec x) {
    __m256i b = AS_BITS(x), high = SI(srli)(b, 16);
    __m256i odd = _mm256_and_si256(high, SET_BITS(1));
    __m256i rounded = SI(srli)(SI(add)(SI(add)(b, SET_BITS(0x7fff)), odd), 16);
    __m256i quiet = _mm256_or_si256(high, SET_BITS(0x40));
    vec half = OP(blendv)(AS_REAL(rounded), AS_REAL(quiet), CMP(x, x, _CMP_UNORD_Q));
    __m256i packed = _mm256_packus_epi32(AS_BITS(half), AS_BITS(half)); /* 0 0 . . 1 1 . . */
    _mm_storeu_si128(p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

SA_INLINE vec v_iota(void) { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }

SA_INLINE vec v_swap(vec x, const int half) {
    return half == 4   ? _mm256_permute2f128_ps(x, x, 1)
           : half == 2 ? _mm256_permute_ps(x, 0x4e)
                       : _mm256_permute_ps(x, 0xb1);
}

/* 8 x 8: pairs, then fours within each half, then the halves. */
SA_INLINE void v_transpose(vec r[LANES]) {
    __m256d p[8];
    SA_UNROLL
    for (int i = 0; i < 8; i += 2) {
        p[i] = _mm256_castps_pd(_mm256_unpacklo_ps(r[i], r[i + 1]));
        p[i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(r[i], r[i + 1]));
    }
    vec f[8];
    SA_UNROLL
    for (int i = 0; i < 8; i += 4) {
        SA_UNROLL
        for (int j = 0; j < 2; ++j) {
            f[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(p[i + j], p[i + j + 2]));
            f[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(p[i + j], p[i + j + 2]));
        }
    }
    SA_UNROLL
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm256_permute2f128_ps(f[j], f[4 + j], 0x20);
        r[4 + j] = _mm256_permute2f128_ps(f[j], f[4 + j], 0x31);
    }
}

#else

SA_INLINE vec v_iota(void) { return _mm256_set_pd(3, 2, 1, 0); }

SA_INLINE vec v_swap(vec x, const int half) {
    return half == 2 ? _mm256_permute2f128_pd(x, x, 1) : _mm256_permute_pd(x, 0x5);
}

/* 4 x 4: pairs, then the halves. */
SA_INLINE void v_transpose(vec r[LANES]) {
    vec a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    vec c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
}

#endif
#endif
