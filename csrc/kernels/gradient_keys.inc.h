/* The gradients of a block's keys and values, from the rows of a tile:
 *
 *     dV[key][e]  += 1 / (1 - p) * sum over rows of P[key][row] * dO[row][e]         p of dropout
 *     dK[key][d]  += scale * sum over rows of dS[key][row] * Q[row][d]
 *
 * The lanes are elements of a row of dV or dK, which is summed up where it lies. Called by
 * backward.inc.h. */

/* n elements of each row of a panel, times a factor, added to those of as many rows of an array. */
static void add_rows(const real *panel, ptrdiff_t panel_row, int count, int n, real factor,
                     char *to, ptrdiff_t row, ptrdiff_t col) {
    for (int j = 0; j < count; ++j, panel += panel_row, to += row)
        store_strided(to, col, n,
                      sum_scaled(v_load(panel), v_set(factor), load_strided(to, col, n)));
}

/* One of the two. */
typedef struct {
    const real *weights, *rows; /* P and dO, or dS and Q */
    ptrdiff_t width;            /* of one of the rows */
    int safe;                   /* whether 0 times any of them is 0 */
    int64_t length;
    real factor;
    char *to; /* key 0 */
    ptrdiff_t to_row, to_col;
} key_gradient;

/* For keys [begin, end), from rows [row_begin, row_end) of the tile. What is no whole vector of a
 * row, or lies scattered, goes through a panel. */
static void grad_keys(const key_gradient *d, const backward_scratch *x, int64_t block, int begin,
                      int end, int row_begin, int row_end) {
    const ptrdiff_t size = sizeof(real);
    ptrdiff_t offset = begin * x->row + row_begin;
    const char *marks = (const char *)(x->marks + offset);
    char *to = d->to + (block + begin) * d->to_row;
    product_args p = {
        .m = end - begin,
        .k = row_end - row_begin,
        .chunk = SA_CHUNK_M,
        .phase = row_begin % SA_CHUNK_M,
        .a = (const char *)(d->weights + offset),
        .a_row = x->row * size,
        .a_k = size,
        .b_k = d->width * size,
        .factor = d->factor,
        .sums = x->tile.sums,
    };
    int lies_in_rows = d->to_col == size && d->to_row % size == 0;
    int64_t whole = lies_in_rows ? d->length / LANES * LANES : 0;
    for (int64_t e = 0, n; e < d->length; e += n * LANES) {
        int in_place = e < whole;
        n = in_place ? at_most((whole - e) / LANES, MAX_N) : 1;
        p.b = (const char *)(d->rows + row_begin * d->width + e);
        p.c = in_place ? (real *)(to + e * size) : x->key_rows;
        p.c_row = in_place ? d->to_row / size : LANES;
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
    *row_begin = first * TILE_N * LANES;
    *row_end = last * TILE_N * LANES < rows ? last * TILE_N * LANES : rows;
}

/* parts: which of the keys TILE_N vectors of rows see, each. */
static void grad_key_and_value(const sa_gradient_tile *g, const backward_scratch *x,
                               const block_keys *keys, const block_keys *parts, int num_parts) {
    const sa_tile *t = &g->seen;
    const sa_scoring *how = &t->scoring;
    key_gradient value = {.weights = x->tile.s,
                          .rows = x->grad_out_rows,
                          .width = x->out_row,
                          .safe = !is_ragged(keys) || g->grad_out_finite,
                          .length = t->head_dim_v,
                          .factor = (real)how->keep_factor,
                          .to = g->grad_v,
                          .to_row = g->grad_v_row,
                          .to_col = g->grad_v_col};
    key_gradient key = {.weights = x->ds,
                        .rows = x->q_rows,
                        .width = x->q_row,
                        .safe = !is_ragged(keys) || g->q_finite,
                        .length = t->head_dim,
                        .factor = to_real(how->q_factor * how->scale),
                        .to = g->grad_k,
                        .to_row = g->grad_k_row,
                        .to_col = g->grad_k_col};
    for (int begin = keys->begin, end; begin < keys->end; begin = end) {
        int row_begin, row_end;
        end = end_of_step(begin, KEY_ROWS, keys->end);
        rows_of_keys(parts, num_parts, t->rows, begin, end, &row_begin, &row_end);
        if (row_begin >= row_end) continue;
        if (wants(g, SA_GRADIENT_VALUE))
            grad_keys(&value, x, keys->block, begin, end, row_begin, row_end);
        if (wants(g, SA_GRADIENT_KEY))
            grad_keys(&key, x, keys->block, begin, end, row_begin, row_end);
    }
}
