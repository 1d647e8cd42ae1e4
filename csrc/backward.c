/* Attention, backward: the parallel loop over jobs. The kernels compute; backward_schedule.c cuts.
 *
 * A job owns what it writes: a part of some gradients, of one batch entry and key/value head, or of
 * all those that the input was broadcast over. It goes through these, then through its tiles of
 * rows, then through their keys, in an order that depends on nothing but the problem. So the bits
 * do not depend on which thread takes which job. */

#include "backward_schedule.h"
#include "dispatch.h"
#include "kv.h"
#include "memory.h"
#include "run.h"

typedef struct {
    sa_call call;
    const sa_backward_schedule *schedule;
    sa_kv_layout kv_layout;
    sa_counter next; /* job */
} backward_call;

/* What a worker carries from tile to tile. */
typedef struct {
    backward_call *loop;
    int worker;
    char *scratch; /* the kernels' */
    double *sinks; /* sums of a group's sinks */
    sa_finite finite;
    sa_kv kv;
    int stages_keys, stages_grads; /* of the job */
    sa_key_gradients dest, accum;  /* the job's gradients in their arrays; where they accumulate */
} backward_worker;

/* ------------------------------------------------------------------ tiles */

typedef void (*split_step)(const sa_backward_tile *t, void *scratch, int64_t key_begin,
                           int64_t key_end);

/* Take `step` for those of keys [begin, end) that the tile sees, split by split as in the forward
 * pass; 0 if the call is cancelled. */
static int each_split(backward_worker *w, split_step step, const sa_backward_tile *t, int64_t begin,
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

/* What the job computes from one tile; 0 if the call is cancelled. */
static int compute_tile(backward_worker *w, const sa_job *job, sa_backward_tile *t) {
    const sa_backward_kernel *kernel = &w->loop->schedule->forward.kernels->backward;
    if (kernel->begin(t, w->scratch)) {
        if (!t->state[0] && !each_split(w, kernel->row_stats, t, 0, INT64_MAX)) return 0;
        kernel->check_row_stats(t, w->scratch);
    }
    if (t->needs_grad & SA_GRADIENT_SINKS)
        kernel->sinks(t, w->scratch);
    else if (!each_split(w, kernel->split, t, job->key_begin, job->key_end))
        return 0;
    if (t->needs_grad & SA_GRADIENT_QUERY) kernel->finish(t, w->scratch);
    return !sa_call_cancelled(&w->loop->call, w->worker);
}

/* ------------------------------------------------------------------ jobs and their order */

/* Where a worker is in its jobs. */
typedef struct {
    sa_job job;      /* without a pass before the first */
    int64_t i, tile; /* the next one's */
} job_pos;

/* A tile of a job; or, without rows, only the beginning of the job. */
typedef struct {
    sa_job job;
    int begins_job;
    sa_backward_tile t;
} job_step;

static int next_tile(backward_worker *w, job_pos *at, sa_backward_tile *t) {
    const sa_backward_schedule *s = w->loop->schedule;
    for (; at->i < at->job.pass->broadcast; ++at->i, at->tile = at->job.tile_begin) {
        if (at->tile >= at->job.tile_end) continue;
        t->is_first = at->tile == at->job.tile_begin;
        if (sa_fill_backward_tile(s, &at->job, at->i, at->tile++, w->sinks, t)) return 1;
    }
    return 0;
}

/* Take the next job that has something to do; the number of jobs if there is none. */
static int64_t take_job(backward_call *c) {
    for (;;) {
        int64_t i = sa_fetch_add(&c->next), job = sa_next_job(c->schedule, i);
        if (i >= c->schedule->jobs) return c->schedule->jobs;
        if (job == i) return i;
        for (int64_t seen = i + 1; seen < job && !sa_cas(&c->next, &seen, job);) continue;
    }
}

/* The worker's next step. At the end of its job it takes another one, but only while more than
 * `for_others` jobs are left. Returns 0 if it took none. */
static int next_step(backward_worker *w, job_pos *at, int64_t for_others, job_step *step) {
    const sa_backward_schedule *s = w->loop->schedule;
    step->t.fwd.finite = &w->finite;
    step->begins_job = 0;
    if (!at->job.pass || !next_tile(w, at, &step->t)) {
        if (w->loop->next >= s->jobs - for_others) return 0;
        int64_t i = take_job(w->loop);
        if (i >= s->jobs) return 0;
        *at = (job_pos){.job = sa_job_of(s, i)};
        at->i = at->job.pass->first;
        at->tile = at->job.tile_begin;
        step->begins_job = 1;
        if (!next_tile(w, at, &step->t)) step->t.fwd.rows = 0;
    }
    step->job = at->job;
    return 1;
}

/* ------------------------------------------------------------------ keys' gradients of a job */

static char *staged_grads(const backward_worker *w, sa_kv_array which) {
    return w->stages_grads ? sa_kv_room(&w->kv, which) : NULL;
}

/* Set the job's rows of a gradient to 0, unless they go on; 0 if the call is cancelled. New memory,
 * which the system gives page by page as it is written, makes this slow: it is cleared in pieces.
 */
static int clear(backward_worker *w, char *x, ptrdiff_t row, ptrdiff_t col, int64_t length) {
    const sa_backward_kernel *kernel = &w->loop->schedule->forward.kernels->backward;
    int64_t rows = w->loop->schedule->gradients->keys_go_on ? 0 : w->accum.rows;
    for (int64_t r = 0; r < rows; r += SA_SPLIT_N) {
        int64_t left = rows - r;
        kernel->clear(x + r * row, row, col, left < SA_SPLIT_N ? left : SA_SPLIT_N, length);
        if (sa_call_cancelled(&w->loop->call, w->worker)) return 0;
    }
    return 1;
}

/* Decide whether to stage the job's keys, and let its gradients accumulate from 0; 0 if the call is
 * cancelled. */
static int begin_job(backward_worker *w, const sa_job *job) {
    const sa_backward_schedule *s = w->loop->schedule;
    const sa_problem *p = s->forward.problem;
    const sa_gradients *g = s->gradients;
    const ptrdiff_t size = w->kv.layout->real_size;
    int needs_grad = job->pass->needs_grad;
    /* Sinks need no keys; and rows whose statistics are recomputed need all of them. */
    w->stages_keys = w->kv.layout->stages_keys && job->pass->key_parts == 1 &&
                     needs_grad != SA_GRADIENT_SINKS &&
                     sa_tiles_of_job(s, job) >= sa_kv_min_tiles(p, STAGE_MIN_TILES_BACKWARD);
    w->stages_grads = (w->stages_keys && !g->keys_go_on) || sa_is_half(p->dtype);
    w->dest = w->accum = sa_key_gradients_of(s, job);
    if (needs_grad & SA_GRADIENT_KEY) {
        char *dk = staged_grads(w, SA_KV_DK);
        if (dk) w->accum.key = dk, w->accum.key_row = w->kv.layout->row_bytes[SA_KV_DK];
        if (!clear(w, w->accum.key, w->accum.key_row, dk ? size : g->key.col, p->head_dim))
            return 0;
    }
    if (needs_grad & SA_GRADIENT_VALUE) {
        char *dv = staged_grads(w, SA_KV_DV);
        if (dv) w->accum.value = dv, w->accum.value_row = w->kv.layout->row_bytes[SA_KV_DV];
        if (!clear(w, w->accum.value, w->accum.value_row, dv ? size : g->value.col, p->head_dim_v))
            return 0;
    }
    sa_begin_sinks(s, job, w->sinks);
    return 1;
}

/* Let a tile of the job read staged keys and add to staged gradients. */
static void stage_tile(backward_worker *w, sa_backward_tile *t) {
    const ptrdiff_t size = w->kv.layout->real_size;
    t->grads = w->accum;
    if (staged_grads(w, SA_KV_DK)) t->dk_col = size;
    if (staged_grads(w, SA_KV_DV)) t->dv_col = size;
    if (!w->stages_keys) return;
    sa_tile *fwd = &t->fwd;
    if (sa_kv_stage(&w->kv, SA_KV_K, 0, t->num_keys, &fwd->k)) *fwd->finite = (sa_finite){0};
    sa_kv_stage(&w->kv, SA_KV_V, 0, t->num_keys, &fwd->v);
    if (fwd->k.is_staged && fwd->v.is_staged) t->is_first = 0; /* the copies are in the caches */
}

/* Whether the end of the job copies gradients from where they accumulate. */
static int copies_gradients(const backward_worker *w) {
    return w->accum.key != w->dest.key || w->accum.value != w->dest.value;
}

/* Store a job's staged gradient to its array, in pieces; 0 if the call is cancelled. */
static int unstage(backward_worker *w, sa_kv_array which, char *to, ptrdiff_t row, ptrdiff_t col) {
    int64_t rows = w->dest.rows;
    for (int64_t r = 0; r < rows; r += SA_SPLIT_N) {
        int64_t end = r + SA_SPLIT_N < rows ? r + SA_SPLIT_N : rows;
        sa_kv_unstage(&w->kv, which, r, end, to, row, col);
        if (sa_call_cancelled(&w->loop->call, w->worker)) return 0;
    }
    return 1;
}

/* Returns 0 if the call is cancelled. */
static int end_job(backward_worker *w, const sa_job *job) {
    const sa_gradients *g = w->loop->schedule->gradients;
    const sa_key_gradients *dest = &w->dest, *accum = &w->accum;
    if (accum->key != dest->key && !unstage(w, SA_KV_DK, dest->key, dest->key_row, g->key.col))
        return 0;
    if (accum->value != dest->value &&
        !unstage(w, SA_KV_DV, dest->value, dest->value_row, g->value.col))
        return 0;
    if (job->pass->needs_grad & SA_GRADIENT_SINKS) sa_write_sinks(w->loop->schedule, job, w->sinks);
    return 1;
}

/* The keys' gradients that are written after a job's last tile and before the next one: what that
 * tile prefetches. */
static sa_key_gradients written_next(const backward_worker *w, const job_step *next) {
    if (copies_gradients(w)) return w->dest;
    if (!next || !(next->job.pass->needs_grad & (SA_GRADIENT_KEY | SA_GRADIENT_VALUE)))
        return (sa_key_gradients){0};
    return sa_key_gradients_of(w->loop->schedule, &next->job);
}

/* ------------------------------------------------------------------ the loop */

static size_t steps_size(void) { return sa_whole_lines(2 * sizeof(job_step)); }

static void jobs(void *arg, int worker, char *memory) {
    backward_call *c = arg;
    const sa_backward_schedule *s = c->schedule;
    /* Tiles are large, and threads' stacks may be small: the steps are in the worker's memory. */
    job_step *step = (job_step *)memory, *next = step + 1;
    backward_worker w = {.loop = c, .worker = worker};
    w.sinks = (double *)(memory + steps_size());
    w.scratch = (char *)w.sinks + s->sinks_size;
    w.kv = (sa_kv){.layout = &c->kv_layout, .room = w.scratch + s->forward.scratch_size};
    job_pos at = {0};
    for (int more = next_step(&w, &at, 0, step); more;) {
        /* The next job is taken early, to prefetch it, but only while all threads find more. */
        more = next_step(&w, &at, s->forward.num_threads, next);
        int is_last = !more || next->begins_job;
        if (step->begins_job && !begin_job(&w, &step->job)) return;
        if (step->t.fwd.rows) {
            step->t.next = more && next->t.fwd.rows ? &next->t : NULL;
            step->t.next_grads = (sa_key_gradients){0};
            if (is_last) step->t.next_grads = written_next(&w, more ? next : NULL);
            stage_tile(&w, &step->t);
            if (!compute_tile(&w, &step->job, &step->t)) return;
        }
        if (is_last && !end_job(&w, &step->job)) return;
        if (!more) more = next_step(&w, &at, 0, next);
        job_step *done = step;
        step = next, next = done;
    }
}

sa_status sa_attention_backward(const sa_problem *p, const sa_gradients *gradients) {
    backward_call c = {0};
    sa_call_begin(&c.call, p->interrupt);
    sa_backward_schedule s = sa_backward_schedule_make(p, gradients);
    const sa_array *arrays[] = {&p->key, &p->value, &gradients->key, &gradients->value};
    c.schedule = &s;
    c.kv_layout = sa_kv_layout_make(p, arrays, SA_KV_ARRAYS, p->seqlen_k, s.keys_of_job,
                                    2 * (size_t)STAGED_BYTES);
    size_t scratch_size = steps_size() + s.sinks_size + s.forward.scratch_size + c.kv_layout.size;
    return sa_call_end(&c.call, sa_run(&c.call, s.forward.num_threads, scratch_size, jobs, &c));
}
