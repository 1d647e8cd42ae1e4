/* Which keys a query sees: the only mask semantics, for the loops and for the kernels.
 *
 * Query i of a batch entry stands at position p = i + query_offset and sees key j iff
 *
 *     p - window_left <= j <= p + window_right                              a range of keys
 *     and kv_start <= j < kv_length   and   i < query_length                a range of keys
 *     and the ids of their segments are equal                               a range, if ids ascend
 *     and the mask and the bias let it through                              anything
 *
 * where a window side of -1 is unbounded: causal is a window with left = -1 and right = 0. All
 * conditions that are ranges are intersected to one range of keys per row, and keys outside it are
 * never read. Masks, and ids that do not ascend, are evaluated key by key. For a tile of rows, each
 * block of keys is
 *
 *     empty      no row sees a key of it: skipped, which changes no bit
 *     full       every row sees every key of it that any row sees
 *     partial    anything else: masked key by key (kernels/mask.inc.h)
 *
 * by the rows' ranges (sa_block_class), and again by mask and segments in kernels/mask.inc.h. */
#ifndef SA_VISIBILITY_H
#define SA_VISIBILITY_H

#include <assert.h>
#include <string.h>

#include "kernels.h"
#include "problem.h"

typedef enum { SA_EMPTY, SA_FULL, SA_PARTIAL } sa_class;

static inline int64_t sa_clip(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* The keys [lo, hi) that query i of batch entry b sees by windows, starts and lengths; lo = hi
 * where it sees none. Neither end decreases as i grows to the last query that is no padding, so the
 * first one and that one bound the keys of all queries (sa_keys_of_entry). */
static inline void sa_key_range(const sa_problem *p, int64_t b, int64_t i, int64_t *lo,
                                int64_t *hi) {
    int64_t position = sa_position(p, b, i), begin = 0, end = sa_num_keys(p, b);
    assert(!p->kv_lengths || (p->kv_lengths[b] >= 0 && p->kv_lengths[b] <= end));
    assert(!p->kv_starts || (p->kv_starts[b] >= 0 && p->kv_starts[b] <= end));
    if (p->kv_starts) begin = p->kv_starts[b];
    if (p->kv_lengths) end = p->kv_lengths[b];
    if (i >= sa_used_queries(p, b)) end = 0;
    if (p->window_left >= 0 && position - p->window_left > begin) begin = position - p->window_left;
    if (p->window_right >= 0 && position + p->window_right + 1 < end)
        end = position + p->window_right + 1;
    *hi = end < 0 ? 0 : end;
    *lo = begin < *hi ? begin : *hi;
}

/* The keys [lo, hi) outside which no query of batch entry b sees any. */
static inline void sa_keys_of_entry(const sa_problem *p, int64_t b, int64_t *lo, int64_t *hi) {
    int64_t queries = sa_used_queries(p, b), ignored;
    *lo = *hi = 0;
    if (queries == 0) return;
    sa_key_range(p, b, 0, lo, &ignored);
    sa_key_range(p, b, queries - 1, &ignored, hi);
}

/* Bounds over all queries of the problem. */
typedef struct {
    int64_t first, last; /* every query sees only keys first <= j < last */
    double pairs;        /* about so many pairs of a query and a key that it sees, in one head */
} sa_key_bounds;

sa_key_bounds sa_key_bounds_of(const sa_problem *p, int64_t entries);

/* Whether the key segments' ids never decrease in any batch entry: then each segment is one range
 * of keys, and sa_segment_range finds it. */
int sa_segments_ascend(const sa_problem *p, int64_t entries);

typedef struct {
    int64_t id, lo, hi; /* its keys [lo, hi) */
} sa_segment;

sa_segment sa_segment_range(const sa_problem *p, int64_t b, int64_t id);

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

/* Fill in the tile's begin, end, full_begin and full_end from its rows' ranges. `rows`: look at so
 * many; the ranges of the others are the same. */
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
