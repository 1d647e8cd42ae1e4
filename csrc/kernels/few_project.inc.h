/* The projection of a row or a few (a model that decodes), at the speed of memory. The operands of
 * project.inc.h change places, the operations on a row and their order do not:
 *
 *     out[row][lane] = sum over k of x[row, k] * W[lane][k] + bias[lane]      a lane is a row of W
 *
 * W is read once, in long pieces. Where its rows are what lies side by side, squares of them are
 * transposed in registers; where its columns are, they are vectors as they lie. Called by the loops
 * through the table (kernels.h). */

_Static_assert(PROJECT_PART == 2 * (int)PROJECT_CHUNK, "a part is two chunks");

enum {
    FEW_PROJECT_ROWS = 8,
    FEW_PROJECT_K = 4096, /* of a block */
    FEW_COLUMNS = 512,    /* of W, whose sums stay in the nearest cache for a chunk of k */
    FEW_COLUMNS_K = 8,    /* so many k are added to a sum at a time */
};

typedef struct {
    real *x, *panel, *sums, *c, *chunk, *part;
    int64_t x_row, c_row;
} few_project_scratch;

static int has_columns_of_w(const sa_project_tile *t) {
    return t->p.w_row == (ptrdiff_t)sizeof(real) && t->p.w_k != (ptrdiff_t)sizeof(real);
}

static int64_t few_project_block(const sa_project_tile *t) { return block_of(t, FEW_PROJECT_K); }

static size_t few_project_scratch_size(const sa_project_tile *t) {
    int64_t of_row = whole_vectors(t->p.block) + whole_vectors(t->m) + 2 * FEW_COLUMNS;
    return (size_t)(t->lanes * of_row + PROJECT_PART * LANES + SUMS_ROOM) * sizeof(real);
}

static few_project_scratch few_project_layout(const sa_project_tile *t, void *memory) {
    few_project_scratch x = {.panel = memory};
    x.x_row = whole_vectors(t->p.block);
    x.c_row = whole_vectors(t->m);
    x.sums = x.panel + PROJECT_PART * LANES;
    x.x = x.sums + SUMS_ROOM;
    x.c = x.x + t->lanes * x.x_row;
    x.chunk = x.c + t->lanes * x.c_row;
    x.part = x.chunk + t->lanes * FEW_COLUMNS;
    return x;
}

static void few_project_load(const sa_project_tile *t, void *memory, int64_t k_begin,
                             int64_t k_end) {
    few_project_scratch x = few_project_layout(t, memory);
    for (int r = 0; r < t->lanes; ++r)
        for (int64_t k = k_begin; k < k_end; k += LANES)
            v_store(x.x + r * x.x_row + (k - k_begin),
                    load_strided(t->x[r] + k * t->p.x_col, t->p.x_col, at_most(k_end - k, LANES)));
    v_leave();
}

/* ------------------------------------------------------------------ rows of W side by side */

/* acc[c][r] += x[r, k] * W[lane][k] for `count` k from `first` on, and for as many one chunk behind
 * them, if C is 2. A square of W, transposed in registers, is multiplied where it is. Nothing is
 * fetched ahead: rows are read from end to end, which the processor sees by itself. */
SA_INLINE void add_squares(const int M, const int C, const real *x, ptrdiff_t x_row,
                           const char *const *rows, int64_t first, int64_t count,
                           vec acc[][FEW_ROWS_OF_SQUARES]) {
    for (int64_t k = first; k < first + count; k += LANES) {
        SA_UNROLL
        for (int c = 0; c < C; ++c) {
            const int64_t at = k + c * PROJECT_CHUNK;
            vec square[LANES];
            load_square(rows, at * (ptrdiff_t)sizeof(real), 0, square);
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

/* A vector of lanes for M rows, a constant. The two chunks of a part are summed side by side: one
 * after the other, a single row would wait for each sum's last product. */
SA_INLINE void squares_of_w(const int M, const real *x, ptrdiff_t x_row, const char *const *rows,
                            int64_t length, int is_first, real *c, ptrdiff_t c_row) {
    for (int64_t k = 0; k < length; k += PROJECT_PART) {
        int64_t left = length - k, chunk = at_most(left, PROJECT_CHUNK);
        int64_t second = at_most(left - chunk, PROJECT_CHUNK);
        vec acc[2][FEW_ROWS_OF_SQUARES];
        SA_UNROLL
        for (int r = 0; r < M; ++r) acc[0][r] = acc[1][r] = v_zero();
        add_squares(M, 2, x, x_row, rows, k, second, acc);
        add_squares(M, 1, x, x_row, rows, k + second, chunk - second, acc);
        SA_UNROLL
        for (int r = 0; r < M; ++r) {
            vec part = second > 0 ? v_add(acc[0][r], acc[1][r]) : acc[0][r];
            real *to = c + r * c_row;
            v_store(to, is_first && k == 0 ? part : sum_scaled(part, v_set(1), v_load(to)));
        }
    }
}

/* The same for all rows: W is transposed again for every FEW_ROWS_OF_SQUARES. */
static void squares_for_rows(const sa_project_tile *t, const few_project_scratch *s,
                             const char *const *rows, int64_t length, int is_first, real *c) {
    for (int r = 0; r < t->lanes; r += FEW_ROWS_OF_SQUARES) {
        const real *x = s->x + r * s->x_row;
        real *to = c + r * s->c_row;
        switch (at_most(t->lanes - r, FEW_ROWS_OF_SQUARES)) {
            case 1: squares_of_w(1, x, s->x_row, rows, length, is_first, to, s->c_row); break;
            case 2: squares_of_w(2, x, s->x_row, rows, length, is_first, to, s->c_row); break;
            case 3: squares_of_w(3, x, s->x_row, rows, length, is_first, to, s->c_row); break;
            default: squares_of_w(4, x, s->x_row, rows, length, is_first, to, s->c_row);
        }
    }
}

/* One vector of lanes, of any rows and strides, by panels. */
static void panels_of_w(const sa_project_tile *t, const few_project_scratch *x,
                        const char *const *rows, int count, int64_t length, int is_first, real *c) {
    for (int64_t k = 0; k < length; k += PROJECT_PART) {
        const char *from[LANES];
        int part = at_most(length - k, PROJECT_PART);
        for (int i = 0; i < count; ++i) from[i] = rows[i] + k * t->p.w_k;
        gather(from, count, t->p.w_k, part, 1, 0, x->panel, LANES);
        product_in_parts(1, &(product_args){
                                .m = t->lanes,
                                .k = part,
                                .chunk = PROJECT_CHUNK,
                                .part = PROJECT_PART,
                                .a = (const char *)(x->x + k),
                                .a_row = x->x_row * (ptrdiff_t)sizeof(real),
                                .a_k = sizeof(real),
                                .b = (const char *)x->panel,
                                .b_k = sizeof(vec),
                                .c = c,
                                .c_row = x->c_row,
                                .kind = is_first && k == 0 ? BETA_ZERO : SUM_SCALED,
                                .sums = x->sums,
                            });
    }
}

static void few_by_rows_of_w(const sa_project_tile *t, const few_project_scratch *x,
                             int64_t k_begin, int64_t k_end, int64_t m_begin, int64_t m_end) {
    const int64_t length = k_end - k_begin;
    const int are_squares = t->p.w_k == (ptrdiff_t)sizeof(real) && length % LANES == 0;
    for (int64_t m = m_begin; m < m_end; m += LANES) {
        const char *rows[LANES];
        int count = at_most(m_end - m, LANES);
        for (int i = 0; i < count; ++i)
            rows[i] = t->p.w + (m + i) * t->p.w_row + k_begin * t->p.w_k;
        if (are_squares && count == LANES)
            squares_for_rows(t, x, rows, length, k_begin == 0, x->c + m);
        else
            panels_of_w(t, x, rows, count, length, k_begin == 0, x->c + m);
    }
}

/* ------------------------------------------------------------------ columns of W side by side */

/* sum[m] += x[k] * W[m, k] for FEW_COLUMNS_K columns from k on, or fewer, of `count` rows of W. */
SA_INLINE void add_columns(const int columns, const real *q, const char *w, ptrdiff_t w_k,
                           int64_t count, real *sum) {
    for (int64_t m = 0; m < count; m += LANES) {
        int width = at_most(count - m, LANES);
        vec acc = v_load(sum + m);
        const char *at = w + m * (ptrdiff_t)sizeof(real);
        SA_UNROLL
        for (int k = 0; k < columns; ++k, at += w_k) {
            vec wk = width == LANES ? v_load(at) : v_load_n(at, width);
            acc = v_fma(v_set(q[k]), wk, acc);
        }
        v_store(sum + m, acc);
    }
}

/* A chunk's sums become those of its part, or are added to them, and begin again. */
static void add_chunk(int is_first, real *chunk, int64_t count, real *part) {
    for (int64_t m = 0; m < count; m += LANES) {
        vec sum = v_load(chunk + m);
        v_store(part + m, is_first ? sum : v_add(v_load(part + m), sum));
        v_store(chunk + m, v_zero());
    }
}

/* The same of a part's sums and all. */
static void add_part(int is_first, const real *part, int64_t count, real *c) {
    for (int64_t m = 0; m < count; m += LANES) {
        vec sum = v_load(part + m);
        v_store(c + m, is_first ? sum : sum_scaled(sum, v_set(1), v_load(c + m)));
    }
}

static void few_by_columns_of_w(const sa_project_tile *t, const few_project_scratch *x,
                                int64_t k_begin, int64_t k_end, int64_t m_begin, int64_t m_end) {
    for (int64_t m = m_begin; m < m_end; m += FEW_COLUMNS) {
        int64_t count = at_most(m_end - m, FEW_COLUMNS), length = k_end - k_begin;
        const char *w = t->p.w + m * t->p.w_row + k_begin * t->p.w_k;
        memset(x->chunk, 0, (size_t)t->lanes * FEW_COLUMNS * sizeof(real));
        for (int64_t k = 0; k < length;) {
            int64_t end = k + PROJECT_CHUNK < length ? k + PROJECT_CHUNK : length;
            int is_first = k % PROJECT_PART == 0;
            for (; k + FEW_COLUMNS_K <= end; k += FEW_COLUMNS_K)
                for (int r = 0; r < t->lanes; ++r)
                    add_columns(FEW_COLUMNS_K, x->x + r * x->x_row + k, w + k * t->p.w_k, t->p.w_k,
                                count, x->chunk + r * FEW_COLUMNS);
            for (; k < end; ++k)
                for (int r = 0; r < t->lanes; ++r)
                    add_columns(1, x->x + r * x->x_row + k, w + k * t->p.w_k, t->p.w_k, count,
                                x->chunk + r * FEW_COLUMNS);
            int is_last = k % PROJECT_PART == 0 || k == length;
            for (int r = 0; r < t->lanes; ++r) {
                real *part = x->part + r * FEW_COLUMNS;
                add_chunk(is_first, x->chunk + r * FEW_COLUMNS, count, part);
                if (is_last)
                    add_part(k_begin + k <= PROJECT_PART, part, count, x->c + r * x->c_row + m);
            }
        }
    }
}

static void few_project_multiply(const sa_project_tile *t, void *memory, int64_t k_begin,
                                 int64_t k_end, int64_t m_begin, int64_t m_end) {
    few_project_scratch x = few_project_layout(t, memory);
    (has_columns_of_w(t) ? few_by_columns_of_w : few_by_rows_of_w)(t, &x, k_begin, k_end, m_begin,
                                                                   m_end);
    v_leave();
}

static void few_project_finish(const sa_project_tile *t, void *memory) {
    few_project_scratch x = few_project_layout(t, memory);
    for (int r = 0; r < t->lanes; ++r)
        for (int64_t m = 0; m < t->m; m += LANES) {
            int width = at_most(t->m - m, LANES);
            vec out = t->p.k ? v_load(x.c + r * x.c_row + m) : v_zero();
            if (t->p.bias)
                out =
                    v_add(out, load_strided(t->p.bias + m * t->p.bias_step, t->p.bias_step, width));
            store_strided(t->out[r] + m * t->p.out_col, t->p.out_col, width, out);
        }
    v_leave();
}
