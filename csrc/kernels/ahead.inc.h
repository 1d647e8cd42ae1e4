/* Rows that are needed soon, fetched into the second cache a few at a time while a product is computed.
 * All at once, they would be waited for: the processor remembers a few dozen misses, not more.
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

enum { AHEAD_PARTS = 4 };

typedef struct {
    rows_ahead parts[AHEAD_PARTS];
} ahead;

/* Divide them among so many strips. */
static void ahead_divide(ahead *a, int64_t strips) {
    for (int i = 0; i < AHEAD_PARTS; ++i)
        a->parts[i].at_once = (a->parts[i].rows + strips - 1) / strips;
}

static void ahead_fetch(ahead *a) {
    for (int i = 0; i < AHEAD_PARTS; ++i) {
        rows_ahead *r = &a->parts[i];
        for (int64_t n = r->at_once < r->rows ? r->at_once : r->rows; n > 0; --n, --r->rows) {
            uintptr_t at = r->list ? (uintptr_t)*r->list++ : r->at;
            for (int64_t x = 0; x < r->bytes; x += CACHE_LINE) SA_PREFETCH(at + (uintptr_t)x);
            r->at += (uintptr_t)r->row;
        }
    }
}
