/* A small pool of threads for parallel loops, and the counters that such loops share.
 *
 * sa_parallel(n, work, arg, stop) calls work(arg, 0) in this thread and at most work(arg, 1)
 * ... work(arg, n - 1) in others: a helper that has not woken when the caller is done is let off.
 * So work takes its items from a shared counter, and one call of it must be able to do them all.
 * Returns when all is done.
 *
 * Where there are no POSIX threads or C11 atomics, the caller does everything. */
#ifndef SA_POOL_H
#define SA_POOL_H

#include <stdint.h>

#include "fp_env.h"
#include "selfattn.h"

#if !defined(_WIN32) && !defined(__STDC_NO_ATOMICS__)
#define SA_THREADS 1
#include <stdatomic.h>
typedef _Atomic int64_t sa_counter;
#else
#define SA_THREADS 0
typedef int64_t sa_counter;
#endif

/* The counter's value, which is then one more. */
static inline int64_t sa_take(sa_counter *counter) { return (*counter)++; }

/* If the counter is at *seen, it becomes `next`; else *seen becomes what it is at. */
static inline int sa_move(sa_counter *counter, int64_t *seen, int64_t next) {
#if SA_THREADS
    return atomic_compare_exchange_weak(counter, seen, next);
#else
    (void)seen;
    *counter = next;
    return 1;
#endif
}

/* A call, from sa_enter to sa_leave: it computes in the default floating-point environment, and may
 * be told to stop. Every worker asks between two pieces of work; only the caller (worker 0) asks
 * the interrupt, in its own environment, once in a few milliseconds and while it waits for the
 * others. */
typedef struct {
    sa_interrupt interrupt;
    sa_fp_env callers;
    int64_t asked_ns;
    sa_counter stopped;
} sa_stop;

void sa_enter(sa_stop *stop, sa_interrupt interrupt);
int sa_must_stop(sa_stop *stop, int worker);
sa_status sa_leave(sa_stop *stop); /* SA_OK or SA_INTERRUPTED */

typedef void (*sa_work)(void *arg, int worker);

void sa_parallel(int num_threads, sa_work work, void *arg, sa_stop *stop);

#endif
