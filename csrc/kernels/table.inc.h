/* The kernels of one set and dtype, and their table: included by instance.c after the set's simd
 * header. All but the table is static: a function compiled for one instruction set must never be
 * linked into another. */

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "elem.inc.h"
#include "pack.inc.h"
#include "keys.inc.h"
#include "ukernel.inc.h"
#include "prefill.inc.h"
#include "decode.inc.h"
#include "resume.inc.h"
#include "scores.inc.h"
#include "project.inc.h"
#include "project_gemv.inc.h"
#include "backward.inc.h"
#include "softmax_row.inc.h"
#include "merge.inc.h"
#include "rope.inc.h"
#include "peak.inc.h"

/* sa_<isa>_<dtype> */
#define SA_JOIN(isa, dtype) sa_##isa##_##dtype
#define SA_TABLE_OF(isa, dtype) SA_JOIN(isa, dtype)

static int is_finite(const char *x, ptrdiff_t col, int64_t n) {
    int finite = rows_finite(x, 0, 0, col, 1, n);
    v_zeroupper();
    return finite;
}

static void stage(const sa_key_rows *x, int64_t begin, int64_t end, int64_t length, char *to) {
    stage_key_rows(x, begin, end, length, (real *)to);
    v_zeroupper();
}

static void unstage(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t length,
                    const char *from) {
    unstage_rows(to, row, col, rows, length, (const real *)from);
    v_zeroupper();
}

/* Compiled to be small: tests alone call it. */
#if defined(__GNUC__)
#define COLD __attribute__((cold))
#else
#define COLD
#endif

/* to[i] = f_of_x, an expression in the vector x of elements from[i]. */
#define APPLY(f_of_x)                        \
    for (int64_t i = 0; i < n; i += LANES) { \
        int width = at_most(n - i, LANES);   \
        vec x = v_load_n(from + i, width);   \
        v_store_n(to + i, f_of_x, width);    \
    }

COLD static void apply(sa_function f, double scale, const void *array, void *result, int64_t n) {
    const real *from = array;
    real *to = result;
    switch (f) {
        case SA_EXP2_SCALED: APPLY(v_exp2_scaled(x, v_set((real)scale))) break;
        case SA_EXP_OF_NEGATIVE: APPLY(v_exp_of_negative(x)) break;
        case SA_EXP: APPLY(v_exp(x)) break;
        case SA_LOG: APPLY(v_log(x)) break;
        case SA_TANH: APPLY(v_tanh(x)) break;
    }
    v_zeroupper();
}

_Static_assert(NR_MAX == 3 || NR_MAX == 4, "ukernel.inc.h has products of these widths");
_Static_assert(NR_BEST <= NR_MAX && NR_MAX * LANES <= SA_MAX_TILE_M,
               "a tile's rows fit its arrays");
_Static_assert(SA_GRADIENT_TILE_M % LANES == 0, "a tile of the backward pass is whole vectors");
_Static_assert(MASK_KEYS % LANES == 0, "its sums are cut alike by all sets");
_Static_assert(MR(1) * LANES <= SUMS_ROOM && 2 * MR(2) * LANES <= SUMS_ROOM &&
                   3 * MR(3) * LANES <= SUMS_ROOM && (NR_MAX < 4 || 4 * MR(4) * LANES <= SUMS_ROOM),
               "a strip's sums fit their room");
_Static_assert(CHAINS % LANES == 0, "a row's chains are whole vectors");
_Static_assert(sizeof(softmax_state) <= sizeof(sa_softmax_state), "the loops hold the state");

/* The set whose gemv_by_rows is used: this one, unless its simd header names a faster one. */
#ifndef SA_GEMV_BY_ROWS_ISA
#define SA_GEMV_BY_ROWS_ISA SA_ISA
#endif
extern const sa_kernels SA_TABLE_OF(SA_GEMV_BY_ROWS_ISA, SA_DTYPE_NAME);

#define GEMV_KERNEL(multiply_by)        \
    {.lanes = GEMV_ROWS,                \
     .step = GEMV_COLUMNS,              \
     .block = gemv_block,               \
     .scratch_size = gemv_scratch_size, \
     .load = gemv_load,                 \
     .multiply = multiply_by,           \
     .finish = gemv_finish}

/* Code that uses only the low 128 bits of vector registers, as the loops and their callers do, is
 * slow while the upper bits are in use. So each function of the table ends by clearing them
 * (v_zeroupper). Compilers add that by themselves, except that gcc 12 takes a callee which has a
 * vector parameter and returns no vector to have done it. Held by tests/runtime/test_registers.py.
 */
const sa_kernels SA_TABLE_OF(SA_ISA, SA_DTYPE_NAME) = {
    .lanes = LANES,
    .rows = NR_BEST * LANES,
    .prefill = {.max_rows = NR_MAX * LANES,
                .scratch_size = prefill_scratch_size,
                .state_size = prefill_state_size,
                .begin = prefill_begin,
                .split = prefill_split,
                .merge = prefill_merge,
                .finish = prefill_finish,
                .take_states = prefill_take_states,
                .give_states = prefill_give_states},
    .decode = {.max_rows = DECODE_ROWS,
               .scratch_size = decode_scratch_size,
               .state_size = decode_state_size,
               .begin = decode_begin,
               .split = decode_split,
               .merge = decode_merge,
               .finish = decode_finish,
               .take_states = decode_take_states,
               .give_states = decode_give_states},
    .project = {.lanes = SA_PROJECT_LANES * 4 / REAL_SIZE,
                .step = PROJECT_STEP,
                .block = project_block,
                .scratch_size = project_scratch_size,
                .load = project_load,
                .multiply = project_multiply,
                .finish = project_finish},
    .gemv_by_rows = GEMV_KERNEL(gemv_multiply_rows),
    .gemv_by_columns = GEMV_KERNEL(gemv_multiply_columns),
    .gemv_by_rows_of = &SA_TABLE_OF(SA_GEMV_BY_ROWS_ISA, SA_DTYPE_NAME),
    .backward = {.scratch_size = backward_scratch_size,
                 .clear = backward_clear,
                 .begin = backward_begin,
                 .row_stats = backward_row_stats,
                 .check_row_stats = backward_check_row_stats,
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
    .merge_scratch_size = merge_scratch_size,
    .merge_row = merge_row,
    .merge_backward_row = merge_backward_row,
    .is_finite = is_finite,
    .stage_rows = stage,
    .unstage_rows = unstage,
    .rope_row = rope_row,
    .apply = apply,
    .peak = peak,
    .peak_flops = 2 * PEAK_CHAINS * LANES,
};
