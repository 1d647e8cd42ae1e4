/* Forward pass of a tile of few rows (decoding), bound by memory. Lanes are keys, then elements of
 * O, where those of prefill.inc.h are queries; the operations on a row and their order are the
 * same, and so are its bits:
 *
 *     S[r][key]  = sum over d of Q[r, d] * K[d][key]        lanes are keys: K is transposed,
 *                                                           LANES keys at a time
 *     S          = cap(scale * S) - slope * distance + B, -inf where masked
 *     P, m, l    = online softmax along the keys
 *     O[r][e]    = O * 2^(u (m - m')) + sum over keys of P[r, key] * V[key][e]    lanes are e
 *
 * Called by the loops through the table (kernels.h). */
#ifndef SA_KERNELS_DECODE_INC_H
#define SA_KERNELS_DECODE_INC_H

#include <assert.h>
#include <math.h>
#include <string.h>

#include "../visibility.h"
#include "simd.inc.h"
#include "pack.inc.h"
#include "keys.inc.h"
#include "ukernel.inc.h"
#include "softmax.inc.h"
#include "split_state.inc.h"
#include "mask.inc.h"
#include "dropout.inc.h"
#include "bias.inc.h"

enum {
    DECODE_ROWS = LANES / 2, /* with more rows, prefill.inc.h is faster */
    DECODE_PANEL_K = 128,    /* rows of a panel of K: the longest part of a sum over head_dim */
    CHUNK_UNIT = SQUARE_K < 8 ? SQUARE_K : 8, /* chunks of head_dim end at multiples of it */
    DECODE_S_ROW = SA_BLOCK_N + LANES, /* elements: the last LANES keys may reach past the block */
};

typedef struct {
    real *q, *s;
    real *sums; /* the micro-kernel's */
    real *k_panel, *v_panel;
    real *rescale, *shift; /* of each row, 2^(u (m - m')) and the m' that is subtracted */
} decode_scratch;

SA_INLINE int64_t decode_o_row(int64_t head_dim_v) {
    return (head_dim_v + LANES - 1) / LANES * LANES;
}

static size_t decode_scratch_size(int rows, int64_t head_dim, int64_t head_dim_v) {
    (void)head_dim_v;
    size_t fixed = SUMS_ROOM + DECODE_ROWS * DECODE_S_ROW + DECODE_PANEL_K * LANES +
                   SA_BLOCK_N * LANES + 2 * LANES;
    return (fixed + (size_t)rows * (size_t)head_dim) * sizeof(real);
}

static size_t decode_state_size(int rows, int64_t head_dim_v) {
    return (2 * LANES + (size_t)rows * (size_t)decode_o_row(head_dim_v)) * sizeof(real);
}

static decode_scratch decode_layout(void *memory) {
    decode_scratch x = {.s = memory};
    x.sums = x.s + DECODE_ROWS * DECODE_S_ROW;
    x.k_panel = x.sums + SUMS_ROOM;
    x.v_panel = x.k_panel + DECODE_PANEL_K * LANES;
    x.rescale = x.v_panel + SA_BLOCK_N * LANES;
    x.shift = x.rescale + LANES;
    x.q = x.shift + LANES;
    return x;
}

static split_state decode_state(void *memory) {
    real *row_max = memory, *row_sum = row_max + LANES, *o = row_sum + LANES;
    return (split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

static const_split_state decode_const_state(const void *memory) {
    const real *row_max = memory, *row_sum = row_max + LANES, *o = row_sum + LANES;
    return (const_split_state){.o = o, .row_max = row_max, .row_sum = row_sum};
}

static void decode_begin(const sa_tile *t, void *memory) {
    decode_scratch x = decode_layout(memory);
    vec factor = v_set((real)t->scoring.q_factor);
    for (int r = 0; r < t->rows; ++r)
        for (int64_t d = 0; d < t->head_dim; d += LANES) {
            int width = at_most(t->head_dim - d, LANES);
            vec q = s_load_strided(t->q[r] + d * t->q_col, t->q_col, width);
            v_store_n(x.q + r * t->head_dim + d, v_mul(q, factor), width);
        }
    v_zeroupper();
}

/* Add the sums of the part of head_dim that begins at `first` to the scores. */
SA_INLINE void decode_add_part(const int M, const vec *part, int64_t first, real *s) {
    SA_UNROLL
    for (int r = 0; r < M; ++r) {
        real *sum = s + r * DECODE_S_ROW;
        v_store(sum, first == 0 ? part[r] : sum_scaled(part[r], v_set(1), v_load(sum)));
    }
}

/* Of a power of two. A division here would take as long as a square. */
SA_INLINE int is_multiple(int64_t x, int64_t power) { return (x & (power - 1)) == 0; }

/* End a chunk, of k [begin, end), of the sums over head_dim: its sums begin the part's or are added
 * to them; a part that ends is added to the scores. */
SA_INLINE void decode_end_chunk(const int M, int64_t begin, int64_t end, int64_t head_dim, vec *acc,
                                vec *part, real *s) {
    const int64_t length = sa_part_e(head_dim);
    SA_UNROLL
    for (int r = 0; r < M; ++r) {
        part[r] = is_multiple(begin, length) ? acc[r] : v_add(part[r], acc[r]);
        acc[r] = v_zero();
    }
    if (is_multiple(end, length) || end == head_dim) decode_add_part(M, part, begin & -length, s);
}

/* The numbers that a lane of a square holds: elements, or int8 times the lane's scale. */
SA_INLINE void decode_split_lanes(const int is_int8, vec square, vec scale, vec numbers[4]) {
#if SA_REAL_BITS == 32
    if (is_int8) {
        v_split_int8(square, numbers);
        SA_UNROLL
        for (int j = 0; j < 4; ++j) numbers[j] = v_mul(numbers[j], scale);
        return;
    }
#endif
    (void)is_int8, (void)scale;
    s_split(square, numbers);
}

/* The scores of LANES keys for M rows, a constant. Squares of K, of LANES keys and as many vectors'
 * lanes, are transposed and multiplied in registers; a lane holds one real, or several elements of
 * less than its size, or of int8. The address `prefetch_offset` bytes past each vector is
 * prefetched. */
SA_INLINE void decode_squares(const int M, const int is_int8, const sa_tile *t, const real *q,
                              const char *const *rows, vec scale, uintptr_t prefetch_offset,
                              real *s) {
    const int per_lane = is_int8 ? 4 : PER_LANE, size = is_int8 ? 1 : ELEM_SIZE;
    const int64_t chunk = sa_chunk_e(t->head_dim), head_dim = t->head_dim;
    int64_t begin = 0; /* of the chunk */
    vec part[SQUARE_ROWS], acc[SQUARE_ROWS];
    SA_UNROLL
    for (int r = 0; r < M; ++r) acc[r] = part[r] = v_zero();
    for (int64_t d = 0; d < head_dim; d += LANES * per_lane) {
        vec square[LANES];
        load_square_of_lanes(rows, d * size, prefetch_offset, square);
        v_transpose(square);
        SA_UNROLL
        for (int i = 0; i < LANES; ++i) {
            const int64_t end = d + (i + 1) * per_lane;
            vec numbers[4];
            decode_split_lanes(is_int8, square[i], scale, numbers);
            SA_UNROLL
            for (int j = 0; j < per_lane; ++j) {
                SA_UNROLL
                for (int r = 0; r < M; ++r) {
                    vec qd = v_set(q[r * head_dim + d + i * per_lane + j]);
                    acc[r] = v_fma(qd, numbers[j], acc[r]);
                }
            }
            int may_end = (i + 1) * per_lane % CHUNK_UNIT == 0;
            if (may_end && (is_multiple(end, chunk) || end == head_dim)) {
                decode_end_chunk(M, begin, end, head_dim, acc, part, s);
                begin = end;
            }
        }
    }
}

/* Each number of rows in a function of its own: within one, gcc would spill more. */
typedef void decode_squares_of_rows(const sa_tile *t, const real *q, const char *const *rows,
                                    vec scale, uintptr_t prefetch_offset, real *s);
#define SQUARES(name, M, is_int8)                                                             \
    static SA_APART void name##_##M(const sa_tile *t, const real *q, const char *const *rows, \
                                    vec scale, uintptr_t prefetch_offset, real *s) {          \
        decode_squares(M, is_int8, t, q, rows, scale, prefetch_offset, s);                    \
    }
#define SQUARES_OF(name, is_int8) \
    SQUARES(name, 1, is_int8)     \
    SQUARES(name, 2, is_int8)     \
    SQUARES(name, 3, is_int8)     \
    SQUARES(name, 4, is_int8)     \
    static decode_squares_of_rows *const name[] = {name##_1, name##_2, name##_3, name##_4};
SQUARES_OF(squares_of_elements, 0)
#if SA_REAL_BITS == 32 && SA_ELEM_IS_REAL
SQUARES_OF(squares_of_int8, 1)
#else
#define squares_of_int8 squares_of_elements
#endif
#undef SQUARES
#undef SQUARES_OF

/* decode_squares for any number of keys and rows, and any strides: K goes through a panel. */
static void decode_panels(const sa_tile *t, const decode_scratch *x, const sa_key_rows *k,
                          const char *const *rows, int count, uintptr_t prefetch_offset, real *s) {
    const int chunk = sa_chunk_e(t->head_dim), part = SA_CHUNKS_OF_PART * chunk;
    assert(part <= DECODE_PANEL_K);
    for (int64_t d = 0; d == 0 || d < t->head_dim; d += part) {
        const char *from[LANES];
        int length = at_most(t->head_dim - d, part);
        for (int j = 0; j < count; ++j) from[j] = rows[j] + d * k->col;
        gather(from, count, k->col, length, 1, prefetch_offset, x->k_panel, LANES);
        ukernel(1, &(ukernel_args){
                       .m = t->rows,
                       .k = length,
                       .chunk = chunk,
                       .a = (const char *)(x->q + d),
                       .a_row = t->head_dim * (ptrdiff_t)sizeof(real),
                       .a_k = sizeof(real),
                       .b = (const char *)x->k_panel,
                       .b_k = sizeof(vec),
                       .c = s,
                       .c_row = DECODE_S_ROW,
                       .kind = d == 0 ? BETA_ZERO : SUM_SCALED,
                       .factor = 1,
                       .sums = x->sums,
                   });
    }
}

/* Whether rows of K are read as squares: of so many bytes in a row. */
SA_INLINE int has_squares(const sa_key_rows *k, ptrdiff_t size, int64_t head_dim) {
    return k->col == size && head_dim > 0 && head_dim * size % (LANES * REAL_SIZE) == 0 &&
           head_dim % 8 == 0;
}

/* Whether int8 is read in registers, both K and V; else blocks of it are staged as reals. All else
 * is read where it lies, a row's address at a time. */
static int decode_reads_int8(const sa_tile *t) {
    return HAS_INT8 && t->k.scale && has_squares(&t->k, 1, t->head_dim) && t->v.col == 1 &&
           t->head_dim_v % LANES == 0;
}

/* How far ahead rows are prefetched: a block, where L1 has room for its K and V, else a chunk. */
static int rows_ahead(const sa_tile *t) {
    int64_t size = t->k.scale ? 1 : ELEM_SIZE, bytes = (t->head_dim + t->head_dim_v) * size;
    return bytes * SA_BLOCK_N <= L1_PREFETCH ? SA_BLOCK_N : SA_CHUNK_N;
}

/* Memory is read in this order: K of a block, its V, K of the next block. */
static const row_run *find_runs_of_keys(const sa_tile *t, const block_keys *keys, row_run *runs) {
    int64_t begin = keys->block + keys->begin, end = keys->block + keys->end;
    const reading_order order = {
        .x = keys->k,
        .end = end,
        .after = keys->v,
        .first = begin,
        .after_end = end,
        .rows_ahead = rows_ahead(t),
    };
    return find_runs(&order, begin, runs);
}

static const row_run *find_runs_of_values(const sa_tile *t, const block_keys *keys, row_run *runs) {
    const reading_order order = {
        .x = keys->v,
        .end = keys->block + keys->end,
        .after = &t->k,
        .first = keys->block + SA_BLOCK_N,
        .after_end = t->end,
        .rows_ahead = rows_ahead(t),
    };
    return find_runs(&order, keys->block + keys->begin, runs);
}

/* Where `count` rows of more than one run are, the first at row `used` of it; and, of int8, their
 * scales. */
static SA_APART vec rows_of_runs(const sa_key_rows *x, const row_run *run, int used, int count,
                                 const char *rows[LANES]) {
    real scales[2 * LANES] = {0};
    for (int j = 0, n; j < count; j += n, used = 0, ++run) {
        n = at_most(run->count - used, count - j);
        for (int i = 0; i < n; ++i) rows[j + i] = run->at + (used + i) * x->row;
        if (HAS_INT8 && x->scale)
            v_store(scales + j, v_load_strided(run->scale + used * x->scale_row, x->scale_row, n));
    }
    for (int j = count; j < LANES; ++j) rows[j] = rows[count - 1];
    return v_load(scales);
}

/* S, LANES keys at a time. */
static void decode_scores(const sa_tile *t, const decode_scratch *x, const block_keys *keys) {
    const sa_key_rows *k = keys->k;
    row_run runs[SA_BLOCK_N];
    const row_run *run = find_runs_of_keys(t, keys, runs);
    int used = 0; /* rows of the run */
    int is_int8 = HAS_INT8 && k->scale;
    int are_squares = is_int8 || has_squares(k, ELEM_SIZE, t->head_dim);
    for (int at = keys->begin; at < keys->end; at += LANES) {
        const char *rows[LANES];
        int count = at_most(keys->end - at, LANES);
        const char *from = run->at + used * k->row;
        uintptr_t prefetch_offset =
            run->ahead + (uintptr_t)(used * run->ahead_row) - (uintptr_t)from;
        vec scale = v_set(1);
        if (used + count <= run->count) {
            /* Past the last key, its row once more: the scores are masked. */
            for (int j = 0; j < LANES; ++j) rows[j] = from + at_most(j, count - 1) * k->row;
            if (is_int8)
                scale = v_load_strided(run->scale + used * k->scale_row, k->scale_row, count);
        } else {
            scale = rows_of_runs(k, run, used, count, rows);
        }
        for (used += count; used > 0 && used >= run->count; ++run) used -= (int)run->count;
        real *s = x->s + at;
        if (!are_squares) decode_panels(t, x, k, rows, count, prefetch_offset, s);
        for (int r = 0; are_squares && r < t->rows; r += SQUARE_ROWS) {
            const real *q = x->q + r * t->head_dim;
            real *to = s + r * DECODE_S_ROW;
            decode_squares_of_rows *const *of_rows =
                is_int8 ? squares_of_int8 : squares_of_elements;
            of_rows[at_most(t->rows - r, SQUARE_ROWS) - 1](t, q, rows, scale, prefetch_offset, to);
        }
    }
}

/* The four chains of a sum over keys have the same length: weights past the last key are 0. */
SA_INLINE int whole_chains(int end) { return (end + 3) & ~3; }

/* Put `masked` where a key, or a chain's element past the last key, is out of the row's range. */
static void decode_mask_ranges(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                               int r, real masked) {
    vec lo = v_set((real)sa_block_offset(t->key_lo[r], keys->block));
    vec hi = v_set((real)sa_block_offset(t->key_hi[r], keys->block));
    real *s = x->s + r * DECODE_S_ROW;
    for (int j = keys->begin; j < whole_chains(keys->end); j += LANES) {
        vec key = v_add(v_iota(), v_set((real)j));
        v_store(s + j, in_range(v_load(s + j), lo, key, hi, v_set(masked)));
    }
}

/* Put `masked` where B is -inf; before that, add B if asked to. */
static void decode_mask_bias(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                             int r, int add, real masked) {
    real *s = x->s + r * DECODE_S_ROW;
    for (int j = keys->begin; j < keys->end; j += LANES) {
        vec b = mask_bias_of_row(t, r, keys->block + j, at_most(keys->end - j, LANES));
        v_store(s + j, with_mask_bias(v_load(s + j), b, add, v_set(masked)));
    }
}

/* Add the biases to S and mask it. Ranges are applied even in a full block: the chains' elements
 * past the last key must have weight 0. */
static void decode_bias_and_mask(const sa_tile *t, const decode_scratch *x,
                                 const block_keys *keys) {
    for (int r = 0; r < t->rows; ++r) {
        if (t->scoring.in_natural_units) decode_bias(t, keys, x->s + r * DECODE_S_ROW, r);
        if (keys->mask_class == SA_PARTIAL)
            decode_mask_bias(t, x, keys, r, mask_adds(t), -(real)INFINITY);
        decode_mask_ranges(t, x, keys, r, -(real)INFINITY);
    }
}

/* Set the sign bit of masked keys' weights, for ukernel_masked; no other is negative. */
static void decode_mark_masked(const sa_tile *t, const decode_scratch *x, const block_keys *keys) {
    for (int r = 0; r < t->rows; ++r) {
        if (keys->mask_class == SA_PARTIAL) decode_mask_bias(t, x, keys, r, 0, (real)-0.0);
        decode_mask_ranges(t, x, keys, r, (real)-0.0);
    }
}

/* The sum of weights [begin, end) in four chains, which are the lanes 0 to 3, of two vectors where
 * LANES is 2. The other lanes are brought there in order; past the last key they are 0. */
SA_INLINE real sum_of_chains(const real *s, int begin, int end) {
    enum { VECTORS = LANES < 4 ? 4 / LANES : 1 };
    vec sum[VECTORS];
    real chain[VECTORS * LANES];
    for (int v = 0; v < VECTORS; ++v) sum[v] = v_zero();
    for (int j = begin; j < end; j += VECTORS * LANES)
        for (int v = 0; v < VECTORS; ++v) {
            vec p = v_load(s + j + v * LANES);
            sum[v] = v_add(sum[v], p);
#if LANES >= 8
            sum[v] = v_add(sum[v], v_swap(p, 4));
#endif
#if LANES >= 16
            p = v_swap(p, 8);
            sum[v] = v_add(sum[v], p);
            sum[v] = v_add(sum[v], v_swap(p, 4));
#endif
        }
    for (int v = 0; v < VECTORS; ++v) v_store(chain + v * LANES, sum[v]);
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
}

/* softmax_column (softmax.inc.h) with keys in the lanes; masked scores are -inf already. */
static void decode_softmax(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                           split_state state) {
    int begin = keys->begin, end = keys->end;
    vec scale_log2 = scale_log2_of(&t->scoring);
    real top[LANES], sum[LANES] = {0};
    vec old = v_load(state.row_max);
    v_store(top, old);
    for (int r = 0; r < t->rows; ++r) {
        vec max = v_set(top[r]);
        for (int j = begin; j < end; j += LANES)
            max = v_max(v_load(x->s + r * DECODE_S_ROW + j), max);
        real lanes[LANES];
        v_store(lanes, max);
        for (int i = 0; i < LANES; ++i) top[r] = lanes[i] > top[r] ? lanes[i] : top[r];
    }
    vec max = v_load(top), shift = finite_max(max);
    v_store(x->shift, shift);
    for (int r = 0; r < t->rows; ++r) {
        real *s = x->s + r * DECODE_S_ROW;
        vec shift_r = v_set(x->shift[r]);
        for (int j = begin; j < whole_chains(end); j += LANES)
            v_store(s + j, weight(v_sub(v_load(s + j), shift_r), scale_log2));
        sum[r] = sum_of_chains(s, begin, whole_chains(end));
    }
    vec a = weight(v_sub(old, shift), scale_log2);
    v_store(x->rescale, a);
    v_store(state.row_sum, v_fma(v_load(state.row_sum), a, v_load(sum)));
    v_store(state.row_max, max);
}

/* Multiply the weights by weight_factor, which keeps the values' sum from overflowing. Their own
 * sum l is taken before. */
static void decode_shrink(const sa_tile *t, const decode_scratch *x, const block_keys *keys) {
    vec factor = v_set((real)t->weight_factor);
    for (int r = 0; r < t->rows; ++r)
        for (int j = keys->begin; j < keys->end; j += LANES) {
            real *s = x->s + r * DECODE_S_ROW + j;
            v_store(s, v_mul(v_load(s), factor));
        }
}

/* O. Where V is not finite, the weights of masked keys have their sign bit set. */
static void decode_values(const sa_tile *t, const decode_scratch *x, const block_keys *keys,
                          split_state state) {
    int begin = keys->begin, count = keys->end - begin;
    const sa_key_rows *v = keys->v;
    row_run runs[SA_BLOCK_N];
    ukernel_args p = {
        .m = t->rows,
        .k = count,
        .chunk = SA_CHUNK_N,
        .phase = begin % SA_CHUNK_N,
        .a = (const char *)(x->s + begin),
        .a_row = DECODE_S_ROW * (ptrdiff_t)sizeof(real),
        .a_k = sizeof(real),
        .b_k = v->row,
        .runs = find_runs_of_values(t, keys, runs),
        .scale_row = v->scale_row,
        .c_row = decode_o_row(t->head_dim_v),
        .kind = BETA_OF_ROW,
        .beta = x->rescale,
        .sums = x->sums,
    };
    int64_t e = 0;
    int is_int8 = HAS_INT8 && v->scale;
    int whole = is_int8 || (v->col == ELEM_SIZE && keys->v_is_finite);
    for (int n; whole && (n = at_most((t->head_dim_v - e) / LANES, NR_MAX)) > 0; e += n * LANES) {
        p.first_byte = e * v->col;
        p.c = state.o + e;
        is_int8 ? ukernel_int8(n, &p) : ukernel_prefetching(n, &p);
    }
    /* The last elements, and a V that is not finite or not contiguous, go through the panel. */
    p.b = (const char *)x->v_panel;
    p.b_k = sizeof(vec);
    for (; e < t->head_dim_v; e += LANES) {
        int width = at_most(t->head_dim_v - e, LANES);
        for (int j = 0; j < count; ++j) {
            const char *scale;
            int64_t one = 1;
            const char *row = run_of_rows(v, keys->block + begin + j, &one, &scale);
            v_store(x->v_panel + j * LANES, s_load_strided(row + e * v->col, v->col, width));
        }
        p.c = state.o + e;
        keys->v_is_finite ? ukernel(1, &p) : ukernel_masked(1, &p, MARKED_A, p.a);
    }
}

static void decode_split(const sa_tile *t, void *memory, int64_t key_begin, int64_t key_end,
                         void *split_memory) {
    decode_scratch x = decode_layout(memory);
    split_state state = decode_state(split_memory);
    state_clear(state, LANES);
    memset(state.o, 0, (size_t)t->rows * (size_t)decode_o_row(t->head_dim_v) * sizeof(real));
    for (int64_t block = key_begin; block < key_end; block += SA_BLOCK_N) {
        block_keys keys;
        if (!find_block_keys(t, block, &keys)) continue;
        sa_key_rows k, v;
        if (t->k.scale && !decode_reads_int8(t)) read_block(t, &keys, &k, &v);
        check_v_finite(t, &keys);
        decode_scores(t, &x, &keys);
        decode_bias_and_mask(t, &x, &keys);
        decode_softmax(t, &x, &keys, state);
        for (int r = 0; t->scoring.has_dropout && r < t->rows; ++r)
            decode_drop(t, &keys, x.s + r * DECODE_S_ROW, r);
        if (t->weight_factor != 1) decode_shrink(t, &x, &keys);
        if (!keys.v_is_finite) decode_mark_masked(t, &x, &keys);
        decode_values(t, &x, &keys, state);
    }
    v_zeroupper();
}

static void decode_merge(const sa_tile *t, void *total_memory, const void *split_memory) {
    split_state total = decode_state(total_memory);
    const_split_state split = decode_const_state(split_memory);
    real a[LANES], b[LANES];
    vec factor, split_factor;
    softmax_merge(scale_log2_of(&t->scoring), total.row_max, total.row_sum, split.row_max,
                  split.row_sum, &factor, &split_factor);
    v_store(a, factor);
    v_store(b, split_factor);
    int64_t row = decode_o_row(t->head_dim_v);
    for (int r = 0; r < t->rows; ++r)
        for (int64_t e = r * row; e < (r + 1) * row; e += LANES)
            v_store(total.o + e, v_fma(v_load(total.o + e), v_set(a[r]),
                                       v_mul(v_load(split.o + e), v_set(b[r]))));
    v_zeroupper();
}

static void decode_finish(const sa_tile *t, void *total_memory) {
    split_state total = decode_state(total_memory);
    vec max = v_load(total.row_max), sum = v_load(total.row_sum);
    row_epilogue end = epilogue_of_rows(t, 0, max, sum);
    end = with_dropout_scale(t, end);
    end.factor = v_div(end.factor, v_set((real)t->weight_factor));
    int64_t row = decode_o_row(t->head_dim_v);
    int is_mean = t->weight_factor != 1 && !t->scoring.has_dropout;
    for (int r = 0; r < t->rows; ++r) {
        row_epilogue of_row = epilogue_of_lane(end, r);
        for (int64_t e = 0; e < t->head_dim_v; e += LANES) {
            vec sum = v_load(total.o + r * row + e), out = softmax_scaled(sum, of_row);
            if (is_mean) out = v_select(finite_lanes(sum), within_range(out), out);
            int width = at_most(t->head_dim_v - e, LANES);
            char *to = t->out[r] + e * t->out_col;
            if (ELEM_IS_REAL || t->out_is_real)
                v_store_strided(to, t->out_col, width, out);
            else
                s_store_strided(to, t->out_col, width, out);
        }
    }
    write_lse(t, 0, max, sum);
    v_zeroupper();
}

#endif
