/* How a problem is cut: tiles of query rows, splits of keys, memory. No arithmetic on the data.
 *
 * A tile is up to 64 rows that share a key/value head of a batch entry. The query heads of a group
 * fill it together: row = query position * group + head within the group. How rows are cut changes
 * no bit of the result; splits do, and they are constants (kernels.h). */
#ifndef SA_PLAN_H
#define SA_PLAN_H

#include "kernels.h"
#include "pool.h"

#define SA_LOG2_E 1.4426950408889634 /* scores of a softmax are in units of log 2 */

typedef struct {
    const sa_problem *problem;
    const sa_kernels *kernels;
    int64_t group;          /* query heads that share a key/value head */
    int64_t rows;           /* of a key/value head: group * seqlen_q */
    int64_t vectors;        /* that hold them */
    int64_t tiles_per_head; /* which divide the vectors evenly */
    int64_t tiles;
    int64_t first_split, splits; /* those in which any query sees a key; one at least */
    int64_t tiles_per_turn;      /* neighbours, which share keys and values, go to one thread */
    int num_threads;
    double q_factor;
    size_t scratch_size, partial_size; /* multiples of a cache line */
} sa_plan;

/* What the scores are multiplied by. */
double sa_scale(const sa_problem *problem);

/* width: elements of each key, and of what is summed by it, that are multiplied for each query. */
sa_plan sa_plan_make(const sa_problem *problem, double q_factor, int64_t width);

/* What the next worker to ask takes: tiles [first, end); 0 when none is left. */
int sa_plan_turn(const sa_plan *plan, sa_counter *next, int64_t *first, int64_t *end);

/* The tile-th tile: its rows' pointers and key ranges. */
void sa_plan_tile(const sa_plan *plan, int64_t tile, sa_tile *t);

/* Which of the two shapes computes it. */
const sa_forward_kernel *sa_plan_kernel(const sa_plan *plan, const sa_tile *t);

/* Memory aligned to cache lines; NULL if there is none. */
void *sa_alloc(size_t count, size_t size);
void sa_free(void *memory);

#endif
