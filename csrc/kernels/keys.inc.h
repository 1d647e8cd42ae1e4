/* The products of keys and of values with the queries' lanes. Rows of reals are read in place:
 * those of float32 and float64, and staged ones (kv.h). Elements of half types are converted on the
 * way, a piece at a time, so small that it stays in L1: PIECE rows, or PIECE columns of all rows.
 *
 *     key_product      C[key][lane] += sum over x of rows[key, x] * B[x][lane]       S and dP
 *     value_product    C[x][lane]   += sum over keys of rows[key, x] * B[key][lane]  O and dQ
 *
 * `rows` are those of K or V. The micro-kernel never knows; and since A's rows are independent, the
 * pieces change no bit. */
#ifndef SA_KERNELS_KEYS_INC_H
#define SA_KERNELS_KEYS_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "elem.inc.h"
#include "pack.inc.h"
#include "ukernel.inc.h"

/* to[r][x] = from[r][x]: rows of elements become contiguous rows of reals. */
static void stage_rows(const char *from, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t length,
                       real *to) {
    int64_t whole = col == ELEM_SIZE ? length / LANES * LANES : 0;
    for (int64_t r = 0; r < rows; ++r, from += row, to += length) {
        for (int64_t x = 0; x < whole; x += LANES) v_store(to + x, s_load(from + x * ELEM_SIZE));
        for (int64_t x = whole; x < length; x += LANES) {
            int width = at_most(length - x, LANES);
            v_store_n(to + x, s_load_strided(from + x * col, col, width), width);
        }
    }
}

/* The inverse of stage_rows, rounding. */
static void unstage_rows(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t length,
                         const real *from) {
    for (int64_t r = 0; r < rows; ++r, to += row, from += length)
        for (int64_t x = 0; x < length; x += LANES) {
            int width = at_most(length - x, LANES);
            vec y = width == LANES ? v_load(from + x) : v_load_n(from + x, width);
            s_store_strided(to + x * col, col, width, y);
        }
}

/* Whether the products can read these rows in place. */
SA_INLINE int are_real(const sa_key_rows *x) { return ELEM_IS_REAL || x->is_staged; }

/* Bytes of a row of so many numbers, as it lies there. */
SA_INLINE int64_t key_row_bytes(const sa_key_rows *x, int64_t length) {
    return length * (are_real(x) ? REAL_SIZE : ELEM_SIZE);
}

enum { PIECE = 16 };

/* Elements of the room for a piece. */
SA_INLINE int64_t piece_room(int64_t head_dim, int64_t head_dim_v) {
    int64_t length = head_dim > head_dim_v ? head_dim : head_dim_v;
    return ELEM_IS_REAL ? 0 : PIECE * (length > SA_BLOCK_N ? length : SA_BLOCK_N);
}

/* stage_rows of a piece, of contiguous elements. The piece that begins `next` bytes further on is
 * prefetched into L1: its turn comes after the product with this one. `length`: of a row, a
 * multiple of LANES; a constant where this is inlined for columns. */
SA_INLINE void stage_piece(const char *from, ptrdiff_t row, int64_t rows, int64_t length,
                           ptrdiff_t next, real *to) {
    for (int64_t r = 0; r < rows; ++r, from += row, to += length) {
        SA_UNROLL
        for (int64_t x = 0; x < length; x += LANES) {
            if (x * ELEM_SIZE % CACHE_LINE == 0)
                SA_PREFETCH_NEAREST((uintptr_t)from + (uintptr_t)(next + x * ELEM_SIZE));
            v_store(to + x, s_load(from + x * ELEM_SIZE));
        }
    }
}

/* A of key_product: rows [key, key + count), whole. */
static void load_key_piece(const sa_key_rows *x, int64_t key, int64_t count, int64_t length,
                           real *room) {
    const char *from = x->at + key * x->row;
    if (x->col == ELEM_SIZE && length % LANES == 0)
        stage_piece(from, x->row, count, length, PIECE * x->row, room);
    else
        stage_rows(from, x->row, x->col, count, length, room);
}

/* A of value_product: elements [first, first + length) of rows [key, key + count). */
static void load_value_piece(const sa_key_rows *x, int64_t key, int64_t count, int64_t first,
                             int64_t length, real *room) {
    const char *from = x->at + key * x->row + first * x->col;
    if (x->col == ELEM_SIZE && length == PIECE)
        stage_piece(from, x->row, count, PIECE, PIECE * ELEM_SIZE, room);
    else
        stage_rows(from, x->row, x->col, count, length, room);
}

/* p, but for A, has the product with rows [key, key + p->m); p->k is the length of a row. */
static void key_product(int n, const ukernel_args *p, const sa_key_rows *x, int64_t key,
                        real *room) {
    ukernel_args piece = *p;
    piece.a = x->at + key * x->row;
    piece.a_row = x->row;
    piece.a_k = x->col;
    if (are_real(x)) {
        ukernel_in_parts(n, &piece);
        return;
    }
    for (int64_t i = 0; i < p->m; i += PIECE) {
        piece = *p;
        piece.m = at_most(p->m - i, PIECE);
        load_key_piece(x, key + i, piece.m, p->k, room);
        piece.a = (const char *)room;
        piece.a_row = p->k * REAL_SIZE;
        piece.a_k = REAL_SIZE;
        piece.c += i * p->c_row;
        ukernel_in_parts(n, &piece);
    }
}

/* p, but for A, has the product with rows [key, key + p->k), of which p->m is the length. Where B
 * is not finite, `marks` has its masked elements marked (ukernel_masked); else NULL. */
static void value_product(int n, const ukernel_args *p, const sa_key_rows *x, int64_t key,
                          const char *marks, real *room) {
    ukernel_args piece = *p;
    piece.a = x->at + key * x->row;
    piece.a_row = x->col;
    piece.a_k = x->row;
    for (int64_t i = 0; i < p->m; i += piece.m) {
        if (!are_real(x)) {
            piece.m = at_most(p->m - i, PIECE);
            load_value_piece(x, key, p->k, i, piece.m, room);
            piece.a = (const char *)room;
            piece.a_row = REAL_SIZE;
            piece.a_k = piece.m * REAL_SIZE;
            piece.c = p->c + i * p->c_row;
        }
        marks ? ukernel_masked(n, &piece, MARKED_B, marks) : ukernel(n, &piece);
    }
}

#endif
