/* Softmax, online over blocks of keys: one lane's running maximum m, sum l, and new block of scores
 *
 *     m' = max(m, max s),   a = 2^(u (m - m')),   p = 2^(u (s - m')),   l = l a + sum p
 *
 * with u the scores' unit (sa_scoring): nothing is multiplied before the maximum is subtracted, so a
 * score may be any finite number. A sum over keys runs in four chains, key mod 4, added as
 * (0 + 1) + (2 + 3): the same order whether the lanes are queries (a column, below) or keys (a row,
 * in few.inc.h). A score of -inf weighs 0; while no other came, m is -inf, and 0 stands in for it:
 * -inf - -inf would be NaN. */

SA_INLINE vec finite_max(vec m) { return v_select(v_eq(m, v_set(-(real)INFINITY)), v_zero(), m); }

/* The scores' unit as the kernels use it; a larger one than the largest number does as well. */
typedef struct {
    vec unit, zero;
} units;

SA_INLINE real to_real(double x) { return (real)(x < REAL_MAX ? x : REAL_MAX); }

SA_INLINE units units_of(const sa_scoring *scoring) {
    return (units){v_set(to_real(scoring->unit)), v_set((real)(EXP2_ZERO / scoring->unit))};
}

/* 2^(u x), the weight of a score that is x less than the maximum. */
SA_INLINE vec weight(vec x, units u) { return v_exp2_scaled(x, u.unit, u.zero); }

/* A column of queries over the block's keys [begin, end), begin a multiple of 4: scores -> weights,
 * and the factor by which what was summed before must be rescaled. */
static void softmax_column(units u, real *s, ptrdiff_t row, int begin, int end, real *row_max,
                           real *row_sum, real *rescale) {
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
    vec safe = finite_max(max);

    vec sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
    x = s + begin * row;
    for (j = begin; j + 4 <= end; j += 4, x += 4 * row) {
        SA_UNROLL
        for (int c = 0; c < 4; ++c) {
            vec p = weight(v_sub(v_load(x + c * row), safe), u);
            v_store(x + c * row, p);
            sum[c] = v_add(sum[c], p);
        }
    }
    for (int c = 0; j < end; ++c, ++j, x += row) {
        vec p = weight(v_sub(v_load(x), safe), u);
        v_store(x, p);
        sum[c] = v_add(sum[c], p);
    }
    vec a = weight(v_sub(old, safe), u);
    vec total = v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3]));
    v_store(rescale, a);
    v_store(row_sum, v_fma(v_load(row_sum), a, total));
    v_store(row_max, max);
}

/* Two partial results of the same lanes: their new maximum and sum, and the factor for each. */
SA_INLINE void softmax_merge(units u, real *row_max, real *row_sum, const real *part_max,
                             const real *part_sum, vec *factor, vec *part_factor) {
    vec m = v_load(row_max), part_m = v_load(part_max);
    vec max = v_max(m, part_m);
    vec safe = finite_max(max);
    *factor = weight(v_sub(m, safe), u);
    *part_factor = weight(v_sub(part_m, safe), u);
    vec part_l = v_mul(v_load(part_sum), *part_factor);
    v_store(row_sum, v_fma(v_load(row_sum), *factor, part_l));
    v_store(row_max, max);
}

/* What the sums of a row become at the end: all are multiplied by `factor`, and 0 where the row saw
 * `none` of the keys, whatever they hold; lse is in natural units. */
typedef struct {
    vec factor, lse;
    vmask none;
} softmax_end;

/* factor = 1 / l,  lse = natural m + log l */
SA_INLINE softmax_end softmax_finish(vec natural, vec max, vec sum) {
    vmask none = v_eq(sum, v_zero());
    vec factor = v_div(v_set(1), v_select(none, v_set(1), sum));
    return (softmax_end){factor, v_fma(max, natural, v_log(sum)), none};
}

/* The same with a sink, one more term of l in natural units, which no value belongs to:
 *
 *     m' = max(natural m, sink),   f = e^(natural m - m'),   l' = l f + e^(sink - m')
 *     factor = f / l',             lse = m' + log l' */
SA_INLINE softmax_end softmax_finish_with_sink(vec natural, vec max, vec sum, vec sink) {
    vec own_max = v_mul(max, natural);
    vec top = v_max(sink, own_max);
    vec safe = finite_max(top);
    vec own = v_exp(v_sub(own_max, safe));
    vec total = v_fma(sum, own, v_exp(v_sub(sink, safe)));
    vec factor = v_div(own, v_select(v_eq(total, v_zero()), v_set(1), total));
    vmask none = v_eq(sum, v_zero());
    return (softmax_end){factor, v_select(none, sink, v_add(top, v_log(total))), none};
}

/* That of one row, in all lanes. */
SA_INLINE softmax_end softmax_end_of_lane(softmax_end end, int lane) {
    real factor[LANES], lse[LANES];
    v_store(factor, end.factor);
    v_store(lse, end.lse);
    vec none = v_set(v_lane_bits(end.none) >> lane & 1);
    return (softmax_end){v_set(factor[lane]), v_set(lse[lane]), v_eq(none, v_set(1))};
}

/* One output element. Adding 0 turns -0 into 0, so that keys without weight cannot be told by a
 * sign. */
SA_INLINE vec softmax_scaled(vec value, softmax_end end) {
    return v_select(end.none, v_zero(), v_add(v_mul(value, end.factor), v_zero()));
}

/* softmax of one row of n elements, as a public step: three passes over the row, each of which may
 * be cut at multiples of CHAINS. Sums run in 16 chains, element mod 16. */
enum { CHAINS = 16, CHAIN_VECS = CHAINS / LANES };

typedef struct {
    real max[CHAINS], sum[CHAINS];
} softmax_state;

SA_INLINE vec load_chains(const char *x, ptrdiff_t col, int64_t i, int64_t n, int v) {
    int left = at_most(n - i - v * LANES, LANES);
    if (left == LANES) return load_strided(x + (i + v * LANES) * col, col, LANES);
    vec y = left > 0 ? load_strided(x + (i + v * LANES) * col, col, left) : v_zero();
    return v_select(v_lt(v_iota(), v_set((real)left)), y, v_set(-(real)INFINITY));
}

SA_INLINE void store_chains(char *x, ptrdiff_t col, int64_t i, int64_t n, int v, vec y) {
    int left = at_most(n - i - v * LANES, LANES);
    if (left > 0) store_strided(x + (i + v * LANES) * col, col, left, y);
}

static void softmax_clear(softmax_state *state) {
    for (int c = 0; c < CHAINS; ++c) state->max[c] = -(real)INFINITY, state->sum[c] = 0;
}

static void softmax_find_max(softmax_state *state, const char *x, ptrdiff_t x_col, int64_t n) {
    vec top[CHAIN_VECS];
    for (int v = 0; v < CHAIN_VECS; ++v) top[v] = v_load(state->max + v * LANES);
    for (int64_t i = 0; i < n; i += CHAINS)
        for (int v = 0; v < CHAIN_VECS; ++v) top[v] = v_max(load_chains(x, x_col, i, n, v), top[v]);
    for (int v = 0; v < CHAIN_VECS; ++v) v_store(state->max + v * LANES, top[v]);
}

static void softmax_sum_exp(softmax_state *state, const char *x, ptrdiff_t x_col, char *out,
                            ptrdiff_t out_col, int64_t n) {
    real max = -(real)INFINITY;
    for (int c = 0; c < CHAINS; ++c) max = state->max[c] > max ? state->max[c] : max;
    vec safe = finite_max(v_set(max)), sum[CHAIN_VECS];
    for (int v = 0; v < CHAIN_VECS; ++v) sum[v] = v_load(state->sum + v * LANES);
    for (int64_t i = 0; i < n; i += CHAINS)
        for (int v = 0; v < CHAIN_VECS; ++v) {
            vec p = v_exp(v_sub(load_chains(x, x_col, i, n, v), safe));
            store_chains(out, out_col, i, n, v, p);
            sum[v] = v_add(sum[v], p);
        }
    for (int v = 0; v < CHAIN_VECS; ++v) v_store(state->sum + v * LANES, sum[v]);
}

static void softmax_divide(const softmax_state *state, char *out, ptrdiff_t out_col, int64_t n) {
    real sum[CHAINS];
    memcpy(sum, state->sum, sizeof sum);
    for (int half = CHAINS / 2; half > 0; half /= 2)
        for (int c = 0; c < half; ++c) sum[c] += sum[c + half];
    vec divisor = v_set(sum[0] == 0 ? 0 : 1 / sum[0]);
    for (int64_t i = 0; i < n; i += CHAINS)
        for (int v = 0; v < CHAIN_VECS; ++v)
            store_chains(out, out_col, i, n, v, v_mul(load_chains(out, out_col, i, n, v), divisor));
}

static void softmax_row(const char *x, ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n) {
    softmax_state state;
    softmax_clear(&state);
    softmax_find_max(&state, x, x_col, n);
    softmax_sum_exp(&state, x, x_col, out, out_col, n);
    softmax_divide(&state, out, out_col, n);
}

/* One pass over a part of a row. */
static void softmax_part(sa_softmax_pass pass, sa_softmax_state *memory, const char *x,
                         ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n) {
    softmax_state *state = (softmax_state *)memory;
    switch (pass) {
        case SA_SOFTMAX_CLEAR: softmax_clear(state); break;
        case SA_SOFTMAX_MAX: softmax_find_max(state, x, x_col, n); break;
        case SA_SOFTMAX_EXP: softmax_sum_exp(state, x, x_col, out, out_col, n); break;
        case SA_SOFTMAX_DIVIDE: softmax_divide(state, out, out_col, n); break;
    }
}
