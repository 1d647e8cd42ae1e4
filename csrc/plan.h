/* How a problem is cut: tiles of query rows, splits of keys, memory. No arithmetic on the data.
 *
 * A tile is about 48 rows (96 in the backward pass) that share a key/value head of a batch entry.
 * The query heads of a group fill it together: row = query position * group + head within the
 * group. How rows are cut changes no bit of the result; splits do, and they are constants
 * (kernels.h). Of packed sequences, each is a batch entry of its own length. */
#ifndef SA_PLAN_H
#define SA_PLAN_H

#include "kernels.h"
#include "pool.h"

enum {
    /* Bytes of scratch: less needs no allocation, which a small call would wait for. */
    SA_SMALL_SCRATCH = 32 * 1024,
    /* Work below which waking a thread costs more than it saves. */
    SA_FLOPS_PER_THREAD = 150 * 1000,
};

typedef struct {
    const sa_problem *problem;
    const sa_kernels *kernels;
    sa_scoring scoring;
    int64_t group;               /* query heads that share a key/value head */
    int64_t tiles;               /* some of packed sequences may be empty */
    int merge_tail;              /* whether tiles take in a vector that would be left over */
    int64_t end_key;             /* any query sees only keys before it, by its range */
    int64_t first_split, splits; /* those in which any query sees a key; one at least */
    int64_t tiles_of_head; /* neighbours, which share keys and values; not of packed sequences */
    int num_threads;
    int segments_ascend;             /* so that those of a row are a range of keys */
    size_t scratch_size, state_size; /* multiples of a cache line */
} sa_plan;

/* width: elements of each key, and of what is summed by it, that are multiplied for each query.
 * as_scores: whether the scores themselves are asked for, in natural units. */
sa_plan sa_plan_make(const sa_problem *problem, int as_scores, int64_t width);

/* What the next worker to ask takes: tiles [first, end); 0 if none is left. `next` begins at 0. */
int sa_next_chunk(const sa_plan *plan, sa_counter *next, int64_t *first, int64_t *end);

/* The tile-th tile: its rows' pointers, key ranges and options. 0 if it has no rows. */
int sa_plan_tile(const sa_plan *plan, int64_t tile, sa_tile *t);

/* A tile of one of its rows alone. */
void sa_plan_row(const sa_plan *plan, int64_t tile, int row, sa_tile *t);

/* The first tile from `tile` on that has rows, planned as t; `end` or more if none before `end`
 * has any. */
int64_t sa_plan_next_tile(const sa_plan *plan, int64_t tile, int64_t end, sa_tile *t);

/* What the tile-th tile, planned as t, fetches ahead. Those after it up to `end` are the same
 * worker's, and `next` is the first of them, or NULL; the last before it had the keys `last_k`. */
void sa_plan_prefetch(const sa_plan *plan, int64_t tile, int64_t end, const sa_tile *next,
                      const char *last_k, sa_tile *t);

/* Where the tiles of the tile-th one's head end, and its batch entry. */
int64_t sa_end_of_head(const sa_plan *plan, int64_t tile, int64_t *b);

/* The place of a row: batch entry, key/value head, query, and query head within the group. */
typedef struct {
    int64_t b, head_kv, i, g;
} sa_row_pos;

void sa_next_row(const sa_plan *plan, sa_row_pos *at);

/* The same for the t->rows rows that begin there. */
void sa_plan_rows(const sa_plan *plan, const sa_row_pos *at, sa_tile *t);

/* Which of the two shapes computes it. */
const sa_forward_kernel *sa_plan_kernel(const sa_plan *plan, const sa_tile *t);

/* Batch entries; where one's tiles start in a head's count; how many tiles so many rows of a head
 * make; where row r of head h of an entry is. */
int64_t sa_entries(const sa_problem *problem);
int64_t sa_first_tile(const sa_plan *plan, int64_t b);
int64_t sa_tiles_of(const sa_plan *plan, int64_t rows);
char *sa_row_of(const sa_problem *problem, const sa_array *a, int64_t b, int64_t h, int64_t r);

void sa_store_scalar(sa_dtype dtype, void *at, double x);

/* Bytes of an element. */
int64_t sa_dtype_size(sa_dtype dtype);

/* The next multiple of a cache line. */
size_t sa_whole_lines(size_t n);

/* Memory aligned to cache lines; NULL if there is none. */
void *sa_alloc(size_t count, size_t size);
void sa_free(void *memory);

#endif
