/* The only mask semantics: which keys a query sees, for the loops and for the kernels.
 *
 * Query i of a batch entry stands at position p = i + query_offset and sees key j iff
 *
 *     p - window_left <= j <= p + window_right   and   j < kv_length        a range of keys
 *     and the ids of their segments are equal                               a range, if ids ascend
 *     and the mask lets it through                                          anything
 *
 * where a window side of -1 is unbounded: causal is a window with left = -1 and right = 0. What is
 * a range becomes one range of keys a row, and keys outside of the rows' ranges are never looked
 * at. The rest is asked element by element. A tile of rows sorts each block of keys into
 *
 *     empty    no row sees a key of it: skipped, which changes no bit
 *     full     every row sees every key of it that any row sees
 *     ragged   the rest: masked key by key (kernels/mask.inc.h)
 *
 * by the rows' ranges here (sa_block_class), by the elements in kernels/mask.inc.h. */
#ifndef SA_MASK_H
#define SA_MASK_H

#include <assert.h>
#include <string.h>

#include "kernels.h"

typedef enum { SA_EMPTY, SA_FULL, SA_PARTIAL } sa_class;

static inline int64_t sa_clip(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* The first query (key) of batch entry b among the rows of the arrays, and how many it has. */
static inline int64_t sa_first_query(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_q ? p->cu_seqlens_q[b] : 0;
}
static inline int64_t sa_num_queries(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_q ? p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b] : p->seqlen_q;
}
static inline int64_t sa_first_key(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_k ? p->cu_seqlens_k[b] : 0;
}
static inline int64_t sa_num_keys(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_k ? p->cu_seqlens_k[b + 1] - p->cu_seqlens_k[b] : p->seqlen_k;
}

/* Where query i of batch entry b stands among its keys. */
static inline int64_t sa_position(const sa_problem *p, int64_t b, int64_t i) {
    return i + (p->query_offset_of_batch ? p->query_offset_of_batch[b] : p->query_offset);
}

/* The keys [lo, hi) that query i of batch entry b sees by windows and lengths; lo = hi where it
 * sees none. Neither end goes back as i grows: plan.c takes the keys of all queries from those of
 * the first and of the last. */
static inline void sa_key_range(const sa_problem *p, int64_t b, int64_t i, int64_t *lo,
                                int64_t *hi) {
    int64_t position = sa_position(p, b, i), begin = 0, end = sa_num_keys(p, b);
    assert(!p->kv_lengths || (p->kv_lengths[b] >= 0 && p->kv_lengths[b] <= end));
    if (p->kv_lengths) end = p->kv_lengths[b];
    if (p->window_left >= 0 && position - p->window_left > begin) begin = position - p->window_left;
    if (p->window_right >= 0 && position + p->window_right + 1 < end)
        end = position + p->window_right + 1;
    *hi = end < 0 ? 0 : end;
    *lo = begin < *hi ? begin : *hi;
}

/* How many keys a query sees at most, if it is known to be `most`. */
static inline int64_t sa_most_keys(const sa_problem *p, int64_t most) {
    if (p->window_left < 0 || p->window_right < 0) return most;
    int64_t window = p->window_left + p->window_right + 1;
    return window < most ? window : most;
}

/* An id, read as a signed number. Ids that ascend only as unsigned ones count as unsorted, which
 * has the same result, key by key. */
static inline int64_t sa_segment_id(const char *at, int size) {
    int8_t i8;
    int16_t i16;
    int32_t i32;
    int64_t i64;
    switch (size) {
        case 1: memcpy(&i8, at, sizeof i8); return i8;
        case 2: memcpy(&i16, at, sizeof i16); return i16;
        case 4: memcpy(&i32, at, sizeof i32); return i32;
        default: memcpy(&i64, at, sizeof i64); return i64;
    }
}

/* Ids that never decrease: how many of the n at `ids` are less than `id`. */
static inline int64_t sa_segments_below(const char *ids, ptrdiff_t stride, int size, int64_t n,
                                        int64_t id) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sa_segment_id(ids + middle * stride, size) < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The tile's summary, once its rows' ranges stand: those of the first `rows`, which the others' are
 * like. */
static inline void sa_summarize_ranges(sa_tile *t, int rows) {
    t->begin = t->full_end = INT64_MAX;
    t->end = t->full_begin = 0;
    for (int r = 0; r < rows; ++r) {
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

/* The class of the block of keys at `block` by the rows' ranges, and its keys [begin, end), counted
 * from the block, that some row sees; begin is a multiple of 4, the sums' number of chains. */
static inline sa_class sa_block_class(const sa_tile *t, int64_t block, int *begin, int *end) {
    int64_t first = sa_clip(t->begin - block, 0, SA_BLOCK_N) & ~(int64_t)3;
    int64_t last = sa_clip(t->end - block, 0, SA_BLOCK_N);
    *begin = (int)first;
    *end = (int)last;
    if (first >= last) return SA_EMPTY;
    int full = t->full_begin <= block + first && block + last <= t->full_end;
    return full ? SA_FULL : SA_PARTIAL;
}

/* A key counted from the block, clipped to it. */
static inline int sa_block_offset(int64_t key, int64_t block) {
    return (int)sa_clip(key - block, 0, SA_BLOCK_N);
}

#endif
