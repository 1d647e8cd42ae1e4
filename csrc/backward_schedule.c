/* How the backward pass is cut: see backward_schedule.h. Called by backward.c. */

#include "backward_schedule.h"

#include "dispatch.h"
#include "memory.h"

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ------------------------------------------------------------------ passes */

/* Which axes an input's gradient is summed over: those of stride 0. Packed sequences have rows of
 * their own in all but a mask whose rows broadcast. */
static void find_broadcast_axes(const sa_problem *p, const sa_array *gradient, int has_rows,
                                sa_pass *pass) {
    *pass = (sa_pass){.own = 1, .broadcast = 1};
    for (int i = 0; i <= p->batch_axes; ++i) {
        int is_head = i == p->batch_axes;
        int64_t n = is_head ? p->num_heads_kv : p->batch_shape[i];
        ptrdiff_t stride = is_head ? gradient->head : gradient->batch[i];
        int apart = !is_head && p->cu_seqlens_q && has_rows;
        pass->is_broadcast[i] = n > 1 && stride == 0 && !apart;
        if (pass->is_broadcast[i])
            pass->broadcast *= n;
        else
            pass->own *= n;
    }
}

static int same_axes(const sa_problem *p, const sa_pass *a, const sa_pass *b) {
    for (int i = 0; i <= p->batch_axes; ++i)
        if (a->is_broadcast[i] != b->is_broadcast[i]) return 0;
    return 1;
}

/* Cut a pass into parts of rows and of keys, where allowed: so many that each thread finds
 * JOBS_PER_THREAD jobs, if there are so many tiles and blocks. */
static void cut(const sa_backward_schedule *s, sa_pass *pass, int by_rows, int by_keys) {
    const sa_problem *p = s->forward.problem;
    int64_t tiles = ceil_div(p->seqlen_q * s->forward.group, SA_GRADIENT_TILE_M);
    int64_t blocks = ceil_div(p->seqlen_k, SA_BLOCK_N);
    int64_t worth = ceil_div(JOBS_PER_THREAD * s->forward.num_threads, pass->own ? pass->own : 1);
    if (tiles < 1) tiles = 1;
    if (blocks < 1) blocks = 1;
    pass->tiles_of_job = by_rows ? ceil_div(tiles, worth) : tiles;
    pass->row_parts = ceil_div(tiles, pass->tiles_of_job);
    if (by_rows) worth = ceil_div(worth, pass->row_parts);
    pass->keys_of_job = (by_keys ? ceil_div(blocks, worth) : blocks) * SA_BLOCK_N;
    pass->key_parts = ceil_div(blocks * SA_BLOCK_N, pass->keys_of_job);
    pass->jobs = pass->own * pass->row_parts * pass->key_parts;
}

static sa_pass *add_pass(sa_backward_schedule *s, sa_pass pass, int needs_grad, int by_rows,
                         int by_keys) {
    sa_pass *added = &s->passes[s->num_passes++];
    *added = pass;
    added->needs_grad = needs_grad;
    cut(s, added, by_rows, by_keys);
    s->jobs += added->jobs;
    if (needs_grad & (SA_GRADIENT_KEY | SA_GRADIENT_VALUE) && s->keys_of_job < added->keys_of_job)
        s->keys_of_job = added->keys_of_job;
    return added;
}

/* Whether heads in one piece each keep the threads as busy as 7/5 of the work in small pieces. */
static int heads_suffice(int64_t heads, int num_threads) {
    int64_t rounds = ceil_div(heads, num_threads);
    return 5 * rounds * num_threads <= 7 * heads;
}

/* The pass of the gradient of the mask or of the bias. */
static void add_mask_pass(sa_backward_schedule *s, const sa_array *gradient) {
    sa_pass pass;
    int has_rows = gradient->row != 0;
    /* A row of a mask that heads share must not be parted by tiles. */
    int parts = gradient->head != 0 || SA_GRADIENT_TILE_M % s->forward.group == 0;
    if (!gradient->data) return;
    find_broadcast_axes(s->forward.problem, gradient, has_rows, &pass);
    add_pass(s, pass, SA_GRADIENT_MASK, has_rows && parts, gradient->col != 0)->of_mask = gradient;
}

static void plan_passes(sa_backward_schedule *s) {
    const sa_problem *p = s->forward.problem;
    const sa_gradients *g = s->gradients;
    sa_pass query, key, value, sinks;
    if (!s->forward.group || !p->seqlen_q) return; /* no rows: who calls has zeros there */
    find_broadcast_axes(p, &g->query, 1, &query);
    find_broadcast_axes(p, &g->key, 1, &key);
    find_broadcast_axes(p, &g->value, 1, &value);
    int together = same_axes(p, &key, &value);
    if (g->query.data && g->key.data && together && query.broadcast == 1 &&
        heads_suffice(key.own, s->forward.num_threads)) {
        add_pass(s, key, SA_GRADIENT_QUERY | SA_GRADIENT_KEY | SA_GRADIENT_VALUE, 0, 0);
    } else {
        if (g->query.data) add_pass(s, query, SA_GRADIENT_QUERY, 1, 0);
        if (g->key.data)
            add_pass(s, key, SA_GRADIENT_KEY | (together ? SA_GRADIENT_VALUE : 0), 0, 1);
        if (g->key.data && !together) add_pass(s, value, SA_GRADIENT_VALUE, 0, 1);
    }
    add_mask_pass(s, &g->mask);
    add_mask_pass(s, &g->bias);
    if (g->sinks.data) {
        find_broadcast_axes(p, &g->sinks, 0, &sinks);
        if (g->sinks_go_on) sinks.first = g->sinks_entry, sinks.broadcast = g->sinks_entry + 1;
        add_pass(s, sinks, SA_GRADIENT_SINKS, 0, 0);
    }
}

sa_backward_schedule sa_backward_schedule_make(const sa_problem *p, const sa_gradients *gradients) {
    /* Five products of the forward pass's two. */
    sa_backward_schedule s = {
        .forward = sa_schedule_make(p, 0, 3 * p->head_dim + 2 * p->head_dim_v),
        .gradients = gradients};
    int64_t rows = s.forward.group * p->seqlen_q;
    int most = rows < SA_GRADIENT_TILE_M ? (int)rows : SA_GRADIENT_TILE_M;
    plan_passes(&s);
    if (s.keys_of_job > p->seqlen_k) s.keys_of_job = p->seqlen_k;
    if (s.forward.num_threads > s.jobs) s.forward.num_threads = s.jobs > 1 ? (int)s.jobs : 1;
    s.forward.scratch_size =
        sa_whole_lines(s.forward.kernels->backward.scratch_size(most, p->head_dim, p->head_dim_v));
    s.sinks_size = sa_whole_lines((size_t)s.forward.group * sizeof(double));
    return s;
}

/* ------------------------------------------------------------------ jobs and tiles */

sa_job sa_job_of(const sa_backward_schedule *s, int64_t i) {
    const sa_pass *pass = s->passes;
    while (i >= pass->jobs) i -= pass++->jobs;
    int64_t keys = i % pass->key_parts, rows = i / pass->key_parts % pass->row_parts;
    sa_job job = {.pass = pass, .own = i / pass->key_parts / pass->row_parts};
    job.tile_begin = rows * pass->tiles_of_job;
    job.tile_end = job.tile_begin + pass->tiles_of_job;
    job.key_begin = keys * pass->keys_of_job;
    job.key_end = job.key_begin + pass->keys_of_job;
    return job;
}

int64_t sa_next_job(const sa_backward_schedule *s, int64_t i) {
    const sa_problem *p = s->forward.problem;
    const sa_pass *pass = s->passes;
    int64_t before = 0; /* jobs of the passes before this one */
    if (!p->cu_seqlens_q || i >= s->jobs) return i;
    while (i - before >= pass->jobs) before += pass++->jobs;
    if (pass->is_broadcast[0]) return i; /* a job of all sequences */
    int64_t jobs_of_entry = pass->jobs / p->batch_shape[0];
    int64_t b = (i - before) / jobs_of_entry;
    if (sa_num_queries(p, b) || sa_num_keys(p, b)) return i;
    while (b < p->batch_shape[0] && !sa_num_queries(p, b) && !sa_num_keys(p, b)) ++b;
    return before + b * jobs_of_entry;
}

/* The batch entry and key/value head of the job's own axes and the i-th of the others. */
static void find_entry(const sa_problem *p, const sa_job *job, int64_t i, int64_t *entry,
                       int64_t *head_kv) {
    int64_t own = job->own, of_axes = 1;
    *entry = *head_kv = 0;
    for (int axis = p->batch_axes; axis >= 0; --axis) {
        int is_head = axis == p->batch_axes;
        int64_t n = is_head ? p->num_heads_kv : p->batch_shape[axis];
        int64_t *left = job->pass->is_broadcast[axis] ? &i : &own;
        int64_t index = *left % n;
        *left /= n;
        if (is_head) {
            *head_kv = index;
            continue;
        }
        *entry += index * of_axes;
        of_axes *= n;
    }
}

int sa_fill_backward_tile(const sa_backward_schedule *s, const sa_job *job, int64_t i, int64_t tile,
                          double *sinks, sa_backward_tile *t) {
    const sa_problem *p = s->forward.problem;
    const sa_gradients *d = s->gradients;
    int64_t group = s->forward.group, first = tile * SA_GRADIENT_TILE_M;
    sa_row_pos at = {.i = first / group, .g = first % group};
    find_entry(p, job, i, &at.b, &at.head_kv);
    int64_t rows = group * sa_num_queries(p, at.b) - first;
    if (rows <= 0) return 0;
    t->fwd.rows = rows < SA_GRADIENT_TILE_M ? (int)rows : SA_GRADIENT_TILE_M;
    sa_fill_rows(&s->forward, &at, &t->fwd);

    t->needs_grad = job->pass->needs_grad;
    t->adds_to_query = i > 0 && t->needs_grad == SA_GRADIENT_QUERY;
    t->dq_is_real = d->query_is_real;
    t->dq_goes_on = d->query_goes_on;
    t->dq_is_partial = d->query_is_partial;
    t->num_keys = sa_num_keys(p, at.b);
    t->grads = sa_key_gradients_of(s, job);
    t->dout_col = d->out.col;
    t->dq_col = d->query.col;
    const sa_array *of_mask = job->pass->of_mask;
    t->dmask_col = of_mask ? of_mask->col : 0;
    t->dk_col = d->key.col;
    t->dv_col = d->value.col;
    int64_t head = at.head_kv * group, row = sa_first_query(p, at.b);
    char *dout = sa_row_of(p, &d->out, at.b, head, row);
    char *dq = sa_row_of(p, &d->query, at.b, head, row);
    char *dmask = of_mask ? sa_row_of(p, of_mask, at.b, head, row) : NULL;
    char *dlse = sa_row_of(p, &d->lse, at.b, head, row);
    static const double zero = 0; /* as a float too */
    char *state = sa_row_of(p, &d->state, at.b, head, row);
    t->has_dlse = d->lse.data != NULL;
    for (int r = 0; r < t->fwd.rows; ++r, sa_next_row(&s->forward, &at)) {
        t->dout[r] = dout + at.g * d->out.head + at.i * d->out.row;
        t->dq[r] = dq + at.g * d->query.head + at.i * d->query.row;
        t->dmask[r] = of_mask ? dmask + at.g * of_mask->head + at.i * of_mask->row : NULL;
        t->dlse[r] = dlse + at.g * d->lse.head + at.i * d->lse.row;
        /* What lse's gradient holds for padding is nothing to its sink. */
        if (at.i >= sa_used_queries(p, at.b)) t->dlse[r] = (const char *)&zero;
        t->dsink[r] = sinks + at.g;
        t->state[r] = d->state.data ? state + at.g * d->state.head + at.i * d->state.row : NULL;
    }
    return 1;
}

int64_t sa_tiles_of_job(const sa_backward_schedule *s, const sa_job *job) {
    const sa_problem *p = s->forward.problem;
    int64_t b, head_kv;
    find_entry(p, job, 0, &b, &head_kv);
    int64_t end = ceil_div(s->forward.group * sa_num_queries(p, b), SA_GRADIENT_TILE_M);
    return (end < job->tile_end ? end : job->tile_end) - job->tile_begin;
}

sa_key_gradients sa_key_gradients_of(const sa_backward_schedule *s, const sa_job *job) {
    const sa_problem *p = s->forward.problem;
    const sa_gradients *d = s->gradients;
    int64_t b, head_kv;
    find_entry(p, job, 0, &b, &head_kv);
    int64_t first = job->key_begin, last = sa_num_keys(p, b);
    if (last > job->key_end) last = job->key_end;
    return (sa_key_gradients){
        .key = sa_row_of(p, &d->key, b, head_kv, sa_first_key(p, b) + first),
        .value = sa_row_of(p, &d->value, b, head_kv, sa_first_key(p, b) + first),
        .key_row = d->key.row,
        .value_row = d->value.row,
        .first = first,
        .rows = last > first ? last - first : 0,
    };
}

/* ------------------------------------------------------------------ sinks */

/* Where the sum of a sink is, the g-th of the job's group, and its dtype. */
static char *sink_of(const sa_backward_schedule *s, const sa_job *job, int64_t g, sa_dtype *dtype) {
    const sa_problem *p = s->forward.problem;
    int64_t b, head_kv;
    find_entry(p, job, 0, &b, &head_kv);
    *dtype = s->gradients->sinks_go_on ? SA_f64 : sa_real_dtype(p->dtype);
    return sa_row_of(p, &s->gradients->sinks, b, head_kv * s->forward.group + g, 0);
}

void sa_begin_sinks(const sa_backward_schedule *s, const sa_job *job, double *sinks) {
    sa_dtype dtype;
    for (int64_t g = 0; g < s->forward.group; ++g) {
        sinks[g] = 0;
        if (!(job->pass->needs_grad & SA_GRADIENT_SINKS) || !s->gradients->sinks_go_on) continue;
        char *sink = sink_of(s, job, g, &dtype);
        sinks[g] = sa_load_scalar(dtype, sink);
    }
}

void sa_write_sinks(const sa_backward_schedule *s, const sa_job *job, const double *sinks) {
    sa_dtype dtype;
    for (int64_t g = 0; g < s->forward.group; ++g) {
        char *sink = sink_of(s, job, g, &dtype);
        sa_store_scalar(dtype, sink, sinks[g]);
    }
}
