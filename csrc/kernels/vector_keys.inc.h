/* A block whose keys differ from vector to vector of lanes, as those of queries do in a causal
 * problem: which keys a vector has, which all have, and which any has. Called by prefill.inc.h and
 * backward.inc.h. */
#ifndef SA_KERNELS_VECTOR_KEYS_INC_H
#define SA_KERNELS_VECTOR_KEYS_INC_H

#include "../visibility.h"
#include "simd.inc.h"
#include "mask.inc.h"

SA_INLINE int clip(int x, int least, int most) { return x < least ? least : x > most ? most : x; }

/* The block's keys in the range of some lane, from a multiple of 4 on, with their class by these
 * lanes' ranges, [lanes_lo, lanes_hi). */
static block_keys keys_of_vector(const real *lanes_lo, const real *lanes_hi,
                                 const block_keys *keys) {
    real lo = SA_BLOCK_N, hi = 0, all_lo = 0, all_hi = SA_BLOCK_N;
    for (int r = 0; r < LANES; ++r) {
        all_lo = lanes_lo[r] > all_lo ? lanes_lo[r] : all_lo;
        all_hi = lanes_hi[r] < all_hi ? lanes_hi[r] : all_hi;
        if (lanes_lo[r] == lanes_hi[r]) continue;
        lo = lanes_lo[r] < lo ? lanes_lo[r] : lo;
        hi = lanes_hi[r] > hi ? lanes_hi[r] : hi;
    }
    block_keys visible = *keys;
    if ((int)lo > visible.begin) visible.begin = (int)lo & ~3;
    if ((int)hi < visible.end) visible.end = (int)hi;
    if (all_lo <= (real)visible.begin && (real)visible.end <= all_hi) visible.range_class = SA_FULL;
    visible.full_begin = clip((int)all_lo, visible.begin, visible.end);
    visible.full_end = clip((int)all_hi, visible.full_begin, visible.end);
    return visible;
}

/* The intersection of n vectors' keys; if it is empty, begin = end = keys->end. */
static block_keys common_keys(const block_keys *vector_keys, int n, const block_keys *keys) {
    block_keys common = *keys;
    for (int i = 0; i < n; ++i) {
        if (vector_keys[i].begin > common.begin) common.begin = vector_keys[i].begin;
        if (vector_keys[i].end < common.end) common.end = vector_keys[i].end;
    }
    if (!has_keys(&common)) common.begin = common.end = keys->end;
    return common;
}

/* The smallest range that holds n vectors' keys; if it is empty, begin = end = keys->end. */
static block_keys all_keys(const block_keys *vector_keys, int n, const block_keys *keys) {
    block_keys all = *keys;
    all.begin = keys->end;
    all.end = keys->begin;
    for (int i = 0; i < n; ++i) {
        if (!has_keys(&vector_keys[i])) continue;
        if (vector_keys[i].begin < all.begin) all.begin = vector_keys[i].begin;
        if (vector_keys[i].end > all.end) all.end = vector_keys[i].end;
    }
    if (!has_keys(&all)) all.end = all.begin;
    return all;
}

/* Whether one product of n vectors with the keys of all costs less than a product of each vector
 * with its own keys, which takes 5/4 of the time per key. */
static int are_alike(const block_keys *vector_keys, int n, const block_keys *all) {
    int separate = 0;
    for (int i = 0; i < n; ++i)
        if (has_keys(&vector_keys[i])) separate += vector_keys[i].end - vector_keys[i].begin;
    return 4 * n * (all->end - all->begin) <= 5 * separate;
}

/* A vector's keys before the common ones. */
static block_keys keys_before(block_keys visible, const block_keys *common) {
    if (visible.end > common->begin) visible.end = common->begin;
    return visible;
}

/* A vector's keys after the common ones. */
static block_keys keys_after(block_keys visible, const block_keys *common) {
    if (visible.begin < common->end) visible.begin = common->end;
    return visible;
}

#endif
