/* The pool of pool.h: helper threads that spin briefly, then sleep, and end when long unused.
 *
 * A helper is idle, posted, running or ended. The caller posts it; then either the helper claims
 * the post, or the caller, once it is done itself, takes the post back: a helper whose core is busy
 * elsewhere costs the caller nothing. Waking a sleeping helper is a system call, so the caller
 * wakes two, and each of them, when it begins, the next two. cores.c chooses where they wake.
 *
 * Only one loop uses the pool at a time, and it alone adds and removes helpers; another one that
 * comes meanwhile computes alone. A child after fork() has an empty pool and starts its own. */

#include "pool.h"

#if SA_THREADS

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "cores.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define relax() _mm_pause()
#else
#define relax() ((void)0)
#endif

enum {
    MAX_HELPERS = 1023,
    WAKES = 2,           /* sleeping helpers that each worker wakes */
    SPIN_NS = 50 * 1000, /* how long to spin before sleeping */
    STACK_BYTES = 512 * 1024,
};

static const int64_t UNUSED_NS = 2000000000; /* a helper that has slept so long ends */

enum { IDLE, POSTED, RUNNING, ENDED };

typedef struct loop loop;

typedef struct {
    _Atomic int state; /* it ends under lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int sleeps;          /* under lock */
    sa_placement placed; /* under lock */
    pthread_t thread;
    sa_work work;
    void *arg;
    int worker;
    loop *loop;
} helper;

/* A parallel loop, and what its caller waits for. */
struct loop {
    int helpers;
    sa_cores cores;
    _Atomic int next_to_wake;
    _Atomic int running; /* helpers that are posted or run */
    pthread_mutex_t lock;
    pthread_cond_t done;
};

static struct {
    pthread_mutex_t in_use; /* held by the loop that has the pool */
    int size;
    int forks; /* how many forks lie between the first process and this one */
    helper *helpers[MAX_HELPERS];
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER};

/* ------------------------------------------------------------------ waiting */

/* A monotonic clock, where a condition can wait by one. Returns whether the condition is made. */
#ifdef __APPLE__
enum { WAIT_CLOCK = CLOCK_REALTIME };
static int init_condition(pthread_cond_t *condition) {
    return pthread_cond_init(condition, NULL) == 0;
}
#else
enum { WAIT_CLOCK = CLOCK_MONOTONIC };
static int init_condition(pthread_cond_t *condition) {
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr)) return 0;
    int made = pthread_condattr_setclock(&attr, WAIT_CLOCK) == 0 &&
               pthread_cond_init(condition, &attr) == 0;
    pthread_condattr_destroy(&attr);
    return made;
}
#endif

static struct timespec time_after(int64_t ns) {
    struct timespec t;
    clock_gettime(WAIT_CLOCK, &t);
    ns += t.tv_nsec;
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    return t;
}

/* Spin until *what is no longer `value`, for SPIN_NS at most; whether it changed. */
static int spin_while(_Atomic int *what, int value) {
    int64_t end = sa_now_ns() + SPIN_NS;
    do
        for (int i = 0; i < 64; ++i) {
            if (atomic_load_explicit(what, memory_order_acquire) != value) return 1;
            relax();
        }
    while (sa_now_ns() < end);
    return 0;
}

/* ------------------------------------------------------------------ helpers */

static int move_state(helper *h, int from, int to) {
    return atomic_compare_exchange_strong(&h->state, &from, to);
}

/* Sleep until posted. Returns 0 if the helper has ended instead. */
static int sleep_until_posted(helper *h) {
    struct timespec until = time_after(UNUSED_NS);
    int ended = 0;
    pthread_mutex_lock(&h->lock);
    h->sleeps = 1;
    while (!ended && atomic_load_explicit(&h->state, memory_order_acquire) == IDLE)
        if (pthread_cond_timedwait(&h->wake, &h->lock, &until) == ETIMEDOUT)
            ended = move_state(h, IDLE, ENDED);
    h->sleeps = 0;
    pthread_mutex_unlock(&h->lock);
    return !ended;
}

/* Put a posted helper where it should run, and wake it. Returns whether it slept. */
static int wake(helper *h, const sa_cores *cores) {
    pthread_mutex_lock(&h->lock);
    int sleeps = h->sleeps && atomic_load_explicit(&h->state, memory_order_relaxed) == POSTED;
#if SA_AFFINITY
    /* Under the lock it cannot end. */
    if (atomic_load_explicit(&h->state, memory_order_relaxed) != ENDED)
        sa_pin(h->thread, &h->placed, cores, sleeps);
#else
    (void)cores;
#endif
    pthread_mutex_unlock(&h->lock);
    if (sleeps) pthread_cond_signal(&h->wake);
    return sleeps;
}

/* A worker's part in waking the loop's helpers. */
static void wake_some(loop *c) {
    for (int woken = 0; woken < WAKES;) {
        int i = atomic_fetch_add(&c->next_to_wake, 1);
        if (i >= c->helpers) return;
        woken += wake(pool.helpers[i], &c->cores);
    }
}

static void finish_one(loop *c) {
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
        if (!spin_while(&h->state, IDLE) && !sleep_until_posted(h)) return NULL;
        if (!move_state(h, POSTED, RUNNING)) continue;
        loop *c = h->loop;
        wake_some(c);
        h->work(h->arg, h->worker);
        atomic_store_explicit(&h->state, IDLE, memory_order_release);
        finish_one(c);
    }
}

/* Helpers block all signals: the program's handlers, Python's among them, are not theirs to run. */
static int start_thread(helper *h) {
    pthread_attr_t attr;
    sigset_t all, old;
    if (pthread_attr_init(&attr)) return 0;
    sigfillset(&all);
    int started = pthread_attr_setstacksize(&attr, STACK_BYTES) == 0 &&
                  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED) == 0 &&
                  pthread_sigmask(SIG_SETMASK, &all, &old) == 0;
    if (started) {
        started = pthread_create(&h->thread, &attr, helper_main, h) == 0;
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    pthread_attr_destroy(&attr);
    return started;
}

static helper *new_helper(const sa_cores *cores) {
    helper *h = calloc(1, sizeof *h);
    if (!h) return NULL;
    h->placed = sa_placement_of_new(cores);
    if (pthread_mutex_init(&h->lock, NULL)) goto no_lock;
    if (!init_condition(&h->wake)) goto no_condition;
    if (start_thread(h)) return h;
    pthread_cond_destroy(&h->wake);
no_condition:
    pthread_mutex_destroy(&h->lock);
no_lock:
    free(h);
    return NULL;
}

static void free_ended(helper *h) {
    pthread_mutex_lock(&h->lock); /* which it held when it ended */
    pthread_mutex_unlock(&h->lock);
    pthread_cond_destroy(&h->wake);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

/* Remove ended helpers from the pool, and start new ones until there are n. Returns how many of the
 * n there are. */
static int gather_helpers(int n, const sa_cores *cores) {
    int size = 0;
    for (int i = 0; i < pool.size; ++i) {
        helper *h = pool.helpers[i];
        if (atomic_load_explicit(&h->state, memory_order_acquire) == ENDED)
            free_ended(h);
        else
            pool.helpers[size++] = h;
    }
    for (helper *h; size < n && (h = new_helper(cores));) pool.helpers[size++] = h;
    pool.size = size;
    return size < n ? size : n;
}

/* ------------------------------------------------------------------ forks */

static void forget_helpers(void) {
    ++pool.forks;
    pool.size = 0; /* threads do not survive a fork; their few hundred bytes each are lost */
    pthread_mutex_init(&pool.in_use, NULL);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_helpers); }

/* ------------------------------------------------------------------ calls */

static void post(loop *c, helper *h, sa_work work, void *arg, int worker) {
    h->work = work;
    h->arg = arg;
    h->worker = worker;
    h->loop = c;
    if (!move_state(h, IDLE, POSTED)) finish_one(c); /* it has just ended */
}

static void take_back(loop *c, helper *h) {
    if (move_state(h, POSTED, IDLE)) finish_one(c);
}

/* Returns when the helpers are done; or, in the child of a fork() in a signal handler, at once:
 * there are none. */
static void wait_for_helpers(loop *c, sa_call *call, int forks) {
    int64_t spun_until = sa_now_ns() + SPIN_NS;
    while (atomic_load_explicit(&c->running, memory_order_acquire) > 0 && sa_now_ns() < spun_until)
        relax();
    pthread_mutex_lock(&c->lock);
    while (atomic_load_explicit(&c->running, memory_order_acquire) > 0) {
        struct timespec until = time_after(SA_ASK_NS);
        pthread_cond_timedwait(&c->done, &c->lock, &until);
        pthread_mutex_unlock(&c->lock);
        sa_call_cancelled(call, 0);
        if (pool.forks != forks) return;
        pthread_mutex_lock(&c->lock);
    }
    pthread_mutex_unlock(&c->lock);
}

static void parallel(int num_threads, sa_work work, void *arg, sa_call *call) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    if (pthread_mutex_trylock(&pool.in_use) != 0) {
        work(arg, 0);
        return;
    }
    const int forks = pool.forks;
    loop c = {.lock = PTHREAD_MUTEX_INITIALIZER, .cores = sa_cores_of_caller()};
    if (!init_condition(&c.done)) {
        pthread_mutex_unlock(&pool.in_use);
        work(arg, 0);
        return;
    }
    c.helpers =
        gather_helpers(num_threads - 1 < MAX_HELPERS ? num_threads - 1 : MAX_HELPERS, &c.cores);
    atomic_init(&c.next_to_wake, 0);
    atomic_init(&c.running, c.helpers);
    for (int i = 0; i < c.helpers; ++i) post(&c, pool.helpers[i], work, arg, i + 1);
    wake_some(&c);
    work(arg, 0);
    if (pool.forks == forks) {
        for (int i = 0; i < c.helpers; ++i) take_back(&c, pool.helpers[i]);
        wait_for_helpers(&c, call, forks);
    }
    if (pool.forks != forks) {
        call->cancelled = 1; /* nobody can tell what the helpers had done */
        return;
    }
    pthread_mutex_destroy(&c.lock);
    pthread_cond_destroy(&c.done);
    pthread_mutex_unlock(&pool.in_use);
}

#endif

void sa_parallel(int num_threads, sa_work work, void *arg, sa_call *call) {
#if SA_THREADS
    if (num_threads > 1) {
        parallel(num_threads, work, arg, call);
        return;
    }
#endif
    (void)num_threads, (void)call;
    work(arg, 0);
}
