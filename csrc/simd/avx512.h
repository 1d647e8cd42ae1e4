/* AVX-512 (F, DQ, BW, VL): 16 floats or 8 doubles in a vector, 32 vectors. See common.h. */
#ifndef SA_SIMD_H
#define SA_SIMD_H

#include <immintrin.h>

#include "common.h"

#define MM(name) _mm512_##name
#if SA_REAL_BITS == 32
typedef __m512 vec;
typedef __mmask16 vmask;
#define LANES 16
#define FIRST(x) _mm256_cvtss_f32(_mm512_castps512_ps256(x))
#define CMP _mm512_cmp_ps_mask
#define AS_BITS _mm512_castps_si512
#define NEGATIVE _mm512_movepi32_mask
/* A gemv by 16 rows of a weight at a time is slower than AVX2's by 8: on a Zen 4 .55 of its speed
 * where rows are a power of two apart, since they compete for 8 ways of L1, and at most .85. */
#define SA_GEMV_BY_ROWS_ISA avx2
#else
typedef __m512d vec;
typedef __mmask8 vmask;
#define LANES 8
#define FIRST(x) _mm256_cvtsd_f64(_mm512_castpd512_pd256(x))
#define CMP _mm512_cmp_pd_mask
#define AS_BITS _mm512_castpd_si512
#define NEGATIVE _mm512_movepi64_mask
#endif

#include "x86.h"

/* 24 to 16 accumulators and n operands fit the 32 registers. Strips of 8 rows, for n = 3, divide
 * blocks of keys and nearly every head_dim, and a block of three vectors of weights fits L1. */
#define NR_MAX 4
#define NR_BEST 3
#define MR(n) ((n) == 4 ? 6 : (n) == 3 ? 8 : (n) == 2 ? 12 : 16)

/* The first n lanes, of v_load_n and v_store_n. */
SA_INLINE vmask tail_mask(int n) { return (vmask)((1u << n) - 1); }
SA_INLINE vec v_load_n(const void *p, int n) { return OP(maskz_loadu)(tail_mask(n), p); }
SA_INLINE void v_store_n(void *p, vec x, int n) { OP(mask_storeu)(p, tail_mask(n), x); }

/* What is masked does not underflow, which takes some processors 250 cycles. */
SA_INLINE vec v_ldexp(vec x, vec n) {
    return OP(maskz_scalef)(CMP(n, v_set(LEAST_EXPONENT), _CMP_NLT_UQ), x, n);
}

SA_INLINE vmask v_both(vmask a, vmask b) { return a & b; }
SA_INLINE vec v_select(vmask m, vec a, vec b) { return OP(mask_blend)(m, b, a); }
SA_INLINE vmask v_negative(vec x) { return NEGATIVE(AS_BITS(x)); }
SA_INLINE unsigned v_lane_bits(vmask m) { return m; }
SA_INLINE vmask v_nonzero_bytes(const char *p) {
#if SA_REAL_BITS == 32
    __m128i bytes = _mm_loadu_si128((const void *)p);
#else
    __m128i bytes = _mm_loadl_epi64((const void *)p);
#endif
    return (vmask)_mm_test_epi8_mask(bytes, bytes);
}

SA_INLINE vmask u_at_least(uvec a, uvec b) { return UI(cmpge_epu32_mask)(a, b); }

SA_INLINE vec v_frexp(vec x, vec *e) {
    vec m = OP(getmant)(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_src);
    vec up = v_select(v_lt(m, v_set(1)), v_set(1), v_zero());
    *e = v_add(OP(getexp)(x), up);
    return m;
}

#if SA_REAL_BITS == 32

SA_INLINE vec v_load_int8(const void *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
SA_INLINE void v_split_int8(vec x, vec y[4]) {
    __m512i b = _mm512_castps_si512(x);
    y[0] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b, 24), 24));
    y[1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b, 16), 24));
    y[2] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b, 8), 24));
    y[3] = _mm512_cvtepi32_ps(_mm512_srai_epi32(b, 24));
}
SA_INLINE vec f16_load(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
SA_INLINE void f16_store(void *p, vec x) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
SA_INLINE vec bf16_load(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
SA_INLINE void f16_split(vec x, vec *even, vec *odd) {
    const __m512i evens_odds =
        _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                         22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512i sorted = _mm512_permutexvar_epi16(evens_odds, _mm512_castps_si512(x));
    *even = _mm512_cvtph_ps(_mm512_castsi512_si256(sorted));
    *odd = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(sorted, 1));
}
SA_INLINE void bf16_split(vec x, vec *even, vec *odd) {
    __m512i b = _mm512_castps_si512(x);
    *even = _mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
    *odd = _mm512_castsi512_ps(_mm512_and_si512(b, _mm512_set1_epi32((int)0xffff0000)));
}
/* By integers: the instruction for it (AVX512_BF16) flushes subnormals. */
SA_INLINE void bf16_store(void *p, vec x) {
    __m512i b = _mm512_castps_si512(x), high = _mm512_srli_epi32(b, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(b, _mm512_set1_epi32(0x7fff)), odd);
    __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    vmask is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    __m512i half = _mm512_mask_blend_epi32(is_nan, _mm512_srli_epi32(rounded, 16), quiet);
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(half));
}

SA_INLINE vec v_iota(void) {
    return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
}

SA_INLINE vec v_swap(vec x, const int half) {
    return half == 8   ? _mm512_shuffle_f32x4(x, x, 0x4e)
           : half == 4 ? _mm512_shuffle_f32x4(x, x, 0xb1)
           : half == 2 ? _mm512_permute_ps(x, 0x4e)
                       : _mm512_permute_ps(x, 0xb1);
}

/* 16 x 16: pairs, then fours within each quarter, then the quarters themselves. */
SA_INLINE void v_transpose(vec r[LANES]) {
    __m512d p[16];
    SA_UNROLL
    for (int i = 0; i < 16; i += 2) {
        p[i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[i], r[i + 1]));
        p[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[i], r[i + 1]));
    }
    vec f[16];
    SA_UNROLL
    for (int i = 0; i < 16; i += 4) {
        SA_UNROLL
        for (int j = 0; j < 2; ++j) {
            f[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(p[i + j], p[i + j + 2]));
            f[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p[i + j], p[i + j + 2]));
        }
    }
    SA_UNROLL
    for (int j = 0; j < 4; ++j) {
        vec a = _mm512_shuffle_f32x4(f[j], f[4 + j], 0x88);
        vec b = _mm512_shuffle_f32x4(f[j], f[4 + j], 0xdd);
        vec c = _mm512_shuffle_f32x4(f[8 + j], f[12 + j], 0x88);
        vec d = _mm512_shuffle_f32x4(f[8 + j], f[12 + j], 0xdd);
        r[j] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        r[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}

#else

SA_INLINE vec v_iota(void) { return _mm512_set_pd(7, 6, 5, 4, 3, 2, 1, 0); }

SA_INLINE vec v_swap(vec x, const int half) {
    return half == 4   ? _mm512_shuffle_f64x2(x, x, 0x4e)
           : half == 2 ? _mm512_shuffle_f64x2(x, x, 0xb1)
                       : _mm512_permute_pd(x, 0x55);
}

/* 8 x 8: pairs, then the quarters. */
SA_INLINE void v_transpose(vec r[LANES]) {
    vec p[8];
    SA_UNROLL
    for (int i = 0; i < 8; i += 2) {
        p[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        p[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    SA_UNROLL
    for (int j = 0; j < 2; ++j) {
        vec a = _mm512_shuffle_f64x2(p[j], p[2 + j], 0x88);
        vec b = _mm512_shuffle_f64x2(p[j], p[2 + j], 0xdd);
        vec c = _mm512_shuffle_f64x2(p[4 + j], p[6 + j], 0x88);
        vec d = _mm512_shuffle_f64x2(p[4 + j], p[6 + j], 0xdd);
        r[j] = _mm512_shuffle_f64x2(a, c, 0x88);
        r[2 + j] = _mm512_shuffle_f64x2(b, d, 0x88);
        r[4 + j] = _mm512_shuffle_f64x2(a, c, 0xdd);
        r[6 + j] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
}

#endif
#endif
