/* csrc/half.h as functions of arrays, for test_half_conversions.py. */

#include "half.h"

#define FUNCTIONS_OF(type)                                                 \
    void type##_to_floats(const uint16_t *from, float *to, int n) {        \
        for (int i = 0; i < n; ++i) to[i] = sa_float_of_##type(from[i]);   \
    }                                                                      \
    void type##_from_floats(const float *from, uint16_t *to, int n) {      \
        for (int i = 0; i < n; ++i) to[i] = sa_##type##_of_float(from[i]); \
    }
FUNCTIONS_OF(f16)
FUNCTIONS_OF(bf16)
