/* One tile of a schedule, filled in for the kernels: see tile.h. */

#include "tile.h"

#include <math.h>

#include "visibility.h"

/* Iterates over an array's rows in the order of a tile: the heads of a group, then the next query.
 */
typedef struct {
    char *at;
    ptrdiff_t to_head, to_query;
} row_iter;

static row_iter row_iter_begin(const sa_schedule *s, const sa_array *a, const sa_row_pos *at) {
    const sa_problem *p = s->problem;
    int64_t head = at->head_kv * s->group + at->g;
    return (row_iter){
        .at = sa_row_of(p, a, at->b, head, sa_first_query(p, at->b) + at->i),
        .to_head = a->head,
        .to_query = a->row - (s->group - 1) * a->head,
    };
}

static char *row_iter_next(row_iter *w, int ends_group) {
    char *at = w->at;
    w->at += ends_group ? w->to_query : w->to_head;
    return at;
}

static void fill_pointers(const sa_schedule *s, sa_tile *t, const sa_row_pos *at) {
    const sa_problem *p = s->problem;
    row_iter q = row_iter_begin(s, &p->query, at), out = row_iter_begin(s, &p->out, at);
    row_iter lse = {0}, state = {0};
    int64_t g = at->g;
    if (p->state_use) state = row_iter_begin(s, &p->state, at);
    t->has_lse = p->lse.data != NULL;
    if (t->has_lse) lse = row_iter_begin(s, &p->lse, at);
    for (int r = 0; r < t->rows; ++r) {
        int ends_group = ++g == s->group;
        if (ends_group) g = 0;
        t->q[r] = row_iter_next(&q, ends_group);
        t->out[r] = row_iter_next(&out, ends_group);
        if (t->has_lse) t->lse[r] = row_iter_next(&lse, ends_group);
        if (p->state_use) t->state[r] = row_iter_next(&state, ends_group);
    }
}

/* The rows' key ranges by windows, starts and lengths. Returns whether all rows have the same one.
 */
static int fill_ranges(const sa_schedule *s, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = s->problem;
    if (p->window_left < 0 && p->window_right < 0 && !p->query_lengths) {
        int64_t lo, hi;
        sa_key_range(p, first->b, first->i, &lo, &hi);
        for (int r = 0; r < t->rows; ++r) t->key_lo[r] = lo, t->key_hi[r] = hi;
        return 1;
    }
    sa_row_pos at = *first;
    for (int r = 0; r < t->rows; ++r, sa_next_row(s, &at))
        sa_key_range(p, at.b, at.i, &t->key_lo[r], &t->key_hi[r]);
    return 0;
}

/* The rows' segments: if ids ascend, they narrow the ranges; else the kernels compare ids. */
static void fill_segments(const sa_schedule *s, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = s->problem;
    sa_segment keys = {0};
    t->key_segments = NULL;
    if (!p->key_segments.data) return;
    sa_row_pos at = *first;
    t->segment_size = p->segment_size;
    t->segment_row = p->key_segments.row;
    if (!s->segments_ascend)
        t->key_segments = sa_row_of(p, &p->key_segments, at.b, 0, sa_first_key(p, at.b));
    const char *ids = sa_row_of(p, &p->query_segments, at.b, 0, sa_first_query(p, at.b));
    for (int r = 0; r < t->rows; ++r, sa_next_row(s, &at)) {
        t->segment[r] = sa_segment_id(ids + at.i * p->query_segments.row, p->segment_size);
        if (!s->segments_ascend) continue;
        if (r == 0 || t->segment[r] != keys.id) keys = sa_segment_range(p, at.b, t->segment[r]);
        if (keys.lo > t->key_lo[r]) t->key_lo[r] = keys.lo;
        if (keys.hi < t->key_hi[r]) t->key_hi[r] = keys.hi;
        if (t->key_lo[r] > t->key_hi[r]) t->key_lo[r] = t->key_hi[r];
    }
}

/* The rows' masks, biases, slopes and sinks. */
static void fill_options(const sa_schedule *s, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = s->problem;
    t->mask_kind = p->mask_kind;
    t->mask_col = p->mask.col;
    t->bias_kind = p->bias_kind;
    t->bias_col = p->bias.col;
    t->has_alibi = p->alibi_slopes.data != NULL;
    t->has_sinks = p->sinks.data != NULL;
    if (!t->mask_kind && !t->bias_kind && !t->has_alibi && !t->has_sinks) return;
    sa_dtype real = sa_real_dtype(p->dtype);
    sa_row_pos at = *first;
    for (int r = 0; r < t->rows; ++r, sa_next_row(s, &at)) {
        int64_t head = at.head_kv * s->group + at.g, row = sa_first_query(p, at.b) + at.i;
        if (t->mask_kind) t->mask[r] = sa_row_of(p, &p->mask, at.b, head, row);
        if (t->bias_kind) t->bias[r] = sa_row_of(p, &p->bias, at.b, head, row);
        if (t->has_alibi)
            t->slope[r] = sa_load_scalar(real, sa_row_of(p, &p->alibi_slopes, at.b, head, 0));
        if (t->has_alibi) t->position[r] = sa_position(p, at.b, at.i);
        if (!t->has_sinks) continue;
        t->sink[r] = sa_load_scalar(real, sa_row_of(p, &p->sinks, at.b, head, 0));
        if (at.i >= sa_used_queries(p, at.b)) t->sink[r] = -INFINITY; /* padding has none */
    }
}

/* Dropout's two words of a row: a hash of the seed and of the row's indices, to which an axis of
 * length 1 adds nothing (splitmix64's finaliser; Steele, Lea and Flood, 2014). */
static uint64_t mix64(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t of_axis(int64_t index, int axis) {
    return (uint64_t)index * (mix64((uint64_t)(axis + 1) * 0x9e3779b97f4a7c15u) | 1);
}

static void fill_dropout(const sa_schedule *s, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = s->problem;
    if (!t->scoring.has_dropout) return;
    sa_row_pos at = *first;
    uint64_t of_entry = mix64(p->dropout_seed);
    int64_t b = at.b;
    for (int i = p->batch_axes - 1; i >= 0; --i) {
        of_entry += of_axis(b % p->batch_shape[i], p->batch_axes - 1 - i + 2);
        b /= p->batch_shape[i];
    }
    int lanes = s->kernels->lanes, padded = (t->rows + lanes - 1) / lanes * lanes;
    for (int r = 0; r < padded; ++r, sa_next_row(s, &at)) {
        int64_t head = at.head_kv * s->group + at.g;
        uint64_t row = mix64(of_entry + of_axis(p->first_query + at.i, 0) + of_axis(head, 1));
        t->drop_low[r] = (uint32_t)row + (uint32_t)p->first_key; /* to which a key is added */
        t->drop_high[r] = (uint32_t)(row >> 32);
    }
}

static sa_key_rows key_rows_of(const sa_problem *p, const sa_array *a, const sa_row_pos *at,
                               ptrdiff_t page, const sa_array *scale, ptrdiff_t scale_page) {
    int64_t first = sa_first_key(p, at->b);
    sa_key_rows x = {
        .at = sa_row_of(p, a, at->b, at->head_kv, first), .row = a->row, .col = a->col};
    if (p->pages.table) {
        x.pages = p->pages.table + at->b * p->pages.per_entry;
        x.page_size = p->pages.size;
        x.page = page;
    }
    if (scale->data) {
        x.scale = sa_row_of(p, scale, at->b, at->head_kv, first);
        x.scale_row = scale->row;
        x.scale_page = scale_page;
    }
    return x;
}

void sa_fill_rows(const sa_schedule *s, const sa_row_pos *at, sa_tile *t) {
    const sa_problem *p = s->problem;
    t->prefetch = (sa_prefetch){0};
    t->weight_factor = 1;
    t->out_is_real = 0;
    t->group = s->group;
    t->head_dim = p->head_dim;
    t->head_dim_v = p->head_dim_v;
    t->scoring = s->scoring;
    t->q_col = p->query.col;
    t->out_col = p->out.col;
    const sa_pages *pages = &p->pages;
    t->k = key_rows_of(p, &p->key, at, pages->key, &p->key_scale, pages->key_scale);
    t->v = key_rows_of(p, &p->value, at, pages->value, &p->value_scale, pages->value_scale);
    fill_pointers(s, t, at);
    int alike = fill_ranges(s, t, at) && !p->key_segments.data;
    fill_segments(s, t, at);
    fill_options(s, t, at);
    fill_dropout(s, t, at);
    sa_summarize_ranges(t, alike ? 1 : t->rows);
}

int sa_fill_tile(const sa_schedule *s, int64_t tile, sa_tile *t) {
    sa_row_pos at;
    t->rows = sa_rows_of_tile(s, tile, &at);
    if (!t->rows) return 0;
    sa_fill_rows(s, &at, t);
    return 1;
}

void sa_fill_row(const sa_schedule *s, int64_t tile, int row, sa_tile *t) {
    sa_row_pos at;
    sa_rows_of_tile(s, tile, &at);
    while (row-- > 0) sa_next_row(s, &at);
    t->rows = 1;
    sa_fill_rows(s, &at, t);
}

/* ------------------------------------------------------------------ the loop */

void sa_tile_loop_begin(sa_tile_loop *loop, const sa_schedule *s, sa_counter *counter) {
    loop->schedule = s;
    loop->counter = counter;
    loop->after = loop->end = 0;
    loop->current = loop->has_next = 0;
    loop->last_k = NULL;
    loop->finite = (sa_finite){0};
    for (int i = 0; i < 2; ++i) loop->tiles[i].finite = &loop->finite;
}

/* Fill in the chunk's next tile that has rows; returns 0 if there is none. */
static int fill_next(sa_tile_loop *loop, sa_tile *t) {
    const sa_schedule *s = loop->schedule;
    int64_t tile = loop->after, end = loop->end;
    while (tile < end && !sa_fill_tile(s, tile, t)) tile = sa_after_empty_tile(s, tile, end);
    loop->after = tile + 1;
    return tile < end;
}

/* The keys and values of the next head are prefetched while the tiles of this one are computed, an
 * equal share by each, if L2 has room for them beside those in use. */
static void prefetch_next_head(const sa_schedule *s, int64_t tile, int64_t end, sa_tile *t) {
    const sa_problem *p = s->problem;
    /* Where only some of the keys are seen, it does not pay. */
    if (p->cu_seqlens_q || p->query_lengths || p->kv_starts || p->kv_lengths ||
        p->window_left >= 0 || p->pages.table)
        return;
    int64_t slots = sa_first_tile(s, 1), next_head = tile / slots + 1;
    int64_t keys = p->seqlen_k, elements = L2_PREFETCH_HEAD / sa_dtype_size(p->dtype);
    if (next_head * slots >= end || keys > elements) return;
    if (keys * (p->head_dim + p->head_dim_v) > elements) return;
    int64_t begin = tile % slots * keys / slots;
    int64_t b = next_head / p->num_heads_kv, head = next_head % p->num_heads_kv;
    t->prefetch.keys = (tile % slots + 1) * keys / slots - begin;
    t->prefetch.k = sa_row_of(p, &p->key, b, head, begin);
    t->prefetch.v = sa_row_of(p, &p->value, b, head, begin);
    t->prefetch.k_row = p->key.row;
    t->prefetch.v_row = p->value.row;
}

sa_tile *sa_next_tile(sa_tile_loop *loop) {
    if (loop->has_next) {
        loop->current = !loop->current;
    } else {
        do
            if (!sa_next_chunk(loop->schedule, loop->counter, &loop->after, &loop->end))
                return NULL;
        while (!fill_next(loop, &loop->tiles[loop->current]));
    }
    sa_tile *t = &loop->tiles[loop->current], *next = &loop->tiles[!loop->current];
    loop->tile = loop->after - 1;
    loop->has_next = fill_next(loop, next);
    t->prefetch =
        (sa_prefetch){.next = loop->has_next ? next : NULL, .is_first = t->k.at != loop->last_k};
    prefetch_next_head(loop->schedule, loop->tile, loop->end, t);
    loop->last_k = t->k.at;
    return t;
}
