/* A small pool of threads for parallel loops, and the counters that such loops share.
 *
 * sa_parallel(n, work, arg, call) calls work(arg, 0) in this thread and at most work(arg, 1)
 * ... work(arg, n - 1) in others. A helper may never come to run, if its core is busy elsewhere:
 * work takes its items from a shared counter, and one call of it must be able to do them all.
 * Returns when all is done.
 *
 * Where there are no POSIX threads or C11 atomics, the caller does everything. */
#ifndef SA_POOL_H
#define SA_POOL_H

#include "call.h"

/* The counter's value, which is then one more. */
static inline int64_t sa_fetch_add(sa_counter *counter) { return (*counter)++; }

/* If the counter is at *seen, it becomes `next`; else *seen becomes what it is at. */
static inline int sa_cas(sa_counter *counter, int64_t *expected, int64_t next) {
#if SA_THREADS
    return atomic_compare_exchange_weak(counter, expected, next);
#else
    (void)expected;
    *counter = next;
    return 1;
#endif
}

typedef void (*sa_work)(void *arg, int worker);

void sa_parallel(int num_threads, sa_work work, void *arg, sa_call *call);

#endif
