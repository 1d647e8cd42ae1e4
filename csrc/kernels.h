/* The border between the loops and the arithmetic: what a kernel set offers, as data.
 *
 * The loops (forward.c, backward.c, scores.c, rows.c) cut a problem into tiles and hold memory and
 * threads; a kernel set computes on one tile. A tile is a few query rows that share one key/value
 * head. */
#ifndef SA_KERNELS_H
#define SA_KERNELS_H

#include "selfattn.h"

enum {
    CACHE_LINE = 64,
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

/* A score is summed over head_dim (in the backward pass dP over head_dim_v) in chunks of this
 * length, and the chunks' sums in parts of
 * SA_CHUNKS_OF_PART chunks, each of both from 0. The shorter a chunk, the smaller the error and the
 * slower the sum. */
static inline int sa_chunk_e(int64_t head_dim) { return head_dim < 32 ? 8 : 16; }
static inline int sa_part_e(int64_t head_dim) { return SA_CHUNKS_OF_PART * sa_chunk_e(head_dim); }

/* A tile's scores, as the softmax sees them:
 *
 *     score = q k                                            as they are
 *     score = cap(scale * q k) - slope * distance + mask     in natural units, as a bias needs them
 *
 * q is multiplied by q_factor when it is packed: the sign of the user's scale, or 0, and as much of
 * it below 1 as is a power of two, which rounds nothing; `scale` is the rest. What a softmax needs
 * is 2^(scale_log2 * (score - max)), and for the lse scale_ln * max. */
typedef struct {
    double q_factor, scale; /* scale > 0 */
    double scale_log2, scale_ln;
    double softcap; /* 0: none */
    int in_natural_units;
    /* Of the weights, those whose number is below are dropped (dropout.inc.h), and the rest are
     * multiplied by dropout_scale. */
    int has_dropout;
    uint32_t dropout_threshold;
    double dropout_scale;
} sa_scoring;

/* What a worker has found out: rows [begin, end) of x are all finite. */
typedef struct {
    const char *x;
    int64_t begin, end;
} sa_finite;

/* What is read soon, to be fetched while a tile is computed: the queries of the worker's next tile,
 * if there is one; the tile's share of the keys and values of the next head, so many of each; or
 * where it has none, those of its own next block, if it is the worker's first to read them, or if
 * each tile finds them far off. */
typedef struct {
    const struct sa_tile *next;
    int64_t keys;
    const char *k, *v;
    ptrdiff_t k_row, v_row;
    int is_first;
} sa_prefetch;

typedef struct sa_tile {
    int rows;
    int64_t group; /* every group-th row is of the same head */
    int64_t head_dim, head_dim_v;
    sa_scoring scoring;
    sa_prefetch prefetch;
    sa_finite *finite; /* the worker's, from tile to tile: of V, in the backward pass of K */
    const char *q[SA_MAX_TILE_M]; /* each row's query (sum: its weights), and its results */
    char *out[SA_MAX_TILE_M], *lse[SA_MAX_TILE_M];
    const char *k, *v;
    ptrdiff_t q_col, k_row, k_col, v_row, v_col, out_col;
    /* Values are summed with weights times this power of 2, and `out` is divided by it: 1, but
     * where their sum overflows. */
    double weight_factor;
    /* Row r sees no key but key_lo[r] <= j < key_hi[r] (mask.h). Between them, all rows see only
     * keys from begin to end, and by the ranges each sees every key from full_begin to full_end. */
    int64_t key_lo[SA_MAX_TILE_M], key_hi[SA_MAX_TILE_M];
    int64_t begin, end, full_begin, full_end;
    /* Of which it sees those that the mask and the segments let through, where there are any. */
    sa_mask_kind mask_kind;
    const char *mask[SA_MAX_TILE_M]; /* each row's, from key 0 */
    ptrdiff_t mask_col;
    const char *key_segments; /* NULL: no segments but those in the ranges */
    ptrdiff_t segment_row;
    int segment_size;
    int64_t segment[SA_MAX_TILE_M];
    int has_lse, has_alibi, has_sinks;
    double slope[SA_MAX_TILE_M], sink[SA_MAX_TILE_M];
    int64_t position[SA_MAX_TILE_M]; /* with alibi: each row's among the keys */
    /* With dropout: what names the row. */
    uint32_t drop_low[SA_MAX_TILE_M], drop_high[SA_MAX_TILE_M];
} sa_tile;

/* How one shape of tile is computed: `tile` has a query in each lane, `few` a key, then an element
 * of the value. Both do the same operations on a row in the same order. */
typedef struct {
    int rows, max_rows; /* of a tile: what suits it best, and at most */
    /* Bytes of scratch for a tile, and of one partial result of it. */
    size_t (*scratch_size)(int rows, int64_t head_dim);
    size_t (*state_size)(int rows, int64_t head_dim_v);
    /* Prepare the scratch for a tile: pack its queries. */
    void (*begin)(const sa_tile *t, void *scratch);
    /* The partial result of the keys of one split. */
    void (*split)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end, void *part);
    /* total = total merged with part: attention over both's keys. */
    void (*merge)(const sa_tile *t, void *scratch, void *total, const void *part);
    /* Divide by the row sums; write out and lse. */
    void (*finish)(const sa_tile *t, void *scratch, void *total);
} sa_forward_kernel;

/* Which gradients a tile of the backward pass adds to. */
typedef enum {
    SA_GRADIENT_QUERY = 1,
    SA_GRADIENT_KEY = 2,
    SA_GRADIENT_VALUE = 4,
    SA_GRADIENT_MASK = 8,
    SA_GRADIENT_SINKS = 16,
} sa_gradient;

/* Rows of keys' and values' gradients. */
typedef struct {
    char *key, *value;
    ptrdiff_t key_row, value_row;
    int64_t rows;
} sa_key_gradients;

/* A tile of the backward pass, whose `seen` is like one of the forward pass, but that its out and
 * lse are read. */
typedef struct sa_backward_tile {
    sa_tile fwd;
    int needs_grad; /* sa_gradient's, joined; sinks stand alone, and so does the mask */
    const char *dout[SA_MAX_TILE_M];
    char *dq[SA_MAX_TILE_M], *dmask[SA_MAX_TILE_M]; /* the mask's from key 0 */
    double *dsink[SA_MAX_TILE_M];
    int adds_to_query; /* or else grad_q is only written */
    int64_t num_keys;  /* of its batch entry */
    char *dk, *dv;
    ptrdiff_t dout_col, dq_col, dmask_col;
    ptrdiff_t dk_row, dk_col, dv_row, dv_col;
    int q_finite, dout_finite; /* found by `begin` */
    /* What is fetched prefetch. */
    int is_first;                        /* of its part of a batch entry's rows */
    const struct sa_backward_tile *next; /* of the worker's; or NULL */
    sa_key_gradients next_grads;         /* written between the two */
} sa_backward_tile;

typedef struct {
    size_t (*scratch_size)(int rows, int64_t head_dim, int64_t head_dim_v);
    /* rows x cols elements become 0. */
    void (*clear)(char *to, ptrdiff_t row, ptrdiff_t col, int64_t rows, int64_t cols);
    /* Prepare the scratch for a tile: pack its rows. Returns whether some of them must be counted
     * again: then `count` for each split of all their keys, and `counted`. Rows that are found to
     * see no key lose theirs. */
    int (*begin)(sa_backward_tile *t, void *scratch);
    void (*row_stats)(const sa_backward_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    void (*check_row_stats)(sa_backward_tile *t, void *scratch);
    /* Add what a split's keys give to the gradients of key, value and mask, and sum query's. */
    void (*split)(const sa_backward_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    /* Write query's sums to its gradient, or add them. */
    void (*finish)(const sa_backward_tile *t, void *scratch);
    /* Add to each row's grad_sink; it needs no split. */
    void (*sinks)(const sa_backward_tile *t, void *scratch);
} sa_backward_kernel;

typedef enum {
    SA_SOFTMAX_CLEAR,
    SA_SOFTMAX_MAX,
    SA_SOFTMAX_EXP,
    SA_SOFTMAX_DIVIDE,
} sa_softmax_pass;

/* What the passes carry from part to part: the kernels' own. */
typedef union {
    double bytes[32];
} sa_softmax_state;

/* A row of each operand of a merge. */
typedef struct {
    const char *a, *b, *lse_a, *lse_b;
    char *out, *lse;
    ptrdiff_t a_col, b_col, out_col;
} sa_merge_row;

/* A row to turn: pair i is elements i * step + first and i * step + second of it. */
typedef struct {
    const char *x, *cos, *sin;
    char *out;
    ptrdiff_t x_col, angle_col, out_col;
    int64_t pairs, step, first, second;
} sa_rope_row;

enum {
    SA_PROJECT_LANES = 144, /* of a tile of a projection, in float32; half of it in float64 */
    SA_PROJECT_M = 768,     /* its rows of A */
    SA_PROJECT_K = 128,     /* rows of a block of the weight's gradient */
};

/* What a projection sums over k, or its gradients do, and where it lies. */
typedef struct {
    enum { SA_BY_ROWS, SA_BY_COLUMNS } by; /* what of x is a lane */
    int64_t k, block;                      /* of which so many are loaded at a time */
    ptrdiff_t x_col;
    /* By rows: the matrix w that x is multiplied by, and a bias or NULL. */
    const char *w, *bias;
    ptrdiff_t w_row, w_k, bias_step, out_col;
    int exceeds_cache; /* w is larger than the caches */
    /* By columns: dy, of so many columns, and the gradient of the matrix. */
    ptrdiff_t dy_col;
    int64_t dy_cols;
    char *grad;
    ptrdiff_t grad_row, grad_col;
} sa_product;

/* A tile of it: lanes of x, by m rows of w or columns of dy; w, bias and grad are the tile's. */
typedef struct {
    sa_product p;
    int lanes;
    int64_t m;
    const char *x[SA_PROJECT_LANES]; /* by rows: the lanes'; by columns: those of the block's k */
    const char *dy[SA_PROJECT_K];    /* by columns: likewise, from column 0 */
    int64_t dy_first;                /* the tile's first column of it */
    char *out[SA_PROJECT_LANES];     /* by rows */
} sa_project_tile;

typedef struct {
    int lanes, step; /* lanes of a tile, at most; rows of A that are multiplied at a time */
    /* How many k are loaded at a time if tiles are like this one, the largest; and, that being
     * known, the bytes of scratch. */
    int64_t (*block)(const sa_project_tile *t);
    size_t (*scratch_size)(const sa_project_tile *t);
    /* For each block of k in order: load it, and multiply it step by step; then write. */
    void (*load)(const sa_project_tile *t, void *scratch, int64_t k_begin, int64_t k_end);
    void (*multiply)(const sa_project_tile *t, void *scratch, int64_t k_begin, int64_t k_end,
                     int64_t m_begin, int64_t m_end);
    void (*finish)(const sa_project_tile *t, void *scratch);
} sa_project_kernel;

typedef struct sa_kernels {
    int lanes; /* of a vector */
    sa_forward_kernel prefill, decode;
    /* Of x's rows that are a few: by what of the weight lies side by side. */
    sa_project_kernel project, gemv_by_rows, gemv_by_columns;
    const struct sa_kernels *gemv_by_rows_of; /* whose gemv_by_rows is to be used: mostly itself */
    sa_backward_kernel backward;
    /* On a tile that tile.begin has packed: write the scores of the keys of one split, or what
     * becomes of them by softmax, given the partial result of all keys. */
    void (*scores)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end);
    void (*weights)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end,
                    const void *total);
    /* All of weights v, on a tile whose queries are rows of weights: nothing to begin with. */
    void (*sum_begin)(const sa_tile *t, void *total);
    void (*sum)(const sa_tile *t, void *scratch, int64_t key_begin, int64_t key_end, void *total);
    void (*sum_finish)(const sa_tile *t, void *total);
    /* softmax of a row at once, its result around the caches if asked to; or of a long row in
     * passes over its parts, in order, which are multiples of SA_SOFTMAX_PART long but for the
     * last. */
    void (*softmax_row)(const char *x, ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n,
                        int stream);
    void (*softmax_part)(sa_softmax_pass pass, sa_softmax_state *state, const char *x,
                         ptrdiff_t x_col, char *out, ptrdiff_t out_col, int64_t n);
    /* Two partial results of a row -> the whole one: a, b, out of n elements, an lse of each. */
    void (*merge_row)(const sa_merge_row *row, int64_t n);
    int (*is_finite)(const char *x, ptrdiff_t col, int64_t n);
    /* A row of n elements whose pairs are turned; the others are copied. */
    void (*rope_row)(const sa_rope_row *row, int64_t n);
    void (*apply)(sa_function f, double unit, const void *x, void *y, int64_t n);
} sa_kernels;

#endif
