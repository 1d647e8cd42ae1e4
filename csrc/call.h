/* A call, from sa_call_begin to sa_call_end: it computes in the default floating-point environment,
 * and can be cancelled. Every worker asks sa_call_cancelled between two pieces of work; only the
 * caller (worker 0) asks the interrupt, in its own floating-point environment, every SA_ASK_NS and
 * while it waits for the other workers. Used by every parallel loop. */
#ifndef SA_CALL_H
#define SA_CALL_H

#include "counter.h"
#include "fp_env.h"
#include "selfattn.h"

/* A call must answer Ctrl-C within 100 ms. Half of that is left for the answer itself: Python may
 * have to wait for its GIL. */
enum { SA_ASK_NS = 50 * 1000 * 1000 };

typedef struct {
    sa_interrupt interrupt;
    sa_fp_env callers;
    int64_t asked_ns;
    sa_counter cancelled;
} sa_call;

void sa_call_begin(sa_call *call, sa_interrupt interrupt);
int sa_call_cancelled(sa_call *call, int worker);
/* Returns `status`, or SA_INTERRUPTED if that is SA_OK and the call was cancelled. */
sa_status sa_call_end(sa_call *call, sa_status status);

/* Nanoseconds of a monotonic clock, where there is one. */
int64_t sa_now_ns(void);

#endif
