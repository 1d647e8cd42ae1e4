/* Look-ups in a problem's arrays: see problem.h. */

#include "problem.h"

#include <string.h>

#include "half.h"

static const struct {
    int size;
    sa_dtype real;
} dtypes[] = {
#define SA_DTYPE(name, element, real) {sizeof(element), SA_##real},
#include "dtypes.def"
#undef SA_DTYPE
};

int64_t sa_dtype_size(sa_dtype dtype) { return dtypes[dtype].size; }
sa_dtype sa_real_dtype(sa_dtype dtype) { return dtypes[dtype].real; }
int64_t sa_real_size(sa_dtype dtype) { return sa_dtype_size(sa_real_dtype(dtype)); }
int sa_is_half(sa_dtype dtype) { return sa_real_dtype(dtype) != dtype; }

typedef union {
    double f64;
    float f32;
    uint16_t half;
} scalar;

double sa_load_scalar(sa_dtype dtype, const char *at) {
    scalar x;
    memcpy(&x, at, (size_t)sa_dtype_size(dtype));
    switch (dtype) {
        case SA_f32: return x.f32;
        case SA_f16: return sa_float_of_f16(x.half);
        case SA_bf16: return sa_float_of_bf16(x.half);
        default: return x.f64;
    }
}

/* Half types as their real type is: rounded to float, and that to half. */
void sa_store_scalar(sa_dtype dtype, void *at, double x) {
    scalar y;
    switch (dtype) {
        case SA_f32: y.f32 = (float)x; break;
        case SA_f16: y.half = sa_f16_of_float((float)x); break;
        case SA_bf16: y.half = sa_bf16_of_float((float)x); break;
        default: y.f64 = x;
    }
    memcpy(at, &y, (size_t)sa_dtype_size(dtype));
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
