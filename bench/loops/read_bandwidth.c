/* The memory limit of this machine: read a buffer once, every thread its own part of it.
 *
 *     GB/s = bytes / seconds / 1e9,  the buffer being far larger than the last cache
 *
 * Vectors of 16 bytes are enough: two such loads a cycle are several times what memory delivers.
 * Called by bench/machine.py. */
#include "team.h"

#include <stddef.h>
#include <stdint.h>

typedef uint64_t pair __attribute__((vector_size(16)));

enum { LINE = 64, STEP = LINE / sizeof(pair) }; /* a cache line is a step of the loop */

struct task {
    const pair *buffer;
    size_t lines; /* of one thread */
};

static void read_mine(void *shared, int member) {
    const struct task *task = shared;
    const pair *p = task->buffer + (size_t)member * task->lines * STEP;
    const pair *end = p + task->lines * STEP;
    pair a = {0}, b = {0}, c = {0}, d = {0}; /* chains that do not wait for one another */
    for (; p < end; p += STEP) {
        a ^= p[0];
        b ^= p[1];
        c ^= p[2];
        d ^= p[3];
    }
    a ^= b ^ c ^ d;
    volatile uint64_t sink = a[0] ^ a[1]; /* a result nobody reads may be dropped */
    (void)sink;
}

/* Bytes that bench_read_time reads of a buffer of this size: whole lines for every thread. */
size_t bench_read_bytes(size_t bytes, int num_threads) {
    return bytes / LINE / (size_t)num_threads * (size_t)num_threads * LINE;
}

/* Time reading them once; -1 if the threads cannot be had. `buffer` is aligned to 16 bytes. */
int bench_read_time(const void *buffer, size_t bytes, int num_threads, struct team_time *time) {
    struct task task = {buffer, bytes / LINE / (size_t)num_threads};
    return team_run(num_threads, read_mine, &task, time);
}
