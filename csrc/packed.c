/* Packed keys and values: see packed.h. */

#include "packed.h"

#include <string.h>

#include "mask.h"

/* With fewer tiles of a turn to read them, they are not copied. */
enum { MIN_TILES = 4 };

/* Bytes of a key, and of a value. */
static int64_t key_bytes(const sa_problem *p) { return p->head_dim * sa_dtype_size(p->dtype); }
static int64_t value_bytes(const sa_problem *p) { return p->head_dim_v * sa_dtype_size(p->dtype); }

int sa_rows_have_gaps(const sa_problem *p, const sa_array *a, int64_t bytes) {
    return a->col == sa_dtype_size(p->dtype) && a->row != bytes &&
           a->row != 0; /* nor all in one place */
}

size_t sa_packed_size(const sa_plan *plan) {
    const sa_problem *p = plan->problem;
    int64_t k = key_bytes(p), v = value_bytes(p);
    if (!sa_rows_have_gaps(p, &p->key, k) || !sa_rows_have_gaps(p, &p->value, v)) return 0;
    if (!p->cu_seqlens_q && plan->tiles_of_head < MIN_TILES) return 0;
    if (k + v == 0 || plan->end_key > (SA_PACKED_BYTES - 2 * CACHE_LINE) / (k + v)) return 0;
    return sa_whole_lines((size_t)(plan->end_key * k)) +
           sa_whole_lines((size_t)(plan->end_key * v));
}

void sa_copy_rows(char *to, ptrdiff_t to_row, const char *from, ptrdiff_t from_row, int64_t bytes,
                  int64_t rows) {
    for (; rows > 0; --rows, to += to_row, from += from_row) memcpy(to, from, (size_t)bytes);
}

/* The keys and values that queries of batch entry b see, from the start of a block. */
static void copy_keys(const sa_problem *p, int64_t b, const sa_tile *t, char *k, char *v) {
    int64_t begin, end, ignored;
    sa_key_range(p, b, 0, &begin, &ignored);
    sa_key_range(p, b, sa_num_queries(p, b) - 1, &ignored, &end);
    begin = begin / SA_BLOCK_N * SA_BLOCK_N;
    int64_t of_k = key_bytes(p), of_v = value_bytes(p);
    sa_copy_rows(k + begin * of_k, of_k, t->k + begin * t->k_row, t->k_row, of_k, end - begin);
    sa_copy_rows(v + begin * of_v, of_v, t->v + begin * t->v_row, t->v_row, of_v, end - begin);
}

void sa_pack_keys(const sa_plan *plan, sa_packed *x, int64_t tile, int64_t end, sa_tile *t) {
    const sa_problem *p = plan->problem;
    if (!x->memory) return;
    char *v = x->memory + sa_whole_lines((size_t)(plan->end_key * key_bytes(p)));
    if (tile >= x->end) {
        int64_t b, end_of_head = sa_end_of_head(plan, tile, &b);
        int64_t of_chunk = end < end_of_head ? end : end_of_head;
        x->is_used = of_chunk - tile >= MIN_TILES;
        x->end = x->is_used ? end_of_head : of_chunk; /* another turn may have more of it */
        if (x->is_used) {
            copy_keys(p, b, t, x->memory, v);
            *t->finite = (sa_finite){0}; /* there were others in memory */
        }
    }
    if (!x->is_used) return;
    t->k = x->memory;
    t->v = v;
    t->k_row = key_bytes(p);
    t->v_row = value_bytes(p);
    t->prefetch.is_first = 0; /* they are near */
}
