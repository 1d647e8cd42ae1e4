/* Everything of one kernel set and dtype, and its table: included once by each file of csrc/isa,
 * after the set's simd header. All but the table is static: a function compiled for one instruction
 * set must never be linked into another. */

#include <math.h>

#include "../kernels.h"
#include "../mask.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "ahead.inc.h"
#include "product.inc.h"
#include "softmax.inc.h"
#include "partial.inc.h"
#include "scatter.inc.h"
#include "mask.inc.h"
#include "dropout.inc.h"
#include "bias.inc.h"
#include "tile.inc.h"
#include "few.inc.h"
#include "scores.inc.h"
#include "project.inc.h"
#include "few_project.inc.h"
#include "backward.inc.h"
#include "merge.inc.h"
#include "softmax_row.inc.h"
#include "turn.inc.h"

static int is_finite(const char *x, ptrdiff_t col, int64_t n) {
    int finite = all_finite(x, 0, col, 1, n);
    v_leave();
    return finite;
}

/* y[i] = f_of_x, an expression in x, which is a vector of the array's elements. */
#define APPLY(f_of_x)                        \
    for (int64_t i = 0; i < n; i += LANES) { \
        int width = at_most(n - i, LANES);   \
        vec x = v_load_n(from + i, width);   \
        v_store_n(to + i, f_of_x, width);    \
    }

static void apply(sa_function f, double unit, const void *array, void *result, int64_t n) {
    const real *from = array;
    real *to = result;
    switch (f) {
        case SA_EXP2_SCALED: APPLY(v_exp2_scaled(x, v_set((real)unit))) break;
        case SA_EXP_OF_NEGATIVE: APPLY(v_exp_of_negative(x)) break;
        case SA_EXP: APPLY(v_exp(x)) break;
        case SA_LOG: APPLY(v_log(x)) break;
        case SA_TANH: APPLY(v_tanh(x)) break;
    }
    v_leave();
}

_Static_assert(MAX_N == 3 || MAX_N == 4, "product.inc.h has products of these widths");
_Static_assert(TILE_N <= MAX_N && MAX_N * LANES <= SA_MAX_TILE_M, "a tile's rows fit its arrays");
_Static_assert(SA_GRADIENT_TILE_M % LANES == 0, "a tile of the backward pass is whole vectors");
_Static_assert(MASK_KEYS % LANES == 0, "its sums are cut alike by all sets");
_Static_assert(STRIP_M(1) * LANES <= SUMS_ROOM && 2 * STRIP_M(2) * LANES <= SUMS_ROOM &&
                   3 * STRIP_M(3) * LANES <= SUMS_ROOM &&
                   (MAX_N < 4 || 4 * STRIP_M(4) * LANES <= SUMS_ROOM),
               "a strip's sums fit their room");
_Static_assert(CHAINS % LANES == 0, "a row's chains are whole vectors");
_Static_assert(sizeof(softmax_state) <= sizeof(sa_softmax_state), "the loops hold the state");

/* Another set's kernel for a few rows, where the file of csrc/isa names one that is faster. */
#ifdef SA_FEW_BY_ROWS_OF
extern const sa_kernels SA_FEW_BY_ROWS_OF;
#else
#define SA_FEW_BY_ROWS_OF SA_TABLE
#endif

#define FEW_PROJECT(multiply_by)               \
    {.lanes = FEW_PROJECT_ROWS,                \
     .step = FEW_COLUMNS,                      \
     .block = few_project_block,               \
     .scratch_size = few_project_scratch_size, \
     .load = few_project_load,                 \
     .multiply = multiply_by,                  \
     .finish = few_project_finish}

/* The loops, and whoever called them, use no more than the lowest part of a vector's register,
 * which is slow while there is something in the rest. So whatever is called through the table
 * clears that in the end (v_leave). Compilers do so by themselves, but gcc 12 takes a function that
 * was given a vector, and returns none, to have cleared it. tests/test_registers.py. */
const sa_kernels SA_TABLE = {
    .lanes = LANES,
    .tile = {.rows = TILE_N * LANES,
             .max_rows = MAX_N * LANES,
             .scratch_size = tile_scratch_size,
             .partial_size = tile_partial_size,
             .begin = tile_begin,
             .split = tile_split,
             .merge = tile_merge,
             .finish = tile_finish},
    .few = {.rows = FEW_ROWS,
            .max_rows = FEW_ROWS,
            .scratch_size = few_scratch_size,
            .partial_size = few_partial_size,
            .begin = few_begin,
            .split = few_split,
            .merge = few_merge,
            .finish = few_finish},
    .project = {.lanes = SA_PROJECT_LANES * 4 / (int)sizeof(real),
                .step = PROJECT_STEP,
                .block = project_block,
                .scratch_size = project_scratch_size,
                .load = project_load,
                .multiply = project_multiply,
                .finish = project_finish},
    .few_by_rows = FEW_PROJECT(multiply_rows_of_w),
    .few_by_columns = FEW_PROJECT(multiply_columns_of_w),
    .few_by_rows_of = &SA_FEW_BY_ROWS_OF,
    .backward = {.scratch_size = backward_scratch_size,
                 .clear = backward_clear,
                 .begin = backward_begin,
                 .count = backward_count,
                 .counted = backward_counted,
                 .split = backward_split,
                 .finish = backward_finish,
                 .sinks = backward_sinks},
    .scores = scores_split,
    .weights = weights_split,
    .sum_begin = sum_begin,
    .sum = sum_split,
    .sum_finish = sum_finish,
    .softmax_row = softmax_row,
    .softmax_part = softmax_part,
    .merge_row = merge_row,
    .is_finite = is_finite,
    .turn_row = turn_row,
    .apply = apply,
};
