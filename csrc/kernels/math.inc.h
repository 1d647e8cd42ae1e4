/* exp2, exp, log and tanh of a vector: at most 1 ulp, the same bits in every set.
 *
 *     2^x    = 2^n (1 + f q(f)),   n = round(x),          f = x - n in [-1/2, 1/2]
 *     e^x    = 2^n (1 + f q(f)),   n = round(x log2 e),   f = x log2 e - n, by two fmas
 *     log x  = e log 2 + log m,    x = m 2^e,  s = (m - 1) / (m + 1),  log m = 2 atanh s
 *     tanh x = x + x^3 t(x^2)      up to .55, and beyond it  1 - 2 / (e^2x + 1)
 *
 * q, t and the series of atanh are minimax fits of the relative error; the polynomial's error is
 * .025 ulp in 2^f, .02 ulp in tanh. (Muller, "Elementary Functions", chapters 3 and 11; log sums
 * its parts in the order of fdlibm's e_log.c.) The constant term of 2^f is exactly 1: a rescale by
 * 2^0 changes nothing. */

#if SA_REAL_BITS == 32
#define EXP2_INF 160 /* 2^x is inf from here up */
#define EXP_INF 112
#define SMALLEST_NORMAL 0x1p-126f
static const real log2_e = 0x1.715476p+0f, log2_e_low = 0x1.4ae0c0p-26f;
static const real ln_2 = 0x1.62e430p-1f, ln_2_low = -0x1.05c610p-29f;
static const real exp2_q[] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6af7ap-5f,
                              0x1.3b2dd4p-7f, 0x1.5f094ap-10f, 0x1.417886p-13f};
static const real atanh_r[] = {0x1.555554p-1f, 0x1.999c00p-2f, 0x1.23e3ecp-2f, 0x1.ee1ac4p-3f};
static const real tanh_t[] = {-0x1.55554ap-2f, 0x1.110d26p-3f, -0x1.b9287ap-5f, 0x1.593d08p-6f,
                              -0x1.9b3046p-8f};
#else
#define EXP2_INF 1100
#define EXP_INF 770
#define SMALLEST_NORMAL 0x1p-1022
static const real log2_e = 0x1.71547652b82fep+0, log2_e_low = 0x1.777d0ffda0d24p-56;
static const real ln_2 = 0x1.62e42fefa39efp-1, ln_2_low = 0x1.abc9e3b39803fp-56;
static const real exp2_q[] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c59dp-3,  0x1.c6b08d704a0d6p-5,
                              0x1.3b2ab6fba0fdcp-7,  0x1.5d87fe78b311bp-10, 0x1.4309130c5d59bp-13,
                              0x1.ffcbfbfcce3c1p-17, 0x1.62bfcd112033cp-20, 0x1.b526040cf9e71p-24,
                              0x1.e612e0df175dfp-28, 0x1.e81e8374238fap-32};
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

/* 2^n 2^f, or 0 for small n, whatever f is. */
SA_INLINE vec exp2_parts(vec n, vec f) {
    vec q = polynomial(COUNT(exp2_q), exp2_q, f);
    return v_ldexp(v_fma(q, f, v_set(1)), n);
}

/* unit x to nearest, ties to even; for |unit x| < 2^22, or else something as large. 1.5 *
 * 2^mantissa leaves no room for a fraction. */
SA_INLINE vec round_scaled(vec x, vec unit) {
    const vec no_fraction = v_set((real)((bits)3 << (REAL_MANTISSA - 1)));
    return v_sub(v_fma(x, unit, no_fraction), no_fraction);
}

/* NaN passes, since min returns its second operand then. */
SA_INLINE vec v_exp2(vec x) {
    x = v_min(v_set(EXP2_INF), x);
    vec n = round_scaled(x, v_set(1));
    return exp2_parts(n, v_sub(x, n));
}

/* 2^(unit x) for x <= 0, be it -inf, or NaN: what a softmax needs. unit x is never rounded but to
 * find n. */
SA_INLINE vec v_exp2_scaled(vec x, vec unit) {
    vec n = round_scaled(x, unit);
    return exp2_parts(n, v_fms(x, unit, n));
}

/* The same of e^x. */
SA_INLINE vec v_exp_of_negative(vec x) {
    vec n = round_scaled(x, v_set(log2_e));
    return exp2_parts(n, v_fma(x, v_set(log2_e_low), v_fms(x, v_set(log2_e), n)));
}

SA_INLINE vec v_exp(vec x) { return v_exp_of_negative(v_min(v_set(EXP_INF), x)); }

SA_INLINE vec v_tanh(vec x) {
    vec size = v_max(x, v_sub(v_zero(), x)), w = v_mul(x, x);
    vec small = v_fma(v_mul(x, w), polynomial(COUNT(tanh_t), tanh_t, w), x);
    vec e = v_add(v_exp(v_add(size, size)), v_set(1));
    vec large = v_sub(v_set(1), v_div(v_set(2), e));
    large = v_select(v_negative(x), v_sub(v_zero(), large), large);
    return v_select(v_le(size, v_set((real)0.55)), small, large);
}

/* log 0 = -inf, log of what is negative or NaN is NaN. */
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
