/* The kernels in float64 for AVX2 and FMA. */
#define SA_REAL_BITS 64
#define SA_TABLE sa_avx2_f64
#include "../simd/avx2.h"
#include "../kernels/table.inc.h"
