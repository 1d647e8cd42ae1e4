/* Staged keys and values, and their gradients: rows of reals in the worker's scratch, contiguous
 * and without gaps, in place of rows of the arrays.
 *
 * They are staged for one of two reasons. Rows of a half type must become reals before the products
 * read them; the kernels convert a piece at a time (kernels/keys.inc.h), but where several tiles of
 * a worker read the same keys, it is cheaper to convert them once. So it is with rows of int8, and
 * with pages. And rows with gaps between them, as in (batch, position, head, head_dim) arrays,
 * compete for few cache sets: their addresses agree in the bits that choose the set. Staged
 * gradients accumulate in scratch, and are stored to their arrays at the end of a job. Called by
 * forward.c and backward.c. */
#ifndef SA_KV_H
#define SA_KV_H

#include "kernels.h"
#include "problem.h"

typedef enum { SA_KV_K, SA_KV_V, SA_KV_DK, SA_KV_DV, SA_KV_ARRAYS } sa_kv_array;

/* Which arrays are staged, and where in a worker's room for them. */
typedef struct {
    const sa_kernels *kernels;
    ptrdiff_t real_size;
    int stages_keys; /* whether anything is but gradients of half types */
    int is_staged[SA_KV_ARRAYS];
    size_t at[SA_KV_ARRAYS];
    int64_t length[SA_KV_ARRAYS], row_bytes[SA_KV_ARRAYS]; /* of a staged row: reals */
    size_t size;                                           /* of the room, whole cache lines */
} sa_kv_layout;

/* What to stage of the first `count` arrays, those without data left out: those that it pays for,
 * if `rows` rows of all these fit `budget` bytes, else none. But gradients of a half type always,
 * `grad_rows` rows of each: they must accumulate as reals. */
sa_kv_layout sa_kv_layout_make(const sa_problem *p, const sa_array *const *arrays, int count,
                               int64_t rows, int64_t grad_rows, size_t budget);

/* Bytes of the room in which the kernels stage one block of keys and values: 0 unless they lie in
 * pages or are int8. */
size_t sa_kv_block_room(const sa_problem *p);

/* Staging pays if so many tiles read the copy; `of_strided`, where rows are only copied. */
int64_t sa_kv_min_tiles(const sa_problem *p, int64_t of_strided);

/* Rows [begin, end) of `source` are staged. */
typedef struct {
    sa_key_rows source;
    int64_t begin, end;
} sa_kv_copy;

/* What a worker has staged. */
typedef struct {
    const sa_kv_layout *layout;
    char *room;
    sa_kv_copy copies[SA_KV_ARRAYS];
} sa_kv;

/* Let *x become the staged copy of its rows, which holds [begin, end), if the array is staged.
 * Returns whether rows were copied just now: what was known of the room's content holds no longer.
 */
int sa_kv_stage(sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, sa_key_rows *x);

/* Where an array is staged, or NULL. */
char *sa_kv_room(const sa_kv *kv, sa_kv_array which);

/* Store staged rows [begin, end) to those of the array whose row 0 is at `to`. */
void sa_kv_unstage(const sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, char *to,
                   ptrdiff_t row, ptrdiff_t col);

#endif
