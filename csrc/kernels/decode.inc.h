/* Forward pass of a tile of few rows (decoding), bound by memory. Lanes are keys, then elements of
 * O, where those of prefill.inc.h are queries; the operations on a row and their order are the
 * same, and so are its bits:
 *
 *     S[r][key]  = sum over d of Q[r, d] * K[d][key]        lanes are keys: K is transposed,
 *                                                           LANES keys at a time
 *     S          = cap(scale * S) - slope * distance + B, -inf where masked
 *     P, m, l    = online softmax along the keys
 *     O[r][e]    = O * 2^(u (m - m')) + sum over keys of P[r, key] * V[key][e]    lanes are e
 *
 * Called by the loops through the table (kernels.h). */
#ifndef SA_KERNELS_DECODE_INC_H
#define SA_KERNELS_DECODE_INC_H

#include <string.h>

#include "simd.inc.h"
#include "pack.inc.h"
#include "keys.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "dropout.inc.h"
#include "reading.inc.h"
#include "decode_scratch.inc.h"
#include "decode_scores.inc.h"
#include "decode_weights.inc.h"

static void decode_begin(const sa_tile *t, void *memory) {
    decode_scratch x = decode_layout(memory);
    vec factor = v_set((real)t->scoring.q_factor);
    for (int r = 0; r < t->rows; ++r)
        for (int64_t d = 0; d < t->head_dim; d += LANES) {
            int width = at_most(t->head_dim - d, LANES);
            vec q = s_load_strided(t->q[r] + d * t->q_col, t->q_col, width);
            v_store_n(x.q + r * t->head_dim + d, v_mul(q, factor), width);
        }
    v_zeroupper();
}

/* O. Where V is not finite, the weights of masked keys have their sign bit set. */
static void decode_values(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                          split_state state) {
    int begin = keys->begin, count = keys->end - begin;
    const sa_key_rows *v = keys->v;
    ukernel_args p = {
        .m = t->rows,
        .k = count,
        .chunk = SA_CHUNK_N,
        .phase = begin % SA_CHUNK_N,
        .a = (const char *)(x->s + begin),
        .a_row = DECODE_S_ROW * (ptrdiff_t)sizeof(real),
        .a_k = sizeof(real),
        .b_k = v->row,
        .runs = find_runs_of_values(t, keys, x->runs),
        .scale_row = v->scale_row,
        .c_row = decode_o_row(t->head_dim_v),
        .kind = BETA_OF_ROW,
        .beta = x->rescale,
        .sums = x->sums,
    };
    int64_t e = 0;
    int is_int8 = HAS_INT8 && v->scale;
    int whole = is_int8 || (v->col == ELEM_SIZE && keys->v_is_finite);
    for (int n; whole && (n = at_most((t->head_dim_v - e) / LANES, NR_MAX)) > 0; e += n * LANES) {
        p.first_byte = e * v->col;
        p.c = state.o + e;
        is_int8 ? ukernel_int8(n, &p) : ukernel_prefetching(n, &p);
    }
    /* The last elements, and a V that is not finite or not contiguous, go through the panel. */
    p.b = (const char *)x->panel;
    p.b_k = sizeof(vec);
    for (; e < t->head_dim_v; e += LANES) {
        int width = at_most(t->head_dim_v - e, LANES);
        row_cursor c = cursor_at(v, keys->block + begin, keys->block + keys->end);
        for (int j = 0; j < count; ++j, cursor_add(&c, 1))
            v_store(x->panel + j * LANES,
                    s_load_strided(cursor_row(&c) + e * v->col, v->col, width));
        p.c = state.o + e;
        keys->v_is_finite ? ukernel(1, &p) : ukernel_masked(1, &p, MARKED_A, p.a);
    }
}

static void decode_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                         void *split_memory) {
    decode_scratch x = decode_layout(memory);
    split_state state = decode_state(split_memory);
    state_clear(state, LANES);
    memset(state.o, 0, (size_t)t->rows * (size_t)decode_o_row(t->head_dim_v) * sizeof(real));
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        block_keys keys;
        if (!find_block_keys(t, block, &keys)) continue;
        sa_key_rows k, v;
        if (t->k.scale && !decode_reads_int8(t)) read_block(t, &keys, &k, &v);
        check_v_finite(t, &keys);
        decode_scores(t, &x, &keys);
        decode_bias_and_mask(t, &x, &keys);
        decode_softmax(t, &x, &keys, state);
        for (int r = 0; t->scoring.has_dropout && r < t->rows; ++r)
            decode_drop(t, &keys, x.s + r * DECODE_S_ROW, r);
        if (t->weight_factor != 1) decode_shrink(t, &x, &keys);
        if (!keys.v_is_finite) decode_mark_masked(t, &x, &keys);
        decode_values(t, &x, &keys, state);
    }
    v_zeroupper();
}

static void decode_merge(const sa_tile *t, void *total_memory, const void *split_memory) {
    split_state total = decode_state(total_memory);
    const_split_state split = decode_const_state(split_memory);
    real a[LANES], b[LANES];
    vec factor, split_factor;
    softmax_merge(scale_log2_of(&t->scoring), total.row_max, total.row_sum, split.row_max,
                  split.row_sum, &factor, &split_factor);
    v_store(a, factor);
    v_store(b, split_factor);
    int64_t row = decode_o_row(t->head_dim_v);
    for (int r = 0; r < t->rows; ++r)
        for (int64_t e = r * row; e < (r + 1) * row; e += LANES)
            v_store(total.o + e, v_fma(v_load(total.o + e), v_set(a[r]),
                                       v_mul(v_load(split.o + e), v_set(b[r]))));
    v_zeroupper();
}

static void decode_finish(const sa_tile *t, void *total_memory) {
    split_state total = decode_state(total_memory);
    vec max = v_load(total.row_max), sum = v_load(total.row_sum);
    row_epilogue end = epilogue_of_rows(t, 0, max, sum);
    end = with_dropout_scale(t, end);
    end.factor = v_div(end.factor, v_set((real)t->weight_factor));
    int64_t row = decode_o_row(t->head_dim_v);
    int is_mean = t->weight_factor != 1 && !t->scoring.has_dropout;
    for (int r = 0; r < t->rows; ++r) {
        row_epilogue of_row = epilogue_of_lane(end, r);
        for (int64_t e = 0; e < t->head_dim_v; e += LANES) {
            vec sum = v_load(total.o + r * row + e), out = softmax_scaled(sum, of_row);
            if (is_mean) out = v_select(finite_lanes(sum), within_range(out), out);
            int width = at_most(t->head_dim_v - e, LANES);
            char *to = t->out[r] + e * t->out_col;
            if (ELEM_IS_REAL || t->out_is_real)
                v_store_strided(to, t->out_col, width, out);
            else
                s_store_strided(to, t->out_col, width, out);
        }
    }
    write_lse(t, 0, max, sum);
    v_zeroupper();
}

#endif
