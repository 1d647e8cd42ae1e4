/* What a problem's arrays hold and where: scalars of any dtype, rows, batch entries, and the ranges
 * of rows that packed sequences occupy. Pure look-ups; used by everything between the API and the
 * kernels. */
#ifndef SA_PROBLEM_H
#define SA_PROBLEM_H

#include "selfattn.h"

/* Bytes of an element; the dtype of the reals that it is computed in, and their bytes; one element
 * as a double, read from and written to any address. */
int64_t sa_dtype_size(sa_dtype dtype);
sa_dtype sa_real_dtype(sa_dtype dtype);
int64_t sa_real_size(sa_dtype dtype);
/* Whether elements are not themselves what is computed in. */
int sa_is_half(sa_dtype dtype);
double sa_load_scalar(sa_dtype dtype, const char *at);
void sa_store_scalar(sa_dtype dtype, void *at, double x);

/* The number of batch entries. */
int64_t sa_entries(const sa_problem *p);

/* Row r of head h of batch entry b. */
char *sa_row_of(const sa_problem *p, const sa_array *a, int64_t b, int64_t h, int64_t r);

/* Row `row` of an array whose `axes` leading axes of `shape` are counted in C order. */
char *sa_row_at(const sa_rows *a, int axes, const int64_t *shape, int64_t row);

/* Batch entry b's first query (key) among the rows of the arrays, and how many it has. */
static inline int64_t sa_first_query(const sa_problem *p, int64_t b) {
    const int64_t *starts = p->seq_starts_q ? p->seq_starts_q : p->cu_seqlens_q;
    return starts ? starts[b] : 0;
}
static inline int64_t sa_num_queries(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_q ? p->cu_seqlens_q[b + 1] - p->cu_seqlens_q[b] : p->seqlen_q;
}
static inline int64_t sa_first_key(const sa_problem *p, int64_t b) {
    const int64_t *starts = p->seq_starts_k ? p->seq_starts_k : p->cu_seqlens_k;
    return starts ? starts[b] : 0;
}
static inline int64_t sa_num_keys(const sa_problem *p, int64_t b) {
    return p->cu_seqlens_k ? p->cu_seqlens_k[b + 1] - p->cu_seqlens_k[b] : p->seqlen_k;
}

/* The queries of batch entry b that are no padding: the first ones. */
static inline int64_t sa_used_queries(const sa_problem *p, int64_t b) {
    return p->query_lengths ? p->query_lengths[b] : sa_num_queries(p, b);
}

/* The position among the keys of query i of batch entry b. */
static inline int64_t sa_position(const sa_problem *p, int64_t b, int64_t i) {
    return i + (p->query_offset_of_batch ? p->query_offset_of_batch[b] : p->query_offset);
}

#endif
