/* Attention's steps on their own: scores, weights, and the weighted sum of the values. The parallel
 * loops over tiles; the kernels compute. */

#include "dispatch.h"
#include "run.h"
#include "tile.h"

typedef struct step_call step_call;

/* What one step does with a tile; it returns early if the call is cancelled. */
typedef void step(step_call *c, const sa_tile *t, char *scratch, int worker);

struct step_call {
    sa_call call;
    const sa_schedule *schedule;
    step *compute;
    sa_counter next;
};

static int64_t end_of_split(int64_t begin, int64_t seqlen_k) {
    return begin + SA_SPLIT_N < seqlen_k ? begin + SA_SPLIT_N : seqlen_k;
}

static void scores_of_tile(step_call *c, const sa_tile *t, char *scratch, int worker) {
    const sa_kernels *k = c->schedule->kernels;
    int64_t seqlen_k = c->schedule->problem->seqlen_k;
    k->prefill.begin(t, scratch);
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->scores(t, scratch, begin, end_of_split(begin, seqlen_k));
        if (sa_call_cancelled(&c->call, worker)) return;
    }
}

/* First the softmax's maximum and sum, by the fused pass over values of no width; then, with the
 * scores computed again, the weights. */
static void weights_of_tile(step_call *c, const sa_tile *t, char *scratch, int worker) {
    const sa_schedule *s = c->schedule;
    const sa_kernels *k = s->kernels;
    int64_t seqlen_k = s->problem->seqlen_k;
    char *total = scratch + s->scratch_size, *part = total + s->state_size;
    k->prefill.begin(t, scratch);
    k->prefill.split(t, scratch, 0, end_of_split(0, seqlen_k), total);
    for (int64_t begin = SA_SPLIT_N; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->prefill.split(t, scratch, begin, end_of_split(begin, seqlen_k), part);
        k->prefill.merge(t, total, part);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->weights(t, scratch, begin, end_of_split(begin, seqlen_k), total);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
}

static void sum_of_tile(step_call *c, const sa_tile *t, char *scratch, int worker) {
    const sa_schedule *s = c->schedule;
    const sa_kernels *k = s->kernels;
    int64_t seqlen_k = s->problem->seqlen_k;
    char *total = scratch + s->scratch_size;
    k->sum_begin(t, total);
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->sum(t, scratch, begin, end_of_split(begin, seqlen_k), total);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
    k->sum_finish(t, total);
}

static void tiles(void *arg, int worker, char *scratch) {
    step_call *c = arg;
    sa_tile_loop loop;
    sa_tile_loop_begin(&loop, c->schedule, &c->next);
    for (sa_tile *t; (t = sa_next_tile(&loop));) {
        c->compute(c, t, scratch, worker);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
}

static sa_status run(const sa_problem *p, int as_scores, int64_t width, step *compute) {
    step_call c = {.compute = compute};
    sa_call_begin(&c.call, p->interrupt);
    sa_schedule s = sa_schedule_make(p, as_scores, width);
    c.schedule = &s;
    if (s.num_threads > s.tiles) s.num_threads = s.tiles > 1 ? (int)s.tiles : 1;
    size_t scratch_size = s.scratch_size + 2 * s.state_size;
    return sa_call_end(&c.call, sa_run(&c.call, s.num_threads, scratch_size, tiles, &c));
}

sa_status sa_scores(const sa_problem *p) { return run(p, 1, p->head_dim, scores_of_tile); }

sa_status sa_weights(const sa_problem *p) { return run(p, 0, 2 * p->head_dim, weights_of_tile); }

sa_status sa_sum(const sa_problem *p) { return run(p, 0, p->head_dim_v, sum_of_tile); }
