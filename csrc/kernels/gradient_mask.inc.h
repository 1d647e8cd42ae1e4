/* The gradient of a float mask, from dS of a block:
 *
 *     dB[row][key] += dS[key][row]
 *
 * Where the mask broadcasts, several elements of dS are added to one of dB: for MASK_KEYS keys at a
 * time, neighbouring rows are summed first, then keys in order, the same order in every set. Called
 * by backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_MASK_INC_H
#define SA_KERNELS_GRADIENT_MASK_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "mask.inc.h"
#include "gradient_scratch.inc.h"

/* Keys of one step of the sums, the same in every set. */
enum { MASK_KEYS = 16 };

/* Add n numbers to those of an array of reals, which are one and the same where the stride is 0. */
static void add_strided(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride != 0 || n == 1) {
        v_store_strided(p, stride, n, v_add(v_load_strided(p, stride, n), x));
        return;
    }
    real lanes[LANES], sum = read_real(p);
    v_store(lanes, x);
    for (int i = 0; i < n; ++i) sum += lanes[i];
    write_real(p, sum);
}

/* rows[i] = dS of keys [key, key + n) and row r + i of the tile. */
static void transpose_ds(const backward_scratch *x, int key, int n, int r, vec rows[LANES]) {
    for (int i = 0; i < LANES; ++i)
        rows[i] = i < n ? v_load(x->ds + (key + i) * x->row + r) : v_zero();
    v_transpose(rows);
}

static void grad_mask(const sa_backward_tile *g, const backward_scratch *x,
                      const block_keys *keys) {
    enum { VECTORS = MASK_KEYS / LANES };
    const sa_tile *t = &g->fwd;
    ptrdiff_t col = g->dmask_col;
    for (int begin = keys->begin, end; begin < keys->end; begin = end) {
        vec sum[VECTORS], rows[VECTORS][LANES];
        end = end_of_step(begin, MASK_KEYS, keys->end);
        for (int i = 0; i < VECTORS; ++i) sum[i] = v_zero();
        for (int r = 0; r < t->rows; ++r) {
            int is_last = r + 1 == t->rows || g->dmask[r + 1] != g->dmask[r];
            for (int i = 0, key = begin; key < end; ++i, key += LANES) {
                int n = at_most(end - key, LANES);
                if (r % LANES == 0) transpose_ds(x, key, n, r, rows[i]);
                sum[i] = v_add(sum[i], rows[i][r % LANES]);
                if (!is_last) continue;
                add_strided(g->dmask[r] + (keys->block + key) * col, col, n, sum[i]);
                sum[i] = v_zero();
            }
        }
    }
}

#endif
