/* Packed keys, values and gradients: see gradient_packed.h. */

#include "gradient_packed.h"

#include "mask.h"
#include "packed.h"

/* With fewer tiles of a batch entry, nothing is packed. */
enum { MIN_TILES = 3 };

static int64_t bytes_of_row(const sa_problem *p, int i) {
    return (i == SA_KEYS || i == SA_GRAD_KEYS ? p->head_dim : p->head_dim_v) *
           sa_dtype_size(p->dtype);
}

sa_packed_layout sa_packed_layout_make(const sa_gradient_plan *plan) {
    const sa_problem *p = plan->rows.problem;
    const sa_gradients *g = plan->gradients;
    const sa_array *arrays[SA_PACKED_ARRAYS] = {&p->key, &p->value, &g->key, &g->value};
    sa_packed_layout x = {0};
    for (int i = 0; i < SA_PACKED_ARRAYS; ++i) {
        int64_t bytes = bytes_of_row(p, i);
        if (!bytes || !sa_rows_have_gaps(p, arrays[i], bytes)) continue;
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

void sa_packed_job_begin(sa_packed_job *x, const sa_job *job) {
    const sa_problem *p = x->plan->rows.problem;
    int needs_grad = job->pass->needs_grad;
    /* Sinks need no keys; and rows that are counted again need all of them. */
    x->is_used = x->layout->size > 0 && job->pass->key_parts == 1 &&
                 needs_grad != SA_GRADIENT_SINKS && sa_tiles_of_job(x->plan, job) >= MIN_TILES;
    x->copied[SA_KEYS] = x->copied[SA_VALUES] = (sa_copied_rows){0};
    x->own = x->grow = sa_key_gradients_of(x->plan, job);
    char *key = memory_of(x, SA_GRAD_KEYS), *value = memory_of(x, SA_GRAD_VALUES);
    if (key && needs_grad & SA_GRADIENT_KEY)
        x->grow.key = key, x->grow.key_row = bytes_of_row(p, SA_GRAD_KEYS);
    if (value && needs_grad & SA_GRADIENT_VALUE)
        x->grow.value = value, x->grow.value_row = bytes_of_row(p, SA_GRAD_VALUES);
}

/* The keys or the values of a tile, which others of the job may share. */
static void use_copy(sa_packed_job *x, int i, sa_backward_tile *t, const char **at,
                     ptrdiff_t *row) {
    char *copy = memory_of(x, i);
    int64_t bytes = bytes_of_row(x->plan->rows.problem, i);
    sa_copied_rows *copied = &x->copied[i];
    if (!copy) return;
    if (copied->at != *at || copied->rows < t->num_keys) {
        sa_copy_rows(copy, bytes, *at, *row, bytes, t->num_keys);
        *copied = (sa_copied_rows){*at, t->num_keys};
        *t->fwd.finite = (sa_finite){0}; /* there were others in memory */
    }
    *at = copy;
    *row = bytes;
}

void sa_packed_job_tile(sa_packed_job *x, sa_backward_tile *t) {
    if (!x->is_used) return;
    use_copy(x, SA_KEYS, t, &t->fwd.k, &t->fwd.k_row);
    use_copy(x, SA_VALUES, t, &t->fwd.v, &t->fwd.v_row);
    if (memory_of(x, SA_KEYS) && memory_of(x, SA_VALUES)) t->is_first = 0; /* they are near */
    t->dk = x->grow.key;
    t->dv = x->grow.value;
    t->dk_row = x->grow.key_row;
    t->dv_row = x->grow.value_row;
}

int sa_packed_job_writes(const sa_packed_job *x) {
    return x->grow.key != x->own.key || x->grow.value != x->own.value;
}

void sa_packed_job_end(const sa_packed_job *x) {
    const sa_key_gradients *own = &x->own, *grow = &x->grow;
    if (grow->key != own->key)
        sa_copy_rows(own->key, own->key_row, grow->key, grow->key_row, grow->key_row, own->rows);
    if (grow->value != own->value)
        sa_copy_rows(own->value, own->value_row, grow->value, grow->value_row, grow->value_row,
                     own->rows);
}
