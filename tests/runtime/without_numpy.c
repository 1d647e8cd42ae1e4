/* A call of the C API from a program of its own: for emulated processors that NumPy does not run
 * on, and for ThreadSanitizer, which Python is not built for.
 *
 *     without_numpy [ISA]
 *
 * prints the instruction set in use, unless one is asked for the one that two threads found at
 * once, and a hash of the bits of attention for few rows and for many, in one thread and in three.
 * test_without_numpy.py builds it with the kernels of float32; those that are not built stand here
 * as empty tables, which the sets that this program may use do not lead to. */

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

const sa_kernels sa_portable_f64, sa_portable_f16, sa_portable_bf16;
#ifdef SA_HAVE_X86
const sa_kernels sa_avx2_f64, sa_avx2_f16, sa_avx2_bf16;
const sa_kernels sa_avx512_f32, sa_avx512_f64, sa_avx512_f16, sa_avx512_bf16;
#endif

enum { HEADS = 2, MANY = 100, KEYS = 700, DIM = 20 };

static int never(void *arg) { return arg != NULL; }

static void *ask(void *arg) { return arg ? arg : (void *)sa_isa_in_use(); }

static float *random_floats(int64_t n) {
    static uint32_t state = 1;
    float *x = malloc((size_t)n * sizeof *x);
    if (!x) exit(2);
    for (int64_t i = 0; i < n; ++i) {
        state = state * 1664525 + 1013904223;
        x[i] = (float)(state >> 8) / (1 << 23) - 1;
    }
    return x;
}

/* (heads, rows, cols), contiguous */
static sa_array array(float *x, ptrdiff_t rows, ptrdiff_t cols) {
    ptrdiff_t size = sizeof *x;
    return (sa_array){
        .data = (char *)x, .head = rows * cols * size, .row = cols * size, .col = size};
}

static uint64_t hash_of(const void *x, size_t bytes) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325;
    for (const unsigned char *p = x; bytes > 0; --bytes, ++p) hash = (hash ^ *p) * 0x100000001b3;
    return hash;
}

int main(int argc, char **argv) {
    pthread_t threads[2];
    void *found[2];
    if (argc > 1 && !sa_isa_force(argv[1])) return 3;
    for (int i = 0; i < 2; ++i)
        if (pthread_create(&threads[i], NULL, ask, NULL)) return 4;
    for (int i = 0; i < 2; ++i) pthread_join(threads[i], &found[i]);
    if (found[0] != found[1]) return 5;
    printf("%s\n", (const char *)found[0]);

    float *query = random_floats(HEADS * MANY * DIM), *out = random_floats(HEADS * MANY * DIM);
    float *key = random_floats(HEADS * KEYS * DIM), *value = random_floats(HEADS * KEYS * DIM);
    for (int rows = 3; rows <= MANY; rows += MANY - 3)
        for (int n = 1; n <= 3; n += 2) {
            sa_problem p = {.dtype = SA_f32,
                            .num_heads_q = HEADS,
                            .num_heads_kv = HEADS,
                            .seqlen_q = rows,
                            .seqlen_k = KEYS,
                            .head_dim = DIM,
                            .head_dim_v = DIM,
                            .query = array(query, rows, DIM),
                            .key = array(key, KEYS, DIM),
                            .value = array(value, KEYS, DIM),
                            .out = array(out, rows, DIM),
                            .scale = NAN,
                            .softcap = 3,
                            .window_left = -1,
                            .window_right = 20,
                            .num_threads = n,
                            .interrupt = {never, NULL}};
            if (sa_attention(&p) != SA_OK) return 6;
            size_t bytes = sizeof *out * HEADS * DIM * (size_t)rows;
            printf("%016llx\n", (unsigned long long)hash_of(out, bytes));
        }
    free(query), free(key), free(value), free(out);
    return 0;
}
