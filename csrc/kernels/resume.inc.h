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

#include "../kernels.h"
#include "simd.inc.h"
#include "prefill.inc.h"
#include "decode.inc.h"

/* Row r's state becomes m, l, and O at `o` and every `step` from there. */
static void take_state(const sa_tile *t, int r, split_state to, ptrdiff_t step) {
    const real *from = (const real *)t->state[r];
    real factor = (real)(t->weight_factor / (double)from[2]);
    to.row_max[r] = from[0] * (real)t->scoring.state_scale;
    to.row_sum[r] = from[1];
    for (int64_t e = 0; e < t->head_dim_v; ++e) to.o[e * step] = from[SA_STATE_HEAD + e] * factor;
}

static void give_state(const sa_tile *t, int r, const_split_state from, ptrdiff_t step) {
    real *to = (real *)t->state[r];
    to[0] = from.row_max[r];
    to[1] = from.row_sum[r];
    to[2] = (real)t->weight_factor;
    for (int64_t e = 0; e < t->head_dim_v; ++e) to[SA_STATE_HEAD + e] = from.o[e * step];
}

static void prefill_take_states(const sa_tile *t, void *memory) {
    split_state total = prefill_state(t, memory);
    int row = lane_vectors(t->rows) * LANES;
    state_clear(total, row);
    state_clear_values(total, row, t->head_dim_v);
    for (int r = 0; r < t->rows; ++r) {
        split_state of_row = total;
        of_row.o += r;
        take_state(t, r, of_row, row);
    }
    v_zeroupper();
}

static void prefill_give_states(const sa_tile *t, const void *memory) {
    const_split_state total = prefill_const_state(t, memory);
    int row = lane_vectors(t->rows) * LANES;
    for (int r = 0; r < t->rows; ++r) {
        const_split_state of_row = total;
        of_row.o += r;
        give_state(t, r, of_row, row);
    }
    v_zeroupper();
}

static void decode_take_states(const sa_tile *t, void *memory) {
    split_state total = decode_state(memory);
    state_clear(total, LANES);
    for (int r = 0; r < t->rows; ++r) {
        split_state of_row = total;
        of_row.o += r * decode_o_row(t->head_dim_v);
        take_state(t, r, of_row, 1);
        for (int64_t e = t->head_dim_v; e < decode_o_row(t->head_dim_v); ++e) of_row.o[e] = 0;
    }
    v_zeroupper();
}

static void decode_give_states(const sa_tile *t, const void *memory) {
    const_split_state total = decode_const_state(memory);
    for (int r = 0; r < t->rows; ++r) {
        const_split_state of_row = total;
        of_row.o += r * decode_o_row(t->head_dim_v);
        give_state(t, r, of_row, 1);
    }
    v_zeroupper();
}

#endif
