/* How a problem is cut: see plan.h. Called by forward.c and scores.c. */

#include "plan.h"

#include <math.h>
#include <stdlib.h>

#include "dispatch.h"
#include "mask.h"

/* Turns that a thread has on average: enough for those that are slowed to be relieved. */
enum { TURNS_PER_THREAD = 32 };

/* Work below which waking a thread costs more than it saves. */
static const double FLOPS_PER_THREAD = 150e3;

static size_t whole_lines(size_t n) { return (n + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

double sa_scale(const sa_problem *p) {
    if (!isnan(p->scale)) return p->scale;
    return p->head_dim ? 1.0 / sqrt((double)p->head_dim) : 1.0;
}

/* The keys [lo, hi) that any query of the problem sees, and how many one query sees at most. */
static int64_t visible_keys(const sa_problem *p, int64_t entries, int64_t *lo, int64_t *hi) {
    int64_t most = 0;
    *lo = p->seqlen_k;
    *hi = 0;
    for (int64_t b = 0; b < entries && p->seqlen_q; ++b) {
        int64_t first, last, ignored;
        sa_key_range(p, b, 0, &first, &ignored);
        sa_key_range(p, b, p->seqlen_q - 1, &ignored, &last);
        if (first < *lo) *lo = first;
        if (last > *hi) *hi = last;
        if (last - first > most) most = last - first;
        if (!p->query_offset_of_batch && !p->kv_lengths) break; /* all entries are alike */
    }
    if (*lo > *hi) *lo = *hi;
    if (p->window_left >= 0 && p->window_right >= 0 && p->window_left + p->window_right + 1 < most)
        most = p->window_left + p->window_right + 1;
    return most;
}

sa_plan sa_plan_make(const sa_problem *p, double q_factor, int64_t width) {
    sa_plan plan = {.problem = p, .kernels = sa_kernels_for(p->dtype), .q_factor = q_factor};
    const sa_forward_kernel *tile = &plan.kernels->tile, *few = &plan.kernels->few;
    int lanes = plan.kernels->lanes;
    int64_t entries = 1, first, last;
    for (int i = 0; i < p->batch_axes; ++i) entries *= p->batch_shape[i];
    int64_t keys = visible_keys(p, entries, &first, &last);
    double flops = 2.0 * (double)keys * (double)width * (double)entries * (double)p->num_heads_q *
                   (double)p->seqlen_q;
    plan.group = p->num_heads_kv ? p->num_heads_q / p->num_heads_kv : 0;
    plan.rows = plan.group * p->seqlen_q;
    plan.vectors = (plan.rows + lanes - 1) / lanes;
    plan.tiles_per_head = (plan.rows + tile->max_rows - 1) / tile->max_rows;
    plan.tiles = entries * p->num_heads_kv * plan.tiles_per_head;
    plan.first_split = first / SA_SPLIT_N;
    plan.splits = (last + SA_SPLIT_N - 1) / SA_SPLIT_N - plan.first_split;
    if (plan.splits < 1) plan.splits = 1;

    double threads = flops / FLOPS_PER_THREAD;
    plan.num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (plan.num_threads < 1) plan.num_threads = 1;

    plan.tiles_per_turn = plan.tiles / (TURNS_PER_THREAD * plan.num_threads);
    if (plan.tiles_per_turn > plan.tiles_per_head)
        plan.tiles_per_turn -= plan.tiles_per_turn % plan.tiles_per_head;
    if (plan.tiles_per_turn < 1) plan.tiles_per_turn = 1;

    sa_tile largest = {.head_dim = p->head_dim, .head_dim_v = p->head_dim_v};
    largest.rows = plan.rows < few->max_rows ? (int)plan.rows : few->max_rows;
    plan.scratch_size = few->scratch_size(&largest);
    plan.partial_size = few->partial_size(&largest);
    largest.rows = plan.rows < tile->max_rows ? (int)plan.rows : tile->max_rows;
    plan.scratch_size = whole_lines(max_size(plan.scratch_size, tile->scratch_size(&largest)));
    plan.partial_size = whole_lines(max_size(plan.partial_size, tile->partial_size(&largest)));
    return plan;
}

int sa_plan_turn(const sa_plan *plan, sa_counter *next, int64_t *first, int64_t *end) {
    *first = sa_take(next) * plan->tiles_per_turn;
    *end =
        *first + plan->tiles_per_turn < plan->tiles ? *first + plan->tiles_per_turn : plan->tiles;
    return *first < *end;
}

/* Where batch entry b, head h, row r of an array starts. */
static char *row_of(const sa_problem *p, const sa_array *a, int64_t b, int64_t h, int64_t r) {
    char *at = a->data + h * a->head + r * a->row;
    for (int i = p->batch_axes - 1; i >= 0; --i) {
        at += b % p->batch_shape[i] * a->batch[i];
        b /= p->batch_shape[i];
    }
    return at;
}

void sa_plan_tile(const sa_plan *plan, int64_t tile, sa_tile *t) {
    const sa_problem *p = plan->problem;
    int lanes = plan->kernels->lanes;
    int64_t head = tile / plan->tiles_per_head;
    /* The last rows first: where the mask is causal, they are the longest. */
    int64_t in_head = plan->tiles_per_head - 1 - tile % plan->tiles_per_head;
    int64_t b = head / p->num_heads_kv, head_kv = head % p->num_heads_kv;
    int64_t first = in_head * plan->vectors / plan->tiles_per_head * lanes;
    int64_t end = (in_head + 1) * plan->vectors / plan->tiles_per_head * lanes;
    if (end > plan->rows) end = plan->rows;

    t->rows = (int)(end - first);
    t->head_dim = p->head_dim;
    t->head_dim_v = p->head_dim_v;
    t->q_factor = plan->q_factor;
    t->q_col = p->query.col;
    t->k_row = p->key.row;
    t->k_col = p->key.col;
    t->v_row = p->value.row;
    t->v_col = p->value.col;
    t->out_col = p->out.col;
    t->k = row_of(p, &p->key, b, head_kv, 0);
    t->v = row_of(p, &p->value, b, head_kv, 0);
    char *q = row_of(p, &p->query, b, head_kv * plan->group, 0);
    char *out = row_of(p, &p->out, b, head_kv * plan->group, 0);
    char *lse = row_of(p, &p->lse, b, head_kv * plan->group, 0);
    int64_t i = first / plan->group, g = first % plan->group;
    for (int r = 0; r < t->rows; ++r) {
        t->q[r] = q + g * p->query.head + i * p->query.row;
        t->out[r] = out + g * p->out.head + i * p->out.row;
        t->lse[r] = p->lse.data ? lse + g * p->lse.head + i * p->lse.row : NULL;
        sa_key_range(p, b, i, &t->key_lo[r], &t->key_hi[r]);
        if (++g == plan->group) g = 0, ++i;
    }
    sa_summarize_ranges(t);
}

const sa_forward_kernel *sa_plan_kernel(const sa_plan *plan, const sa_tile *t) {
    const sa_kernels *k = plan->kernels;
    return t->rows <= k->few.max_rows ? &k->few : &k->tile;
}

void *sa_alloc(size_t count, size_t size) {
    if (size && count > (SIZE_MAX - CACHE_LINE) / size) return NULL;
    size_t total = whole_lines(count * size);
    return aligned_alloc(CACHE_LINE, total ? total : CACHE_LINE);
}

void sa_free(void *memory) { free(memory); }
