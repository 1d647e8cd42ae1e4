/* Forward pass of a tile whose lanes are queries:
 *
 *     S[key][lane]  = sum over d of K[key, d] * Q[d][lane]      Q packed
 *     S             = cap(scale * S) - slope * distance + B     where there is a bias; bias.inc.h
 *     S             = -inf                                      where masked
 *     P, m, l       = online softmax down the keys              softmax.inc.h
 *     O[e][lane]    = O * 2^(u (m - m')) + sum over keys of V[key, e] * P[key][lane]
 *
 * K and V are read as keys.inc.h says. Where the rows' ranges of keys differ within a block, each
 * vector of lanes computes with its own range. Called by the loops through the table (kernels.h).
 */
#ifndef SA_KERNELS_PREFILL_INC_H
#define SA_KERNELS_PREFILL_INC_H

#include <math.h>

#include "../visibility.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "keys.inc.h"
#include "prefetch.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "scatter.inc.h"
#include "mask.inc.h"
#include "vector_keys.inc.h"
#include "dropout.inc.h"
#include "bias.inc.h"

typedef struct {
    int n;         /* vectors of lanes */
    ptrdiff_t row; /* lanes in a row of Q, S and O */
    real *q, *s;
    real *sums;    /* the micro-kernel's */
    real *rescale; /* of each lane, the factor 2^(u (m - m')) of O */
    real *lo, *hi; /* each lane's range of keys, counted from the block */
    real *panel;   /* B of one vector of lanes */
    real *piece;   /* of K or V (keys.inc.h) */
} prefill_scratch;

SA_INLINE int lane_vectors(int rows) { return (rows + LANES - 1) / LANES; }

static size_t prefill_scratch_size(int rows, int64_t head_dim, int64_t head_dim_v) {
    size_t row = (size_t)lane_vectors(rows) * LANES;
    size_t fixed = SUMS_ROOM + SA_BLOCK_N * LANES + (size_t)piece_room(head_dim, head_dim_v);
    return (((size_t)head_dim + SA_BLOCK_N + 3) * row + fixed) * sizeof(real);
}

static size_t prefill_state_size(int rows, int64_t head_dim_v) {
    size_t row = (size_t)lane_vectors(rows) * LANES;
    return ((size_t)head_dim_v + 2) * row * sizeof(real);
}

static prefill_scratch prefill_layout(const sa_tile *t, void *memory) {
    prefill_scratch x = {.n = lane_vectors(t->rows), .row = lane_vectors(t->rows) * LANES};
    x.s = memory;
    x.sums = x.s + SA_BLOCK_N * x.row;
    x.rescale = x.sums + SUMS_ROOM;
    x.lo = x.rescale + x.row;
    x.hi = x.lo + x.row;
    x.panel = x.hi + x.row;
    x.piece = x.panel + SA_BLOCK_N * LANES;
    x.q = x.piece + piece_room(t->head_dim, t->head_dim_v);
    return x;
}

static split_state prefill_state(const sa_tile *t, void *memory) {
    ptrdiff_t row = lane_vectors(t->rows) * LANES;
    real *row_max = memory, *row_sum = row_max + row, *o = row_sum + row;
    return (split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

static const_split_state prefill_const_state(const sa_tile *t, const void *memory) {
    ptrdiff_t row = lane_vectors(t->rows) * LANES;
    const real *row_max = memory, *row_sum = row_max + row, *o = row_sum + row;
    return (const_split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

static void prefill_begin(const sa_tile *t, void *memory) {
    prefill_scratch x = prefill_layout(t, memory);
    for (int i = 0; i < x.n; ++i)
        gather(t->q + i * LANES, at_most(t->rows - i * LANES, LANES), t->q_col, t->head_dim,
               (real)t->scoring.q_factor, 0, x.q + i * LANES, x.row);
    v_zeroupper();
}

/* Add the keys and values of a block to the queue. */
static void prefetch_block(const sa_tile *t, int64_t block, prefetch_queue *queue) {
    int64_t n = at_most(t->end - block, SA_BLOCK_N);
    const sa_key_rows *k = &t->k, *v = &t->v;
    if (n <= 0 || k->pages || k->scale) return;
    prefetch_rows(queue, k->at + block * k->row, k->row, n, key_row_bytes(k, t->head_dim));
    prefetch_rows(queue, v->at + block * v->row, v->row, n, key_row_bytes(v, t->head_dim_v));
}

static int keys_exceed_l2(const sa_tile *t) {
    return exceeds_l2(t, key_row_bytes(&t->k, t->head_dim) + key_row_bytes(&t->v, t->head_dim_v));
}

/* Prefetch targets while a block computes: its share of the next head's K and V; or, if the tile
 * has no share, the next block's K and V, where no tile has read them before or they exceed L2. The
 * last block but one, which is whole as a rule, adds the tile's rows of `out` and the next
 * tile's queries. */
static void prefill_prefetch(const sa_tile *t, int64_t block, prefetch_queue *queue) {
    const sa_prefetch *target = &t->prefetch;
    const sa_tile *next = target->next;
    int64_t done = block - first_block(t), all = t->end - first_block(t), left = all - done;
    int64_t of_block = at_most(left, SA_BLOCK_N);
    int64_t k_bytes = t->head_dim * ELEM_SIZE, v_bytes = t->head_dim_v * ELEM_SIZE;
    prefetch_begin(queue);
    if (target->keys) {
        int64_t i = target->keys * done / all, n = target->keys * (done + of_block) / all - i;
        prefetch_rows(queue, target->k + i * target->k_row, target->k_row, n, k_bytes);
        prefetch_rows(queue, target->v + i * target->v_row, target->v_row, n, v_bytes);
    } else if (left > SA_BLOCK_N) {
        if (target->is_first || keys_exceed_l2(t)) prefetch_block(t, block + SA_BLOCK_N, queue);
    } else if (next && keys_exceed_l2(next)) {
        prefetch_block(next, first_block(next), queue);
    }
    int is_last_but_one = left > SA_BLOCK_N && left <= 2 * SA_BLOCK_N;
    if (!is_last_but_one && all > SA_BLOCK_N) return;
    if (next) prefetch_list(queue, next->q, next->rows, t->group, k_bytes);
    prefetch_list(queue, (const char *const *)t->out, t->rows, t->group, v_bytes);
}

/* S of vectors [first, first + n). */
static void prefill_scores(const sa_tile *t, const prefill_scratch *x, const block_keys *keys,
                           int first, int n, prefetch_queue *prefetch) {
    ukernel_args p = {
        .m = keys->end - keys->begin,
        .k = t->head_dim,
        .chunk = sa_chunk_e(t->head_dim),
        .part = sa_part_e(t->head_dim),
        .b = (const char *)(x->q + first * LANES),
        .b_k = x->row * REAL_SIZE,
        .c = x->s + keys->begin * x->row + first * LANES,
        .c_row = x->row,
        .sums = x->sums,
        .prefetch = prefetch,
    };
    key_product(n, &p, keys->k, keys->block + keys->begin, x->piece);
}

/* O of vectors [first, first + n). Where V is not finite, the weights of masked keys have their
 * sign bit set. */
static void prefill_values(const sa_tile *t, const prefill_scratch *x, const block_keys *keys,
                           int first, int n, beta_kind kind, real *o, prefetch_queue *prefetch) {
    ukernel_args p = {
        .m = t->head_dim_v,
        .k = keys->end - keys->begin,
        .chunk = SA_CHUNK_N,
        .phase = keys->begin % SA_CHUNK_N,
        .b = (const char *)(x->s + keys->begin * x->row + first * LANES),
        .b_k = x->row * REAL_SIZE,
        .c = o + first * LANES,
        .c_row = x->row,
        .kind = kind,
        .beta = x->rescale + first * LANES,
        .sums = x->sums,
        .prefetch = prefetch,
    };
    const char *marks = keys->v_is_finite ? NULL : p.b;
    value_product(n, &p, keys->v, keys->block + keys->begin, marks, x->piece);
}

/* Each lane's range of keys, counted from the block and clipped to it: small integers, exact as
 * `real`. */
static void prefill_block_ranges(const sa_tile *t, const prefill_scratch *x, int64_t block) {
    for (int r = 0; r < x->row; ++r) {
        int is_row = r < t->rows;
        x->lo[r] = (real)(is_row ? sa_block_offset(t->key_lo[r], block) : 0);
        x->hi[r] = (real)(is_row ? sa_block_offset(t->key_hi[r], block) : 0);
    }
}

/* Put `masked` where a key is out of its lane's range, for keys [begin, end) of vector i. */
static void prefill_mask_range(const prefill_scratch *x, int begin, int end, int i, real masked) {
    vec lo = v_load(x->lo + i * LANES), hi = v_load(x->hi + i * LANES);
    real *s = x->s + begin * x->row + i * LANES;
    for (int j = begin; j < end; ++j, s += x->row)
        v_store(s, in_range(v_load(s), lo, v_set((real)j), hi, v_set(masked)));
}

/* Only keys outside [full_begin, full_end) can be out of range. */
static void prefill_mask_ranges(const prefill_scratch *x, const block_keys *keys, int i,
                                real masked) {
    prefill_mask_range(x, keys->begin, keys->full_begin, i, masked);
    prefill_mask_range(x, keys->full_end, keys->end, i, masked);
}

/* Put `masked` where B is -inf; before that, add B if asked to. */
static void prefill_mask_bias(const sa_tile *t, const prefill_scratch *x, const block_keys *keys,
                              int i, int add, real masked) {
    mask_bias_panel(t, keys, i, x->panel);
    real *s = x->s + keys->begin * x->row + i * LANES;
    for (int j = keys->begin; j < keys->end; ++j, s += x->row)
        v_store(s, with_mask_bias(v_load(s), v_load(x->panel + j * LANES), add, v_set(masked)));
}

/* Add the biases to vector i of S and mask it. `dcap`, unless NULL, gets the cap's derivative. */
static void prefill_bias_and_mask_dcap(const sa_tile *t, const prefill_scratch *x,
                                       const block_keys *keys, real *dcap, int i) {
    if (t->scoring.in_natural_units)
        prefill_bias(t, keys, x->s + i * LANES, dcap ? dcap + i * LANES : NULL, x->row, i);
    if (keys->mask_class == SA_PARTIAL)
        prefill_mask_bias(t, x, keys, i, mask_adds(t), -(real)INFINITY);
    if (keys->range_class == SA_PARTIAL) prefill_mask_ranges(x, keys, i, -(real)INFINITY);
}

static void prefill_bias_and_mask(const sa_tile *t, const prefill_scratch *x,
                                  const block_keys *keys, int i) {
    prefill_bias_and_mask_dcap(t, x, keys, NULL, i);
}

/* Set the sign bit of masked keys' weights, for ukernel_masked; no other is negative. */
static void prefill_mark_masked(const sa_tile *t, const prefill_scratch *x, const block_keys *keys,
                                int i) {
    if (keys->mask_class == SA_PARTIAL) prefill_mask_bias(t, x, keys, i, 0, (real)-0.0);
    if (keys->range_class == SA_PARTIAL) prefill_mask_ranges(x, keys, i, (real)-0.0);
}

/* Vector i: scores become weights, and the state gets their maximum and sum. */
static void prefill_weights(const sa_tile *t, const prefill_scratch *x, const block_keys *keys,
                            split_state state, int i) {
    int at = i * LANES;
    prefill_bias_and_mask(t, x, keys, i);
    softmax_column(scale_log2_of(&t->scoring), x->s + at, x->row, keys->begin, keys->end,
                   state.row_max + at, state.row_sum + at, x->rescale + at);
    if (t->scoring.has_dropout) prefill_drop(t, keys, x->s + at, x->row, i);
    if (!keys->v_is_finite) prefill_mark_masked(t, x, keys, i);
}

/* Keys [begin, end) get weight 0 in vector i. */
static void prefill_clear_weights(const prefill_scratch *x, int begin, int end, int i) {
    real *s = x->s + begin * x->row + i * LANES;
    for (int j = begin; j < end; ++j, s += x->row) v_store(s, v_zero());
}

/* A block whose keys differ from vector to vector: one product has the scores of the common keys,
 * and each vector adds those of its other keys. The values' sums are one product too if the
 * vectors' keys are alike, and else one a vector. */
static void prefill_partial_block(const sa_tile *t, const prefill_scratch *x,
                                  const block_keys *keys, split_state state,
                                  prefetch_queue *prefetch) {
    block_keys vector_keys[NR_MAX];
    for (int i = 0; i < x->n; ++i)
        vector_keys[i] = keys_of_vector(x->lo + i * LANES, x->hi + i * LANES, keys);
    block_keys common = common_keys(vector_keys, x->n, keys),
               all = all_keys(vector_keys, x->n, keys);
    int at_once = keys->v_is_finite && are_alike(vector_keys, x->n, &all);
    if (has_keys(&common)) prefill_scores(t, x, &common, 0, x->n, prefetch);
    for (int i = 0; i < x->n; ++i) {
        block_keys visible = vector_keys[i];
        if (!has_keys(&visible)) visible.begin = visible.end = all.begin;
        block_keys before = keys_before(visible, &common), after = keys_after(visible, &common);
        if (has_keys(&before)) prefill_scores(t, x, &before, i, 1, prefetch);
        if (has_keys(&after)) prefill_scores(t, x, &after, i, 1, prefetch);
        prefill_weights(t, x, &visible, state, i);
        if (at_once) {
            prefill_clear_weights(x, all.begin, visible.begin, i);
            prefill_clear_weights(x, visible.end, all.end, i);
        } else if (has_keys(&visible)) {
            prefill_values(t, x, &visible, i, 1, BETA_OF_LANE, state.o, prefetch);
        }
    }
    if (at_once) prefill_values(t, x, &all, 0, x->n, BETA_OF_LANE, state.o, prefetch);
}

/* Returns whether O is begun, by this block or one before. A full block that begins O writes it;
 * else O is cleared first. */
static int prefill_block(const sa_tile *t, const prefill_scratch *x, split_state state,
                         int64_t block, int is_begun) {
    block_keys keys;
    if (!find_block_keys(t, block, &keys)) return is_begun;
    sa_key_rows k, v;
    read_block(t, &keys, &k, &v);
    check_v_finite(t, &keys);
    prefetch_queue prefetch;
    prefill_prefetch(t, block, &prefetch);
    if (keys.range_class == SA_FULL) {
        prefill_scores(t, x, &keys, 0, x->n, &prefetch);
        for (int i = 0; i < x->n; ++i) prefill_weights(t, x, &keys, state, i);
        beta_kind kind = is_begun ? BETA_OF_LANE : BETA_ZERO;
        prefill_values(t, x, &keys, 0, x->n, kind, state.o, &prefetch);
    } else {
        if (!is_begun) state_clear_values(state, x->row, t->head_dim_v);
        prefill_block_ranges(t, x, block);
        prefill_partial_block(t, x, &keys, state, &prefetch);
    }
    return 1;
}

static void prefill_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                          void *split_memory) {
    prefill_scratch x = prefill_layout(t, memory);
    split_state state = prefill_state(t, split_memory);
    state_clear(state, x.row);
    int is_begun = 0;
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N)
        is_begun = prefill_block(t, &x, state, block, is_begun);
    if (!is_begun) state_clear_values(state, x.row, t->head_dim_v);
    v_zeroupper();
}

static void prefill_merge(const sa_tile *t, void *total_memory, const void *split_memory) {
    split_state total = prefill_state(t, total_memory);
    const_split_state split = prefill_const_state(t, split_memory);
    int row = lane_vectors(t->rows) * LANES;
    vec scale_log2 = scale_log2_of(&t->scoring);
    for (int i = 0; i < row; i += LANES) {
        vec a, b;
        softmax_merge(scale_log2, total.row_max + i, total.row_sum + i, split.row_max + i,
                      split.row_sum + i, &a, &b);
        real *o = total.o + i;
        const real *split_o = split.o + i;
        for (int64_t e = 0; e < t->head_dim_v; ++e, o += row, split_o += row)
            v_store(o, v_fma(v_load(o), a, v_mul(v_load(split_o), b)));
    }
    v_zeroupper();
}

static void prefill_finish(const sa_tile *t, void *total_memory) {
    split_state total = prefill_state(t, total_memory);
    int row = lane_vectors(t->rows) * LANES;
    for (int i = 0; i < row; i += LANES) {
        vec max = v_load(total.row_max + i), sum = v_load(total.row_sum + i);
        row_epilogue end = with_dropout_scale(t, epilogue_of_rows(t, i, max, sum));
        scatter_scaled(t->out + i, at_most(t->rows - i, LANES), t->out_col, t->head_dim_v,
                       total.o + i, row, &end);
        write_lse(t, i, max, sum);
    }
    v_zeroupper();
}

#endif
