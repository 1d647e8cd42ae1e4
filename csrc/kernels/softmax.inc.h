/* Softmax, online over blocks of keys. A row's running maximum m and sum l become, with the scores
 * s of one more block,
 *
 *     m' = max(m, max s),   a = 2^(u (m - m')),   p = 2^(u (s - m')),   l' = l a + sum p
 *
 * where u is the scoring's scale_log2. The maximum is subtracted before anything is multiplied, so
 * a score may be any finite number. A score of -inf has weight 0. A sum over keys runs in four
 * chains, key mod 4, added as (0 + 1) + (2 + 3): the same order whether the lanes are queries
 * (softmax_column) or keys (decode_softmax in decode_weights.inc.h). */
#ifndef SA_KERNELS_SOFTMAX_INC_H
#define SA_KERNELS_SOFTMAX_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"

/* The m to subtract: 0 while m is -inf, since -inf - -inf would be NaN. */
SA_INLINE vec finite_max(vec m) { return v_select(v_eq(m, minus_inf()), v_zero(), m); }

/* A positive factor as `real`, at most the largest number. */
SA_INLINE real to_real(double x) { return (real)(x < REAL_MAX ? x : REAL_MAX); }

SA_INLINE vec scale_log2_of(const sa_scoring *scoring) {
    return v_set(to_real(scoring->scale_log2));
}

/* 2^(u x), the weight of a score, with x = score - maximum. */
SA_INLINE vec weight(vec x, vec scale_log2) { return v_exp2_scaled(x, scale_log2); }

/* One vector of queries and the block's keys [begin, end), begin a multiple of 4: s becomes p, and
 * `rescale` gets a, the factor of the values' sums so far. */
static void softmax_column(vec scale_log2, real *s, ptrdiff_t row, int begin, int end,
                           real *row_max, real *row_sum, real *rescale) {
    vec old = v_load(row_max);
    vec top[4] = {old, old, old, old};
    real *x = s + begin * row;
    int j = begin;
    for (; j + 4 <= end; j += 4, x += 4 * row) {
        SA_UNROLL
        for (int c = 0; c < 4; ++c) top[c] = v_max(v_load(x + c * row), top[c]);
    }
    for (; j < end; ++j, x += row) top[0] = v_max(v_load(x), top[0]);
    vec max = v_max(v_max(top[0], top[1]), v_max(top[2], top[3]));
    vec shift = finite_max(max);

    vec sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    x = s + begin * row;
    for (j = begin; j + 4 <= end; j += 4, x += 4 * row) {
        SA_UNROLL
        for (int c = 0; c < 4; ++c) {
            vec p = weight(v_sub(v_load(x + c * row), shift), scale_log2);
            v_store(x + c * row, p);
            sum[c] = v_add(sum[c], p);
        }
    }
    for (int c = 0; j < end; ++c, ++j, x += row) {
        vec p = weight(v_sub(v_load(x), shift), scale_log2);
        v_store(x, p);
        sum[c] = v_add(sum[c], p);
    }
    vec a = weight(v_sub(old, shift), scale_log2);
    vec total = v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]));
    v_store(rescale, a);
    v_store(row_sum, v_fma(v_load(row_sum), a, total));
    v_store(row_max, max);
}

#endif
