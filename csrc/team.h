/* Threads that start together, and the time that they take together.
 *
 *     seconds     = last end - first start
 *     cpu_seconds = sum over the threads of the time each one had a core
 *
 * so that cpu_seconds well under num_threads * seconds says that the machine was busy elsewhere.
 * Used by machine.c. The pool (pool.h) is no such thing: its helpers come when they can. */
#ifndef SA_TEAM_H
#define SA_TEAM_H

#include "selfattn.h"

/* The work of one thread: `member` counts from 0. */
typedef void (*sa_team_work)(void *shared, int member);

typedef struct {
    double seconds, cpu_seconds;
} sa_team_time;

/* Run work(shared, 0 .. num_threads-1) twice, the calling thread being member 0, and time the
 * second round: in the first, the system spreads the new threads over the cores.
 * SA_NO_MEMORY if a thread cannot be had. */
sa_status sa_team_run(int num_threads, sa_team_work work, void *shared, sa_team_time *time);

#endif
