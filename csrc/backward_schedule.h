/* How the backward pass is cut: into passes, each of which computes some of the gradients, and
 * these into jobs.
 *
 * dK and dV are sums over queries, dQ is a sum over keys. With enough heads for the threads, one
 * pass computes all three, a head a job, and each score once: five products. With fewer heads, or
 * where broadcasting makes heads share a gradient, queries and keys have a pass each, whose jobs
 * are parts of rows or of keys; each score is then computed twice: seven products. The gradients of
 * the mask, of the bias and of the sinks have passes of their own. All ways give the same bits:
 * tiles begin at multiples of SA_GRADIENT_TILE_M rows, and each sum has a fixed order. Without an
 * array for the query's gradient, or for those of key and value, their passes are left out. */
#ifndef SA_BACKWARD_SCHEDULE_H
#define SA_BACKWARD_SCHEDULE_H

#include "tile.h"

enum { SA_MAX_PASSES = 6 };

/* The axes of a pass are the batch axes and that of the key/value heads. Over some of them the
 * pass's gradients are summed, because the input was broadcast; the others are its own. Jobs are
 * the entries of the own axes, times parts of rows and of keys; a job goes through all entries of
 * the broadcast axes. */
typedef struct {
    int needs_grad;          /* sa_gradient's, joined */
    const sa_array *of_mask; /* SA_GRADIENT_MASK: the gradient, of the mask or of the bias */
    int is_broadcast[SA_MAX_BATCH_AXES + 1];
    int64_t own, broadcast; /* entries of the own axes, and of the broadcast ones */
    int64_t first;          /* of the broadcast ones; those before it are of other calls */
    int64_t tiles_of_job, keys_of_job;
    int64_t row_parts, key_parts;
    int64_t jobs;
} sa_pass;

typedef struct {
    const sa_pass *pass;
    int64_t own; /* which entry of the own axes */
    int64_t tile_begin, tile_end, key_begin, key_end;
} sa_job;

typedef struct {
    sa_schedule forward; /* the problem's, but its tiles: those here are of another size */
    const sa_gradients *gradients;
    sa_pass passes[SA_MAX_PASSES];
    int num_passes;
    int64_t jobs;
    int64_t keys_of_job; /* at most, of a job that computes key's or value's gradient */
    size_t sinks_size;   /* bytes of a group's sums */
} sa_backward_schedule;

sa_backward_schedule sa_backward_schedule_make(const sa_problem *problem,
                                               const sa_gradients *gradients);

/* The first job from i on that is not of an empty sequence, one without queries and keys. */
int64_t sa_next_job(const sa_backward_schedule *s, int64_t i);

sa_job sa_job_of(const sa_backward_schedule *s, int64_t i);

/* Fill in the tile-th tile of rows of the job's i-th entry of the broadcast axes; returns 0 if it
 * has no rows. Gradients of sinks are summed in `sinks`, one for each head of the group. */
int sa_fill_backward_tile(const sa_backward_schedule *s, const sa_job *job, int64_t i, int64_t tile,
                          double *sinks, sa_backward_tile *t);

/* How many tiles the job has of its first batch entry. */
int64_t sa_tiles_of_job(const sa_backward_schedule *s, const sa_job *job);

/* Begin the sums of a group's sinks, and store them. */
void sa_begin_sinks(const sa_backward_schedule *s, const sa_job *job, double *sinks);
void sa_write_sinks(const sa_backward_schedule *s, const sa_job *job, const double *sinks);

/* The rows of key's and value's gradients that the job owns. */
sa_key_gradients sa_key_gradients_of(const sa_backward_schedule *s, const sa_job *job);

#endif
