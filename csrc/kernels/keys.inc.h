/* The products of keys and of values with the queries' lanes. Rows of reals are read in place:
 * those of float32 and float64, and staged ones (kv.h). Elements of half types are converted on the
 * way, a piece at a time, so small that it stays in L1: PIECE rows, or PIECE columns of all rows.
 * Rows of int8, and rows of a block that lies in several pages, are staged a block at a time.
 *
 *     key_product      C[key][lane] += sum over x of rows[key, x] * B[x][lane]       S and dP
 *     value_product    C[x][lane]   += sum over keys of rows[key, x] * B[key][lane]  O and dQ
 *
 * `rows` are those of K or V. The micro-kernel never knows; and since A's rows are independent, the
 * pieces change no bit. */
#ifndef SA_KERNELS_KEYS_INC_H
#define SA_KERNELS_KEYS_INC_H

#include <assert.h>
#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"
#include "elem.inc.h"
#include "pack.inc.h"
#include "rows.inc.h"
#include "mask.inc.h"
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

/* stage_rows of int8: to[r][x] = scale[r] * from[r][x], rounded once. Their reals are floats. */
static void stage_int8_rows(const char *from, ptrdiff_t row, const char *scale, ptrdiff_t scale_row,
                            int64_t rows, int64_t length, real *to) {
#if SA_REAL_BITS == 32
    for (int64_t r = 0; r < rows; ++r, from += row, scale += scale_row, to += length) {
        vec factor = v_broadcast(scale);
        int64_t x = 0;
        for (; x + LANES <= length; x += LANES)
            v_store(to + x, v_mul(v_load_int8(from + x), factor));
        if (x < length) {
            char rest[LANES] = {0};
            memcpy(rest, from + x, (size_t)(length - x));
            v_store_n(to + x, v_mul(v_load_int8(rest), factor), (int)(length - x));
        }
    }
#else
    (void)from, (void)row, (void)scale, (void)scale_row, (void)rows, (void)length, (void)to;
    assert(!"only floats are computed from int8");
#endif
}

/* Rows [begin, end) as contiguous rows of reals. */
static void stage_key_rows(const sa_key_rows *x, int64_t begin, int64_t end, int64_t length,
                           real *to) {
    row_cursor c = cursor_at(x, begin, end);
    for (int64_t n; begin < end; begin += n, to += n * length, cursor_add(&c, n)) {
        const char *from = cursor_row(&c), *scale = cursor_scale(&c);
        n = cursor_run(&c, end - begin);
        if (scale)
            stage_int8_rows(from, x->row, scale, x->scale_row, n, length, to);
        else
            stage_rows(from, x->row, x->col, n, length, to);
    }
}

/* Rows [begin, end) as they are, but contiguous, each of `bytes`. */
static void copy_key_rows(const sa_key_rows *x, int64_t begin, int64_t end, int64_t bytes,
                          char *to) {
    row_cursor c = cursor_at(x, begin, end);
    for (; begin < end; ++begin, to += bytes, cursor_add(&c, 1)) {
        const char *from = cursor_row(&c);
        if (x->col == ELEM_SIZE)
            memcpy(to, from, (size_t)bytes);
        else
            for (int64_t at = 0; at < bytes; at += ELEM_SIZE)
                memcpy(to + at, from + at / ELEM_SIZE * x->col, ELEM_SIZE);
    }
}

/* A block's rows [begin, end) as the products of keys and values can read them: these themselves;
 * or the page that holds them all; or a copy of them in `room`, of int8 of what they stand for.
 * `copy` describes the last two. */
SA_INLINE const sa_key_rows *rows_of_block(const sa_key_rows *x, int64_t begin, int64_t end,
                                           int64_t length, char *room, sa_key_rows *copy) {
    if (!x->pages && !x->scale) return x;
    if (!x->scale && x->page_size % SA_BLOCK_N == 0) {
        int64_t page = begin / x->page_size, first = page * x->page_size;
        *copy = (sa_key_rows){.row = x->row, .col = x->col};
        copy->at = x->at + x->pages[page] * x->page - first * x->row;
        return copy;
    }
    *copy = (sa_key_rows){.col = x->scale ? REAL_SIZE : ELEM_SIZE};
    copy->row = length * copy->col;
    copy->at = room - begin * copy->row;
    if (x->scale)
        stage_key_rows(x, begin, end, length, (real *)room);
    else
        copy_key_rows(x, begin, end, copy->row, room);
    return copy;
}

/* Find, or copy, the rows of a block's keys and values. */
SA_INLINE void read_block(const sa_tile *t, block_keys *keys, sa_key_rows *k, sa_key_rows *v) {
    int64_t begin = keys->block + keys->begin, end = keys->block + keys->end;
    char *room_for_v = t->room + sa_block_room(t->head_dim, REAL_SIZE);
    keys->k = rows_of_block(&t->k, begin, end, t->head_dim, t->room, k);
    keys->v = rows_of_block(&t->v, begin, end, t->head_dim_v, room_for_v, v);
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
