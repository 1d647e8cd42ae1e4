/* Forward pass of a tile whose lanes are queries:
 *
 *     S[key][lane]  = sum over d of K[key, d] * Q[d][lane]      Q packed, times scale * log2(e)
 *     P, m, l       = online softmax down the keys              softmax.inc.h
 *     O[e][lane]    = O * 2^(m - m') + sum over keys of V[key, e] * P[key][lane]
 *
 * K and V are read in place. Rows that see different keys of a block are a ragged block: there each
 * vector of lanes keeps to its own range of keys, and single keys are masked within it.
 * Called by the loops through the table (kernels.h). */

typedef struct {
    int n;         /* vectors of lanes */
    ptrdiff_t row; /* lanes in a row of Q, S and O */
    real *q, *s, *sums, *rescale, *lo, *hi;
} tile_scratch;

typedef struct {
    real *o, *max, *sum;
} partial;

SA_INLINE int lane_vectors(const sa_tile *t) { return (t->rows + LANES - 1) / LANES; }

static size_t tile_scratch_size(const sa_tile *t) {
    size_t row = (size_t)lane_vectors(t) * LANES;
    return (((size_t)t->head_dim + SA_BLOCK_N + 3) * row + SUMS_ROOM) * sizeof(real);
}

static size_t tile_partial_size(const sa_tile *t) {
    size_t row = (size_t)lane_vectors(t) * LANES;
    return ((size_t)t->head_dim_v + 2) * row * sizeof(real);
}

static tile_scratch tile_layout(const sa_tile *t, void *memory) {
    tile_scratch x = {.n = lane_vectors(t), .row = lane_vectors(t) * LANES};
    x.s = memory;
    x.sums = x.s + SA_BLOCK_N * x.row;
    x.rescale = x.sums + SUMS_ROOM;
    x.lo = x.rescale + x.row;
    x.hi = x.lo + x.row;
    x.q = x.hi + x.row;
    return x;
}

static partial tile_partial(const sa_tile *t, void *memory) {
    ptrdiff_t row = lane_vectors(t) * LANES;
    partial p = {.max = memory};
    p.sum = p.max + row;
    p.o = p.sum + row;
    return p;
}

static void partial_clear(partial p, ptrdiff_t row, int64_t rows_of_o) {
    for (ptrdiff_t i = 0; i < row; i += LANES) {
        v_store(p.max + i, v_set(-(real)INFINITY));
        v_store(p.sum + i, v_zero());
    }
    for (int64_t i = 0; i < rows_of_o * row; i += LANES) v_store(p.o + i, v_zero());
}

static void tile_begin(const sa_tile *t, void *memory) {
    tile_scratch x = tile_layout(t, memory);
    for (int i = 0; i < x.n; ++i)
        gather(t->q + i * LANES, at_most(t->rows - i * LANES, LANES), t->q_col, t->head_dim,
               (real)t->q_factor, 0, x.q + i * LANES, x.row);
}

/* S for vectors [first, first + n) over keys [begin, end) of the block at `block`. */
static void tile_scores(const sa_tile *t, const tile_scratch *x, int first, int n, int64_t block,
                        int begin, int end) {
    product(n, &(product_args){
                   .m = end - begin,
                   .k = t->head_dim,
                   .chunk = sa_chunk_e(t->head_dim),
                   .a = t->k + (block + begin) * t->k_row,
                   .a_row = t->k_row,
                   .a_k = t->k_col,
                   .b = (const char *)(x->q + first * LANES),
                   .b_k = x->row * (ptrdiff_t)sizeof(real),
                   .c = x->s + begin * x->row + first * LANES,
                   .c_row = x->row,
                   .kind = BETA_ZERO,
               });
}

/* O for the same vectors and keys. Where weights are `masked`, V is looked at first: a NaN or inf
 * of it must not reach the queries that do not see it. */
static void tile_values(const sa_tile *t, const tile_scratch *x, int first, int n, int64_t block,
                        int begin, int end, real *o, int finite) {
    product_args p = {
        .m = t->head_dim_v,
        .k = end - begin,
        .chunk = SA_CHUNK_N,
        .phase = begin % SA_CHUNK_N,
        .a = t->v + (block + begin) * t->v_row,
        .a_row = t->v_col,
        .a_k = t->v_row,
        .b = (const char *)(x->s + begin * x->row + first * LANES),
        .b_k = x->row * (ptrdiff_t)sizeof(real),
        .c = o + first * LANES,
        .c_row = x->row,
        .kind = BETA_OF_LANE,
        .beta = x->rescale + first * LANES,
        .sums = x->sums,
    };
    finite ? product(n, &p) : product_of_visible(n, &p, MARKED_B);
}

/* Each lane's range of keys, counted from the block and clipped to it: exact in a real. */
static void tile_block_ranges(const sa_tile *t, const tile_scratch *x, int64_t block) {
    for (int r = 0; r < x->row; ++r) {
        int seen = r < t->rows;
        x->lo[r] = (real)(seen ? block_offset(t->key_lo[r], block) : 0);
        x->hi[r] = (real)(seen ? block_offset(t->key_hi[r], block) : 0);
    }
}

/* Put `masked` where lane and key are out of range, for one vector over keys [begin, end). */
static void tile_mask(const tile_scratch *x, int first, int begin, int end, real masked) {
    vec lo = v_load(x->lo + first * LANES), hi = v_load(x->hi + first * LANES);
    real *s = x->s + begin * x->row + first * LANES;
    for (int j = begin; j < end; ++j, s += x->row) {
        vec key = v_set((real)j);
        v_store(s, v_select(v_both(v_le(lo, key), v_lt(key, hi)), v_load(s), v_set(masked)));
    }
}

/* The keys of the block that some lane of a vector sees, from a multiple of 4. */
static void tile_vector_range(const tile_scratch *x, int first, int *begin, int *end) {
    real lo = SA_BLOCK_N, hi = 0;
    for (int r = first * LANES; r < (first + 1) * LANES; ++r)
        if (x->lo[r] < x->hi[r]) {
            lo = x->lo[r] < lo ? x->lo[r] : lo;
            hi = x->hi[r] > hi ? x->hi[r] : hi;
        }
    *begin = (int)lo & ~3;
    *end = (int)hi;
}

/* A block that every row sees from `begin` to `end`. */
static void tile_full_block(const sa_tile *t, const tile_scratch *x, partial total, int64_t block,
                            int begin, int end) {
    tile_scores(t, x, 0, x->n, block, begin, end);
    for (int i = 0; i < x->row; i += LANES)
        softmax_column(x->s + i, x->row, begin, end, total.max + i, total.sum + i, x->rescale + i);
    tile_values(t, x, 0, x->n, block, begin, end, total.o, 1);
}

/* A block of which some row does not see some key. */
static void tile_ragged_block(const sa_tile *t, const tile_scratch *x, partial total, int64_t block,
                              int begin, int end) {
    tile_block_ranges(t, x, block);
    int finite = all_finite(t->v + (block + begin) * t->v_row, t->v_row, t->v_col, end - begin,
                            t->head_dim_v);
    for (int i = 0; i < x->n; ++i) {
        int first, last, at = i * LANES;
        tile_vector_range(x, i, &first, &last);
        if (first >= last) continue;
        tile_scores(t, x, i, 1, block, first, last);
        tile_mask(x, i, first, last, -(real)INFINITY);
        softmax_column(x->s + at, x->row, first, last, total.max + at, total.sum + at,
                       x->rescale + at);
        if (!finite) tile_mask(x, i, first, last, (real)-0.0);
        tile_values(t, x, i, 1, block, first, last, total.o, finite);
    }
}

static void tile_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                       void *part) {
    tile_scratch x = tile_layout(t, memory);
    partial total = tile_partial(t, part);
    partial_clear(total, x.row, t->head_dim_v);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        int begin, end;
        switch (sa_block_class(t, block, &begin, &end)) {
            case SA_EMPTY: break;
            case SA_FULL: tile_full_block(t, &x, total, block, begin, end); break;
            case SA_RAGGED: tile_ragged_block(t, &x, total, block, begin, end); break;
        }
    }
}

static void tile_merge(const sa_tile *t, void *memory, void *total_memory,
                       const void *part_memory) {
    (void)memory;
    partial total = tile_partial(t, total_memory), part = tile_partial(t, (void *)part_memory);
    int row = lane_vectors(t) * LANES;
    for (int i = 0; i < row; i += LANES) {
        vec a, b;
        softmax_merge(total.max + i, total.sum + i, part.max + i, part.sum + i, &a, &b);
        real *o = total.o + i;
        const real *other = part.o + i;
        for (int64_t e = 0; e < t->head_dim_v; ++e, o += row, other += row)
            v_store(o, v_fma(v_load(o), a, v_mul(v_load(other), b)));
    }
}

static void write_lse(const sa_tile *t, int first, vec lse) {
    real lanes[LANES];
    v_store(lanes, lse);
    for (int r = 0; r < LANES && first + r < t->rows; ++r)
        if (t->lse[first + r]) write_real(t->lse[first + r], lanes[r]);
}

static void tile_finish(const sa_tile *t, void *memory, void *total_memory) {
    (void)memory;
    partial total = tile_partial(t, total_memory);
    int row = lane_vectors(t) * LANES;
    for (int i = 0; i < row; i += LANES) {
        vec sum = v_load(total.sum + i), divisor = softmax_divisor(sum);
        real *o = total.o + i;
        for (int64_t e = 0; e < t->head_dim_v; ++e, o += row)
            v_store(o, softmax_scaled(v_load(o), divisor));
        scatter(t->out + i, at_most(t->rows - i, LANES), t->out_col, t->head_dim_v, total.o + i,
                row);
        write_lse(t, i, softmax_lse(v_load(total.max + i), sum));
    }
}
