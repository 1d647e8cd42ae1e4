/* The beginning and the end of a call, and whether it must stop: see call.h. */

#include "call.h"

#include <time.h>

int64_t sa_now_ns(void) {
    struct timespec t;
#ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &t);
#else
    timespec_get(&t, TIME_UTC);
#endif
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void sa_enter(sa_stop *stop, sa_interrupt interrupt) {
    stop->interrupt = interrupt;
    stop->asked_ns = sa_now_ns();
    stop->stopped = 0;
    stop->callers = sa_fp_enter();
}

sa_status sa_leave(sa_stop *stop) {
    sa_fp_leave(stop->callers);
    return stop->stopped ? SA_INTERRUPTED : SA_OK;
}

int sa_must_stop(sa_stop *stop, int worker) {
    if (worker == 0 && stop->interrupt.interrupted) {
        int64_t since = sa_now_ns() - stop->asked_ns;
        if (since >= SA_ASK_NS || since < 0) {
            sa_fp_leave(stop->callers);
            if (stop->interrupt.interrupted(stop->interrupt.arg)) stop->stopped = 1;
            stop->callers = sa_fp_enter();
            stop->asked_ns = sa_now_ns();
        }
    }
    return stop->stopped != 0;
}
