/* The kernels in float64 for AVX-512 (F, DQ, BW, VL). */
#define SA_REAL_BITS 64
#define SA_TABLE sa_avx512_f64
#include "../simd/avx512.h"
#include "../kernels/table.inc.h"
