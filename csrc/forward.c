/* Attention, forward: the parallel loops over tiles and splits. The kernels compute.
 *
 * A worker takes a tile and goes through its splits in order, merging each into the total. If there
 * are too few tiles for the threads, they share a tile's splits: each split leaves its state, and
 * the worker that leaves a tile's last one merges them all, in the same order. The bits are the
 * same.
 *
 * The weighted sum of the values is divided at the end, so it may overflow although the mean does
 * not. The processor has a flag for that: rows that are not finite after an overflow are computed
 * again, each alone, with smaller weights.
 *
 * Where keys come in pieces, a tile's total begins as the states that the pieces before have left,
 * and ends as those that this one leaves (sa_state_use). */

#include <assert.h>
#include <math.h>

#include "dispatch.h"
#include "kv.h"
#include "memory.h"
#include "run.h"
#include "tile.h"
#include "visibility.h"

typedef struct {
    sa_call call;
    const sa_schedule *schedule;
    sa_kv_layout kv_layout; /* nothing is staged where splits are shared */
    sa_counter next;        /* tile, or with shared splits tile * splits + split */
    /* Shared splits only. */
    sa_counter overflowed; /* whether any of them was */
    char *states;          /* of each split of each tile */
    sa_counter *done;      /* for each tile, how many of its splits are done */
} forward_call;

/* A worker's part of the memory. */
typedef struct {
    forward_call *call;
    int worker;
    char *scratch, *total, *part; /* the kernels'; two split states */
    sa_kv kv;
    char *block_room; /* for kernels that stage a block of keys */
    int64_t
        staging_until; /* the tiles before this one are of the head that `is_staging` is about */
    int is_staging;
} forward_worker;

static forward_worker worker_of(forward_call *c, int worker, char *scratch) {
    const sa_schedule *s = c->schedule;
    forward_worker w = {.call = c, .worker = worker, .scratch = scratch};
    w.total = scratch + s->scratch_size;
    w.part = w.total + s->state_size;
    w.block_room = w.part + s->state_size;
    w.kv = (sa_kv){.layout = &c->kv_layout, .room = w.block_room + sa_kv_block_room(s->problem)};
    return w;
}

static void split(const sa_forward_kernel *kernel, const sa_tile *t, void *scratch, int64_t i,
                  void *state) {
    assert(t->rows >= 1 && t->rows <= SA_MAX_TILE_M);
    assert(t->end <= INT64_MAX - SA_SPLIT_N && i >= 0);
    int64_t end = (i + 1) * SA_SPLIT_N;
    kernel->split(t, scratch, i * SA_SPLIT_N, end < t->end ? end : t->end, state);
}

/* The splits [first, last) in which a row of the tile sees a key; the schedule's first one, if no
 * row sees any. */
static void splits_of(const sa_schedule *s, const sa_tile *t, int64_t *first, int64_t *last) {
    *first = t->begin / SA_SPLIT_N;
    *last = (t->end + SA_SPLIT_N - 1) / SA_SPLIT_N;
    if (t->begin < t->end) return;
    *first = s->first_split;
    *last = *first + 1;
}

/* The state of all of a tile's keys, those of the pieces before included; 0 if the call is
 * cancelled. *overflowed becomes 1 if any sum did. */
static int total_of_tile(forward_worker *w, const sa_tile *t, int *overflowed) {
    const sa_schedule *s = w->call->schedule;
    const sa_forward_kernel *kernel = sa_kernel_of(s, t);
    int is_begun = s->problem->state_use != SA_STATE_NONE;
    int64_t first, last;
    kernel->begin(t, w->scratch);
    if (is_begun) kernel->take_states(t, w->total);
    splits_of(s, t, &first, &last);
    for (int64_t i = first; i < last; ++i) {
        split(kernel, t, w->scratch, i, is_begun ? w->part : w->total);
        if (is_begun) kernel->merge(t, w->total, w->part);
        is_begun = 1;
        *overflowed |= sa_fp_overflowed();
        if (sa_call_cancelled(&w->call->call, w->worker)) return 0;
    }
    return 1;
}

/* Write what the problem asks for of a tile: its states, or out and lse. */
static void write_tile(const sa_schedule *s, const sa_tile *t, void *total) {
    const sa_forward_kernel *kernel = sa_kernel_of(s, t);
    if (s->problem->state_use == SA_STATE_UPDATE)
        kernel->give_states(t, total);
    else
        kernel->finish(t, total);
}

/* Returns 0 if the call is cancelled. */
static int compute_tile(forward_worker *w, const sa_tile *t, int *overflowed) {
    if (!total_of_tile(w, t, overflowed)) return 0;
    write_tile(w->call->schedule, t, w->total);
    return 1;
}

/* Whether a row of a half type that is not finite there is finite as reals: only rounding made it
 * infinite. The row is computed to the worker's memory. *goes_on becomes 0 if the call is
 * cancelled. */
static int is_finite_as_reals(forward_worker *w, sa_tile *row, int *goes_on) {
    const sa_problem *p = w->call->schedule->problem;
    if (!sa_is_half(p->dtype)) return 0;
    char *out = row->out[0];
    ptrdiff_t out_col = row->out_col;
    int overflowed = 0;
    row->out_is_real = 1, row->out[0] = w->part, row->out_col = sa_real_size(p->dtype);
    *goes_on = compute_tile(w, row, &overflowed);
    int finite =
        sa_kernels_for(sa_real_dtype(p->dtype))->is_finite(w->part, row->out_col, p->head_dim_v);
    row->out_is_real = 0, row->out[0] = out, row->out_col = out_col;
    return finite;
}

/* A power of 2 that keeps the weighted sum of all keys' values finite, those of the pieces before
 * included. */
static double small_weight(const sa_problem *p) {
    int exponent;
    frexp((double)(p->first_key + p->seqlen_k), &exponent); /* of a power of 2 above it */
    return ldexp(1, -exponent - 1);
}

/* Compute those rows of the tile that are not finite again; 0 if the call is cancelled. `t` becomes
 * the tile of one row after the other: a small stack has no room for one more. */
SA_APART static int compute_again(forward_worker *w, int64_t tile, sa_tile *t) {
    const sa_schedule *s = w->call->schedule;
    int overflowed = 0, goes_on = 1, rows = t->rows;
    char *out[SA_MAX_TILE_M];
    for (int r = 0; r < rows; ++r) out[r] = t->out[r];
    for (int r = 0; r < rows && goes_on; ++r) {
        if (s->kernels->is_finite(out[r], t->out_col, t->head_dim_v)) continue;
        sa_fill_row(s, tile, r, t);
        if (is_finite_as_reals(w, t, &goes_on) || !goes_on) continue;
        t->weight_factor = small_weight(s->problem);
        goes_on = compute_tile(w, t, &overflowed);
    }
    if (goes_on) sa_fp_clear();
    return goes_on;
}

/* Let the loop's tile read staged keys and values, if enough tiles of its chunk share them.
 * Decoding reads elements as they lie. */
static void stage_keys(forward_worker *w, sa_tile_loop *loop, sa_tile *t) {
    const sa_schedule *s = w->call->schedule;
    const sa_problem *p = s->problem;
    if (!w->kv.layout->stages_keys || sa_kernel_of(s, t) == &s->kernels->decode) return;
    int64_t b, end_of_head = sa_end_of_head(s, loop->tile, &b);
    if (loop->tile >= w->staging_until) {
        int64_t end = loop->end < end_of_head ? loop->end : end_of_head;
        w->is_staging = end - loop->tile >= sa_kv_min_tiles(p, STAGE_MIN_TILES);
        /* Once staged, the head's tiles in later chunks read the copy too. */
        w->staging_until = w->is_staging ? end_of_head : end;
    }
    if (!w->is_staging) return;
    int64_t begin, end;
    sa_keys_of_entry(p, b, &begin, &end);
    begin = begin / SA_BLOCK_N * SA_BLOCK_N;
    sa_kv_stage(&w->kv, SA_KV_K, begin, end, &t->k);
    if (sa_kv_stage(&w->kv, SA_KV_V, begin, end, &t->v)) *t->finite = (sa_finite){0};
    if (t->k.is_staged && t->v.is_staged)
        t->prefetch.is_first = 0; /* the copies are in the caches */
}

/* Whether the values' sums of a row's total, as it is in the worker's memory, are finite. */
static int total_is_finite(forward_worker *w, sa_tile *row) {
    const sa_schedule *s = w->call->schedule;
    const sa_problem *p = s->problem;
    ptrdiff_t size = sa_real_size(p->dtype);
    char *state = row->state[0];
    row->state[0] = w->part;
    sa_kernel_of(s, row)->give_states(row, w->total);
    row->state[0] = state;
    return sa_kernels_for(sa_real_dtype(p->dtype))
        ->is_finite(w->part + SA_STATE_HEAD * size, size, p->head_dim_v);
}

/* compute_tile where there are states. Where something overflows, the tile is computed row by row,
 * and rows whose sums are not finite once more, with smaller weights; until then the states are as
 * they came. `t` becomes the rows' tile, as in compute_again. */
SA_APART static int compute_with_states(forward_worker *w, int64_t tile, sa_tile *t) {
    const sa_schedule *s = w->call->schedule;
    int overflowed = 0, ignored = 0, goes_on = 1, rows = t->rows;
    int as_they_came = t->begin >= t->end && t->scoring.state_scale == 1;
    if (as_they_came && s->problem->state_use == SA_STATE_UPDATE) return 1; /* no row sees a key */
    if (!total_of_tile(w, t, &overflowed)) return 0;
    if (!overflowed) {
        write_tile(s, t, w->total);
        return 1;
    }
    for (int r = 0; r < rows && goes_on; ++r) {
        sa_fill_row(s, tile, r, t);
        goes_on = total_of_tile(w, t, &ignored);
        if (goes_on && !total_is_finite(w, t)) {
            t->weight_factor = small_weight(s->problem);
            goes_on = total_of_tile(w, t, &ignored);
        }
        if (goes_on) write_tile(s, t, w->total);
    }
    if (goes_on) sa_fp_clear();
    return goes_on;
}

static void whole_tiles(void *arg, int worker, char *scratch) {
    forward_call *c = arg;
    forward_worker w = worker_of(c, worker, scratch);
    sa_tile_loop loop;
    sa_tile_loop_begin(&loop, c->schedule, &c->next);
    for (sa_tile *t; (t = sa_next_tile(&loop));) {
        int overflowed = 0;
        t->room = w.block_room;
        stage_keys(&w, &loop, t);
        if (c->schedule->problem->state_use) {
            if (!compute_with_states(&w, loop.tile, t)) return;
            continue;
        }
        if (!compute_tile(&w, t, &overflowed)) return;
        if (overflowed && !compute_again(&w, loop.tile, t)) return;
    }
}

static char *state_of(const sa_schedule *s, char *states, int64_t split) {
    return states + (size_t)(split - s->first_split) * s->state_size;
}

static void shared_splits(void *arg, int worker, char *scratch) {
    forward_call *c = arg;
    const sa_schedule *s = c->schedule;
    forward_worker w = worker_of(c, worker, scratch);
    sa_finite finite = {0};
    for (int64_t item; (item = sa_fetch_add(&c->next)) < s->tiles * s->splits;) {
        int64_t tile = item / s->splits, i = s->first_split + item % s->splits, first, last;
        sa_tile t;
        t.finite = &finite;
        t.room = w.block_room;
        if (!sa_fill_tile(s, tile, &t)) continue;
        splits_of(s, &t, &first, &last);
        const sa_forward_kernel *kernel = sa_kernel_of(s, &t);
        char *states = c->states + (size_t)(tile * s->splits) * s->state_size;
        if (first <= i && i < last) {
            kernel->begin(&t, scratch);
            split(kernel, &t, scratch, i, state_of(s, states, i));
            if (sa_fp_overflowed()) c->overflowed = 1;
        }
        if (sa_call_cancelled(&c->call, worker)) return;
        if (sa_fetch_add(&c->done[tile]) < s->splits - 1) continue;
        int goes_on = s->problem->state_use != SA_STATE_NONE;
        char *total = goes_on ? w.total : state_of(s, states, first);
        if (goes_on) kernel->take_states(&t, total);
        for (i = first + !goes_on; i < last; ++i) kernel->merge(&t, total, state_of(s, states, i));
        int overflowed = c->overflowed || sa_fp_overflowed();
        if (goes_on && overflowed) {
            if (!compute_with_states(&w, tile, &t)) return;
            continue;
        }
        write_tile(s, &t, total);
        if (overflowed && !compute_again(&w, tile, &t)) return;
    }
}

/* Keys and values are worth staging where several tiles of a head read them. */
static sa_kv_layout kv_layout_of(const sa_schedule *s) {
    const sa_problem *p = s->problem;
    const sa_array *arrays[] = {&p->key, &p->value};
    if (!p->cu_seqlens_q && s->tiles_of_head < sa_kv_min_tiles(p, STAGE_MIN_TILES))
        return (sa_kv_layout){0};
    return sa_kv_layout_make(p, arrays, 2, s->end_key, 0, STAGED_BYTES);
}

sa_status sa_attention(const sa_problem *p) {
    sa_status status = SA_NO_MEMORY;
    forward_call c = {0};
    sa_call_begin(&c.call, p->interrupt);
    sa_schedule s = sa_schedule_make(p, 0, p->head_dim + p->head_dim_v);
    c.schedule = &s;

    int shared = s.splits > 1 && s.num_threads > 1 && s.tiles < 2 * s.num_threads;
    int64_t items = shared ? s.tiles * s.splits : s.tiles;
    if (s.num_threads > items) s.num_threads = items > 1 ? (int)items : 1;
    if (shared) {
        c.states = sa_alloc((size_t)items, s.state_size);
        c.done = sa_alloc((size_t)s.tiles, sizeof *c.done);
        if (!c.states || !c.done) goto out;
        for (int64_t i = 0; i < s.tiles; ++i) c.done[i] = 0;
    } else {
        c.kv_layout = kv_layout_of(&s);
    }
    size_t scratch_size =
        s.scratch_size + 2 * s.state_size + sa_kv_block_room(p) + c.kv_layout.size;
    status = sa_run(&c.call, s.num_threads, scratch_size, shared ? shared_splits : whole_tiles, &c);
out:
    sa_free(c.states);
    sa_free(c.done);
    return sa_call_end(&c.call, status);
}
