/* What is needed soon, fetched into the second cache while a product is computed: a line with each
 * k. More at a time would be waited for: the processor remembers a few dozen misses, not more.
 *
 * Called by the product (product.inc.h) at the beginning of each chunk of its sums. */

/* Rows: at first those `row` bytes apart from `at`, then those of a list, of which each of so many
 * heads has every heads-th one, head by head. */
typedef struct {
    uintptr_t at; /* their next column of lines */
    ptrdiff_t row;
    int64_t rows, columns;
    const char *const *list;
    int64_t of_list, bytes, heads, head; /* the next one */
} rows_ahead;

enum { AHEAD_PARTS = 10 }; /* as many as the backward pass has (gradient_ahead.inc.h) */

typedef struct {
    /* The lines to fetch next. Those after the last one do no harm. */
    uintptr_t at;
    ptrdiff_t stride;
    int64_t lines;
    rows_ahead parts[AHEAD_PARTS];
    int part, num_parts;
} ahead;

/* Nothing, as yet. */
static void ahead_begin(ahead *a) {
    a->lines = 0;
    a->part = a->num_parts = 0;
}

SA_INLINE int64_t lines_of(int64_t bytes) { return (bytes + CACHE_LINE - 1) / CACHE_LINE; }

/* Rows that lie together are one long column of lines. */
static void set_rows(rows_ahead *r, const char *at, ptrdiff_t row, int64_t rows, int64_t bytes) {
    int together = row == bytes;
    r->at = (uintptr_t)at;
    r->row = together ? CACHE_LINE : row;
    r->rows = together ? lines_of(rows * bytes) : rows;
    r->columns = together ? 1 : lines_of(bytes);
}

/* A part is filled where it stays: a copy of what was just written waits. */
static void fetch_rows(ahead *a, const char *at, ptrdiff_t row, int64_t rows, int64_t bytes) {
    if (rows <= 0) return;
    rows_ahead *r = &a->parts[a->num_parts++];
    set_rows(r, at, row, rows, bytes);
    r->head = r->heads = 0;
}

static void fetch_list(ahead *a, const char *const *list, int64_t rows, int64_t heads,
                       int64_t bytes) {
    rows_ahead *r = &a->parts[a->num_parts++];
    r->columns = r->head = 0;
    r->heads = heads < rows ? heads : rows;
    r->list = list;
    r->of_list = rows;
    r->bytes = bytes;
}

static int next_head(rows_ahead *r) {
    if (r->head == r->heads) return 0;
    const char *const *first = r->list + r->head;
    int64_t left = r->of_list - r->head++;
    ptrdiff_t row = left > r->heads ? first[r->heads] - *first : r->bytes;
    set_rows(r, *first, row, r->heads == 1 ? left : (left + r->heads - 1) / r->heads, r->bytes);
    return r->columns > 0;
}

/* The next column; after the last one a line that is near, over and over. */
static void next_lines(ahead *a) {
    for (; a->part < a->num_parts; ++a->part) {
        rows_ahead *r = &a->parts[a->part];
        if (r->columns == 0 && !next_head(r)) continue;
        a->at = r->at;
        a->stride = r->row;
        a->lines = r->rows;
        r->at += CACHE_LINE;
        --r->columns;
        return;
    }
    a->at = (uintptr_t)a;
    a->stride = 0;
}

static int has_ahead(const ahead *a) { return a && (a->lines > 0 || a->part < a->num_parts); }

/* What the second cache has room for, beside what is in use. */
enum { NEAR_BYTES = 1 << 20 };

static int64_t first_block(const sa_tile *t) { return t->begin / SA_BLOCK_N * SA_BLOCK_N; }

/* Whether each tile of a head finds its keys, of so many bytes, beyond the second cache. */
static int are_far(const sa_tile *t, int64_t bytes) {
    return bytes && t->end - t->begin >= NEAR_BYTES / bytes;
}

/* Where the next n lines are, `stride` bytes apart. */
SA_INLINE uintptr_t take_ahead(ahead *a, int64_t n, ptrdiff_t *stride) {
    if (a->lines <= 0) next_lines(a);
    const uintptr_t at = a->at;
    *stride = a->stride;
    a->at += (uintptr_t)n * (uintptr_t)*stride; /* which may be any number, for a single row */
    a->lines -= n;
    return at;
}
