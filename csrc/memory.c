/* Aligned memory: see memory.h. */

#include "memory.h"

#include <stdint.h>
#include <stdlib.h>

size_t sa_whole_lines(size_t n) { return (n + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE; }

void *sa_alloc(size_t count, size_t size) {
    if (size && count > (SIZE_MAX - CACHE_LINE) / size) return NULL;
    size_t total = sa_whole_lines(count * size);
    return aligned_alloc(CACHE_LINE, total ? total : CACHE_LINE);
}

void sa_free(void *memory) { free(memory); }
