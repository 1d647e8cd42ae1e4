/* The pool of pool.h: helpers that spin a little, then sleep; started when first needed.
 *
 * A helper's slot is idle, posted or running. The caller posts; the helper claims the post, or the
 * caller takes it back. So a helper that the machine is slow to wake (its cores are busy elsewhere)
 * costs the caller nothing. Only one call uses the pool at a time; another that comes meanwhile
 * computes alone. A child after fork() has an empty pool and starts its own. */

#include "pool.h"

#include <stdlib.h>
#include <time.h>

enum { POLL_NS = 5 * 1000 * 1000 }; /* how often the caller asks whether to go on */

static int64_t now_ns(void) {
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
    stop->asked_ns = now_ns();
    stop->stopped = 0;
    stop->callers = sa_fp_enter();
}

sa_status sa_leave(sa_stop *stop) {
    sa_fp_leave(stop->callers);
    return stop->stopped ? SA_INTERRUPTED : SA_OK;
}

int sa_must_stop(sa_stop *stop, int worker) {
    if (worker == 0 && stop->interrupt.interrupted) {
        int64_t now = now_ns();
        int64_t since = now - stop->asked_ns;
        if (since >= POLL_NS || since < 0) {
            sa_fp_leave(stop->callers);
            if (stop->interrupt.interrupted(stop->interrupt.arg)) stop->stopped = 1;
            stop->callers = sa_fp_enter();
            stop->asked_ns = now;
        }
    }
    return stop->stopped != 0;
}

#if SA_THREADS

#include <pthread.h>
#include <signal.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define relax() _mm_pause()
#else
#define relax() ((void)0)
#endif

enum {
    MAX_HELPERS = 1023,
    SPIN_NS = 50 * 1000, /* how long to spin before sleeping */
    STACK_BYTES = 512 * 1024,
};

enum { IDLE, POSTED, RUNNING };

typedef struct {
    _Atomic int state;
    int sleeping; /* under lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    sa_work work;
    void *arg;
    int worker;
    struct call *call;
} helper;

/* What the caller of a parallel loop waits for. */
typedef struct call {
    _Atomic int running;
    pthread_mutex_t lock;
    pthread_cond_t done;
} call;

static struct {
    pthread_mutex_t in_use; /* held by the call that has the pool */
    int size;
    int forks; /* that this process has come through */
    helper *helpers[MAX_HELPERS];
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER};

/* Spin until *what is no longer `value`, for SPIN_NS at most; whether it changed. */
static int spin_while(_Atomic int *what, int value) {
    int64_t end = now_ns() + SPIN_NS;
    do
        for (int i = 0; i < 64; ++i) {
            if (atomic_load_explicit(what, memory_order_acquire) != value) return 1;
            relax();
        }
    while (now_ns() < end);
    return 0;
}

static void finish_one(call *c) {
    /* Under the lock, for the caller frees `c` as soon as it sees 0 there. */
    pthread_mutex_lock(&c->lock);
    if (atomic_fetch_sub_explicit(&c->running, 1, memory_order_acq_rel) == 1)
        pthread_cond_signal(&c->done);
    pthread_mutex_unlock(&c->lock);
}

static void *helper_main(void *arg) {
    helper *h = arg;
    sa_fp_enter();
    for (;;) {
        if (!spin_while(&h->state, IDLE)) {
            pthread_mutex_lock(&h->lock);
            h->sleeping = 1;
            while (atomic_load_explicit(&h->state, memory_order_acquire) == IDLE)
                pthread_cond_wait(&h->wake, &h->lock);
            h->sleeping = 0;
            pthread_mutex_unlock(&h->lock);
        }
        int posted = POSTED;
        if (!atomic_compare_exchange_strong(&h->state, &posted, RUNNING)) continue;
        h->work(h->arg, h->worker);
        call *c = h->call;
        atomic_store_explicit(&h->state, IDLE, memory_order_release);
        finish_one(c);
    }
    return NULL;
}

static void post(helper *h, sa_work work, void *arg, int worker, call *c) {
    h->work = work;
    h->arg = arg;
    h->worker = worker;
    h->call = c;
    pthread_mutex_lock(&h->lock);
    atomic_store_explicit(&h->state, POSTED, memory_order_release);
    if (h->sleeping) pthread_cond_signal(&h->wake);
    pthread_mutex_unlock(&h->lock);
}

/* A helper must not run the program's signal handlers: Python's belong to its main thread. */
static int start_helper(void) {
    helper *h = calloc(1, sizeof *h);
    if (!h) return 0;
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->wake, NULL);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    int failed = pthread_create(&thread, &attr, helper_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (failed) {
        free(h);
        return 0;
    }
    pool.helpers[pool.size++] = h;
    return 1;
}

static void forget_helpers(void) {
    ++pool.forks;
    pool.size = 0; /* they did not survive the fork; their memory, a few hundred bytes, is lost */
    pthread_mutex_init(&pool.in_use, NULL);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

/* A clock that nobody sets back, where a condition can wait by one. */
#ifdef __APPLE__
enum { WAIT_CLOCK = CLOCK_REALTIME };
static void init_condition(pthread_cond_t *condition) { pthread_cond_init(condition, NULL); }
#else
enum { WAIT_CLOCK = CLOCK_MONOTONIC };
static void init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, WAIT_CLOCK);
    pthread_cond_init(condition, &attr);
    pthread_condattr_destroy(&attr);
}
#endif

/* The helpers' work is done, or taken back where it was not begun; or this is the child of a fork()
 * in a signal handler, and they are no more. */
static void wait_for_helpers(int helpers, call *c, sa_stop *stop, int forks) {
    for (int i = 0; i < helpers; ++i) {
        int posted = POSTED;
        if (atomic_compare_exchange_strong(&pool.helpers[i]->state, &posted, IDLE)) finish_one(c);
    }
    int64_t spun_until = now_ns() + SPIN_NS;
    while (atomic_load_explicit(&c->running, memory_order_acquire) > 0 && now_ns() < spun_until)
        relax();
    pthread_mutex_lock(&c->lock);
    while (atomic_load_explicit(&c->running, memory_order_acquire) > 0) {
        struct timespec until;
        clock_gettime(WAIT_CLOCK, &until);
        until.tv_nsec += POLL_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&c->done, &c->lock, &until);
        pthread_mutex_unlock(&c->lock);
        sa_must_stop(stop, 0);
        if (pool.forks != forks) return;
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

static void parallel(int num_threads, sa_work work, void *arg, sa_stop *stop) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    if (pthread_mutex_trylock(&pool.in_use) != 0) {
        work(arg, 0);
        return;
    }
    int helpers = num_threads - 1 < MAX_HELPERS ? num_threads - 1 : MAX_HELPERS;
    while (pool.size < helpers && start_helper()) continue;
    if (pool.size < helpers) helpers = pool.size;

    const int forks = pool.forks;
    call c = {.lock = PTHREAD_MUTEX_INITIALIZER};
    init_condition(&c.done);
    atomic_init(&c.running, helpers);
    for (int i = 0; i < helpers; ++i) post(pool.helpers[i], work, arg, i + 1, &c);
    work(arg, 0);
    if (pool.forks == forks) wait_for_helpers(helpers, &c, stop, forks);
    if (pool.forks != forks) {
        stop->stopped = 1; /* nobody can tell what the helpers had done */
        return;
    }
    pthread_mutex_destroy(&c.lock);
    pthread_cond_destroy(&c.done);
    pthread_mutex_unlock(&pool.in_use);
}

#endif

void sa_parallel(int num_threads, sa_work work, void *arg, sa_stop *stop) {
#if SA_THREADS
    if (num_threads > 1) {
        parallel(num_threads, work, arg, stop);
        return;
    }
#endif
    (void)num_threads, (void)stop;
    work(arg, 0);
}
