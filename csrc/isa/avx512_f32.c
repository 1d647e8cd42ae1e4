/* The kernels in float32 for AVX-512 (F, DQ, BW, VL). */
#define SA_REAL_BITS 32
#define SA_TABLE sa_avx512_f32
/* Transposed squares of W: 16 rows that are a power of two apart want one place of the nearest cache,
 * which has 8 ways there (Zen 4: .55 of the speed of 8 rows, and never more than .85). */
#define SA_FEW_BY_ROWS_OF sa_avx2_f32
#include "../simd/avx512.h"
#include "../kernels/table.inc.h"
