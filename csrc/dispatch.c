/* The kernel sets as data: the first one in isas.def that this machine runs is used, or the one
 * that sa_isa_force was asked for. */

#include "dispatch.h"

#include <string.h>

#include "counter.h"
#include "cpu.h"

/* Rows of isas.def for machines that this is not built for are left out. */
#define SA_IF_any(row) row
#ifdef SA_HAVE_X86
#define SA_IF_x86(row) row
#else
#define SA_IF_x86(row)
#endif

/* For each set and dtype, sa_<isa>_<dtype>. A .def file cannot include another one while a macro is
 * expanded, so the rows of dtypes.def stand here once more; the assertion holds them to it. */
#define SA_EACH_DTYPE(DO, isa) DO(isa, f32) DO(isa, f64) DO(isa, f16) DO(isa, bf16)
#define SA_COUNT(isa, dtype) +1
_Static_assert(SA_EACH_DTYPE(SA_COUNT, any) == SA_NUM_DTYPES, "every row of dtypes.def is here");

#define SA_DECLARE(isa, dtype) extern const sa_kernels sa_##isa##_##dtype;
#define SA_ISA(name, machine, is_supported, flags) SA_IF_##machine(SA_EACH_DTYPE(SA_DECLARE, name))
#include "isas.def"
#undef SA_ISA

static const struct {
    const char *name;
    int (*is_supported)(void);
    const sa_kernels *of_dtype[SA_NUM_DTYPES];
} sets[] = {
#define SA_TABLE(isa, dtype) [SA_##dtype] = &sa_##isa##_##dtype,
#define SA_SET(isa, is_supported) {#isa, is_supported, {SA_EACH_DTYPE(SA_TABLE, isa)}},
#define SA_ISA(name, machine, is_supported, flags) SA_IF_##machine(SA_SET(name, is_supported))
#include "isas.def"
#undef SA_ISA
};

enum { NUM_SETS = sizeof sets / sizeof *sets, UNKNOWN = -1 };

/* The set in use, found at first use. Threads that race for it all write the same value; it is
 * atomic because a race on a plain int is undefined even so. */
static sa_counter in_use = UNKNOWN;

static int best(void) {
    int i = 0;
    while (!sets[i].is_supported()) ++i;
    return i;
}

static int64_t chosen(void) {
    int64_t i = in_use;
    if (i == UNKNOWN) in_use = i = best();
    return i;
}

const sa_kernels *sa_kernels_for(sa_dtype dtype) { return sets[chosen()].of_dtype[dtype]; }

const sa_kernels *sa_best_kernels_for(sa_dtype dtype) { return sets[best()].of_dtype[dtype]; }

const char *sa_isa_in_use(void) { return sets[chosen()].name; }

const char *sa_isa_built(int i) { return i < NUM_SETS ? sets[i].name : NULL; }

const char *sa_isa_supported(int i) {
    for (int s = 0; s < NUM_SETS; ++s)
        if (sets[s].is_supported() && i-- == 0) return sets[s].name;
    return NULL;
}

int sa_isa_force(const char *name) {
    for (int s = 0; s < NUM_SETS; ++s)
        if (strcmp(sets[s].name, name) == 0 && sets[s].is_supported()) {
            in_use = s;
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
