/* A tile as the kernels take it: its rows' pointers, key ranges and options, filled in from the
 * schedule; and the loop over a worker's tiles, which knows the next one and so what to prefetch.
 * Called by the loops. */
#ifndef SA_TILE_H
#define SA_TILE_H

#include "schedule.h"

/* Fill in the tile-th tile; returns 0 if it has no rows. */
int sa_fill_tile(const sa_schedule *s, int64_t tile, sa_tile *t);

/* Fill in a tile of one row, the row-th of the tile-th tile. */
void sa_fill_row(const sa_schedule *s, int64_t tile, int row, sa_tile *t);

/* Fill in t from the t->rows rows that begin at `at`. */
void sa_fill_rows(const sa_schedule *s, const sa_row_pos *at, sa_tile *t);

/* A worker's tiles, chunk by chunk. While one is computed, the next one of its chunk is known. */
typedef struct {
    const sa_schedule *schedule;
    sa_counter *counter; /* shared by the workers */
    int64_t tile, end;   /* the current tile's number, and the end of its chunk */
    int64_t after;       /* the next tile to look at */
    sa_tile tiles[2];
    int current, has_next;
    const char *last_k; /* the keys of the tile before */
    sa_finite finite;
} sa_tile_loop;

void sa_tile_loop_begin(sa_tile_loop *loop, const sa_schedule *s, sa_counter *counter);

/* The worker's next tile, with what to prefetch while it is computed; NULL at the end. */
sa_tile *sa_next_tile(sa_tile_loop *loop);

#endif
