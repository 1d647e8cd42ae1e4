/* Scores in natural units, as a bias needs them, in steps that round once each:
 *
 *     s = scale s,   or with a cap   s = cap tanh((scale / cap) s)      softcap
 *     s = s - slope |position - key|                                    ALiBi
 *
 * (Gemma 2's report, 2024, section 2; Press et al., "Train short, test long", 2022.) Float masks
 * are added after that, with the masking (mask.inc.h). Called by prefill.inc.h and
 * decode_weights.inc.h. */
#ifndef SA_KERNELS_BIAS_INC_H
#define SA_KERNELS_BIAS_INC_H

#include "../kernels.h"
#include "simd.inc.h"
#include "math.inc.h"
#include "softmax.inc.h"
#include "mask.inc.h"

typedef struct {
    vec scale, cap;
} bias_factors;

SA_INLINE bias_factors bias_factors_of(const sa_scoring *scoring) {
    real cap = to_real(scoring->softcap);
    double scale = scoring->softcap > 0 ? scoring->scale / (double)cap : scoring->scale;
    return (bias_factors){v_set(to_real(scale)), v_set(cap)};
}

/* One vector of scores; `capped` and `alibi` must be constants where this is inlined. `dcap`,
 * unless NULL, gets the softcap's derivative, 1 - tanh^2, of the same scores. */
SA_INLINE vec biased(const int capped, const int alibi, bias_factors f, vec s, vec minus_slope,
                     vec position, vec key, real *dcap) {
    s = v_mul(s, f.scale);
    if (capped) {
        vec y = v_tanh(s);
        s = v_mul(f.cap, y);
        if (dcap) v_store(dcap, v_fma(v_sub(v_zero(), y), y, v_set(1)));
    }
    if (!alibi) return s;
    vec d = v_sub(position, key);
    return v_fma(minus_slope, v_max(d, v_sub(v_zero(), d)), s);
}

/* LOOP(capped, alibi), with the constants that fit the tile. */
#define WITH_CONSTANTS(LOOP)                    \
    if (t->scoring.softcap > 0 && t->has_alibi) \
        LOOP(1, 1)                              \
    else if (t->scoring.softcap > 0)            \
        LOOP(1, 0)                              \
    else if (t->has_alibi)                      \
        LOOP(0, 1)                              \
    else                                        \
        LOOP(0, 0)

/* S[key][lane] of the rows in vector i; `dcap`, unless NULL, gets the softcap's derivatives. */
static void prefill_bias(const sa_tile *t, const block_keys *keys, real *s, real *dcap,
                         ptrdiff_t row, int i) {
    bias_factors f = bias_factors_of(&t->scoring);
    real minus_slopes[LANES] = {0}, positions[LANES] = {0};
    for (int r = 0; t->has_alibi && r < LANES && i * LANES + r < t->rows; ++r) {
        minus_slopes[r] = (real)-t->slope[i * LANES + r];
        positions[r] = (real)(t->position[i * LANES + r] - keys->block);
    }
    vec minus_slope = v_load(minus_slopes), position = v_load(positions);
#define DOWN(capped, alibi)                                                                     \
    for (int j = keys->begin; j < keys->end; ++j) {                                             \
        real *at = s + j * row;                                                                 \
        vec key = v_set((real)j);                                                               \
        real *dcap_at = dcap ? dcap + j * row : NULL;                                           \
        v_store(at, biased(capped, alibi, f, v_load(at), minus_slope, position, key, dcap_at)); \
    }
    WITH_CONSTANTS(DOWN)
#undef DOWN
}

/* S[key] of row r. */
static void decode_bias(const sa_tile *t, const block_keys *keys, real *s, int r) {
    bias_factors f = bias_factors_of(&t->scoring);
    vec minus_slope = v_zero(), position = v_zero();
    if (t->has_alibi) {
        minus_slope = v_set((real)-t->slope[r]);
        position = v_set((real)(t->position[r] - keys->block));
    }
#define ALONG(capped, alibi)                                                                       \
    for (int j = keys->begin; j < keys->end; j += LANES) {                                         \
        vec key = v_add(v_iota(), v_set((real)j));                                                 \
        v_store(s + j, biased(capped, alibi, f, v_load(s + j), minus_slope, position, key, NULL)); \
    }
    WITH_CONSTANTS(ALONG)
#undef ALONG
}

#undef WITH_CONSTANTS

#endif
