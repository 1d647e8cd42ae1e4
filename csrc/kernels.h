/* The border between the loops and the arithmetic: what a kernel set offers, as data.
 *
 * The loops (forward.c, backward.c, scores.c, rows.c, project.c) cut a problem into tiles and own
 * memory and threads; a kernel set computes one tile. A tile is query rows that share a key/value
 * head. */
#ifndef SA_KERNELS_H
#define SA_KERNELS_H

#include "selfattn.h"
#include "tuning.h"

/* Threads' stacks may be small, 64 KiB, and tiles are large: a function that needs much stack and
 * is called now and then takes none of its caller's. */
#if defined(__GNUC__)
#define SA_APART __attribute__((noinline))
#else
#define SA_APART
#endif

enum {
    SA_BLOCK_N = 128,       /* keys of one block; blocks start at multiples of it */
    SA_SPLIT_N = 512,       /* keys of one split: partial results are merged at multiples of it */
    SA_CHUNK_N = 32,        /* a block's values are summed over its keys in chunks of this length */
    SA_CHUNK_M = 32,        /* what keys' gradients get from a tile, over its rows, likewise */
    SA_CHUNKS_OF_PART = 8,  /* of a sum over head_dim: see sa_chunk_e */
    SA_GRADIENT_CHUNK = 64, /* the other sums of the backward pass; its scores are the forward's */
    SA_SOFTMAX_PART = 1 << 16, /* elements */
    /* Rows of a tile of the backward pass, which all sets cut alike: what keys' gradients get from
     * a tile is summed over its rows first. */
    SA_GRADIENT_TILE_M = 96,
    SA_MAX_TILE_M = SA_GRADIENT_TILE_M,
};

/* A score is summed over head_dim (in the backward pass, dP over head_dim_v) in chunks of this
 * length, and the sums of SA_CHUNKS_OF_PART chunks make a part; chunks and parts are each summed
 * from 0. Shorter chunks have a smaller error and cost more. */
static inline int sa_chunk_e(int64_t head_dim) { return head_dim < 32 ? 8 : 16; }
static inline int sa_part_e(int64_t head_dim) { return SA_CHUNKS_OF_PART * sa_chunk_e(head_dim); }

/* A tile's scores as the softmax reads them are either plain or in natural units:
 *
 *     score = q k                                            plain
 *     score = cap(scale * q k) - slope * distance + mask     natural, where something is added
 *
 * The user's scale is q_factor * scale. q_factor is its sign, or 0, times a power of two of at most
 * 1/2 or 1; q is multiplied by it when packed, which rounds nothing. The softmax computes weights
 * 2^(scale_log2 * (score - max)), and lse = scale_ln * max + log(sum). */
typedef struct {
    double q_factor, scale; /* scale > 0 */
    double scale_log2, scale_ln;
    double state_scale; /* of the maxima of a state that comes in: to this call's units */
    double softcap;     /* 0: none */
    int in_natural_units;
    /* A weight whose random number is below the threshold is dropped (kernels/dropout.inc.h); the
     * others are multiplied by dropout_scale. */
    int has_dropout;
    uint32_t dropout_threshold;
    double dropout_scale;
} sa_scoring;

/* A worker's memory of a scan: rows [begin, end) of x are all finite. */
typedef struct {
    const char *x;
    int64_t begin, end;
} sa_finite;

/* Prefetch targets while a tile is computed: the queries of the worker's next tile; the tile's
 * share of the next head's K and V; or, without a next head, the tile's own next block, if K and V
 * exceed L2 or no tile of the worker has read them yet. */
typedef struct {
    const struct sa_tile *next; /* or NULL */
    int64_t keys;               /* of the next head, from k and v on; 0: none */
    const char *k, *v;
    ptrdiff_t k_row, v_row;
    int is_first; /* the worker's first tile with these keys */
} sa_prefetch;

/* Rows of keys or values, the first at `at`: elements of the caller's array; or, once they are
 * staged (kv.h), contiguous reals. They may lie in pages, and may be int8 with a scale for each
 * row; kernels read such rows staged alone, a head or a block of them. */
typedef struct {
    const char *at;
    ptrdiff_t row, col;
    int is_staged;
    const int64_t *pages; /* of the batch entry, numbers of pages of a pool; or NULL */
    int64_t page_size;    /* rows */
    ptrdiff_t page;       /* bytes from one page to the next */
    const char *scale;    /* of row 0, a float, if rows are int8; or NULL */
    ptrdiff_t scale_row, scale_page;
} sa_key_rows;

typedef struct sa_tile {
    int rows;
    int64_t group; /* query heads in it: rows r and r + group are of the same head */
    int64_t head_dim, head_dim_v;
    sa_scoring scoring;
    sa_prefetch prefetch;
    sa_finite *finite; /* the worker's, kept from tile to tile: of V; in the backward pass, of K */
    const char *q[SA_MAX_TILE_M]; /* each row's query; in the step `sum`, its weights */
    char *out[SA_MAX_TILE_M], *lse[SA_MAX_TILE_M];
    char *state[SA_MAX_TILE_M]; /* each row's, where the problem has states */
    sa_key_rows k, v;
    char *room; /* where kernels stage a block of K, then of V, if they must (sa_block_room) */
    ptrdiff_t q_col, out_col;
    /* A power of two that the weights are multiplied by and `out` is divided by: 1, or less where
     * the weighted sum of the values overflowed. */
    double weight_factor;
    int out_is_real; /* `out` holds reals, not elements: of tiles for the decode kernels alone */
    /* Ranges (visibility.h): row r sees only keys key_lo[r] <= j < key_hi[r]. [begin, end) is the
     * union of the rows' ranges, [full_begin, full_end) their intersection. */
    int64_t key_lo[SA_MAX_TILE_M], key_hi[SA_MAX_TILE_M];
    int64_t begin, end, full_begin, full_end;
    /* Key by key: the mask, the bias, and segments that are no ranges. */
    sa_mask_kind mask_kind, bias_kind;
    const char *mask[SA_MAX_TILE_M], *bias[SA_MAX_TILE_M]; /* each row's, at key 0 */
    ptrdiff_t mask_col, bias_col;
    const char *key_segments; /* ids at key 0; NULL: no segments, or they are in the ranges */
    ptrdiff_t segment_row;
    int segment_size;
    int64_t segment[SA_MAX_TILE_M];
    int has_lse, has_alibi, has_sinks;
    double slope[SA_MAX_TILE_M], sink[SA_MAX_TILE_M];
    int64_t position[SA_MAX_TILE_M]; /* with ALiBi: each row's position among the keys */
    /* With dropout: the two words that identify a row (tile.c). */
    uint32_t drop_low[SA_MAX_TILE_M], drop_high[SA_MAX_TILE_M];
} sa_tile;

/* A way to compute a tile. In prefill a lane is a query; in decode, for a few rows, it is a key in
 * the first product and an element of the value in the second. Both do the same operations on a row
 * in the same order. */
typedef struct {
    int max_rows; /* of a tile */
    /* Bytes of scratch for a tile, and of one split state of it. */
    size_t (*scratch_size)(int rows, int64_t head_dim, int64_t head_dim_v);
    size_t (*state_size)(int rows, int64_t head_dim_v);
    /* Prepare the scratch for a tile: pack its queries. */
    void (*begin)(const sa_tile *t, void *scratch);
    /* The state of the keys of one split. */
    void (*split)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end, void *part);
    /* total = total merged with part: the state of the keys of both. */
    void (*merge)(const sa_tile *t, void *total, const void *part);
    /* Divide by the row sums; write out and lse. */
    void (*finish)(const sa_tile *t, void *total);
    /* total = the rows' states; and back. */
    void (*take_states)(const sa_tile *t, void *total);
    void (*give_states)(const sa_tile *t, const void *total);
} sa_forward_kernel;

/* Bytes of a tile's room for a block of rows of K or V: reals, and a scale for each. */
static inline int64_t sa_block_room(int64_t length, int64_t real_size) {
    return SA_BLOCK_N * (length * real_size + (int64_t)sizeof(float));
}

/* Which gradients a tile of the backward pass adds to. */
typedef enum {
    SA_GRADIENT_QUERY = 1,
    SA_GRADIENT_KEY = 2,
    SA_GRADIENT_VALUE = 4,
    SA_GRADIENT_MASK = 8, /* or bias: what is added to the scores */
    SA_GRADIENT_SINKS = 16,
} sa_gradient;

/* Rows of keys' and values' gradients, from key `first` on. */
typedef struct {
    char *key, *value;
    ptrdiff_t key_row, value_row;
    int64_t first, rows;
} sa_key_gradients;

/* A tile of the backward pass. `fwd` is the forward pass's tile of the same rows, whose out and lse
 * are read here. */
typedef struct sa_backward_tile {
    sa_tile fwd;
    int needs_grad; /* of sa_gradient, joined by |; sinks and mask are each asked for alone */
    const char *dout[SA_MAX_TILE_M];
    int has_dlse;
    const char *dlse[SA_MAX_TILE_M];                /* each row's gradient of lse */
    char *dq[SA_MAX_TILE_M], *dmask[SA_MAX_TILE_M]; /* the mask's or the bias's, at key 0 */
    double *dsink[SA_MAX_TILE_M];
    const char *state[SA_MAX_TILE_M]; /* each row's over all keys, or NULL */
    int adds_to_query;                /* whether dq is added to what is there, or written */
    int dq_is_real;                   /* dq holds reals, not elements: several tiles add to it */
    int dq_goes_on;                   /* dq holds what earlier keys gave, unscaled */
    int dq_is_partial;                /* more keys come: dq is left unscaled */
    int64_t num_keys;                 /* of its batch entry */
    sa_key_gradients grads;           /* reals */
    ptrdiff_t dout_col, dq_col, dmask_col, dk_col, dv_col;
    int q_finite, dout_finite; /* found by `begin` */
    /* Prefetch targets. */
    int is_first;                        /* its job's first tile with these keys */
    const struct sa_backward_tile *next; /* the worker's next tile, or NULL */
    sa_key_gradients next_grads;         /* gradients that are written between the two */
} sa_backward_tile;

typedef struct {
    size_t (*scratch_size)(int rows, int64_t head_dim, int64_t head_dim_v);
    /* Set rows x cols reals to 0. */
    void (*clear)(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t cols);
    /* Prepare the scratch for a tile: pack its rows. Returns whether the maximum and the sum of
     * some rows must be recomputed (gradient_rows.inc.h): then call row_stats for each split of all
     * their keys, unless their state is given, and check_row_stats once. The key ranges of rows
     * that see no key become empty. */
    int (*begin)(sa_backward_tile *t, void *scratch);
    void (*row_stats)(const sa_backward_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    void (*check_row_stats)(sa_backward_tile *t, void *scratch);
    /* The keys of a split: add to the gradients of key, value and mask; accumulate query's. */
    void (*split)(const sa_backward_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    /* Write, or add, what was accumulated to query's gradient. */
    void (*finish)(const sa_backward_tile *t, void *scratch);
    /* Add to each row's dsink; needs no split. */
    void (*sinks)(const sa_backward_tile *t, void *scratch);
} sa_backward_kernel;

typedef enum {
    SA_SOFTMAX_CLEAR,
    SA_SOFTMAX_MAX,
    SA_SOFTMAX_EXP,
    SA_SOFTMAX_DIVIDE,
} sa_softmax_pass;

/* What the passes of a long row's softmax carry from part to part; opaque to the loops. */
typedef union {
    double bytes[32];
} sa_softmax_state;

/* A row of a merge: of each state so many bytes from its first row. In the backward pass `out` and
 * `lse`, which may be NULL, hold the gradients that are given, and `grads` is where those of the
 * states go. */
typedef struct {
    const sa_merge_states *states, *grads;
    ptrdiff_t out_at, lse_at, grad_out_at, grad_lse_at;
    char *out, *lse;
    ptrdiff_t out_col;
} sa_merge_row;

/* A row to rotate: pair i is its elements i * step + first and i * step + second. cos_col and
 * sin_col are from pair to pair; cos_second and sin_second from the number of a pair's first
 * element to that of its second, 0 where they share one. */
typedef struct {
    const char *x, *cos, *sin;
    char *out;
    ptrdiff_t x_col, cos_col, sin_col, out_col, cos_second, sin_second;
    int64_t pairs, step, first, second;
} sa_rope_row;

enum {
    SA_PROJECT_LANES = 144, /* of a tile of a projection, in float32; half of it in float64 */
    SA_PROJECT_M = 768,     /* rows of A in a tile */
    SA_PROJECT_K = 128,     /* rows of a block of the weight's gradient */
};

/* The product of a projection, or of the gradient of its weight (project.inc.h). By rows, a lane is
 * a row of x, and A is w; by columns, a lane is a column of x, and A is dy transposed. */
typedef struct {
    enum { SA_BY_ROWS, SA_BY_COLUMNS } by;
    int64_t k, block; /* the sum is over k, of which `block` are loaded at a time */
    ptrdiff_t x_col;
    /* By rows: the matrix w, a bias or NULL. */
    const char *w, *bias;
    ptrdiff_t w_row, w_k, bias_step, out_col;
    int exceeds_cache; /* w is larger than the caches */
    /* By columns: dy's columns, and the gradient of w. */
    ptrdiff_t dy_col;
    int64_t dy_cols;
    char *grad;
    ptrdiff_t grad_row, grad_col;
} sa_product;

/* A tile of it: some lanes, and m rows of A, at which w, bias and grad begin. */
typedef struct {
    sa_product p;
    int lanes;
    int64_t m;
    const char *x[SA_PROJECT_LANES]; /* by rows: each lane's row; by columns: row k of the block */
    const char *dy[SA_PROJECT_K];    /* by columns: row k of the block, at column 0 */
    int64_t dy_first;                /* by columns: the tile's first column of dy */
    char *out[SA_PROJECT_LANES];     /* by rows: each lane's row */
} sa_project_tile;

typedef struct {
    int lanes, step; /* lanes of a tile, at most; rows of A in a call of `multiply`, at most */
    /* For the largest tile: the block of k to load at a time; then, with t->p.block set, the bytes
     * of scratch. */
    int64_t (*block)(const sa_project_tile *t);
    size_t (*scratch_size)(const sa_project_tile *t);
    /* For each block of k in order: load it, then multiply it for each step of A's rows. At the
     * end, finish writes the results. */
    void (*load)(const sa_project_tile *t, void *scratch, int64_t k_begin, int64_t k_end);
    void (*multiply)(const sa_project_tile *t, void *scratch, int64_t k_begin, int64_t k_end,
                     int64_t m_begin, int64_t m_end);
    void (*finish)(const sa_project_tile *t, void *scratch);
} sa_project_kernel;

typedef struct sa_kernels {
    int lanes; /* of a vector */
    int rows;  /* of a prefill tile: as many as suit it best */
    sa_forward_kernel prefill, decode;
    /* gemv: for a few rows of x, a weight whose rows, or whose columns, are contiguous. */
    sa_project_kernel project, gemv_by_rows, gemv_by_columns;
    const struct sa_kernels *gemv_by_rows_of; /* the set whose gemv_by_rows to use: usually this */
    sa_backward_kernel backward;
    /* On a tile that prefill.begin has packed: write the scores of the keys of one split, or their
     * weights, given the state of all keys. */
    void (*scores)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    void (*weights)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end,
                    const void *total);
    /* The weighted sum of the values, on a tile whose q are rows of weights. */
    void (*sum_begin)(const sa_tile *t, void *total);
    void (*sum)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end, void *total);
    void (*sum_finish)(const sa_tile *t, void *total);
    /* softmax of a row, stored around the caches if `stream` is set; or one pass over a part of a
     * long row: each pass takes the parts in order, all but the last SA_SOFTMAX_PART long. */
    void (*softmax_row)(const char *x, ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n,
                        int stream);
    void (*softmax_part)(sa_softmax_pass pass, sa_softmax_state *state, const char *x,
                         ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n);
    /* Merge states of attention, of n elements and an lse each; or their gradients. */
    size_t (*merge_scratch_size)(int64_t states);
    void (*merge_row)(const sa_merge_row *row, int64_t n, void *scratch);
    void (*merge_backward_row)(const sa_merge_row *row, int64_t n, void *scratch);
    int (*is_finite)(const char *x, ptrdiff_t col, int64_t n);
    /* Rows of elements to contiguous rows of reals: rows [begin, end) of x; and back, rounded. */
    void (*stage_rows)(const sa_key_rows *x, int64_t begin, int64_t end, int64_t length, char *to);
    void (*unstage_rows)(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t length,
                         const char *from);
    /* Rotate the pairs of a row of n elements; elements in no pair are copied. */
    void (*rope_row)(const sa_rope_row *row, int64_t n);
    void (*apply)(sa_function f, double unit, const void *x, void *y, int64_t n);
    /* Multiply-adds on registers alone, and the floating-point operations of a step. */
    double (*peak)(int64_t steps);
    int64_t peak_flops;
} sa_kernels;

#endif
