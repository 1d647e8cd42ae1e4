/* What this machine could do at most, measured: the limits that benchmarks hold calls against.
 *
 *     multiply-adds    GF   = steps * flops of a step * threads / seconds / 1e9
 *     reading memory   GB/s = bytes / seconds / 1e9,  of a buffer far larger than the last cache
 *
 * Called by _core.pyx for `selfattn bench` and bench/; the loops of attention never do. */
#ifndef SA_MACHINE_H
#define SA_MACHINE_H

#include "selfattn.h"
#include "team.h"

/* Floating-point operations of one step of one thread, by the best set that this machine runs. */
int64_t sa_peak_flops(sa_dtype dtype);

/* Time `num_threads` threads that do `steps` steps each. SA_NO_MEMORY if they cannot be had. */
sa_status sa_time_peak(sa_dtype dtype, int num_threads, int64_t steps, sa_team_time *time);

/* Bytes that sa_time_read reads of a buffer of this size: whole lines for every thread. */
int64_t sa_read_bytes(int64_t bytes, int num_threads);

/* Time reading them once, every thread its own part. `buffer` is aligned to 16 bytes. */
sa_status sa_time_read(const void *buffer, int64_t bytes, int num_threads, sa_team_time *time);

#endif
