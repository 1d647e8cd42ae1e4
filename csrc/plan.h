/* How a problem is cut: tiles of query rows, splits of keys, memory. No arithmetic on the data.
 *
 * A tile is up to 64 rows that share a key/value head of a batch entry. The query heads of a group
 * fill it together: row = query position * group + head within the group. How rows are cut changes
 * no bit of the result; splits do, and they are constants (kernels.h). */
#ifndef SA_PLAN_H
#define SA_PLAN_H

#include "kernels.h"

typedef struct {
    const sa_problem *problem;
    const sa_kernels *kernels;
    int64_t group;          /* query heads that share a key/value head */
    int64_t rows;           /* of a key/value head: group * seqlen_q */
    int64_t vectors;        /* that hold them */
    int64_t tiles_per_head; /* which divide the vectors evenly */
    int64_t tiles, splits;
    int64_t tiles_per_turn; /* neighbours, which share keys and values, go to one thread */
    int num_threads;
    double q_factor;
    size_t scratch_size, partial_size; /* multiples of a cache line */
} sa_plan;

/* flops: about how many the whole problem takes. */
sa_plan sa_plan_make(const sa_problem *problem, double q_factor, double flops);

/* The tile-th tile: its rows' pointers and key ranges. */
void sa_plan_tile(const sa_plan *plan, int64_t tile, sa_tile *t);

/* Which of the two shapes computes it. */
const sa_forward_kernel *sa_plan_kernel(const sa_plan *plan, const sa_tile *t);

/* Memory aligned to cache lines; NULL if there is none. */
void *sa_alloc(size_t count, size_t size);
void sa_free(void *memory);

#endif
