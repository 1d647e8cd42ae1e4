/* Packed keys and values: see packed.h. */

#include "packed.h"

#include <string.h>

/* With fewer tiles to read them, they are not copied. */
enum { MIN_TILES = 4 };

/* Bytes of a key, and of a value. */
static int64_t key_bytes(const sa_problem *p) { return p->head_dim * sa_real_size(p); }
static int64_t value_bytes(const sa_problem *p) { return p->head_dim_v * sa_real_size(p); }

/* Elements lie side by side and rows apart, but not all in one place. */
static int lies_apart(const sa_problem *p, const sa_array *a, int64_t bytes) {
    return a->col == sa_real_size(p) && a->row != bytes && a->row != 0;
}

size_t sa_packed_size(const sa_plan *plan) {
    const sa_problem *p = plan->problem;
    int64_t k = key_bytes(p), v = value_bytes(p);
    if (!lies_apart(p, &p->key, k) || !lies_apart(p, &p->value, v)) return 0;
    if (!p->cu_seqlens_q && plan->tiles_of_head < MIN_TILES) return 0;
    if (k + v == 0 || plan->end_key > SA_PACKED_BYTES / (k + v)) return 0;
    return sa_whole_lines((size_t)(plan->end_key * k)) + (size_t)(plan->end_key * v);
}

static void copy_rows(char *to, int64_t bytes, const char *from, ptrdiff_t row, int64_t begin,
                      int64_t end) {
    for (int64_t i = begin; i < end; ++i) memcpy(to + i * bytes, from + i * row, (size_t)bytes);
}

void sa_pack_keys(const sa_plan *plan, sa_packed *x, int64_t tile, int64_t end, sa_tile *t) {
    const sa_problem *p = plan->problem;
    /* Sequences without keys have the address of the next one's. */
    if (!x->memory || t->begin == t->end) return;
    int64_t k_row = key_bytes(p), v_row = value_bytes(p);
    char *v = x->memory + sa_whole_lines((size_t)(plan->end_key * k_row));
    if (t->k != x->k || t->v != x->v) {
        int64_t keys, tiles = sa_tiles_of_same_head(plan, tile, end, &keys);
        int64_t first_key = plan->first_key / SA_BLOCK_N * SA_BLOCK_N; /* that block is read */
        int64_t end_key = keys < plan->end_key ? keys : plan->end_key;
        x->k = t->k;
        x->v = t->v;
        x->is_used = tiles >= MIN_TILES;
        if (!x->is_used) return;
        copy_rows(x->memory, k_row, t->k, t->k_row, first_key, end_key);
        copy_rows(v, v_row, t->v, t->v_row, first_key, end_key);
        *t->finite = (sa_finite){0}; /* there were others in memory */
    }
    if (!x->is_used) return;
    t->k = x->memory;
    t->v = v;
    t->k_row = k_row;
    t->v_row = v_row;
    t->ahead.is_first = 0; /* they are near */
}
