/* The only mask semantics: which keys a query sees, for the loops and for the kernels.
 *
 * Query i of a batch entry stands at position p = i + query_offset and sees key j iff
 *
 *     p - window_left <= j <= p + window_right   and   j < kv_length
 *
 * where a window side of -1 is unbounded: causal is a window with left = -1 and right = 0. All of
 * it is one range of keys a row; a tile of rows sorts each block of keys into
 *
 *     empty    no row sees a key of it: skipped, which changes no bit
 *     full     every row sees every key of it that any row sees
 *     ragged   the rest: masked key by key
 *
 * A rule that is not a range (a mask of its own for each key) would make every block it touches
 * ragged and add its test to tile_mask and few_mask. */
#ifndef SA_MASK_H
#define SA_MASK_H

#include <assert.h>

#include "kernels.h"

typedef enum { SA_EMPTY, SA_FULL, SA_RAGGED } sa_class;

static inline int64_t sa_clip(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* The keys [lo, hi) that query i of batch entry b sees; lo = hi where it sees none. */
static inline void sa_key_range(const sa_problem *p, int64_t b, int64_t i, int64_t *lo,
                                int64_t *hi) {
    int64_t offset = p->query_offset_of_batch ? p->query_offset_of_batch[b] : p->query_offset;
    int64_t position = i + offset;
    assert(!p->kv_lengths || (p->kv_lengths[b] >= 0 && p->kv_lengths[b] <= p->seqlen_k));
    int64_t begin = 0, end = p->kv_lengths ? p->kv_lengths[b] : p->seqlen_k;
    if (p->window_left >= 0 && position - p->window_left > begin) begin = position - p->window_left;
    if (p->window_right >= 0 && position + p->window_right + 1 < end)
        end = position + p->window_right + 1;
    *hi = end < 0 ? 0 : end;
    *lo = begin < *hi ? begin : *hi;
}

/* The tile's summary, once its rows' ranges stand. */
static inline void sa_summarize_ranges(sa_tile *t) {
    t->begin = t->full_end = INT64_MAX;
    t->end = t->full_begin = 0;
    for (int r = 0; r < t->rows; ++r) {
        int64_t lo = t->key_lo[r], hi = t->key_hi[r];
        if (lo > t->full_begin) t->full_begin = lo;
        if (hi < t->full_end) t->full_end = hi;
        if (lo == hi) {
            t->full_end = 0;
            continue;
        }
        if (lo < t->begin) t->begin = lo;
        if (hi > t->end) t->end = hi;
    }
    if (t->begin >= t->end) t->begin = t->end = 0;
}

/* The class of the block of keys at `block`, and its keys [begin, end), counted from the block,
 * that some row sees; begin is a multiple of 4, the sums' number of chains. */
static inline sa_class sa_block_class(const sa_tile *t, int64_t block, int *begin, int *end) {
    int64_t first = sa_clip(t->begin - block, 0, SA_BLOCK_N) & ~(int64_t)3;
    int64_t last = sa_clip(t->end - block, 0, SA_BLOCK_N);
    *begin = (int)first;
    *end = (int)last;
    if (first >= last) return SA_EMPTY;
    int full = t->full_begin <= block + first && block + last <= t->full_end;
    return full ? SA_FULL : SA_RAGGED;
}

/* A key counted from the block, clipped to it. */
static inline int block_offset(int64_t key, int64_t block) {
    return (int)sa_clip(key - block, 0, SA_BLOCK_N);
}

#endif
