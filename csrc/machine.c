/* The limits of machine.h: multiply-adds by a kernel of the best set, and a loop that reads. */

#include "machine.h"

#include "dispatch.h"

typedef struct {
    double (*peak)(int64_t steps);
    int64_t steps;
} peak_task;

static void compute(void *shared, int member) {
    const peak_task *task = shared;
    (void)member;
    volatile double sink = task->peak(task->steps); /* a result nobody reads may be dropped */
    (void)sink;
}

int64_t sa_peak_flops(sa_dtype dtype) { return sa_best_kernels_for(dtype)->peak_flops; }

sa_status sa_time_peak(sa_dtype dtype, int num_threads, int64_t steps, sa_team_time *time) {
    peak_task task = {sa_best_kernels_for(dtype)->peak, steps};
    return sa_team_run(num_threads, compute, &task, time);
}

/* A cache line is a step of the loop. Loads of 8 bytes, which compilers join to vectors, are
 * several times as fast as memory delivers. */
enum { LINE = 64, WORDS = LINE / 8 };

typedef struct {
    const uint64_t *buffer;
    int64_t lines; /* of one thread */
} read_task;

static void read_mine(void *shared, int member) {
    const read_task *task = shared;
    const uint64_t *p = task->buffer + member * task->lines * WORDS;
    const uint64_t *end = p + task->lines * WORDS;
    uint64_t seen[WORDS] = {0}; /* chains that do not wait for one another */
    for (; p < end; p += WORDS)
        for (int i = 0; i < WORDS; ++i) seen[i] ^= p[i];
    for (int i = 1; i < WORDS; ++i) seen[0] ^= seen[i];
    volatile uint64_t sink = seen[0];
    (void)sink;
}

int64_t sa_read_bytes(int64_t bytes, int num_threads) {
    return bytes / LINE / num_threads * num_threads * LINE;
}

sa_status sa_time_read(const void *buffer, int64_t bytes, int num_threads, sa_team_time *time) {
    read_task task = {buffer, bytes / LINE / num_threads};
    return sa_team_run(num_threads, read_mine, &task, time);
}
