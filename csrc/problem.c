/* Look-ups in a problem's arrays: see problem.h. */

#include "problem.h"

#include <string.h>

int64_t sa_dtype_size(sa_dtype dtype) { return dtype == SA_f64 ? sizeof(double) : sizeof(float); }

double sa_load_scalar(sa_dtype dtype, const char *at) {
    float x;
    double y;
    if (dtype == SA_f64) return memcpy(&y, at, sizeof y), y;
    return memcpy(&x, at, sizeof x), x;
}

void sa_store_scalar(sa_dtype dtype, void *at, double x) {
    float narrow = (float)x;
    if (dtype == SA_f64)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &narrow, sizeof narrow);
}

int64_t sa_entries(const sa_problem *p) {
    int64_t entries = 1;
    for (int i = 0; i < p->batch_axes; ++i) entries *= p->batch_shape[i];
    return entries;
}

char *sa_row_of(const sa_problem *p, const sa_array *a, int64_t b, int64_t h, int64_t r) {
    char *at = a->data + h * a->head + r * a->row;
    for (int i = p->batch_axes - 1; i >= 0; --i) {
        at += b % p->batch_shape[i] * a->batch[i];
        b /= p->batch_shape[i];
    }
    return at;
}

char *sa_row_at(const sa_rows *a, int axes, const int64_t *shape, int64_t row) {
    char *at = a->data;
    for (int i = axes - 1; i > 0; --i) {
        at += row % shape[i] * a->stride[i];
        row /= shape[i];
    }
    return axes ? at + row * a->stride[0] : at;
}
