/* The beginning and the end of a call, and whether it is cancelled: see call.h. */

#include "call.h"

#include <time.h>

static sa_counter ask_ns = SA_ASK_NS;

int64_t sa_ask_every(int64_t ns) {
    int64_t before = ask_ns;
    ask_ns = ns;
    return before;
}

int64_t sa_now_ns(void) {
    struct timespec t;
#ifdef CLOCK_MONOTONIC
    clock_gettime(CLOCK_MONOTONIC, &t);
#else
    timespec_get(&t, TIME_UTC);
#endif
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void sa_call_begin(sa_call *call, sa_interrupt interrupt) {
    call->interrupt = interrupt;
    call->asked_ns = sa_now_ns();
    call->cancelled = 0;
    call->callers = sa_fp_enter();
}

sa_status sa_call_end(sa_call *call, sa_status status) {
    sa_fp_leave(call->callers);
    return status == SA_OK && call->cancelled ? SA_INTERRUPTED : status;
}

int sa_call_cancelled(sa_call *call, int worker) {
    if (worker == 0 && call->interrupt.interrupted) {
        int64_t since = sa_now_ns() - call->asked_ns;
        if (since >= ask_ns || since < 0) {
            sa_fp_leave(call->callers);
            if (call->interrupt.interrupted(call->interrupt.arg)) call->cancelled = 1;
            call->callers = sa_fp_enter();
            call->asked_ns = sa_now_ns();
        }
    }
    return call->cancelled != 0;
}
