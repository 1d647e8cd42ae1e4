/* Scores of a tile of few rows become weights: biases, masks, and the online softmax with keys in
 * the lanes. Called by decode.inc.h. */
#ifndef SA_KERNELS_DECODE_WEIGHTS_INC_H
#define SA_KERNELS_DECODE_WEIGHTS_INC_H

#include <math.h>

#include "../visibility.h"
#include "simd.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "bias.inc.h"
#include "decode_scratch.inc.h"

/* The four chains of a sum over keys have the same length: weights past the last key are 0. */
SA_INLINE int whole_chains(int end) { return (end + 3) & ~3; }

/* Put `masked` where a key, or a chain's element past the last key, is out of the row's range. */
static void decode_mask_ranges(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                               int r, real masked) {
    vec lo = v_set((real)sa_block_offset(t->key_lo[r], keys->block));
    vec hi = v_set((real)sa_block_offset(t->key_hi[r], keys->block));
    real *s = x->s + r * DECODE_S_ROW;
    for (int j = keys->begin; j < whole_chains(keys->end); j += LANES) {
        vec key = v_add(v_iota(), v_set((real)j));
        v_store(s + j, in_range(v_load(s + j), lo, key, hi, v_set(masked)));
    }
}

/* Put `masked` where B is -inf; before that, add B if asked to. */
static void decode_mask_bias(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                             int r, int add, real masked) {
    real *s = x->s + r * DECODE_S_ROW;
    for (int j = keys->begin; j < keys->end; j += LANES) {
        vec b = mask_bias_of_row(t, r, keys->block + j, at_most(keys->end - j, LANES));
        v_store(s + j, with_mask_bias(v_load(s + j), b, add, v_set(masked)));
    }
}

/* Add the biases to S and mask it. Ranges are applied even in a full block: the chains' elements
 * past the last key must have weight 0. */
static void decode_bias_and_mask(const sa_tile *t, const decode_scratch *x,
                                 const block_keys *keys) {
    for (int r = 0; r < t->rows; ++r) {
        if (t->scoring.in_natural_units) decode_bias(t, keys, x->s + r * DECODE_S_ROW, r);
        if (keys->mask_class == SA_PARTIAL)
            decode_mask_bias(t, x, keys, r, mask_adds(t), -(real)INFINITY);
        decode_mask_ranges(t, x, keys, r, -(real)INFINITY);
    }
}

/* Set the sign bit of masked keys' weights, for ukernel_masked; no other is negative. */
static void decode_mark_masked(const sa_tile *t, const decode_scratch *x, const block_keys *keys) {
    for (int r = 0; r < t->rows; ++r) {
        if (keys->mask_class == SA_PARTIAL) decode_mask_bias(t, x, keys, r, 0, (real)-0.0);
        decode_mask_ranges(t, x, keys, r, (real)-0.0);
    }
}

/* The sum of weights [begin, end) in four chains, which are the lanes 0 to 3, of two vectors where
 * LANES is 2. The other lanes are brought there in order; past the last key they are 0. */
SA_INLINE real sum_of_chains(const real *s, int begin, int end) {
    enum { VECTORS = LANES < 4 ? 4 / LANES : 1 };
    vec sum[VECTORS];
    real chain[VECTORS * LANES];
    for (int v = 0; v < VECTORS; ++v) sum[v] = v_zero();
    for (int j = begin; j < end; j += VECTORS * LANES)
        for (int v = 0; v < VECTORS; ++v) {
            vec p = v_load(s + j + v * LANES);
            sum[v] = v_add(sum[v], p);
#if LANES >= 8
            sum[v] = v_add(sum[v], v_swap(p, 4));
#endif
#if LANES >= 16
            p = v_swap(p, 8);
            sum[v] = v_add(sum[v], p);
            sum[v] = v_add(sum[v], v_swap(p, 4));
#endif
        }
    for (int v = 0; v < VECTORS; ++v) v_store(chain + v * LANES, sum[v]);
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
}

/* softmax_column (softmax.inc.h) with keys in the lanes; masked scores are -inf already. */
static void decode_softmax(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                           split_state state) {
    int begin = keys->begin, end = keys->end;
    vec scale_log2 = scale_log2_of(&t->scoring);
    real top[LANES], sum[LANES] = {0};
    vec old = v_load(state.row_max);
    v_store(top, old);
    for (int r = 0; r < t->rows; ++r) {
        vec max = v_set(top[r]);
        for (int j = begin; j < end; j += LANES)
            max = v_max(v_load(x->s + r * DECODE_S_ROW + j), max);
        real lanes[LANES];
        v_store(lanes, max);
        for (int i = 0; i < LANES; ++i) top[r] = lanes[i] > top[r] ? lanes[i] : top[r];
    }
    vec max = v_load(top), shift = finite_max(max);
    v_store(x->shift, shift);
    for (int r = 0; r < t->rows; ++r) {
        real *s = x->s + r * DECODE_S_ROW;
        vec shift_r = v_set(x->shift[r]);
        for (int j = begin; j < whole_chains(end); j += LANES)
            v_store(s + j, weight(v_sub(v_load(s + j), shift_r), scale_log2));
        sum[r] = sum_of_chains(s, begin, whole_chains(end));
    }
    vec a = weight(v_sub(old, shift), scale_log2);
    v_store(x->rescale, a);
    v_store(state.row_sum, v_fma(v_load(state.row_sum), a, v_load(sum)));
    v_store(state.row_max, max);
}

/* Multiply the weights by weight_factor, which keeps the values' sum from overflowing. Their own
 * sum l is taken before. */
static void decode_shrink(const sa_tile *t, const decode_scratch *x, const block_keys *keys) {
    vec factor = v_set((real)t->weight_factor);
    for (int r = 0; r < t->rows; ++r)
        for (int j = keys->begin; j < keys->end; j += LANES) {
            real *s = x->s + r * DECODE_S_ROW + j;
            v_store(s, v_mul(v_load(s), factor));
        }
}

#endif
