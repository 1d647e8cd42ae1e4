/* The kernels of one instruction set and dtype: compiled for each row of isas.def and dtypes.def,
 * with the set's flags and these macros, as setup.py gives them:
 *
 *     SA_ISA          the set's name           avx2
 *     SA_DTYPE_NAME   the dtype's              f32
 *     SA_ELEM         the C type of an element in memory     float
 *     SA_REAL_DTYPE   the dtype that it is computed in       f32
 *     SA_REAL_BITS    bits of that                           32
 *     SA_ELEM_IS_REAL whether the two are one                1
 *     SA_SIMD_HEADER  the set's operations     "simd/avx2.h" */

#include SA_SIMD_HEADER

#include "kernels/table.inc.h"
