/* What AVX2 and AVX-512 write alike, once. See common.h.
 *
 * Included by avx2.h and avx512.h, which first define
 *
 *     vec, vmask, LANES       as common.h says
 *     MM(name)                the intrinsic of that name for the set's whole registers
 *     FIRST(x)                lane 0 of x
 *     CMP(a, b, how)          the mask of lanes that compare as `how`, one of _CMP_..., asks
 *
 * and then the operations whose instructions differ. Here come
 *
 *     OP(name)                MM(name_ps) or MM(name_pd), for the real type
 *     UI(name), U_SI(name)    of the size of uvec: _mm..._name, and _mm..._name_si... */
#ifndef SA_SIMD_X86_H
#define SA_SIMD_X86_H

#if SA_REAL_BITS == 32
#define OP(name) MM(name##_ps)
#else
#define OP(name) MM(name##_pd)
#endif

#if LANES == 16
typedef __m512i uvec;
#define UI(name) _mm512_##name
#define U_SI(name) _mm512_##name##_si512
#elif LANES == 8
typedef __m256i uvec;
#define UI(name) _mm256_##name
#define U_SI(name) _mm256_##name##_si256
#else
typedef __m128i uvec;
#define UI(name) _mm_##name
#define U_SI(name) _mm_##name##_si128
#endif

SA_INLINE void v_zeroupper(void) { _mm256_zeroupper(); }
SA_INLINE vec v_zero(void) { return OP(setzero)(); }
SA_INLINE vec v_set(real x) { return OP(set1)(x); }
SA_INLINE vec v_broadcast(const char *p) { return OP(set1)(read_real(p)); }
SA_INLINE vec v_load(const void *p) { return OP(loadu)(p); }
SA_INLINE void v_store(void *p, vec x) { OP(storeu)(p, x); }
SA_INLINE void v_stream(void *p, vec x) { OP(stream)(p, x); }
SA_INLINE void v_stream_end(void) { _mm_sfence(); }

SA_INLINE vec v_add(vec a, vec b) { return OP(add)(a, b); }
SA_INLINE vec v_sub(vec a, vec b) { return OP(sub)(a, b); }
SA_INLINE vec v_mul(vec a, vec b) { return OP(mul)(a, b); }
SA_INLINE vec v_div(vec a, vec b) { return OP(div)(a, b); }
SA_INLINE vec v_fma(vec a, vec b, vec c) { return OP(fmadd)(a, b, c); }
SA_INLINE vec v_fms(vec a, vec b, vec c) { return OP(fmsub)(a, b, c); }
SA_INLINE vec v_max(vec a, vec b) { return OP(max)(a, b); }
SA_INLINE vec v_min(vec a, vec b) { return OP(min)(a, b); }

SA_INLINE vmask v_lt(vec a, vec b) { return CMP(a, b, _CMP_LT_OQ); }
SA_INLINE vmask v_le(vec a, vec b) { return CMP(a, b, _CMP_LE_OQ); }
SA_INLINE vmask v_eq(vec a, vec b) { return CMP(a, b, _CMP_EQ_OQ); }
SA_INLINE real v_first(vec x) { return FIRST(x); }

SA_INLINE uvec u_set(uint32_t x) { return UI(set1_epi32)((int32_t)x); }
SA_INLINE uvec u_load(const uint32_t *p) { return U_SI(loadu)((const void *)p); }
SA_INLINE uvec u_add(uvec a, uvec b) { return UI(add_epi32)(a, b); }
SA_INLINE uvec u_mul(uvec a, uvec b) { return UI(mullo_epi32)(a, b); }
SA_INLINE uvec u_xor(uvec a, uvec b) { return U_SI(xor)(a, b); }
SA_INLINE uvec u_shift_right(uvec a, const int n) { return UI(srli_epi32)(a, n); }

#endif
