/* The kernels in float64 for any machine, in plain C. */
#define SA_REAL_BITS 64
#define SA_TABLE sa_portable_f64
#include "../simd/portable.h"
#include "../kernels/table.inc.h"
