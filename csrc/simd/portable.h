/* Plain C: 16-byte vectors as arrays, for any machine. See common.h.
 *
 * Fast where the compiler turns the loops into vector code and fma() into an instruction, as on
 * AArch64; exact, and slow, where fma() is a library call, as on an x86 built without FMA. */
#ifndef SA_SIMD_H
#define SA_SIMD_H

#include <math.h>

#include "../half.h"
#include "common.h"

/* Without an instruction for it, fma() is a call: unrolled loops and inlined sums are only larger.
 */
#if defined(__GNUC__) && !defined(__FP_FAST_FMAF)
#undef SA_UNROLL
#define SA_UNROLL
#define SA_FMA static __attribute__((noinline))
#else
#define SA_FMA SA_INLINE
#endif

#define LANES (128 / SA_REAL_BITS)
#define NR_MAX 4
#define NR_BEST 4
#define MR(n) ((n) >= 3 ? 4 : 8)

typedef struct {
    real x[LANES];
} vec;
typedef struct {
    bits x[LANES]; /* 0 or 1 */
} vmask;
typedef struct {
    uint32_t x[LANES];
} uvec;

#define EACH(i) for (int i = 0; i < LANES; ++i)

SA_INLINE vec v_set(real x) {
    vec r;
    EACH(i) r.x[i] = x;
    return r;
}
SA_INLINE void v_zeroupper(void) {}
SA_INLINE vec v_zero(void) { return v_set(0); }
SA_INLINE vec v_broadcast(const char *p) { return v_set(read_real(p)); }
SA_INLINE vec v_load(const void *p) {
    vec r;
    memcpy(&r, p, sizeof r);
    return r;
}
SA_INLINE vec v_load_n(const void *p, int n) {
    vec r = v_zero();
    memcpy(&r, p, (size_t)n * sizeof(real));
    return r;
}
SA_INLINE void v_store(void *p, vec x) { memcpy(p, &x, sizeof x); }
SA_INLINE void v_stream(void *p, vec x) { v_store(p, x); }
SA_INLINE void v_stream_end(void) {}
SA_INLINE void v_store_n(void *p, vec x, int n) { memcpy(p, &x, (size_t)n * sizeof(real)); }

#define LANEWISE(name, expression)     \
    SA_INLINE vec name(vec a, vec b) { \
        vec r;                         \
        EACH(i) r.x[i] = (expression); \
        return r;                      \
    }
LANEWISE(v_add, a.x[i] + b.x[i])
LANEWISE(v_sub, a.x[i] - b.x[i])
LANEWISE(v_mul, a.x[i] * b.x[i])
LANEWISE(v_div, a.x[i] / b.x[i])
LANEWISE(v_max, a.x[i] > b.x[i] ? a.x[i] : b.x[i])
LANEWISE(v_min, a.x[i] < b.x[i] ? a.x[i] : b.x[i])
#undef LANEWISE

#define COMPARE(name, expression)        \
    SA_INLINE vmask name(vec a, vec b) { \
        vmask r;                         \
        EACH(i) r.x[i] = (expression);   \
        return r;                        \
    }
COMPARE(v_lt, a.x[i] < b.x[i])
COMPARE(v_le, a.x[i] <= b.x[i])
COMPARE(v_eq, a.x[i] == b.x[i])
#undef COMPARE

SA_FMA vec v_fma(vec a, vec b, vec c) {
    vec r;
#if SA_REAL_BITS == 32
    EACH(i) r.x[i] = fmaf(a.x[i], b.x[i], c.x[i]);
#else
    EACH(i) r.x[i] = fma(a.x[i], b.x[i], c.x[i]);
#endif
    return r;
}

SA_INLINE vec v_fms(vec a, vec b, vec c) {
    EACH(i) c.x[i] = -c.x[i];
    return v_fma(a, b, c);
}

SA_INLINE vmask v_both(vmask a, vmask b) {
    EACH(i) a.x[i] &= b.x[i];
    return a;
}
SA_INLINE vec v_select(vmask m, vec a, vec b) {
    EACH(i) b.x[i] = m.x[i] ? a.x[i] : b.x[i];
    return b;
}
SA_INLINE bits bits_of(real x) {
    bits b;
    memcpy(&b, &x, sizeof b);
    return b;
}
SA_INLINE real real_of(bits b) {
    real x;
    memcpy(&x, &b, sizeof x);
    return x;
}

#if SA_REAL_BITS == 32
SA_INLINE vec v_load_int8(const void *p) {
    vec r;
    EACH(i) r.x[i] = ((const signed char *)p)[i];
    return r;
}

SA_INLINE void v_split_int8(vec x, vec y[4]) {
    signed char b[4 * LANES];
    memcpy(b, &x, sizeof b);
    for (int j = 0; j < 4; ++j) EACH(i) y[j].x[i] = b[4 * i + j];
}

#define HALF(type)                                            \
    SA_INLINE vec type##_load(const void *p) {                \
        uint16_t h[LANES];                                    \
        vec r;                                                \
        memcpy(h, p, sizeof h);                               \
        EACH(i) r.x[i] = sa_float_of_##type(h[i]);            \
        return r;                                             \
    }                                                         \
    SA_INLINE void type##_store(void *p, vec x) {             \
        uint16_t h[LANES];                                    \
        EACH(i) h[i] = sa_##type##_of_float(x.x[i]);          \
        memcpy(p, h, sizeof h);                               \
    }                                                         \
    SA_INLINE void type##_split(vec x, vec *even, vec *odd) { \
        uint16_t h[2 * LANES];                                \
        memcpy(h, &x, sizeof h);                              \
        EACH(i) even->x[i] = sa_float_of_##type(h[2 * i]);    \
        EACH(i) odd->x[i] = sa_float_of_##type(h[2 * i + 1]); \
    }
HALF(f16)
HALF(bf16)
#undef HALF
#endif

SA_INLINE vmask v_negative(vec x) {
    vmask r;
    EACH(i) r.x[i] = bits_of(x.x[i]) < 0;
    return r;
}

SA_INLINE real v_first(vec x) { return x.x[0]; }
SA_INLINE unsigned v_lane_bits(vmask m) {
    unsigned r = 0;
    EACH(i) r |= (unsigned)m.x[i] << i;
    return r;
}
SA_INLINE vmask v_nonzero_bytes(const char *p) {
    vmask r;
    EACH(i) r.x[i] = p[i] != 0;
    return r;
}

#define WORDWISE(name, expression)        \
    SA_INLINE uvec name(uvec a, uvec b) { \
        EACH(i) a.x[i] = (expression);    \
        return a;                         \
    }
WORDWISE(u_add, a.x[i] + b.x[i])
WORDWISE(u_mul, a.x[i] * b.x[i])
WORDWISE(u_xor, a.x[i] ^ b.x[i])
#undef WORDWISE

SA_INLINE uvec u_set(uint32_t x) {
    uvec r;
    EACH(i) r.x[i] = x;
    return r;
}
SA_INLINE uvec u_load(const uint32_t *p) {
    uvec r;
    memcpy(&r, p, sizeof r);
    return r;
}
SA_INLINE uvec u_shift_right(uvec a, const int n) {
    EACH(i) a.x[i] >>= n;
    return a;
}
SA_INLINE vmask u_at_least(uvec a, uvec b) {
    vmask r;
    EACH(i) r.x[i] = a.x[i] >= b.x[i];
    return r;
}

SA_INLINE real power_of_two(bits n) { return real_of((n + REAL_BIAS) << REAL_MANTISSA); }

/* In two steps, since 2^n itself may be no normal number; only the last can round. The
 * conversion must see neither NaN, which comes with a NaN in x, nor what is too small for it. */
SA_INLINE vec v_ldexp(vec x, vec n) {
    EACH(i) {
        int none = n.x[i] < LEAST_EXPONENT;
        bits whole = n.x[i] >= LEAST_EXPONENT ? (bits)n.x[i] : 0;
        bits half = whole / 2;
        x.x[i] = none ? 0 : x.x[i] * power_of_two(half) * power_of_two(whole - half);
    }
    return x;
}

SA_INLINE vec v_frexp(vec x, vec *e) {
    const bits mantissa = ((bits)1 << REAL_MANTISSA) - 1;
    vec m;
    EACH(i) {
        bits b = bits_of(x.x[i]);
        real y = real_of((b & mantissa) | ((bits)REAL_BIAS << REAL_MANTISSA));
        bits high = y >= (real)1.5;
        m.x[i] = high ? y * (real)0.5 : y;
        e->x[i] = (real)((b >> REAL_MANTISSA) - REAL_BIAS + high);
    }
    return m;
}

SA_INLINE vec v_iota(void) {
    vec r;
    EACH(i) r.x[i] = (real)i;
    return r;
}

SA_INLINE vec v_swap(vec x, const int half) {
    vec r;
    EACH(i) r.x[i] = x.x[i ^ half];
    return r;
}

SA_INLINE void v_transpose(vec r[LANES]) {
    for (int i = 0; i < LANES; ++i)
        for (int j = 0; j < i; ++j) {
            real x = r[i].x[j];
            r[i].x[j] = r[j].x[i];
            r[j].x[i] = x;
        }
}

#undef EACH
#endif
