/* The scratch of a tile of the backward pass, and what the files gradient_*.inc.h share about it.
 * Called by them and by backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_SCRATCH_INC_H
#define SA_KERNELS_GRADIENT_SCRATCH_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "split_state.inc.h"
#include "prefill.inc.h"

enum { KEY_ROWS = 64 }; /* keys whose gradients are computed at a time */

typedef struct {
    prefill_scratch tile; /* Q, S and then P */
    ptrdiff_t row;
    ptrdiff_t q_row, dout_row; /* elements in a row of the packed Q and dO: whole vectors */
    real *ds;                  /* dP, and then dS, or dT with a softcap (gradient_weights.inc.h) */
    real *dcap;                /* the softcap's derivative */
    real *marks;               /* sign bit set where a key is masked, in partial blocks */
    real *dout, *dq;           /* panels like Q's */
    real *q_rows, *dout_rows;  /* Q and dO as rows */
    real *key_rows;            /* a panel of KEY_ROWS rows of dK or dV */
    real *lse, *delta;
    real *dlse;               /* only with a gradient of lse */
    real *recomputed;         /* sign bit set where P comes from `stats` instead of lse */
    split_state stats, split; /* m and l of the recomputed rows, over all keys and over a split's */
} backward_scratch;

static size_t backward_scratch_size(int rows, int64_t head_dim, int64_t head_dim_v) {
    size_t row = (size_t)whole_vectors(rows);
    size_t q = (size_t)whole_vectors(head_dim), v = (size_t)whole_vectors(head_dim_v);
    size_t panels = 3 * SA_BLOCK_N + (size_t)head_dim_v + (size_t)head_dim + 8;
    size_t elements = panels * row + (size_t)rows * (q + v) + KEY_ROWS * LANES;
    return prefill_scratch_size(rows, head_dim, head_dim_v) + elements * sizeof(real);
}

static backward_scratch backward_layout(const sa_backward_tile *g, void *memory) {
    const sa_tile *t = &g->fwd;
    backward_scratch x = {.tile = prefill_layout(t, memory),
                          .row = whole_vectors(t->rows),
                          .q_row = whole_vectors(t->head_dim),
                          .dout_row = whole_vectors(t->head_dim_v)};
    size_t of_tile = prefill_scratch_size(t->rows, t->head_dim, t->head_dim_v);
    x.ds = (real *)((char *)memory + of_tile);
    x.dcap = x.ds + SA_BLOCK_N * x.row;
    x.marks = x.dcap + SA_BLOCK_N * x.row;
    x.dout = x.marks + SA_BLOCK_N * x.row;
    x.dq = x.dout + t->head_dim_v * x.row;
    x.lse = x.dq + t->head_dim * x.row;
    x.delta = x.lse + x.row;
    x.dlse = x.delta + x.row;
    x.recomputed = x.dlse + x.row;
    x.stats.row_max = x.recomputed + x.row;
    x.stats.row_sum = x.stats.row_max + x.row;
    x.split.row_max = x.stats.row_sum + x.row;
    x.split.row_sum = x.split.row_max + x.row;
    x.q_rows = x.split.row_sum + x.row;
    x.dout_rows = x.q_rows + t->rows * x.q_row;
    x.key_rows = x.dout_rows + t->rows * x.dout_row;
    return x;
}

/* Whether any of `gradients`, sa_gradient's joined by |, is needed. */
SA_INLINE int needs_grad(const sa_backward_tile *g, int gradients) {
    return (g->needs_grad & gradients) != 0;
}

SA_INLINE int is_fully_masked(const sa_tile *t, int r) { return t->key_lo[r] == t->key_hi[r]; }

/* The lanes of vector i whose P comes from `stats` instead of lse. */
SA_INLINE vmask recomputed_lanes(const backward_scratch *x, int i) {
    return v_negative(v_load(x->recomputed + i * LANES));
}

/* The end of a step from `begin` on: the next multiple of `length`, or `end` before it. */
SA_INLINE int end_of_step(int begin, int length, int end) {
    int next = begin - begin % length + length;
    return next < end ? next : end;
}

#endif
