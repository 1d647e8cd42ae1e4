/* A small pool of threads for parallel loops.
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

typedef void (*sa_work)(void *arg, int worker);

void sa_parallel(int num_threads, sa_work work, void *arg, sa_call *call);

#endif
