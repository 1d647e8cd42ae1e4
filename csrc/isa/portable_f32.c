/* The kernels in float32 for any machine, in plain C. */
#define SA_REAL_BITS 32
#define SA_TABLE sa_portable_f32
#include "../simd/portable.h"
#include "../kernels/table.inc.h"
