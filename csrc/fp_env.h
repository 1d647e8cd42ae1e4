/* The floating-point environment: the kernels compute in the default one (round to nearest, no
 * flushing of denormals, no traps) whatever the caller has set, and put the caller's back. Its flag
 * of overflow tells, at no cost, whether any sum of this thread left the range of its type. */
#ifndef SA_FP_ENV_H
#define SA_FP_ENV_H

#if defined(__SSE2__)

#include <xmmintrin.h>

typedef unsigned sa_fp_env;
enum { SA_MXCSR_DEFAULT = 0x1f80, SA_MXCSR_OVERFLOW = 0x8 };

static inline sa_fp_env sa_fp_enter(void) {
    sa_fp_env old = _mm_getcsr();
    _mm_setcsr(SA_MXCSR_DEFAULT);
    return old;
}
static inline void sa_fp_leave(sa_fp_env old) { _mm_setcsr(old); }
static inline int sa_fp_overflowed(void) { return (_mm_getcsr() & SA_MXCSR_OVERFLOW) != 0; }
static inline void sa_fp_clear(void) { _mm_setcsr(SA_MXCSR_DEFAULT); }

#else

#include <fenv.h>

typedef fenv_t sa_fp_env;

static inline sa_fp_env sa_fp_enter(void) {
    sa_fp_env old;
    fegetenv(&old);
    fesetenv(FE_DFL_ENV);
    return old;
}
static inline void sa_fp_leave(sa_fp_env old) { fesetenv(&old); }
#ifdef FE_OVERFLOW
static inline int sa_fp_overflowed(void) { return fetestexcept(FE_OVERFLOW) != 0; }
#else
static inline int sa_fp_overflowed(void) { return 0; }
#endif
static inline void sa_fp_clear(void) { fesetenv(FE_DFL_ENV); }

#endif
#endif
