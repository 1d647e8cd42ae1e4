/* Masks element by element: the mask, the bias and the segments of a row, as one bias on the scores
 * of its keys,
 *
 *     B[r, j] = mask[r, j] + bias[r, j], a mask of bools being 0 or -inf
 *     B[r, j] = -inf   where the mask or the bias is, and where segments differ
 *
 * so that -inf masks a key, and 0 leaves its score unchanged. visibility.h has the other kind of
 * mask, ranges of keys. Called by both ways of the forward pass; where lanes are queries, B is
 * transposed. */
#ifndef SA_KERNELS_MASK_INC_H
#define SA_KERNELS_MASK_INC_H

#include <math.h>
#include <string.h>

#include "../visibility.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "pack.inc.h"

/* The keys of one block that a tile computes with; all but `block` are counted from the block. */
typedef struct {
    int64_t block;
    int begin, end;           /* the keys that some row's range holds */
    int full_begin, full_end; /* those among them that every row's range holds */
    sa_class range_class;     /* of the block by the rows' ranges */
    sa_class mask_class;      /* of the block by mask and segments */
    int v_is_finite;          /* whether 0 * V is 0; also set where no key is masked */
    const sa_key_rows *k, *v; /* where they are read from: the tile's, or as read_block says */
} block_keys;

SA_INLINE int has_keys(const block_keys *keys) { return keys->begin < keys->end; }

/* Whether some key is masked for some row, or B is added to a score. */
SA_INLINE int is_partial(const block_keys *keys) {
    return keys->range_class != SA_FULL || keys->mask_class != SA_FULL;
}

SA_INLINE int has_mask_bias(const sa_tile *t) {
    return t->mask_kind != SA_MASK_NONE || t->bias_kind != SA_MASK_NONE || t->key_segments;
}

/* Whether B comes from contiguous bools alone. */
SA_INLINE int has_bools_alone(const sa_tile *t) {
    return t->mask_kind == SA_MASK_BOOL && t->mask_col == 1 && t->bias_kind == SA_MASK_NONE &&
           !t->key_segments;
}

/* Whether B is contiguous elements. */
SA_INLINE int has_elements_alone(const sa_tile *t) {
    return t->mask_kind == SA_MASK_ELEM && t->mask_col == ELEM_SIZE &&
           t->bias_kind == SA_MASK_NONE && !t->key_segments;
}

SA_INLINE int mask_is_float(const sa_tile *t) {
    return t->mask_kind == SA_MASK_ELEM || t->mask_kind == SA_MASK_F32;
}

/* Whether B is added to the scores, and does not only mask keys. */
SA_INLINE int mask_adds(const sa_tile *t) {
    return mask_is_float(t) || t->bias_kind != SA_MASK_NONE;
}

/* A score, or `masked` where the key is out of the range [lo, hi). */
SA_INLINE vec in_range(vec s, vec lo, vec key, vec hi, vec masked) {
    return v_select(v_both(v_le(lo, key), v_lt(key, hi)), s, masked);
}

/* A score, plus B if asked to, or `masked` where B is -inf. */
SA_INLINE vec with_mask_bias(vec s, vec b, int add, vec masked) {
    return v_select(v_eq(b, minus_inf()), masked, add ? v_add(s, b) : s);
}

/* B of LANES contiguous bools. */
SA_INLINE vec bools(const char *p) { return v_select(v_nonzero_bytes(p), v_zero(), minus_inf()); }

/* B of the n <= LANES bools at p, p + col, ... */
static vec strided_bools(const char *p, ptrdiff_t col, int n) {
    char bytes[LANES] = {0};
    for (int i = 0; i < n; ++i) bytes[i] = p[i * col];
    return bools(bytes);
}

/* B of the n <= LANES floats at p, p + col, ... */
static vec strided_floats(const char *p, ptrdiff_t col, int n) {
    if (SA_REAL_BITS == 32) return v_load_strided(p, col, n);
    real x[LANES] = {0};
    for (int i = 0; i < n; ++i) {
        float y;
        memcpy(&y, p + i * col, sizeof y);
        x[i] = (real)y;
    }
    return v_load(x);
}

/* B, or -inf where the key's segment is not that of row r. */
static vec mask_other_segments(const sa_tile *t, int r, int64_t key, int n, vec b) {
    real x[LANES];
    v_store(x, b);
    const char *id = t->key_segments + key * t->segment_row;
    for (int i = 0; i < n; ++i, id += t->segment_row)
        if (sa_segment_id(id, t->segment_size) != t->segment[r]) x[i] = -(real)INFINITY;
    return v_load(x);
}

/* The n <= LANES numbers of a mask or a bias at p, p + col, ... */
SA_INLINE vec mask_numbers(sa_mask_kind kind, const char *p, ptrdiff_t col, int n) {
    if (kind == SA_MASK_BOOL) return col == 1 && n == LANES ? bools(p) : strided_bools(p, col, n);
    return kind == SA_MASK_F32 ? strided_floats(p, col, n) : s_load_strided(p, col, n);
}

/* B of a mask's numbers and a bias's. Those of bools are left out of the sum: 0 + -0 is not -0. */
SA_INLINE vec masked_bias(const sa_tile *t, vec mask, vec bias) {
    vec sum = mask_is_float(t) ? v_add(mask, bias) : bias;
    sum = v_select(v_eq(bias, minus_inf()), bias, sum);
    return v_select(v_eq(mask, minus_inf()), mask, sum);
}

static SA_APART vec unusual_mask_bias_of_row(const sa_tile *t, int r, int64_t key, int n) {
    vec b = v_zero();
    if (t->mask_kind != SA_MASK_NONE)
        b = mask_numbers(t->mask_kind, t->mask[r] + key * t->mask_col, t->mask_col, n);
    if (t->bias_kind != SA_MASK_NONE)
        b = masked_bias(t, b,
                        mask_numbers(t->bias_kind, t->bias[r] + key * t->bias_col, t->bias_col, n));
    return t->key_segments ? mask_other_segments(t, r, key, n, b) : b;
}

/* B of row r for keys [key, key + n); the other lanes are unspecified. The usual mask is one of
 * contiguous bools or elements. */
SA_INLINE vec mask_bias_of_row(const sa_tile *t, int r, int64_t key, int n) {
    if (n == LANES && has_bools_alone(t)) return bools(t->mask[r] + key);
    if (n == LANES && has_elements_alone(t)) return s_load(t->mask[r] + key * ELEM_SIZE);
    return unusual_mask_bias_of_row(t, r, key, n);
}

/* Whether row r has the same B as the row before it. */
SA_INLINE int same_mask_bias(const sa_tile *t, int r) {
    return r > 0 && (t->mask_kind == SA_MASK_NONE || t->mask[r] == t->mask[r - 1]) &&
           (t->bias_kind == SA_MASK_NONE || t->bias[r] == t->bias[r - 1]) &&
           (!t->key_segments || t->segment[r] == t->segment[r - 1]);
}

/* Whether any of a row's keys is visible, and whether B is 0 for all of them. */
typedef struct {
    int any_visible, all_zero;
} scan;

/* Eight bools at a time. `zero` gets the highest bit of each byte that is 0; the borrow may set
 * that of the next byte too, which does not change whether `zero` is 0. */
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
    if (has_bools_alone(t)) return scan_bools(t->mask[r] + key, n);
    scan s = {.all_zero = 1};
    for (int j = 0; j < n; j += LANES) {
        int width = at_most(n - j, LANES);
        unsigned all = (1u << width) - 1;
        vec b = mask_bias_of_row(t, r, key + j, width);
        s.any_visible |= (v_lane_bits(v_eq(b, minus_inf())) & all) != all;
        s.all_zero &= (v_lane_bits(v_eq(b, v_zero())) & all) == all;
        if (s.any_visible && !s.all_zero) break;
    }
    return s;
}

/* Each row's mask is a stream of its own: prefetch the bools of the next block. */
static void prefetch_next_bools(const sa_tile *t, int64_t block) {
    if (!has_bools_alone(t)) return;
    for (int r = 0; r < t->rows; ++r) {
        uintptr_t next = (uintptr_t)t->mask[r] + (uintptr_t)(block + SA_BLOCK_N);
        for (int at = 0; at < SA_BLOCK_N; at += CACHE_LINE) SA_PREFETCH(next + (uintptr_t)at);
    }
}

/* The class of keys [begin, end) of the block by mask and segments: full where B is 0 for all. Most
 * partial blocks are known after one row. */
static sa_class mask_bias_class(const sa_tile *t, int64_t block, int begin, int end) {
    scan all = {.all_zero = 1};
    if (!has_mask_bias(t)) return SA_FULL;
    for (int r = 0; r < t->rows; ++r) {
        if (same_mask_bias(t, r)) continue;
        scan row = scan_row(t, r, block + begin, end - begin);
        all.any_visible |= row.any_visible;
        all.all_zero &= row.all_zero;
        if (all.any_visible && !all.all_zero) return SA_PARTIAL;
    }
    return all.all_zero ? SA_FULL : SA_EMPTY;
}

/* Find the keys of the block that are visible to some row; 0 if there are none. */
static int find_block_keys(const sa_tile *t, int64_t block, block_keys *keys) {
    keys->block = block;
    keys->v_is_finite = 1;
    keys->k = &t->k;
    keys->v = &t->v;
    keys->range_class = sa_block_class(t, block, &keys->begin, &keys->end);
    keys->full_begin = keys->full_end = keys->begin;
    if (keys->range_class == SA_EMPTY) return 0;
    prefetch_next_bools(t, block);
    keys->mask_class = mask_bias_class(t, block, keys->begin, keys->end);
    return keys->mask_class != SA_EMPTY;
}

/* V is scanned only where a key may be masked: a NaN or inf there must not reach rows for which
 * that key is masked. */
static void check_v_finite(const sa_tile *t, block_keys *keys) {
    int64_t begin = keys->block + keys->begin, end = keys->block + keys->end;
    keys->v_is_finite = !is_partial(keys) || values_finite(t, keys->v, begin, end);
}

/* B of the rows in vector i, transposed: panel[key * LANES + lane]. Lanes past the last row are
 * unspecified. */
static void mask_bias_panel(const sa_tile *t, const block_keys *keys, int i, real *panel) {
    int first = i * LANES, rows = at_most(t->rows - first, LANES), alike = 1;
    for (int r = 1; r < rows; ++r) alike &= same_mask_bias(t, first + r);
    for (int j = keys->begin; j < keys->end; j += LANES) {
        int n = at_most(keys->end - j, LANES);
        int64_t key = keys->block + j;
        vec square[LANES];
        square[0] = mask_bias_of_row(t, first, key, n);
        if (alike) {
            real lanes[LANES];
            v_store(lanes, square[0]);
            for (int x = 0; x < n; ++x) v_store(panel + (j + x) * LANES, v_set(lanes[x]));
            continue;
        }
        for (int r = 1; r < LANES; ++r)
            square[r] = r < rows ? mask_bias_of_row(t, first + r, key, n) : v_zero();
        v_transpose(square);
        for (int x = 0; x < n; ++x) v_store(panel + (j + x) * LANES, square[x]);
    }
}

#endif
