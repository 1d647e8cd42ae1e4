/* The kernels in float32 for AVX-512 (F, DQ, BW, VL). */
#define SA_REAL_BITS 32
#define SA_TABLE sa_avx512_f32
#include "../simd/avx512.h"
#include "../kernels/table.inc.h"
