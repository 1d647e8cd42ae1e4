/* The steps on their own, on a tile whose lanes are queries (tile.inc.h):
 *
 *     scores    out[r, key] = S[key][r], -inf where masked
 *     weights   out[r, key] = 2^(u (S[key][r] - m)) / l, with the m and l of all keys
 *     sum       out[r, e]   = sum over keys of weights[r, key] * V[key, e], block by block
 *
 * Called by the loops through the table (kernels.h). */

/* The block's scores for all lanes, -inf where masked. */
static void scores_block(const sa_tile *t, const tile_scratch *x, int64_t block, int end) {
    tile_keys keys = {.block = block};
    keys.ranges = sa_block_class(t, block, &keys.begin, &keys.end);
    if (keys.ranges == SA_EMPTY) keys.begin = keys.end = 0;
    keys.elements = element_class(t, block, keys.begin, keys.end);
    if (keys.begin < keys.end) tile_scores(t, x, 0, x->n, block, keys.begin, keys.end);
    if (keys.elements == SA_EMPTY) keys.elements = SA_RAGGED;
    int all_seen = keys.ranges == SA_FULL && keys.end - keys.begin == end;
    keys.ranges = SA_FULL;
    tile_block_ranges(t, x, block);
    for (int i = 0; i < x->n; ++i) {
        tile_see(t, x, &keys, i, keys.begin, keys.end);
        if (!all_seen) tile_mask_ranges(x, i, 0, end, -(real)INFINITY);
    }
}

static void scatter_block(const sa_tile *t, const tile_scratch *x, int64_t block, int end) {
    for (int i = 0; i < x->row; i += LANES) {
        char *rows[LANES];
        int count = at_most(t->rows - i, LANES);
        for (int r = 0; r < count; ++r) rows[r] = t->out[i + r] + block * t->out_col;
        scatter(rows, count, t->out_col, end, x->s + i, x->row);
    }
}

static void scores_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end) {
    tile_scratch x = tile_layout(t, memory);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        scores_block(t, &x, block, end);
        scatter_block(t, &x, block, end);
    }
}

static void weights_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                          const void *total_memory) {
    tile_scratch x = tile_layout(t, memory);
    partial total = tile_partial(t, (void *)total_memory);
    units u = units_of(&t->scoring);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        scores_block(t, &x, block, end);
        for (int i = 0; i < x.row; i += LANES) {
            vec max = v_load(total.max + i), safe = finite_max(max);
            softmax_end whole = finish_rows(t, i, max, v_load(total.sum + i));
            real *s = x.s + i;
            for (int j = 0; j < end; ++j, s += x.row)
                v_store(s, softmax_scaled(weight(v_sub(v_load(s), safe), u), whole));
        }
        scatter_block(t, &x, block, end);
    }
}

static void sum_begin(const sa_tile *t, void *total_memory) {
    partial_clear(tile_partial(t, total_memory), lane_vectors(t) * LANES, t->head_dim_v);
}

static void sum_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                      void *total_memory) {
    tile_scratch x = tile_layout(t, memory);
    partial total = tile_partial(t, total_memory);
    for (int i = 0; i < x.row; i += LANES) v_store(x.rescale + i, v_set(1));
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int end = at_most(key_end - block, SA_BLOCK_N);
        for (int i = 0; i < x.row; i += LANES) {
            const char *rows[LANES];
            int count = at_most(t->rows - i, LANES);
            for (int r = 0; r < count; ++r) rows[r] = t->q[i + r] + block * t->q_col;
            gather(rows, count, t->q_col, end, 1, 0, x.s + i, x.row);
        }
        tile_values(t, &x, 0, x.n, block, 0, end, total.o, 1);
    }
}

static void sum_finish(const sa_tile *t, void *total_memory) {
    partial total = tile_partial(t, total_memory);
    int row = lane_vectors(t) * LANES;
    for (int i = 0; i < row; i += LANES)
        scatter(t->out + i, at_most(t->rows - i, LANES), t->out_col, t->head_dim_v, total.o + i,
                row);
}
