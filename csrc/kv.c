/* Staged rows: see kv.h. */

#include "kv.h"

#include <string.h>

#include "memory.h"

static int is_of_keys(int which) { return which == SA_KV_K || which == SA_KV_DK; }

/* Whether there are gaps between rows of so many bytes, whose elements are contiguous. A row stride
 * of 0 has none: all rows are one. */
static int has_gaps(const sa_problem *p, const sa_array *a, int64_t bytes) {
    return a->col == sa_dtype_size(p->dtype) && a->row != bytes && a->row != 0;
}

sa_kv_layout sa_kv_layout_make(const sa_problem *p, const sa_array *const *arrays, int count,
                               int64_t rows, size_t budget) {
    sa_kv_layout x = {0};
    for (int i = 0; i < count; ++i) {
        int64_t bytes = (is_of_keys(i) ? p->head_dim : p->head_dim_v) * sa_dtype_size(p->dtype);
        x.row_bytes[i] = bytes;
        if (!bytes || !has_gaps(p, arrays[i], bytes)) continue;
        if ((uint64_t)rows > budget / (uint64_t)bytes) return (sa_kv_layout){0};
        x.is_staged[i] = 1;
        x.at[i] = x.size;
        x.size += sa_whole_lines((size_t)(rows * bytes));
    }
    return x.size <= budget ? x : (sa_kv_layout){0};
}

char *sa_kv_room(const sa_kv *kv, sa_kv_array which) {
    return kv->layout->is_staged[which] ? kv->room + kv->layout->at[which] : NULL;
}

int sa_kv_stage(sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, const char **at,
                ptrdiff_t *row) {
    char *room = sa_kv_room(kv, which);
    sa_kv_copy *copy = &kv->copies[which];
    int64_t bytes = kv->layout->row_bytes[which];
    if (!room) return 0;
    int is_there = copy->source == *at && copy->begin <= begin && end <= copy->end;
    if (!is_there) {
        sa_copy_rows(room + begin * bytes, bytes, *at + begin * *row, *row, bytes, end - begin);
        *copy = (sa_kv_copy){*at, begin, end};
    }
    *at = room;
    *row = bytes;
    return !is_there;
}

void sa_copy_rows(char *to, ptrdiff_t to_row, const char *from, ptrdiff_t from_row, int64_t bytes,
                  int64_t rows) {
    for (; rows > 0; --rows, to += to_row, from += from_row) memcpy(to, from, (size_t)bytes);
}
