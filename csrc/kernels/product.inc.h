/* The one product, of the forward pass and of all else:
 *
 *     C[m][lanes] = beta * C[m][lanes] + sum over k of A[m, k] * B[k][lanes]
 *
 * A is read in place, one element at a time, through two strides; a row of B and of C is n vectors.
 * The sum runs over k in order, in chunks: each from 0, their sums added in order. So the bits of
 * an element depend on nothing but its own row of A and column of B; and leading or trailing k
 * whose products are 0 may be left out. */

typedef enum {
    BETA_ZERO,    /* C is only written */
    BETA_ONE,     /* C is the sum so far */
    BETA_OF_LANE, /* beta[lane]: a rescale where a lane is a query */
    BETA_OF_ROW,  /* beta[m]: the same where a row is */
    SUM_SCALED,   /* beta is 1, and the sum is multiplied by `factor` */
} beta_kind;

typedef struct {
    int64_t m, k, chunk;
    int64_t phase; /* how far into its chunk the first k is */
    int64_t part;  /* of product_in_parts */
    int fetches_a;
    const char *a;
    ptrdiff_t a_row, a_k; /* strides in bytes */
    const char *b;
    ptrdiff_t b_k;
    real *c;
    ptrdiff_t c_row; /* in elements */
    beta_kind kind;
    const real *beta;
    real factor;
    real *sums;     /* room for SUMS_ROOM elements, but for the first two kinds */
    ahead *ahead;   /* to fetch meanwhile; may be NULL */
    uintptr_t soon; /* or a row of n vectors for each k, in product_and_fetch */
    ptrdiff_t soon_k;
} product_args;

enum { SUMS_ROOM = 24 * LANES }; /* a strip's accumulators */

/* factor sum + c, never -0: then it does not matter whether a sum of nothing but 0 is added. */
SA_INLINE vec sum_scaled(vec sum, vec factor, vec c) {
    return v_add(v_fma(sum, factor, c), v_zero());
}

/* What becomes of each accumulator at the end of a chunk. The sum of chunks grows in C itself, or
 * waits in p->sums where C is to be rescaled. Each case loads, adds and stores one accumulator
 * after another: all sums first and then all stores reads better, and costs 2 to 7 % of all. */
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

/* What is fetched: with each k, or at the beginning of each chunk the next strip's part of it. */
typedef enum { FETCH_NOTHING, FETCH_LINE, FETCH_ROW, FETCH_STRIP } fetching;

/* So many elements, side by side, of M rows. */
SA_INLINE void fetch_strip(const int M, uintptr_t row, ptrdiff_t step, int64_t count) {
    SA_UNROLL
    for (int i = 0; i < M; ++i, row += (uintptr_t)step)
        for (uintptr_t at = 0; at < (uintptr_t)count * sizeof(real); at += CACHE_LINE)
            SA_PREFETCH_NEAREST(row + at);
}

/* M rows and n vectors of C, in registers: both must be constants where it is inlined. What else it
 * keeps in registers is few as well: integers that find no room would be put into vectors'
 * registers, and wait there for the products before them. */
SA_INLINE void product_strip(const int M, const int n, const fetching fetch, const product_args *p,
                             const char *a, real *c, const real *beta) {
    uintptr_t soon = p->soon;
    ptrdiff_t soon_k = p->soon_k;
    const char *b = p->b, *third[6]; /* every third row of A */
    SA_UNROLL
    for (int i = 0; i < M; i += 3) third[i / 3] = a + i * p->a_row;
    int64_t left = p->k, chunk = p->chunk - p->phase;
    do {
        const int64_t count = chunk < left ? chunk : left;
        vec acc[16][MAX_N];
        SA_UNROLL
        for (int i = 0; i < M; ++i) {
            SA_UNROLL
            for (int j = 0; j < n; ++j) acc[i][j] = v_zero();
        }
        ptrdiff_t a_row = p->a_row, a_k = p->a_k, b_k = p->b_k;
        left -= count;
        if (fetch == FETCH_LINE) soon = take_ahead(p->ahead, count, &soon_k);
        if (fetch == FETCH_STRIP)
            fetch_strip(M, (uintptr_t)third[0] + (uintptr_t)(M * a_row), a_row, count);
        for (int64_t k = 0; k < count; ++k) {
            vec bk[MAX_N];
            SA_UNROLL
            for (int j = 0; j < n; ++j) {
                bk[j] = v_load(b + j * (int)sizeof(vec));
                if (fetch == FETCH_ROW || (fetch == FETCH_LINE && j == 0))
                    SA_PREFETCH(soon + (uintptr_t)j * sizeof(vec));
            }
            if (fetch == FETCH_LINE || fetch == FETCH_ROW) soon += (uintptr_t)soon_k;
            SA_UNROLL
            for (int i = 0; i < M; ++i) {
                vec x = v_broadcast(third[i / 3] + i % 3 * a_row);
                SA_UNROLL
                for (int j = 0; j < n; ++j) acc[i][j] = v_fma(x, bk[j], acc[i][j]);
            }
            SA_UNROLL
            for (int i = 0; i < M; i += 3) third[i / 3] += a_k;
            b += b_k;
        }
        chunk = p->chunk;
        const int first = left + count == p->k, last = left == 0;
        real *c_at = c, *const sums = p->sums;
        ptrdiff_t c_row = p->c_row;
        SA_OPAQUE(c_row);
        if (p->kind == BETA_ZERO || p->kind == BETA_ONE) {
            if (first && p->kind == BETA_ZERO)
                FOLD(C_AT, sum)
            else
                FOLD(C_AT, v_add(v_load(C_AT), sum))
        } else if (!last) {
            if (first)
                FOLD(SUM_AT, sum)
            else
                FOLD(SUM_AT, WHOLE)
        } else if (p->kind == BETA_OF_LANE) {
            if (first)
                FOLD(C_AT, v_fma(v_load(C_AT), v_load(beta + j * LANES), sum))
            else
                FOLD(C_AT, v_fma(v_load(C_AT), v_load(beta + j * LANES), WHOLE))
        } else if (p->kind == SUM_SCALED) {
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
SA_INLINE void product_rows(const int n, const fetching fetch, const product_args *p) {
    const char *a = p->a;
    real *c = p->c;
    const real *beta = p->beta;
    int64_t left = p->m;
#define STRIPS(M)                                              \
    while (left >= (M)) {                                      \
        if (fetch == FETCH_NOTHING && has_ahead(p->ahead))     \
            product_strip(M, n, FETCH_LINE, p, a, c, beta);    \
        else                                                   \
            product_strip(M, n, fetch, p, a, c, beta);         \
        left -= (M), a += (M) * p->a_row, c += (M) * p->c_row; \
        if (p->kind == BETA_OF_ROW) beta += (M);               \
    }
    STRIPS(STRIP_M(n))
    if (STRIP_M(n) > 8) STRIPS(8)
    if (STRIP_M(n) > 4) STRIPS(4)
    if (STRIP_M(n) > 2) STRIPS(2)
    STRIPS(1)
#undef STRIPS
}

#undef FOLD
#undef C_AT
#undef SUM_AT
#undef WHOLE

static void product_1(const product_args *p) { product_rows(1, FETCH_NOTHING, p); }
static void product_2(const product_args *p) { product_rows(2, FETCH_NOTHING, p); }
static void product_3(const product_args *p) { product_rows(3, FETCH_NOTHING, p); }
static void fetching_1(const product_args *p) { product_rows(1, FETCH_ROW, p); }
static void fetching_2(const product_args *p) { product_rows(2, FETCH_ROW, p); }
static void fetching_3(const product_args *p) { product_rows(3, FETCH_ROW, p); }
static void streaming_1(const product_args *p) { product_rows(1, FETCH_STRIP, p); }
static void streaming_2(const product_args *p) { product_rows(2, FETCH_STRIP, p); }
static void streaming_3(const product_args *p) { product_rows(3, FETCH_STRIP, p); }
#if MAX_N == 4
static void product_4(const product_args *p) { product_rows(4, FETCH_NOTHING, p); }
static void fetching_4(const product_args *p) { product_rows(4, FETCH_ROW, p); }
static void streaming_4(const product_args *p) { product_rows(4, FETCH_STRIP, p); }
#else
#define product_4 NULL
#define fetching_4 NULL
#define streaming_4 NULL
#endif

/* n <= MAX_N vectors of lanes. */
static void product(int n, const product_args *p) {
    static void (*const of_width[])(const product_args *) = {product_1, product_2, product_3,
                                                             product_4};
    of_width[n - 1](p);
}

/* The same, fetching each strip's rows of A while the strip before it is computed. */
static void product_and_fetch_a(int n, const product_args *p) {
    static void (*const of_width[])(const product_args *) = {streaming_1, streaming_2, streaming_3,
                                                             streaming_4};
    of_width[n - 1](p);
}

/* The same, of a long sum, over p->part of k at a time: so many rows of B stay in the nearest cache
 * from strip to strip. Each part is summed from 0; the first is written, unless p->kind says that
 * it is added as the others are. A sum of very many chunks would have a larger error. */
static void product_in_parts(int n, product_args *p) {
    int64_t left = p->k;
    p->factor = 1;
    do {
        p->k = left < p->part ? left : p->part;
        p->fetches_a ? product_and_fetch_a(n, p) : product(n, p);
        left -= p->k;
        p->a += p->k * p->a_k;
        p->b += p->k * p->b_k;
        p->kind = SUM_SCALED;
    } while (left > 0);
}

/* The same, fetching what is needed soon meanwhile. */
static void product_and_fetch(int n, const product_args *p) {
    static void (*const of_width[])(const product_args *) = {fetching_1, fetching_2, fetching_3,
                                                             fetching_4};
    of_width[n - 1](p);
}

/* The same, where marks laid out as A or as B tell by a set sign what is masked: that adds nothing,
 * even where a factor is NaN or inf. One row of C and one vector at a time: a rare path. */
typedef enum { MARKED_A, MARKED_B } marked;

static void product_of_visible(int n, const product_args *p, marked which, const char *marks) {
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
