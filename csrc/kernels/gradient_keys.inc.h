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
    int b_is_finite;            /* whether 0 times any of them is 0 */
    int64_t length;
    real factor;
    char *to; /* key 0 */
    ptrdiff_t to_row, to_col;
} key_gradient;

/* Some of a block's keys, and the rows of a tile that see any of them. */
typedef struct {
    int begin, end, row_begin, row_end;
} key_range;

/* What is no whole vector of a row, or lies scattered, goes through a panel. */
static void grad_keys(const key_gradient *d, const backward_scratch *x, int64_t block,
                      const key_range *range) {
    const ptrdiff_t size = sizeof(real);
    const int num_keys = range->end - range->begin;
    ptrdiff_t offset = range->begin * x->row + range->row_begin;
    const char *marks = (const char *)(x->marks + offset);
    char *to = d->to + (block + range->begin) * d->to_row;
    ukernel_args p = {
        .m = num_keys,
        .k = range->row_end - range->row_begin,
        .chunk = SA_CHUNK_M,
        .phase = range->row_begin % SA_CHUNK_M,
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
        n = in_place ? at_most((whole - e) / LANES, NR_MAX) : 1;
        p.b = (const char *)(d->rows + range->row_begin * d->width + e);
        p.c = in_place ? (real *)(to + e * size) : x->key_rows;
        p.c_row = in_place ? d->to_row / size : LANES;
        p.kind = in_place ? SUM_SCALED : BETA_ZERO;
        d->b_is_finite ? ukernel((int)n, &p) : ukernel_masked((int)n, &p, MARKED_A, marks);
        if (!in_place)
            add_rows(x->key_rows, LANES, num_keys, at_most(d->length - e, LANES), d->factor,
                     to + e * d->to_col, d->to_row, d->to_col);
    }
}

/* The rows in whole vectors, each of which sees its part of the keys. */
static key_range rows_of_keys(const block_keys *parts, int num_rows, int begin, int end) {
    int n = lane_vectors(num_rows), first = n, last = 0;
    for (int i = 0; i < n; ++i)
        if (parts[i].begin < end && begin < parts[i].end) {
            if (first > i) first = i;
            last = i + 1;
        }
    return (key_range){begin, end, first * LANES, at_most(num_rows, last * LANES)};
}

/* As many keys from `begin` on as the same rows see, but at most KEY_ROWS. */
static key_range next_key_range(const block_keys *keys, const block_keys *parts, int num_rows,
                                int begin) {
    int last = end_of_step(begin, KEY_ROWS, keys->end);
    key_range range = {.end = begin};
    for (int end = begin; end < last;) {
        int from = end;
        end = end_of_step(from, KEY_STEP, last);
        key_range more = rows_of_keys(parts, num_rows, from, end);
        if (from > begin && (more.row_begin != range.row_begin || more.row_end != range.row_end))
            break;
        more.begin = begin;
        range = more;
    }
    return range;
}

/* parts: which of the keys each vector of rows sees. */
static void grad_key_and_value(const sa_backward_tile *g, const backward_scratch *x,
                               const block_keys *keys, const block_keys *parts) {
    const sa_tile *t = &g->fwd;
    const sa_scoring *how = &t->scoring;
    key_gradient value = {.weights = x->tile.s,
                          .rows = x->dout_rows,
                          .width = x->out_row,
                          .b_is_finite = !is_partial(keys) || g->dout_finite,
                          .length = t->head_dim_v,
                          .factor = (real)how->dropout_scale,
                          .to = g->dv,
                          .to_row = g->dv_row,
                          .to_col = g->dv_col};
    key_gradient key = {.weights = x->ds,
                        .rows = x->q_rows,
                        .width = x->q_row,
                        .b_is_finite = !is_partial(keys) || g->q_finite,
                        .length = t->head_dim,
                        .factor = to_real(how->q_factor * how->scale),
                        .to = g->dk,
                        .to_row = g->dk_row,
                        .to_col = g->dk_col};
    key_range range;
    for (int begin = keys->begin; begin < keys->end; begin = range.end) {
        range = next_key_range(keys, parts, t->rows, begin);
        if (range.row_begin >= range.row_end) continue;
        if (wants(g, SA_GRADIENT_VALUE)) grad_keys(&value, x, keys->block, &range);
        if (wants(g, SA_GRADIENT_KEY)) grad_keys(&key, x, keys->block, &range);
    }
}
