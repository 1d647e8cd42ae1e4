/* The kernels in use. Called by the loops. */
#ifndef SA_DISPATCH_H
#define SA_DISPATCH_H

#include "kernels.h"

const sa_kernels *sa_kernels_for(sa_dtype dtype);

#endif
