/* exp2, exp, log and tanh of a vector: less than 1 ulp off, the same bits in every set.
 *
 *     2^(ux) = 2^n (1 + f q(f)),   n = round(u x),        f = u x - n in [-1/2, 1/2], one fma
 *     e^x    = 2^n (1 + r q(r)),   n = round(x log2 e),   r = x - n log 2 in [-.35, .35], two fmas
 *     log x  = e log 2 + log m,    x = m 2^e,  s = (m - 1) / (m + 1),  log m = 2 atanh s
 *     tanh x = x + x^3 t(x^2)      for |x| <= .55,        1 - 2 / (e^2x + 1) for larger x
 *
 * The largest errors in ulps, over all float32 numbers; in brackets, over samples in float64:
 *
 *     2^x .88 (.87)     2^(ux) .97 (.97)     e^x .91 (.87)     log x .91 (.90)     tanh x .77 (.73)
 *
 * 2^(ux) has a bound for every u instead: .94, of which the last rounding is .5, the roundings of q
 * .29, that of f .12 and the polynomial .03; up to .97 where the result is subnormal, which is a
 * second rounding. The other figures were measured. tests/numerics/test_math.py requires 1 of all.
 *
 * q, t and the series of atanh are minimax fits of the relative error; the polynomial's error is
 * .025 ulp in 2^f, .05 ulp in e^r, .02 ulp in tanh. (Muller, "Elementary Functions", chapters 3 and
 * 11; log adds its terms in the order of fdlibm's e_log.c.) The constant term of 2^f and e^r is
 * exactly 1: a rescale by 2^0 changes nothing. */
#ifndef SA_KERNELS_MATH_INC_H
#define SA_KERNELS_MATH_INC_H

#include <math.h>

#include "simd.inc.h"

#if SA_REAL_BITS == 32
#define EXP_INF 112 /* e^x is inf from here up */
#define SMALLEST_NORMAL 0x1p-126f
static const real log2_e = 0x1.715476p+0f;
static const real ln_2 = 0x1.62e430p-1f, ln_2_low = -0x1.05c610p-29f;
static const real exp2_q[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6af7ap-5f,
                              0x1.3b2dd4p-7f, 0x1.5f094ap-10f, 0x1.417886p-13f};
static const real exp_q[] = {0x1.000000p+0f, 0x1.fffffap-2f, 0x1.555490p-3f,
                             0x1.555a68p-5f, 0x1.123afap-7f, 0x1.693ebep-10f};
static const real atanh_r[] = {0x1.555554p-1f, 0x1.999c00p-2f, 0x1.23e3ecp-2f, 0x1.ee1ac4p-3f};
static const real tanh_t[] = {-0x1.55554ap-2f, 0x1.110d26p-3f, -0x1.b9287ap-5f, 0x1.593d08p-6f,
                              -0x1.9b3046p-8f};
#else
#define EXP_INF 770
#define SMALLEST_NORMAL 0x1p-1022
static const real log2_e = 0x1.71547652b82fep+0;
static const real ln_2 = 0x1.62e42fefa39efp-1, ln_2_low = 0x1.abc9e3b39803fp-56;
static const real exp2_q[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c59dp-3,  0x1.c6b08d704a0d6p-5,
                              0x1.3b2ab6fba0fdcp-7,  0x1.5d87fe78b311bp-10, 0x1.4309130c5d59bp-13,
                              0x1.ffcbfbfcce3c1p-17, 0x1.62bfcd112033cp-20, 0x1.b526040cf9e71p-24,
                              0x1.e612e0df175dfp-28, 0x1.e81e8374238fap-32};
static const real exp_q[] = {0x1.0000000000000p+0,  0x1.0000000000008p-1,  0x1.55555555554d5p-3,
                             0x1.5555555551076p-5,  0x1.11111111303b4p-7,  0x1.6c16c182af509p-10,
                             0x1.a01a00ffc01e8p-13, 0x1.a0199d74634a6p-16, 0x1.71df7dbd8424dp-19,
                             0x1.28aac0d09c196p-22, 0x1.acfcf066a7a9ap-26};
static const real atanh_r[] = {0x1.555555555554fp-1, 0x1.999999999c165p-2, 0x1.24924921e6313p-2,
                               0x1.c71c748dad08ep-3, 0x1.745c4b683bc8ep-3, 0x1.3b35ad5b38868p-3,
                               0x1.0dccef2bcfa41p-3, 0x1.1b7810c2d3273p-3};
static const real tanh_t[] = {-0x1.555555555554fp-2,  0x1.111111111079fp-3,  -0x1.ba1ba1b97d88fp-5,
                              0x1.664f485970a5cp-6,   -0x1.226e2f147b04ep-7, 0x1.d6d29b96e7615p-9,
                              -0x1.7d8fd3ad75e7ap-10, 0x1.3483ae90b5a72p-11, -0x1.e96fc5ebe95aap-13,
                              0x1.5d745a65bd7b7p-14,  -0x1.47110b57cb041p-16};
#endif

SA_INLINE vec minus_inf(void) { return v_set(-(real)INFINITY); }

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* c[0] + c[1] x + ... by Horner's rule. */
SA_INLINE vec polynomial(const int n, const real *c, vec x) {
    vec y = v_set(c[n - 1]);
    SA_UNROLL
    for (int i = n - 2; i >= 0; --i) y = v_fma(y, x, v_set(c[i]));
    return y;
}

/* 2^n (1 + f q(f)); 0 for n < LEAST_EXPONENT, even where f is NaN. */
SA_INLINE vec exp_of_parts(const int count, const real *q, vec n, vec f) {
    return v_ldexp(v_fma(polynomial(count, q, f), f, v_set(1)), n);
}

/* scale * x rounded to the nearest integer, ties to even, for |scale * x| < 2^22; a larger one may
 * be off, but stays large. Added to 1.5 * 2^REAL_MANTISSA, a number keeps no bits of a fraction. */
SA_INLINE vec round_scaled(vec x, vec scale) {
    const vec no_fraction = v_set((real)((bits)3 << (REAL_MANTISSA - 1)));
    return v_sub(v_fma(x, scale, no_fraction), no_fraction);
}

/* 2^(scale * x) for x <= 0, -inf and NaN. scale * x is rounded only to find n. */
SA_INLINE vec v_exp2_scaled(vec x, vec scale) {
    vec n = round_scaled(x, scale);
    return exp_of_parts(COUNT(exp2_q), exp2_q, n, v_fms(x, scale, n));
}

/* r = x - n log 2, rounded once. The first fma is exact: where n is not 0, neither x nor n ln_2 has
 * a bit below the last place of numbers in [1/4, 1/2), and they differ by less than 1/2. */
SA_INLINE vec exp_rest(vec x, vec n) {
    return v_fma(n, v_set(-ln_2_low), v_fma(n, v_set(-ln_2), x));
}

/* e^x for x <= 0, -inf and NaN. */
SA_INLINE vec v_exp_of_negative(vec x) {
    vec n = round_scaled(x, v_set(log2_e));
    return exp_of_parts(COUNT(exp_q), exp_q, n, exp_rest(x, n));
}

/* NaN stays NaN: v_min returns its second operand where either is NaN. */
SA_INLINE vec v_exp(vec x) { return v_exp_of_negative(v_min(v_set(EXP_INF), x)); }

/* 1 - 2 / d for x in [1/2, 20], where d = e^2x + 1 is kept as the sum of two terms,
 *
 *     whole = 2^n + 1,   rest = e^2x - 2^n,   remainder = 2 - (1 - y) (whole + rest)
 *
 * As one number d would be rounded, which costs the result up to an ulp. y is a first result, off
 * by the roundings of 1 / d and of y itself, and y - remainder / d the better one. 1 - y and its
 * product with `whole` are exact. */
SA_INLINE vec tanh_of_large(vec x) {
    vec twice = v_add(x, x), n = round_scaled(twice, v_set(log2_e)), r = exp_rest(twice, n);
    vec power = v_ldexp(v_set(1), n), whole = v_add(power, v_set(1));
    vec rest = v_mul(power, v_mul(polynomial(COUNT(exp_q), exp_q, r), r));
    vec minus_inverse = v_div(v_set(-1), v_add(whole, rest));
    vec y = v_fma(v_set(2), minus_inverse, v_set(1)), y_less_1 = v_sub(y, v_set(1));
    vec remainder = v_fma(y_less_1, rest, v_fma(y_less_1, whole, v_set(2)));
    return v_fma(minus_inverse, remainder, y);
}

SA_INLINE vec v_tanh(vec x) {
    vec size = v_max(x, v_sub(v_zero(), x)), w = v_mul(x, x);
    vec small = v_fma(v_mul(size, w), polynomial(COUNT(tanh_t), tanh_t, w), size);
    vec large = tanh_of_large(v_min(v_set(20), size));
    vec y = v_select(v_le(size, v_set((real)0.55)), small, large);
    return v_mul(y, v_select(v_negative(x), v_set(-1), v_set(1)));
}

/* log 0 = -inf; the log of a negative number or NaN is NaN. */
SA_INLINE vec v_log(vec x) {
    const vec inf = v_set((real)INFINITY);
    const real lift = (real)((bits)1 << (REAL_MANTISSA + 1));
    vmask subnormal = v_lt(x, v_set(SMALLEST_NORMAL));
    vec e, normal = v_select(subnormal, v_mul(x, v_set(lift)), x);
    vec f = v_sub(v_frexp(normal, &e), v_set(1));
    e = v_select(subnormal, v_sub(e, v_set(REAL_MANTISSA + 1)), e);

    vec s = v_div(f, v_add(f, v_set(2)));
    vec w = v_mul(s, s);
    vec r = v_mul(w, polynomial(COUNT(atanh_r), atanh_r, w));
    vec half = v_mul(v_mul(f, f), v_set((real)0.5));
    vec low = v_fma(e, v_set(ln_2_low), v_mul(s, v_add(half, r)));
    vec y = v_fma(e, v_set(ln_2), v_sub(f, v_sub(half, low)));

    y = v_select(v_eq(x, inf), inf, y);
    y = v_select(v_eq(x, v_zero()), minus_inf(), y);
    return v_select(v_le(v_zero(), x), y, v_set((real)NAN));
}

#endif
