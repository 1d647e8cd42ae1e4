/* The kernel sets, best first, as data; the first that this machine runs is used, or the one that
 * sa_isa_force was asked for. A new set is a row here, and one in setup.py. */

#include "dispatch.h"

#include <string.h>

#include "cpu.h"

#define DECLARE(isa) extern const sa_kernels sa_##isa##_f32, sa_##isa##_f64;
#define TABLES(isa) {&sa_##isa##_f32, &sa_##isa##_f64}

DECLARE(portable)
#ifdef SA_HAVE_X86
DECLARE(avx512)
DECLARE(avx2)
#endif

static int always(void) { return 1; }

static const struct {
    const char *name;
    int (*supported)(void);
    const sa_kernels *of_dtype[SA_NUM_DTYPES];
} sets[] = {
#ifdef SA_HAVE_X86
    {"avx512", sa_cpu_has_avx512, TABLES(avx512)},
    {"avx2", sa_cpu_has_avx2_fma, TABLES(avx2)},
#endif
    {"portable", always, TABLES(portable)},
};

enum { NUM_SETS = sizeof sets / sizeof *sets, UNKNOWN = -1 };

/* Found out at first use. Threads that race here all write the same value: where there are C11
 * atomics, it is one, since a race on a plain int is undefined however it ends. */
#if !defined(_WIN32) && !defined(__STDC_NO_ATOMICS__)
#include <stdatomic.h>
static _Atomic int in_use = UNKNOWN;
static int known(void) { return atomic_load_explicit(&in_use, memory_order_relaxed); }
static void use(int i) { atomic_store_explicit(&in_use, i, memory_order_relaxed); }
#else
static int in_use = UNKNOWN;
static int known(void) { return in_use; }
static void use(int i) { in_use = i; }
#endif

static int best(void) {
    int i = 0;
    while (!sets[i].supported()) ++i;
    return i;
}

static int chosen(void) {
    int i = known();
    if (i == UNKNOWN) use(i = best());
    return i;
}

const sa_kernels *sa_kernels_for(sa_dtype dtype) { return sets[chosen()].of_dtype[dtype]; }

const char *sa_isa_in_use(void) { return sets[chosen()].name; }

const char *sa_isa_built(int i) { return i < NUM_SETS ? sets[i].name : NULL; }

const char *sa_isa_supported(int i) {
    for (int s = 0; s < NUM_SETS; ++s)
        if (sets[s].supported() && i-- == 0) return sets[s].name;
    return NULL;
}

int sa_isa_force(const char *name) {
    for (int s = 0; s < NUM_SETS; ++s)
        if (strcmp(sets[s].name, name) == 0 && sets[s].supported()) {
            use(s);
            return 1;
        }
    return 0;
}

const char *sa_compiler(void) {
#if defined(__clang__)
    return __VERSION__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}
