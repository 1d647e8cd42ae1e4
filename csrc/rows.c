/* What is computed row by row: softmax along one axis, the merge of two partial results of
 * attention, rotary positions. The parallel loop over rows; the kernels compute. */

#include "dispatch.h"
#include "problem.h"
#include "run.h"

typedef struct row_call row_call;
typedef void row_function(row_call *c, int64_t row, int worker);

struct row_call {
    const sa_row_problem *problem;
    const sa_kernels *kernels;
    row_function *compute;
    int64_t rows, rows_per_chunk;
    int stream; /* softmax: the result is stored around the caches */
    sa_counter next;
    sa_call call;
};

static char *row_of(const sa_row_problem *p, const sa_rows *a, int64_t row) {
    return sa_row_at(a, p->axes, p->shape, row);
}

/* Whether the result is larger than the caches, so that it should be stored around them. */
static int is_streamed(const sa_row_problem *p) {
    double bytes = (double)p->n * (double)sa_dtype_size(p->dtype);
    for (int i = 0; i < p->axes; ++i) bytes *= (double)p->shape[i];
    return bytes > STREAM_BYTES;
}

/* A row so long that the call must be able to be cancelled between its parts. */
static void long_softmax(const sa_row_problem *p, const sa_kernels *k, const char *x, char *out,
                         sa_call *call, int worker) {
    static const sa_softmax_pass passes[] = {SA_SOFTMAX_MAX, SA_SOFTMAX_EXP, SA_SOFTMAX_DIVIDE};
    sa_softmax_state state;
    k->softmax_part(SA_SOFTMAX_CLEAR, &state, NULL, 0, NULL, 0, 0);
    for (int pass = 0; pass < 3; ++pass)
        for (int64_t at = 0; at < p->n && !sa_call_cancelled(call, worker); at += SA_SOFTMAX_PART) {
            int64_t n = p->n - at < SA_SOFTMAX_PART ? p->n - at : SA_SOFTMAX_PART;
            k->softmax_part(passes[pass], &state, x + at * p->a.col, p->a.col,
                            out + at * p->out.col, p->out.col, n);
        }
}

static void softmax_of_row(row_call *c, int64_t row, int worker) {
    const sa_row_problem *p = c->problem;
    const sa_kernels *k = c->kernels;
    const char *x = row_of(p, &p->a, row);
    char *out = row_of(p, &p->out, row);
    if (p->n <= SA_SOFTMAX_PART)
        k->softmax_row(x, p->a.col, out, p->out.col, p->n, c->stream);
    else
        long_softmax(p, k, x, out, &c->call, worker);
}

static void merge_of_row(row_call *c, int64_t row, int worker) {
    const sa_row_problem *p = c->problem;
    (void)worker;
    c->kernels->merge_row(&(sa_merge_row){.a = row_of(p, &p->a, row),
                                          .b = row_of(p, &p->b, row),
                                          .lse_a = row_of(p, &p->lse_a, row),
                                          .lse_b = row_of(p, &p->lse_b, row),
                                          .out = row_of(p, &p->out, row),
                                          .lse = row_of(p, &p->lse, row),
                                          .a_col = p->a.col,
                                          .b_col = p->b.col,
                                          .out_col = p->out.col},
                          p->n);
}

static void rope_of_row(row_call *c, int64_t row, int worker) {
    const sa_row_problem *p = c->problem;
    (void)worker;
    const char *cos = row_of(p, &p->b, row);
    c->kernels->rope_row(&(sa_rope_row){.x = row_of(p, &p->a, row),
                                        .cos = cos,
                                        .sin = cos + p->pairs * p->b.col,
                                        .out = row_of(p, &p->out, row),
                                        .x_col = p->a.col,
                                        .angle_col = p->b.col,
                                        .out_col = p->out.col,
                                        .pairs = p->pairs,
                                        .step = p->step,
                                        .first = p->first,
                                        .second = p->second},
                         p->n);
}

static void some_rows(void *arg, int worker, char *scratch) {
    row_call *c = arg;
    (void)scratch;
    for (int64_t chunk; (chunk = sa_fetch_add(&c->next)) * c->rows_per_chunk < c->rows;) {
        int64_t first = chunk * c->rows_per_chunk, end = first + c->rows_per_chunk;
        if (end > c->rows) end = c->rows;
        for (int64_t row = first; row < end; ++row) c->compute(c, row, worker);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
}

static sa_status run(const sa_row_problem *p, row_function *compute, int stream) {
    row_call c = {.problem = p,
                  .kernels = sa_kernels_for(p->dtype),
                  .compute = compute,
                  .rows = 1,
                  .stream = stream};
    sa_call_begin(&c.call, p->interrupt);
    for (int i = 0; i < p->axes; ++i) c.rows *= p->shape[i];
    c.rows_per_chunk = p->n < GRAIN_ELEMENTS ? GRAIN_ELEMENTS / (p->n + 1) : 1;
    if (c.rows_per_chunk < 1) c.rows_per_chunk = 1;
    double threads = (double)c.rows * (double)p->n / ELEMENTS_PER_THREAD;
    int num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (num_threads > c.rows) num_threads = (int)c.rows;
    if (num_threads < 1) num_threads = 1;
    return sa_call_end(&c.call, sa_run(&c.call, num_threads, 0, some_rows, &c));
}

sa_status sa_softmax(const sa_row_problem *p) {
    return p->n ? run(p, softmax_of_row, is_streamed(p)) : SA_OK;
}

sa_status sa_merge(const sa_row_problem *p) { return run(p, merge_of_row, 0); }

sa_status sa_rope(const sa_row_problem *p) { return p->n ? run(p, rope_of_row, 0) : SA_OK; }

void sa_apply(sa_function f, sa_dtype dtype, double unit, const void *x, void *y, int64_t n) {
    sa_kernels_for(dtype)->apply(f, unit, x, y, n);
}
