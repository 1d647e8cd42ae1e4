/* Rotary position embedding of a row: each pair (a, b) of its elements is rotated by an angle t,
 *
 *     (a, b) -> (a cos t - b sin t, b cos t + a sin t)
 *
 * and elements in no pair are copied. The row's cosines and sines are given: one of each a pair, or
 * one an element, and then those of a make the first result, those of b the second, whatever
 * numbers they are. (Su et al., "RoFormer", 2021.) Called by rows.c through the table (kernels.h).
 */
#ifndef SA_KERNELS_ROPE_INC_H
#define SA_KERNELS_ROPE_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"

typedef struct {
    vec cosine, sine;
} angles;

SA_INLINE angles load_angles(const sa_rope_row *row, const char *cos, const char *sin, int64_t pair,
                             int width) {
    return (angles){v_load_strided(cos + pair * row->cos_col, row->cos_col, width),
                    v_load_strided(sin + pair * row->sin_col, row->sin_col, width)};
}

static void rope_row(const sa_rope_row *row, int64_t n) {
    const ptrdiff_t x_step = row->step * row->x_col, out_step = row->step * row->out_col;
    const char *x_first = row->x + row->first * row->x_col;
    const char *x_second = row->x + row->second * row->x_col;
    char *out_first = row->out + row->first * row->out_col;
    char *out_second = row->out + row->second * row->out_col;
    for (int64_t pair = 0; pair < row->pairs; pair += LANES) {
        int width = at_most(row->pairs - pair, LANES);
        vec a = s_load_strided(x_first + pair * x_step, x_step, width);
        vec b = s_load_strided(x_second + pair * x_step, x_step, width);
        angles of_a = load_angles(row, row->cos, row->sin, pair, width), of_b = of_a;
        if (row->cos_second || row->sin_second)
            of_b = load_angles(row, row->cos + row->cos_second, row->sin + row->sin_second, pair,
                               width);
        vec first = v_sub(v_mul(a, of_a.cosine), v_mul(b, of_a.sine));
        vec second = v_add(v_mul(b, of_b.cosine), v_mul(a, of_b.sine));
        s_store_strided(out_first + pair * out_step, out_step, width, first);
        s_store_strided(out_second + pair * out_step, out_step, width, second);
    }
    for (int64_t e = 2 * row->pairs; e < n; e += LANES) {
        int width = at_most(n - e, LANES);
        vec rest = s_load_strided(row->x + e * row->x_col, row->x_col, width);
        s_store_strided(row->out + e * row->out_col, row->out_col, width, rest);
    }
    v_zeroupper();
}

#endif
