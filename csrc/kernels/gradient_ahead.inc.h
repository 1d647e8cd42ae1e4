/* What the backward pass fetches ahead, while the products of a block are computed: the keys and
 * values of the next block, and their gradients, if nothing has brought them near; the tile's share
 * of keys' gradients that are written soon; and in its last block but one the rows of the next
 * tile, and those that this one writes. Called by backward.inc.h. */

/* What the second cache has room for beside a head's keys, values and gradients. */
enum { SOON_BYTES = 1 << 18 };

static int gradients_are_far(const sa_gradient_tile *g) {
    const sa_tile *t = &g->seen;
    return are_far(t, 2 * (t->head_dim + t->head_dim_v) * (int64_t)sizeof(real));
}

/* The keys of a block, and sums of their gradients, which a first tile finds just cleared. */
static void fetch_keys(const sa_gradient_tile *g, int64_t block, ahead *a) {
    const sa_tile *t = &g->seen;
    int64_t size = sizeof(real), n = at_most(t->end - block, SA_BLOCK_N);
    int64_t k_bytes = t->head_dim * size, v_bytes = t->head_dim_v * size;
    if (n <= 0 || (!gradients_are_far(g) && !g->is_first)) return;
    fetch_block(t, block, a);
    if (!gradients_are_far(g)) return;
    if (wants(g, SA_GRADIENT_KEY))
        fetch_rows(a, g->grad_k + block * g->grad_k_row, g->grad_k_row, n, k_bytes);
    if (wants(g, SA_GRADIENT_VALUE))
        fetch_rows(a, g->grad_v + block * g->grad_v_row, g->grad_v_row, n, v_bytes);
}

/* The block's share of what is written soon, and of no more than there is room for. */
static void fetch_soon(const sa_gradient_tile *g, int64_t block, ahead *a) {
    const sa_tile *t = &g->seen;
    const sa_key_gradients *soon = &g->soon;
    int64_t k_bytes = t->head_dim * (int64_t)sizeof(real);
    int64_t v_bytes = t->head_dim_v * (int64_t)sizeof(real);
    int64_t all = t->end - first_block(t), done = block - first_block(t), next = done + SA_BLOCK_N;
    int64_t rows = soon->rows, most = SOON_BYTES / (k_bytes + v_bytes + 1);
    if (rows > most) rows = most;
    int64_t i = rows * done / all, n = rows * (next < all ? next : all) / all - i;
    if (n <= 0) return;
    fetch_rows(a, soon->key + i * soon->key_row, soon->key_row, n, k_bytes);
    fetch_rows(a, soon->value + i * soon->value_row, soon->value_row, n, v_bytes);
}

static void gradient_ahead(const sa_gradient_tile *g, int64_t block, ahead *a) {
    const sa_tile *t = &g->seen;
    const sa_gradient_tile *next = g->next;
    int64_t k_bytes = t->head_dim * (int64_t)sizeof(real);
    int64_t v_bytes = t->head_dim_v * (int64_t)sizeof(real), left = t->end - block - SA_BLOCK_N;
    ahead_begin(a);
    fetch_soon(g, block, a);
    if (left > 0)
        fetch_keys(g, block + SA_BLOCK_N, a);
    else if (next)
        fetch_keys(next, first_block(&next->seen), a);
    int is_last_but_one = left > 0 && left <= SA_BLOCK_N, is_only = left <= 0 && block <= t->begin;
    if (!is_last_but_one && !is_only) return;
    if (next) {
        const char *const *out = (const char *const *)next->seen.out;
        fetch_list(a, next->seen.q, next->seen.rows, t->group, k_bytes);
        fetch_list(a, next->grad_out, next->seen.rows, t->group, v_bytes);
        fetch_list(a, out, next->seen.rows, t->group, v_bytes);
    }
    if (wants(g, SA_GRADIENT_QUERY))
        fetch_list(a, (const char *const *)g->grad_q, t->rows, t->group, k_bytes);
}
