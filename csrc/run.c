/* Scratch for each worker of a call: see run.h. */

#include "run.h"

#include "memory.h"
#include "pool.h"

typedef struct {
    sa_worker work;
    void *arg;
    char *scratch;
    size_t size;
} workers;

static void work_one(void *arg, int worker) {
    const workers *w = arg;
    w->work(w->arg, worker, w->scratch + (size_t)worker * w->size);
}

sa_status sa_run(sa_call *call, int num_threads, size_t scratch_size, sa_worker work, void *arg) {
    workers w = {.work = work, .arg = arg, .size = sa_whole_lines(scratch_size)};
    _Alignas(CACHE_LINE) char small[SMALL_SCRATCH]; /* so that a small call allocates nothing */
    int is_small = num_threads <= 1 && w.size <= sizeof small;
    w.scratch = is_small ? small : sa_alloc((size_t)num_threads, w.size);
    if (!w.scratch) return SA_NO_MEMORY;
    sa_parallel(num_threads, work_one, &w, call);
    if (!is_small) sa_free(w.scratch);
    return SA_OK;
}
