/* A head's keys and values brought together, for the tiles of it that a worker computes.
 *
 * Rows of keys lie apart where heads lie behind their positions, as models hold them. The caches
 * keep few of such rows: they find room by some bits of their address, which many have in common.
 * Copied once, to one place, they are read from there by tile after tile. Called by forward.c. */
#ifndef SA_PACKED_H
#define SA_PACKED_H

#include "plan.h"

typedef struct {
    char *memory; /* sa_packed_size bytes, or NULL */
    int64_t end;  /* the tiles before this one are of the last head; they read packed keys or not */
    int is_used;
} sa_packed;

/* Bytes that each worker needs for it, whole lines: SA_PACKED_BYTES at most, and 0 where nothing is
 * to be packed. */
enum { SA_PACKED_BYTES = 1 << 20 };
size_t sa_packed_size(const sa_plan *plan);

/* If it pays, let the tile-th tile, the worker's next of a turn up to `end`, read packed keys. */
void sa_pack_keys(const sa_plan *plan, sa_packed *x, int64_t tile, int64_t end, sa_tile *t);

/* Whether rows of so many bytes, elements side by side, lie apart from one another. */
int sa_rows_have_gaps(const sa_problem *problem, const sa_array *a, int64_t bytes);

void sa_copy_rows(char *to, ptrdiff_t to_row, const char *from, ptrdiff_t from_row, int64_t bytes,
                  int64_t rows);

#endif
