/* How a problem is cut: see plan.h. Called by forward.c, scores.c and gradient_plan.c; tile.c fills
 * single tiles. */

#include "plan.h"

#include <math.h>
#include <stdlib.h>

#include "dispatch.h"
#include "mask.h"

/* A turn is this fraction of a thread's part of the tiles that are left: long at first, so that
 * what neighbours share stays in a thread's caches, and short in the end, so that nobody waits for
 * long. */
enum { CHUNKS_PER_THREAD = 4 };

static const double LOG2_E = 1.4426950408889634;

int64_t sa_dtype_size(sa_dtype dtype) { return dtype == SA_f64 ? sizeof(double) : sizeof(float); }

size_t sa_whole_lines(size_t n) { return (n + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* ------------------------------------------------------------------ the scores */

static sa_scoring scoring_of(const sa_problem *p, int as_scores) {
    double scale = p->scale;
    if (isnan(scale)) scale = p->head_dim ? 1.0 / sqrt((double)p->head_dim) : 1.0;
    sa_scoring s = {.q_factor = 0, .scale = 1, .softcap = p->softcap};
    s.in_natural_units = as_scores || p->softcap > 0 || p->alibi_slopes.data ||
                         p->mask_kind == SA_MASK_F32 || p->mask_kind == SA_MASK_F64;
    if (scale != 0) {
        /* q never grows: s.scale is 1 at least. */
        int exponent;
        frexp(scale, &exponent);
        if (exponent > 1) exponent = 1;
        s.q_factor = ldexp(scale < 0 ? -1 : 1, exponent - 1);
        s.scale = ldexp(fabs(scale), 1 - exponent);
    }
    s.has_dropout = p->dropout_p > 0;
    double below = floor(ldexp(p->dropout_p, 32) + 0.5);
    s.dropout_threshold = below < UINT32_MAX ? (uint32_t)below : UINT32_MAX;
    s.dropout_scale = p->dropout_p < 1 ? 1 / (1 - p->dropout_p) : 0;
    s.scale_ln = s.in_natural_units ? 1 : s.scale;
    s.scale_log2 = s.scale_ln * LOG2_E;
    return s;
}

/* ------------------------------------------------------------------ the keys */

/* The keys that the queries see by their ranges. */
typedef struct {
    int64_t first, last; /* any query sees only keys first <= j < last */
    double pairs;        /* of a query and a key that it sees, in one head: at most about so many */
} key_bounds;

static key_bounds key_bounds_of(const sa_problem *p, int64_t entries) {
    int alike = !p->query_offset_of_batch && !p->kv_lengths && !p->cu_seqlens_q && !p->cu_seqlens_k;
    key_bounds s = {.first = INT64_MAX};
    for (int64_t b = 0; b < (alike && entries ? 1 : entries); ++b) {
        int64_t first, last, ignored, queries = sa_num_queries(p, b);
        if (queries == 0) continue;
        sa_key_range(p, b, 0, &first, &ignored);
        sa_key_range(p, b, queries - 1, &ignored, &last);
        if (first < s.first) s.first = first;
        if (last > s.last) s.last = last;
        int64_t most = sa_most_keys(p, last - first);
        s.pairs += (double)queries * (double)most * (alike ? (double)entries : 1);
    }
    if (s.first > s.last) s.first = s.last;
    return s;
}

static int ascend(const char *id, ptrdiff_t stride, int size, int64_t n) {
    for (int64_t j = 1; j < n; ++j, id += stride)
        if (sa_segment_id(id + stride, size) < sa_segment_id(id, size)) return 0;
    return 1;
}

/* Whether batch entry b has the ids of an entry before it: one whose index along an axis that does
 * not move them is 0. */
static int repeats_segments(const sa_problem *p, int64_t b) {
    for (int i = p->batch_axes - 1; i >= 0 && !p->cu_seqlens_k; --i) {
        if (p->key_segments.batch[i] == 0 && b % p->batch_shape[i] > 0) return 1;
        b /= p->batch_shape[i];
    }
    return 0;
}

/* Whether the keys' segments never go back, in any batch entry. */
static int segments_ascend(const sa_problem *p, int64_t entries) {
    if (!p->key_segments.data) return 0;
    for (int64_t b = 0; b < entries; ++b) {
        if (repeats_segments(p, b)) continue;
        const char *ids = sa_row_of(p, &p->key_segments, b, 0, sa_first_key(p, b));
        if (!ascend(ids, p->key_segments.row, p->segment_size, sa_num_keys(p, b))) return 0;
    }
    return 1;
}

/* ------------------------------------------------------------------ the plan */

/* Threads that are worth waking, if queries and keys make so many pairs in each head, and `width`
 * elements are multiplied for each pair. */
static double threads_worth(const sa_problem *p, double pairs, int64_t width) {
    return 2.0 * pairs * (double)width * (double)p->num_heads_q / SA_FLOPS_PER_THREAD;
}

int sa_is_serial(const sa_problem *p) {
    double pairs = (double)sa_entries(p) * (double)p->seqlen_q * (double)p->seqlen_k;
    return threads_worth(p, pairs, p->head_dim + p->head_dim_v) < 2;
}

sa_plan sa_plan_make(const sa_problem *p, int as_scores, int64_t width) {
    sa_plan plan = {.problem = p, .kernels = sa_kernels_for(p->dtype)};
    const sa_forward_kernel *prefill = &plan.kernels->prefill, *decode = &plan.kernels->decode;
    /* Without rows there is nothing to plan, however many batch entries have none. */
    int64_t entries = p->num_heads_q && p->seqlen_q ? sa_entries(p) : 0;
    key_bounds bounds = key_bounds_of(p, entries);
    plan.scoring = scoring_of(p, as_scores);
    plan.group = p->num_heads_kv ? p->num_heads_q / p->num_heads_kv : 0;
    plan.merge_tail = entries * p->num_heads_kv >= p->num_threads;
    plan.tiles_of_head = sa_tiles_of(&plan, p->seqlen_q * plan.group);
    plan.tiles = entries ? sa_first_tile(&plan, entries) * p->num_heads_kv : 0;
    plan.segments_ascend = segments_ascend(p, entries);
    plan.end_key = bounds.last;
    plan.first_split = bounds.first / SA_SPLIT_N;
    plan.splits = (bounds.last + SA_SPLIT_N - 1) / SA_SPLIT_N - plan.first_split;
    if (plan.splits < 1) plan.splits = 1;

    double threads = threads_worth(p, bounds.pairs, width);
    plan.num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (plan.num_threads < 1) plan.num_threads = 1;

    int64_t rows = plan.group * p->seqlen_q;
    int decode_rows = rows < decode->max_rows ? (int)rows : decode->max_rows;
    int prefill_rows = rows < prefill->max_rows ? (int)rows : prefill->max_rows;
    plan.scratch_size = sa_whole_lines(max_size(decode->scratch_size(decode_rows, p->head_dim),
                                                prefill->scratch_size(prefill_rows, p->head_dim)));
    plan.state_size = sa_whole_lines(max_size(decode->state_size(decode_rows, p->head_dim_v),
                                              prefill->state_size(prefill_rows, p->head_dim_v)));
    return plan;
}

int sa_next_chunk(const sa_plan *plan, sa_counter *next, int64_t *first, int64_t *end) {
    int64_t begin = *next, to;
    int packed = plan->problem->cu_seqlens_q != NULL; /* sequences' tiles differ in number */
    do {
        int64_t chunk = (plan->tiles - begin) / (CHUNKS_PER_THREAD * plan->num_threads);
        to = begin + (chunk > 1 ? chunk : 1);
        if (!packed && chunk > plan->tiles_of_head) to -= to % plan->tiles_of_head;
    } while (begin < plan->tiles && !sa_cas(next, &begin, to));
    *first = begin;
    *end = to < plan->tiles ? to : plan->tiles;
    return begin < plan->tiles;
}

void *sa_alloc(size_t count, size_t size) {
    if (size && count > (SIZE_MAX - CACHE_LINE) / size) return NULL;
    size_t total = sa_whole_lines(count * size);
    return aligned_alloc(CACHE_LINE, total ? total : CACHE_LINE);
}

void sa_free(void *memory) { free(memory); }
