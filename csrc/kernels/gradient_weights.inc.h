/* A tile's weights for the keys of a block, and their gradients:
 *
 *     P[key][lane]   = e^(n S - lse)                               0 where masked
 *     dP[key][lane]  = sum over e of V[key, e] * dO[e][lane]
 *     dS[key][lane]  = P * (dP - D + dlse)                         0 where masked
 *
 * where dlse is the gradient of lse, if one is given. With a softcap, dT = dS * (1 - tanh^2)
 * replaces dS, except in the mask's gradient. With dropout, dropped elements of dP are 0 and the
 * others are divided by the kept fraction; dropped elements of P are 0 once dS is computed. In
 * partial blocks `marks` has the sign bit set where a key is masked. Called by backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_WEIGHTS_INC_H
#define SA_KERNELS_GRADIENT_WEIGHTS_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "prefetch.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "dropout.inc.h"
#include "prefill.inc.h"
#include "gradient_scratch.inc.h"
#include "gradient_rows.inc.h"

/* The most visible keys of a block that are few: weights_of_few. */
enum { FEW_KEYS = 16 };

/* dP of vectors [first, first + n). */
static void grad_weights(const sa_backward_tile *g, const backward_scratch *x,
                         const block_keys *keys, int first, int n, prefetch_queue *prefetch) {
    const sa_tile *t = &g->fwd;
    ukernel_args p = {
        .m = keys->end - keys->begin,
        .k = t->head_dim_v,
        .chunk = sa_chunk_e(t->head_dim_v),
        .part = sa_part_e(t->head_dim_v),
        .b = (const char *)(x->dout + first * LANES),
        .b_k = x->row * REAL_SIZE,
        .c = x->ds + keys->begin * x->row + first * LANES,
        .c_row = x->row,
        .sums = x->tile.sums,
        .prefetch = prefetch,
    };
    key_product(n, &p, &t->v, keys->block + keys->begin, x->tile.piece);
}

/* The marks of vector i. To be called after prefill_bias_and_mask, which leaves B in the panel. */
static void mark_masked(const backward_scratch *x, const block_keys *keys, int i) {
    vec lo = v_load(x->tile.lo + i * LANES), hi = v_load(x->tile.hi + i * LANES);
    vec masked = v_set((real)-0.0);
    real *mark = x->marks + keys->begin * x->row + i * LANES;
    for (int j = keys->begin; j < keys->end; ++j, mark += x->row) {
        vec m = v_zero();
        if (keys->mask_class == SA_PARTIAL)
            m = with_mask_bias(m, v_load(x->tile.panel + j * LANES), 0, masked);
        v_store(mark, in_range(m, lo, v_set((real)j), hi, masked));
    }
}

/* Set P = dS = 0 and the marks of keys [begin, end) of vector i. */
static void clear_masked(const backward_scratch *x, int begin, int end, int i) {
    ptrdiff_t at = begin * x->row + i * LANES;
    for (int j = begin; j < end; ++j, at += x->row) {
        v_store(x->tile.s + at, v_zero());
        v_store(x->ds + at, v_zero());
        v_store(x->marks + at, v_set((real)-0.0));
    }
}

/* What the weights of a vector of rows are computed from. */
typedef struct {
    vec scale_ln, lse;
    /* For the recomputed rows, if there are any. */
    int any_recomputed;
    vmask recomputed;
    vec max;
    vec scale_log2;
    row_epilogue end;
    /* With dropout. */
    uvec drop_low, drop_high, dropout_threshold;
    vec dropout_scale;
} row_weights;

static row_weights weights_of_rows(const sa_tile *t, const backward_scratch *x, int i) {
    const sa_scoring *scoring = &t->scoring;
    int at = i * LANES;
    row_weights w = {.scale_ln = v_set(to_real(scoring->scale_ln)), .lse = v_load(x->lse + at)};
    w.recomputed = recomputed_lanes(x, i);
    w.any_recomputed = v_lane_bits(w.recomputed) != 0;
    if (w.any_recomputed) {
        vec max = v_load(x->stats.row_max + at);
        w.scale_log2 = scale_log2_of(scoring);
        w.end = epilogue_of_rows(t, at, max, v_load(x->stats.row_sum + at));
        w.max = finite_max(max);
    }
    if (scoring->has_dropout) {
        w.drop_low = u_load(t->drop_low + at);
        w.drop_high = u_load(t->drop_high + at);
        w.dropout_threshold = u_set(scoring->dropout_threshold);
        w.dropout_scale = v_set((real)scoring->dropout_scale);
    }
    return w;
}

/* P of the scores s. */
SA_INLINE vec weights_of_scores(const int any_recomputed, const row_weights *w, vec s) {
    vec p = v_exp(v_fms(s, w->scale_ln, w->lse));
    if (!any_recomputed) return p;
    vec recomputed = softmax_scaled(weight(v_sub(s, w->max), w->scale_log2), w->end);
    return v_select(w->recomputed, recomputed, p);
}

/* Apply dropout to P and dP, by multiplication: a dropped NaN or inf stays NaN. */
SA_INLINE void drop(const row_weights *w, int64_t key, vec *p, vec *dp) {
    vmask keep = kept(w->drop_low, w->drop_high, u_set((uint32_t)key), w->dropout_threshold);
    *p = v_mul(*p, v_select(keep, v_set(1), v_zero()));
    *dp = v_mul(*dp, v_select(keep, w->dropout_scale, v_zero()));
}

SA_INLINE vec unless_masked(vec mark, vec x) { return v_select(v_negative(mark), v_zero(), x); }

SA_INLINE int has_few(const block_keys *keys) { return keys->end - keys->begin <= FEW_KEYS; }

/* How many of the block's keys are visible to each row of vector i. */
static vec count_visible(const backward_scratch *x, const block_keys *keys, int i) {
    vec visible = v_set((real)(keys->end - keys->begin));
    if (!is_partial(keys)) return visible;
    ptrdiff_t at = keys->begin * x->row + i * LANES;
    visible = v_zero();
    for (int j = keys->begin; j < keys->end; ++j, at += x->row)
        visible = v_add(visible, unless_masked(v_load(x->marks + at), v_set(1)));
    return visible;
}

/* Which rows of vector i see between 1 and FEW_KEYS keys of the block. */
static vmask see_few(const backward_scratch *x, const block_keys *keys, int i) {
    vec visible = count_visible(x, keys, i);
    return v_both(v_lt(v_zero(), visible), v_le(visible, v_set(FEW_KEYS)));
}

SA_INLINE vec absolute(vec x) { return v_max(x, v_sub(v_zero(), x)); }

/* Which rows' weights add up to 1, but for the roundings of the sum and of lse. They are not asked
 * where their ranges end: a mask that says the same must give the same bits. */
static vmask are_whole(const row_weights *w, vec sum) {
    vec of_sum = v_set(8 * REAL_EPSILON), lse = absolute(w->lse);
    vec of_both = v_fma(lse, v_set(REAL_EPSILON / 2), of_sum);
    return v_le(absolute(v_sub(sum, v_set(1))),
                v_select(v_le(lse, v_set(MAX_LSE)), of_both, of_sum));
}

/* Vector i: S becomes P. Returns D of its rows.
 *
 * Of rows that see few keys, dP - D is a small difference. With D of `out`, it is dominated by the
 * roundings of `out` and of the two sums over e; with D the sum of P dP, by that of lse, by which
 * all P of the row are too large or too small alike, and D with them. So where the few keys have
 * all of the row's weight, neither another block nor another call that lse covers any, P is divided
 * by its sum and D is the sum of P dP: its roundings are dP's own, which cancel. Of a row with a
 * single key, D is dP. */
static vec weights_of_few(const sa_tile *t, const backward_scratch *x, const row_weights *w,
                          const block_keys *keys, vmask few, int i) {
    ptrdiff_t begin = keys->begin * x->row + i * LANES, at = begin;
    vec sum = v_zero();
    if (t->has_sinks) sum = v_exp(v_sub(sinks_of_rows(t, i * LANES), w->lse));
    for (int j = keys->begin; j < keys->end; ++j, at += x->row) {
        vec p = weights_of_scores(w->any_recomputed, w, v_load(x->tile.s + at));
        if (is_partial(keys)) p = unless_masked(v_load(x->marks + at), p);
        v_store(x->tile.s + at, p);
        sum = v_add(sum, p);
    }
    vmask is_whole = v_both(few, are_whole(w, sum));
    vec divisor = v_select(is_whole, sum, v_set(1));
    if (t->has_sinks && w->any_recomputed) /* the sink's share is that of a rounded lse */
        divisor = v_select(w->recomputed, v_set(1), divisor);
    vec delta = v_zero();
    at = begin;
    for (int j = keys->begin; j < keys->end; ++j, at += x->row) {
        vec p = v_div(v_load(x->tile.s + at), divisor), kept_p = p, dp = v_load(x->ds + at);
        if (t->scoring.has_dropout) drop(w, keys->block + j, &kept_p, &dp);
        if (is_partial(keys)) dp = unless_masked(v_load(x->marks + at), dp);
        v_store(x->tile.s + at, p);
        delta = v_fma(p, dp, delta);
    }
    return v_select(is_whole, delta, v_load(x->delta + i * LANES));
}

/* Vector i: S and dP become P and dS. Constants: `fast_path`, no mask, softcap, dropout, gradient
 * of lse, recomputed row or row with few keys; `has_weights`, S is P already. */
SA_INLINE void weights_column(const int fast_path, const int has_weights, const sa_backward_tile *g,
                              const backward_scratch *x, const row_weights *w,
                              const block_keys *keys, int has_dcap, vec delta, int i) {
    const sa_tile *t = &g->fwd;
    int masks = !fast_path && is_partial(keys), drops = !fast_path && t->scoring.has_dropout;
    ptrdiff_t at = keys->begin * x->row + i * LANES;
    for (int j = keys->begin; j < keys->end; ++j, at += x->row) {
        vec p = v_load(x->tile.s + at), dp = v_load(x->ds + at);
        if (!has_weights) p = weights_of_scores(!fast_path && w->any_recomputed, w, p);
        if (masks) p = unless_masked(v_load(x->marks + at), p);
        vec kept_p = p;
        if (drops) drop(w, keys->block + j, &kept_p, &dp);
        vec difference = v_sub(dp, delta);
        if (!fast_path && g->has_dlse) difference = v_add(difference, v_load(x->dlse + i * LANES));
        vec ds = v_mul(p, difference);
        if (!fast_path && has_dcap) ds = v_mul(ds, v_load(x->dcap + at));
        if (masks) ds = unless_masked(v_load(x->marks + at), ds);
        v_store(x->tile.s + at, kept_p);
        v_store(x->ds + at, ds);
    }
}

SA_APART static void few_column(const sa_backward_tile *g, const backward_scratch *x,
                                const row_weights *w, const block_keys *keys, int has_dcap,
                                vmask few, int i) {
    vec delta = weights_of_few(&g->fwd, x, w, keys, few, i);
    weights_column(0, 1, g, x, w, keys, has_dcap, delta, i);
}

/* A function of its own: inlined where much else is live, gcc 12 keeps the loop's count in a vector
 * register, which costs the backward pass 5 to 8 %. */
SA_APART static void weights_of_vector(const sa_backward_tile *g, const backward_scratch *x,
                                       const block_keys *keys, int i) {
    const sa_tile *t = &g->fwd;
    int has_dcap = t->scoring.softcap > 0 && !needs_grad(g, SA_GRADIENT_MASK);
    prefill_bias_and_mask_dcap(t, &x->tile, keys, has_dcap ? x->dcap : NULL, i);
    if (is_partial(keys)) mark_masked(x, keys, i);
    row_weights w = weights_of_rows(t, x, i);
    if (is_partial(keys) || has_few(keys)) {
        vmask few = see_few(x, keys, i);
        if (v_lane_bits(few)) {
            few_column(g, x, &w, keys, has_dcap, few, i);
            return;
        }
    }
    vec delta = v_load(x->delta + i * LANES);
    if (is_partial(keys) || has_dcap || t->scoring.has_dropout || w.any_recomputed || g->has_dlse)
        weights_column(0, 0, g, x, &w, keys, has_dcap, delta, i);
    else
        weights_column(1, 0, g, x, &w, keys, 0, delta, i);
}

#endif
