/* The C API of selfattn: a problem in, a status out.
 *
 *     scores      out = cap(scale * q k^T) - slope * distance + mask + bias,  -inf where masked
 *     weights     out = softmax(scores), a sink in its denominator
 *     attention   out = softmax(scores) v,  lse = log(sum(exp(scores)))
 *     sum         out = weights v
 *     softmax     out = softmax(x) along one axis
 *     merge       out, lse of attention over disjoint sets of keys, from those of each; gradients
 *     project     out = x w^T + bias, and the gradients of x, w and bias
 *     rope        out = x, its pairs of elements rotated by the angles of the row
 *     backward    the gradients of attention's inputs, from that of its out
 *
 * All strides are in bytes and may be zero, negative or no multiple of an element; no alignment is
 * asked for. Inputs are only read. Nothing here checks a shape: the caller that fills the structs
 * does. Called by selfattn/_core.pyx; knows nothing of Python. */
#ifndef SELFATTN_H
#define SELFATTN_H

#include <stddef.h>
#include <stdint.h>

#include "strict_math.h"

typedef enum { SA_OK = 0, SA_NO_MEMORY, SA_INTERRUPTED } sa_status;

/* The rows of dtypes.def. */
typedef enum {
#define SA_DTYPE(name, element, real) SA_##name,
#include "dtypes.def"
#undef SA_DTYPE
    SA_NUM_DTYPES
} sa_dtype;

enum { SA_MAX_BATCH_AXES = 61 }; /* NumPy's 64 less heads, rows and columns */

/* (batch..., head, row, col); what an array has no axis for does not move it: a stride of 0. */
typedef struct {
    char *data;
    ptrdiff_t batch[SA_MAX_BATCH_AXES];
    ptrdiff_t head, row, col;
} sa_array;

/* What a mask holds: whether to attend (a byte that is not 0), or what to add to the score, as
 * elements of the problem's dtype or as floats. */
typedef enum { SA_MASK_NONE, SA_MASK_BOOL, SA_MASK_ELEM, SA_MASK_F32 } sa_mask_kind;

/* Asked now and then by the calling thread: non-zero stops the call with SA_INTERRUPTED. */
typedef struct {
    int (*interrupted)(void *arg);
    void *arg;
} sa_interrupt;

/* A state is the result of the keys so far, not yet divided: of each row the maximum, the sum, a
 * factor, and the factor times the values' sums (kernels/resume.inc.h). That of no keys is -inf,
 * 0, 1 and zeros. */
enum { SA_STATE_HEAD = 3 };
typedef enum {
    SA_STATE_NONE,
    SA_STATE_UPDATE, /* it is taken in, and given back with this piece's keys; `out` is unused */
    SA_STATE_RESULT, /* it is taken in, and `out` and `lse` are of its keys and this piece's */
} sa_state_use;

/* Keys and values in pages: row j of batch entry b is row j % size of page
 * table[b * per_entry + j / size] of a pool. The arrays `key` and `value` are the pool's first
 * page; the others lie so many bytes further on each. Where scales are, theirs too. */
typedef struct {
    const int64_t *table; /* NULL: keys and values lie in their arrays */
    int64_t per_entry, size;
    ptrdiff_t key, value, key_scale, value_scale;
} sa_pages;

typedef struct {
    sa_dtype dtype;
    int batch_axes;
    int64_t batch_shape[SA_MAX_BATCH_AXES];
    int64_t num_heads_q, num_heads_kv; /* the first a multiple of the second */
    int64_t seqlen_q, seqlen_k, head_dim, head_dim_v;
    sa_array query, key, value; /* sum: `query` holds the weights, and `key` is unused */
    sa_array out;               /* scores and weights: (…, Hq, L, S) */
    /* Attention alone, forward: pages; and (…, Hkv, S) floats, where key and value hold int8, whose
     * rows are multiplied by them. */
    sa_pages pages;
    sa_array key_scale, value_scale;
    sa_array lse;     /* of the real type; data may be NULL */
    double scale;     /* NaN: 1/sqrt(head_dim) */
    double softcap;   /* 0: none */
    double dropout_p; /* 0: none; what is dropped: kernels/dropout.inc.h */
    uint64_t dropout_seed;
    /* Arrays whose data is NULL where the option is not given. */
    sa_array mask, bias;               /* (..., Hq, L, S) */
    sa_mask_kind mask_kind, bias_kind; /* the bias is no bools */
    sa_array alibi_slopes, sinks;      /* (..., Hq) of the real type */
    sa_array query_segments;           /* (..., L) of integers of segment_size bytes */
    sa_array key_segments;             /* (..., S) */
    int segment_size;                  /* 1, 2, 4 or 8 */
    /* Which keys a query sees, as a range: visibility.h says what these mean. Arrays of one number
     * for each batch entry, in C order, are NULL where they are not given. */
    int64_t window_left, window_right; /* -1: unbounded */
    int64_t query_offset;              /* of every batch entry, unless the array is given */
    const int64_t *query_offset_of_batch;
    const int64_t *query_lengths, *kv_starts, *kv_lengths;
    /* Packed sequences: batch entry b is rows cu_seqlens[b] to cu_seqlens[b + 1] of the arrays,
     * whose batch strides are 0; or as many rows from seq_starts[b] on, where that is given.
     * seqlen_q and seqlen_k are those of the longest. */
    const int64_t *cu_seqlens_q, *cu_seqlens_k;
    const int64_t *seq_starts_q, *seq_starts_k;
    /* Keys that come in pieces: each piece is a problem, and a state goes from one to the next. */
    sa_array state; /* (..., Hq, L, SA_STATE_HEAD + Ev) of reals, contiguous columns */
    sa_state_use state_use;
    int state_is_natural; /* what sa_in_natural_units said when the state was given back */
    /* What comes before query 0 and key 0 in the whole problem: dropout counts from there. */
    int64_t first_query, first_key;
    int num_threads;
    sa_interrupt interrupt;
} sa_problem;

sa_status sa_attention(const sa_problem *problem);
/* Whether the maxima of a state that the problem gives back are in natural units (kernels.h). */
int sa_in_natural_units(const sa_problem *problem);
/* Whether attention uses one thread, however many it may use. */
int sa_is_serial(const sa_problem *problem);
sa_status sa_scores(const sa_problem *problem);
sa_status sa_weights(const sa_problem *problem);
sa_status sa_sum(const sa_problem *problem);

/* The gradients of a problem's inputs: those of query, key, value and sinks are written, those of
 * mask and bias are added to what the arrays hold, zeros as a rule. An axis of stride 0 is one that
 * the input is broadcast over: the gradient is summed over it. NULL data: not asked for. The
 * problem's out and lse are those that attention gave.
 *
 * Elements are of the problem's dtype, except where several tiles add to one: mask, bias, sinks,
 * and query if `query_is_real`, as it must be where it is broadcast, hold the real type of that
 * dtype.
 */
typedef struct {
    sa_array out, lse; /* the gradients that are given; that of lse, of the real type, or no data */
    sa_array query, key, value, mask, bias;
    int query_is_real;
    sa_array sinks;
    /* Pieces of a larger problem, whose sums go on from one call to the next; all gradients are of
     * the real type. The query's is a sum over keys, which come in pieces that end at multiples of
     * SA_SPLIT_N; those of key and value are sums over rows, in pieces of SA_GRADIENT_TILE_M. */
    int query_goes_on;    /* the array holds the sum so far, which was left unscaled */
    int query_is_partial; /* leave it unscaled: more keys come */
    int keys_go_on;       /* the arrays hold the sums so far */
    /* The sinks' is a sum over batch entries and, of each, over rows. Where it goes on, `sinks`
     * holds doubles, the sums so far, to which the rows of this one batch entry are added. */
    int sinks_go_on;
    int64_t sinks_entry;
    /* The states (SA_STATE_HEAD) of the rows over all keys, where these are not all of them: rows
     * whose lse is large take maximum and sum from there, and do not look for them again. */
    sa_array state;
} sa_gradients;

sa_status sa_attention_backward(const sa_problem *problem, const sa_gradients *gradients);

/* What is computed row by row, on arrays that share the shape (rows..., n): lse lacks the n. */
enum { SA_MAX_AXES = 64 };
typedef struct {
    char *data;
    ptrdiff_t stride[SA_MAX_AXES], col;
} sa_rows;

/* Finished results (out, lse) of attention over keys of their own, which are merged: all of one
 * shape and one layout. Where the first row of each is, and how far apart rows are. */
typedef struct {
    int64_t count;
    char **out, **lse;
    sa_rows out_rows, lse_rows; /* without data */
} sa_merge_states;

typedef struct {
    sa_dtype dtype;
    int axes; /* before the n elements of a row */
    int64_t shape[SA_MAX_AXES], n;
    /* softmax: out from a. rope: out from a, cos and sin, whose columns are pairs. merge: out and
     * lse from the states; backward: the gradients of the states from those that out and lse, which
     * may have no data, hold. */
    sa_rows a, out, lse, cos, sin;
    sa_merge_states states, grads;
    /* rope: pair i is elements i * step + first, + second of a and out. Bytes from the cosine and
     * the sine of its first element to those of its second: 0 where a pair has one of each. */
    int64_t pairs, step, first, second;
    ptrdiff_t cos_second, sin_second;
    int num_threads;
    sa_interrupt interrupt;
} sa_row_problem;

sa_status sa_softmax(const sa_row_problem *problem);
sa_status sa_merge(const sa_row_problem *problem);
sa_status sa_merge_backward(const sa_row_problem *problem);
sa_status sa_rope(const sa_row_problem *problem);

/* Rows of x, projected by a matrix of (n_out, n_in). */
typedef struct {
    sa_dtype dtype;
    int axes; /* before the columns of x and out */
    int64_t shape[SA_MAX_AXES], n_in, n_out;
    sa_rows x, out;
    char *weight, *bias; /* bias may be NULL */
    ptrdiff_t weight_row, weight_col, bias_step;
    int num_threads;
    sa_interrupt interrupt;
} sa_projection;

/* The gradients of x, weight and bias, written where their data is not NULL, from that of out,
 * which the projection's `out` holds. */
typedef struct {
    sa_rows x;
    char *weight, *bias;
    ptrdiff_t weight_row, weight_col, bias_step;
} sa_projection_gradients;

sa_status sa_project(const sa_projection *projection);
sa_status sa_project_backward(const sa_projection *projection,
                              const sa_projection_gradients *gradients);

/* Cores that the calling thread may use now; 0 if the system does not tell. */
int sa_num_cores(void);

/* Instruction sets, best first. Names are NULL past the end. */
const char *sa_isa_built(int i);
const char *sa_isa_supported(int i);
/* Use this one from now on; 0 if it is not built or this machine cannot run it. */
int sa_isa_force(const char *name);
const char *sa_isa_in_use(void);
const char *sa_compiler(void);

/* For tests: have calls ask their interrupt every so many nanoseconds; 0: whenever they can.
 * Returns what held before. */
int64_t sa_ask_every(int64_t ns);

/* For tests: y[i] = f(x[i]) by the functions that the kernels call, contiguous, of the given dtype.
 * SA_EXP2_SCALED is 2^(unit x), and `unit` is of no concern to the others. x <= 0 for it and for
 * SA_EXP_OF_NEGATIVE. */
typedef enum { SA_EXP2_SCALED, SA_EXP_OF_NEGATIVE, SA_EXP, SA_LOG, SA_TANH } sa_function;
void sa_apply(sa_function f, sa_dtype dtype, double unit, const void *x, void *y, int64_t n);

#endif
