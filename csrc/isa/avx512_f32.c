/* The kernels in float32 for AVX-512 (F, DQ, BW, VL). */
#define SA_REAL_BITS 32
#define SA_TABLE sa_avx512_f32
/* 16 rows of a weight that are a power of two apart compete for 8 ways of the nearest cache: on a
 * Zen 4 that is .55 of the speed of AVX2's 8 rows, and other distances are no faster either. */
#define SA_GEMV_BY_ROWS_OF sa_avx2_f32
#include "../simd/avx512.h"
#include "../kernels/table.inc.h"
