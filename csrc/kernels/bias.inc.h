/* Scores in natural units, as a bias needs them, one step after another and each rounded once:
 *
 *     s = scale s,   or with a cap   s = cap tanh((scale / cap) s)      softcap
 *     s = s - slope |position - key|                                    ALiBi
 *
 * (Gemma 2's report, 2024, section 2; Press et al., "Train short, test long", 2022.) A mask's own
 * numbers are added after it, with the masking (mask.inc.h). Called by the tiles, down the keys of a
 * vector of queries or along the keys of one query. */

typedef struct {
    vec scale, cap;
} bias_factors;

SA_INLINE bias_factors bias_factors_of(const sa_scoring *scoring) {
    real cap = to_real(scoring->softcap);
    double scale = scoring->softcap > 0 ? scoring->scale / (double)cap : scoring->scale;
    return (bias_factors){v_set(to_real(scale)), v_set(cap)};
}

SA_INLINE vec capped_or_scaled(const int capped, vec s, bias_factors f) {
    s = v_mul(s, f.scale);
    return capped ? v_mul(f.cap, v_tanh(s)) : s;
}

SA_INLINE vec with_distance(vec s, vec minus_slope, vec position, vec key) {
    vec d = v_sub(position, key);
    return v_fma(minus_slope, v_max(d, v_sub(v_zero(), d)), s);
}

/* Down the keys [begin, end) of the block: S[key][lane], lane i a row with its slope and position. */
SA_INLINE void bias_down(const int capped, const int alibi, bias_factors f, real *s, ptrdiff_t row,
                         vec minus_slope, vec position, int begin, int end) {
    s += begin * row;
    for (int j = begin; j < end; ++j, s += row) {
        vec x = capped_or_scaled(capped, v_load(s), f);
        if (alibi) x = with_distance(x, minus_slope, position, v_set((real)j));
        v_store(s, x);
    }
}

/* Along them: S[key] of one row. */
SA_INLINE void bias_along(const int capped, const int alibi, bias_factors f, real *s,
                          vec minus_slope, vec position, int begin, int end) {
    for (int j = begin; j < end; j += LANES) {
        vec x = capped_or_scaled(capped, v_load(s + j), f);
        if (alibi) x = with_distance(x, minus_slope, position, v_add(v_iota(), v_set((real)j)));
        v_store(s + j, x);
    }
}

/* The rows whose lanes are vector i. */
static void tile_bias(const sa_tile *t, real *s, ptrdiff_t row, int i, int64_t block, int begin,
                      int end) {
    bias_factors f = bias_factors_of(&t->scoring);
    real slopes[LANES] = {0}, positions[LANES] = {0};
    for (int r = 0; t->has_alibi && r < LANES && i * LANES + r < t->rows; ++r) {
        slopes[r] = (real)-t->slope[i * LANES + r];
        positions[r] = (real)(t->position[i * LANES + r] - block);
    }
    vec slope = v_load(slopes), position = v_load(positions);
    if (t->scoring.softcap > 0)
        t->has_alibi ? bias_down(1, 1, f, s, row, slope, position, begin, end)
                     : bias_down(1, 0, f, s, row, slope, position, begin, end);
    else
        t->has_alibi ? bias_down(0, 1, f, s, row, slope, position, begin, end)
                     : bias_down(0, 0, f, s, row, slope, position, begin, end);
}

/* Row r, its scores from the block's first key on. */
static void few_bias(const sa_tile *t, real *s, int r, int64_t block, int begin, int end) {
    bias_factors f = bias_factors_of(&t->scoring);
    vec slope = v_zero(), position = v_zero();
    if (t->has_alibi) {
        slope = v_set((real)-t->slope[r]);
        position = v_set((real)(t->position[r] - block));
    }
    if (t->scoring.softcap > 0)
        t->has_alibi ? bias_along(1, 1, f, s, slope, position, begin, end)
                     : bias_along(1, 0, f, s, slope, position, begin, end);
    else
        t->has_alibi ? bias_along(0, 1, f, s, slope, position, begin, end)
                     : bias_along(0, 0, f, s, slope, position, begin, end);
}
