/* Where a call goes on from the keys of calls before it: the state that a row's splits have left,
 * taken in and given back. In memory a state is contiguous reals,
 *
 *     max, sum, factor, O[0] ... O[head_dim_v - 1]       O holds the factor times the values' sums
 *
 * The factor is 1, or the tile's weight_factor of a row whose values' sums overflowed. Merging more
 * splits into a state is what merging them all in one call is, and so are the bits. Called by
 * forward.c through the table (kernels.h). */
#ifndef SA_KERNELS_RESUME_INC_H
#define SA_KERNELS_RESUME_INC_H

#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "prefill.inc.h"
#include "decode.inc.h"

/* Row r's maximum and sum; returns what its values' sums are multiplied by. */
static real take_head(const sa_tile *t, int r, split_state to) {
    const real *from = (const real *)t->state[r];
    to.row_max[r] = from[0] * (real)t->scoring.state_scale;
    to.row_sum[r] = from[1];
    return (real)(t->weight_factor / (double)from[2]);
}

static void give_head(const sa_tile *t, int r, const_split_state from) {
    real *to = (real *)t->state[r];
    to[0] = from.row_max[r];
    to[1] = from.row_sum[r];
    to[2] = (real)t->weight_factor;
}

/* Row r's values' sums, n elements from e on. */
static char *values_of(const sa_tile *t, int r, int64_t e) {
    return t->state[r] + (SA_STATE_HEAD + e) * REAL_SIZE;
}

/* LANES rows of a panel become its columns. Apart, as it is large and called for few numbers. */
static SA_APART void transpose_panel(real *panel) {
    vec square[LANES];
    SA_UNROLL
    for (int i = 0; i < LANES; ++i) square[i] = v_load(panel + i * LANES);
    v_transpose(square);
    SA_UNROLL
    for (int i = 0; i < LANES; ++i) v_store(panel + i * LANES, square[i]);
}

/* In memory a row is a row; here rows are in the lanes. */
static void prefill_take_states(const sa_tile *t, void *memory) {
    split_state total = prefill_state(t, memory);
    int row = lane_vectors(t->rows) * LANES;
    state_clear(total, row);
    for (int first = 0; first < t->rows; first += LANES) {
        int count = at_most(t->rows - first, LANES);
        real factors[LANES] = {0}, panel[LANES * LANES] = {0};
        for (int r = 0; r < count; ++r) factors[r] = take_head(t, first + r, total);
        vec factor = v_load(factors);
        for (int64_t e = 0; e < t->head_dim_v; e += LANES) {
            size_t n = (size_t)at_most(t->head_dim_v - e, LANES);
            for (int r = 0; r < count; ++r)
                memcpy(panel + r * LANES, values_of(t, first + r, e), n * sizeof(real));
            transpose_panel(panel);
            for (size_t i = 0; i < n; ++i)
                v_store(total.o + (e + (int64_t)i) * row + first,
                        v_mul(v_load(panel + i * LANES), factor));
        }
    }
    v_zeroupper();
}

static void prefill_give_states(const sa_tile *t, const void *memory) {
    const_split_state total = prefill_const_state(t, memory);
    int row = lane_vectors(t->rows) * LANES;
    for (int first = 0; first < t->rows; first += LANES) {
        int count = at_most(t->rows - first, LANES);
        real panel[LANES * LANES] = {0};
        for (int r = 0; r < count; ++r) give_head(t, first + r, total);
        for (int64_t e = 0; e < t->head_dim_v; e += LANES) {
            size_t n = (size_t)at_most(t->head_dim_v - e, LANES);
            for (size_t i = 0; i < n; ++i)
                v_store(panel + i * LANES, v_load(total.o + (e + (int64_t)i) * row + first));
            transpose_panel(panel);
            for (int r = 0; r < count; ++r)
                memcpy(values_of(t, first + r, e), panel + r * LANES, n * sizeof(real));
        }
    }
    v_zeroupper();
}

static void decode_take_states(const sa_tile *t, void *memory) {
    split_state total = decode_state(memory);
    state_clear(total, LANES);
    for (int r = 0; r < t->rows; ++r) {
        const real *from = (const real *)values_of(t, r, 0);
        real *o = total.o + r * decode_o_row(t->head_dim_v), factor = take_head(t, r, total);
        for (int64_t e = 0; e < t->head_dim_v; ++e) o[e] = from[e] * factor;
        for (int64_t e = t->head_dim_v; e < decode_o_row(t->head_dim_v); ++e) o[e] = 0;
    }
    v_zeroupper();
}

static void decode_give_states(const sa_tile *t, const void *memory) {
    const_split_state total = decode_const_state(memory);
    for (int r = 0; r < t->rows; ++r) {
        real *to = (real *)values_of(t, r, 0);
        const real *o = total.o + r * decode_o_row(t->head_dim_v);
        give_head(t, r, total);
        for (int64_t e = 0; e < t->head_dim_v; ++e) to[e] = o[e];
    }
    v_zeroupper();
}

#endif
