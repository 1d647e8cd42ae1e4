/* The micro-kernel, the only matrix product here:
 *
 *     C[m][lanes] = beta * C[m][lanes] + sum over k of A[m, k] * B[k][lanes]
 *
 * A is read in place, one number at a time, through two strides; a row of B and of C is n vectors.
 * All of them are reals, except for the B of ukernel_prefetching and ukernel_int8.
 *
 * The sum runs over k in order, in chunks: each from 0, their sums added in order. So the bits of
 * an element depend on nothing but its own row of A and column of B; and leading or trailing k
 * whose products are 0 may be left out. */
#ifndef SA_KERNELS_UKERNEL_INC_H
#define SA_KERNELS_UKERNEL_INC_H

#include "simd.inc.h"
#include "elem.inc.h"
#include "prefetch.inc.h"
#include "rows.inc.h"

typedef enum {
    BETA_ZERO,    /* C is only written */
    BETA_ONE,     /* C is the sum so far */
    BETA_OF_LANE, /* beta[lane]: the online softmax's rescale where lanes are queries */
    BETA_OF_ROW,  /* beta[m]: that rescale where rows are queries */
    SUM_SCALED,   /* beta = 1, and the sum is multiplied by `factor` */
} beta_kind;

typedef struct {
    int64_t m, k, chunk;
    int64_t phase;    /* position of the first k within its chunk */
    int64_t part;     /* of ukernel_in_parts: k of a part */
    int prefetches_a; /* of ukernel_in_parts: whether to use ukernel_prefetching_a */
    const char *a;
    ptrdiff_t a_row, a_k; /* strides in bytes */
    const char *b;
    ptrdiff_t b_k;
    real *c;
    ptrdiff_t c_row; /* in elements */
    beta_kind kind;
    const real *beta;
    real factor;
    real *sums;               /* SUMS_ROOM elements; unused by BETA_ZERO and BETA_ONE */
    prefetch_queue *prefetch; /* a line of it is prefetched with each k; may be NULL */
    /* Of ukernel_prefetching and ukernel_int8, in place of b: the runs in which B's rows lie, and
     * the byte of a row at which B begins. */
    const row_run *runs;
    ptrdiff_t first_byte;
    ptrdiff_t scale_row; /* of ukernel_int8: between the scales of two rows */
} ukernel_args;

#ifndef KEEP_IN_REGISTER /* of a set of instructions (simd/) that needs it */
#define KEEP_IN_REGISTER(x) ((void)(x))
#endif

enum { SUMS_ROOM = 24 * LANES }; /* a strip's accumulators */

/* factor * sum + c, never -0: so a sum of zeros may be added or skipped, to the same bits. */
SA_INLINE vec sum_scaled(vec sum, vec factor, vec c) {
    return v_add(v_fma(sum, factor, c), v_zero());
}

/* Store `expression`, of each accumulator `sum` at the end of a chunk, to `to`. Chunks are summed
 * in C itself, or in p->sums where C is rescaled at the end. Accumulators are added and stored one
 * by one: all additions before all stores would cost 2 to 7 %. */
#define FOLD(to, expression)                     \
    SA_UNROLL                                    \
    for (int i = 0; i < M; ++i, c_at += c_row) { \
        SA_UNROLL                                \
        for (int j = 0; j < n; ++j) {            \
            vec sum = acc[i][j];                 \
            v_store(to, expression);             \
        }                                        \
    }
#define C_AT (c_at + j * LANES)
#define SUM_AT (sums + (i * n + j) * LANES)
#define WHOLE v_add(v_load(SUM_AT), sum)

typedef enum {
    PREFETCH_NONE,
    PREFETCH_LINE, /* with each k, a line of the queue */
    PREFETCH_ROW,  /* with each k, n vectors of elements, as B's are then: those of the row that its
                      run says */
    PREFETCH_INT8, /* the same, where B's rows are int8, each times a scale */
    PREFETCH_STRIP, /* at the start of each chunk, the next strip's A for the same k */
} prefetch_kind;

/* Decoding has few rows, and each of them its beta: other code would only be large. */
SA_INLINE int is_decoding(prefetch_kind fetch) {
    return fetch == PREFETCH_ROW || fetch == PREFETCH_INT8;
}

/* Prefetch `count` contiguous elements of each of M rows into L1. */
SA_INLINE void prefetch_strip(const int M, uintptr_t row, ptrdiff_t step, int64_t count) {
    SA_UNROLL
    for (int i = 0; i < M; ++i, row += (uintptr_t)step)
        for (uintptr_t at = 0; at < (uintptr_t)count * sizeof(real); at += CACHE_LINE)
            SA_PREFETCH_NEAREST(row + at);
}

/* M rows by n vectors of C, in registers; M and n are constants where this is inlined. Keep few
 * live integers: gcc 12 spills them to XMM registers, whose reloads queue behind the FMAs. */
SA_INLINE void ukernel_strip(const int M, const int n, const prefetch_kind fetch,
                             const ukernel_args *p, const char *a, real *c, const real *beta) {
    uintptr_t prefetch_at = 0;
    ptrdiff_t prefetch_step = 0;
    const char *b = p->b, *b_scale = NULL, *third[6]; /* every third row of A */
    const row_run *run = p->runs;
    int64_t in_run = 0; /* rows of it that are left */
    SA_UNROLL
    for (int i = 0; i < M; i += 3) third[i / 3] = a + i * p->a_row;
    int64_t left = p->k, chunk = p->chunk - p->phase;
    do {
        const int64_t count = chunk < left ? chunk : left;
        vec acc[16][NR_MAX];
        SA_UNROLL
        for (int i = 0; i < M; ++i) {
            SA_UNROLL
            for (int j = 0; j < n; ++j) acc[i][j] = v_zero();
        }
        ptrdiff_t a_row = p->a_row, a_k = p->a_k, b_k = p->b_k;
        left -= count;
        if (fetch == PREFETCH_LINE) prefetch_at = prefetch_next(p->prefetch, count, &prefetch_step);
        if (fetch == PREFETCH_STRIP)
            prefetch_strip(M, (uintptr_t)third[0] + (uintptr_t)(M * a_row), a_row, count);
        int64_t k = 0;
        do { /* once; where B lies in runs, for each of the chunk's */
            int64_t end = count;
            if (is_decoding(fetch)) {
                if (in_run == 0) {
                    b = run->at + p->first_byte;
                    b_scale = run->scale;
                    prefetch_at = run->ahead + (uintptr_t)p->first_byte;
                    prefetch_step = run->ahead_row;
                    in_run = run++->count;
                }
                if (end > k + in_run) end = k + in_run;
                in_run -= end - k;
            }
            for (; k < end; ++k) {
                vec bk[NR_MAX];
                SA_UNROLL
                for (int j = 0; j < n; ++j) {
                    const int offset = j * LANES * (fetch == PREFETCH_INT8 ? 1 : ELEM_SIZE);
#if SA_REAL_BITS == 32
                    if (fetch == PREFETCH_INT8)
                        bk[j] = v_mul(v_load_int8(b + offset), v_broadcast(b_scale));
                    else
#endif
                        bk[j] = fetch == PREFETCH_ROW ? s_load(b + offset)
                                                      : v_load(b + j * (int)sizeof(vec));
                    if (is_decoding(fetch) && offset % CACHE_LINE == 0)
                        SA_PREFETCH_NEAREST(prefetch_at + (uintptr_t)offset);
                    if (fetch == PREFETCH_LINE && j == 0) SA_PREFETCH(prefetch_at);
                }
                if (fetch == PREFETCH_INT8) b_scale += p->scale_row;
                (void)b_scale;
                if (fetch == PREFETCH_LINE || is_decoding(fetch))
                    prefetch_at += (uintptr_t)prefetch_step;
                SA_UNROLL
                for (int i = 0; i < M; ++i) {
                    vec x = v_broadcast(third[i / 3] + i % 3 * a_row);
                    KEEP_IN_REGISTER(x);
                    SA_UNROLL
                    for (int j = 0; j < n; ++j) acc[i][j] = v_fma(x, bk[j], acc[i][j]);
                }
                SA_UNROLL
                for (int i = 0; i < M; i += 3) third[i / 3] += a_k;
                b += b_k;
            }
        } while (is_decoding(fetch) && k < count);
        chunk = p->chunk;
        const int first = left + count == p->k, last = left == 0;
        const beta_kind kind = is_decoding(fetch) ? BETA_OF_ROW : p->kind;
        real *c_at = c, *const sums = p->sums;
        ptrdiff_t c_row = p->c_row;
        SA_OPAQUE(c_row);
        if (kind == BETA_ZERO || kind == BETA_ONE) {
            if (first && kind == BETA_ZERO)
                FOLD(C_AT, sum)
            else
                FOLD(C_AT, v_add(v_load(C_AT), sum))
        } else if (!last) {
            if (first)
                FOLD(SUM_AT, sum)
            else
                FOLD(SUM_AT, WHOLE)
        } else if (kind == BETA_OF_LANE) {
            if (first)
                FOLD(C_AT, v_fma(v_load(C_AT), v_load(beta + j * LANES), sum))
            else
                FOLD(C_AT, v_fma(v_load(C_AT), v_load(beta + j * LANES), WHOLE))
        } else if (kind == SUM_SCALED) {
            if (first)
                FOLD(C_AT, sum_scaled(sum, v_set(p->factor), v_load(C_AT)))
            else
                FOLD(C_AT, sum_scaled(WHOLE, v_set(p->factor), v_load(C_AT)))
        } else {
            if (first)
                FOLD(C_AT, v_fma(v_load(C_AT), v_set(beta[i]), sum))
            else
                FOLD(C_AT, v_fma(v_load(C_AT), v_set(beta[i]), WHOLE))
        }
    } while (left > 0);
}

/* All rows: strips of the set's height, then 8, 4, 2 and 1. */
SA_INLINE void ukernel_rows(const int n, const prefetch_kind fetch, const ukernel_args *p) {
    const char *a = p->a;
    real *c = p->c;
    const real *beta = p->beta;
    int64_t left = p->m;
#define STRIPS(M)                                                \
    while (left >= (M)) {                                        \
        if (fetch == PREFETCH_NONE && has_prefetch(p->prefetch)) \
            ukernel_strip(M, n, PREFETCH_LINE, p, a, c, beta);   \
        else                                                     \
            ukernel_strip(M, n, fetch, p, a, c, beta);           \
        left -= (M), a += (M) * p->a_row, c += (M) * p->c_row;   \
        if (p->kind == BETA_OF_ROW) beta += (M);                 \
    }
    if (!is_decoding(fetch) || MR(n) <= 8) STRIPS(MR(n))
    if (MR(n) > 8) STRIPS(8)
    if (MR(n) > 4) STRIPS(4)
    if (MR(n) > 2) STRIPS(2)
    STRIPS(1)
#undef STRIPS
}

#undef FOLD
#undef C_AT
#undef SUM_AT
#undef WHOLE

/* The products of each width. Those of reals do not know what lies in the caller's arrays: dtypes
 * that are computed in the same reals share them. */
typedef void ukernel_of_width(const ukernel_args *p);
typedef struct {
    ukernel_of_width *plain[4], *prefetching_a[4];
} sa_products;

#define SA_JOIN_PRODUCTS(isa, dtype) sa_##isa##_##dtype##_products
#define SA_PRODUCTS_OF(isa, dtype) SA_JOIN_PRODUCTS(isa, dtype)
#define PRODUCTS SA_PRODUCTS_OF(SA_ISA, SA_REAL_DTYPE)

extern const sa_products PRODUCTS;

static void prefetching_1(const ukernel_args *p) { ukernel_rows(1, PREFETCH_ROW, p); }
static void prefetching_2(const ukernel_args *p) { ukernel_rows(2, PREFETCH_ROW, p); }
static void prefetching_3(const ukernel_args *p) { ukernel_rows(3, PREFETCH_ROW, p); }
#if NR_MAX == 4
static void prefetching_4(const ukernel_args *p) { ukernel_rows(4, PREFETCH_ROW, p); }
#else
#define prefetching_4 NULL
#endif

#if SA_ELEM_IS_REAL
static void plain_1(const ukernel_args *p) { ukernel_rows(1, PREFETCH_NONE, p); }
static void plain_2(const ukernel_args *p) { ukernel_rows(2, PREFETCH_NONE, p); }
static void plain_3(const ukernel_args *p) { ukernel_rows(3, PREFETCH_NONE, p); }
static void streaming_1(const ukernel_args *p) { ukernel_rows(1, PREFETCH_STRIP, p); }
static void streaming_2(const ukernel_args *p) { ukernel_rows(2, PREFETCH_STRIP, p); }
static void streaming_3(const ukernel_args *p) { ukernel_rows(3, PREFETCH_STRIP, p); }
#if NR_MAX == 4
static void plain_4(const ukernel_args *p) { ukernel_rows(4, PREFETCH_NONE, p); }
static void streaming_4(const ukernel_args *p) { ukernel_rows(4, PREFETCH_STRIP, p); }
#else
#define plain_4 NULL
#define streaming_4 NULL
#endif

const sa_products PRODUCTS = {{plain_1, plain_2, plain_3, plain_4},
                              {streaming_1, streaming_2, streaming_3, streaming_4}};
#endif

/* C for n <= NR_MAX vectors of lanes. */
static void ukernel(int n, const ukernel_args *p) { PRODUCTS.plain[n - 1](p); }

/* ukernel, prefetching the next strip's rows of A while a strip is computed. */
static void ukernel_prefetching_a(int n, const ukernel_args *p) {
    PRODUCTS.prefetching_a[n - 1](p);
}

/* ukernel for a long sum, p->part of k at a time: that many rows of B stay in L1 from strip to
 * strip, and one sum of very many chunks would have a larger error. Each part is summed from 0. The
 * first is written to C, or added to it, as p->kind says; the others are added. */
static void ukernel_in_parts(int n, ukernel_args *p) {
    int64_t left = p->k;
    p->factor = 1;
    do {
        p->k = left < p->part ? left : p->part;
        p->prefetches_a ? ukernel_prefetching_a(n, p) : ukernel(n, p);
        left -= p->k;
        p->a += p->k * p->a_k;
        p->b += p->k * p->b_k;
        p->kind = SUM_SCALED;
    } while (left > 0);
}

/* ukernel for a B of elements in the caller's array, or in pages, read once: with each k, it
 * prefetches n vectors of the row that its run says. p->kind must be BETA_OF_ROW. */
static void ukernel_prefetching(int n, const ukernel_args *p) {
    static void (*const of_width[])(const ukernel_args *) = {prefetching_1, prefetching_2,
                                                             prefetching_3, prefetching_4};
    of_width[n - 1](p);
}

#if SA_REAL_BITS == 32 && SA_ELEM_IS_REAL
static void int8_1(const ukernel_args *p) { ukernel_rows(1, PREFETCH_INT8, p); }
static void int8_2(const ukernel_args *p) { ukernel_rows(2, PREFETCH_INT8, p); }
static void int8_3(const ukernel_args *p) { ukernel_rows(3, PREFETCH_INT8, p); }
#if NR_MAX == 4
static void int8_4(const ukernel_args *p) { ukernel_rows(4, PREFETCH_INT8, p); }
#else
#define int8_4 NULL
#endif

/* ukernel_prefetching for a B of int8, each row of which is multiplied by its scale. */
static void ukernel_int8(int n, const ukernel_args *p) {
    static void (*const of_width[])(const ukernel_args *) = {int8_1, int8_2, int8_3, int8_4};
    of_width[n - 1](p);
}
#else
static void ukernel_int8(int n, const ukernel_args *p) { (void)n, (void)p; }
#endif

/* ukernel where some products are masked: they add nothing, even where a factor is NaN or inf.
 * `marks`, laid out as A or as B, has its sign bit set for a masked one. A rare path: one row of C
 * and one vector at a time. */
typedef enum { MARKED_A, MARKED_B } marked;

static void ukernel_masked(int n, const ukernel_args *p, marked which, const char *marks) {
    for (int64_t i = 0; i < p->m; ++i)
        for (int j = 0; j < n; ++j) {
            const char *a = p->a + i * p->a_row, *b = p->b + j * (ptrdiff_t)sizeof(vec);
            const char *mark = marks + (which == MARKED_A ? a - p->a : b - p->b);
            ptrdiff_t mark_k = which == MARKED_A ? p->a_k : p->b_k;
            real *out = p->c + i * p->c_row + j * LANES;
            vec acc = v_zero(), sum = p->kind == BETA_ONE ? v_load(out) : v_zero();
            for (int64_t k = 0; k < p->k; ++k, a += p->a_k, b += p->b_k, mark += mark_k) {
                if (k > 0 && (p->phase + k) % p->chunk == 0) sum = v_add(sum, acc), acc = v_zero();
                vec is_masked = which == MARKED_A ? v_broadcast(mark) : v_load(mark);
                acc = v_select(v_negative(is_masked), acc, v_fma(v_broadcast(a), v_load(b), acc));
            }
            sum = v_add(sum, acc);
            if (p->kind == SUM_SCALED)
                sum = sum_scaled(sum, v_set(p->factor), v_load(out));
            else if (p->kind == BETA_OF_LANE)
                sum = v_fma(v_load(out), v_load(p->beta + j * LANES), sum);
            else if (p->kind == BETA_OF_ROW)
                sum = v_fma(v_load(out), v_set(p->beta[i]), sum);
            v_store(out, sum);
        }
}

#endif
