/* One FMA loop, for one element type and one vector width: included by fma_peak.c, which defines
 *
 *     LOOP       name of the function
 *     TARGET     its target attribute, or nothing
 *     ELEMENT    float or double
 *     BYTES      bytes of a vector
 *     CHAINS     independent accumulators: at least latency x issue width of any core, and few
 *                enough that they and two operands fit the register file
 *
 *     a[c] = a[c] * x + y     for every chain c, `steps` times, all in registers
 *
 * Built with -ffp-contract=fast, so that the compiler makes the expression one FMA instruction
 * wherever the target has one. With |x| < 1 a chain tends to y / (1 - x): neither overflow nor
 * denormals, which some cores compute slowly. */

typedef ELEMENT LOOP_NAME(LOOP, vector) __attribute__((vector_size(BYTES)));

TARGET static double LOOP(long steps) {
    typedef LOOP_NAME(LOOP, vector) vector;
    /* volatile: otherwise the compiler may compute the sum beforehand */
    volatile ELEMENT factor = (ELEMENT)0.999, addend = (ELEMENT)0.001;
    vector x = (vector){0} + factor, y = (vector){0} + addend;
    vector a[CHAINS];
    UNROLL
    for (int c = 0; c < CHAINS; c++) {
        a[c] = y + (ELEMENT)c; /* chains that differ, or they could be computed as one */
    }
    for (long i = 0; i < steps; i++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++) {
            a[c] = a[c] * x + y;
        }
    }
    vector total = a[0];
    UNROLL
    for (int c = 1; c < CHAINS; c++) {
        total += a[c];
    }
    double sum = 0;
    for (unsigned lane = 0; lane < BYTES / sizeof(ELEMENT); lane++) {
        sum += total[lane];
    }
    return sum;
}

static const long LOOP_NAME(LOOP, flops) = 2L * CHAINS * (BYTES / (long)sizeof(ELEMENT));

#undef LOOP
#undef TARGET
#undef ELEMENT
#undef BYTES
#undef CHAINS
