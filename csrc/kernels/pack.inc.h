/* Packing: rows of elements, of any strides, become a panel of whole vectors of reals, by
 * transposes in registers.
 *
 *     gather    panel[x][r] = factor * rows[r][x]     a lane is a row: queries, keys, weights
 *
 * scatter.inc.h is the inverse. No byte outside the arrays' elements is read; lanes past the last
 * row are 0. */
#ifndef SA_KERNELS_PACK_INC_H
#define SA_KERNELS_PACK_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "elem.inc.h"
#include "rows.inc.h"

SA_INLINE int64_t whole_vectors(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

SA_INLINE int at_most(int64_t n, int most) { return n < most ? (int)n : most; }

/* Rows that a transposed square is multiplied by at a time: it, their sums and the sums of their
 * chunks fit the registers; and columns of a square of elements. Used by decode_scores.inc.h and
 * project_gemv.inc.h. */
enum { SQUARE_ROWS = 4, SQUARE_K = LANES * PER_LANE };

/* Load the LANES × LANES square at `offset` of LANES rows. Unless it is 0, the address
 * `prefetch_offset` bytes past each element is prefetched. */
SA_INLINE void load_square(const char *const *rows, ptrdiff_t offset, uintptr_t prefetch_offset,
                           vec square[LANES]) {
    SA_UNROLL
    for (int r = 0; r < LANES; ++r) {
        square[r] = s_load(rows[r] + offset);
        if (prefetch_offset) SA_PREFETCH_NEAREST((uintptr_t)(rows[r] + offset) + prefetch_offset);
    }
}

/* The same of lanes as they are, each of PER_LANE elements: the vectors at `offset` of LANES rows.
 */
SA_INLINE void load_square_of_lanes(const char *const *rows, ptrdiff_t offset,
                                    uintptr_t prefetch_offset, vec square[LANES]) {
    SA_UNROLL
    for (int r = 0; r < LANES; ++r) {
        square[r] = v_load(rows[r] + offset);
        if (offset % CACHE_LINE == 0)
            SA_PREFETCH_NEAREST((uintptr_t)(rows[r] + offset) + prefetch_offset);
    }
}

/* Transpose one LANES × LANES square of `rows`, times `factor`, into LANES rows of the panel. */
SA_INLINE void gather_square(const char *const *rows, ptrdiff_t offset, vec factor,
                             uintptr_t prefetch_offset, real *panel, ptrdiff_t panel_row) {
    vec square[LANES];
    load_square(rows, offset, prefetch_offset, square);
    SA_UNROLL
    for (int r = 0; r < LANES; ++r) square[r] = v_mul(factor, square[r]);
    v_transpose(square);
    SA_UNROLL
    for (int i = 0; i < LANES; ++i) v_store(panel + i * panel_row, square[i]);
}

/* gather_square for a partial square, or for strided elements. */
static void gather_part(const char *const *rows, int count, ptrdiff_t col, int width,
                        ptrdiff_t offset, vec factor, real *panel, ptrdiff_t panel_row) {
    vec square[LANES];
    for (int r = 0; r < LANES; ++r) square[r] = v_zero();
    for (int r = 0; r < count; ++r)
        square[r] = v_mul(factor, s_load_strided(rows[r] + offset, col, width));
    v_transpose(square);
    for (int i = 0; i < width; ++i) v_store(panel + i * panel_row, square[i]);
}

/* One vector of lanes: elements [0, length) of `count` rows -> panel[x * panel_row + lane]. */
static void gather(const char *const *rows, int count, ptrdiff_t col, int64_t length, real factor,
                   uintptr_t prefetch_offset, real *panel, ptrdiff_t panel_row) {
    vec scale = v_set(factor);
    int64_t x = 0;
    if (count == LANES && col == ELEM_SIZE)
        for (; x + LANES <= length; x += LANES, panel += LANES * panel_row)
            gather_square(rows, x * col, scale, prefetch_offset, panel, panel_row);
    for (; x < length; x += LANES, panel += LANES * panel_row)
        gather_part(rows, count, col, at_most(length - x, LANES), x * col, scale, panel, panel_row);
}

/* Whether all rows × cols numbers are finite, elements if `stored`, a constant, or else reals: x ·
 * 0 is NaN iff x is not finite, and NaN is sticky under +. Several independent sums hide the
 * latency of the additions. */
SA_INLINE int all_finite_of(const int stored, const char *p, ptrdiff_t row, ptrdiff_t col,
                            int64_t rows, int64_t cols) {
    enum { SUMS = 8 };
    const ptrdiff_t size = stored ? ELEM_SIZE : REAL_SIZE;
    vec sum[SUMS];
    if (row == cols * size && col == size) cols *= rows, rows = 1; /* one long row */
    for (int i = 0; i < SUMS; ++i) sum[i] = v_zero();
    int64_t whole = col == size ? cols / (SUMS * LANES) * (SUMS * LANES) : 0;
    for (int64_t r = 0; r < rows; ++r, p += row) {
        for (int64_t c = 0; c < whole; c += SUMS * LANES) {
            SA_UNROLL
            for (int i = 0; i < SUMS; ++i) {
                const char *at = p + (c + i * LANES) * size;
                sum[i] = v_fma(stored ? s_load(at) : v_load(at), v_zero(), sum[i]);
            }
        }
        for (int64_t c = whole; c < cols; c += LANES) {
            int width = at_most(cols - c, LANES);
            const char *at = p + c * col;
            vec x = stored ? s_load_strided(at, col, width) : v_load_strided(at, col, width);
            sum[c / LANES % SUMS] = v_fma(x, v_zero(), sum[c / LANES % SUMS]);
        }
    }
    for (int i = 1; i < SUMS; ++i) sum[0] = v_add(sum[0], sum[i]);
    return v_lane_bits(v_eq(sum[0], v_zero())) == (1u << LANES) - 1;
}

/* Of contiguous reals. */
static int all_finite(const real *x, int64_t n) {
    return all_finite_of(0, (const char *)x, 0, REAL_SIZE, 1, n);
}

/* Of rows of elements, or, if they are staged, of reals. */
static int rows_finite(const char *x, int are_staged, ptrdiff_t row, ptrdiff_t col, int64_t rows,
                       int64_t cols) {
    return ELEM_IS_REAL || are_staged ? all_finite_of(0, x, row, col, rows, cols)
                                      : all_finite_of(1, x, row, col, rows, cols);
}

/* Whether rows [begin, end) of x are all finite. `known` caches the answer: the tiles of a head ask
 * for the same rows. */
static int known_finite(sa_finite *known, const sa_key_rows *x, int64_t begin, int64_t end,
                        int64_t cols) {
    if (known->x == x->at && known->begin <= begin && end <= known->end) return 1;
    if (!rows_finite(x->at + begin * x->row, x->is_staged, x->row, x->col, end - begin, cols))
        return 0;
    int touches = known->x == x->at && known->begin <= end && begin <= known->end;
    if (!touches) *known = (sa_finite){x->at, begin, end};
    if (begin < known->begin) known->begin = begin;
    if (end > known->end) known->end = end;
    return 1;
}

/* The same of a tile's values. Pages, and what is in a block's room, are looked at each time: an
 * address does not tell which rows these are. Caches hold no int8 that stands for anything else. */
static int values_finite(const sa_tile *t, const sa_key_rows *v, int64_t begin, int64_t end) {
    if (v->scale) return 1;
    if (v == &t->v && !v->pages) return known_finite(t->finite, v, begin, end, t->head_dim_v);
    row_cursor c = cursor_at(v, begin, end);
    for (int64_t n; begin < end; begin += n, cursor_add(&c, n)) {
        n = cursor_run(&c, end - begin);
        if (!rows_finite(cursor_row(&c), 0, v->row, v->col, n, t->head_dim_v)) return 0;
    }
    return 1;
}

#endif
