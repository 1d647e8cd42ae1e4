/* Counter-based dropout: whether a weight is kept depends on its row and key alone,
 *
 *     x(row, j) = mix32(mix32(j + low word of row) ^ high word of row),   kept iff x >= threshold
 *
 * so that any tiles, threads, instruction set or slice of the problem, forward or backward, drop
 * the same weights. The two words of a row come from the seed, batch entry, head and query
 * (tile.c). mix32 is a bijection of 32 bits (Wellons, "Prospecting for hash functions", 2018). The
 * kept weights are divided by the kept fraction once, in the row's epilogue. */
#ifndef SA_KERNELS_DROPOUT_INC_H
#define SA_KERNELS_DROPOUT_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "mask.inc.h"

SA_INLINE uvec mix32(uvec x) {
    x = u_mul(u_xor(x, u_shift_right(x, 16)), u_set(0x7feb352du));
    x = u_mul(u_xor(x, u_shift_right(x, 15)), u_set(0x846ca68bu));
    return u_xor(x, u_shift_right(x, 16));
}

SA_INLINE vmask kept(uvec low, uvec high, uvec key, uvec threshold) {
    return u_at_least(mix32(u_xor(mix32(u_add(key, low)), high)), threshold);
}

/* What tells a vector of rows from others: vector i. */
typedef struct {
    uvec low, high, threshold;
} drop_rows;

SA_INLINE drop_rows drop_rows_of(const sa_tile *t, int i) {
    return (drop_rows){u_load(t->drop_low + i * LANES), u_load(t->drop_high + i * LANES),
                       u_set(t->scoring.dropout_threshold)};
}

/* Their weights of one key, 0 where dropped. */
SA_INLINE vec with_dropped(drop_rows rows, int64_t key, vec weights) {
    vmask keep = kept(rows.low, rows.high, u_set((uint32_t)key), rows.threshold);
    return v_select(keep, weights, v_zero());
}

/* weights[key][lane] = 0 where dropped, for the rows in vector i. */
static void prefill_drop(const sa_tile *t, const block_keys *keys, real *weights, ptrdiff_t row,
                         int i) {
    drop_rows rows = drop_rows_of(t, i);
    for (int j = keys->begin; j < keys->end; ++j) {
        real *at = weights + j * row;
        v_store(at, with_dropped(rows, keys->block + j, v_load(at)));
    }
}

/* weights[key] = 0 where dropped, for row r. */
static void decode_drop(const sa_tile *t, const block_keys *keys, real *weights, int r) {
    uint32_t places[LANES];
    for (int i = 0; i < LANES; ++i) places[i] = (uint32_t)i;
    uvec low = u_set(t->drop_low[r]), high = u_set(t->drop_high[r]);
    uvec threshold = u_set(t->scoring.dropout_threshold);
    for (int j = keys->begin; j < keys->end; j += LANES) {
        uvec key = u_add(u_load(places), u_set((uint32_t)(keys->block + j)));
        v_store(weights + j,
                v_select(kept(low, high, key, threshold), v_load(weights + j), v_zero()));
    }
}

#endif
