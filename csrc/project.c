/* Projections and their gradients: the parallel loop over tiles. The kernels compute.
 *
 *     out = x w^T + bias        dx = dy w        dw = dy^T x        dbias = dy^T 1
 *
 * dx is a projection of dy by the transposed w; dw has lanes of x's columns instead of its rows,
 * and dbias is dw for an x that is 1 everywhere. A tile owns what it writes: some lanes by some
 * rows of the matrix, whose product it sums over all k. How it is cut changes no bit. */

#include "dispatch.h"
#include "problem.h"
#include "run.h"

typedef struct {
    const sa_project_kernel *kernel;
    int axes;
    const int64_t *shape;
    sa_rows x, out; /* by columns: dy instead of out */
    sa_product product;
    int64_t lanes, m, lanes_of_tile, m_of_tile, tiles_of_m;
    int num_threads;
    size_t scratch_size; /* of a worker */
    sa_counter next;
    sa_call *call;
} project_call;

static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* The size of about `pieces` equal pieces of n, a multiple of `unit`. */
static int64_t piece(int64_t n, int64_t pieces, int64_t unit) {
    return parts(parts(n, pieces), unit) * unit;
}

static int64_t tiles_of(const project_call *c) {
    return parts(c->lanes, c->lanes_of_tile) * c->tiles_of_m;
}

static int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }

/* Cut the product into tiles: the largest ones, or, if there is work enough, several for each
 * thread. Lanes are cut before m, since every cut of m packs x once more; in a gemv all lanes are
 * in one tile, and nothing is packed. */
static void plan(project_call *c, int num_threads, int lanes_of_vector, int is_gemv) {
    double flops = 2.0 * (double)c->lanes * (double)c->m * (double)c->product.k;
    double threads = flops / FLOPS_PER_THREAD, tiles = flops / PROJECT_FLOPS_PER_TILE;
    c->num_threads = threads < num_threads ? (int)threads : num_threads;
    if (c->num_threads < 1) c->num_threads = 1;
    int64_t by_lanes = parts(c->lanes, c->kernel->lanes), by_m = parts(c->m, SA_PROJECT_M);
    if (c->num_threads > 1 && is_gemv) {
        by_m = max_of(by_m, min_of((int64_t)c->num_threads * PROJECT_TILES_PER_THREAD,
                                   c->m / PROJECT_M_UNIT));
    } else if (c->num_threads > 1) {
        int64_t all = c->num_threads, wanted = all * PROJECT_TILES_PER_THREAD;
        if (tiles < (double)wanted) wanted = max_of((int64_t)tiles, all);
        int64_t max_by_lanes = max_of(by_lanes, c->lanes / PROJECT_MIN_LANES);
        if (by_lanes * by_m < wanted) by_lanes = min_of(parts(wanted, by_m), max_by_lanes);
        if (by_lanes > 1) by_lanes = min_of(parts(by_lanes, all) * all, max_by_lanes);
        if (by_lanes * by_m < all)
            by_m = min_of(parts(all, by_lanes), max_of(by_m, c->m / PROJECT_MIN_M));
    }
    c->lanes_of_tile = min_of(piece(c->lanes, by_lanes, lanes_of_vector), c->kernel->lanes);
    c->m_of_tile = min_of(piece(c->m, by_m, PROJECT_M_UNIT), SA_PROJECT_M);
    c->tiles_of_m = parts(c->m, c->m_of_tile);
}

static void point_at_rows(const project_call *c, const sa_rows *a, int64_t first, int64_t count,
                          const char **rows) {
    for (int64_t i = 0; i < count; ++i) rows[i] = sa_row_at(a, c->axes, c->shape, first + i);
}

static void fill_tile(const project_call *c, int64_t tile, sa_project_tile *t) {
    int64_t lane = tile / c->tiles_of_m * c->lanes_of_tile;
    int64_t m = tile % c->tiles_of_m * c->m_of_tile;
    t->p = c->product;
    t->lanes = (int)(lane + c->lanes_of_tile < c->lanes ? c->lanes_of_tile : c->lanes - lane);
    t->m = m + c->m_of_tile < c->m ? c->m_of_tile : c->m - m;
    if (t->p.by == SA_BY_COLUMNS) {
        t->dy_first = m;
        t->p.grad += m * t->p.grad_row + lane * t->p.grad_col;
        return;
    }
    point_at_rows(c, &c->x, lane, t->lanes, t->x);
    point_at_rows(c, &c->out, lane, t->lanes, (const char **)t->out);
    for (int i = 0; i < t->lanes; ++i) t->out[i] += m * t->p.out_col;
    t->p.w += m * t->p.w_row;
    if (t->p.bias) t->p.bias += m * t->p.bias_step;
}

/* The rows of a block of k. */
static void point_at_block(const project_call *c, int64_t tile, int64_t k_begin, int64_t k_end,
                           sa_project_tile *t) {
    int64_t lane = tile / c->tiles_of_m * c->lanes_of_tile;
    point_at_rows(c, &c->x, k_begin, k_end - k_begin, t->x);
    for (int64_t k = 0; k < k_end - k_begin; ++k) t->x[k] += lane * t->p.x_col;
    point_at_rows(c, &c->out, k_begin, k_end - k_begin, t->dy);
}

/* Returns 0 if the call is cancelled. */
static int compute_tile(project_call *c, int64_t tile, char *scratch, int worker) {
    const sa_project_kernel *kernel = c->kernel;
    sa_project_tile t;
    fill_tile(c, tile, &t);
    int64_t block = t.p.block;
    for (int64_t k = 0; k < t.p.k; k += block) {
        int64_t k_end = min_of(k + block, t.p.k);
        if (t.p.by == SA_BY_COLUMNS) point_at_block(c, tile, k, k_end, &t);
        kernel->load(&t, scratch, k, k_end);
        for (int64_t m = 0; m < t.m; m += kernel->step) {
            kernel->multiply(&t, scratch, k, k_end, m, min_of(m + kernel->step, t.m));
            if (sa_call_cancelled(c->call, worker)) return 0;
        }
    }
    kernel->finish(&t, scratch);
    return 1;
}

static void some_tiles(void *arg, int worker, char *scratch) {
    project_call *c = arg;
    for (int64_t tile, tiles = tiles_of(c); (tile = sa_fetch_add(&c->next)) < tiles;)
        if (!compute_tile(c, tile, scratch, worker)) return;
}

/* Decide what tiles like the first, the largest one, need. */
static void plan_memory(project_call *c) {
    sa_project_tile t;
    t.p = c->product;
    t.lanes = (int)min_of(c->lanes, c->lanes_of_tile);
    t.m = min_of(c->m, c->m_of_tile);
    t.p.block = c->product.block = c->kernel->block(&t);
    c->scratch_size = c->kernel->scratch_size(&t);
}

static sa_status run(project_call *c, int num_threads, int lanes_of_vector, int is_gemv) {
    if (c->lanes == 0 || c->m == 0) return SA_OK;
    plan(c, num_threads, lanes_of_vector, is_gemv);
    if (c->num_threads > tiles_of(c)) c->num_threads = (int)tiles_of(c);
    plan_memory(c);
    return sa_run(c->call, c->num_threads, c->scratch_size, some_tiles, c);
}

static int64_t rows_of(const sa_projection *p) {
    int64_t rows = 1;
    for (int i = 0; i < p->axes; ++i) rows *= p->shape[i];
    return rows;
}

/* The kernel for few rows, for which a vector of lanes is rows of the weight; NULL if these are not
 * few. Twice as many are, if the weight comes from memory, which they wait for either way. */
static const sa_project_kernel *gemv_kernel(const sa_projection *p, int64_t rows, int exceeds_cache,
                                            const sa_kernels *k) {
    ptrdiff_t side_by_side = (ptrdiff_t)sa_dtype_size(p->dtype);
    const sa_project_kernel *gemv = p->weight_row == side_by_side && p->weight_col != side_by_side
                                        ? &k->gemv_by_columns
                                        : &k->gemv_by_rows_of->gemv_by_rows;
    return rows <= (exceeds_cache ? gemv->lanes : gemv->lanes / 2) ? gemv : NULL;
}

/* x w^T + bias */
static sa_status by_rows(const sa_projection *p, sa_call *call) {
    const sa_kernels *k = sa_kernels_for(p->dtype);
    int64_t rows = rows_of(p);
    double bytes = (double)p->n_in * (double)p->n_out * (double)sa_dtype_size(p->dtype);
    int exceeds_cache = bytes > L3_BUDGET;
    const sa_project_kernel *gemv = gemv_kernel(p, rows, exceeds_cache, k);
    project_call c = {
        .kernel = gemv ? gemv : &k->project,
        .axes = p->axes,
        .shape = p->shape,
        .x = p->x,
        .out = p->out,
        .product = {.by = SA_BY_ROWS,
                    .k = p->n_in,
                    .x_col = p->x.col,
                    .w = p->weight,
                    .bias = p->bias,
                    .w_row = p->weight_row,
                    .w_k = p->weight_col,
                    .bias_step = p->bias_step,
                    .exceeds_cache = exceeds_cache,
                    .out_col = p->out.col},
        .lanes = rows,
        .m = p->n_out,
        .call = call,
    };
    return run(&c, p->num_threads, gemv ? 1 : k->lanes, gemv != NULL);
}

/* grad (n_out, n_in) = dy^T x, with p's out for dy */
static sa_status by_columns(const sa_projection *p, sa_rows x, int64_t n_in, char *grad,
                            ptrdiff_t grad_row, ptrdiff_t grad_col, sa_call *call) {
    const sa_kernels *k = sa_kernels_for(p->dtype);
    project_call c = {
        .kernel = &k->project,
        .axes = p->axes,
        .shape = p->shape,
        .x = x,
        .out = p->out,
        .product = {.by = SA_BY_COLUMNS,
                    .k = rows_of(p),
                    .x_col = x.col,
                    .dy_col = p->out.col,
                    .dy_cols = p->n_out,
                    .grad = grad,
                    .grad_row = grad_row,
                    .grad_col = grad_col},
        .lanes = n_in,
        .m = p->n_out,
        .call = call,
    };
    return run(&c, p->num_threads, k->lanes, 0);
}

sa_status sa_project(const sa_projection *p) {
    sa_call call;
    sa_call_begin(&call, p->interrupt);
    return sa_call_end(&call, by_rows(p, &call));
}

static sa_status gradient_of_x(const sa_projection *p, const sa_projection_gradients *g,
                               sa_call *call) {
    sa_projection of_transposed = *p;
    of_transposed.x = p->out;
    of_transposed.out = g->x;
    of_transposed.n_in = p->n_out;
    of_transposed.n_out = p->n_in;
    of_transposed.weight_row = p->weight_col;
    of_transposed.weight_col = p->weight_row;
    of_transposed.bias = NULL;
    return by_rows(&of_transposed, call);
}

static sa_status gradient_of_bias(const sa_projection *p, const sa_projection_gradients *g,
                                  sa_call *call) {
    sa_projection of_ones = *p;
    double one;
    sa_store_scalar(p->dtype, &one, 1);
    of_ones.out = (sa_rows){.data = (char *)&one};
    of_ones.n_out = 1;
    return by_columns(&of_ones, p->out, p->n_out, g->bias, 0, g->bias_step, call);
}

sa_status sa_project_backward(const sa_projection *p, const sa_projection_gradients *g) {
    sa_status status = SA_OK;
    sa_call call;
    sa_call_begin(&call, p->interrupt);
    if (g->x.data) status = gradient_of_x(p, g, &call);
    if (status == SA_OK && !call.cancelled && g->weight)
        status = by_columns(p, p->x, p->n_in, g->weight, g->weight_row, g->weight_col, &call);
    if (status == SA_OK && !call.cancelled && g->bias) status = gradient_of_bias(p, g, &call);
    return sa_call_end(&call, status);
}
