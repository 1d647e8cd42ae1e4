/* softmax along one axis: the parallel loop over rows. The kernels compute. */

#include "dispatch.h"
#include "pool.h"

/* Elements worth a turn at the shared counter, and worth a thread. */
enum { ELEMENTS_PER_TURN = 1 << 14, ELEMENTS_PER_THREAD = 1 << 13 };

typedef struct {
    const sa_softmax_problem *problem;
    const sa_kernels *kernels;
    int64_t rows, rows_per_turn;
    sa_counter next;
    sa_stop stop;
} softmax_call;

/* A row so long that the caller must be asked between its parts whether to go on. */
static void long_row(softmax_call *c, const char *x, char *out, int worker) {
    static const sa_softmax_pass passes[] = {SA_SOFTMAX_MAX, SA_SOFTMAX_EXP, SA_SOFTMAX_DIVIDE};
    const sa_softmax_problem *p = c->problem;
    sa_softmax_state state;
    c->kernels->softmax_part(SA_SOFTMAX_CLEAR, &state, NULL, 0, NULL, 0, 0);
    for (int pass = 0; pass < 3; ++pass)
        for (int64_t at = 0; at < p->n && !sa_must_stop(&c->stop, worker); at += SA_SOFTMAX_PART) {
            int64_t n = p->n - at < SA_SOFTMAX_PART ? p->n - at : SA_SOFTMAX_PART;
            c->kernels->softmax_part(passes[pass], &state, x + at * p->x_col, p->x_col,
                                     out + at * p->out_col, p->out_col, n);
        }
}

static void some_rows(void *arg, int worker) {
    softmax_call *c = arg;
    const sa_softmax_problem *p = c->problem;
    for (int64_t turn; (turn = sa_take(&c->next)) * c->rows_per_turn < c->rows;) {
        int64_t first = turn * c->rows_per_turn, end = first + c->rows_per_turn;
        if (end > c->rows) end = c->rows;
        for (int64_t row = first; row < end; ++row) {
            const char *x = p->x;
            char *out = p->out;
            int64_t rest = row;
            for (int i = p->axes - 1; i >= 0; --i) {
                int64_t at = rest % p->shape[i];
                rest /= p->shape[i];
                x += at * p->x_stride[i];
                out += at * p->out_stride[i];
            }
            if (p->n <= SA_SOFTMAX_PART)
                c->kernels->softmax_row(x, p->x_col, out, p->out_col, p->n);
            else
                long_row(c, x, out, worker);
        }
        if (sa_must_stop(&c->stop, worker)) return;
    }
}

sa_status sa_softmax(const sa_softmax_problem *p) {
    softmax_call c = {.problem = p, .kernels = sa_kernels_for(p->dtype), .rows = 1};
    if (p->n == 0) return SA_OK;
    sa_enter(&c.stop, p->interrupt);
    for (int i = 0; i < p->axes; ++i) c.rows *= p->shape[i];
    c.rows_per_turn = p->n < ELEMENTS_PER_TURN ? ELEMENTS_PER_TURN / (p->n + 1) : 1;
    if (c.rows_per_turn < 1) c.rows_per_turn = 1;
    double threads = (double)c.rows * (double)p->n / ELEMENTS_PER_THREAD;
    int num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (num_threads > c.rows) num_threads = (int)c.rows;
    sa_parallel(num_threads > 1 ? num_threads : 1, some_rows, &c, &c.stop);
    return sa_leave(&c.stop);
}

void sa_apply(sa_function f, sa_dtype dtype, const void *x, void *y, int64_t n) {
    sa_kernels_for(dtype)->apply(f, x, y, n);
}
