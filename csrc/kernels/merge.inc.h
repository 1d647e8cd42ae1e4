/* Attention over two disjoint sets of keys, merged, one row at a time:
 *
 *     m = max(lse_a, lse_b),   w = e^(lse - m),   out = (a w_a + b w_b) / (w_a + w_b)
 *     lse = m + log(w_a + w_b)
 *
 * A side whose lse is -inf had no visible key: it adds nothing, whatever it holds. Called by rows.c
 * through the table (kernels.h). */
#ifndef SA_KERNELS_MERGE_INC_H
#define SA_KERNELS_MERGE_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"

static void merge_row(const sa_merge_row *row, int64_t n) {
    vec lse_a = v_broadcast(row->lse_a), lse_b = v_broadcast(row->lse_b);
    vmask a_none = v_eq(lse_a, minus_inf()), b_none = v_eq(lse_b, minus_inf());
    vec max = v_max(lse_a, lse_b), shift = finite_max(max);
    vec w_a = v_exp(v_sub(lse_a, shift)), w_b = v_exp(v_sub(lse_b, shift));
    vec sum = v_add(w_a, w_b);
    vec factor = v_div(v_set(1), v_select(v_eq(sum, v_zero()), v_set(1), sum));
    for (int64_t e = 0; e < n; e += LANES) {
        int width = at_most(n - e, LANES);
        vec a = s_load_strided(row->a + e * row->a_col, row->a_col, width);
        vec b = s_load_strided(row->b + e * row->b_col, row->b_col, width);
        a = v_select(a_none, v_zero(), a);
        b = v_select(b_none, v_zero(), b);
        vec out = v_mul(v_add(v_mul(a, w_a), v_mul(b, w_b)), factor);
        /* The sum may overflow where the mean does not. */
        vec mean = v_fma(a, v_mul(w_a, factor), v_mul(b, v_mul(w_b, factor)));
        mean = v_select(v_both(finite_lanes(a), finite_lanes(b)), within_range(mean), mean);
        out = v_select(finite_lanes(out), out, mean);
        s_store_strided(row->out + e * row->out_col, row->out_col, width, out);
    }
    real lse[LANES];
    v_store(lse, v_add(max, v_log(sum)));
    write_real(row->lse, lse[0]);
    v_zeroupper();
}

#endif
