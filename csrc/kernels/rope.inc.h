/* Rotary position embedding of a row: each pair (a, b) of its elements is rotated by an angle t,
 *
 *     (a, b) -> (a cos t - b sin t, b cos t + a sin t)
 *
 * and elements in no pair are copied. The row's cosines and sines are given. (Su et al.,
 * "RoFormer", 2021.) Called by rows.c through the table (kernels.h). */
#ifndef SA_KERNELS_ROPE_INC_H
#define SA_KERNELS_ROPE_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"

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
        vec cosine = v_load_strided(row->cos + pair * row->angle_col, row->angle_col, width);
        vec sine = v_load_strided(row->sin + pair * row->angle_col, row->angle_col, width);
        vec first = v_sub(v_mul(a, cosine), v_mul(b, sine));
        vec second = v_add(v_mul(b, cosine), v_mul(a, sine));
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
