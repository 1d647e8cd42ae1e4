/* What attention over some of the keys leaves behind: for each row its maximum m, its sum l and the
 * values' sums O, not yet divided. Two of them merge into that over both their keys; the last one
 * ends in out = factor O and lse. Called by the tiles (prefill.inc.h, decode.inc.h,
 * backward.inc.h). */

typedef struct {
    real *o, *row_max, *row_sum;
} split_state;

static void state_clear(split_state p, ptrdiff_t row) {
    for (ptrdiff_t i = 0; i < row; i += LANES) {
        v_store(p.row_max + i, minus_inf());
        v_store(p.row_sum + i, v_zero());
    }
}

static void state_clear_values(split_state p, ptrdiff_t row, int64_t rows_of_o) {
    for (int64_t i = 0; i < rows_of_o * row; i += LANES) v_store(p.o + i, v_zero());
}

/* Two partial results of the same lanes: their new maximum and sum, and the factor for each. */
SA_INLINE void softmax_merge(vec scale_log2, real *row_max, real *row_sum, const real *part_max,
                             const real *part_sum, vec *factor, vec *part_factor) {
    vec m = v_load(row_max), part_m = v_load(part_max);
    vec max = v_max(m, part_m);
    vec shift = finite_max(max);
    *factor = weight(v_sub(m, shift), scale_log2);
    *part_factor = weight(v_sub(part_m, shift), scale_log2);
    vec part_l = v_mul(v_load(part_sum), *part_factor);
    v_store(row_sum, v_fma(v_load(row_sum), *factor, part_l));
    v_store(row_max, max);
}

/* What the sums of a row become at the end: all are multiplied by `factor`, and 0 where the row saw
 * `none` of the keys, whatever they hold. */
typedef struct {
    vec factor;
    vmask none;
} row_epilogue;

/* factor = 1 / l */
SA_INLINE row_epilogue softmax_finish(vec sum) {
    vmask none = v_eq(sum, v_zero());
    return (row_epilogue){v_div(v_set(1), v_select(none, v_set(1), sum)), none};
}

/* n m + log l, with n the scoring's scale_ln */
SA_INLINE vec softmax_lse(vec scale_ln, vec max, vec sum) {
    return v_fma(max, scale_ln, v_log(sum));
}

/* The same with a sink, one more term of l in natural units, which no value belongs to:
 *
 *     m' = max(n m, sink),   f = e^(n m - m'),   l' = l f + e^(sink - m') */
typedef struct {
    vec max, keys, sink, sum; /* m', f, e^(sink - m'), l' or 1 for 0 */
} sink_terms;

SA_INLINE sink_terms join_sink(vec scale_ln, vec max, vec sum, vec sink) {
    vec own_max = v_min(v_set(REAL_MAX), v_mul(max, scale_ln)); /* inf - inf would be NaN */
    vec top = v_max(sink, own_max);
    vec shift = finite_max(top);
    sink_terms t = {top, v_exp(v_sub(own_max, shift)), v_exp(v_sub(sink, shift)), v_zero()};
    vec total = v_fma(sum, t.keys, t.sink);
    t.sum = v_select(v_eq(total, v_zero()), v_set(1), total);
    return t;
}

/* factor = f / l' */
SA_INLINE row_epilogue softmax_finish_with_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return (row_epilogue){v_div(t.keys, t.sum), v_eq(sum, v_zero())};
}

/* m' + log l' */
SA_INLINE vec softmax_lse_with_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return v_select(v_eq(sum, v_zero()), sink, v_add(t.max, v_log(t.sum)));
}

/* The sink's own share of the distribution, e^(sink - m') / l'. */
SA_INLINE vec share_of_sink(vec scale_ln, vec max, vec sum, vec sink) {
    sink_terms t = join_sink(scale_ln, max, sum, sink);
    return v_div(t.sink, t.sum);
}

/* That of one row, in all lanes. */
SA_INLINE row_epilogue row_epilogue_of_lane(row_epilogue end, int lane) {
    real factor[LANES];
    v_store(factor, end.factor);
    vec none = v_set(v_lane_bits(end.none) >> lane & 1);
    return (row_epilogue){v_set(factor[lane]), v_eq(none, v_set(1))};
}

/* One output element. Adding 0 turns -0 into 0, so that keys without weight cannot be told by a
 * sign. */
SA_INLINE vec softmax_scaled(vec value, row_epilogue end) {
    return v_select(end.none, v_zero(), v_add(v_mul(value, end.factor), v_zero()));
}

SA_INLINE vmask finite_lanes(vec x) {
    return v_both(v_le(v_set(-REAL_MAX), x), v_le(x, v_set(REAL_MAX)));
}

/* A mean of finite values, which is no larger than the largest of them, however it is rounded. */
SA_INLINE vec within_range(vec mean) {
    return v_max(v_set(-REAL_MAX), v_min(v_set(REAL_MAX), mean));
}

/* The sinks of rows [first, first + LANES). */
static vec sinks_of_rows(const sa_tile *t, int first) {
    real sink[LANES] = {0};
    for (int r = 0; r < LANES && first + r < t->rows; ++r) sink[r] = (real)t->sink[first + r];
    return v_load(sink);
}

/* The end of those rows, whose maxima and sums these are. */
static row_epilogue end_of_rows(const sa_tile *t, int first, vec max, vec sum) {
    vec scale_ln = v_set(to_real(t->scoring.scale_ln));
    if (!t->has_sinks) return softmax_finish(sum);
    return softmax_finish_with_sink(scale_ln, max, sum, sinks_of_rows(t, first));
}

/* Of what was left by dropout, the factor of `out`. */
SA_INLINE row_epilogue without_dropped(const sa_tile *t, row_epilogue end) {
    if (t->scoring.has_dropout)
        end.factor = v_mul(end.factor, v_set((real)t->scoring.dropout_scale));
    return end;
}

/* The lse of those rows, in natural units. */
static vec lse_of_rows(const sa_tile *t, int first, vec max, vec sum) {
    vec scale_ln = v_set(to_real(t->scoring.scale_ln));
    if (!t->has_sinks) return softmax_lse(scale_ln, max, sum);
    return softmax_lse_with_sink(scale_ln, max, sum, sinks_of_rows(t, first));
}

/* Written where it is asked for. */
static void write_lse(const sa_tile *t, int first, vec max, vec sum) {
    real lanes[LANES];
    if (!t->has_lse) return;
    v_store(lanes, lse_of_rows(t, first, max, sum));
    for (int r = 0; r < LANES && first + r < t->rows; ++r) write_real(t->lse[first + r], lanes[r]);
}
