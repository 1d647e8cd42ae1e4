/* A call, from sa_call_begin to sa_call_end: it computes in the default floating-point environment,
 * and can be cancelled. Every worker asks sa_call_cancelled between two pieces of work; only the
 * caller (worker 0) asks the interrupt, in its own floating-point environment, every SA_ASK_NS and
 * while it waits for the other workers. Used by every parallel loop. */
#ifndef SA_CALL_H
#define SA_CALL_H

#include <stdint.h>

#include "fp_env.h"
#include "selfattn.h"

#if !defined(_WIN32) && !defined(__STDC_NO_ATOMICS__)
#define SA_THREADS 1
#include <stdatomic.h>
typedef _Atomic int64_t sa_counter;
#else
#define SA_THREADS 0
typedef int64_t sa_counter;
#endif

/* Whoever is asked may have to wait, Python for its GIL: half of the time in which a call must
 * answer Ctrl-C, 100 ms, is spent before it asks. */
enum { SA_ASK_NS = 50 * 1000 * 1000 };

typedef struct {
    sa_interrupt interrupt;
    sa_fp_env callers;
    int64_t asked_ns;
    sa_counter cancelled;
} sa_call;

void sa_call_begin(sa_call *call, sa_interrupt interrupt);
int sa_call_cancelled(sa_call *call, int worker);
sa_status sa_call_end(sa_call *call); /* SA_OK or SA_INTERRUPTED */

/* A clock that nobody sets back, where there is one. */
int64_t sa_now_ns(void);

#endif
