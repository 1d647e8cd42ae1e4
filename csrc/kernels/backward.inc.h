/* Backward pass of a tile whose lanes are queries. With S and lse of the forward pass
 * (prefill.inc.h), n the scoring's scale_ln, dO the gradient of `out`, and D the sum over e of
 * dO times `out`,
 *
 *     P[key][lane]   = e^(n S - lse)                               gradient_weights.inc.h
 *     dP[key][lane]  = sum over e of V[key, e] * dO[e][lane]
 *     dS[key][lane]  = P * (dP - D + dlse)                         the mask's: gradient_mask.inc.h
 *     dQ[d][lane]   += sum over keys of K[key, d] * dS[key][lane]
 *     dV[key][e]    += sum over lanes of P[key][lane] * dO[lane][e]        gradient_keys.inc.h
 *     dK[key][d]    += sum over lanes of dS[key][lane] * Q[lane][d]
 *
 * (Dao et al., "FlashAttention", 2022, algorithm 4.) All five products, S among them, are the
 * micro-kernel's (ukernel.inc.h). Its A is K, V, P or dS, read in place; its B is Q or dO, packed
 * with queries in the lanes or as rows (gradient_rows.inc.h), or dS. Called by backward.c through
 * the table (kernels.h). */
#ifndef SA_KERNELS_BACKWARD_INC_H
#define SA_KERNELS_BACKWARD_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "prefetch.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "prefill.inc.h"
#include "vector_keys.inc.h"
#include "gradient_scratch.inc.h"
#include "gradient_rows.inc.h"
#include "gradient_prefetch.inc.h"
#include "gradient_weights.inc.h"
#include "gradient_keys.inc.h"
#include "gradient_mask.inc.h"

enum { MAX_VECTORS = SA_GRADIENT_TILE_M / LANES }; /* of a tile */

/* dQ begins with 0, or with what earlier keys gave. */
static void begin_grad_query(const sa_backward_tile *g, const backward_scratch *x) {
    const sa_tile *t = &g->fwd;
    if (!g->dq_goes_on)
        for (int64_t i = 0; i < t->head_dim * x->row; i += LANES) v_store(x->dq + i, v_zero());
    for (int i = 0; g->dq_goes_on && i < x->row; i += LANES)
        gather((const char *const *)g->dq + i, at_most(t->rows - i, LANES), g->dq_col, t->head_dim,
               1, 0, x->dq + i, x->row);
}

static int backward_begin(sa_backward_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    pack_tile(g, memory, &x);
    if (needs_grad(g, SA_GRADIENT_QUERY)) begin_grad_query(g, &x);
    int needs_row_stats = load_lse(g, &x);
    v_zeroupper();
    return needs_row_stats;
}

/* dQ of vectors [first, first + n). */
static void grad_query(const sa_backward_tile *g, const backward_scratch *x, const block_keys *keys,
                       int first, int n, prefetch_queue *prefetch) {
    const sa_tile *t = &g->fwd;
    ptrdiff_t offset = keys->begin * x->row + first * LANES;
    ukernel_args p = {
        .m = t->head_dim,
        .k = keys->end - keys->begin,
        .chunk = SA_GRADIENT_CHUNK,
        .phase = keys->begin % SA_GRADIENT_CHUNK,
        .b = (const char *)(x->ds + offset),
        .b_k = x->row * REAL_SIZE,
        .c = x->dq + first * LANES,
        .c_row = x->row,
        .kind = BETA_ONE,
        .prefetch = prefetch,
    };
    const char *marks = keys->v_is_finite ? NULL : (const char *)(x->marks + offset);
    value_product(n, &p, &t->k, keys->block + keys->begin, marks, x->tile.piece);
}

/* S and dP of vectors [first, first + n). */
static void scores_and_grads(const sa_backward_tile *g, const backward_scratch *x,
                             const block_keys *keys, int first, int n, prefetch_queue *prefetch) {
    if (!has_keys(keys)) return;
    prefill_scores(&g->fwd, &x->tile, keys, first, n, prefetch);
    grad_weights(g, x, keys, first, n, prefetch);
}

/* P, dS and dQ of vectors [first, first + n), each with its own keys. S and dP of the keys that all
 * vectors share are one product each. */
static void backward_vectors(const sa_backward_tile *g, const backward_scratch *x,
                             const block_keys *keys, const block_keys *vector_keys, int first,
                             int n, prefetch_queue *prefetch) {
    block_keys common = common_keys(vector_keys + first, n, keys),
               all = all_keys(vector_keys + first, n, keys);
    scores_and_grads(g, x, &common, first, n, prefetch);
    for (int i = first; i < first + n; ++i) {
        block_keys visible = vector_keys[i];
        if (!has_keys(&visible)) visible.begin = visible.end = keys->end;
        clear_masked(x, keys->begin, visible.begin, i);
        clear_masked(x, visible.end, keys->end, i);
        if (!has_keys(&visible)) continue;
        block_keys before = keys_before(visible, &common), after = keys_after(visible, &common);
        scores_and_grads(g, x, &before, i, 1, NULL);
        scores_and_grads(g, x, &after, i, 1, NULL);
        weights_of_vector(g, x, &visible, i);
    }
    if (has_keys(&all) && needs_grad(g, SA_GRADIENT_QUERY))
        grad_query(g, x, &all, first, n, prefetch);
}

/* How many of the `left` vectors to take at once, so that no single one is left at the end:
 * products of one vector are slow. */
static int vectors_at_once(int left) {
    int panels = (left + NR_BEST - 1) / NR_BEST;
    return left <= NR_MAX ? left : (left + panels - 1) / panels;
}

static void backward_keys(const sa_backward_tile *g, const backward_scratch *x,
                          const block_keys *keys) {
    block_keys vector_keys[MAX_VECTORS];
    /* Marks are made only for a vector whose keys are partial. */
    int needs_no_marks = keys->v_is_finite && g->q_finite && g->dout_finite;
    for (int i = 0; i < x->tile.n; ++i) {
        vector_keys[i] = is_partial(keys)
                             ? keys_of_vector(x->tile.lo + i * LANES, x->tile.hi + i * LANES, keys)
                             : *keys;
        if (!needs_no_marks) vector_keys[i].range_class = keys->range_class;
    }
    prefetch_queue prefetch;
    gradient_prefetch(g, keys->block, &prefetch);
    for (int first = 0, n; first < x->tile.n; first += n) {
        n = vectors_at_once(x->tile.n - first);
        backward_vectors(g, x, keys, vector_keys, first, n, &prefetch);
    }
    if (needs_grad(g, SA_GRADIENT_KEY | SA_GRADIENT_VALUE))
        grad_key_and_value(g, x, keys, vector_keys);
    if (needs_grad(g, SA_GRADIENT_MASK)) grad_mask(g, x, keys);
}

static void backward_block(const sa_backward_tile *g, const backward_scratch *x, int64_t block) {
    const sa_tile *t = &g->fwd;
    block_keys keys;
    if (!find_block_keys(t, block, &keys)) return;
    if (is_partial(&keys)) {
        prefill_block_ranges(t, &x->tile, block);
        keys.v_is_finite =
            !needs_grad(g, SA_GRADIENT_QUERY) ||
            known_finite(t->finite, &t->k, block + keys.begin, block + keys.end, t->head_dim);
    }
    backward_keys(g, x, &keys);
}

static void backward_split(const sa_backward_tile *g, void *memory, int64_t key_begin,
                           int64_t key_end) {
    backward_scratch x = backward_layout(g, memory);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N)
        backward_block(g, &x, block);
    v_zeroupper();
}

static void backward_clear(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r, to += row)
        for (int64_t x = 0; x < cols; x += LANES)
            v_store_strided(to + x * col, col, at_most(cols - x, LANES), v_zero());
    v_zeroupper();
}

static void backward_finish(const sa_backward_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    const sa_tile *t = &g->fwd;
    vec scale = v_set(to_real(t->scoring.q_factor * t->scoring.scale));
    ptrdiff_t col = g->dq_col;
    for (int i = 0; i < x.row; i += LANES)
        for (int64_t d = 0; d < t->head_dim; d += LANES) {
            int n = at_most(t->head_dim - d, LANES);
            vec square[LANES];
            for (int j = 0; j < LANES; ++j)
                square[j] = j < n ? v_load(x.dq + (d + j) * x.row + i) : v_zero();
            v_transpose(square);
            for (int r = 0; r < LANES && i + r < t->rows; ++r) {
                char *to = g->dq[i + r] + d * col;
                vec before = g->adds_to_query ? v_load_strided(to, col, n) : v_zero();
                vec dq = g->dq_is_partial ? square[r] : sum_scaled(square[r], scale, before);
                if (ELEM_IS_REAL || g->dq_is_real)
                    v_store_strided(to, col, n, dq);
                else
                    s_store_strided(to, col, n, dq);
            }
        }
    v_zeroupper();
}

/* Add each row's term of its sink's gradient, e^(sink - lse) (dlse - D); of a fully masked row,
 * whose lse is the sink, dlse. */
static void backward_sinks(const sa_backward_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    const sa_tile *t = &g->fwd;
    vec scale_ln = v_set(to_real(t->scoring.scale_ln));
    for (int i = 0; i < x.row; i += LANES) {
        real share[LANES], delta[LANES];
        vec sink = sinks_of_rows(t, i);
        vec by_stats =
            share_of_sink(scale_ln, v_load(x.stats.row_max + i), v_load(x.stats.row_sum + i), sink);
        vec by_lse = v_exp(v_sub(sink, v_load(x.lse + i)));
        v_store(share, v_select(recomputed_lanes(&x, i / LANES), by_stats, by_lse));
        v_store(delta, v_load(x.delta + i));
        for (int r = 0; r < LANES && i + r < t->rows; ++r) {
            int is_masked = is_fully_masked(t, i + r);
            if (!is_masked) *g->dsink[i + r] -= (double)share[r] * (double)delta[r];
            if (!g->has_dlse) continue;
            *g->dsink[i + r] += (is_masked ? 1 : (double)share[r]) * (double)x.dlse[i + r];
        }
    }
    v_zeroupper();
}

#endif
