/* Packed keys, values and gradients: see gradient_packed.h. */

#include "gradient_packed.h"

#include "mask.h"
#include "packed.h"

/* With fewer tiles of a batch entry, nothing is packed. */
enum { MIN_TILES = 3 };

static int64_t bytes_of_row(const sa_problem *p, int i) {
    return (i == SA_KEYS || i == SA_GRAD_KEYS ? p->head_dim : p->head_dim_v) * sa_real_size(p);
}

sa_packed_layout sa_packed_layout_make(const sa_gradient_plan *plan) {
    const sa_problem *p = plan->rows.problem;
    const sa_gradients *g = plan->gradients;
    const sa_array *arrays[SA_PACKED_ARRAYS] = {&p->key, &p->value, &g->key, &g->value};
    sa_packed_layout x = {0};
    for (int i = 0; i < SA_PACKED_ARRAYS; ++i) {
        int64_t bytes = bytes_of_row(p, i);
        if (!bytes || !sa_lies_apart(p, arrays[i], bytes)) continue;
        if (p->seqlen_k > 2 * SA_PACKED_BYTES / bytes) return (sa_packed_layout){0};
        x.is_packed[i] = 1;
        x.at[i] = x.size;
        x.size += sa_whole_lines((size_t)(p->seqlen_k * bytes));
    }
    return x.size <= 2 * SA_PACKED_BYTES ? x : (sa_packed_layout){0};
}

static char *memory_of(const sa_packed_job *x, int i) {
    return x->is_used && x->layout->is_packed[i] ? x->memory + x->layout->at[i] : NULL;
}

sa_key_gradients sa_begin_packed(sa_packed_job *x, const sa_job *job) {
    const sa_problem *p = x->plan->rows.problem;
    x->own = sa_key_gradients_of(x->plan, job);
    /* Sinks need no keys; and rows that are counted again need all of them. */
    x->is_used = x->layout->size > 0 && job->pass->key_parts == 1 &&
                 job->pass->wanted != SA_GRADIENT_SINKS &&
                 sa_tiles_of_job(x->plan, job) >= MIN_TILES;
    x->copied[SA_KEYS] = x->copied[SA_VALUES] = (sa_copied_rows){0};
    sa_key_gradients grow = x->own;
    char *key = memory_of(x, SA_GRAD_KEYS), *value = memory_of(x, SA_GRAD_VALUES);
    if (key) grow.key = key, grow.key_row = bytes_of_row(p, SA_GRAD_KEYS);
    if (value) grow.value = value, grow.value_row = bytes_of_row(p, SA_GRAD_VALUES);
    return grow;
}

/* The keys or the values of a tile, which others of the job may share. */
static void use_copy(sa_packed_job *x, int i, sa_gradient_tile *t, const char **at,
                     ptrdiff_t *row) {
    char *copy = memory_of(x, i);
    int64_t bytes = bytes_of_row(x->plan->rows.problem, i);
    sa_copied_rows *copied = &x->copied[i];
    if (!copy) return;
    if (copied->at != *at || copied->rows < t->num_keys) {
        sa_copy_rows(copy, bytes, *at, *row, bytes, t->num_keys);
        *copied = (sa_copied_rows){*at, t->num_keys};
        *t->seen.finite = (sa_finite){0}; /* there were others in memory */
    }
    *at = copy;
    *row = bytes;
}

void sa_use_packed(sa_packed_job *x, sa_gradient_tile *t) {
    if (!x->is_used) return;
    use_copy(x, SA_KEYS, t, &t->seen.k, &t->seen.k_row);
    use_copy(x, SA_VALUES, t, &t->seen.v, &t->seen.v_row);
    if (x->layout->is_packed[SA_KEYS] && x->layout->is_packed[SA_VALUES])
        t->is_first = 0; /* near */
    char *key = memory_of(x, SA_GRAD_KEYS), *value = memory_of(x, SA_GRAD_VALUES);
    if (key) t->grad_k = key, t->grad_k_row = bytes_of_row(x->plan->rows.problem, SA_GRAD_KEYS);
    if (value)
        t->grad_v = value, t->grad_v_row = bytes_of_row(x->plan->rows.problem, SA_GRAD_VALUES);
}

sa_key_gradients sa_written_by_end(const sa_packed_job *x, const sa_job *job) {
    int keys = memory_of(x, SA_GRAD_KEYS) && job->pass->wanted & SA_GRADIENT_KEY;
    int values = memory_of(x, SA_GRAD_VALUES) && job->pass->wanted & SA_GRADIENT_VALUE;
    return keys || values ? x->own : (sa_key_gradients){0};
}

void sa_end_packed(const sa_packed_job *x, const sa_job *job) {
    const sa_problem *p = x->plan->rows.problem;
    const sa_key_gradients *own = &x->own;
    char *key = memory_of(x, SA_GRAD_KEYS), *value = memory_of(x, SA_GRAD_VALUES);
    int64_t k_bytes = bytes_of_row(p, SA_GRAD_KEYS), v_bytes = bytes_of_row(p, SA_GRAD_VALUES);
    if (key && job->pass->wanted & SA_GRADIENT_KEY)
        sa_copy_rows(own->key, own->key_row, key, k_bytes, k_bytes, own->rows);
    if (value && job->pass->wanted & SA_GRADIENT_VALUE)
        sa_copy_rows(own->value, own->value_row, value, v_bytes, v_bytes, own->rows);
}
