/* Single steps of attention, on a tile whose lanes are queries (prefill.inc.h):
 *
 *     scores    out[r, key] = S[key][r], -inf where masked
 *     weights   out[r, key] = 2^(u (S[key][r] - m)) / l, with the m and l of all keys; with dropout
 *               0 or divided by the kept fraction
 *     sum       out[r, e]   = sum over keys of weights[r, key] * V[key, e], block by block
 *
 * Called by the loops through the table (kernels.h). */
#ifndef SA_KERNELS_SCORES_INC_H
#define SA_KERNELS_SCORES_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "scatter.inc.h"
#include "mask.inc.h"
#include "dropout.inc.h"
#include "prefill.inc.h"

/* -inf for all lanes and keys [begin, end) of a block. */
static void mask_keys(const prefill_scratch *x, int begin, int end) {
    for (ptrdiff_t i = begin * x->row; i < end * x->row; i += LANES) v_store(x->s + i, minus_inf());
}

/* The block's scores for all lanes and keys [0, end), -inf where masked. */
static void scores_block(const sa_tile *t, const prefill_scratch *x, int64_t block, int end) {
    block_keys keys;
    if (!find_block_keys(t, block, &keys)) {
        mask_keys(x, 0, end);
        return;
    }
    /* Add the mask even where it is 0 for all rows of the block: -0 + 0 is 0, and a score's bits
     * must not depend on the other rows. */
    if (mask_adds(t)) keys.mask_class = SA_PARTIAL;
    prefill_scores(t, x, &keys, 0, x->n, NULL);
    prefill_block_ranges(t, x, block);
    for (int i = 0; i < x->n; ++i) prefill_bias_and_mask(t, x, &keys, i);
    mask_keys(x, 0, keys.begin);
    mask_keys(x, keys.end, end);
}

static void scatter_block(const sa_tile *t, const prefill_scratch *x, int64_t block, int end) {
    for (int i = 0; i < x->row; i += LANES) {
        char *rows[LANES];
        int count = at_most(t->rows - i, LANES);
        for (int r = 0; r < count; ++r) rows[r] = t->out[i + r] + block * t->out_col;
        scatter(rows, count, t->out_col, end, x->s + i, x->row);
    }
}

static void scores_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end) {
    prefill_scratch x = prefill_layout(t, memory);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        scores_block(t, &x, block, end);
        scatter_block(t, &x, block, end);
    }
    v_zeroupper();
}

/* Vector i: the scores of keys [0, end) of a block become weights. A dropped one is 0 before the
 * row's factor, so that a row that is NaN is so throughout, as its weighted sum is. */
SA_INLINE void normalise_scores(const sa_tile *t, const prefill_scratch *x, const_split_state total,
                                int64_t block, int end, int i, const int has_dropout) {
    vec scale_log2 = scale_log2_of(&t->scoring);
    vec max = v_load(total.row_max + i * LANES), sum = v_load(total.row_sum + i * LANES);
    vec shift = finite_max(max);
    row_epilogue whole = with_dropout_scale(t, epilogue_of_rows(t, i * LANES, max, sum));
    drop_rows rows;
    if (has_dropout) rows = drop_rows_of(t, i);
    real *s = x->s + i * LANES;
    for (int j = 0; j < end; ++j, s += x->row) {
        vec p = weight(v_sub(v_load(s), shift), scale_log2);
        if (has_dropout) p = with_dropped(rows, block + j, p);
        v_store(s, softmax_scaled(p, whole));
    }
}

static void weights_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                          const void *total_memory) {
    prefill_scratch x = prefill_layout(t, memory);
    const_split_state total = prefill_const_state(t, total_memory);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        scores_block(t, &x, block, end);
        for (int i = 0; i < x.n; ++i) {
            if (t->scoring.has_dropout)
                normalise_scores(t, &x, total, block, end, i, 1);
            else
                normalise_scores(t, &x, total, block, end, i, 0);
        }
        scatter_block(t, &x, block, end);
    }
    v_zeroupper();
}

static void sum_begin(const sa_tile *t, void *total_memory) {
    state_clear_values(prefill_state(t, total_memory), lane_vectors(t->rows) * LANES,
                       t->head_dim_v);
    v_zeroupper();
}

static void sum_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                      void *total_memory) {
    prefill_scratch x = prefill_layout(t, memory);
    split_state total = prefill_state(t, total_memory);
    for (int i = 0; i < x.row; i += LANES) v_store(x.rescale + i, v_set(1));
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        for (int i = 0; i < x.row; i += LANES) {
            const char *rows[LANES];
            int count = at_most(t->rows - i, LANES);
            for (int r = 0; r < count; ++r) rows[r] = t->q[i + r] + block * t->q_col;
            gather(rows, count, t->q_col, end, 1, 0, x.s + i, x.row);
        }
        block_keys keys = {.block = block, .end = end, .v_is_finite = 1, .v = &t->v};
        prefill_values(t, &x, &keys, 0, x.n, BETA_OF_LANE, total.o, NULL);
    }
    v_zeroupper();
}

static void sum_finish(const sa_tile *t, void *total_memory) {
    split_state total = prefill_state(t, total_memory);
    int row = lane_vectors(t->rows) * LANES;
    for (int i = 0; i < row; i += LANES)
        scatter(t->out + i, at_most(t->rows - i, LANES), t->out_col, t->head_dim_v, total.o + i,
                row);
    v_zeroupper();
}

#endif
