/* The projection of a few rows (decoding), bound by memory. Lanes are rows of W, where those of
 * project.inc.h are rows of x; the operations on an element and their order are the same:
 *
 *     out[row][lane] = sum over k of x[row, k] * W[lane][k] + bias[lane]      a lane is a row of W
 *
 * W is read once, in long pieces. Where the elements of its rows are contiguous, squares of W are
 * transposed in registers (gemv_multiply_rows); where those of its columns are, vectors are loaded
 * as they are (gemv_multiply_columns). Both kernels share the rest. Called by the loops through the
 * table (kernels.h). */
#ifndef SA_KERNELS_PROJECT_GEMV_INC_H
#define SA_KERNELS_PROJECT_GEMV_INC_H

#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "ukernel.inc.h"
#include "project.inc.h"

enum {
    GEMV_ROWS = 8,            /* rows of x, at most */
    GEMV_K = 4 * PROJECT_RUN, /* k of a block: the more, the longer the pieces of W */
    GEMV_COLUMNS = 1024, /* rows of W at a time by columns: their sums stay in L1 for a chunk */
    GEMV_COLUMNS_K = 8,  /* columns of W added to a sum at a time */
};

typedef struct {
    real *x, *panel, *sums, *c, *total, *chunk, *part;
    int64_t x_row, c_row;
} gemv_scratch;

static int64_t gemv_block(const sa_project_tile *t) { return block_of(t, GEMV_K); }

static size_t gemv_scratch_size(const sa_project_tile *t) {
    int64_t c = whole_vectors(t->m) * (has_runs(t) ? 2 : 1);
    int64_t of_row = whole_vectors(t->p.block) + c + 2 * GEMV_COLUMNS;
    return (size_t)(t->lanes * of_row + SA_PROJECT_K * LANES + SUMS_ROOM) * sizeof(real);
}

static gemv_scratch gemv_layout(const sa_project_tile *t, void *memory) {
    gemv_scratch x = {.panel = memory};
    x.x_row = whole_vectors(t->p.block);
    x.c_row = whole_vectors(t->m);
    x.sums = x.panel + SA_PROJECT_K * LANES;
    x.x = x.sums + SUMS_ROOM;
    x.c = x.x + t->lanes * x.x_row;
    x.chunk = x.c + t->lanes * x.c_row;
    x.part = x.chunk + t->lanes * GEMV_COLUMNS;
    x.total = x.part + t->lanes * GEMV_COLUMNS;
    return x;
}

static void gemv_load(const sa_project_tile *t, void *memory, int64_t k_begin, int64_t k_end) {
    gemv_scratch x = gemv_layout(t, memory);
    for (int r = 0; r < t->lanes; ++r)
        for (int64_t k = k_begin; k < k_end; k += LANES)
            v_store(
                x.x + r * x.x_row + (k - k_begin),
                s_load_strided(t->x[r] + k * t->p.x_col, t->p.x_col, at_most(k_end - k, LANES)));
    v_zeroupper();
}

/* End the run that began at k, for rows [first, last) of x and `count` rows of W from m on. */
static void gemv_end_run(const sa_project_tile *t, const gemv_scratch *x, int64_t k, int first,
                         int last, int64_t m, int64_t count) {
    for (int r = first; has_runs(t) && r < last; ++r)
        end_run(x->total + r * x->c_row + m, x->c + r * x->c_row + m, count, k == 0);
}

/* ------------------------------------------------------------------ W with contiguous rows */

/* acc[c][r] += x[r, k] * W[lane][k] for M rows of x and `count` k: from `first` on for c = 0, and
 * one `chunk` later for c = 1, if C is 2. Squares of W are transposed and multiplied in registers.
 * Nothing is prefetched: rows are read from end to end, which the hardware prefetcher follows. */
SA_INLINE void add_squares(const int M, const int C, const real *x, ptrdiff_t x_row,
                           const char *const *rows, int64_t first, int64_t count, int64_t chunk,
                           vec acc[][SQUARE_ROWS]) {
    for (int64_t k = first; k < first + count; k += LANES) {
        SA_UNROLL
        for (int c = 0; c < C; ++c) {
            const int64_t at = k + c * chunk;
            vec square[LANES];
            load_square(rows, at * ELEM_SIZE, 0, square);
            v_transpose(square);
            SA_UNROLL
            for (int i = 0; i < LANES; ++i) {
                SA_UNROLL
                for (int r = 0; r < M; ++r)
                    acc[c][r] = v_fma(v_set(x[r * x_row + at + i]), square[i], acc[c][r]);
            }
        }
    }
}

/* A vector of lanes for M rows, a constant, and k in [begin, end), a run. The two chunks of a part
 * are summed side by side: with one sum a row, each fma would wait for the one before it. */
SA_INLINE void squares_of_w(const int M, const real *x, ptrdiff_t x_row, const char *const *rows,
                            int64_t begin, int64_t end, int64_t chunk, real *c, ptrdiff_t c_row) {
    for (int64_t k = begin; k < end; k += 2 * chunk) {
        int64_t first = at_most(end - k, (int)chunk), second = at_most(end - k - first, (int)chunk);
        vec acc[2][SQUARE_ROWS];
        SA_UNROLL
        for (int r = 0; r < M; ++r) acc[0][r] = acc[1][r] = v_zero();
        add_squares(M, 2, x, x_row, rows, k, second, chunk, acc);
        add_squares(M, 1, x, x_row, rows, k + second, first - second, chunk, acc);
        SA_UNROLL
        for (int r = 0; r < M; ++r) {
            vec part = second > 0 ? v_add(acc[0][r], acc[1][r]) : acc[0][r];
            real *to = c + r * c_row;
            v_store(to, k == begin ? part : sum_scaled(part, v_set(1), v_load(to)));
        }
    }
}

/* The block's runs for rows [r, r + M) of x. W is read from end to end, once for each call. */
SA_INLINE void runs_of_squares(const int M, const sa_project_tile *t, const gemv_scratch *s, int r,
                               const char *const *rows, int64_t k_begin, int64_t k_end, int64_t m) {
    for (int64_t k = k_begin; k < k_end; k += PROJECT_RUN) {
        int64_t begin = k - k_begin, end = begin + at_most(k_end - k, PROJECT_RUN);
        squares_of_w(M, s->x + r * s->x_row, s->x_row, rows, begin, end, project_chunk(t),
                     s->c + r * s->c_row + m, s->c_row);
        gemv_end_run(t, s, k, r, r + M, m, LANES);
    }
}

/* One run, from k = begin of the block on, for a vector of `count` lanes and any strides of W, by
 * panels. */
static void panels_of_w(const sa_project_tile *t, const gemv_scratch *s, const char *const *rows,
                        int count, int64_t begin, int64_t length, int64_t m) {
    for (int64_t k = begin; k < begin + length; k += SA_PROJECT_K) {
        const char *from[LANES];
        int block = at_most(begin + length - k, SA_PROJECT_K);
        for (int i = 0; i < count; ++i) from[i] = rows[i] + k * t->p.w_k;
        gather(from, count, t->p.w_k, block, 1, 0, s->panel, LANES);
        ukernel_in_parts(1, &(ukernel_args){
                                .m = t->lanes,
                                .k = block,
                                .chunk = project_chunk(t),
                                .part = 2 * project_chunk(t),
                                .a = (const char *)(s->x + k),
                                .a_row = s->x_row * REAL_SIZE,
                                .a_k = REAL_SIZE,
                                .b = (const char *)s->panel,
                                .b_k = sizeof(vec),
                                .c = s->c + m,
                                .c_row = s->c_row,
                                .kind = k == begin ? BETA_ZERO : SUM_SCALED,
                                .sums = s->sums,
                            });
    }
}

static void gemv_multiply_rows(const sa_project_tile *t, void *memory, int64_t k_begin,
                               int64_t k_end, int64_t m_begin, int64_t m_end) {
    gemv_scratch s = gemv_layout(t, memory);
    int are_squares = t->p.w_k == ELEM_SIZE && (k_end - k_begin) % LANES == 0;
    for (int64_t m = m_begin; m < m_end; m += LANES) {
        const char *rows[LANES];
        int count = at_most(m_end - m, LANES), by_squares = are_squares && count == LANES;
        for (int i = 0; i < count; ++i)
            rows[i] = t->p.w + (m + i) * t->p.w_row + k_begin * t->p.w_k;
        for (int r = 0; by_squares && r < t->lanes; r += SQUARE_ROWS)
            switch (at_most(t->lanes - r, SQUARE_ROWS)) {
                case 1: runs_of_squares(1, t, &s, r, rows, k_begin, k_end, m); break;
                case 2: runs_of_squares(2, t, &s, r, rows, k_begin, k_end, m); break;
                case 3: runs_of_squares(3, t, &s, r, rows, k_begin, k_end, m); break;
                default: runs_of_squares(4, t, &s, r, rows, k_begin, k_end, m);
            }
        for (int64_t k = k_begin; !by_squares && k < k_end; k += PROJECT_RUN) {
            panels_of_w(t, &s, rows, count, k - k_begin, at_most(k_end - k, PROJECT_RUN), m);
            gemv_end_run(t, &s, k, 0, t->lanes, m, count);
        }
    }
    v_zeroupper();
}

/* ------------------------------------------------------------------ W with contiguous columns */

/* sum[m] += x[k] * W[m, k] for `columns` columns and `count` rows of W. `prefetches`: prefetch as
 * many columns after them. Both are constants where this is inlined. */
SA_INLINE void add_columns(const int columns, const int prefetches, const real *x, const char *w,
                           ptrdiff_t w_k, int64_t count, real *sum) {
    for (int64_t m = 0; m < count; m += LANES) {
        int width = at_most(count - m, LANES);
        int begins_line = m % (CACHE_LINE / ELEM_SIZE) == 0;
        vec acc = v_load(sum + m);
        const char *at = w + m * ELEM_SIZE;
        SA_UNROLL
        for (int k = 0; k < columns; ++k, at += w_k) {
            vec wk = width == LANES ? s_load(at) : s_load_n(at, width);
            if (prefetches && begins_line) SA_PREFETCH((uintptr_t)at + (uintptr_t)(columns * w_k));
            acc = v_fma(v_set(x[k]), wk, acc);
        }
        v_store(sum + m, acc);
    }
}

static void add_columns_prefetching(const real *x, const char *w, ptrdiff_t w_k, int64_t count,
                                    real *sum) {
    add_columns(GEMV_COLUMNS_K, 1, x, w, w_k, count, sum);
}

static void add_columns_cached(const real *x, const char *w, ptrdiff_t w_k, int64_t count,
                               real *sum) {
    add_columns(GEMV_COLUMNS_K, 0, x, w, w_k, count, sum);
}

/* End a chunk: its sums begin the part's or are added to them, and are cleared. */
static void add_chunk(int is_first, real *chunk, int64_t count, real *part) {
    for (int64_t m = 0; m < count; m += LANES) {
        vec sum = v_load(chunk + m);
        v_store(part + m, is_first ? sum : v_add(v_load(part + m), sum));
        v_store(chunk + m, v_zero());
    }
}

/* End a part: its sums begin the run's or are added to them. */
static void add_part(int is_first, const real *part, int64_t count, real *c) {
    for (int64_t m = 0; m < count; m += LANES) {
        vec sum = v_load(part + m);
        v_store(c + m, is_first ? sum : sum_scaled(sum, v_set(1), v_load(c + m)));
    }
}

/* A run of `length` k, for rows [m, m + count) of W. `xk`: row 0 of x at the run's first k. */
static void run_of_columns(const sa_project_tile *t, const gemv_scratch *x, const real *xk,
                           const char *w, int64_t length, int64_t m, int64_t count) {
    const int64_t chunk = project_chunk(t);
    memset(x->chunk, 0, (size_t)t->lanes * GEMV_COLUMNS * sizeof(real));
    for (int64_t k = 0; k < length;) {
        int64_t end = k + chunk < length ? k + chunk : length;
        int is_first = k % (2 * chunk) == 0;
        for (; k + GEMV_COLUMNS_K <= end; k += GEMV_COLUMNS_K)
            for (int r = 0; r < t->lanes; ++r)
                (t->p.exceeds_cache && r == 0 ? add_columns_prefetching : add_columns_cached)(
                    xk + r * x->x_row + k, w + k * t->p.w_k, t->p.w_k, count,
                    x->chunk + r * GEMV_COLUMNS);
        for (; k < end; ++k)
            for (int r = 0; r < t->lanes; ++r)
                add_columns(1, 0, xk + r * x->x_row + k, w + k * t->p.w_k, t->p.w_k, count,
                            x->chunk + r * GEMV_COLUMNS);
        int is_last = k % (2 * chunk) == 0 || k == length;
        for (int r = 0; r < t->lanes; ++r) {
            real *part = x->part + r * GEMV_COLUMNS;
            add_chunk(is_first, x->chunk + r * GEMV_COLUMNS, count, part);
            if (is_last) add_part(k <= 2 * chunk, part, count, x->c + r * x->c_row + m);
        }
    }
}

static void gemv_multiply_columns(const sa_project_tile *t, void *memory, int64_t k_begin,
                                  int64_t k_end, int64_t m_begin, int64_t m_end) {
    gemv_scratch x = gemv_layout(t, memory);
    for (int64_t k = k_begin; k < k_end; k += PROJECT_RUN)
        for (int64_t m = m_begin; m < m_end; m += GEMV_COLUMNS) {
            int64_t count = at_most(m_end - m, GEMV_COLUMNS);
            run_of_columns(t, &x, x.x + (k - k_begin), t->p.w + m * t->p.w_row + k * t->p.w_k,
                           at_most(k_end - k, PROJECT_RUN), m, count);
            gemv_end_run(t, &x, k, 0, t->lanes, m, count);
        }
    v_zeroupper();
}

static void gemv_finish(const sa_project_tile *t, void *memory) {
    gemv_scratch x = gemv_layout(t, memory);
    if (has_runs(t)) x.c = x.total;
    for (int r = 0; r < t->lanes; ++r)
        for (int64_t m = 0; m < t->m; m += LANES) {
            int width = at_most(t->m - m, LANES);
            vec out = t->p.k ? v_load(x.c + r * x.c_row + m) : v_zero();
            if (t->p.bias)
                out = v_add(out,
                            s_load_strided(t->p.bias + m * t->p.bias_step, t->p.bias_step, width));
            s_store_strided(t->out[r] + m * t->p.out_col, t->p.out_col, width, out);
        }
    v_zeroupper();
}

#endif
