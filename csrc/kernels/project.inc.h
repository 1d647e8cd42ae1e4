#define STAGE(t) (t->lanes > PROJECT_LANES && t->p.w_row % 4096 == 0)
/* The product of a projection and those of its gradients, in the one micro-kernel:
 *
 *     C[m][lane] = sum over k of A[m, k] * B[k][lane]
 *
 *     rows       out[row, m]  = sum of W[m, k] * x[row, k] + bias[m]    a lane is a row of x
 *     few rows   the same of a row or a few, at memory's speed          a lane is a row of W
 *     columns    dW[m, col]   = sum of dy[k, m] * x[k, col]             a lane is a column of x
 *
 * The sum over k runs in chunks of PROJECT_CHUNK, each from 0, and these in parts of PROJECT_PART,
 * each from 0; the parts are added in order. So an element has the same bits in all three, and they
 * depend on nothing but its row of A and its column of B.
 *
 * B is packed, a block of k at a time, in panels of at most PROJECT_LANES lanes, and A passes by it
 * row by row. Where elements of a row do not lie side by side, a step of rows is transposed first:
 * the caches find no room for columns of a large array. Called by the loops through the table
 * (kernels.h). */

enum {
    PROJECT_CHUNK = 64,
    PROJECT_PART = 128,
    PROJECT_LANES = TILE_N * LANES, /* of a panel */
    PROJECT_STEP = 128, /* rows of A */
    PROJECT_PIECE = 128 / (int)sizeof(real), /* of a row, that is transposed at a time */
    /* Elements of a block of a single panel, which few m pass by: the longer it is, the longer are
     * the pieces in which A is read. */
    PROJECT_LONG = 64 * 1024 / (int)sizeof(real),
};

_Static_assert((int)PROJECT_PART == (int)SA_PROJECT_K, "the loops point at a block of rows");

typedef struct {
    real *b, *a, *sums, *c;
    int64_t row; /* elements of a row of A; B's panels have as many */
} project_scratch;

/* Whether elements of a row of A lie side by side. */
static int has_rows_of_a(const sa_project_tile *t) {
    return t->p.by != SA_BY_COLUMNS && t->p.w_k == (ptrdiff_t)sizeof(real) && !(STAGE(t));
}

/* The tile's k in a block of theirs, at most `most`. */
static int64_t block_of(const sa_project_tile *t, int64_t most) {
    return t->p.k < most ? t->p.k : most;
}

/* ------------------------------------------------------------------ lanes of x */

static int64_t project_block(const sa_project_tile *t) {
    int64_t lanes = whole_vectors(t->lanes), block = PROJECT_PART;
    if (lanes <= PROJECT_LANES && has_rows_of_a(t))
        block = PROJECT_LONG / lanes / PROJECT_PART * PROJECT_PART;
    return block_of(t, block);
}

static int is_long(const sa_project_tile *t) { return t->p.block > PROJECT_PART; }

/* Elements of A that are transposed at a time. */
static int64_t elements_of_a(const sa_project_tile *t) {
    return has_rows_of_a(t) ? 0 : PROJECT_STEP * whole_vectors(t->p.block);
}

static size_t project_scratch_size(const sa_project_tile *t) {
    int64_t lanes = whole_vectors(t->lanes);
    int64_t b = lanes * whole_vectors(t->p.block), c = lanes * t->m;
    return (size_t)(b + elements_of_a(t) + SUMS_ROOM + c) * sizeof(real);
}

static project_scratch project_layout(const sa_project_tile *t, void *memory) {
    project_scratch x = {.b = memory, .row = whole_vectors(t->p.block)};
    x.a = x.b + x.row * whole_vectors(t->lanes);
    x.sums = x.a + elements_of_a(t);
    x.c = x.sums + SUMS_ROOM;
    return x;
}

/* The panel of the lanes from `first` on: so many vectors, its rows of B and of C. */
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

/* Lines of rows, to be in the nearest cache before they are written or read. */
static void fetch_pieces(const char *const *rows, int count, ptrdiff_t offset, ptrdiff_t bytes) {
    for (int r = 0; r < count; ++r)
        for (ptrdiff_t at = 0; at < bytes; at += CACHE_LINE)
            SA_PREFETCH_NEAREST(rows[r] + offset + at);
}

/* B from rows of x, of which each is a lane, in pieces that fit the nearest cache beside x: a store
 * that misses it holds up those after it. */
static void project_load(const sa_project_tile *t, void *memory, int64_t k_begin, int64_t k_end) {
    project_scratch x = project_layout(t, memory);
    const ptrdiff_t col = t->p.x_col, piece_bytes = PROJECT_PIECE * (ptrdiff_t)sizeof(real);
    EACH_PANEL(first) {
        project_panel p = panel_at(t, &x, first);
        for (int j = 0; j < p.n; ++j) {
            int lane = first + j * LANES, count = at_most(t->lanes - lane, LANES);
            const char *rows[LANES], *panel = (const char *)p.b;
            for (int r = 0; r < count; ++r) rows[r] = t->x[lane + r] + k_begin * col;
            for (int64_t k = 0, end = k_end - k_begin; k < end; k += PROJECT_PIECE) {
                int length = at_most(end - k, PROJECT_PIECE);
                if (col == (ptrdiff_t)sizeof(real))
                    fetch_pieces(rows, count, piece_bytes, piece_bytes);
                panel += piece_bytes * p.row;
                if (j == 0) fetch_pieces(&panel, 1, 0, piece_bytes * p.row);
                gather(rows, count, col, length, 1, 0, p.b + k * p.row + j * LANES, p.row);
                for (int r = 0; r < count; ++r) rows[r] += length * col;
            }
        }
    }
    v_leave();
}

static int is_zero(const char *p, ptrdiff_t stride, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec x = load_strided(p + i * stride, stride, at_most(n - i, LANES));
        if (v_lane_bits(v_eq(x, v_zero())) != (1u << LANES) - 1) return 0;
    }
    return 1;
}

/* B from columns of x. A row whose gradient is 0 everywhere adds nothing to that of the weight,
 * whatever it holds: it may be padding. */
static void project_load_columns(const sa_project_tile *t, void *memory, int64_t k_begin,
                                 int64_t k_end) {
    project_scratch x = project_layout(t, memory);
    int64_t count = k_end - k_begin;
    int finite = 1;
    EACH_PANEL(first) {
        project_panel p = panel_at(t, &x, first);
        for (int64_t k = 0; k < count; ++k)
            for (int j = 0; j < p.n; ++j) {
                int lane = first + j * LANES;
                v_store(p.b + k * p.row + j * LANES,
                        load_strided(t->x[k] + lane * t->p.x_col, t->p.x_col,
                                     at_most(t->lanes - lane, LANES)));
            }
        finite &= all_finite((const char *)p.b, 0, sizeof(real), 1, count * p.row);
    }
    for (int64_t k = 0; !finite && k < count; ++k) {
        if (!is_zero(t->dy[k], t->p.dy_col, t->p.dy_cols)) continue;
        EACH_PANEL(first) {
            project_panel p = panel_at(t, &x, first);
            for (int j = 0; j < p.n; ++j) v_store(p.b + k * p.row + j * LANES, v_zero());
        }
    }
    v_leave();
}

/* Rows [m_begin, m_end) of A from columns that are `col` bytes apart in each of `count` arrays. */
static void transpose_a(const project_scratch *x, const char *const *columns, int64_t count,
                        ptrdiff_t col, int64_t m_begin, int64_t m_end) {
    for (int64_t m = m_begin; m < m_end; m += PROJECT_PIECE) {
        int length = at_most(m_end - m, PROJECT_PIECE);
        for (int64_t k = 0; k < count; k += LANES) {
            const char *from[LANES];
            int width = at_most(count - k, LANES);
            for (int i = 0; i < width; ++i) from[i] = columns[k + i] + m * col;
            if (col == (ptrdiff_t)sizeof(real))
                fetch_pieces(from, width, length * col, length * col);
            gather(from, width, col, length, 1, 0, x->a + (m - m_begin) * x->row + k, x->row);
        }
    }
}

static void copy_a(const project_scratch *x, const char *w, int64_t count, ptrdiff_t w_row, int64_t m_begin, int64_t m_end) {
    for (int64_t m = m_begin; m < m_end; ++m) {
        const char *from = w + m * w_row, *soon = from + 4 * w_row;
        real *to = x->a + (m - m_begin) * x->row;
        for (int64_t k = 0; k < count; k += LANES) {
            if (k % (64 / (int)sizeof(real)) == 0) SA_PREFETCH_NEAREST((uintptr_t)soon + k * sizeof(real));
            v_store(to + k, load_strided(from + k * (int)sizeof(real), sizeof(real), at_most(count - k, LANES)));
        }
    }
}

static product_args project_args(const project_scratch *x, const project_panel *p, int64_t m,
                                 int64_t k_begin) {
    return (product_args){
        .chunk = PROJECT_CHUNK,
        .part = PROJECT_PART,
        .b_k = p->row * (ptrdiff_t)sizeof(real),
        .c = p->c + m * p->row,
        .c_row = p->row,
        .kind = k_begin == 0 ? BETA_ZERO : SUM_SCALED,
        .sums = x->sums,
    };
}

/* Rows [m_begin, m_end) of C, for all lanes, from the block of k that was loaded; `a` is the first
 * of A's. */
static void multiply_rows(const sa_project_tile *t, const project_scratch *x, const char *a,
                          ptrdiff_t a_row, int64_t k_begin, int64_t k_end, int64_t m_begin,
                          int64_t m_end) {
    EACH_PANEL(first) {
        project_panel p = panel_at(t, x, first);
        product_args args = project_args(x, &p, m_begin, k_begin);
        args.m = m_end - m_begin;
        args.k = k_end - k_begin;
        args.a = a;
        args.a_row = a_row;
        args.a_k = sizeof(real);
        args.b = (const char *)p.b;
        args.fetches_a = 1;
        product_in_parts(p.n, &args);
    }
}

/* The same of a single panel and a long block: strip by strip along all of it, so that A, which
 * comes from memory, is read in long pieces. The next strip is fetched, a line with each k. */
static void multiply_long_rows(const sa_project_tile *t, const project_scratch *x, const char *a,
                               ptrdiff_t a_row, int64_t k_begin, int64_t k_end, int64_t m_begin,
                               int64_t m_end) {
    project_panel p = panel_at(t, x, 0);
    const int strip = STRIP_M(p.n);
    for (int64_t m = m_begin; m < m_end; m += strip, a += strip * a_row) {
        product_args args = project_args(x, &p, m, k_begin);
        ahead soon;
        ahead_begin(&soon);
        fetch_rows(&soon, a + strip * a_row, a_row, strip,
                   (k_end - k_begin) * (ptrdiff_t)sizeof(real));
        args.m = at_most(m_end - m, strip);
        args.k = k_end - k_begin;
        args.a = a;
        args.a_row = a_row;
        args.a_k = sizeof(real);
        args.b = (const char *)p.b;
        args.ahead = &soon;
        product_in_parts(p.n, &args);
    }
}

static void project_multiply(const sa_project_tile *t, void *memory, int64_t k_begin, int64_t k_end,
                             int64_t m_begin, int64_t m_end) {
    project_scratch x = project_layout(t, memory);
    const char *w = t->p.w + k_begin * t->p.w_k;
    if (has_rows_of_a(t)) {
        (is_long(t) ? multiply_long_rows : multiply_rows)(
            t, &x, w + m_begin * t->p.w_row, t->p.w_row, k_begin, k_end, m_begin, m_end);
    } else {
        const char *columns[PROJECT_PART];
        for (int64_t k = 0; k < k_end - k_begin; ++k) columns[k] = w + k * t->p.w_k;
        if (t->p.w_k == sizeof(real)) copy_a(&x, w, k_end - k_begin, t->p.w_row, m_begin, m_end);
        else transpose_a(&x, columns, k_end - k_begin, t->p.w_row, m_begin, m_end);
        multiply_rows(t, &x, (const char *)x.a, x.row * (ptrdiff_t)sizeof(real), k_begin,
                      k_end, m_begin, m_end);
    }
    v_leave();
}

static void project_multiply_columns(const sa_project_tile *t, void *memory, int64_t k_begin,
                                     int64_t k_end, int64_t m_begin, int64_t m_end) {
    project_scratch x = project_layout(t, memory);
    const char *columns[PROJECT_PART];
    for (int64_t k = 0; k < k_end - k_begin; ++k)
        columns[k] = t->dy[k] + t->dy_first * t->p.dy_col;
    transpose_a(&x, columns, k_end - k_begin, t->p.dy_col, m_begin, m_end);
    multiply_rows(t, &x, (const char *)x.a, x.row * (ptrdiff_t)sizeof(real), k_begin,
                  k_end, m_begin, m_end);
    v_leave();
}

static void project_finish(const sa_project_tile *t, void *memory) {
    project_scratch x = project_layout(t, memory);
    const ptrdiff_t piece_bytes = PROJECT_PIECE * (ptrdiff_t)sizeof(real);
    EACH_PANEL(first) {
        project_panel p = panel_at(t, &x, first);
        for (int64_t m = 0; t->p.k == 0 && m < t->m * p.row; m += LANES) v_store(p.c + m, v_zero());
        for (int64_t m = 0; t->p.bias && m < t->m; ++m)
            for (int j = 0; j < p.n; ++j) {
                real *c = p.c + m * p.row + j * LANES;
                v_store(c, v_add(v_load(c), v_broadcast(t->p.bias + m * t->p.bias_step)));
            }
        for (int j = 0; j < p.n; ++j) {
            int lane = first + j * LANES, count = at_most(t->lanes - lane, LANES);
            char *rows[LANES];
            for (int r = 0; r < count; ++r) rows[r] = t->out[lane + r];
            for (int64_t m = 0; m < t->m; m += PROJECT_PIECE) {
                int length = at_most(t->m - m, PROJECT_PIECE);
                if (t->p.out_col == (ptrdiff_t)sizeof(real))
                    fetch_pieces((const char *const *)rows, count, piece_bytes, piece_bytes);
                scatter(rows, count, t->p.out_col, length, p.c + m * p.row + j * LANES, p.row);
                for (int r = 0; r < count; ++r) rows[r] += length * t->p.out_col;
            }
        }
    }
    v_leave();
}

static void project_finish_columns(const sa_project_tile *t, void *memory) {
    project_scratch x = project_layout(t, memory);
    EACH_PANEL(first) {
        project_panel p = panel_at(t, &x, first);
        for (int64_t m = 0; m < t->m; ++m)
            for (int j = 0; j < p.n; ++j) {
                int lane = first + j * LANES;
                vec c = t->p.k ? v_load(p.c + m * p.row + j * LANES) : v_zero();
                store_strided(t->p.grad + m * t->p.grad_row + lane * t->p.grad_col, t->p.grad_col,
                              at_most(t->lanes - lane, LANES), c);
            }
    }
    v_leave();
}

#undef EACH_PANEL
