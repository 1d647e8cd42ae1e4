/* The state of attention over one split of the keys: for each row the maximum m, the sum l, and the
 * values' sums O, not yet divided by l. Two states merge into the state over the keys of both; the
 * last one gives out = factor * O and lse = n m + log l, with n the scoring's scale_ln. Called by
 * prefill.inc.h, decode.inc.h and the backward pass. */
#ifndef SA_KERNELS_SPLIT_STATE_INC_H
#define SA_KERNELS_SPLIT_STATE_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "softmax.inc.h"

typedef struct {
    real *o, *row_max, *row_sum;
} split_state;

/* A state that is only read. */
typedef struct {
    const real *o, *row_max, *row_sum;
} const_split_state;

static void state_clear(split_state p, ptrdiff_t row) {
    for (ptrdiff_t i = 0; i < row; i += LANES) {
        v_store(p.row_max + i, minus_inf());
        v_store(p.row_sum + i, v_zero());
    }
}

static void state_clear_values(split_state p, ptrdiff_t row, int64_t rows_of_o) {
    for (int64_t i = 0; i < rows_of_o * row; i += LANES) v_store(p.o + i, v_zero());
}

/* Merge a split's m and l into those of the same lanes, and find the factors of both O. */
SA_INLINE void softmax_merge(vec scale_log2, real *row_max, real *row_sum, const real *split_max,
                             const real *split_sum, vec *factor, vec *split_factor) {
    vec m = v_load(row_max), split_m = v_load(split_max);
    vec max = v_max(m, split_m);
    vec shift = finite_max(max);
    *factor = weight(v_sub(m, shift), scale_log2);
    *split_factor = weight(v_sub(split_m, shift), scale_log2);
    vec split_l = v_mul(v_load(split_sum), *split_factor);
    v_store(row_sum, v_fma(v_load(row_sum), *factor, split_l));
    v_store(row_max, max);
}

/* How O becomes `out`: it is multiplied by `factor`, or out = 0 for rows without visible keys,
 * whose O may hold anything. */
typedef struct {
    vec factor;
    vmask is_empty;
} row_epilogue;

/* factor = 1 / l */
SA_INLINE row_epilogue softmax_finish(vec sum) {
    vmask is_empty = v_eq(sum, v_zero());
    return (row_epilogue){v_div(v_set(1), v_select(is_empty, v_set(1), sum)), is_empty};
}

/* n m + log l */
SA_INLINE vec softmax_lse(vec scale_ln, vec max, vec sum) {
    return v_fma(max, scale_ln, v_log(sum));
}

/* With a sink, a logit in natural units that adds a term to l and has no value:
 *
 *     m' = max(n m, sink),   f = e^(n m - m'),   l' = l f + e^(sink - m') */
typedef struct {
    vec max, keys, sink, sum; /* m', f, e^(sink - m'), l' or 1 where it is 0 */
} sink_terms;

SA_INLINE sink_terms join_sink(vec scale_ln, vec max, vec sum, vec sink) {
    vec keys_max = v_min(v_set(REAL_MAX), v_mul(max, scale_ln)); /* inf - inf would be NaN */
    vec top = v_max(sink, keys_max);
    vec shift = finite_max(top);
    sink_terms t = {top, v_exp(v_sub(keys_max, shift)), v_exp(v_sub(sink, shift)), v_zero()};
    vec total = v_fma(sum, t.keys, t.sink);
    t.sum = v_select(v_eq(total, v_zero()), v_set(1), total);
    return t;
}

/* factor = f / l' */
SA_INLINE row_epilogue softmax_finish_with_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return (row_epilogue){v_div(t.keys, t.sum), v_eq(sum, v_zero())};
}

/* m' + log l', or the sink itself for rows without visible keys */
SA_INLINE vec softmax_lse_with_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return v_select(v_eq(sum, v_zero()), sink, v_add(t.max, v_log(t.sum)));
}

/* The sink's share of the distribution, e^(sink - m') / l'. */
SA_INLINE vec share_of_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return v_div(t.sink, t.sum);
}

/* The epilogue of one lane, in all lanes. */
SA_INLINE row_epilogue epilogue_of_lane(row_epilogue end, int lane) {
    real factor[LANES];
    v_store(factor, end.factor);
    vec is_empty = v_set(v_lane_bits(end.is_empty) >> lane & 1);
    return (row_epilogue){v_set(factor[lane]), v_eq(is_empty, v_set(1))};
}

/* value * factor, never -0: else keys of weight 0 could change the sign of a result. */
SA_INLINE vec softmax_scaled(vec value, row_epilogue end) {
    return v_select(end.is_empty, v_zero(), v_add(v_mul(value, end.factor), v_zero()));
}

SA_INLINE vmask finite_lanes(vec x) {
    return v_both(v_le(v_set(-REAL_MAX), x), v_le(x, v_set(REAL_MAX)));
}

/* Clip a mean of finite values: rounding may take it past the largest number. */
SA_INLINE vec within_range(vec mean) {
    return v_max(v_set(-REAL_MAX), v_min(v_set(REAL_MAX), mean));
}

/* The sinks of rows [first, first + LANES). */
static vec sinks_of_rows(const sa_tile *t, int first) {
    real sink[LANES] = {0};
    for (int r = 0; r < LANES && first + r < t->rows; ++r) sink[r] = (real)t->sink[first + r];
    return v_load(sink);
}

/* The epilogue of rows [first, first + LANES). */
static row_epilogue epilogue_of_rows(const sa_tile *t, int first, vec max, vec sum) {
    vec scale_ln = v_set(to_real(t->scoring.scale_ln));
    if (!t->has_sinks) return softmax_finish(sum);
    return softmax_finish_with_sink(scale_ln, max, sum, sinks_of_rows(t, first));
}

/* With dropout, `out` is also divided by the fraction that is kept. */
SA_INLINE row_epilogue with_dropout_scale(const sa_tile *t, row_epilogue end) {
    if (t->scoring.has_dropout)
        end.factor = v_mul(end.factor, v_set((real)t->scoring.dropout_scale));
    return end;
}

/* The lse of rows [first, first + LANES), in natural units. */
static vec lse_of_rows(const sa_tile *t, int first, vec max, vec sum) {
    vec scale_ln = v_set(to_real(t->scoring.scale_ln));
    if (!t->has_sinks) return softmax_lse(scale_ln, max, sum);
    return softmax_lse_with_sink(scale_ln, max, sum, sinks_of_rows(t, first));
}

static void write_lse(const sa_tile *t, int first, vec max, vec sum) {
    real lanes[LANES];
    if (!t->has_lse) return;
    v_store(lanes, lse_of_rows(t, first, max, sum));
    for (int r = 0; r < LANES && first + r < t->rows; ++r) write_real(t->lse[first + r], lanes[r]);
}

#endif
