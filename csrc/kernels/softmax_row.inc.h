/* softmax of one row of n elements, a step on its own: three passes over the row, each of which may
 * be cut at multiples of CHAINS. Sums run in 16 chains, element mod 16.
 * Called by rows.c through the table (kernels.h). */

enum { CHAINS = 16, CHAIN_VECS = CHAINS / LANES };

typedef struct {
    real max[CHAINS], sum[CHAINS];
} softmax_state;

SA_INLINE vec load_chains(const char *x, ptrdiff_t col, int64_t i, int64_t n, int v) {
    int left = at_most(n - i - v * LANES, LANES);
    if (left == LANES) return load_strided(x + (i + v * LANES) * col, col, LANES);
    vec y = left > 0 ? load_strided(x + (i + v * LANES) * col, col, left) : v_zero();
    return v_select(v_lt(v_iota(), v_set((real)left)), y, minus_inf());
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
