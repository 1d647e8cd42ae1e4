/* Keys and values, and their gradients, as runs of rows: in place, or staged.
 *
 * A run is rows at equal distances. Rows with gaps between them, as in (batch, position, head,
 * head_dim) arrays, compete for few cache sets: their addresses agree in the bits that choose the
 * set. So where several tiles of a worker read the same rows, they are staged: copied once, without
 * gaps, to the worker's scratch, and read from there. Staged gradients accumulate in scratch, and
 * are copied to their arrays at the end of a job. Called by forward.c and backward.c. */
#ifndef SA_KV_H
#define SA_KV_H

#include "problem.h"

typedef enum { SA_KV_K, SA_KV_V, SA_KV_DK, SA_KV_DV, SA_KV_ARRAYS } sa_kv_array;

/* Which arrays are staged, and where in a worker's room for them. */
typedef struct {
    int is_staged[SA_KV_ARRAYS];
    size_t at[SA_KV_ARRAYS];
    int64_t row_bytes[SA_KV_ARRAYS];
    size_t size; /* of the room, whole cache lines; 0 where nothing is staged */
} sa_kv_layout;

/* Stage those of the arrays whose rows have gaps, `rows` rows of each; none if they need more than
 * `budget` bytes. Arrays from `count` on, and those that are NULL, are not staged. */
sa_kv_layout sa_kv_layout_make(const sa_problem *p, const sa_array *const *arrays, int count,
                               int64_t rows, size_t budget);

/* Rows [begin, end) of the array that begins at `source` are staged. */
typedef struct {
    const char *source;
    int64_t begin, end;
} sa_kv_copy;

/* What a worker has staged. */
typedef struct {
    const sa_kv_layout *layout;
    char *room;
    sa_kv_copy copies[SA_KV_ARRAYS];
} sa_kv;

/* Let *at and *row, an array's first row and the distance of its rows, become those of a staged
 * copy that holds rows [begin, end), if the array is staged. Returns whether rows were copied just
 * now: what was known of the room's content holds no longer. */
int sa_kv_stage(sa_kv *kv, sa_kv_array which, int64_t begin, int64_t end, const char **at,
                ptrdiff_t *row);

/* Where an array is staged, or NULL. */
char *sa_kv_room(const sa_kv *kv, sa_kv_array which);

void sa_copy_rows(char *to, ptrdiff_t to_row, const char *from, ptrdiff_t from_row, int64_t bytes,
                  int64_t rows);

#endif
