/* Which instruction sets this CPU and its operating system run: CPUID says what the CPU can do,
 * XGETBV which registers the system saves; an AVX that is not saved is an illegal instruction. */

#include "cpu.h"

int sa_cpu_has_portable(void) { return 1; }

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#include <cpuid.h>

enum { EBX = 1, ECX = 2 };
enum { SSE_AND_YMM = 0x6, OPMASK_AND_ZMM = 0xe0 };

static int bit(int leaf, int reg, int n) {
    unsigned r[4];
    if (!__get_cpuid_count((unsigned)leaf, 0, &r[0], &r[1], &r[2], &r[3])) return 0;
    return (int)(r[reg] >> n & 1);
}

static int system_saves(unsigned registers) {
    unsigned low, high;
    if (!bit(1, ECX, 27)) return 0; /* OSXSAVE: XGETBV itself */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & registers) == registers;
}

int sa_cpu_has_avx2_fma(void) {
    return bit(1, ECX, 28) && bit(1, ECX, 12) && bit(1, ECX, 29) && bit(7, EBX, 5) &&
           system_saves(SSE_AND_YMM); /* AVX, FMA, F16C, AVX2 */
}

int sa_cpu_has_avx512(void) {
#ifdef SA_EMULATED_AVX512 /* which is AVX2 code */
    return sa_cpu_has_avx2_fma();
#else
    return sa_cpu_has_avx2_fma() && bit(7, EBX, 16) && bit(7, EBX, 17) && bit(7, EBX, 30) &&
           bit(7, EBX, 31) && system_saves(SSE_AND_YMM | OPMASK_AND_ZMM);
#endif
}

#else

int sa_cpu_has_avx2_fma(void) { return 0; }
int sa_cpu_has_avx512(void) { return 0; }

#endif
