/* Refuses a compiler that was allowed to compute something else than the code says: to take NaN and
 * inf for impossible, to reorder sums, to multiply by reciprocals, to lose the sign of 0.
 *
 * setup.py takes back what the environment's flags allow; this is for other ways of building, and
 * for compilers that have other flags. Included by selfattn.h and simd/common.h, and so by every
 * source that computes. */
#ifndef SA_STRICT_MATH_H
#define SA_STRICT_MATH_H

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) ||                         \
    defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST)
#error "selfattn: results are exact: compile without -ffast-math, -Ofast and what they turn on"
#endif

#endif
