/* The rows of a tile of the backward pass: Q and dO, packed as panels with rows in the lanes and as
 * rows; each row's lse and D = sum over e of dO[e] * out[e]; and which rows are fully masked.
 *
 * A large lse = n m + log l keeps too few bits of l for the weights; so does one that equals the
 * sink, or -inf, which an overflow may have given. For such rows m and l are recomputed, over this
 * call's keys and bit for bit as in the forward pass. If they give just that lse, the weights come
 * from m and l. If not, the lse covers more keys (the call differentiates a piece of a longer
 * sequence), and the weights come from it all the same; unless the rows' state over all of these
 * keys is given, which has their m and l. Called by backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_ROWS_INC_H
#define SA_KERNELS_GRADIENT_ROWS_INC_H

#include <math.h>

#include "../visibility.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "prefill.inc.h"
#include "gradient_scratch.inc.h"

/* The largest lse from which weights are taken: e^(n S - lse) has a relative error of half the unit
 * in lse's last place. */
enum { MAX_LSE = SA_REAL_BITS == 32 ? 64 : 512 };

/* ------------------------------------------------------------------ Q, dO and D */

/* Copy rows, each padded with 0 to whole vectors. */
static void pack_rows(const char *const *rows, int count, ptrdiff_t col, int64_t length, real *to) {
    int64_t whole = col == ELEM_SIZE ? length / LANES * LANES : 0;
    for (int r = 0; r < count; ++r) {
        int64_t x = 0;
        for (; x < whole; x += LANES, to += LANES) v_store(to, s_load(rows[r] + x * col));
        for (; x < length; x += LANES, to += LANES)
            v_store(to, s_load_strided(rows[r] + x * col, col, at_most(length - x, LANES)));
    }
}

/* D of the rows in vector i, summed in the order of dP, so that D = dP bit for bit where a row has
 * a single visible key: `out` is that key's value then. */
static vec delta_of_rows(const sa_backward_tile *g, const backward_scratch *x, int i) {
    const sa_tile *t = &g->fwd;
    const char *rows[LANES];
    const int count = at_most(t->rows - i * LANES, LANES), chunk = sa_chunk_e(t->head_dim_v),
              length = SA_CHUNKS_OF_PART * chunk;
    vec total = v_zero(), part = v_zero();
    for (int64_t e = 0; e < t->head_dim_v; e += chunk) {
        int n = at_most(t->head_dim_v - e, chunk);
        for (int r = 0; r < count; ++r) rows[r] = t->out[i * LANES + r] + e * t->out_col;
        gather(rows, count, t->out_col, n, 1, 0, x->tile.panel, LANES);
        vec sum = v_zero();
        const real *grad = x->dout + e * x->row + i * LANES;
        for (int j = 0; j < n; ++j)
            sum = v_fma(v_load(grad + j * x->row), v_load(x->tile.panel + j * LANES), sum);
        part = e % length == 0 ? sum : v_add(part, sum);
        if ((e + n) % length == 0 || e + n == t->head_dim_v)
            total = e < length ? part : sum_scaled(part, v_set(1), total);
    }
    return total;
}

static void pack_tile(sa_backward_tile *g, void *memory, const backward_scratch *x) {
    const sa_tile *t = &g->fwd;
    prefill_begin(t, memory);
    for (int i = 0; i < x->tile.n; ++i) {
        gather(g->dout + i * LANES, at_most(t->rows - i * LANES, LANES), g->dout_col, t->head_dim_v,
               1, 0, x->dout + i * LANES, x->row);
        v_store(x->delta + i * LANES, delta_of_rows(g, x, i));
    }
    for (int r = 0; g->has_dlse && r < x->row; ++r)
        x->dlse[r] = r < t->rows ? read_real(g->dlse[r]) : 0;
    g->q_finite = g->dout_finite = 1; /* read only when dK or dV is needed */
    if (!needs_grad(g, SA_GRADIENT_KEY | SA_GRADIENT_VALUE)) return;
    pack_rows(t->q, t->rows, t->q_col, t->head_dim, x->q_rows);
    pack_rows(g->dout, t->rows, g->dout_col, t->head_dim_v, x->dout_rows);
    g->q_finite = all_finite(x->q_rows, t->rows * x->q_row);
    g->dout_finite = all_finite(x->dout_rows, t->rows * x->dout_row);
}

/* ------------------------------------------------------------------ each row's lse */

static void clear_keys(sa_tile *t, int r) { t->key_lo[r] = t->key_hi[r] = 0; }

/* Whether the row's weights can be computed from its lse. */
static int lse_is_usable(const sa_tile *t, int r, real lse) {
    return lse <= MAX_LSE && lse >= -MAX_LSE && !(t->has_sinks && lse == (real)t->sink[r]);
}

/* Load each row's lse. Returns whether any row's m and l must be recomputed. */
static int load_lse(sa_backward_tile *g, const backward_scratch *x) {
    sa_tile *t = &g->fwd;
    int any = 0;
    state_clear(x->stats, x->row);
    for (int r = 0; r < x->row; ++r) {
        x->lse[r] = (real)INFINITY; /* no weight */
        x->recomputed[r] = 0;
        if (r >= t->rows || is_fully_masked(t, r)) continue;
        x->lse[r] = read_real(t->lse[r]);
        if (x->lse[r] == -(real)INFINITY && t->scoring.in_natural_units) {
            clear_keys(t, r); /* all scores are -inf */
        } else if (!lse_is_usable(t, r, x->lse[r])) {
            x->recomputed[r] = (real)-0.0;
            any = 1;
            if (!g->state[r]) continue;
            x->stats.row_max[r] = read_real(g->state[r]);
            x->stats.row_sum[r] = read_real(g->state[r] + REAL_SIZE);
        }
    }
    sa_summarize_ranges(t, t->rows);
    return any;
}

/* Merge m and l over the keys of one split into `stats`, for the recomputed rows. */
static void backward_row_stats(const sa_backward_tile *g, void *memory, int64_t key_begin,
                               int64_t key_end) {
    backward_scratch x = backward_layout(g, memory);
    const sa_tile *t = &g->fwd;
    vec scale_log2 = scale_log2_of(&t->scoring);
    state_clear(x.split, x.row);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        block_keys keys;
        if (!find_block_keys(t, block, &keys)) continue;
        prefill_block_ranges(t, &x.tile, block);
        for (int i = 0; i < x.tile.n; ++i) {
            int at = i * LANES;
            if (!v_lane_bits(recomputed_lanes(&x, i))) continue;
            prefill_scores(t, &x.tile, &keys, i, 1, NULL);
            prefill_bias_and_mask(t, &x.tile, &keys, i);
            softmax_column(scale_log2, x.tile.s + at, x.row, keys.begin, keys.end,
                           x.split.row_max + at, x.split.row_sum + at, x.tile.rescale + at);
        }
    }
    for (int i = 0; i < x.row; i += LANES) {
        vec factor, split_factor;
        softmax_merge(scale_log2, x.stats.row_max + i, x.stats.row_sum + i, x.split.row_max + i,
                      x.split.row_sum + i, &factor, &split_factor);
    }
    v_zeroupper();
}

/* After the last split: rows that turn out to be fully masked get an empty range, and rows whose
 * given lse differs from the recomputed one take their weights from the given lse. */
static void backward_check_row_stats(sa_backward_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    sa_tile *t = &g->fwd;
    for (int i = 0; i < x.row; i += LANES) {
        real lse[LANES];
        v_store(lse, lse_of_rows(t, i, v_load(x.stats.row_max + i), v_load(x.stats.row_sum + i)));
        for (int r = i; r < i + LANES && r < t->rows; ++r) {
            if (is_fully_masked(t, r) || !signbit(x.recomputed[r])) continue;
            if (x.stats.row_sum[r] == 0)
                clear_keys(t, r);
            else if (x.lse[r] != lse[r - i] && !isnan(lse[r - i]))
                x.recomputed[r] = 0;
        }
    }
    sa_summarize_ranges(t, t->rows);
    v_zeroupper();
}

#endif
