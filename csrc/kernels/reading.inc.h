/* The order in which decoding, which memory bounds, reads: K of a block, its V, K of the next
 * block. Rows are found in runs, together with the rows that are prefetched with them. */
#ifndef SA_KERNELS_READING_INC_H
#define SA_KERNELS_READING_INC_H

#include "simd.inc.h"
#include "elem.inc.h"
#include "rows.inc.h"
#include "mask.inc.h"

/* What decoding reads: rows of x before `end`, then those of `after`, [first, after_end). What
 * comes `rows_ahead` rows later is prefetched into L1, throughout: a processor's own prefetcher
 * follows rows of K less well, since squares of them are loaded, and sees neither that V comes next
 * nor where the next page is. */
typedef struct {
    const sa_key_rows *x, *after;
    int64_t end, first, after_end;
    int rows_ahead;
} reading_order;

/* Rows' scales, a float each, are read with them: prefetch so many, which lie one after the other.
 */
SA_INLINE void prefetch_scales(const row_cursor *c, int64_t count) {
    if (!c->x->scale) return;
    uintptr_t at = (uintptr_t)cursor_scale(c), end = at + (uintptr_t)(count * c->x->scale_row);
    for (at -= at % CACHE_LINE; at < end; at += CACHE_LINE) SA_PREFETCH_NEAREST(at);
}

/* The runs of rows [begin, order->end), at most SA_BLOCK_N. */
static const row_run *find_runs(const reading_order *order, int64_t begin,
                                row_run runs[SA_BLOCK_N]) {
    const int64_t end = order->end;
    int64_t left = end - begin, before = left - order->rows_ahead; /* with the row ahead in x */
    row_cursor at = cursor_at(order->x, begin, end), ahead;
    ahead = before > 0 ? cursor_at(order->x, begin + order->rows_ahead, end)
                       : cursor_at(order->after, order->first, order->after_end);
    for (row_run *run = runs; left > 0; ++run) {
        int64_t n = cursor_run(&at, cursor_run(&ahead, before > 0 ? before : left));
        *run = (row_run){
            .at = cursor_row(&at),
            .scale = cursor_scale(&at),
            .ahead = (uintptr_t)cursor_row(&ahead),
            .ahead_row = ahead.x->row,
            .count = n,
        };
        prefetch_scales(&ahead, n);
        left -= n;
        before -= n;
        cursor_add(&at, n);
        cursor_add(&ahead, n);
        if (before == 0) ahead = cursor_at(order->after, order->first, order->after_end);
    }
    return runs;
}

/* How far ahead rows are prefetched: a block, where L1 has room for its K and V, else a chunk. */
static int rows_ahead(const sa_tile *t) {
    int64_t size = t->k.scale ? 1 : ELEM_SIZE, bytes = (t->head_dim + t->head_dim_v) * size;
    return bytes * SA_BLOCK_N <= L1_PREFETCH ? SA_BLOCK_N : SA_CHUNK_N;
}

static const row_run *find_runs_of_keys(const sa_tile *t, const block_keys *keys, row_run *runs) {
    int64_t begin = keys->block + keys->begin, end = keys->block + keys->end;
    const reading_order order = {
        .x = keys->k,
        .end = end,
        .after = keys->v,
        .first = begin,
        .after_end = end,
        .rows_ahead = rows_ahead(t),
    };
    return find_runs(&order, begin, runs);
}

static const row_run *find_runs_of_values(const sa_tile *t, const block_keys *keys, row_run *runs) {
    const reading_order order = {
        .x = keys->v,
        .end = keys->block + keys->end,
        .after = &t->k,
        .first = keys->block + SA_BLOCK_N,
        .after_end = t->end,
        .rows_ahead = rows_ahead(t),
    };
    return find_runs(&order, keys->block + keys->begin, runs);
}

#endif
