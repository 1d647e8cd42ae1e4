/* The most arithmetic that this set can do: multiply-adds on registers alone.
 *
 *     a[c] = a[c] * x + y     for each of PEAK_CHAINS vectors c, `steps` times
 *
 * As many accumulators as the product's own (ukernel.inc.h) at its fastest: enough that none waits
 * for its last result. With |x| < 1 a chain tends to y / (1 - x): neither overflow nor denormals,
 * which some cores compute slowly. Called by machine.c, which benchmarks hold calls against. */
#ifndef SA_KERNELS_PEAK_INC_H
#define SA_KERNELS_PEAK_INC_H

#include "simd.inc.h"

enum { PEAK_CHAINS = NR_BEST * MR(NR_BEST) };

/* Returns a number that depends on all of them, so that none is left out. */
static double peak(int64_t steps) {
    /* volatile: otherwise the compiler may compute the sum beforehand */
    volatile real factor = (real)0.999, addend = (real)0.001;
    vec x = v_set(factor), y = v_set(addend), a[PEAK_CHAINS];
    SA_UNROLL
    for (int c = 0; c < PEAK_CHAINS; ++c) a[c] = v_add(y, v_set((real)c)); /* that differ */
    for (int64_t i = 0; i < steps; ++i) {
        SA_UNROLL
        for (int c = 0; c < PEAK_CHAINS; ++c) a[c] = v_fma(a[c], x, y);
    }
    SA_UNROLL
    for (int c = 1; c < PEAK_CHAINS; ++c) a[0] = v_add(a[0], a[c]);
    real sums[LANES];
    v_store(sums, a[0]);
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += (double)sums[lane];
    v_zeroupper();
    return sum;
}

#endif
