/* Attention over several disjoint sets of keys, merged, and its gradients, one row at a time. With
 * the states (out_i, lse_i), in their order from the first to the last,
 *
 *     m = max lse_i,   w_i = e^(lse_i - m),   l = sum w_i,   f = 1 / l
 *     out = f sum out_i w_i,   lse = m + log l
 *
 * and, given the gradients dout and dlse of these, with p_i = w_i f,
 *
 *     dout_i = p_i dout,   dlse_i = p_i (dlse + dout out_i - sum_j p_j (dout out_j))
 *
 * A state whose lse is -inf saw no key: it adds nothing and its gradients are 0, whatever its out
 * and dout hold. Dot products run in chains, element mod CHAINS. Called by rows.c through the table
 * (kernels.h). */
#ifndef SA_KERNELS_MERGE_INC_H
#define SA_KERNELS_MERGE_INC_H

#include <math.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "softmax.inc.h"
#include "softmax_row.inc.h"
#include "split_state.inc.h"

/* Of each state of a row: where its out is, NULL if it saw no key; its weight; a dot product. And
 * the row's m, l and f. */
typedef struct {
    const char **out;
    real *weights, *dots;
    real max, sum, factor;
} merge_state;

static size_t merge_scratch_size(int64_t states) {
    return (size_t)states * (sizeof(char *) + 2 * sizeof(real));
}

/* Find all but the dot products. */
static merge_state merge_begin(const sa_merge_row *row, void *scratch) {
    const int64_t count = row->states->count;
    merge_state s = {.out = scratch, .max = -(real)INFINITY};
    s.weights = (real *)(s.out + count), s.dots = s.weights + count;
    for (int64_t i = 0; i < count; ++i) {
        real lse = read_real(row->states->lse[i] + row->lse_at);
        s.out[i] = lse == -(real)INFINITY ? NULL : row->states->out[i] + row->out_at;
        s.max = lse > s.max ? lse : s.max;
        s.weights[i] = lse;
    }
    vec shift = finite_max(v_set(s.max));
    for (int64_t i = 0; i < count; i += LANES) {
        int width = at_most(count - i, LANES);
        v_store_n(s.weights + i, v_exp(v_sub(v_load_n(s.weights + i, width), shift)), width);
    }
    for (int64_t i = 0; i < count; ++i) s.sum += s.weights[i];
    s.factor = 1 / (s.sum == 0 ? 1 : s.sum);
    return s;
}

/* Elements [e, e + width) of state i, 0 if it saw no key. */
SA_INLINE vec load_state(const merge_state *s, ptrdiff_t col, int64_t i, int64_t e, int width) {
    return s->out[i] ? s_load_strided(s->out[i] + e * col, col, width) : v_zero();
}

/* `out` of elements whose sum has overflowed, though their mean may not: the sum of p_i out_i, from
 * the last to the first. */
static vec merge_overflowed(const sa_merge_row *row, const merge_state *s, int64_t e, int width) {
    const int64_t last = row->states->count - 1;
    vec mean = v_zero(), is_finite = v_set(1);
    for (int64_t i = last; i >= 0; --i) {
        vec x = load_state(s, row->states->out_rows.col, i, e, width);
        vec p = v_mul(v_set(s->weights[i]), v_set(s->factor));
        mean = i < last ? v_fma(x, p, mean) : v_mul(x, p);
        is_finite = v_select(finite_lanes(x), is_finite, v_zero());
    }
    return v_select(v_eq(is_finite, v_set(1)), within_range(mean), mean);
}

enum { MERGE_VECS = 4 };

/* `vecs` vectors of out, all whole ones but the last, which has `width` elements. */
SA_INLINE void merge_vectors(const sa_merge_row *row, const merge_state *s, ptrdiff_t col,
                             ptrdiff_t out_col, int64_t e, const int vecs, int width) {
    const int64_t count = row->states->count;
    vec sum[MERGE_VECS];
    SA_UNROLL
    for (int v = 0; v < vecs; ++v) sum[v] = v_set(count ? (real)-0.0 : 0); /* -0 + x = x */
    for (int64_t i = 0; i < count; ++i) {
        vec w = v_set(s->weights[i]);
        SA_UNROLL
        for (int v = 0; v < vecs; ++v) {
            vec x = load_state(s, col, i, e + v * LANES, v < vecs - 1 ? LANES : width);
            sum[v] = v_add(sum[v], v_mul(x, w));
        }
    }
    SA_UNROLL
    for (int v = 0; v < vecs; ++v) {
        int64_t at = e + v * LANES;
        int n = v < vecs - 1 ? LANES : width;
        vec out = v_mul(sum[v], v_set(s->factor));
        vmask finite = finite_lanes(out);
        if (v_lane_bits(finite) != (1u << LANES) - 1)
            out = v_select(finite, out, merge_overflowed(row, s, at, n));
        s_store_strided(row->out + at * out_col, out_col, n, out);
    }
}

static void merge_row(const sa_merge_row *row, int64_t n, void *scratch) {
    const merge_state s = merge_begin(row, scratch);
    const ptrdiff_t col = row->states->out_rows.col, out_col = row->out_col;
    int64_t e = 0;
    if (col == ELEM_SIZE && out_col == ELEM_SIZE)
        for (; e + MERGE_VECS * LANES <= n; e += MERGE_VECS * LANES)
            merge_vectors(row, &s, ELEM_SIZE, ELEM_SIZE, e, MERGE_VECS, LANES);
    for (; e < n; e += LANES) merge_vectors(row, &s, col, out_col, e, 1, at_most(n - e, LANES));
    write_real(row->lse, s.max + v_first(v_log(v_set(s.sum))));
    v_zeroupper();
}

/* dout out_i */
static real dot_of_state(const sa_merge_row *row, const merge_state *s, int64_t i, int64_t n) {
    ptrdiff_t col = row->states->out_rows.col;
    vec chains[CHAIN_VECS];
    for (int v = 0; v < CHAIN_VECS; ++v) chains[v] = v_zero();
    for (int64_t first = 0; first < n; first += CHAINS) {
        for (int v = 0; v < CHAIN_VECS && first + v * LANES < n; ++v) {
            int64_t e = first + v * LANES;
            int width = at_most(n - e, LANES);
            vec dout = s_load_strided(row->out + e * row->out_col, row->out_col, width);
            chains[v] = v_fma(dout, load_state(s, col, i, e, width), chains[v]);
        }
    }
    return v_first(join_chains(chains, v_add));
}

/* The gradient of state i's out, whose share is p. */
static void write_state_gradient(const sa_merge_row *row, int64_t i, real p, int is_empty,
                                 int64_t n) {
    ptrdiff_t col = row->grads->out_rows.col;
    char *to = row->grads->out[i] + row->grad_out_at;
    for (int64_t e = 0; e < n; e += LANES) {
        int width = at_most(n - e, LANES);
        vec dout = s_load_strided(row->out + e * row->out_col, row->out_col, width);
        s_store_strided(to + e * col, col, width, is_empty ? v_zero() : v_mul(v_set(p), dout));
    }
}

static void merge_backward_row(const sa_merge_row *row, int64_t n, void *scratch) {
    const int64_t count = row->states->count;
    const merge_state s = merge_begin(row, scratch);
    real *p = s.weights, mean = 0, dlse = row->lse ? read_real(row->lse) : 0;
    for (int64_t i = 0; i < count; ++i) {
        p[i] *= s.factor;
        if (!s.out[i]) continue;
        s.dots[i] = dot_of_state(row, &s, i, n);
        mean += p[i] * s.dots[i];
    }
    for (int64_t i = 0; i < count; ++i) {
        write_state_gradient(row, i, p[i], !s.out[i], n);
        write_real(row->grads->lse[i] + row->grad_lse_at,
                   s.out[i] ? p[i] * (dlse + (s.dots[i] - mean)) : 0);
    }
    v_zeroupper();
}

#endif
