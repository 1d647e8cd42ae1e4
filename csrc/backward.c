/* Attention, backward: the parallel loop over jobs. The kernels compute; gradient_plan.c cuts.
 *
 * A job owns what it writes: a part of some gradients, of one batch entry and key/value head, or of
 * all those that the input was broadcast over. It walks them, then its tiles of rows, then their
 * keys, in an order that depends on nothing but the problem: so do the bits, whoever takes which
 * job. */

#include "dispatch.h"
#include "gradient_packed.h"
#include "gradient_plan.h"
#include "pool.h"

typedef struct {
    const sa_gradient_plan *plan;
    sa_packed_layout packed_layout;
    char *scratch; /* of each worker: sums of a group's sinks, the kernels' own, packed arrays */
    size_t scratch_size;
    sa_counter next;
    sa_call call;
} backward_call;

/* What a worker knows from tile to tile. */
typedef struct {
    backward_call *loop;
    int worker;
    char *scratch;
    double *sinks;
    sa_packed_job packed;
    sa_finite finite;
} worker_state;

typedef void (*split_step)(const sa_backward_tile *t, void *scratch, int64_t key_begin,
                           int64_t key_end);

/* Those of keys [begin, end) that the tile sees, split by split as in the forward pass; 0 if the
 * call is cancelled. */
static int walk_keys(worker_state *w, split_step step, const sa_backward_tile *t, int64_t begin,
                     int64_t end) {
    if (begin < t->fwd.begin) begin = t->fwd.begin;
    if (end > t->fwd.end) end = t->fwd.end;
    begin -= begin % SA_BLOCK_N;
    for (int64_t next; begin < end; begin = next) {
        next = (begin / SA_SPLIT_N + 1) * SA_SPLIT_N;
        step(t, w->scratch, begin, next < end ? next : end);
        if (sa_call_cancelled(&w->loop->call, w->worker)) return 0;
    }
    return 1;
}

/* What the job wants of one tile; 0 if the call is cancelled. */
static int compute_tile(worker_state *w, const sa_job *job, sa_backward_tile *t) {
    const sa_backward_kernel *kernel = &w->loop->plan->rows.kernels->backward;
    if (kernel->begin(t, w->scratch)) {
        if (!walk_keys(w, kernel->row_stats, t, 0, INT64_MAX)) return 0;
        kernel->check_row_stats(t, w->scratch);
    }
    if (t->needs_grad & SA_GRADIENT_SINKS)
        kernel->sinks(t, w->scratch);
    else if (!walk_keys(w, kernel->split, t, job->key_begin, job->key_end))
        return 0;
    if (t->needs_grad & SA_GRADIENT_QUERY) kernel->finish(t, w->scratch);
    return !sa_call_cancelled(&w->loop->call, w->worker);
}

/* Where a worker stands in its jobs. */
typedef struct {
    sa_job job;      /* without a pass before the first */
    int64_t i, tile; /* the next one's */
} job_pos;

/* A tile of a job; or without rows, the job's beginning alone. */
typedef struct {
    sa_job job;
    int begins_job;
    sa_backward_tile t;
} job_step;

static int next_tile(worker_state *w, job_pos *at, sa_backward_tile *t) {
    for (; at->i < at->job.pass->broadcast; ++at->i, at->tile = at->job.tile_begin) {
        if (at->tile >= at->job.tile_end) continue;
        t->is_first = at->tile == at->job.tile_begin;
        if (sa_gradient_tile_of(w->loop->plan, &at->job, at->i, at->tile++, w->sinks, t)) return 1;
    }
    return 0;
}

/* Take the next job that has something to do; the number of jobs if there is none. */
static int64_t take_job(backward_call *c) {
    for (;;) {
        int64_t i = sa_fetch_add(&c->next), needs_grad = sa_next_job(c->plan, i);
        if (i >= c->plan->jobs) return c->plan->jobs;
        if (needs_grad == i) return i;
        for (int64_t fwd = i + 1; fwd < needs_grad && !sa_cas(&c->next, &fwd, needs_grad);)
            continue;
    }
}

/* The worker's next step. Where there is none in its job, it takes another one, if more than so
 * many are left for the others; or else it is 0. */
static int next_step(worker_state *w, job_pos *at, int64_t for_others, job_step *step) {
    const sa_gradient_plan *plan = w->loop->plan;
    step->t.fwd.finite = &w->finite;
    step->begins_job = 0;
    if (!at->job.pass || !next_tile(w, at, &step->t)) {
        if (w->loop->next >= plan->jobs - for_others) return 0;
        int64_t i = take_job(w->loop);
        if (i >= plan->jobs) return 0;
        *at = (job_pos){.job = sa_job_of(plan, i)};
        at->tile = at->job.tile_begin;
        step->begins_job = 1;
        if (!next_tile(w, at, &step->t)) step->t.fwd.rows = 0;
    }
    step->job = at->job;
    return 1;
}

/* Keys' gradients grow from 0. */
static void begin_job(worker_state *w, const sa_job *job) {
    const sa_gradient_plan *plan = w->loop->plan;
    const sa_backward_kernel *kernel = &plan->rows.kernels->backward;
    const sa_problem *p = plan->rows.problem;
    const sa_array *key = &plan->gradients->key, *value = &plan->gradients->value;
    const sa_key_gradients *grow = &w->packed.grow;
    sa_packed_job_begin(&w->packed, job);
    if (job->pass->needs_grad & SA_GRADIENT_KEY)
        kernel->clear(grow->key, grow->key_row, key->col, grow->rows, p->head_dim);
    if (job->pass->needs_grad & SA_GRADIENT_VALUE)
        kernel->clear(grow->value, grow->value_row, value->col, grow->rows, p->head_dim_v);
    for (int64_t g = 0; g < plan->rows.group; ++g) w->sinks[g] = 0;
}

static void end_job(worker_state *w, const sa_job *job) {
    sa_packed_job_end(&w->packed);
    if (job->pass->needs_grad & SA_GRADIENT_SINKS) sa_write_sinks(w->loop->plan, job, w->sinks);
}

/* The keys' gradients that are written between a job's last tile and the next one, to be fetched
 * ahead. */
static sa_key_gradients written_next(const worker_state *w, const job_step *next) {
    if (sa_packed_job_writes(&w->packed)) return w->packed.own;
    if (!next || !(next->job.pass->needs_grad & (SA_GRADIENT_KEY | SA_GRADIENT_VALUE)))
        return (sa_key_gradients){0};
    return sa_key_gradients_of(w->loop->plan, &next->job);
}

static void jobs(void *arg, int worker) {
    backward_call *c = arg;
    worker_state w = {
        .loop = c, .worker = worker, .packed = {.plan = c->plan, .layout = &c->packed_layout}};
    w.sinks = (double *)(c->scratch + (size_t)worker * c->scratch_size);
    w.scratch = (char *)w.sinks + c->plan->sinks_size;
    w.packed.memory = w.scratch + c->plan->rows.scratch_size;
    job_pos at = {0};
    job_step steps[2], *step = &steps[0], *next = &steps[1];
    for (int more = next_step(&w, &at, 0, step); more;) {
        more = next_step(&w, &at, c->plan->rows.num_threads, next);
        int is_last = !more || next->begins_job;
        if (step->begins_job) begin_job(&w, &step->job);
        if (step->t.fwd.rows) {
            step->t.next = more && next->t.fwd.rows ? &next->t : NULL;
            step->t.next_grads = (sa_key_gradients){0};
            if (is_last) step->t.next_grads = written_next(&w, more ? next : NULL);
            sa_packed_job_tile(&w.packed, &step->t);
            if (!compute_tile(&w, &step->job, &step->t)) return;
        }
        if (is_last) end_job(&w, &step->job);
        if (!more) more = next_step(&w, &at, 0, next);
        job_step *done = step;
        step = next, next = done;
    }
}

sa_status sa_attention_backward(const sa_problem *p, const sa_gradients *gradients) {
    sa_status status = SA_NO_MEMORY;
    backward_call c = {0};
    sa_call_begin(&c.call, p->interrupt);
    sa_gradient_plan plan = sa_gradient_plan_make(p, gradients);
    c.plan = &plan;
    c.packed_layout = sa_packed_layout_make(&plan);
    c.scratch_size = plan.sinks_size + plan.rows.scratch_size + c.packed_layout.size;
    c.scratch = sa_alloc((size_t)plan.rows.num_threads, c.scratch_size);
    if (!c.scratch) goto out;
    sa_parallel(plan.rows.num_threads, jobs, &c, &c.call);
    status = SA_OK;
out:
    sa_free(c.scratch);
    sa_status left = sa_call_end(&c.call);
    return status == SA_OK ? left : status;
}
