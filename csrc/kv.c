/* Staged rows: see kv.h. */

#include "kv.h"

#include "dispatch.h"
#include "memory.h"

static int is_of_keys(int which) { return which == SA_KV_K || which == SA_KV_DK; }
static int is_gradient(int which) { return which == SA_KV_DK || which == SA_KV_DV; }

/* Whether there are gaps between rows of so many bytes, whose elements are contiguous. A row stride
 * of 0 has none: all rows are one. */
static int has_gaps(const sa_problem *p, const sa_array *a, int64_t bytes) {
    return a->col == sa_dtype_size(p->dtype) && a->row != bytes && a->row != 0;
}

static void add(sa_kv_layout *x, int which, int64_t rows) {
    x->is_staged[which] = 1;
    x->at[which] = x->size;
    x->size += sa_whole_lines((size_t)(rows * x->row_bytes[which]));
}

/* Whether no kernel reads the rows in place. */
static int are_converted(const sa_problem *p) {
    return sa_is_half(p->dtype) || p->pages.table || p->key_scale.data;
}

size_t sa_kv_block_room(const sa_problem *p) {
    int64_t size = sa_real_size(p->dtype);
    if (!p->pages.table && !p->key_scale.data) return 0;
    return sa_whole_lines(
        (size_t)(sa_block_room(p->head_dim, size) + sa_block_room(p->head_dim_v, size)));
}

int64_t sa_kv_min_tiles(const sa_problem *p, int64_t of_strided) {
    return are_converted(p) ? STAGE_MIN_TILES_HALF : of_strided;
}

sa_kv_layout sa_kv_layout_make(const sa_problem *p, const sa_array *const *arrays, int count,
                               int64_t rows, int64_t grad_rows, size_t budget) {
    sa_kv_layout x = {.kernels = sa_kernels_for(p->dtype), .real_size = sa_real_size(p->dtype)};
    uint64_t bytes_of_key = 0;
    int pays[SA_KV_ARRAYS] = {0};
    for (int i = 0; i < count; ++i) {
        x.length[i] = is_of_keys(i) ? p->head_dim : p->head_dim_v;
        x.row_bytes[i] = x.length[i] * sa_real_size(p->dtype);
        if (!x.row_bytes[i] || !arrays[i]->data) continue;
        if (sa_is_half(p->dtype) && is_gradient(i)) {
            add(&x, i, grad_rows);
            continue;
        }
        pays[i] = are_converted(p) || has_gaps(p, arrays[i], x.row_bytes[i]);
        if (pays[i]) bytes_of_key += (uint64_t)x.row_bytes[i];
    }
    x.stages_keys = bytes_of_key && (uint64_t)rows <= budget / bytes_of_key;
    for (int i = 0; x.stages_keys && i < count; ++i)
        if (pays[i]) add(&x, i, rows);
    return x;
}

char *sa_kv_room(const sa_kv *kv, sa_kv_array which) {
    return kv->layout->is_staged[which] ? kv->room + kv->layout->at[which] : NULL;
}

int sa_kv_stage(sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, sa_key_rows *x) {
    const sa_kv_layout *layout = kv->layout;
    char *room = sa_kv_room(kv, which);
    sa_kv_copy *copy = &kv->copies[which];
    int64_t bytes = layout->row_bytes[which];
    if (!room) return 0;
    int is_there = copy->source.at == x->at && copy->source.pages == x->pages &&
                   copy->begin <= begin && end <= copy->end;
    if (!is_there) {
        layout->kernels->stage_rows(x, begin, end, layout->length[which], room + begin * bytes);
        *copy = (sa_kv_copy){*x, begin, end};
    }
    *x = (sa_key_rows){.at = room, .row = bytes, .col = layout->real_size, .is_staged = 1};
    return !is_there;
}

void sa_kv_unstage(const sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, char *to,
                   ptrdiff_t row, ptrdiff_t col) {
    const sa_kv_layout *layout = kv->layout;
    layout->kernels->unstage_rows(to + begin * row, row, col, end - begin, layout->length[which],
                                  sa_kv_room(kv, which) + begin * layout->row_bytes[which]);
}
