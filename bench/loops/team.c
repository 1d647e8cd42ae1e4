/* team.h: threads behind start barriers. Called by fma_peak.c and read_bandwidth.c. */
#define _POSIX_C_SOURCE 200809L
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

struct team {
    team_work work;
    void *shared;
    int size;
    atomic_int arrived; /* at a barrier, counted over both rounds */
    atomic_bool cancelled;
};

struct member {
    struct team *team;
    int index;
    double start, end, cpu_seconds;
    pthread_t thread;
};

static double read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Wait until `total` arrivals have been counted. Returns 0, or -1 if the team was cancelled. */
static int arrive(struct team *team, int total) {
    atomic_fetch_add(&team->arrived, 1);
    while (atomic_load(&team->arrived) < total) {
        if (atomic_load(&team->cancelled)) {
            return -1;
        }
        sched_yield(); /* more threads than cores must still all arrive */
    }
    return 0;
}

static void *take_part(void *argument) {
    struct member *self = argument;
    struct team *team = self->team;
    if (arrive(team, team->size) != 0) {
        return NULL;
    }
    team->work(team->shared, self->index);
    arrive(team, 2 * team->size);
    double cpu_start = read_clock(CLOCK_THREAD_CPUTIME_ID);
    self->start = read_clock(CLOCK_MONOTONIC);
    team->work(team->shared, self->index);
    self->end = read_clock(CLOCK_MONOTONIC);
    self->cpu_seconds = read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu_start;
    return NULL;
}

static struct team_time total_time(const struct member *members, int num_threads) {
    double first = members[0].start, last = members[0].end, cpu = 0.0;
    for (int i = 0; i < num_threads; i++) {
        first = members[i].start < first ? members[i].start : first;
        last = members[i].end > last ? members[i].end : last;
        cpu += members[i].cpu_seconds;
    }
    return (struct team_time){last - first, cpu};
}

int team_run(int num_threads, team_work work, void *shared, struct team_time *time) {
    struct member *members = num_threads > 0 ? calloc((size_t)num_threads, sizeof *members) : NULL;
    if (!members) {
        return -1;
    }
    struct team team = {.work = work, .shared = shared, .size = num_threads};
    members[0].team = &team;
    int created = 1; /* the caller is the first */
    for (; created < num_threads; created++) {
        struct member *m = &members[created];
        m->team = &team;
        m->index = created;
        if (pthread_create(&m->thread, NULL, take_part, m) != 0) {
            atomic_store(&team.cancelled, 1);
            break;
        }
    }
    int status = created == num_threads ? 0 : -1;
    if (status == 0) {
        take_part(&members[0]);
    }
    for (int i = 1; i < created; i++) {
        pthread_join(members[i].thread, NULL);
    }
    if (status == 0) {
        *time = total_time(members, num_threads);
    }
    free(members);
    return status;
}
