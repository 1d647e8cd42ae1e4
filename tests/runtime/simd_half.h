/* The loads and stores of half types, and the load of int8, of the header under test, against
 * csrc/half.h. Included by simd.c where a real is a float; test_half_conversions.py compares half.h
 * itself with NumPy. */
#ifndef SIMD_HALF_H
#define SIMD_HALF_H

#include "half.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

typedef struct {
    uint16_t x[LANES];
} halves;

enum { HALF_SIGN = 0x8000, F16_INF = 0x7c00, BF16_INF = 0x7f80, NEAR = 6 };

static int is_half_nan(uint16_t h, int inf) { return (h & ~HALF_SIGN & 0xffff) > inf; }

/* The same bits in memory, or any NaN where `want` has one. */
static void same_halves(const char *p, halves want, int inf) {
    halves got;
    memcpy(&got, p, sizeof got);
    EACH_LANE(i) {
        int both_nan = is_half_nan(got.x[i], inf) && is_half_nan(want.x[i], inf);
        if (got.x[i] != want.x[i] && !both_nan) differs(i, got.x[i], want.x[i]);
    }
    num_compared += LANES;
}

/* The bits of NEAR floats around the tie between a half number and the next larger one, the number
 * itself among them; for infinities and NaNs, floats above them. */
static uint32_t f16_near(uint16_t h, int which) {
    uint16_t magnitude = h & 0x7fff;
    uint32_t sign = (uint32_t)(h & HALF_SIGN) << 16;
    float low = sa_float_of_f16(magnitude);
    if (which == 0 || magnitude >= F16_INF) return sign | (sa_bits_of_float(low) + (uint32_t)which);
    double high = magnitude == F16_INF - 1 ? 65536 : (double)sa_float_of_f16(magnitude + 1);
    uint32_t tie = sa_bits_of_float((float)(((double)low + high) / 2));
    return sign | (tie + (uint32_t)which - NEAR / 2);
}

static uint32_t bf16_near(uint16_t h, int which) {
    static const uint16_t lower_halves[NEAR] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    return (uint32_t)h << 16 | lower_halves[which];
}

/* All of 2^16 patterns, each in every lane, at both ends of a page; odd addresses among them. */
#define CHECK_HALF_LOAD(type)                                                 \
    begin(#type "_load");                                                     \
    for (int rotated = 0; rotated < LANES; ++rotated)                         \
        for (int first = 0; first < 1 << 16; first += LANES) {                \
            char *p = first % 2 ? page + rotated : page_end - sizeof(halves); \
            halves h;                                                         \
            lanes want;                                                       \
            EACH_LANE(i) h.x[i] = (uint16_t)(first + (i ^ rotated));          \
            EACH_LANE(i) want.x[i] = sa_float_of_##type(h.x[i]);              \
            memcpy(p, &h, sizeof h);                                          \
            same_values(type##_load(p), want);                                \
        }                                                                     \
    end();

/* All pairs of a pattern and another one, each in every lane. */
#define CHECK_HALF_SPLIT(type)                                                        \
    begin(#type "_split");                                                            \
    for (int rotated = 0; rotated < LANES; ++rotated)                                 \
        for (int first = 0; first < 1 << 16; first += LANES) {                        \
            lanes want_even, want_odd;                                                \
            vec even, odd;                                                            \
            EACH_LANE(i) {                                                            \
                uint16_t h = (uint16_t)(first + (i ^ rotated));                       \
                uint16_t other = (uint16_t)(40503u * h + 12345u + (unsigned)rotated); \
                a.w[i] = (uint32_t)other << 16 | h; /* the first is the lower half */ \
                want_even.x[i] = sa_float_of_##type(h);                               \
                want_odd.x[i] = sa_float_of_##type(other);                            \
            }                                                                         \
            type##_split(vec_of(a), &even, &odd);                                     \
            same_values(even, want_even);                                             \
            same_values(odd, want_odd);                                               \
        }                                                                             \
    end();

#define STORE_HALVES(type, inf, p)                         \
    halves want;                                           \
    EACH_LANE(i) want.x[i] = sa_##type##_of_float(a.x[i]); \
    type##_store(p, vec_of(a)), same_halves(p, want, inf);

/* Floats on both sides of every tie, each in every lane, and any floats; then bytes around. */
#define CHECK_HALF_STORE(type, inf)                                                  \
    begin(#type "_store");                                                           \
    for (int rotated = 0; rotated < LANES; ++rotated)                                \
        for (int at = 0; at < NEAR << 16; at += LANES) {                             \
            EACH_LANE(i) {                                                           \
                int n = at + (i ^ rotated);                                          \
                a.w[i] = type##_near((uint16_t)(n / NEAR), n % NEAR);                \
            }                                                                        \
            STORE_HALVES(type, inf, page + 1)                                        \
        }                                                                            \
    for (int round = 0; operands(round, 1) || round < 20 * RANDOM_ROUNDS; ++round) { \
        STORE_HALVES(type, inf, page)                                                \
    }                                                                                \
    memcpy(expected, page, (size_t)(page_end - page));                               \
    for (int k = 0; k < PLACES; ++k) {                                               \
        char *p = place(k, sizeof(halves));                                          \
        halves stored;                                                               \
        draw(&a);                                                                    \
        EACH_LANE(i) while (isnan(a.x[i])) a.w[i] = random_real();                   \
        EACH_LANE(i) stored.x[i] = sa_##type##_of_float(a.x[i]);                     \
        type##_store(p, vec_of(a));                                                  \
        memcpy(expected + (p - page), &stored, sizeof stored), same_page();          \
    }                                                                                \
    end();

/* Every byte, in every lane. */
static void test_int8(void) {
    begin("v_split_int8");
    for (int first = 0; first < 256; ++first) {
        vec got[4];
        signed char bytes[4 * LANES];
        for (int i = 0; i < 4 * LANES; ++i) bytes[i] = (signed char)(first + 37 * i);
        memcpy(&a, bytes, sizeof bytes);
        v_split_int8(vec_of(a), got);
        for (int j = 0; j < 4; ++j) {
            lanes want;
            EACH_LANE(i) want.x[i] = bytes[4 * i + j];
            same_values(got[j], want);
        }
    }
    end();
    begin("v_load_int8");
    for (int first = 0; first < 256; ++first) {
        char *p = first % 2 ? page + first % 3 : page_end - LANES;
        lanes want;
        EACH_LANE(i) p[i] = (char)(first + 37 * i);
        EACH_LANE(i) want.x[i] = (signed char)(first + 37 * i);
        same_values(v_load_int8(p), want);
    }
    end();
}

static void test_half_types_here(void) {
    test_int8();
    CHECK_HALF_LOAD(f16)
    CHECK_HALF_LOAD(bf16)
    CHECK_HALF_SPLIT(f16)
    CHECK_HALF_SPLIT(bf16)
    CHECK_HALF_STORE(f16, F16_INF)
    CHECK_HALF_STORE(bf16, BF16_INF)
}

/* As usual, and where subnormal results and operands are flushed to 0: conversions are exact all
 * the same. */
static void test_half_types(void) {
    test_half_types_here();
#if defined(__SSE2__)
    enum { FLUSH_RESULTS = 0x8000, FLUSH_OPERANDS = 0x40 };
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | FLUSH_RESULTS | FLUSH_OPERANDS);
    test_half_types_here();
    _mm_setcsr(before);
#endif
}

#define STORE_EVERY_FLOAT(type, inf)                                   \
    begin(#type "_store");                                             \
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += LANES) { \
        EACH_LANE(i) a.w[i] = (uint32_t)bits + (uint32_t)i;            \
        STORE_HALVES(type, inf, page)                                  \
    }                                                                  \
    end();

static void store_every_float(void) {
    STORE_EVERY_FLOAT(f16, F16_INF)
    STORE_EVERY_FLOAT(bf16, BF16_INF)
}

#endif
