/* Rows that are needed soon, fetched into the second cache a few at a time while a product is
 * computed. All at once, they would be waited for: the processor remembers a few dozen misses, not
 * more.
 *
 * Called by the product (product.inc.h) before each strip of its rows. */

/* So many rows, of so many bytes: a list of them, or one every `row` bytes from `at`. */
typedef struct {
    int64_t rows, bytes;
    const char *const *list;
    uintptr_t at;
    ptrdiff_t row;
    int64_t at_once; /* rows */
} rows_ahead;

enum { AHEAD_PARTS = 10 }; /* as many as the backward pass has (gradient_ahead.inc.h) */

typedef struct {
    rows_ahead parts[AHEAD_PARTS];
    int num_parts;
    int products; /* to come */
} ahead;

/* Nothing, as yet, during so many products. */
static void ahead_begin(ahead *a, int products) {
    a->num_parts = 0;
    a->products = products;
}

/* The next part, of so many rows. It is filled where it stays: a copy of what was just written
 * waits. */
static rows_ahead *next_part(ahead *a, int64_t rows, int64_t bytes) {
    rows_ahead *r = &a->parts[a->num_parts++];
    r->rows = rows;
    r->bytes = bytes;
    r->at_once = 0;
    return r;
}

static void fetch_list(ahead *a, const char *const *list, int64_t rows, int64_t bytes) {
    next_part(a, rows, bytes)->list = list;
}

/* Rows that lie together are fetched as the cache lines that they are. */
static void fetch_rows(ahead *a, const char *at, ptrdiff_t row, int64_t rows, int64_t bytes) {
    int together = row == bytes;
    int64_t lines = (rows * bytes + CACHE_LINE - 1) / CACHE_LINE;
    rows_ahead *r = together ? next_part(a, lines, CACHE_LINE) : next_part(a, rows, bytes);
    r->list = NULL;
    r->at = (uintptr_t)at;
    r->row = together ? CACHE_LINE : row;
}

/* Divide them among the products to come, the first of which has so many strips. */
static void ahead_divide(ahead *a, int64_t strips) {
    int64_t shares = strips * a->products--;
    for (rows_ahead *r = a->parts; r < a->parts + a->num_parts; ++r)
        if (r->rows) r->at_once = (r->rows + shares - 1) / shares;
}

SA_INLINE void fetch_row(uintptr_t at, int64_t bytes) {
    for (uintptr_t end = at + (uintptr_t)bytes; at < end; at += CACHE_LINE) SA_PREFETCH(at);
}

static void ahead_fetch(ahead *a) {
    for (rows_ahead *r = a->parts; r < a->parts + a->num_parts; ++r) {
        const int64_t n = r->at_once < r->rows ? r->at_once : r->rows;
        r->rows -= n;
        if (r->list) {
            const char *const *end = r->list + n;
            for (; r->list < end; ++r->list) fetch_row((uintptr_t)*r->list, r->bytes);
        } else {
            uintptr_t at = r->at;
            for (int64_t i = 0; i < n; ++i, at += (uintptr_t)r->row) fetch_row(at, r->bytes);
            r->at = at;
        }
    }
}
