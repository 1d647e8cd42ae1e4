/* Forward pass of a tile whose lanes are queries:
 *
 *     S[key][lane]  = sum over d of K[key, d] * Q[d][lane]      Q packed
 *     S             = cap(scale * S) - slope * distance + B     where there is a bias; bias.inc.h
 *     S             = -inf                                      where masked
 *     P, m, l       = online softmax down the keys              softmax.inc.h
 *     O[e][lane]    = O * 2^(u (m - m')) + sum over keys of V[key, e] * P[key][lane]
 *
 * K and V are read in place. Where rows see different ranges of a block's keys, each vector of lanes
 * keeps to its own range. Called by the loops through the table (kernels.h). */

typedef struct {
    int n;         /* vectors of lanes */
    ptrdiff_t row; /* lanes in a row of Q, S and O */
    real *q, *s, *sums, *rescale, *lo, *hi, *panel;
} tile_scratch;

/* Which keys of a block must be masked one by one: by the rows' ranges, by the elements of a mask. */
typedef struct {
    int64_t block;
    int begin, end; /* the keys that some row sees, counted from the block */
    sa_class ranges, elements;
} tile_keys;

typedef struct {
    real *o, *max, *sum;
} partial;

SA_INLINE int lane_vectors(const sa_tile *t) { return (t->rows + LANES - 1) / LANES; }

static size_t tile_scratch_size(const sa_tile *t) {
    size_t row = (size_t)lane_vectors(t) * LANES;
    size_t fixed = SUMS_ROOM + SA_BLOCK_N * LANES;
    return (((size_t)t->head_dim + SA_BLOCK_N + 3) * row + fixed) * sizeof(real);
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
    x.panel = x.hi + x.row;
    x.q = x.panel + SA_BLOCK_N * LANES;
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
               (real)t->scoring.q_factor, 0, x.q + i * LANES, x.row);
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
        x->lo[r] = (real)(seen ? sa_block_offset(t->key_lo[r], block) : 0);
        x->hi[r] = (real)(seen ? sa_block_offset(t->key_hi[r], block) : 0);
    }
}

/* Put `masked` where lane and key are out of range, for vector i over keys [begin, end). */
static void tile_mask_ranges(const tile_scratch *x, int i, int begin, int end, real masked) {
    vec lo = v_load(x->lo + i * LANES), hi = v_load(x->hi + i * LANES);
    real *s = x->s + begin * x->row + i * LANES;
    for (int j = begin; j < end; ++j, s += x->row) {
        vec key = v_set((real)j);
        v_store(s, v_select(v_both(v_le(lo, key), v_lt(key, hi)), v_load(s), v_set(masked)));
    }
}

/* Put `masked` where B is -inf; before that, add B if asked to. */
static void tile_mask_elements(const sa_tile *t, const tile_scratch *x, int i, int64_t block,
                               int begin, int end, int add, real masked) {
    elements_panel(t, i, block, begin, end, x->panel);
    real *s = x->s + begin * x->row + i * LANES;
    for (int j = begin; j < end; ++j, s += x->row) {
        vec b = v_load(x->panel + j * LANES), score = v_load(s);
        if (add) score = v_add(score, b);
        v_store(s, v_select(v_eq(b, v_set(-(real)INFINITY)), v_set(masked), score));
    }
}

/* Vector i of S over keys [begin, end), as the softmax sees it. */
static void tile_see(const sa_tile *t, const tile_scratch *x, const tile_keys *keys, int i,
                     int begin, int end) {
    if (t->scoring.biased) tile_bias(t, x->s + i * LANES, x->row, i, keys->block, begin, end);
    if (keys->elements == SA_RAGGED)
        tile_mask_elements(t, x, i, keys->block, begin, end, mask_adds(t), -(real)INFINITY);
    if (keys->ranges == SA_RAGGED) tile_mask_ranges(x, i, begin, end, -(real)INFINITY);
}

/* Give the weights of masked keys a set sign, and all others none. */
static void tile_mark_masked(const sa_tile *t, const tile_scratch *x, const tile_keys *keys, int i,
                             int begin, int end) {
    if (keys->elements == SA_RAGGED)
        tile_mask_elements(t, x, i, keys->block, begin, end, 0, (real)-0.0);
    if (keys->ranges == SA_RAGGED) tile_mask_ranges(x, i, begin, end, (real)-0.0);
}

/* The keys of the block that some lane of a vector sees, from a multiple of 4. */
static void tile_vector_range(const tile_scratch *x, int i, int *begin, int *end) {
    real lo = SA_BLOCK_N, hi = 0;
    for (int r = i * LANES; r < (i + 1) * LANES; ++r)
        if (x->lo[r] < x->hi[r]) {
            lo = x->lo[r] < lo ? x->lo[r] : lo;
            hi = x->hi[r] > hi ? x->hi[r] : hi;
        }
    *begin = (int)lo & ~3;
    *end = (int)hi;
}

/* The block's keys [begin, end) for vectors [first, first + n). */
static void tile_vectors(const sa_tile *t, const tile_scratch *x, const tile_keys *keys,
                         partial total, int first, int n, int begin, int end, int finite) {
    units u = units_of(&t->scoring);
    tile_scores(t, x, first, n, keys->block, begin, end);
    for (int i = first; i < first + n; ++i) {
        int at = i * LANES;
        tile_see(t, x, keys, i, begin, end);
        softmax_column(u, x->s + at, x->row, begin, end, total.max + at, total.sum + at,
                       x->rescale + at);
        if (!finite) tile_mark_masked(t, x, keys, i, begin, end);
    }
    tile_values(t, x, first, n, keys->block, begin, end, total.o, finite);
}

static void tile_block(const sa_tile *t, const tile_scratch *x, partial total, int64_t block) {
    tile_keys keys = {.block = block};
    keys.ranges = sa_block_class(t, block, &keys.begin, &keys.end);
    if (keys.ranges == SA_EMPTY) return;
    keys.elements = element_class(t, block, keys.begin, keys.end);
    if (keys.elements == SA_EMPTY) return;
    int finite = (keys.ranges == SA_FULL && keys.elements == SA_FULL) ||
                 values_finite(t, block + keys.begin, block + keys.end);
    if (keys.ranges == SA_FULL) {
        tile_vectors(t, x, &keys, total, 0, x->n, keys.begin, keys.end, finite);
        return;
    }
    tile_block_ranges(t, x, block);
    for (int i = 0; i < x->n; ++i) {
        int begin, end;
        tile_vector_range(x, i, &begin, &end);
        if (begin < end) tile_vectors(t, x, &keys, total, i, 1, begin, end, finite);
    }
}

static void tile_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                       void *part) {
    tile_scratch x = tile_layout(t, memory);
    partial total = tile_partial(t, part);
    partial_clear(total, x.row, t->head_dim_v);
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N)
        tile_block(t, &x, total, block);
}

static void tile_merge(const sa_tile *t, void *memory, void *total_memory,
                       const void *part_memory) {
    (void)memory;
    partial total = tile_partial(t, total_memory), part = tile_partial(t, (void *)part_memory);
    int row = lane_vectors(t) * LANES;
    units u = units_of(&t->scoring);
    for (int i = 0; i < row; i += LANES) {
        vec a, b;
        softmax_merge(u, total.max + i, total.sum + i, part.max + i, part.sum + i, &a, &b);
        real *o = total.o + i;
        const real *other = part.o + i;
        for (int64_t e = 0; e < t->head_dim_v; ++e, o += row, other += row)
            v_store(o, v_fma(v_load(o), a, v_mul(v_load(other), b)));
    }
}

/* The end of rows [first, first + LANES), whose maxima and sums these are. */
static softmax_end finish_rows(const sa_tile *t, int first, vec max, vec sum) {
    vec natural = v_set(to_real(t->scoring.natural));
    if (!t->has_sinks) return softmax_finish(natural, max, sum);
    real sink[LANES] = {0};
    for (int r = 0; r < LANES && first + r < t->rows; ++r) sink[r] = (real)t->sink[first + r];
    return softmax_finish_with_sink(natural, max, sum, v_load(sink));
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
        softmax_end end = finish_rows(t, i, v_load(total.max + i), v_load(total.sum + i));
        real *o = total.o + i;
        for (int64_t e = 0; e < t->head_dim_v; ++e, o += row)
            v_store(o, softmax_scaled(v_load(o), end));
        scatter(t->out + i, at_most(t->rows - i, LANES), t->out_col, t->head_dim_v, total.o + i,
                row);
        write_lse(t, i, end.lse);
    }
}
