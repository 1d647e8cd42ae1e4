/* Which cores the pool's helpers may run on.
 *
 * Linux wakes a sleeping thread on the core of the thread that wakes it, if cores share no cache
 * that the kernel knows of, as in most virtual machines. There the two take turns until the load
 * balancer moves one, 4 ms later or more. So a helper is kept off the caller's core, and, while it
 * is being woken, off its waker's: its affinity is the caller's mask at that moment, less these two
 * cores if any other is left. Only helpers' affinity is ever set. Where there is no affinity, or it
 * may not be set, a helper runs where the system puts it. */
#ifndef SA_CORES_H
#define SA_CORES_H

#if defined(__linux__) && !defined(__ANDROID__)
#define SA_AFFINITY 1
#include <pthread.h>
#include <sched.h>

/* What the calling thread may use, and the core that it is on; -1 if not known. */
typedef struct {
    cpu_set_t mask;
    int own;
} sa_cores;

/* What a helper's affinity was made of. */
typedef struct {
    sa_cores callers;
    int waker;
} sa_placement;

#else
#define SA_AFFINITY 0
typedef int sa_cores;
typedef int sa_placement;
#endif

sa_cores sa_cores_of_caller(void);

/* Where a thread that the caller starts now is: it inherits the caller's affinity. */
sa_placement sa_placement_of_new(const sa_cores *callers);

#if SA_AFFINITY
/* Keep a thread off the caller's core; if it sleeps, and is woken by the thread that calls this,
 * off that one's core too. `at` says where it was put last. */
void sa_pin(pthread_t thread, sa_placement *at, const sa_cores *callers, int sleeps);
#endif

#endif
