/* S of a tile of few rows, LANES keys at a time:
 *
 *     S[r][key]  = sum over d of Q[r, d] * K[d][key]
 *
 * Rows of K are loaded as squares and transposed in registers, or through a panel. Called by
 * decode.inc.h. */
#ifndef SA_KERNELS_DECODE_SCORES_INC_H
#define SA_KERNELS_DECODE_SCORES_INC_H

#include <assert.h>

#include "simd.inc.h"
#include "pack.inc.h"
#include "ukernel.inc.h"
#include "mask.inc.h"
#include "reading.inc.h"
#include "decode_scratch.inc.h"

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
    assert(part <= DECODE_PANEL);
    for (int64_t d = 0; d == 0 || d < t->head_dim; d += part) {
        const char *from[LANES];
        int length = at_most(t->head_dim - d, part);
        for (int j = 0; j < count; ++j) from[j] = rows[j] + d * k->col;
        gather(from, count, k->col, length, 1, prefetch_offset, x->panel, LANES);
        ukernel(1, &(ukernel_args){
                       .m = t->rows,
                       .k = length,
                       .chunk = chunk,
                       .a = (const char *)(x->q + d),
                       .a_row = t->head_dim * (ptrdiff_t)sizeof(real),
                       .a_k = sizeof(real),
                       .b = (const char *)x->panel,
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
    const row_run *run = find_runs_of_keys(t, keys, x->runs);
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

#endif
