/* How the backward pass is cut: passes, each of which computes some of the gradients, into jobs.
 *
 * Keys' gradients are sums over queries, queries' over keys. Where there are heads enough for the
 * threads, one pass computes them all, a head a job, from one look at each score (five products).
 * Where there are not, or where broadcasting lets heads of one input share another's gradient, a
 * second look (seven products) frees the parts from one another. The mask's gradient and the sinks'
 * have passes of their own. Any way of cutting gives the same bits: tiles begin at multiples of
 * SA_GRADIENT_TILE_M rows, and each sum has its order. */
#ifndef SA_GRADIENT_PLAN_H
#define SA_GRADIENT_PLAN_H

#include "plan.h"

enum { SA_MAX_PASSES = 5 };

/* The axes of a pass are those of the batch and the key/value heads'. Its jobs are those of the
 * axes that its gradients have, times parts of rows and of keys; a job walks all the other axes. */
typedef struct {
    int needs_grad; /* sa_gradient's, joined */
    int is_broadcast[SA_MAX_BATCH_AXES + 1];
    int64_t own, broadcast; /* how many there are of both kinds of axes */
    int64_t tiles_of_job, keys_of_job;
    int64_t row_parts, key_parts;
    int64_t jobs;
} sa_pass;

typedef struct {
    const sa_pass *pass;
    int64_t own; /* which */
    int64_t tile_begin, tile_end, key_begin, key_end;
} sa_job;

typedef struct {
    sa_plan rows;
    const sa_gradients *gradients;
    sa_pass passes[SA_MAX_PASSES];
    int num_passes;
    int64_t jobs;
    size_t sinks_size; /* bytes of a group's sums */
} sa_gradient_plan;

sa_gradient_plan sa_gradient_plan_make(const sa_problem *problem, const sa_gradients *gradients);

/* The first job from i on that is not one of an empty sequence, which has no rows and no keys. */
int64_t sa_next_job(const sa_gradient_plan *plan, int64_t i);

sa_job sa_job_of(const sa_gradient_plan *plan, int64_t i);

/* The tile-th tile of rows of the i-th batch entry and head that the job walks; 0 if it has no
 * rows. Its rows' sinks are summed up in `sinks`, by heads of the group. */
int sa_gradient_tile_of(const sa_gradient_plan *plan, const sa_job *job, int64_t i, int64_t tile,
                        double *sinks, sa_backward_tile *t);

/* How many tiles the job walks of its first batch entry. */
int64_t sa_tiles_of_job(const sa_gradient_plan *plan, const sa_job *job);

/* The rows of key's and value's gradients that the job owns. */
sa_key_gradients sa_key_gradients_of(const sa_gradient_plan *plan, const sa_job *job);

void sa_write_sinks(const sa_gradient_plan *plan, const sa_job *job, const double *sinks);

#endif
