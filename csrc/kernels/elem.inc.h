/* The two types of the kernels, and how one becomes the other:
 *
 *     elem    an element as it lies in the caller's arrays: the dtype of the call
 *     real    a number as it is computed with, in registers and scratch: float or double
 *
 * For float32 and float64 they are the same, and the operations below are plain loads and stores;
 * so ELEM_IS_REAL is a constant by which code that only the others need is left out. Loading is
 * exact; storing rounds to nearest.
 *
 *     s_load s_load_n s_broadcast s_store s_store_n      as v_... in simd/common.h, of elements
 *
 * Anything that s_... touches is the caller's memory, anything that v_... touches is real. */
#ifndef SA_KERNELS_ELEM_INC_H
#define SA_KERNELS_ELEM_INC_H

#include <string.h>

#include "../kernels.h"
#include "simd.inc.h"

typedef SA_ELEM elem;

enum { ELEM_SIZE = sizeof(elem), REAL_SIZE = sizeof(real), ELEM_IS_REAL = SA_ELEM_IS_REAL };

#define SA_JOIN_OP(dtype, op) dtype##_##op
#define SA_OP_OF(dtype, op) SA_JOIN_OP(dtype, op)

#define f32_load v_load
#define f64_load v_load
#define f32_store v_store
#define f64_store v_store

SA_INLINE vec s_load(const void *p) { return SA_OP_OF(SA_DTYPE_NAME, load)(p); }
SA_INLINE void s_store(void *p, vec x) { SA_OP_OF(SA_DTYPE_NAME, store)(p, x); }

SA_INLINE vec s_load_n(const void *p, int n) {
    if (ELEM_IS_REAL) return v_load_n(p, n);
    elem x[LANES] = {0};
    memcpy(x, p, (size_t)n * sizeof *x);
    return s_load(x);
}

SA_INLINE void s_store_n(void *p, vec x, int n) {
    if (ELEM_IS_REAL) {
        v_store_n(p, x, n);
        return;
    }
    elem y[LANES];
    s_store(y, x);
    memcpy(p, y, (size_t)n * sizeof *y);
}

/* Whether kernels read int8 with scales (keys.inc.h) in registers. Calls that have them are of
 * float32. */
enum { HAS_INT8 = SA_REAL_BITS == 32 && ELEM_IS_REAL };

/* The elements of a lane of a vector that v_load has loaded: PER_LANE of them, in order. */
enum { PER_LANE = REAL_SIZE / ELEM_SIZE };

#define f32_split split_of_reals
#define f64_split split_of_reals
SA_INLINE void split_of_reals(vec x, vec *even, vec *odd) { *even = *odd = x; }

SA_INLINE void s_split(vec x, vec elements[2]) {
    SA_OP_OF(SA_DTYPE_NAME, split)(x, &elements[0], &elements[1]);
}

SA_INLINE vec s_broadcast(const char *p) {
    return ELEM_IS_REAL ? v_broadcast(p) : v_set(v_first(s_load_n(p, 1)));
}

#undef f32_split
#undef f64_split
#undef f32_load
#undef f64_load
#undef f32_store
#undef f64_store

/* The n <= LANES elements at p, p + stride, ...; the other lanes 0. What is not a whole vector is
 * loaded and stored apart: inlined everywhere, it would be a tenth of all code. */
static SA_APART vec s_load_some(const char *p, ptrdiff_t stride, int n) {
    if (stride == ELEM_SIZE) return s_load_n(p, n);
    elem x[LANES] = {0};
    for (int i = 0; i < n; ++i) memcpy(&x[i], p + i * stride, sizeof *x);
    return s_load(x);
}

SA_INLINE vec s_load_strided(const char *p, ptrdiff_t stride, int n) {
    return stride == ELEM_SIZE && n == LANES ? s_load(p) : s_load_some(p, stride, n);
}

static SA_APART void s_store_some(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride == ELEM_SIZE) {
        s_store_n(p, x, n);
        return;
    }
    elem y[LANES];
    s_store(y, x);
    for (int i = 0; i < n; ++i) memcpy(p + i * stride, &y[i], sizeof *y);
}

SA_INLINE void s_store_strided(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride == ELEM_SIZE && n == LANES)
        s_store(p, x);
    else
        s_store_some(p, stride, n, x);
}

/* The same of reals. */
static SA_APART vec v_load_some(const char *p, ptrdiff_t stride, int n) {
    if (stride == REAL_SIZE) return v_load_n(p, n);
    real x[LANES] = {0};
    for (int i = 0; i < n; ++i) x[i] = read_real(p + i * stride);
    return v_load(x);
}

SA_INLINE vec v_load_strided(const char *p, ptrdiff_t stride, int n) {
    return stride == REAL_SIZE && n == LANES ? v_load(p) : v_load_some(p, stride, n);
}

static SA_APART void v_store_some(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride == REAL_SIZE) {
        v_store_n(p, x, n);
        return;
    }
    real y[LANES];
    v_store(y, x);
    for (int i = 0; i < n; ++i) write_real(p + i * stride, y[i]);
}

SA_INLINE void v_store_strided(char *p, ptrdiff_t stride, int n, vec x) {
    if (stride == REAL_SIZE && n == LANES)
        v_store(p, x);
    else
        v_store_some(p, stride, n, x);
}

#endif
