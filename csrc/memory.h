/* Memory for a call, aligned to cache lines. Called by the loops; kernels never allocate. */
#ifndef SA_MEMORY_H
#define SA_MEMORY_H

#include <stddef.h>

#include "tuning.h"

/* n rounded up to a multiple of a cache line. */
size_t sa_whole_lines(size_t n);

/* count * size bytes, not cleared; NULL if there are not so many, or the product overflows. */
void *sa_alloc(size_t count, size_t size);
void sa_free(void *memory);

#endif
