/* The kernels in float32 for AVX2 and FMA. */
#define SA_REAL_BITS 32
#define SA_TABLE sa_avx2_f32
#include "../simd/avx2.h"
#include "../kernels/table.inc.h"
