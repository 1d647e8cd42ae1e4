/* One tile of a plan: which batch entry and head it is of, its rows' pointers, their key ranges and
 * options. Called by the loops of forward.c, scores.c and backward.c, before the kernels. */

#include <string.h>

#include "mask.h"
#include "plan.h"

int64_t sa_entries(const sa_problem *p) {
    int64_t entries = 1;
    for (int i = 0; i < p->batch_axes; ++i) entries *= p->batch_shape[i];
    return entries;
}

char *sa_row_of(const sa_problem *p, const sa_array *a, int64_t b, int64_t h, int64_t r) {
    char *at = a->data + h * a->head + r * a->row;
    for (int i = p->batch_axes - 1; i >= 0; --i) {
        at += b % p->batch_shape[i] * a->batch[i];
        b /= p->batch_shape[i];
    }
    return at;
}

/* Where the tiles of batch entry b start in a head's count. Those of packed sequences are counted
 * by the rows before them, and one more, so that no list of them is needed; some are empty. */
int64_t sa_first_tile(const sa_plan *plan, int64_t b) {
    const sa_problem *p = plan->problem;
    if (p->cu_seqlens_q) return p->cu_seqlens_q[b] * plan->group / plan->kernels->prefill.rows + b;
    return b * plan->tiles_of_head;
}

/* As many as suit the kernel; where that leaves one vector over, the others take it in, unless
 * threads would be idle. */
int64_t sa_tiles_of(const sa_plan *plan, int64_t rows) {
    const sa_forward_kernel *tile = &plan->kernels->prefill;
    int64_t tiles = (rows + tile->rows - 1) / tile->rows, lanes = plan->kernels->lanes;
    int64_t most = plan->merge_tail ? tile->max_rows : tile->rows;
    int leaves_vector = rows - (tiles - 1) * tile->rows <= lanes;
    return tiles > 1 && leaves_vector && most > tile->rows ? tiles - 1 : tiles;
}

/* The batch entry that has the tile, counted over all heads: the last to start at or before it. */
static int64_t entry_of_tile(const sa_plan *plan, int64_t tile) {
    const sa_problem *p = plan->problem;
    int64_t low = 0, high = sa_entries(p);
    if (!p->cu_seqlens_q) return tile / (sa_first_tile(plan, 1) * p->num_heads_kv);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (sa_first_tile(plan, middle) * p->num_heads_kv <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static double sa_load_scalar(const sa_problem *p, const char *at) {
    float x;
    double y;
    if (p->dtype == SA_f64) return memcpy(&y, at, sizeof y), y;
    return memcpy(&x, at, sizeof x), x;
}

void sa_store_scalar(sa_dtype dtype, void *at, double x) {
    float narrow = (float)x;
    if (dtype == SA_f64)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &narrow, sizeof narrow);
}

/* Keys of one segment, where segments ascend and are ranges therefore. */
typedef struct {
    int64_t id, lo, hi;
} segment_range;

static segment_range range_of_segment(const sa_problem *p, int64_t b, int64_t id) {
    const char *ids = sa_row_of(p, &p->key_segments, b, 0, sa_first_key(p, b));
    int64_t n = sa_num_keys(p, b);
    ptrdiff_t stride = p->key_segments.row;
    segment_range s = {.id = id, .hi = n};
    s.lo = sa_segments_below(ids, stride, p->segment_size, n, id);
    if (id < INT64_MAX) s.hi = sa_segments_below(ids, stride, p->segment_size, n, id + 1);
    return s;
}

void sa_next_row(const sa_plan *plan, sa_row_pos *at) {
    if (++at->g == plan->group) at->g = 0, ++at->i;
}

/* The place of the tile's first row, and how many it has: none in a slot of packed sequences that
 * is left over. */
static int find_rows(const sa_plan *plan, int64_t tile, sa_row_pos *at) {
    const sa_problem *p = plan->problem;
    int64_t b = entry_of_tile(plan, tile), lanes = plan->kernels->lanes;
    int64_t slots = sa_first_tile(plan, b + 1) - sa_first_tile(plan, b);
    int64_t of_entry = tile - sa_first_tile(plan, b) * p->num_heads_kv;
    int64_t rows = plan->group * sa_num_queries(p, b);
    int64_t tiles = sa_tiles_of(plan, rows);
    int64_t vectors = (rows + lanes - 1) / lanes;
    /* The last rows first: where the mask is causal, they are the longest. */
    int64_t in_head = slots - 1 - of_entry % slots;
    if (in_head >= tiles) return 0;
    /* The tiles divide the vectors evenly. */
    int64_t first = in_head * vectors / tiles * lanes;
    int64_t end = (in_head + 1) * vectors / tiles * lanes;
    *at = (sa_row_pos){b, of_entry / slots, first / plan->group, first % plan->group};
    return (int)((end < rows ? end : rows) - first);
}

/* An array's rows, one after another: those of a group's heads, then of the next query's. */
typedef struct {
    char *at;
    ptrdiff_t to_head, to_query;
} row_iter;

static row_iter row_iter_begin(const sa_plan *plan, const sa_array *a, const sa_row_pos *at) {
    const sa_problem *p = plan->problem;
    int64_t head = at->head_kv * plan->group + at->g;
    return (row_iter){
        .at = sa_row_of(p, a, at->b, head, sa_first_query(p, at->b) + at->i),
        .to_head = a->head,
        .to_query = a->row - (plan->group - 1) * a->head,
    };
}

static char *row_iter_next(row_iter *w, int ends_group) {
    char *at = w->at;
    w->at += ends_group ? w->to_query : w->to_head;
    return at;
}

static void fill_rows(const sa_plan *plan, sa_tile *t, const sa_row_pos *at) {
    const sa_problem *p = plan->problem;
    row_iter q = row_iter_begin(plan, &p->query, at), out = row_iter_begin(plan, &p->out, at),
             lse = {0};
    int64_t g = at->g;
    t->has_lse = p->lse.data != NULL;
    if (t->has_lse) lse = row_iter_begin(plan, &p->lse, at);
    for (int r = 0; r < t->rows; ++r) {
        int ends_group = ++g == plan->group;
        if (ends_group) g = 0;
        t->q[r] = row_iter_next(&q, ends_group);
        t->out[r] = row_iter_next(&out, ends_group);
        if (t->has_lse) t->lse[r] = row_iter_next(&lse, ends_group);
    }
}

/* The keys that the rows see by windows and lengths. Returns whether they are the same for all
 * rows. */
static int fill_ranges(const sa_plan *plan, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = plan->problem;
    if (p->window_left < 0 && p->window_right < 0) {
        int64_t lo, hi;
        sa_key_range(p, first->b, first->i, &lo, &hi);
        for (int r = 0; r < t->rows; ++r) t->key_lo[r] = lo, t->key_hi[r] = hi;
        return 1;
    }
    sa_row_pos at = *first;
    for (int r = 0; r < t->rows; ++r, sa_next_row(plan, &at))
        sa_key_range(p, at.b, at.i, &t->key_lo[r], &t->key_hi[r]);
    return 0;
}

/* The rows' segments: they narrow the ranges, or are the kernels' where they do not ascend. */
static void fill_segments(const sa_plan *plan, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = plan->problem;
    segment_range keys = {0};
    t->key_segments = NULL;
    if (!p->key_segments.data) return;
    sa_row_pos at = *first;
    t->segment_size = p->segment_size;
    t->segment_row = p->key_segments.row;
    if (!plan->segments_ascend)
        t->key_segments = sa_row_of(p, &p->key_segments, at.b, 0, sa_first_key(p, at.b));
    const char *ids = sa_row_of(p, &p->query_segments, at.b, 0, sa_first_query(p, at.b));
    for (int r = 0; r < t->rows; ++r, sa_next_row(plan, &at)) {
        t->segment[r] = sa_segment_id(ids + at.i * p->query_segments.row, p->segment_size);
        if (!plan->segments_ascend) continue;
        if (r == 0 || t->segment[r] != keys.id) keys = range_of_segment(p, at.b, t->segment[r]);
        if (keys.lo > t->key_lo[r]) t->key_lo[r] = keys.lo;
        if (keys.hi < t->key_hi[r]) t->key_hi[r] = keys.hi;
        if (t->key_lo[r] > t->key_hi[r]) t->key_lo[r] = t->key_hi[r];
    }
}

/* The rows' masks, slopes and sinks. */
static void fill_options(const sa_plan *plan, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = plan->problem;
    t->mask_kind = p->mask_kind;
    t->mask_col = p->mask.col;
    t->has_alibi = p->alibi_slopes.data != NULL;
    t->has_sinks = p->sinks.data != NULL;
    if (!t->mask_kind && !t->has_alibi && !t->has_sinks) return;
    sa_row_pos at = *first;
    for (int r = 0; r < t->rows; ++r, sa_next_row(plan, &at)) {
        int64_t head = at.head_kv * plan->group + at.g;
        if (t->mask_kind)
            t->mask[r] = sa_row_of(p, &p->mask, at.b, head, sa_first_query(p, at.b) + at.i);
        if (t->has_alibi)
            t->slope[r] = sa_load_scalar(p, sa_row_of(p, &p->alibi_slopes, at.b, head, 0));
        if (t->has_alibi) t->position[r] = sa_position(p, at.b, at.i);
        if (t->has_sinks) t->sink[r] = sa_load_scalar(p, sa_row_of(p, &p->sinks, at.b, head, 0));
    }
}

/* What a row's place is called by dropout: a hash of the seed and of the place, to which an axis of
 * length 1 adds nothing (splitmix64's finaliser; Steele, Lea and Flood, 2014). */
static uint64_t mix64(uint64_t z) {
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t of_axis(int64_t index, int axis) {
    return (uint64_t)index * (mix64((uint64_t)(axis + 1) * 0x9e3779b97f4a7c15u) | 1);
}

static void fill_dropout(const sa_plan *plan, sa_tile *t, const sa_row_pos *first) {
    const sa_problem *p = plan->problem;
    if (!t->scoring.has_dropout) return;
    sa_row_pos at = *first;
    uint64_t of_entry = mix64(p->dropout_seed);
    int64_t b = at.b;
    for (int i = p->batch_axes - 1; i >= 0; --i) {
        of_entry += of_axis(b % p->batch_shape[i], p->batch_axes - 1 - i + 2);
        b /= p->batch_shape[i];
    }
    int lanes = plan->kernels->lanes, padded = (t->rows + lanes - 1) / lanes * lanes;
    for (int r = 0; r < padded; ++r, sa_next_row(plan, &at)) {
        int64_t head = at.head_kv * plan->group + at.g;
        uint64_t row = mix64(of_entry + of_axis(at.i, 0) + of_axis(head, 1));
        t->drop_low[r] = (uint32_t)row;
        t->drop_high[r] = (uint32_t)(row >> 32);
    }
}

int sa_plan_tile(const sa_plan *plan, int64_t tile, sa_tile *t) {
    sa_row_pos at;
    t->rows = find_rows(plan, tile, &at);
    if (!t->rows) return 0;
    sa_plan_rows(plan, &at, t);
    return 1;
}

void sa_plan_row(const sa_plan *plan, int64_t tile, int row, sa_tile *t) {
    sa_row_pos at;
    find_rows(plan, tile, &at);
    while (row-- > 0) sa_next_row(plan, &at);
    t->rows = 1;
    sa_plan_rows(plan, &at, t);
}

/* The tile after one that has no rows and lies before `end`. A run of empty sequences is stepped
 * over at once, without the search for each one's entry. */
static int64_t after_empty(const sa_plan *plan, int64_t tile, int64_t end) {
    const sa_problem *p = plan->problem;
    int64_t b = entry_of_tile(plan, tile), last = entry_of_tile(plan, end - 1);
    if (sa_num_queries(p, b)) return tile + 1;
    while (b <= last && !sa_num_queries(p, b)) ++b;
    return sa_first_tile(plan, b) * p->num_heads_kv;
}

int64_t sa_plan_next_tile(const sa_plan *plan, int64_t tile, int64_t end, sa_tile *t) {
    while (tile < end && !sa_plan_tile(plan, tile, t)) tile = after_empty(plan, tile, end);
    return tile;
}

int64_t sa_end_of_head(const sa_plan *plan, int64_t tile, int64_t *b) {
    *b = entry_of_tile(plan, tile);
    int64_t first = sa_first_tile(plan, *b), slots = sa_first_tile(plan, *b + 1) - first;
    int64_t of_entry = tile - first * plan->problem->num_heads_kv;
    return tile + slots - of_entry % slots;
}

/* A head's keys and values are fetched prefetch if this many bytes hold them: the second cache has
 * room for them beside those in use. */
enum { AHEAD_BYTES = 256 * 1024 };

/* The share of a tile in the keys of the next head, which are all fetched when its first tile
 * begins. */
static void fill_prefetch(const sa_plan *plan, int64_t tile, int64_t end, sa_tile *t) {
    const sa_problem *p = plan->problem;
    /* Where only some of them are seen, they are not worth it. */
    if (p->cu_seqlens_q || p->kv_lengths || p->window_left >= 0) return;
    int64_t slots = sa_first_tile(plan, 1), next_head = tile / slots + 1;
    int64_t keys = p->seqlen_k, size = sa_dtype_size(p->dtype);
    if (next_head * slots >= end || keys > AHEAD_BYTES / size) return;
    if (keys * (p->head_dim + p->head_dim_v) > AHEAD_BYTES / size) return;
    int64_t begin = tile % slots * keys / slots;
    int64_t b = next_head / p->num_heads_kv, head = next_head % p->num_heads_kv;
    t->prefetch.keys = (tile % slots + 1) * keys / slots - begin;
    t->prefetch.k = sa_row_of(p, &p->key, b, head, begin);
    t->prefetch.v = sa_row_of(p, &p->value, b, head, begin);
    t->prefetch.k_row = p->key.row;
    t->prefetch.v_row = p->value.row;
}

void sa_plan_prefetch(const sa_plan *plan, int64_t tile, int64_t end, const sa_tile *next,
                      const char *last_k, sa_tile *t) {
    t->prefetch = (sa_prefetch){.next = next, .is_first = t->k != last_k};
    fill_prefetch(plan, tile, end, t);
}

void sa_plan_rows(const sa_plan *plan, const sa_row_pos *at, sa_tile *t) {
    const sa_problem *p = plan->problem;
    t->prefetch = (sa_prefetch){0};
    t->weight_factor = 1;
    t->group = plan->group;
    t->head_dim = p->head_dim;
    t->head_dim_v = p->head_dim_v;
    t->scoring = plan->scoring;
    t->q_col = p->query.col;
    t->k_row = p->key.row;
    t->k_col = p->key.col;
    t->v_row = p->value.row;
    t->v_col = p->value.col;
    t->out_col = p->out.col;
    t->k = sa_row_of(p, &p->key, at->b, at->head_kv, sa_first_key(p, at->b));
    t->v = sa_row_of(p, &p->value, at->b, at->head_kv, sa_first_key(p, at->b));
    fill_rows(plan, t, at);
    int alike = fill_ranges(plan, t, at) && !p->key_segments.data;
    fill_segments(plan, t, at);
    fill_options(plan, t, at);
    fill_dropout(plan, t, at);
    sa_summarize_ranges(t, alike ? 1 : t->rows);
}

const sa_forward_kernel *sa_plan_kernel(const sa_plan *plan, const sa_tile *t) {
    const sa_kernels *k = plan->kernels;
    return t->rows <= k->decode.max_rows ? &k->decode : &k->prefill;
}
