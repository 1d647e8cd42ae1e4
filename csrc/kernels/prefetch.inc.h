/* A queue of cache lines to prefetch into L2 while the micro-kernel computes, one line per k. More
 * at a time would stall: a core tracks only a few dozen outstanding misses.
 *
 * The micro-kernel (ukernel.inc.h) takes from it at the start of each chunk of its sums. */
#ifndef SA_KERNELS_PREFETCH_INC_H
#define SA_KERNELS_PREFETCH_INC_H

#include "../kernels.h"
#include "simd.inc.h"

/* One entry of the queue: a block of `rows` rows, `row` bytes apart, and `columns` cache lines; or
 * one such block for each head h of the rows in `list`: h, h + heads, h + 2 heads, ... */
typedef struct {
    uintptr_t at; /* the block's next column of lines */
    ptrdiff_t row;
    int64_t rows, columns;
    const char *const *list;
    int64_t list_rows, bytes; /* length of the list; bytes of one of its rows */
    int64_t heads, head;      /* number of heads; the next one */
} prefetch_part;

enum { PREFETCH_PARTS = 10 }; /* as many as the backward pass adds (gradient_prefetch.inc.h) */

typedef struct {
    /* The next lines: `lines` of them, `stride` bytes apart. More may be prefetched. */
    uintptr_t at;
    ptrdiff_t stride;
    int64_t lines;
    prefetch_part parts[PREFETCH_PARTS];
    int part, num_parts;
} prefetch_queue;

/* Empty the queue. */
static void prefetch_begin(prefetch_queue *queue) {
    queue->lines = 0;
    queue->part = queue->num_parts = 0;
}

SA_INLINE int64_t lines_of(int64_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE; }

/* Make the entry a block of rows of `bytes` bytes. Contiguous rows become one long column. */
static void set_rows(prefetch_part *r, const char *at, ptrdiff_t row, int64_t rows, int64_t bytes) {
    int contiguous = row == bytes;
    r->at = (uintptr_t)at;
    r->row = contiguous ? CACHE_LINE : row;
    r->rows = contiguous ? lines_of(rows * bytes) : rows;
    r->columns = contiguous ? 1 : lines_of(bytes);
}

/* Add `rows` rows of `bytes` bytes, `row` bytes apart. The entry is filled in place: copying a
 * struct just written would stall on store forwarding. */
static void prefetch_rows(prefetch_queue *queue, const char *at, ptrdiff_t row, int64_t rows,
                          int64_t bytes) {
    if (rows <= 0) return;
    prefetch_part *r = &queue->parts[queue->num_parts++];
    set_rows(r, at, row, rows, bytes);
    r->head = r->heads = 0;
}

/* Add the rows in `list`, of `bytes` bytes each; every `heads`-th is of the same head. */
static void prefetch_list(prefetch_queue *queue, const char *const *list, int64_t rows,
                          int64_t heads, int64_t bytes) {
    prefetch_part *r = &queue->parts[queue->num_parts++];
    r->columns = r->head = 0;
    r->heads = heads < rows ? heads : rows;
    r->list = list;
    r->list_rows = rows;
    r->bytes = bytes;
}

/* Make the entry the block of its next head; 0 if there is none left. */
static int next_head(prefetch_part *r) {
    if (r->head == r->heads) return 0;
    const char *const *first = r->list + r->head;
    int64_t left = r->list_rows - r->head++;
    ptrdiff_t row = left > r->heads ? first[r->heads] - *first : r->bytes;
    set_rows(r, *first, row, r->heads == 1 ? left : (left + r->heads - 1) / r->heads, r->bytes);
    return r->columns > 0;
}

/* Go on to the next column of lines; when the queue is empty, to a line of the queue itself, which
 * is cached. */
static void prefetch_next_lines(prefetch_queue *queue) {
    for (; queue->part < queue->num_parts; ++queue->part) {
        prefetch_part *r = &queue->parts[queue->part];
        if (r->columns == 0 && !next_head(r)) continue;
        queue->at = r->at;
        queue->stride = r->row;
        queue->lines = r->rows;
        r->at += CACHE_LINE;
        --r->columns;
        return;
    }
    queue->at = (uintptr_t)queue;
    queue->stride = 0;
}

static int has_prefetch(const prefetch_queue *queue) {
    return queue && (queue->lines > 0 || queue->part < queue->num_parts);
}

static int64_t first_block(const sa_tile *t) { return t->begin / SA_BLOCK_N * SA_BLOCK_N; }

/* Whether the keys that a tile reads, `bytes` each, exceed L2: then every tile of a head reads them
 * from L3 or memory. */
static int exceeds_l2(const sa_tile *t, int64_t bytes) {
    return bytes && t->end - t->begin >= L2_BUDGET / bytes;
}

/* Take n lines: returns the address of the first; the others follow `*stride` bytes apart. */
SA_INLINE uintptr_t prefetch_next(prefetch_queue *queue, int64_t n, ptrdiff_t *stride) {
    if (queue->lines <= 0) prefetch_next_lines(queue);
    const uintptr_t at = queue->at;
    *stride = queue->stride;
    queue->at += (uintptr_t)n * (uintptr_t)*stride; /* any number, for one row */
    queue->lines -= n;
    return at;
}

#endif
