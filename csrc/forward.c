/* Attention, forward: the parallel loops over tiles and splits. The kernels compute.
 *
 * A worker takes a tile and walks its splits in order, merging each into the total. Where there are
 * too few tiles for the threads, they share a tile's splits: each leaves its partial result, and
 * whoever leaves a tile's last one merges them all, in the same order. The bits are the same.
 *
 * Values are summed before they are divided, so the sum of some may overflow whose mean does not.
 * The processor remembers an overflow; rows that are not finite then are computed once more, each
 * alone, with smaller weights. */

#include <assert.h>
#include <math.h>

#include "dispatch.h"
#include "packed.h"
#include "plan.h"
#include "pool.h"

typedef struct {
    const sa_plan *plan;
    char *scratch;       /* of each worker: scratch, two partial results, packed keys */
    size_t scratch_size; /* of one worker */
    size_t packed_size;  /* at its end, for keys and values; not where splits are shared */
    sa_counter next;     /* tile, or with shared splits tile * splits + split */
    sa_call call;
    /* Shared splits only. */
    sa_counter overflowed; /* whether any of them was */
    char *states;          /* of each split of each tile */
    sa_counter *done;      /* for each tile, its splits that are */
} forward_call;

static void split(const sa_forward_kernel *kernel, const sa_tile *t, void *scratch, int64_t i,
                  void *state) {
    assert(t->rows >= 1 && t->rows <= SA_MAX_TILE_M);
    assert(t->end <= INT64_MAX - SA_SPLIT_N && i >= 0);
    int64_t end = (i + 1) * SA_SPLIT_N;
    kernel->split(t, scratch, i * SA_SPLIT_N, end < t->end ? end : t->end, state);
}

/* The splits [first, last) in which a row of the tile sees a key; one at least, of the plan's. */
static void splits_of(const sa_plan *plan, const sa_tile *t, int64_t *first, int64_t *last) {
    *first = t->begin / SA_SPLIT_N;
    *last = (t->end + SA_SPLIT_N - 1) / SA_SPLIT_N;
    if (t->begin < t->end) return;
    *first = plan->first_split;
    *last = *first + 1;
}

/* Returns 0 if the call is cancelled. *overflowed becomes 1 if any sum did. */
static int compute_tile(forward_call *c, const sa_tile *t, char *scratch, int worker,
                        int *overflowed) {
    char *total = scratch + c->plan->scratch_size, *part = total + c->plan->state_size;
    const sa_forward_kernel *kernel = sa_plan_kernel(c->plan, t);
    kernel->begin(t, scratch);
    int64_t first, last;
    splits_of(c->plan, t, &first, &last);
    for (int64_t i = first; i < last; ++i) {
        split(kernel, t, scratch, i, i == first ? total : part);
        if (i > first) kernel->merge(t, scratch, total, part);
        *overflowed |= sa_fp_overflowed();
        if (sa_call_cancelled(&c->call, worker)) return 0;
    }
    kernel->finish(t, scratch, total);
    return 1;
}

/* The tile's rows that are not finite, once more; 0 if the call is cancelled. */
static int compute_again(forward_call *c, int64_t tile, const sa_tile *t, char *scratch,
                         int worker) {
    const sa_kernels *k = c->plan->kernels;
    int exponent, overflowed = 0;
    frexp((double)c->plan->problem->seqlen_k, &exponent); /* of a power of 2 above it */
    sa_finite finite = {0};
    for (int r = 0; r < t->rows; ++r) {
        if (k->is_finite(t->out[r], t->out_col, t->head_dim_v)) continue;
        sa_tile row;
        row.finite = &finite;
        sa_plan_row(c->plan, tile, r, &row);
        row.weight_factor = ldexp(1, -exponent - 1);
        if (!compute_tile(c, &row, scratch, worker, &overflowed)) return 0;
    }
    sa_fp_clear();
    return 1;
}

static int whole_tile(forward_call *c, int64_t tile, const sa_tile *t, char *scratch, int worker) {
    int overflowed = 0;
    if (!compute_tile(c, t, scratch, worker, &overflowed)) return 0;
    return !overflowed || compute_again(c, tile, t, scratch, worker);
}

/* Plan the first tile from *tile on that has rows, and move behind it; 0 if there is none before
 * `end`. */
static int plan_next(const sa_plan *plan, int64_t *tile, int64_t end, sa_tile *t) {
    int64_t found = sa_plan_next_tile(plan, *tile, end, t);
    *tile = found + 1;
    return found < end;
}

static void whole_tiles(void *arg, int worker) {
    forward_call *c = arg;
    char *scratch = c->scratch + (size_t)worker * c->scratch_size;
    sa_packed packed = {0};
    if (c->packed_size) packed.memory = scratch + c->scratch_size - c->packed_size;
    sa_finite finite = {0};
    sa_tile tiles[2], *t = &tiles[0], *next = &tiles[1];
    const char *last_k = NULL;
    t->finite = next->finite = &finite;
    for (int64_t tile, end; sa_next_chunk(c->plan, &c->next, &tile, &end);)
        for (int more = plan_next(c->plan, &tile, end, t); more;) {
            int64_t this = tile - 1;
            more = plan_next(c->plan, &tile, end, next);
            sa_plan_prefetch(c->plan, this, end, more ? next : NULL, last_k, t);
            last_k = t->k;
            sa_pack_keys(c->plan, &packed, this, end, t);
            if (!whole_tile(c, this, t, scratch, worker)) return;
            sa_tile *done = t;
            t = next, next = done;
        }
}

static char *state_of(const sa_plan *plan, char *states, int64_t split) {
    return states + (size_t)(split - plan->first_split) * plan->state_size;
}

static void shared_splits(void *arg, int worker) {
    forward_call *c = arg;
    const sa_plan *plan = c->plan;
    char *scratch = c->scratch + (size_t)worker * c->scratch_size;
    sa_finite finite = {0};
    for (int64_t item; (item = sa_fetch_add(&c->next)) < plan->tiles * plan->splits;) {
        int64_t tile = item / plan->splits, i = plan->first_split + item % plan->splits, first,
                last;
        sa_tile t;
        t.finite = &finite;
        if (!sa_plan_tile(plan, tile, &t)) continue;
        splits_of(plan, &t, &first, &last);
        const sa_forward_kernel *kernel = sa_plan_kernel(plan, &t);
        char *states = c->states + (size_t)(tile * plan->splits) * plan->state_size;
        if (first <= i && i < last) {
            kernel->begin(&t, scratch);
            split(kernel, &t, scratch, i, state_of(plan, states, i));
            if (sa_fp_overflowed()) c->overflowed = 1;
        }
        if (sa_call_cancelled(&c->call, worker)) return;
        if (sa_fetch_add(&c->done[tile]) < plan->splits - 1) continue;
        char *total = state_of(plan, states, first);
        for (i = first + 1; i < last; ++i)
            kernel->merge(&t, scratch, total, state_of(plan, states, i));
        int overflowed = c->overflowed || sa_fp_overflowed();
        kernel->finish(&t, scratch, total);
        if (overflowed && !compute_again(c, tile, &t, scratch, worker)) return;
    }
}

sa_status sa_attention(const sa_problem *p) {
    sa_status status = SA_NO_MEMORY;
    forward_call c = {0};
    sa_call_begin(&c.call, p->interrupt);
    sa_plan plan = sa_plan_make(p, 0, p->head_dim + p->head_dim_v);
    c.plan = &plan;

    int shared = plan.splits > 1 && plan.num_threads > 1 && plan.tiles < 2 * plan.num_threads;
    int64_t items = shared ? plan.tiles * plan.splits : plan.tiles;
    if (plan.num_threads > items) plan.num_threads = items > 1 ? (int)items : 1;
    c.packed_size = shared ? 0 : sa_packed_size(&plan);
    c.scratch_size = plan.scratch_size + 2 * plan.state_size + c.packed_size;
    _Alignas(CACHE_LINE) char small[SA_SMALL_SCRATCH];
    int is_small = plan.num_threads == 1 && c.scratch_size <= sizeof small;
    c.scratch = is_small ? small : sa_alloc((size_t)plan.num_threads, c.scratch_size);
    if (!c.scratch) goto out;
    if (shared) {
        c.states = sa_alloc((size_t)items, plan.state_size);
        c.done = sa_alloc((size_t)plan.tiles, sizeof *c.done);
        if (!c.states || !c.done) goto out;
        for (int64_t i = 0; i < plan.tiles; ++i) c.done[i] = 0;
    }
    sa_parallel(plan.num_threads, shared ? shared_splits : whole_tiles, &c, &c.call);
    status = SA_OK;
out:
    if (!is_small) sa_free(c.scratch);
    sa_free(c.states);
    sa_free(c.done);
    sa_status left = sa_call_end(&c.call);
    return status == SA_OK ? left : status;
}
