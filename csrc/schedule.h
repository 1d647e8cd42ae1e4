/* How a problem is cut: tiles of query rows, splits of keys, chunks of tiles for the threads. No
 * arithmetic on the data.
 *
 * A tile is rows that share a key/value head of a batch entry: 48 of them on AVX-512 in float32, 24
 * on AVX2, 16 in portable C, half as many in float64, and 96 in the backward pass. The query heads
 * of a group share a tile: row = query * group + head within the group. How rows are cut into tiles
 * changes no bit of the result; how keys are cut into splits does, by constants (kernels.h). Each
 * packed sequence is a batch entry of its own length. */
#ifndef SA_SCHEDULE_H
#define SA_SCHEDULE_H

#include "counter.h"
#include "kernels.h"
#include "problem.h"

typedef struct {
    const sa_problem *problem;
    const sa_kernels *kernels;
    sa_scoring scoring;
    int64_t group;               /* query heads that share a key/value head */
    int64_t tiles;               /* some of those of packed sequences may be empty */
    int merge_tail;              /* whether one last vector of rows joins the tiles before it */
    int64_t end_key;             /* every query sees only keys before it, by its range */
    int64_t first_split, splits; /* those in which any query sees a key; one at least */
    int64_t tiles_of_head;       /* consecutive tiles with the same K and V; not if packed */
    int num_threads;
    int segments_ascend;             /* so that those of a row are a range of keys */
    size_t scratch_size, state_size; /* multiples of a cache line */
} sa_schedule;

/* width: elements of a key and of what is summed by it that are multiplied for each query.
 * as_scores: the scores themselves are asked for. */
sa_schedule sa_schedule_make(const sa_problem *problem, int as_scores, int64_t width);

/* Take the next chunk of tiles, [*first, *end); 0 if none is left. `next` begins at 0. */
int sa_next_chunk(const sa_schedule *s, sa_counter *next, int64_t *first, int64_t *end);

/* A row: batch entry, key/value head, query, and query head within the group. */
typedef struct {
    int64_t b, head_kv, i, g;
} sa_row_pos;

void sa_next_row(const sa_schedule *s, sa_row_pos *at);

/* How many rows a tile has, and the first of them in *at; 0 for an empty one. */
int sa_rows_of_tile(const sa_schedule *s, int64_t tile, sa_row_pos *at);

/* The first tile after an empty one that may have rows; at least `tile` + 1. `end` > tile. */
int64_t sa_after_empty_tile(const sa_schedule *s, int64_t tile, int64_t end);

/* Tile numbers: the first of batch entry b, divided by num_heads_kv; how many tiles so many rows of
 * a head make; where the tiles of the head of `tile` end, whose batch entry becomes *b. */
int64_t sa_first_tile(const sa_schedule *s, int64_t b);
int64_t sa_tiles_of_rows(const sa_schedule *s, int64_t rows);
int64_t sa_end_of_head(const sa_schedule *s, int64_t tile, int64_t *b);

/* The kernel for a tile: decode for a few rows, or prefill. */
const sa_forward_kernel *sa_kernel_of(const sa_schedule *s, const sa_tile *t);

#endif
