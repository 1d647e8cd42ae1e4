/* Masks element by element: what the mask and the segments say about keys of one row, as a vector
 * of what to add to their scores, 0 where there is nothing to do and -inf where the key is masked:
 *
 *     B[r, j] = mask[r, j], or 0 or -inf for a mask of bools;   -inf where segments differ
 *
 * The other half of mask.h: what is a range of keys never gets here. Called by the tiles, with the
 * vector as it is where lanes are keys, and transposed where they are queries. */

SA_INLINE int has_elements(const sa_tile *t) {
    return t->mask_kind != SA_MASK_NONE || t->key_segments;
}

/* Whether a mask adds to the scores, and does not only let keys through or not. */
SA_INLINE int mask_adds(const sa_tile *t) {
    return t->mask_kind == SA_MASK_F32 || t->mask_kind == SA_MASK_F64;
}

/* The n <= LANES bools at p, p + col, ... */
static vec scattered_bools(const char *p, ptrdiff_t col, int n) {
    char bytes[LANES] = {0};
    for (int i = 0; i < n; ++i) bytes[i] = p[i * col];
    return v_select(v_nonzero_bytes(bytes), v_zero(), v_set(-(real)INFINITY));
}

/* A mask in float32 where the kernel's own type is double. */
static vec scattered_floats(const char *p, ptrdiff_t col, int n) {
    real x[LANES] = {0};
    for (int i = 0; i < n; ++i) {
        float y;
        memcpy(&y, p + i * col, sizeof y);
        x[i] = (real)y;
    }
    return v_load(x);
}

static vec hide_other_segments(const sa_tile *t, int r, int64_t key, int n, vec b) {
    real x[LANES];
    v_store(x, b);
    const char *id = t->key_segments + key * t->segment_row;
    for (int i = 0; i < n; ++i, id += t->segment_row)
        if (sa_segment_id(id, t->segment_size) != t->segment[r]) x[i] = -(real)INFINITY;
    return v_load(x);
}

/* B of row r for keys [key, key + n); the other lanes mean nothing. */
SA_INLINE vec elements_of_row(const sa_tile *t, int r, int64_t key, int n) {
    ptrdiff_t col = t->mask_col, at = key * col;
    vec b = v_zero();
    if (t->mask_kind == SA_MASK_BOOL)
        b = col == 1 && n == LANES
                ? v_select(v_nonzero_bytes(t->mask[r] + at), v_zero(), v_set(-(real)INFINITY))
                : scattered_bools(t->mask[r] + at, col, n);
    else if (t->mask_kind == SA_MASK_F32 && SA_REAL_BITS == 64)
        b = scattered_floats(t->mask[r] + at, col, n);
    else if (t->mask_kind != SA_MASK_NONE)
        b = load_strided(t->mask[r] + at, col, n);
    return t->key_segments ? hide_other_segments(t, r, key, n, b) : b;
}

/* Whether row r has the same B as the row before it. */
SA_INLINE int same_elements(const sa_tile *t, int r) {
    return r > 0 && (t->mask_kind == SA_MASK_NONE || t->mask[r] == t->mask[r - 1]) &&
           (!t->key_segments || t->segment[r] == t->segment[r - 1]);
}

/* Whether some of a row's keys [key, key + n) are let through, and whether all are as they are. */
typedef struct {
    int some_pass, all_idle;
} scan;

/* Eight bools at a time. A byte of `zero` has its highest bit set where one was 0; a byte beside that
 * one may have it too, which changes nothing. */
static scan scan_bools(const char *p, int n) {
    const uint64_t ones = 0x0101010101010101u;
    uint64_t some = 0, zero = 0;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t eight;
        memcpy(&eight, p, sizeof eight);
        some |= eight;
        zero |= (eight - ones) & ~eight & (ones << 7);
    }
    for (; n > 0; --n, ++p) some |= *p != 0, zero |= *p == 0;
    return (scan){some != 0, zero == 0};
}

static scan scan_row(const sa_tile *t, int r, int64_t key, int n) {
    if (t->mask_kind == SA_MASK_BOOL && t->mask_col == 1 && !t->key_segments)
        return scan_bools(t->mask[r] + key, n);
    scan s = {.all_idle = 1};
    for (int j = 0; j < n; j += LANES) {
        int width = at_most(n - j, LANES);
        unsigned all = (1u << width) - 1;
        vec b = elements_of_row(t, r, key + j, width);
        s.some_pass |= (v_lane_bits(v_eq(b, v_set(-(real)INFINITY))) & all) != all;
        s.all_idle &= (v_lane_bits(v_eq(b, v_zero())) & all) == all;
        if (s.some_pass && !s.all_idle) break;
    }
    return s;
}

/* The masks of rows lie far from each other: fetch what the next block needs while this one is
 * computed. */
static void fetch_next_bools(const sa_tile *t, int64_t block) {
    if (t->mask_kind != SA_MASK_BOOL || t->mask_col != 1) return;
    for (int r = 0; r < t->rows; ++r) {
        uintptr_t next = (uintptr_t)t->mask[r] + (uintptr_t)(block + SA_BLOCK_N);
        for (int at = 0; at < SA_BLOCK_N; at += CACHE_LINE) SA_PREFETCH(next + (uintptr_t)at);
    }
}

/* The class of keys [begin, end) of the block: full where there is nothing to add or mask. Most
 * blocks are known for ragged after a row. */
static sa_class element_class(const sa_tile *t, int64_t block, int begin, int end) {
    scan all = {.all_idle = 1};
    if (!has_elements(t)) return SA_FULL;
    fetch_next_bools(t, block);
    for (int r = 0; r < t->rows; ++r) {
        if (same_elements(t, r)) continue;
        scan row = scan_row(t, r, block + begin, end - begin);
        all.some_pass |= row.some_pass;
        all.all_idle &= row.all_idle;
        if (all.some_pass && !all.all_idle) return SA_RAGGED;
    }
    return all.all_idle ? SA_FULL : SA_EMPTY;
}

/* B of the rows whose lanes are vector i, for keys [begin, end) of the block, transposed:
 * panel[j * LANES + lane]. Lanes past the last row mean nothing. */
static void elements_panel(const sa_tile *t, int i, int64_t block, int begin, int end,
                           real *panel) {
    int first = i * LANES, rows = at_most(t->rows - first, LANES), alike = 1;
    for (int r = 1; r < rows; ++r) alike &= same_elements(t, first + r);
    for (int j = begin; j < end; j += LANES) {
        int n = at_most(end - j, LANES);
        vec square[LANES];
        square[0] = elements_of_row(t, first, block + j, n);
        if (alike) {
            real lanes[LANES];
            v_store(lanes, square[0]);
            for (int x = 0; x < n; ++x) v_store(panel + (j + x) * LANES, v_set(lanes[x]));
            continue;
        }
        for (int r = 1; r < LANES; ++r)
            square[r] = r < rows ? elements_of_row(t, first + r, block + j, n) : v_zero();
        v_transpose(square);
        for (int x = 0; x < n; ++x) v_store(panel + (j + x) * LANES, square[x]);
    }
}
