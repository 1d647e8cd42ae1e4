/* Half types, one element at a time, in integer arithmetic: exact to read, rounded to nearest, ties
 * to even, to write, in any floating-point environment. NaN stays NaN.
 *
 *     f16     IEEE 754 binary16: 1 sign, 5 exponent, 10 mantissa bits
 *     bf16    the upper half of a float
 *
 * Used by problem.c, and by the sets that have no instruction for it (simd/portable.h). */
#ifndef SA_HALF_H
#define SA_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t sa_bits_of_float(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static inline float sa_float_of_bits(uint32_t b) {
    float x;
    memcpy(&x, &b, sizeof x);
    return x;
}

static inline float sa_float_of_bf16(uint16_t h) { return sa_float_of_bits((uint32_t)h << 16); }

static inline uint16_t sa_bf16_of_float(float x) {
    uint32_t b = sa_bits_of_float(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(b >> 16 | 0x40); /* a quiet NaN */
    return (uint16_t)((b + 0x7fffu + (b >> 16 & 1)) >> 16);
}

static inline float sa_float_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31) return sa_float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) {
        if (!mantissa) return sa_float_of_bits(sign);
        /* Subnormal: shift the leading bit into its place. */
        for (exponent = 1; !(mantissa & 0x400u); mantissa <<= 1) --exponent;
        mantissa &= 0x3ffu;
    }
    return sa_float_of_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
}

static inline uint16_t sa_f16_of_float(float x) {
    enum { BIAS = 112, DROPPED = 13 }; /* of the exponents; bits of the mantissa */
    uint32_t b = sa_bits_of_float(x), magnitude = b & 0x7fffffffu;
    uint16_t sign = (uint16_t)(b >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (magnitude >> DROPPED & 0x3ffu));
    if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* 2^16 and more: inf */
    int32_t exponent = (int32_t)(magnitude >> 23) - BIAS;
    uint32_t kept = magnitude - ((uint32_t)BIAS << 23), shift = DROPPED;
    if (exponent <= 0) { /* subnormal, or 0 */
        if (exponent < -DROPPED + 3) return sign;
        kept = (magnitude & 0x7fffffu) | 0x800000u;
        shift = (uint32_t)(DROPPED + 1 - exponent);
    }
    uint32_t half = 1u << (shift - 1);
    /* A carry out of the mantissa increments the exponent, as it should, up to inf. */
    return (uint16_t)(sign | (uint16_t)((kept + half - 1 + (kept >> shift & 1)) >> shift));
}

#endif
