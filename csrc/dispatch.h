/* The kernels in use. Called by the loops. */
#ifndef SA_DISPATCH_H
#define SA_DISPATCH_H

#include "kernels.h"

const sa_kernels *sa_kernels_for(sa_dtype dtype);

/* Those of the best set that this machine runs, whichever is in use. */
const sa_kernels *sa_best_kernels_for(sa_dtype dtype);

#endif
