/* The keys and values of a job of the backward pass and their gradients, brought together for its
 * tiles: as packed.h does for the forward pass, and more is won here, since gradients are read and
 * written by tile after tile. They grow in the worker's memory and are then copied to where they
 * belong. Called by backward.c. */
#ifndef SA_GRADIENT_PACKED_H
#define SA_GRADIENT_PACKED_H

#include "gradient_plan.h"

enum { SA_KEYS, SA_VALUES, SA_GRAD_KEYS, SA_GRAD_VALUES, SA_PACKED_ARRAYS };

/* How each worker's memory holds them. */
typedef struct {
    int is_packed[SA_PACKED_ARRAYS]; /* those whose rows lie apart */
    size_t at[SA_PACKED_ARRAYS];
    size_t size; /* whole lines: twice SA_PACKED_BYTES at most, and 0 where nothing is packed */
} sa_packed_layout;

sa_packed_layout sa_packed_layout_make(const sa_gradient_plan *plan);

/* A copy of so many rows that begin there. */
typedef struct {
    const char *at;
    int64_t rows;
} sa_copied_rows;

/* What a worker knows from tile to tile of a job. */
typedef struct {
    const sa_gradient_plan *plan;
    const sa_packed_layout *layout;
    char *memory;
    int is_used;
    sa_copied_rows copied[2]; /* SA_KEYS and SA_VALUES, in memory */
    sa_key_gradients own,
        grow; /* of the job: in their arrays; and where they grow, there or packed */
} sa_packed_job;

/* Pack the job's keys and gradients, if that pays. */
void sa_packed_job_begin(sa_packed_job *x, const sa_job *job);

/* Let a tile of the job read packed keys and add to packed gradients. */
void sa_packed_job_tile(sa_packed_job *x, sa_backward_tile *t);

/* Whether the job's end writes gradients. */
int sa_packed_job_writes(const sa_packed_job *x);

/* Copy the job's gradients to where they belong. */
void sa_packed_job_end(const sa_packed_job *x);

#endif
