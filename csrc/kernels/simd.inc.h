/* The vectors that the kernels compute with: those of the header in csrc/simd that instance.c has
 * included before, or the portable ones in float32, so that each file here compiles alone. */
#ifndef SA_KERNELS_SIMD_INC_H
#define SA_KERNELS_SIMD_INC_H

#ifndef SA_SIMD_H
#ifndef SA_REAL_BITS
#define SA_REAL_BITS 32
#endif
#ifndef SA_ISA
#define SA_ISA portable
#define SA_DTYPE_NAME f32
#define SA_ELEM float
#define SA_REAL_DTYPE f32
#define SA_ELEM_IS_REAL 1
#endif
#include "../simd/portable.h"
#endif

#endif
