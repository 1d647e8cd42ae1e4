/* What a tile of few rows keeps: the scratch of a block, and the state of a split. */
#ifndef SA_KERNELS_DECODE_SCRATCH_INC_H
#define SA_KERNELS_DECODE_SCRATCH_INC_H

#include "simd.inc.h"
#include "elem.inc.h"
#include "pack.inc.h"
#include "rows.inc.h"
#include "ukernel.inc.h"
#include "split_state.inc.h"

enum {
    DECODE_ROWS = LANES / 2,   /* with more rows, prefill.inc.h is faster */
    DECODE_PANEL = SA_BLOCK_N, /* rows of the panel: the keys of a block, or a part of head_dim */
    CHUNK_UNIT = SQUARE_K < 8 ? SQUARE_K : 8, /* chunks of head_dim end at multiples of it */
    DECODE_S_ROW = SA_BLOCK_N + LANES, /* elements: the last LANES keys may reach past the block */
};

typedef struct {
    real *q, *s;
    real *sums;            /* the micro-kernel's */
    real *panel;           /* of K, or of V */
    row_run *runs;         /* in which a block's rows lie, of K and then of V */
    real *rescale, *shift; /* of each row, 2^(u (m - m')) and the m' that is subtracted */
} decode_scratch;

SA_INLINE int64_t decode_o_row(int64_t head_dim_v) {
    return (head_dim_v + LANES - 1) / LANES * LANES;
}

static size_t decode_scratch_size(int rows, int64_t head_dim, int64_t head_dim_v) {
    (void)head_dim_v;
    size_t fixed = SUMS_ROOM + DECODE_ROWS * DECODE_S_ROW + DECODE_PANEL * LANES + 2 * LANES;
    return SA_BLOCK_N * sizeof(row_run) + (fixed + (size_t)rows * (size_t)head_dim) * sizeof(real);
}

static size_t decode_state_size(int rows, int64_t head_dim_v) {
    return (2 * LANES + (size_t)rows * (size_t)decode_o_row(head_dim_v)) * sizeof(real);
}

static decode_scratch decode_layout(void *memory) {
    decode_scratch x = {.runs = memory};
    x.s = (real *)(x.runs + SA_BLOCK_N);
    x.sums = x.s + DECODE_ROWS * DECODE_S_ROW;
    x.panel = x.sums + SUMS_ROOM;
    x.rescale = x.panel + DECODE_PANEL * LANES;
    x.shift = x.rescale + LANES;
    x.q = x.shift + LANES;
    return x;
}

static split_state decode_state(void *memory) {
    real *row_max = memory, *row_sum = row_max + LANES, *o = row_sum + LANES;
    return (split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

static const_split_state decode_const_state(const void *memory) {
    const real *row_max = memory, *row_sum = row_max + LANES, *o = row_sum + LANES;
    return (const_split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

#endif
