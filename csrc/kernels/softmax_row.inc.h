/* softmax of one row of n elements, the public function:
 *
 *     m = max x,   p = e^(x - m),   l = sum p,   out = p / l
 *
 * in three passes, each of which may be cut at multiples of CHAINS. Between the last two, p lies in
 * out, if that holds reals; else it is computed again, since it must not be rounded. Maxima and
 * sums run in 16 chains, element mod 16, which are joined by halves. Called by rows.c through the
 * table (kernels.h). */
#ifndef SA_KERNELS_SOFTMAX_ROW_INC_H
#define SA_KERNELS_SOFTMAX_ROW_INC_H

#include <assert.h>
#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "softmax.inc.h"

enum {
    CHAINS = 16,
    CHAIN_VECS = CHAINS / LANES,
    /* Elements of a row that may be written by streaming stores. */
    MIN_STREAMED_N = 4 * CHAINS,
    MAX_STREAMED_N = (32 << 10) / REAL_SIZE,
};

typedef struct {
    vec max[CHAIN_VECS], sum[CHAIN_VECS];
} softmax_state;

typedef struct {
    char *at;
    ptrdiff_t col;
} strided_row;

typedef struct {
    const char *at;
    ptrdiff_t col;
} const_strided_row;

SA_INLINE const_strided_row as_const(strided_row x) { return (const_strided_row){x.at, x.col}; }

/* Vector v of the CHAINS elements from i on, -inf past the n-th. `whole`, a constant: all CHAINS
 * exist and are contiguous. */
SA_INLINE vec load_chains(const_strided_row x, const int whole, int64_t i, int64_t n, int v) {
    i += v * LANES;
    if (whole) return s_load(x.at + i * ELEM_SIZE);
    int left = at_most(n - i, LANES);
    vec y = left > 0 ? s_load_strided(x.at + i * x.col, x.col, left) : v_zero();
    return v_select(v_lt(v_iota(), v_set((real)left)), y, minus_inf());
}

SA_INLINE void store_chains(strided_row x, const int whole, int64_t i, int64_t n, int v, vec y) {
    i += v * LANES;
    int left = at_most(n - i, LANES);
    if (whole)
        s_store(x.at + i * ELEM_SIZE, y);
    else if (left > 0)
        s_store_strided(x.at + i * x.col, x.col, left, y);
}

SA_INLINE softmax_state softmax_cleared(void) {
    softmax_state state;
    for (int v = 0; v < CHAIN_VECS; ++v) state.max[v] = minus_inf(), state.sum[v] = v_zero();
    return state;
}

/* Run `step` for each group of CHAINS elements, from i on, and each of its vectors v: first for the
 * whole groups of contiguous elements, then for the rest. */
#define EACH_CHAINS(contiguous, n, step)                                \
    const int64_t all_whole = (contiguous) ? (n) / CHAINS * CHAINS : 0; \
    for (int64_t i = 0; i < all_whole; i += CHAINS) {                   \
        const int whole = 1;                                            \
        SA_UNROLL                                                       \
        for (int v = 0; v < CHAIN_VECS; ++v) step                       \
    }                                                                   \
    for (int64_t i = all_whole; i < (n); i += CHAINS) {                 \
        const int whole = 0;                                            \
        SA_UNROLL                                                       \
        for (int v = 0; v < CHAIN_VECS; ++v) step                       \
    }

SA_INLINE void softmax_find_max(softmax_state *state, const int contiguous, const_strided_row x,
                                int64_t n) {
    EACH_CHAINS(contiguous, n,
                state->max[v] = v_max(load_chains(x, whole, i, n, v), state->max[v]);)
}

/* Join the chains by halves; the result is in every lane. */
SA_INLINE vec join_chains(const vec chains[CHAIN_VECS], vec (*join)(vec, vec)) {
    vec x[CHAIN_VECS];
    for (int v = 0; v < CHAIN_VECS; ++v) x[v] = chains[v];
    for (int half = CHAIN_VECS / 2; half > 0; half /= 2)
        for (int v = 0; v < half; ++v) x[v] = join(x[v], x[v + half]);
    SA_UNROLL
    for (int step = 1; LANES >> step > 0; ++step) x[0] = join(x[0], v_swap(x[0], LANES >> step));
    return x[0];
}

SA_INLINE void softmax_sum_exp(softmax_state *state, const int contiguous, const_strided_row x,
                               strided_row out, int64_t n) {
    vec shift = finite_max(join_chains(state->max, v_max));
    uintptr_t next = (uintptr_t)x.at + (uintptr_t)n * ELEM_SIZE; /* mostly the next row */
    EACH_CHAINS(contiguous, n, {
        if (whole) SA_PREFETCH(next + (uintptr_t)(i + v * LANES) * ELEM_SIZE);
        vec p = v_exp_of_negative(v_sub(load_chains(x, whole, i, n, v), shift));
        if (ELEM_IS_REAL) store_chains(out, whole, i, n, v, p);
        state->sum[v] = v_add(state->sum[v], p);
    })
}

/* 1 / l, or 0 where l is 0. A scalar division: that of a vector takes longer. */
SA_INLINE vec softmax_divisor(softmax_state state) {
    real sum = v_first(join_chains(state.sum, v_add));
    return v_set(sum == 0 ? 0 : 1 / sum);
}

SA_INLINE void softmax_divide(const softmax_state *state, const int contiguous, const_strided_row x,
                              strided_row out, int64_t n) {
    vec divisor = softmax_divisor(*state), shift = finite_max(join_chains(state->max, v_max));
    EACH_CHAINS(contiguous, n, {
        vec p = load_chains(ELEM_IS_REAL ? as_const(out) : x, whole, i, n, v);
        if (!ELEM_IS_REAL) p = v_exp_of_negative(v_sub(p, shift));
        store_chains(out, whole, i, n, v, v_mul(p, divisor));
    })
}

SA_INLINE void softmax_whole(const int contiguous, const_strided_row x, strided_row out,
                             int64_t n) {
    softmax_state state = softmax_cleared();
    softmax_find_max(&state, contiguous, x, n);
    softmax_sum_exp(&state, contiguous, x, out, n);
    softmax_divide(&state, contiguous, x, out, n);
}

/* A row written by streaming stores, which do not read the lines that they replace; only whole
 * vectors at aligned addresses can be stored so. */
SA_APART static void softmax_streamed(const_strided_row x, char *out, int64_t n) {
    real weights[MAX_STREAMED_N];
    strided_row between = {(char *)weights, REAL_SIZE};
    softmax_state state = softmax_cleared();
    softmax_find_max(&state, 1, x, n);
    softmax_sum_exp(&state, 1, x, between, n);
    vec divisor = softmax_divisor(state);
    assert(n >= LANES);
    int64_t first = (int64_t)(-(uintptr_t)out % sizeof(vec) / sizeof(real)), i = 0;
    for (int width; i < n; i += width, out += width * (ptrdiff_t)sizeof(real)) {
        width = at_most((i < first ? first : n) - i, LANES);
        vec p = v_mul(v_load_n(weights + i, width), divisor);
        if (width == LANES && i >= first)
            v_stream(out, p);
        else
            v_store_n(out, p, width);
    }
    v_stream_end();
}

static void softmax_row(const char *x, ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n,
                        int stream) {
    const_strided_row from = {x, x_col};
    strided_row to = {out, out_col};
    if (x_col != ELEM_SIZE || out_col != ELEM_SIZE)
        softmax_whole(0, from, to, n);
    else if (ELEM_IS_REAL && stream && n >= MIN_STREAMED_N && n <= MAX_STREAMED_N &&
             (uintptr_t)out % sizeof(real) == 0)
        softmax_streamed(from, out, n);
    else
        softmax_whole(1, from, to, n);
    v_zeroupper();
}

/* One pass over a part of a long row; `memory` carries the state from part to part. */
static void softmax_part(sa_softmax_pass pass, sa_softmax_state *memory, const char *x,
                         ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n) {
    const_strided_row from = {x, x_col};
    strided_row to = {out, out_col};
    softmax_state state;
    memcpy(&state, memory, sizeof state);
    switch (pass) {
        case SA_SOFTMAX_CLEAR: state = softmax_cleared(); break;
        case SA_SOFTMAX_MAX: softmax_find_max(&state, 0, from, n); break;
        case SA_SOFTMAX_EXP: softmax_sum_exp(&state, 0, from, to, n); break;
        case SA_SOFTMAX_DIVIDE: softmax_divide(&state, 0, from, to, n); break;
    }
    memcpy(memory, &state, sizeof state);
    v_zeroupper();
}

#undef EACH_CHAINS

#endif
