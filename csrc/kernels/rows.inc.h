/* Where rows of keys and values are, in one array or in pages. */
#ifndef SA_KERNELS_ROWS_INC_H
#define SA_KERNELS_ROWS_INC_H

#include "../kernels.h"
#include "simd.inc.h"

/* Rows [key, key + *count) of x lie in one page: where the first one is, and its scale. */
SA_INLINE const char *run_of_rows(const sa_key_rows *x, int64_t key, int64_t *count,
                                  const char **scale) {
    int64_t page = 0;
    if (x->pages) {
        page = x->pages[key / x->page_size];
        key %= x->page_size;
        if (*count > x->page_size - key) *count = x->page_size - key;
    }
    *scale = x->scale ? x->scale + page * x->scale_page + key * x->scale_row : NULL;
    return x->at + page * x->page + key * x->row;
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
