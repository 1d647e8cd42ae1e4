/* Threads that start together, and the time that they take together.
 *
 *     seconds     = last end - first start
 *     cpu_seconds = sum over the threads of the time each one had a core
 *
 * so that cpu_seconds well under num_threads * seconds says that the machine was busy elsewhere.
 * Used by fma_peak.c and read_bandwidth.c, the two limits the benchmarks are held against. */
#ifndef BENCH_TEAM_H
#define BENCH_TEAM_H

/* The work of one thread: `member` counts from 0. */
typedef void (*team_work)(void *shared, int member);

struct team_time {
    double seconds, cpu_seconds;
};

/* Run work(shared, 0 .. num_threads-1) twice, the calling thread being member 0, and time the
 * second round: in the first, the system spreads the new threads over the cores.
 * Returns 0, or -1 if a thread cannot be had. */
int team_run(int num_threads, team_work work, void *shared, struct team_time *time);

#endif
