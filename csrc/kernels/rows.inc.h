/* Where rows of keys and values are, in one array or in pages. */
#ifndef SA_KERNELS_ROWS_INC_H
#define SA_KERNELS_ROWS_INC_H

#include "../kernels.h"
#include "simd.inc.h"

/* A row of x, on its way to the one before `end`: row `row` of page pages[page]. */
typedef struct {
    const sa_key_rows *x;
    int64_t page, row, last_page;
} row_cursor;

SA_INLINE row_cursor cursor_at(const sa_key_rows *x, int64_t key, int64_t end) {
    if (key >= end) key = end - 1;
    if (!x->pages) return (row_cursor){x, .row = key};
    int64_t size = x->page_size, page = key / size;
    return (row_cursor){x, page, .row = key - page * size, .last_page = (end - 1) / size};
}

SA_INLINE const char *cursor_row(const row_cursor *c) {
    const sa_key_rows *x = c->x;
    return x->at + (x->pages ? x->pages[c->page] * x->page : 0) + c->row * x->row;
}

SA_INLINE const char *cursor_scale(const row_cursor *c) {
    const sa_key_rows *x = c->x;
    if (!x->scale) return NULL;
    return x->scale + (x->pages ? x->pages[c->page] * x->scale_page : 0) + c->row * x->scale_row;
}

/* How many of `count` rows from here on lie one after the other. */
SA_INLINE int64_t cursor_run(const row_cursor *c, int64_t count) {
    int64_t left = c->x->page_size - c->row;
    return c->x->pages && left < count ? left : count;
}

/* Go on, within the page or to the next one; past the last one, stay in it. */
SA_INLINE void cursor_add(row_cursor *c, int64_t count) {
    c->row += count;
    if (!c->x->pages || c->row < c->x->page_size) return;
    c->row = 0;
    if (c->page < c->last_page) ++c->page;
}

/* `count` rows, one after the other, from `at` on, and their scales; and where the rows are that
 * are prefetched with them, `ahead_row` bytes apart. */
typedef struct {
    const char *at, *scale;
    uintptr_t ahead;
    ptrdiff_t ahead_row;
    int64_t count;
} row_run;

#endif
