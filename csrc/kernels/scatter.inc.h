/* Unpacking: a panel of whole vectors becomes rows of elements, of any strides, by transposes in
 * registers.
 *
 *     scatter           rows[r][x] = panel[x][r]
 *     scatter_scaled    rows[r][x] = panel[x][r] * factor[r]     factor: split_state.inc.h
 *
 * The inverse of gather in pack.inc.h. Called by the kernels whose lanes are rows. */
#ifndef SA_KERNELS_SCATTER_INC_H
#define SA_KERNELS_SCATTER_INC_H

#include "simd.inc.h"
#include "pack.inc.h"
#include "split_state.inc.h"

SA_INLINE vec finished(const real *panel, const row_epilogue *end) {
    return end ? softmax_scaled(v_load(panel), *end) : v_load(panel);
}

/* Prefetch into L1 the lines to be written: a store that misses L1 blocks the stores after it. */
SA_INLINE void prefetch_column(char *const *rows, int count, ptrdiff_t offset) {
    for (int r = 0; r < count; ++r) SA_PREFETCH_NEAREST(rows[r] + offset);
}

SA_INLINE void scatter_rows(char *const *rows, int count, ptrdiff_t col, int64_t length,
                            const real *panel, ptrdiff_t panel_row, const row_epilogue *end) {
    prefetch_column(rows, count, 0);
    for (int64_t x = 0; x < length; x += LANES, panel += LANES * panel_row) {
        int width = at_most(length - x, LANES);
        vec square[LANES];
        if (width == LANES) {
            SA_UNROLL
            for (int i = 0; i < LANES; ++i) square[i] = finished(panel + i * panel_row, end);
        } else {
            for (int i = 0; i < LANES; ++i)
                square[i] = i < width ? finished(panel + i * panel_row, end) : v_zero();
        }
        if (x + LANES < length) prefetch_column(rows, count, (x + LANES) * col);
        v_transpose(square);
        if (width == LANES && count == LANES && col == ELEM_SIZE) {
            SA_UNROLL
            for (int r = 0; r < LANES; ++r) s_store(rows[r] + x * col, square[r]);
            continue;
        }
        for (int r = 0; r < count; ++r) s_store_strided(rows[r] + x * col, col, width, square[r]);
    }
}

/* Elements [0, length) of `count` rows. */
static void scatter(char *const *rows, int count, ptrdiff_t col, int64_t length, const real *panel,
                    ptrdiff_t panel_row) {
    scatter_rows(rows, count, col, length, panel, panel_row, NULL);
}

static void scatter_scaled(char *const *rows, int count, ptrdiff_t col, int64_t length,
                           const real *panel, ptrdiff_t panel_row, const row_epilogue *end) {
    scatter_rows(rows, count, col, length, panel, panel_row, end);
}

#endif
