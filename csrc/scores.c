/* Attention's steps on their own: scores, weights, and the weighted sum of the values. The parallel
 * loops over tiles; the kernels compute. */

#include "dispatch.h"
#include "plan.h"
#include "pool.h"

typedef struct {
    const sa_plan *plan;
    void (*compute)(const sa_plan *plan, sa_tile *t, char *scratch, sa_call *call, int worker);
    char *scratch; /* of each worker: scratch and two partial results */
    size_t scratch_size;
    sa_counter next;
    sa_call call;
} step_call;

static int64_t end_of_split(int64_t begin, int64_t seqlen_k) {
    return begin + SA_SPLIT_N < seqlen_k ? begin + SA_SPLIT_N : seqlen_k;
}

static void scores_of_tile(const sa_plan *plan, sa_tile *t, char *scratch, sa_call *call,
                           int worker) {
    const sa_kernels *k = plan->kernels;
    int64_t seqlen_k = plan->problem->seqlen_k;
    k->prefill.begin(t, scratch);
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->scores(t, scratch, begin, end_of_split(begin, seqlen_k));
        if (sa_call_cancelled(call, worker)) return;
    }
}

/* First the softmax's maximum and sum, by the fused pass over values of no width; then, with the
 * scores computed again, the weights. */
static void weights_of_tile(const sa_plan *plan, sa_tile *t, char *scratch, sa_call *call,
                            int worker) {
    const sa_kernels *k = plan->kernels;
    int64_t seqlen_k = plan->problem->seqlen_k;
    char *total = scratch + plan->scratch_size, *part = total + plan->state_size;
    k->prefill.begin(t, scratch);
    k->prefill.split(t, scratch, 0, end_of_split(0, seqlen_k), total);
    for (int64_t begin = SA_SPLIT_N; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->prefill.split(t, scratch, begin, end_of_split(begin, seqlen_k), part);
        k->prefill.merge(t, scratch, total, part);
        if (sa_call_cancelled(call, worker)) return;
    }
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->weights(t, scratch, begin, end_of_split(begin, seqlen_k), total);
        if (sa_call_cancelled(call, worker)) return;
    }
}

static void sum_of_tile(const sa_plan *plan, sa_tile *t, char *scratch, sa_call *call, int worker) {
    const sa_kernels *k = plan->kernels;
    int64_t seqlen_k = plan->problem->seqlen_k;
    char *total = scratch + plan->scratch_size;
    k->sum_begin(t, total);
    for (int64_t begin = 0; begin < seqlen_k; begin += SA_SPLIT_N) {
        k->sum(t, scratch, begin, end_of_split(begin, seqlen_k), total);
        if (sa_call_cancelled(call, worker)) return;
    }
    k->sum_finish(t, total);
}

static void tiles(void *arg, int worker) {
    step_call *c = arg;
    char *scratch = c->scratch + (size_t)worker * c->scratch_size;
    sa_finite finite = {0};
    for (int64_t tile, end; sa_next_chunk(c->plan, &c->next, &tile, &end);)
        for (; tile < end; ++tile) {
            sa_tile t;
            t.finite = &finite;
            if (!sa_plan_tile(c->plan, tile, &t)) continue;
            c->compute(c->plan, &t, scratch, &c->call, worker);
            if (sa_call_cancelled(&c->call, worker)) return;
        }
}

static sa_status run(const sa_problem *p, int as_scores, int64_t width,
                     void (*compute)(const sa_plan *, sa_tile *, char *, sa_call *, int)) {
    sa_status status = SA_NO_MEMORY;
    step_call c = {.compute = compute};
    sa_call_begin(&c.call, p->interrupt);
    sa_plan plan = sa_plan_make(p, as_scores, width);
    c.plan = &plan;
    if (plan.num_threads > plan.tiles) plan.num_threads = plan.tiles > 1 ? (int)plan.tiles : 1;
    c.scratch_size = plan.scratch_size + 2 * plan.state_size;
    c.scratch = sa_alloc((size_t)plan.num_threads, c.scratch_size);
    if (!c.scratch) goto out;
    sa_parallel(plan.num_threads, tiles, &c, &c.call);
    status = SA_OK;
out:
    sa_free(c.scratch);
    sa_status left = sa_call_end(&c.call);
    return status == SA_OK ? left : status;
}

sa_status sa_scores(const sa_problem *p) { return run(p, 1, p->head_dim, scores_of_tile); }

sa_status sa_weights(const sa_problem *p) { return run(p, 0, 2 * p->head_dim, weights_of_tile); }

sa_status sa_sum(const sa_problem *p) { return run(p, 0, p->head_dim_v, sum_of_tile); }
