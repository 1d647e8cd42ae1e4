/* The C API of selfattn: a problem in, a status out.
 *
 *     attention   out = softmax(scale * q k^T, masked) v,  lse = log(sum(exp(scale * q k^T)))
 *     scores      out = scale * q k^T, -inf where masked
 *     weights     out = softmax(scale * q k^T, masked)
 *     sum         out = weights v
 *     softmax     out = softmax(x) along one axis
 *
 * All strides are in bytes and may be zero, negative or no multiple of an element; no alignment is
 * asked for. Inputs are only read. Nothing here checks a shape: whoever fills the structs does.
 * Called by selfattn/_core.pyx; knows nothing of Python. */
#ifndef SELFATTN_H
#define SELFATTN_H

#include <stddef.h>
#include <stdint.h>

typedef enum { SA_OK = 0, SA_NO_MEMORY, SA_INTERRUPTED } sa_status;

/* One line of dtypes.def is one dtype. */
typedef enum {
#define SA_DTYPE(name, ctype) SA_##name,
#include "dtypes.def"
#undef SA_DTYPE
    SA_NUM_DTYPES
} sa_dtype;

enum { SA_MAX_BATCH_AXES = 61 }; /* NumPy's 64 less heads, rows and columns */

/* (batch..., head, row, col); for lse and per-row arrays col is unused. */
typedef struct {
    char *data;
    ptrdiff_t batch[SA_MAX_BATCH_AXES];
    ptrdiff_t head, row, col;
} sa_array;

/* Asked now and then by the calling thread: non-zero stops the call with SA_INTERRUPTED. */
typedef struct {
    int (*interrupted)(void *arg);
    void *arg;
} sa_interrupt;

typedef struct {
    sa_dtype dtype;
    int batch_axes;
    int64_t batch_shape[SA_MAX_BATCH_AXES];
    int64_t num_heads_q, num_heads_kv; /* the first a multiple of the second */
    int64_t seqlen_q, seqlen_k, head_dim, head_dim_v;
    sa_array query, key, value; /* sum: `query` holds the weights, and `key` is unused */
    sa_array out, lse;          /* lse.data may be NULL; scores and weights: out is (…, Hq, L, S) */
    double scale;               /* NaN: 1/sqrt(head_dim) */
    /* Which keys a query sees, as a range: mask.h says what these mean. */
    int64_t window_left, window_right;    /* -1: unbounded */
    int64_t query_offset;                 /* of every batch entry, unless the array is given */
    const int64_t *query_offset_of_batch; /* NULL, or one for each entry, in C order */
    const int64_t *kv_lengths;            /* NULL, or one for each entry, in C order */
    int num_threads;
    sa_interrupt interrupt;
} sa_problem;

sa_status sa_attention(const sa_problem *problem);
sa_status sa_scores(const sa_problem *problem);
sa_status sa_weights(const sa_problem *problem);
sa_status sa_sum(const sa_problem *problem);

/* x and out share the shape (rows..., n): `axes` axes before the one that is normalised. */
enum { SA_MAX_AXES = 64 };
typedef struct {
    sa_dtype dtype;
    int axes;
    int64_t shape[SA_MAX_AXES], n;
    const char *x;
    char *out;
    ptrdiff_t x_stride[SA_MAX_AXES], out_stride[SA_MAX_AXES], x_col, out_col;
    int num_threads;
    sa_interrupt interrupt;
} sa_softmax_problem;

sa_status sa_softmax(const sa_softmax_problem *problem);

/* Instruction sets, best first. Names are NULL past the end. */
const char *sa_isa_built(int i);
const char *sa_isa_supported(int i);
/* Use this one from now on; 0 if it is not built or this machine cannot run it. */
int sa_isa_force(const char *name);
const char *sa_isa_in_use(void);
const char *sa_compiler(void);

/* For tests: y[i] = f(x[i]) by the kernels' own functions, contiguous, of the given dtype. */
typedef enum { SA_EXP2, SA_EXP2_OF_NEGATIVE, SA_EXP, SA_LOG } sa_function;
void sa_apply(sa_function f, sa_dtype dtype, const void *x, void *y, int64_t n);

#endif
