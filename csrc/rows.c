/* What is computed row by row: softmax along one axis, the merge of states of attention and its
 * gradients, rotary positions. The parallel loop over rows; the kernels compute. */

#include "dispatch.h"
#include "problem.h"
#include "run.h"

typedef struct row_call row_call;

/* A row's place along each axis. */
typedef struct {
    int64_t at[SA_MAX_AXES];
} row_index;

typedef void row_function(row_call *c, const row_index *row, int worker, char *scratch);

struct row_call {
    const sa_row_problem *problem;
    const sa_kernels *kernels;
    row_function *compute;
    int64_t rows, rows_per_chunk;
    int stream; /* softmax: the result is stored around the caches */
    sa_counter next;
    sa_call call;
};

/* Row `row`, counted in C order. */
static row_index index_of(const sa_row_problem *p, int64_t row) {
    row_index index;
    for (int i = p->axes - 1; i >= 0; --i) {
        index.at[i] = row % p->shape[i];
        row /= p->shape[i];
    }
    return index;
}

static void next_row(const sa_row_problem *p, row_index *index) {
    for (int i = p->axes - 1; i >= 0 && ++index->at[i] == p->shape[i]; --i) index->at[i] = 0;
}

/* Bytes from the first row of an array to this one. */
static ptrdiff_t offset_of(const sa_row_problem *p, const sa_rows *a, const row_index *row) {
    ptrdiff_t offset = 0;
    for (int i = 0; i < p->axes; ++i) offset += row->at[i] * a->stride[i];
    return offset;
}

static char *row_of(const sa_row_problem *p, const sa_rows *a, const row_index *row) {
    return a->data + offset_of(p, a, row);
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

static void softmax_of_row(row_call *c, const row_index *row, int worker, char *scratch) {
    const sa_row_problem *p = c->problem;
    const sa_kernels *k = c->kernels;
    (void)scratch;
    const char *x = row_of(p, &p->a, row);
    char *out = row_of(p, &p->out, row);
    if (p->n <= SA_SOFTMAX_PART)
        k->softmax_row(x, p->a.col, out, p->out.col, p->n, c->stream);
    else
        long_softmax(p, k, x, out, &c->call, worker);
}

static sa_merge_row merge_operands(const sa_row_problem *p, const row_index *row) {
    return (sa_merge_row){.states = &p->states,
                          .grads = &p->grads,
                          .out_at = offset_of(p, &p->states.out_rows, row),
                          .lse_at = offset_of(p, &p->states.lse_rows, row),
                          .out = row_of(p, &p->out, row),
                          .lse = p->lse.data ? row_of(p, &p->lse, row) : NULL,
                          .out_col = p->out.col};
}

static void merge_of_row(row_call *c, const row_index *row, int worker, char *scratch) {
    (void)worker;
    sa_merge_row operands = merge_operands(c->problem, row);
    c->kernels->merge_row(&operands, c->problem->n, scratch);
}

static void merge_gradients_of_row(row_call *c, const row_index *row, int worker, char *scratch) {
    const sa_row_problem *p = c->problem;
    (void)worker;
    sa_merge_row operands = merge_operands(p, row);
    operands.grad_out_at = offset_of(p, &p->grads.out_rows, row);
    operands.grad_lse_at = offset_of(p, &p->grads.lse_rows, row);
    c->kernels->merge_backward_row(&operands, p->n, scratch);
}

static void rope_of_row(row_call *c, const row_index *row, int worker, char *scratch) {
    const sa_row_problem *p = c->problem;
    (void)worker, (void)scratch;
    c->kernels->rope_row(&(sa_rope_row){.x = row_of(p, &p->a, row),
                                        .cos = row_of(p, &p->cos, row),
                                        .sin = row_of(p, &p->sin, row),
                                        .out = row_of(p, &p->out, row),
                                        .x_col = p->a.col,
                                        .cos_col = p->cos.col,
                                        .sin_col = p->sin.col,
                                        .out_col = p->out.col,
                                        .cos_second = p->cos_second,
                                        .sin_second = p->sin_second,
                                        .pairs = p->pairs,
                                        .step = p->step,
                                        .first = p->first,
                                        .second = p->second},
                         p->n);
}

static void some_rows(void *arg, int worker, char *scratch) {
    row_call *c = arg;
    for (int64_t chunk; (chunk = sa_fetch_add(&c->next)) * c->rows_per_chunk < c->rows;) {
        int64_t first = chunk * c->rows_per_chunk, end = first + c->rows_per_chunk;
        if (end > c->rows) end = c->rows;
        row_index index = index_of(c->problem, first);
        for (int64_t row = first; row < end; ++row, next_row(c->problem, &index))
            c->compute(c, &index, worker, scratch);
        if (sa_call_cancelled(&c->call, worker)) return;
    }
}

/* `arrays`: how many of n elements each row reads, if more than one. */
static sa_status run(const sa_row_problem *p, row_function *compute, int64_t arrays,
                     size_t scratch_size, int stream) {
    row_call c = {.problem = p,
                  .kernels = sa_kernels_for(p->dtype),
                  .compute = compute,
                  .rows = 1,
                  .stream = stream};
    sa_call_begin(&c.call, p->interrupt);
    for (int i = 0; i < p->axes; ++i) c.rows *= p->shape[i];
    double elements = (double)p->n * (double)(arrays > 1 ? arrays : 1);
    c.rows_per_chunk = elements < GRAIN_ELEMENTS ? GRAIN_ELEMENTS / ((int64_t)elements + 1) : 1;
    if (c.rows_per_chunk < 1) c.rows_per_chunk = 1;
    double threads = (double)c.rows * elements / ELEMENTS_PER_THREAD;
    int num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (num_threads > c.rows) num_threads = (int)c.rows;
    if (num_threads < 1) num_threads = 1;
    return sa_call_end(&c.call, sa_run(&c.call, num_threads, scratch_size, some_rows, &c));
}

sa_status sa_softmax(const sa_row_problem *p) {
    return p->n ? run(p, softmax_of_row, 1, 0, is_streamed(p)) : SA_OK;
}

static sa_status run_merge(const sa_row_problem *p, row_function *compute) {
    int64_t states = p->states.count;
    return run(p, compute, states, sa_kernels_for(p->dtype)->merge_scratch_size(states), 0);
}

sa_status sa_merge(const sa_row_problem *p) { return run_merge(p, merge_of_row); }

sa_status sa_merge_backward(const sa_row_problem *p) {
    return run_merge(p, merge_gradients_of_row);
}

sa_status sa_rope(const sa_row_problem *p) { return p->n ? run(p, rope_of_row, 1, 0, 0) : SA_OK; }

void sa_apply(sa_function f, sa_dtype dtype, double unit, const void *x, void *y, int64_t n) {
    sa_kernels_for(dtype)->apply(f, unit, x, y, n);
}
