/* The arithmetic limit of this machine: multiply-adds on registers alone, on every thread at once.
 *
 *     GF = threads x steps x chains x lanes x 2 / seconds / 1e9
 *
 * The widest vectors the CPU has are picked at run time. Called by bench/machine.py. */
#include "team.h"

#define LOOP_GLUE(a, b) a##_##b
#define LOOP_NAME(a, b) LOOP_GLUE(a, b)
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

#ifdef __x86_64__
#define LOOP avx512_f32
#define TARGET __attribute__((target("avx512f")))
#define ELEMENT float
#define BYTES 64
#define CHAINS 24
#include "fma_loop.inc.h"

#define LOOP avx512_f64
#define TARGET __attribute__((target("avx512f")))
#define ELEMENT double
#define BYTES 64
#define CHAINS 24
#include "fma_loop.inc.h"

#define LOOP avx2_f32
#define TARGET __attribute__((target("avx2,fma")))
#define ELEMENT float
#define BYTES 32
#define CHAINS 12
#include "fma_loop.inc.h"

#define LOOP avx2_f64
#define TARGET __attribute__((target("avx2,fma")))
#define ELEMENT double
#define BYTES 32
#define CHAINS 12
#include "fma_loop.inc.h"
#endif

/* 16 bytes: SSE2 (a multiplication and an addition), NEON, VSX. x86 has 16 such registers and
 * needs one more for the product; the others have 32. */
#ifdef __x86_64__
#define GENERIC_CHAINS 12
#else
#define GENERIC_CHAINS 24
#endif
#define LOOP generic_f32
#define TARGET
#define ELEMENT float
#define BYTES 16
#define CHAINS GENERIC_CHAINS
#include "fma_loop.inc.h"

#define LOOP generic_f64
#define TARGET
#define ELEMENT double
#define BYTES 16
#define CHAINS GENERIC_CHAINS
#include "fma_loop.inc.h"

struct loop {
    const char *isa;
    double (*f32)(long), (*f64)(long);
    const long *flops_f32, *flops_f64; /* of one step of one thread */
};

static const struct loop generic = {
    "generic", generic_f32, generic_f64, &generic_f32_flops, &generic_f64_flops,
};

#ifdef __x86_64__
static const struct loop avx2 = {
    "avx2", avx2_f32, avx2_f64, &avx2_f32_flops, &avx2_f64_flops,
};
static const struct loop avx512 = {
    "avx512", avx512_f32, avx512_f64, &avx512_f32_flops, &avx512_f64_flops,
};
#endif

static const struct loop *widest(void) {
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        return &avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return &avx2;
    }
#endif
    return &generic;
}

struct task {
    double (*loop)(long);
    long steps;
};

static void spin(void *shared, int member) {
    const struct task *task = shared;
    (void)member;
    volatile double sink = task->loop(task->steps); /* a result nobody reads may be dropped */
    (void)sink;
}

/* The vectors in use: "avx512", "avx2" or "generic". */
const char *bench_fma_isa(void) { return widest()->isa; }

/* Floating-point operations of one step of one thread. */
long bench_fma_flops(int is_f64) { return is_f64 ? *widest()->flops_f64 : *widest()->flops_f32; }

/* Time `num_threads` threads doing `steps` steps each; -1 if the threads cannot be had. */
int bench_fma_time(int is_f64, int num_threads, long steps, struct team_time *time) {
    struct task task = {is_f64 ? widest()->f64 : widest()->f32, steps};
    return team_run(num_threads, spin, &task, time);
}
