/* Backward pass of a tile whose lanes are queries: with S as in the forward pass (tile.inc.h), the lse
 * that it gave, dO the gradient of its output, and D = dO out summed over e,
 *
 *     P[key][lane]   = e^(n S - lse)                               0 where masked
 *     dP[key][lane]  = sum over e of V[key, e] * dO[e][lane]
 *     dS[key][lane]  = P * (dP - D)                                the mask's gradient
 *     dQ[d][lane]   += sum over keys of K[key, d] * dS[key][lane]
 *     dV[key][e]    += sum over lanes of P[key][lane] * dO[lane][e]
 *     dK[key][d]    += sum over lanes of dS[key][lane] * Q[lane][d]
 *
 * dQ and dK are multiplied by the scale as they are added to what is there; with a soft cap, dS is by
 * the cap's derivative; with dropout, P of dV and dP keep what was kept. (Dao et al.,
 * "FlashAttention", 2022, algorithm 4.) Five products, each of them product.inc.h's: K, V and the panels
 * of P and dS are read in place, element by element; Q and dO are packed both ways.
 *
 * A row whose lse does not tell its weights (too large a number, or no more than the sink) gets its
 * maximum and sum from a second softmax. Called by backward.c through the table (kernels.h). */

enum {
    KEYS_AT_ONCE = 64, /* of a block: so much of P and dS stays in the nearest cache */
    KEY_ROWS = 24,     /* of keys' gradients, computed at a time */
    DELTA_CHUNK = 16,  /* elements of D summed at a time */
    MASK_KEYS = 16,    /* of the mask's gradient: all may go to one number */
    MAX_PARTS = SA_GRADIENT_TILE_M / LANES,
};

/* An lse beyond this has lost too much of the sum that it is the log of. */
static const real MAX_LSE = 512;

typedef struct {
    tile_scratch tile; /* Q, S and then P */
    ptrdiff_t row;
    ptrdiff_t q_row, out_row; /* elements in a row of the packed Q and dO: whole vectors */
    real *ds;                 /* dP, and then dS */
    real *bend;               /* the cap's derivative */
    real *marks;              /* a set sign where masked, in ragged blocks */
    real *grad_out, *grad_q;  /* panels like Q's */
    real *q_rows, *grad_out_rows;
    real *key_rows; /* sums of a few keys' gradients */
    real *lse, *delta;
    real *from_lse; /* 0: P comes from row_max and row_sum instead */
    partial sums;
} backward_scratch;

SA_INLINE ptrdiff_t whole_vectors(int64_t n) {
    return (ptrdiff_t)((n + LANES - 1) / LANES * LANES);
}

static size_t backward_scratch_size(int rows, int64_t head_dim, int64_t head_dim_v) {
    size_t row = (size_t)whole_vectors(rows);
    size_t q = (size_t)whole_vectors(head_dim), v = (size_t)whole_vectors(head_dim_v);
    size_t panels = 3 * SA_BLOCK_N + (size_t)head_dim_v + (size_t)head_dim + 5;
    size_t elements = panels * row + (size_t)rows * (q + v) + KEY_ROWS * LANES;
    return tile_scratch_size(rows, head_dim) + elements * sizeof(real);
}

static backward_scratch backward_layout(const sa_gradient_tile *g, void *memory) {
    const sa_tile *t = &g->seen;
    backward_scratch x = {.tile = tile_layout(t, memory),
                          .row = whole_vectors(t->rows),
                          .q_row = whole_vectors(t->head_dim),
                          .out_row = whole_vectors(t->head_dim_v)};
    x.ds = (real *)((char *)memory + tile_scratch_size(t->rows, t->head_dim));
    x.bend = x.ds + SA_BLOCK_N * x.row;
    x.marks = x.bend + SA_BLOCK_N * x.row;
    x.grad_out = x.marks + SA_BLOCK_N * x.row;
    x.grad_q = x.grad_out + t->head_dim_v * x.row;
    x.lse = x.grad_q + t->head_dim * x.row;
    x.delta = x.lse + x.row;
    x.from_lse = x.delta + x.row;
    x.sums.row_max = x.from_lse + x.row;
    x.sums.row_sum = x.sums.row_max + x.row;
    x.q_rows = x.sums.row_sum + x.row;
    x.grad_out_rows = x.q_rows + t->rows * x.q_row;
    x.key_rows = x.grad_out_rows + t->rows * x.out_row;
    return x;
}

SA_INLINE int wants(const sa_gradient_tile *g, int gradients) {
    return (g->wanted & gradients) != 0;
}

/* ------------------------------------------------------------------ a tile's rows */

/* Rows as they lie, each filled up to whole vectors with 0. */
static void pack_rows(const char *const *rows, int count, ptrdiff_t col, int64_t length, real *to) {
    for (int r = 0; r < count; ++r)
        for (int64_t x = 0; x < length; x += LANES, to += LANES)
            v_store(to, load_strided(rows[r] + x * col, col, at_most(length - x, LANES)));
}

/* D of the rows whose lanes are vector i. */
static vec delta_of_rows(const sa_gradient_tile *g, const backward_scratch *x, int i) {
    const sa_tile *t = &g->seen;
    const char *rows[LANES];
    int count = at_most(t->rows - i * LANES, LANES);
    vec total = v_zero();
    for (int64_t e = 0; e < t->head_dim_v; e += DELTA_CHUNK) {
        int n = at_most(t->head_dim_v - e, DELTA_CHUNK);
        for (int r = 0; r < count; ++r) rows[r] = t->out[i * LANES + r] + e * t->out_col;
        gather(rows, count, t->out_col, n, 1, 0, x->tile.panel, LANES);
        vec sum = v_zero();
        const real *grad = x->grad_out + e * x->row + i * LANES;
        for (int j = 0; j < n; ++j)
            sum = v_fma(v_load(grad + j * x->row), v_load(x->tile.panel + j * LANES), sum);
        total = v_add(total, sum);
    }
    return total;
}

static void forget_keys(sa_tile *t, int r) { t->key_lo[r] = t->key_hi[r] = 0; }

/* The softmax's maximum and sum of every row, over all its keys; cleared before. */
static void recount(const sa_tile *t, const backward_scratch *x) {
    const tile_scratch *s = &x->tile;
    units u = units_of(&t->scoring);
    for (int64_t block = t->begin / SA_BLOCK_N * SA_BLOCK_N; block < t->end; block += SA_BLOCK_N) {
        block_keys keys;
        if (!find_block_keys(t, block, &keys)) continue;
        tile_block_ranges(t, s, block);
        for (int i = 0; i < s->n; ++i) {
            int at = i * LANES;
            tile_scores(t, s, &keys, i, 1);
            tile_see(t, s, &keys, i);
            softmax_column(u, s->s + at, s->row, keys.begin, keys.end, x->sums.row_max + at,
                           x->sums.row_sum + at, s->rescale + at);
        }
    }
}

/* Whether the row's weights can be had from its lse. It is the sink, too, where no key is seen. */
static int lse_tells(const sa_tile *t, int r, real lse) {
    return lse <= MAX_LSE && lse >= -MAX_LSE && !(t->has_sinks && lse == (real)t->sink[r]);
}

/* Each row's lse and what else its weights may need; no keys for those that see none. */
static void find_lse(sa_tile *t, const backward_scratch *x) {
    int all_tell = 1;
    partial_clear(x->sums, x->row, 0);
    for (int r = 0; r < x->row; ++r) {
        x->lse[r] = r < t->rows ? read_real(t->lse[r]) : (real)INFINITY; /* no weight */
        x->from_lse[r] = 1;
        if (r >= t->rows) continue;
        if (x->lse[r] == -(real)INFINITY) {
            forget_keys(t, r);
        } else if (!lse_tells(t, r, x->lse[r])) {
            x->from_lse[r] = 0;
            all_tell = 0;
        }
    }
    sa_summarize_ranges(t);
    if (all_tell) return;
    recount(t, x);
    for (int r = 0; r < t->rows; ++r)
        if (!x->from_lse[r] && x->sums.row_sum[r] == 0) forget_keys(t, r);
    sa_summarize_ranges(t);
}

static void backward_begin(sa_gradient_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    sa_tile *t = &g->seen;
    tile_begin(t, memory);
    for (int i = 0; i < x.tile.n; ++i)
        gather(g->grad_out + i * LANES, at_most(t->rows - i * LANES, LANES), g->grad_out_col,
               t->head_dim_v, 1, 0, x.grad_out + i * LANES, x.row);
    for (int i = 0; i < x.tile.n; ++i) v_store(x.delta + i * LANES, delta_of_rows(g, &x, i));
    find_lse(t, &x);
    if (wants(g, SA_GRADIENT_KEY | SA_GRADIENT_VALUE)) {
        pack_rows(t->q, t->rows, t->q_col, t->head_dim, x.q_rows);
        pack_rows(g->grad_out, t->rows, g->grad_out_col, t->head_dim_v, x.grad_out_rows);
        ptrdiff_t col = sizeof(real);
        g->q_finite = all_finite((const char *)x.q_rows, x.q_row * col, col, t->rows, t->head_dim);
        g->grad_out_finite =
            all_finite((const char *)x.grad_out_rows, x.out_row * col, col, t->rows, t->head_dim_v);
    }
    if (wants(g, SA_GRADIENT_QUERY))
        for (int64_t i = 0; i < t->head_dim * x.row; i += LANES) v_store(x.grad_q + i, v_zero());
}

/* ------------------------------------------------------------------ a block's P and dS */

/* dP for vectors [first, first + n). */
static void grad_weights(const sa_gradient_tile *g, const backward_scratch *x,
                         const block_keys *keys, int first, int n) {
    const sa_tile *t = &g->seen;
    product(n, &(product_args){
                   .m = keys->end - keys->begin,
                   .k = t->head_dim_v,
                   .chunk = SA_GRADIENT_CHUNK,
                   .a = t->v + (keys->block + keys->begin) * t->v_row,
                   .a_row = t->v_row,
                   .a_k = t->v_col,
                   .b = (const char *)(x->grad_out + first * LANES),
                   .b_k = x->row * (ptrdiff_t)sizeof(real),
                   .c = x->ds + keys->begin * x->row + first * LANES,
                   .c_row = x->row,
                   .kind = BETA_ZERO,
               });
}

/* A set sign where vector i does not see a key; after tile_see, which leaves B in the panel. */
static void mark_masked(const backward_scratch *x, const block_keys *keys, int i) {
    vec lo = v_load(x->tile.lo + i * LANES), hi = v_load(x->tile.hi + i * LANES);
    vec masked = v_set((real)-0.0);
    real *mark = x->marks + keys->begin * x->row + i * LANES;
    for (int j = keys->begin; j < keys->end; ++j, mark += x->row) {
        vec m = v_zero();
        if (keys->elements == SA_RAGGED)
            m = with_element(m, v_load(x->tile.panel + j * LANES), 0, masked);
        v_store(mark, in_range(m, lo, v_set((real)j), hi, masked));
    }
}

/* Of what the next block's products read and add to (K, V, dK, dV), vector i's share, to be fetched while
 * its P is computed: for each key, some cache lines of one of the four. */
typedef struct {
    uintptr_t at; /* the next key's row */
    uintptr_t row;
    ptrdiff_t begin, end, step; /* bytes of a row */
} next_rows;

static next_rows share_of_next(const sa_gradient_tile *g, const backward_scratch *x,
                               const block_keys *keys, int i) {
    enum { OPERANDS = 4 };
    const sa_tile *t = &g->seen;
    const char *base[OPERANDS] = {t->k, t->v, g->grad_k, g->grad_v};
    ptrdiff_t row[OPERANDS] = {t->k_row, t->v_row, g->grad_k_row, g->grad_v_row};
    ptrdiff_t length[OPERANDS] = {x->q_row, x->out_row, x->q_row, x->out_row};
    int which = i % OPERANDS, shares = (x->tile.n + OPERANDS - 1 - which) / OPERANDS;
    int64_t first = keys->block + SA_BLOCK_N + keys->begin;
    next_rows next = {.row = (uintptr_t)row[which],
                      .begin = i / OPERANDS * CACHE_LINE,
                      .end = length[which] * (ptrdiff_t)sizeof(real),
                      .step = shares * CACHE_LINE};
    next.at = (uintptr_t)base[which] + (uintptr_t)first * next.row;
    if (which >= 2 && !wants(g, SA_GRADIENT_KEY | SA_GRADIENT_VALUE)) next.end = 0;
    return next;
}

SA_INLINE void fetch_next(next_rows *next) {
    for (ptrdiff_t i = next->begin; i < next->end; i += next->step)
        SA_PREFETCH(next->at + (uintptr_t)i);
    next->at += next->row;
}

/* S and dP -> P and dS, for vector i. `plain`, a constant, is where nothing but these is needed. */
SA_INLINE void weights_column(const int plain, const sa_gradient_tile *g, const backward_scratch *x,
                              const block_keys *keys, int is_ragged, int i) {
    const sa_tile *t = &g->seen;
    const sa_scoring *how = &t->scoring;
    int at = i * LANES, bends = how->softcap > 0 && !wants(g, SA_GRADIENT_MASK);
    vec n = v_set(to_real(how->to_natural)), keep_factor = v_set((real)how->keep_factor);
    vec lse = v_load(x->lse + at), delta = v_load(x->delta + at), max = v_zero();
    vmask from_lse = v_lt(v_zero(), v_load(x->from_lse + at));
    int all_tell = plain || v_lane_bits(from_lse) == (1u << LANES) - 1;
    units u = units_of(how);
    softmax_end end = {0};
    uvec low = u_set(0), high = low, threshold = u_set(how->drop_below);
    if (!all_tell) {
        max = v_load(x->sums.row_max + at);
        end = end_of_rows(t, at, max, v_load(x->sums.row_sum + at));
        max = finite_max(max);
    }
    if (!plain && how->has_dropout) {
        low = u_load(t->drop_low + at);
        high = u_load(t->drop_high + at);
    }
    next_rows next = share_of_next(g, x, keys, i);
    ptrdiff_t offset = keys->begin * x->row + at;
    real *s = x->tile.s + offset, *ds = x->ds + offset;
    for (int j = keys->begin; j < keys->end; ++j, s += x->row, ds += x->row) {
        fetch_next(&next);
        vec score = v_load(s), grad = v_load(ds), masked = v_zero();
        vec p = v_exp(v_fms(score, n, lse));
        if (!all_tell) p = v_select(from_lse, p, softmax_scaled(weight(v_sub(score, max), u), end));
        if (!plain && is_ragged) {
            masked = v_load(x->marks + (s - x->tile.s));
            p = v_select(v_negative(masked), v_zero(), p);
        }
        vec left = p;
        if (!plain && how->has_dropout) {
            vmask keep = kept(low, high, u_set((uint32_t)(keys->block + j)), threshold);
            left = v_mul(p, v_select(keep, v_set(1), v_zero())); /* 0 NaN is NaN */
            grad = v_mul(grad, v_select(keep, keep_factor, v_zero()));
        }
        grad = v_mul(p, v_sub(grad, delta));
        if (!plain && bends) grad = v_mul(grad, v_load(x->bend + (s - x->tile.s)));
        if (!plain && is_ragged) grad = v_select(v_negative(masked), v_zero(), grad);
        v_store(s, left);
        v_store(ds, grad);
    }
}

static void weights_of_vector(const sa_gradient_tile *g, const backward_scratch *x,
                              const block_keys *keys, int is_ragged, int i) {
    const sa_tile *t = &g->seen;
    int bends = t->scoring.softcap > 0 && !wants(g, SA_GRADIENT_MASK);
    tile_see_and_bend(t, &x->tile, keys, bends ? x->bend : NULL, i);
    if (is_ragged) mark_masked(x, keys, i);
    vec from_lse = v_load(x->from_lse + i * LANES);
    int all_tell = v_lane_bits(v_lt(v_zero(), from_lse)) == (1u << LANES) - 1;
    if (is_ragged || bends || t->scoring.has_dropout || !all_tell)
        weights_column(0, g, x, keys, is_ragged, i);
    else
        weights_column(1, g, x, keys, 0, i);
}

/* P and dS are 0, and marked as masked, for keys [begin, end) and vectors [first, first + n). */
static void hide_part(const backward_scratch *x, int begin, int end, int first, int n) {
    for (int j = begin; j < end; ++j)
        for (int i = first; i < first + n; ++i) {
            ptrdiff_t at = j * x->row + i * LANES;
            v_store(x->tile.s + at, v_zero());
            v_store(x->ds + at, v_zero());
            v_store(x->marks + at, v_set((real)-0.0));
        }
}

/* ------------------------------------------------------------------ a block's gradients */

/* dQ for vectors [first, first + n). */
static void grad_query(const sa_gradient_tile *g, const backward_scratch *x, const block_keys *keys,
                       int first, int n) {
    const sa_tile *t = &g->seen;
    ptrdiff_t offset = keys->begin * x->row + first * LANES;
    product_args p = {
        .m = t->head_dim,
        .k = keys->end - keys->begin,
        .chunk = SA_GRADIENT_CHUNK,
        .phase = keys->begin % SA_GRADIENT_CHUNK,
        .a = t->k + (keys->block + keys->begin) * t->k_row,
        .a_row = t->k_col,
        .a_k = t->k_row,
        .b = (const char *)(x->ds + offset),
        .b_k = x->row * (ptrdiff_t)sizeof(real),
        .c = x->grad_q + first * LANES,
        .c_row = x->row,
        .kind = BETA_ONE,
    };
    keys->safe ? product(n, &p)
               : product_of_visible(n, &p, MARKED_B, (const char *)(x->marks + offset));
}

/* n elements of each row of a panel, times a factor, added to those of as many rows of an array. */
static void add_rows(const real *panel, ptrdiff_t panel_row, int count, int n, real factor,
                     char *to, ptrdiff_t row, ptrdiff_t col) {
    for (int j = 0; j < count; ++j, panel += panel_row, to += row)
        store_strided(to, col, n, v_fma(v_load(panel), v_set(factor), load_strided(to, col, n)));
}

/* One of dV and dK, for keys [begin, end), from rows [row_begin, row_end) of the tile: where it lies
 * in whole vectors it is summed in place. */
typedef struct {
    const real *weights, *rows; /* P and dO, or dS and Q */
    ptrdiff_t width;            /* of a row */
    int safe;
    int64_t length;
    real factor;
    char *to; /* key 0 */
    ptrdiff_t to_row, to_col;
} key_gradient;

static void grad_keys(const key_gradient *d, const backward_scratch *x, int64_t block, int begin,
                      int end, int row_begin, int row_end) {
    ptrdiff_t offset = begin * x->row + row_begin;
    const char *marks = (const char *)(x->marks + offset);
    char *to = d->to + (block + begin) * d->to_row;
    product_args p = {
        .m = end - begin,
        .k = row_end - row_begin,
        .chunk = SA_CHUNK_M,
        .phase = row_begin % SA_CHUNK_M,
        .a = (const char *)(d->weights + offset),
        .a_row = x->row * (ptrdiff_t)sizeof(real),
        .a_k = sizeof(real),
        .b_k = d->width * (ptrdiff_t)sizeof(real),
        .factor = d->factor,
        .sums = x->tile.sums,
    };
    int64_t whole = d->to_col == (ptrdiff_t)sizeof(real) && d->to_row % d->to_col == 0
                        ? d->length / LANES * LANES
                        : 0;
    for (int64_t e = 0, n; e < d->length; e += n * LANES) {
        int in_place = e < whole;
        n = in_place ? at_most((whole - e) / LANES, MAX_N) : 1;
        p.b = (const char *)(d->rows + row_begin * d->width + e);
        p.c = in_place ? (real *)(to + e * d->to_col) : x->key_rows;
        p.c_row = in_place ? d->to_row / (ptrdiff_t)sizeof(real) : LANES;
        p.kind = in_place ? SUM_SCALED : BETA_ZERO;
        d->safe ? product((int)n, &p) : product_of_visible((int)n, &p, MARKED_A, marks);
        if (!in_place)
            add_rows(x->key_rows, LANES, end - begin, at_most(d->length - e, LANES), d->factor,
                     to + e * d->to_col, d->to_row, d->to_col);
    }
}

/* The rows of the tile, in whole parts, that see any of keys [begin, end). */
static void rows_of_keys(const block_keys *parts, int num_parts, int rows, int begin, int end,
                         int *row_begin, int *row_end) {
    int first = num_parts, last = 0;
    for (int i = 0; i < num_parts; ++i)
        if (parts[i].begin < end && begin < parts[i].end) {
            if (first > i) first = i;
            last = i + 1;
        }
    *row_begin = first * MAX_N * LANES;
    *row_end = last * MAX_N * LANES < rows ? last * MAX_N * LANES : rows;
}

static void grad_key_and_value(const sa_gradient_tile *g, const backward_scratch *x,
                               const block_keys *keys, const block_keys *parts, int num_parts,
                               int is_ragged) {
    const sa_tile *t = &g->seen;
    const sa_scoring *how = &t->scoring;
    key_gradient value = {.weights = x->tile.s,
                          .rows = x->grad_out_rows,
                          .width = x->out_row,
                          .safe = !is_ragged || g->grad_out_finite,
                          .length = t->head_dim_v,
                          .factor = (real)how->keep_factor,
                          .to = g->grad_v,
                          .to_row = g->grad_v_row,
                          .to_col = g->grad_v_col};
    key_gradient key = {.weights = x->ds,
                        .rows = x->q_rows,
                        .width = x->q_row,
                        .safe = !is_ragged || g->q_finite,
                        .length = t->head_dim,
                        .factor = to_real(how->q_factor * how->scale),
                        .to = g->grad_k,
                        .to_row = g->grad_k_row,
                        .to_col = g->grad_k_col};
    for (int begin = keys->begin, end; begin < keys->end; begin = end) {
        int row_begin, row_end;
        end = begin - begin % KEY_ROWS + KEY_ROWS;
        if (end > keys->end) end = keys->end;
        rows_of_keys(parts, num_parts, t->rows, begin, end, &row_begin, &row_end);
        if (row_begin >= row_end) continue;
        if (wants(g, SA_GRADIENT_VALUE))
            grad_keys(&value, x, keys->block, begin, end, row_begin, row_end);
        if (wants(g, SA_GRADIENT_KEY))
            grad_keys(&key, x, keys->block, begin, end, row_begin, row_end);
    }
}

/* n elements added to those of an array, or all to one where the stride is 0. */
static void add_strided(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride != 0 || n == 1) {
        store_strided(p, stride, n, v_add(load_strided(p, stride, n), x));
        return;
    }
    real lanes[LANES], sum = read_real(p);
    v_store(lanes, x);
    for (int i = 0; i < n; ++i) sum += lanes[i];
    write_real(p, sum);
}

/* LANES rows of dS from row r of the tile on, transposed: n keys of each in a vector. */
static void transposed(const backward_scratch *x, int key, int n, int r, vec rows[LANES]) {
    for (int i = 0; i < LANES; ++i)
        rows[i] = i < n ? v_load(x->ds + (key + i) * x->row + r) : v_zero();
    v_transpose(rows);
}

/* The mask's gradient, MASK_KEYS keys at a time. Rows of the tile that share one of the mask are summed
 * first. */
static void grad_mask(const sa_gradient_tile *g, const backward_scratch *x,
                      const block_keys *keys) {
    enum { VECTORS = MASK_KEYS / LANES };
    const sa_tile *t = &g->seen;
    ptrdiff_t col = g->grad_mask_col;
    for (int at = keys->begin; at < keys->end; at += MASK_KEYS) {
        vec sum[VECTORS], rows[VECTORS][LANES];
        for (int i = 0; i < VECTORS; ++i) sum[i] = v_zero();
        for (int r = 0; r < t->rows; ++r) {
            int is_last = r + 1 == t->rows || g->grad_mask[r + 1] != g->grad_mask[r];
            for (int i = 0, key = at; i < VECTORS && key < keys->end; ++i, key += LANES) {
                int n = at_most(keys->end - key, LANES);
                if (r % LANES == 0) transposed(x, key, n, r, rows[i]);
                sum[i] = v_add(sum[i], rows[i][r % LANES]);
                if (!is_last) continue;
                add_strided(g->grad_mask[r] + (keys->block + key) * col, col, n, sum[i]);
                sum[i] = v_zero();
            }
        }
    }
}

/* Some of a block's keys. */
static void backward_keys(const sa_gradient_tile *g, const backward_scratch *x, block_keys keys,
                          int is_ragged) {
    const sa_tile *t = &g->seen;
    block_keys parts[MAX_PARTS];
    int num_parts = 0;
    for (int first = 0, n; first < x->tile.n; first += n) {
        n = at_most(x->tile.n - first, MAX_N);
        block_keys part = keys;
        if (is_ragged) part = keys_of_vectors(&x->tile, &keys, first, n);
        parts[num_parts++] = part;
        if (part.begin >= part.end) {
            hide_part(x, keys.begin, keys.end, first, n);
            continue;
        }
        hide_part(x, keys.begin, part.begin, first, n);
        hide_part(x, part.end, keys.end, first, n);
        tile_scores(t, &x->tile, &part, first, n);
        grad_weights(g, x, &part, first, n);
        for (int i = first; i < first + n; ++i) weights_of_vector(g, x, &part, is_ragged, i);
        if (wants(g, SA_GRADIENT_QUERY)) grad_query(g, x, &part, first, n);
    }
    if (wants(g, SA_GRADIENT_KEY | SA_GRADIENT_VALUE))
        grad_key_and_value(g, x, &keys, parts, num_parts, is_ragged);
    if (wants(g, SA_GRADIENT_MASK)) grad_mask(g, x, &keys);
}

static void backward_block(const sa_gradient_tile *g, const backward_scratch *x, int64_t block) {
    const sa_tile *t = &g->seen;
    block_keys keys;
    if (!find_block_keys(t, block, &keys)) return;
    int is_ragged = keys.ranges != SA_FULL || keys.elements != SA_FULL;
    if (is_ragged) {
        tile_block_ranges(t, &x->tile, block);
        keys.safe = !wants(g, SA_GRADIENT_QUERY) ||
                    known_finite(g->finite_k, t->k, t->k_row, t->k_col, block + keys.begin,
                                 block + keys.end, t->head_dim);
    }
    for (block_keys some = keys; some.begin < keys.end; some.begin = some.end) {
        some.end = some.begin - some.begin % KEYS_AT_ONCE + KEYS_AT_ONCE;
        if (some.end > keys.end) some.end = keys.end;
        backward_keys(g, x, some, is_ragged);
    }
}

static void backward_split(const sa_gradient_tile *g, void *memory, int64_t key_begin,
                           int64_t key_end) {
    backward_scratch x = backward_layout(g, memory);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N)
        backward_block(g, &x, block);
}

static void backward_finish(const sa_gradient_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    const sa_tile *t = &g->seen;
    vec scale = v_set(to_real(t->scoring.q_factor * t->scoring.scale));
    ptrdiff_t col = g->grad_q_col;
    for (int i = 0; i < x.row; i += LANES)
        for (int64_t d = 0; d < t->head_dim; d += LANES) {
            int n = at_most(t->head_dim - d, LANES);
            vec square[LANES];
            for (int j = 0; j < LANES; ++j)
                square[j] = j < n ? v_load(x.grad_q + (d + j) * x.row + i) : v_zero();
            v_transpose(square);
            for (int r = 0; r < LANES && i + r < t->rows; ++r) {
                char *to = g->grad_q[i + r] + d * col;
                store_strided(to, col, n, v_fma(square[r], scale, load_strided(to, col, n)));
            }
        }
}

/* What each row gives to its sink's gradient: -e^(sink - lse) D. */
static void backward_sinks(const sa_gradient_tile *g, void *memory) {
    backward_scratch x = backward_layout(g, memory);
    const sa_tile *t = &g->seen;
    for (int i = 0; i < x.row; i += LANES) {
        real share[LANES], delta[LANES];
        vec sink = sinks_of_rows(t, i), from_lse = v_load(x.from_lse + i);
        vec of_row = share_of_sink(v_set(to_real(t->scoring.to_natural)),
                                   v_load(x.sums.row_max + i), v_load(x.sums.row_sum + i), sink);
        of_row = v_select(v_lt(v_zero(), from_lse), v_exp(v_sub(sink, v_load(x.lse + i))), of_row);
        v_store(share, of_row);
        v_store(delta, v_load(x.delta + i));
        for (int r = 0; r < LANES && i + r < t->rows; ++r)
            if (t->key_lo[i + r] < t->key_hi[i + r])
                *g->grad_sink[i + r] -= (double)share[r] * (double)delta[r];
    }
}
