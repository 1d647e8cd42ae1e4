/* The affinity of the pool's helpers: see cores.h. Called by pool.c; sa_num_cores by _core.pyx. */

#include "cores.h"

#include "selfattn.h"

#if SA_AFFINITY

sa_cores sa_cores_of_caller(void) {
    sa_cores cores = {.own = -1};
    /* It fails where the system has more cores than the set has room for. */
    if (sched_getaffinity(0, sizeof cores.mask, &cores.mask) == 0) cores.own = sched_getcpu();
    return cores;
}

sa_placement sa_placement_of_new(const sa_cores *callers) {
    return (sa_placement){.callers = {callers->mask, -1}, .waker = -1};
}

static void remove_core(cpu_set_t *mask, int core) {
    if (core >= 0 && CPU_ISSET(core, mask) && CPU_COUNT(mask) > 1) CPU_CLR(core, mask);
}

void sa_pin(pthread_t thread, sa_placement *at, const sa_cores *callers, int sleeps) {
    if (callers->own < 0) return;
    sa_placement to = {*callers, sleeps ? sched_getcpu() : at->waker};
    int stays = CPU_EQUAL(&at->callers.mask, &to.callers.mask) &&
                at->callers.own == to.callers.own && at->waker == to.waker;
    if (stays) return;
    cpu_set_t mask = callers->mask;
    remove_core(&mask, to.callers.own);
    remove_core(&mask, to.waker);
    if (pthread_setaffinity_np(thread, sizeof mask, &mask) == 0) *at = to;
}

int sa_num_cores(void) {
    cpu_set_t mask;
    return sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : 0;
}

#else

sa_cores sa_cores_of_caller(void) { return 0; }

sa_placement sa_placement_of_new(const sa_cores *callers) { return *callers; }

int sa_num_cores(void) { return 0; }

#endif
