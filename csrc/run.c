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
    w->work(w->arg, worker, w->size ? w->scratch + (size_t)worker * w->size : NULL);
}

#if defined(__GNUC__)
#define SA_NOINLINE __attribute__((noinline))
#else
#define SA_NOINLINE
#endif

/* With scratch on the stack, so that a small call allocates nothing. A function of its own: others
 * have no stack to spare for it (threads may have 64 KiB). */
static SA_NOINLINE void run_small(sa_worker work, void *arg) {
    _Alignas(CACHE_LINE) char scratch[SMALL_SCRATCH];
    work(arg, 0, scratch);
}

sa_status sa_run(sa_call *call, int num_threads, size_t scratch_size, sa_worker work, void *arg) {
    workers w = {.work = work, .arg = arg, .size = sa_whole_lines(scratch_size)};
    if (num_threads <= 1 && w.size <= SMALL_SCRATCH) {
        run_small(work, arg);
        return SA_OK;
    }
    w.scratch = w.size ? sa_alloc((size_t)num_threads, w.size) : NULL;
    if (w.size && !w.scratch) return SA_NO_MEMORY;
    sa_parallel(num_threads, work_one, &w, call);
    sa_free(w.scratch);
    return SA_OK;
}
