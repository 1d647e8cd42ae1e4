/* team.h: threads behind barriers. */

#include "team.h"

#include <stdlib.h>
#include <time.h>

#include "counter.h"

#if SA_THREADS

#include <pthread.h>
#include <sched.h>

typedef struct {
    sa_team_work work;
    void *shared;
    int size;
    _Atomic int arrived; /* at a barrier, counted over both rounds */
    _Atomic int cancelled;
} team;

typedef struct {
    team *team;
    int index;
    double start, end, cpu_seconds;
    pthread_t thread;
} member;

static double read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Wait until `total` arrivals have been counted; 0 if the team was cancelled. */
static int arrive(team *all, int total) {
    ++all->arrived;
    while (all->arrived < total) {
        if (all->cancelled) return 0;
        sched_yield(); /* more threads than cores must still all arrive */
    }
    return 1;
}

static void *take_part(void *argument) {
    member *self = argument;
    team *all = self->team;
    if (!arrive(all, all->size)) return NULL;
    all->work(all->shared, self->index);
    arrive(all, 2 * all->size);
    double cpu_start = read_clock(CLOCK_THREAD_CPUTIME_ID);
    self->start = read_clock(CLOCK_MONOTONIC);
    all->work(all->shared, self->index);
    self->end = read_clock(CLOCK_MONOTONIC);
    self->cpu_seconds = read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
    return NULL;
}

static sa_team_time total_time(const member *members, int num_threads) {
    double first = members[0].start, last = members[0].end, cpu = 0.0;
    for (int i = 0; i < num_threads; ++i) {
        if (members[i].start < first) first = members[i].start;
        if (members[i].end > last) last = members[i].end;
        cpu += members[i].cpu_seconds;
    }
    return (sa_team_time){last - first, cpu};
}

sa_status sa_team_run(int num_threads, sa_team_work work, void *shared, sa_team_time *time) {
    member *members = calloc((size_t)num_threads, sizeof *members);
    if (!members) return SA_NO_MEMORY;
    team all = {.work = work, .shared = shared, .size = num_threads};
    members[0].team = &all;
    int created = 1; /* the caller is the first */
    for (; created < num_threads; ++created) {
        member *m = &members[created];
        m->team = &all;
        m->index = created;
        if (pthread_create(&m->thread, NULL, take_part, m) != 0) {
            all.cancelled = 1;
            break;
        }
    }
    sa_status status = created == num_threads ? SA_OK : SA_NO_MEMORY;
    if (status == SA_OK) take_part(&members[0]);
    for (int i = 1; i < created; ++i) pthread_join(members[i].thread, NULL);
    if (status == SA_OK) *time = total_time(members, num_threads);
    free(members);
    return status;
}

#else

sa_status sa_team_run(int num_threads, sa_team_work work, void *shared, sa_team_time *time) {
    if (num_threads != 1) return SA_NO_MEMORY;
    work(shared, 0);
    clock_t start = clock();
    work(shared, 0);
    time->seconds = time->cpu_seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    return SA_OK;
}

#endif
