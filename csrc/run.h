/* The workers of a call: memory of its own for each, and the pool. Used by every parallel loop,
 * between sa_call_begin and sa_call_end:
 *
 *     sa_call_begin(&call, p->interrupt);
 *     ...                                   cut the problem
 *     status = sa_run(&call, num_threads, scratch_size, work, arg);
 *     return sa_call_end(&call, status); */
#ifndef SA_RUN_H
#define SA_RUN_H

#include "call.h"

/* One worker's part: it takes items from a shared counter until none are left, and must be able to
 * do them all (pool.h). `scratch` is aligned to a cache line and not cleared; without any asked
 * for, it is not to be used. */
typedef void (*sa_worker)(void *arg, int worker, char *scratch);

/* Have at most num_threads workers do the work, this thread among them. SA_NO_MEMORY if there is
 * no memory for scratch_size bytes each; nothing has been computed then. */
sa_status sa_run(sa_call *call, int num_threads, size_t scratch_size, sa_worker work, void *arg);

#endif
