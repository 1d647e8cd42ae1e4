/* AVX-512 for a machine that has none: SIMDe's portable functions under Intel's names, and what
 * SIMDe lacks, written lane by lane as Intel's manual (volume 2) says. Found before the compiler's
 * own header by a build with SELFATTN_EMULATE_AVX512=1, so that csrc/simd/avx512.h is compiled as
 * it stands and its kernels can be tested anywhere: for their results, not for their speed. Only
 * what those kernels use, for the operands they use it on. */
#ifndef SA_EMULATED_IMMINTRIN_H
#define SA_EMULATED_IMMINTRIN_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#include <string.h>

/* Bit i: byte i of a & b is not 0. */
static inline unsigned emulated_test_epi8(__m128i a, __m128i b) {
    __m128i zero = _mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128());
    return ~(unsigned)_mm_movemask_epi8(zero) & 0xffff;
}
#undef _mm_test_epi8_mask
#define _mm_test_epi8_mask emulated_test_epi8

#define EMULATED_REAL float
#define EMULATED_LANES 16
#define EMULATED(name) emulated_##name##_ps
#define EMULATED_VEC __m512
#define EMULATED_LOAD _mm512_loadu_ps
#define EMULATED_STORE _mm512_storeu_ps
#include "lanes.inc.h"
#define EMULATED_REAL double
#define EMULATED_LANES 8
#define EMULATED(name) emulated_##name##_pd
#define EMULATED_VEC __m512d
#define EMULATED_LOAD _mm512_loadu_pd
#define EMULATED_STORE _mm512_storeu_pd
#include "lanes.inc.h"

/* Half precision: two vectors of AVX. */
static inline __m512 emulated_cvtph_ps(__m256i h) {
    __m128i halves[2];
    __m256 reals[2];
    memcpy(halves, &h, sizeof halves);
    for (int i = 0; i < 2; ++i) reals[i] = _mm256_cvtph_ps(halves[i]);
    return _mm512_loadu_ps(reals);
}

static inline __m256i emulated_cvtps_ph(__m512 x) {
    __m256 reals[2];
    __m128i halves[2];
    _mm512_storeu_ps(reals, x);
    for (int i = 0; i < 2; ++i) halves[i] = _mm256_cvtps_ph(reals[i], _MM_FROUND_TO_NEAREST_INT);
    return _mm256_loadu_si256((const void *)halves);
}

/* Bytes to words of 32 bits, and these to floats. */
static inline __m512i emulated_cvtepi8_epi32(__m128i narrow) {
    signed char from[16];
    int32_t to[16];
    memcpy(from, &narrow, sizeof from);
    for (int i = 0; i < 16; ++i) to[i] = from[i];
    return _mm512_loadu_si512(to);
}

static inline __m512 emulated_cvtepi32_ps(__m512i x) {
    int32_t from[16];
    float to[16];
    memcpy(from, &x, sizeof from);
    for (int i = 0; i < 16; ++i) to[i] = (float)from[i];
    return _mm512_loadu_ps(to);
}
/* Arithmetic shifts by less than 32. */
static inline __m512i emulated_srai_epi32(__m512i x, unsigned count) {
    int32_t lanes[16];
    memcpy(lanes, &x, sizeof lanes);
    for (int i = 0; i < 16; ++i) lanes[i] >>= count;
    return _mm512_loadu_si512(lanes);
}
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

/* Words of 16 bits and of 32. */
static inline __m512i emulated_cvtepu16_epi32(__m256i narrow) {
    uint16_t from[16];
    uint32_t to[16];
    memcpy(from, &narrow, sizeof from);
    for (int i = 0; i < 16; ++i) to[i] = from[i];
    return _mm512_loadu_si512(to);
}

static inline __m256i emulated_cvtepi32_epi16(__m512i wide) {
    uint32_t from[16];
    uint16_t to[16];
    _mm512_storeu_si512(from, wide);
    for (int i = 0; i < 16; ++i) to[i] = (uint16_t)from[i];
    return _mm256_loadu_si256((const void *)to);
}
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_epi16
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph(x, rounding) emulated_cvtps_ph(x)

/* SIMDe's own name for it is misspelt. */
#undef _mm256_cmpge_epu32_mask
#define _mm256_cmpge_epu32_mask simde_mm256_cmpge_epu32_mask

/* Its vectors are in no registers of AVX that could be cleared. */
#define _mm256_zeroupper() ((void)0)

#undef _mm512_maskz_loadu_ps
#undef _mm512_maskz_loadu_pd
#undef _mm512_mask_storeu_ps
#undef _mm512_mask_storeu_pd
#undef _mm512_maskz_scalef_ps
#undef _mm512_maskz_scalef_pd
#undef _mm512_getexp_ps
#undef _mm512_getexp_pd
#undef _mm512_getmant_ps
#undef _mm512_getmant_pd
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#undef _mm512_permute_ps
#undef _mm512_permute_pd
#undef _mm512_stream_ps
#undef _mm512_stream_pd
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#define _mm512_maskz_loadu_pd emulated_maskz_loadu_pd
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#define _mm512_mask_storeu_pd emulated_mask_storeu_pd
#define _mm512_maskz_scalef_ps emulated_maskz_scalef_ps
#define _mm512_maskz_scalef_pd emulated_maskz_scalef_pd
#define _mm512_getexp_ps emulated_getexp_ps
#define _mm512_getexp_pd emulated_getexp_pd
#define _mm512_getmant_ps(x, range, sign) emulated_getmant_ps(x)
#define _mm512_getmant_pd(x, range, sign) emulated_getmant_pd(x)
#define _mm512_shuffle_f32x4 emulated_shuffle_ps
#define _mm512_shuffle_f64x2 emulated_shuffle_pd
#define _mm512_permute_ps emulated_permute_ps
#define _mm512_permute_pd emulated_permute_pd
#define _mm512_stream_ps _mm512_storeu_ps
#define _mm512_stream_pd _mm512_storeu_pd

#elif !defined(SA_EMULATED_COMPILERS_OWN)
/* SIMDe asks for the compiler's own header. */
#define SA_EMULATED_COMPILERS_OWN
#include_next <immintrin.h>
#endif
