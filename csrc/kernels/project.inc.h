/* The products of a projection and of its gradients, by the micro-kernel (ukernel.inc.h):
 *
 *     C[m][lane] = sum over k of A[m, k] * B[k][lane]
 *
 *     by rows       out[row, m] = sum of W[m, k] * x[row, k] + bias[m]     a lane is a row of x
 *     by columns    dW[m, col]  = sum of dy[k, m] * x[k, col]              a lane is a column of x
 *
 * The sum over k is cut at fixed places, into runs of PROJECT_RUN, each run into parts of two
 * chunks. Each run, part and chunk is summed from 0, and these sums are added in order. So the bits
 * of an element depend on nothing but its row of A and its column of B, and its error grows slowly
 * with k, which may be all rows of a batch. A few rows of x have kernels of their own, with the
 * same bits: project_gemv.inc.h.
 *
 * B is packed, a block of k at a time, in panels of at most PROJECT_LANES lanes; PROJECT_STEP rows
 * of A are multiplied by one panel after another. A is read in place, or copied (transposed
 * where needed) so that its rows are contiguous and share no cache sets. Called by the loops
 * through the table (kernels.h). */
#ifndef SA_KERNELS_PROJECT_INC_H
#define SA_KERNELS_PROJECT_INC_H

#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "prefetch.inc.h"
#include "ukernel.inc.h"
#include "scatter.inc.h"

enum {
    PROJECT_CHUNK = 64, /* k of a chunk; half of it for a short sum: project_chunk */
    PROJECT_RUN = 1024,
    PROJECT_LANES = NR_BEST * LANES, /* lanes of a panel */
    PROJECT_STEP = 128,              /* rows of A multiplied at a time */
    PROJECT_PIECE = 128 / REAL_SIZE, /* elements of a row transposed at a time */
    PIECE_BYTES = PROJECT_PIECE * ELEM_SIZE,
    PANEL_BYTES = PROJECT_PIECE * REAL_SIZE, /* of it in a panel, for each lane */
    /* Elements of B in the block of a tile of one panel. With so few lanes A comes from memory, and
     * a longer block reads it in longer pieces. */
    PROJECT_LONG = 64 * 1024 / REAL_SIZE,
};

_Static_assert(SA_PROJECT_K % (2 * PROJECT_CHUNK) == 0 && PROJECT_RUN % SA_PROJECT_K == 0,
               "blocks end where parts do, and runs where blocks do");

typedef struct {
    real *b, *a, *sums, *c;
    real *total; /* sums of the runs before this one, laid out as C; only if there are several */
    int64_t row; /* elements of a row of `a`, and rows of a panel of B */
} project_scratch;

/* Whether A's rows are read in place: they must be reals, contiguous, and not compete for the same
 * cache sets, as rows a multiple of a page apart do. For a single panel that does not matter:
 * it reads them once. */
static int reads_a_in_place(const sa_project_tile *t) {
    enum { PAGE = 4096 };
    if (!ELEM_IS_REAL || t->p.by == SA_BY_COLUMNS || t->p.w_k != REAL_SIZE) return 0;
    return t->lanes <= PROJECT_LANES || t->p.w_row % PAGE != 0;
}

static int64_t project_chunk(const sa_project_tile *t) {
    return t->p.k > PROJECT_CHUNK ? PROJECT_CHUNK : PROJECT_CHUNK / 2;
}

static int has_runs(const sa_project_tile *t) { return t->p.k > PROJECT_RUN; }

/* Whether the block that begins at k begins a run. */
SA_INLINE int begins_run(int64_t k) { return k % PROJECT_RUN == 0; }

/* Add the n sums c of a run to the total; the first run starts the total. */
static void end_run(real *total, const real *c, int64_t n, int is_first) {
    for (int64_t i = 0; i < n; i += LANES)
        v_store(total + i, is_first ? v_load(c + i) : v_add(v_load(total + i), v_load(c + i)));
}

/* The tile's k, or `most` of them. */
static int64_t block_of(const sa_project_tile *t, int64_t most) {
    return t->p.k < most ? t->p.k : most;
}

static int64_t project_block(const sa_project_tile *t) {
    int64_t lanes = whole_vectors(t->lanes), block = SA_PROJECT_K;
    if (lanes <= PROJECT_LANES && reads_a_in_place(t))
        while (block < PROJECT_RUN && 2 * block * lanes <= PROJECT_LONG) block *= 2;
    return block_of(t, block);
}

/* Whether blocks are longer than usual: the tile is a single panel then. */
static int is_long(const sa_project_tile *t) { return t->p.block > SA_PROJECT_K; }

/* Elements of scratch for A, where it is not read in place. */
static int64_t a_elements(const sa_project_tile *t) {
    return reads_a_in_place(t) ? 0 : PROJECT_STEP * whole_vectors(t->p.block);
}

static size_t project_scratch_size(const sa_project_tile *t) {
    int64_t lanes = whole_vectors(t->lanes);
    int64_t b = lanes * whole_vectors(t->p.block), c = lanes * t->m * (has_runs(t) ? 2 : 1);
    return (size_t)(b + a_elements(t) + SUMS_ROOM + c) * sizeof(real);
}

static project_scratch project_layout(const sa_project_tile *t, void *memory) {
    project_scratch x = {.b = memory, .row = whole_vectors(t->p.block)};
    x.a = x.b + x.row * whole_vectors(t->lanes);
    x.sums = x.a + a_elements(t);
    x.c = x.sums + SUMS_ROOM;
    x.total = x.c + whole_vectors(t->lanes) * t->m;
    return x;
}

/* The panel of the lanes from `first` on: n vectors, and its rows of B and C. */
typedef struct {
    int n;
    ptrdiff_t row;
    real *b, *c;
} project_panel;

static project_panel panel_at(const sa_project_tile *t, const project_scratch *x, int first) {
    int n = (at_most(t->lanes - first, PROJECT_LANES) + LANES - 1) / LANES;
    return (project_panel){n, n * LANES, x->b + first * x->row, x->c + first * t->m};
}

#define EACH_PANEL(first) for (int first = 0; first < t->lanes; first += PROJECT_LANES)

/* ------------------------------------------------------------------ B */

/* Prefetch `bytes` bytes from `offset` on of rows with contiguous elements into L1. */
static void prefetch_pieces(const char *const *rows, int count, ptrdiff_t offset, ptrdiff_t bytes) {
    for (int r = 0; r < count; ++r)
        for (ptrdiff_t at = offset; at < offset + bytes; at += CACHE_LINE)
            SA_PREFETCH_NEAREST((uintptr_t)rows[r] + (uintptr_t)at);
}

/* Pack a vector of lanes, each a row of x, piece by piece. The next piece of the rows and of the
 * panel is prefetched: a store that misses L1 blocks the stores after it. */
static void pack_lanes(const sa_project_tile *t, int lane, int64_t k_begin, int64_t k_end,
                       int is_first, real *b, ptrdiff_t b_row) {
    const ptrdiff_t col = t->p.x_col;
    const char *rows[LANES];
    int count = at_most(t->lanes - lane, LANES);
    for (int r = 0; r < count; ++r) rows[r] = t->x[lane + r] + k_begin * col;
    for (int64_t left = k_end - k_begin; left > 0; left -= PROJECT_PIECE) {
        const char *panel = (const char *)b;
        int length = at_most(left, PROJECT_PIECE);
        if (col == ELEM_SIZE) prefetch_pieces(rows, count, PIECE_BYTES, PIECE_BYTES);
        if (is_first) prefetch_pieces(&panel, 1, PANEL_BYTES * b_row, PANEL_BYTES * b_row);
        gather(rows, count, col, length, 1, 0, b, b_row);
        for (int r = 0; r < count; ++r) rows[r] += length * col;
        b += PROJECT_PIECE * b_row;
    }
}

static void load_rows(const sa_project_tile *t, const project_scratch *x, int64_t k_begin,
                      int64_t k_end) {
    EACH_PANEL(first) {
        project_panel p = panel_at(t, x, first);
        for (int j = 0; j < p.n; ++j)
            pack_lanes(t, first + j * LANES, k_begin, k_end, j == 0, p.b + j * LANES, p.row);
    }
}

static int is_zero(const char *p, ptrdiff_t stride, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = s_load_strided(p + i * stride, stride, at_most(n - i, LANES));
        if (v_lane_bits(v_eq(x, v_zero())) != (1u << LANES) - 1) return 0;
    }
    return 1;
}

/* Pack rows of x as rows of B. A row whose dy is all 0 must add nothing to dW, even if it holds NaN
 * or inf: it may be padding. */
static void load_columns(const sa_project_tile *t, const project_scratch *x, int64_t count) {
    int finite = 1;
    EACH_PANEL(first) {
        project_panel p = panel_at(t, x, first);
        for (int64_t k = 0; k < count; ++k)
            for (int j = 0; j < p.n; ++j) {
                int lane = first + j * LANES;
                v_store(p.b + k * p.row + j * LANES,
                        s_load_strided(t->x[k] + lane * t->p.x_col, t->p.x_col,
                                       at_most(t->lanes - lane, LANES)));
            }
        finite &= all_finite(p.b, count * p.row);
    }
    for (int64_t k = 0; !finite && k < count; ++k) {
        if (!is_zero(t->dy[k], t->p.dy_col, t->p.dy_cols)) continue;
        EACH_PANEL(first) {
            project_panel p = panel_at(t, x, first);
            for (int j = 0; j < p.n; ++j) v_store(p.b + k * p.row + j * LANES, v_zero());
        }
    }
}

static void project_load(const sa_project_tile *t, void *memory, int64_t k_begin, int64_t k_end) {
    project_scratch x = project_layout(t, memory);
    if (k_begin > 0 && begins_run(k_begin))
        end_run(x.total, x.c, whole_vectors(t->lanes) * t->m, k_begin == PROJECT_RUN);
    if (t->p.by == SA_BY_ROWS)
        load_rows(t, &x, k_begin, k_end);
    else
        load_columns(t, &x, k_end - k_begin);
    v_zeroupper();
}

/* ------------------------------------------------------------------ A */

/* Rows of A with contiguous elements. */
typedef struct {
    const char *at;
    ptrdiff_t row;
} rows_of_a;

/* Copy rows [m_begin, m_end) of A from `count` columns, whose elements are `col` bytes apart. */
static void transpose_a(const project_scratch *x, const char *const *columns, int64_t count,
                        ptrdiff_t col, int64_t m_begin, int64_t m_end) {
    for (int64_t m = m_begin; m < m_end; m += PROJECT_PIECE) {
        int length = at_most(m_end - m, PROJECT_PIECE);
        for (int64_t k = 0; k < count; k += LANES) {
            const char *from[LANES];
            int width = at_most(count - k, LANES);
            for (int i = 0; i < width; ++i) from[i] = columns[k + i] + m * col;
            if (col == ELEM_SIZE) prefetch_pieces(from, width, PIECE_BYTES, PIECE_BYTES);
            gather(from, width, col, length, 1, 0, x->a + (m - m_begin) * x->row + k, x->row);
        }
    }
}

/* Copy `count` contiguous elements of each of `rows` rows of A, `step` bytes apart. */
static void copy_a(const project_scratch *x, const char *row, ptrdiff_t step, int64_t rows,
                   int64_t count) {
    enum { ROWS_AHEAD = 4 };
    for (int64_t m = 0; m < rows; ++m, row += step) {
        prefetch_pieces(&row, 1, ROWS_AHEAD * step, count * ELEM_SIZE);
        for (int64_t k = 0; k < count; k += LANES)
            v_store(x->a + m * x->row + k,
                    s_load_strided(row + k * ELEM_SIZE, ELEM_SIZE, at_most(count - k, LANES)));
    }
}

/* Rows [m_begin, m_end) of A for k in [k_begin, k_end): in place or copied. */
static rows_of_a load_a(const sa_project_tile *t, const project_scratch *x, int64_t k_begin,
                        int64_t k_end, int64_t m_begin, int64_t m_end) {
    const int64_t count = k_end - k_begin;
    if (t->p.by == SA_BY_ROWS && t->p.w_k == ELEM_SIZE) {
        const char *w = t->p.w + m_begin * t->p.w_row + k_begin * t->p.w_k;
        if (reads_a_in_place(t)) return (rows_of_a){w, t->p.w_row};
        copy_a(x, w, t->p.w_row, m_end - m_begin, count);
    } else {
        const char *columns[SA_PROJECT_K];
        int by_rows = t->p.by == SA_BY_ROWS;
        ptrdiff_t col = by_rows ? t->p.w_row : t->p.dy_col;
        for (int64_t k = 0; k < count; ++k)
            columns[k] = by_rows ? t->p.w + (k_begin + k) * t->p.w_k : t->dy[k] + t->dy_first * col;
        transpose_a(x, columns, count, col, m_begin, m_end);
    }
    return (rows_of_a){(const char *)x->a, x->row * REAL_SIZE};
}

/* ------------------------------------------------------------------ C */

/* The product of the loaded block of k, for rows [m, m + rows) of a panel's C. */
static ukernel_args project_args(const sa_project_tile *t, const project_scratch *x,
                                 const project_panel *p, rows_of_a a, int64_t m, int64_t rows,
                                 int64_t k_begin, int64_t k_end) {
    return (ukernel_args){
        .m = rows,
        .k = k_end - k_begin,
        .chunk = project_chunk(t),
        .part = 2 * project_chunk(t),
        .a = a.at,
        .a_row = a.row,
        .a_k = REAL_SIZE,
        .b = (const char *)p->b,
        .b_k = p->row * REAL_SIZE,
        .c = p->c + m * p->row,
        .c_row = p->row,
        .kind = begins_run(k_begin) ? BETA_ZERO : SUM_SCALED,
        .sums = x->sums,
    };
}

/* Rows [m_begin, m_end) of C for all lanes. */
static void multiply_rows(const sa_project_tile *t, const project_scratch *x, rows_of_a a,
                          int64_t k_begin, int64_t k_end, int64_t m_begin, int64_t m_end) {
    EACH_PANEL(first) {
        project_panel p = panel_at(t, x, first);
        ukernel_args args = project_args(t, x, &p, a, m_begin, m_end - m_begin, k_begin, k_end);
        args.prefetches_a = 1;
        ukernel_in_parts(p.n, &args);
    }
}

/* multiply_rows for a single panel and a long block: each strip of A is multiplied by the whole
 * block, while the next strip is prefetched, a line with each k. */
static void multiply_long_rows(const sa_project_tile *t, const project_scratch *x, rows_of_a a,
                               int64_t k_begin, int64_t k_end, int64_t m_begin, int64_t m_end) {
    project_panel p = panel_at(t, x, 0);
    const int strip = MR(p.n);
    for (int64_t m = m_begin; m < m_end; m += strip, a.at += strip * a.row) {
        int rows = at_most(m_end - m, strip);
        ukernel_args args = project_args(t, x, &p, a, m, rows, k_begin, k_end);
        prefetch_queue prefetch;
        prefetch_begin(&prefetch);
        prefetch_rows(&prefetch, a.at + rows * a.row, a.row, strip, (k_end - k_begin) * REAL_SIZE);
        args.prefetch = &prefetch;
        ukernel_in_parts(p.n, &args);
    }
}

static void project_multiply(const sa_project_tile *t, void *memory, int64_t k_begin, int64_t k_end,
                             int64_t m_begin, int64_t m_end) {
    project_scratch x = project_layout(t, memory);
    rows_of_a a = load_a(t, &x, k_begin, k_end, m_begin, m_end);
    if (is_long(t))
        multiply_long_rows(t, &x, a, k_begin, k_end, m_begin, m_end);
    else
        multiply_rows(t, &x, a, k_begin, k_end, m_begin, m_end);
    v_zeroupper();
}

/* Write a vector of lanes, each a row of `out`, piece by piece. */
static void write_rows(const sa_project_tile *t, int lane, const real *c, ptrdiff_t c_row) {
    char *rows[LANES];
    int count = at_most(t->lanes - lane, LANES);
    for (int r = 0; r < count; ++r) rows[r] = t->out[lane + r];
    for (int64_t m = 0; m < t->m; m += PROJECT_PIECE) {
        int length = at_most(t->m - m, PROJECT_PIECE);
        if (t->p.out_col == ELEM_SIZE)
            prefetch_pieces((const char *const *)rows, count, PIECE_BYTES, PIECE_BYTES);
        scatter(rows, count, t->p.out_col, length, c + m * c_row, c_row);
        for (int r = 0; r < count; ++r) rows[r] += length * t->p.out_col;
    }
}

/* Write a vector of lanes of C: each row's lanes are elements of a row of dW. */
static void write_columns(const sa_project_tile *t, int lane, const real *c, ptrdiff_t c_row) {
    char *to = t->p.grad + lane * t->p.grad_col;
    for (int64_t m = 0; m < t->m; ++m, to += t->p.grad_row)
        s_store_strided(to, t->p.grad_col, at_most(t->lanes - lane, LANES), v_load(c + m * c_row));
}

static void add_bias(const sa_project_tile *t, const project_panel *p) {
    for (int64_t m = 0; m < t->m; ++m) {
        vec bias = s_broadcast(t->p.bias + m * t->p.bias_step);
        for (int j = 0; j < p->n; ++j) {
            real *c = p->c + m * p->row + j * LANES;
            v_store(c, v_add(v_load(c), bias));
        }
    }
}

static void project_finish(const sa_project_tile *t, void *memory) {
    project_scratch x = project_layout(t, memory);
    if (has_runs(t)) {
        end_run(x.total, x.c, whole_vectors(t->lanes) * t->m, 0);
        x.c = x.total;
    }
    EACH_PANEL(first) {
        project_panel p = panel_at(t, &x, first);
        if (t->p.k == 0) memset(p.c, 0, (size_t)(t->m * p.row) * sizeof(real));
        if (t->p.bias) add_bias(t, &p);
        for (int j = 0; j < p.n; ++j)
            (t->p.by == SA_BY_ROWS ? write_rows : write_columns)(t, first + j * LANES,
                                                                 p.c + j * LANES, p.row);
    }
    v_zeroupper();
}

#undef EACH_PANEL

#endif
