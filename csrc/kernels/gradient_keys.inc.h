/* The gradients of a block's keys and values; the rows of a tile add
 *
 *     dV[key][e]  += 1 / (1 - p) * sum over rows of P[key][row] * dO[row][e]         p of dropout
 *     dK[key][d]  += scale * sum over rows of dS[key][row] * Q[row][d]
 *
 * The lanes are elements of a row of dV or dK, which is read and written in place. Called by
 * backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_KEYS_INC_H
#define SA_KERNELS_GRADIENT_KEYS_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "mask.inc.h"
#include "prefill.inc.h"
#include "gradient_scratch.inc.h"

/* In partial blocks, the rows of a key_range may change at multiples of so many keys. */
enum { KEY_STEP = 16 };

/* Add n elements of each of `count` rows of a panel, times `factor`, to the rows at `to`. */
static void add_rows(const real *panel, ptrdiff_t panel_row, int count, int n, real factor,
                     char *to, ptrdiff_t row, ptrdiff_t col) {
    for (int j = 0; j < count; ++j, panel += panel_row, to += row)
        v_store_strided(to, col, n,
                        sum_scaled(v_load(panel), v_set(factor), v_load_strided(to, col, n)));
}

/* The operands of dV or dK. */
typedef struct {
    const real *weights, *rows; /* P and dO, or dS and Q */
    ptrdiff_t width;            /* elements from row to row of `rows` */
    int b_is_finite;            /* whether 0 * rows is 0 */
    int64_t length;             /* elements of a row of the gradient */
    real factor;
    char *to; /* the gradient of key `first` */
    int64_t first;
    ptrdiff_t to_row, to_col;
} key_gradient;

/* Some keys of a block, and the rows of the tile for which any of them may be visible. */
typedef struct {
    int begin, end, row_begin, row_end;
} key_range;

/* Add to the gradient of the range's keys. The last elements of a row, and elements that are not
 * contiguous, go through a panel. */
static void grad_keys(const key_gradient *d, const backward_scratch *x, int64_t block,
                      const key_range *range) {
    const ptrdiff_t size = sizeof(real);
    const int num_keys = range->end - range->begin;
    ptrdiff_t offset = range->begin * x->row + range->row_begin;
    const char *marks = (const char *)(x->marks + offset);
    char *to = d->to + (block + range->begin - d->first) * d->to_row;
    ukernel_args p = {
        .m = num_keys,
        .k = range->row_end - range->row_begin,
        .chunk = SA_CHUNK_M,
        .phase = range->row_begin % SA_CHUNK_M,
        .a = (const char *)(d->weights + offset),
        .a_row = x->row * size,
        .a_k = size,
        .b_k = d->width * size,
        .factor = d->factor,
        .sums = x->tile.sums,
    };
    int is_contiguous = d->to_col == size && d->to_row % size == 0;
    int64_t whole = is_contiguous ? d->length / LANES * LANES : 0;
    for (int64_t e = 0, n; e < d->length; e += n * LANES) {
        int in_place = e < whole;
        n = in_place ? at_most((whole - e) / LANES, NR_MAX) : 1;
        p.b = (const char *)(d->rows + range->row_begin * d->width + e);
        p.c = in_place ? (real *)(to + e * size) : x->key_rows;
        p.c_row = in_place ? d->to_row / size : LANES;
        p.kind = in_place ? SUM_SCALED : BETA_ZERO;
        d->b_is_finite ? ukernel((int)n, &p) : ukernel_masked((int)n, &p, MARKED_A, marks);
        if (!in_place)
            add_rows(x->key_rows, LANES, num_keys, at_most(d->length - e, LANES), d->factor,
                     to + e * d->to_col, d->to_row, d->to_col);
    }
}

/* Keys [begin, end) and the rows, in whole vectors, whose keys overlap them. */
static key_range rows_of_keys(const block_keys *vector_keys, int num_rows, int begin, int end) {
    int n = lane_vectors(num_rows), first = n, last = 0;
    for (int i = 0; i < n; ++i)
        if (vector_keys[i].begin < end && begin < vector_keys[i].end) {
            if (first > i) first = i;
            last = i + 1;
        }
    return (key_range){begin, end, first * LANES, at_most(num_rows, last * LANES)};
}

/* The keys from `begin` on with the same rows as the first ones, at most KEY_ROWS. */
static key_range next_key_range(const block_keys *keys, const block_keys *vector_keys, int num_rows,
                                int begin) {
    int last = end_of_step(begin, KEY_ROWS, keys->end);
    key_range range = {.end = begin};
    for (int end = begin; end < last;) {
        int from = end;
        end = end_of_step(from, KEY_STEP, last);
        key_range more = rows_of_keys(vector_keys, num_rows, from, end);
        if (from > begin && (more.row_begin != range.row_begin || more.row_end != range.row_end))
            break;
        more.begin = begin;
        range = more;
    }
    return range;
}

/* dV and dK of the block's keys; vector_keys has those of each vector of rows. */
static void grad_key_and_value(const sa_backward_tile *g, const backward_scratch *x,
                               const block_keys *keys, const block_keys *vector_keys) {
    const sa_tile *t = &g->fwd;
    const sa_scoring *scoring = &t->scoring;
    key_gradient value = {.weights = x->tile.s,
                          .rows = x->dout_rows,
                          .width = x->dout_row,
                          .b_is_finite = !is_partial(keys) || g->dout_finite,
                          .length = t->head_dim_v,
                          .factor = (real)scoring->dropout_scale,
                          .to = g->grads.value,
                          .first = g->grads.first,
                          .to_row = g->grads.value_row,
                          .to_col = g->dv_col};
    key_gradient key = {.weights = x->ds,
                        .rows = x->q_rows,
                        .width = x->q_row,
                        .b_is_finite = !is_partial(keys) || g->q_finite,
                        .length = t->head_dim,
                        .factor = to_real(scoring->q_factor * scoring->scale),
                        .to = g->grads.key,
                        .first = g->grads.first,
                        .to_row = g->grads.key_row,
                        .to_col = g->dk_col};
    key_range range;
    for (int begin = keys->begin; begin < keys->end; begin = range.end) {
        range = next_key_range(keys, vector_keys, t->rows, begin);
        if (range.row_begin >= range.row_end) continue;
        if (needs_grad(g, SA_GRADIENT_VALUE)) grad_keys(&value, x, keys->block, &range);
        if (needs_grad(g, SA_GRADIENT_KEY)) grad_keys(&key, x, keys->block, &range);
    }
}

#endif
