/* Counters that the workers of a parallel loop share. Where there are no C11 atomics there is one
 * worker, and a counter is a plain number. */
#ifndef SA_COUNTER_H
#define SA_COUNTER_H

#include <stdint.h>

#if !defined(_WIN32) && !defined(__STDC_NO_ATOMICS__)
#define SA_THREADS 1
#include <stdatomic.h>
typedef _Atomic int64_t sa_counter;
#else
#define SA_THREADS 0
typedef int64_t sa_counter;
#endif

/* Add 1; returns the value before. */
static inline int64_t sa_fetch_add(sa_counter *counter) { return (*counter)++; }

/* Compare and swap: a counter at *expected becomes `next`, else *expected becomes its value.
 * Returns whether it was swapped; may fail spuriously, so callers loop. */
static inline int sa_cas(sa_counter *counter, int64_t *expected, int64_t next) {
#if SA_THREADS
    return atomic_compare_exchange_weak(counter, expected, next);
#else
    (void)expected;
    *counter = next;
    return 1;
#endif
}

#endif
