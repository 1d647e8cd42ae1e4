/* Where a row is, counted over axes that may lie anyhow. Used by rows.c and project.c. */
#ifndef SA_ROW_AT_H
#define SA_ROW_AT_H

#include "selfattn.h"

static inline char *sa_row_at(const sa_rows *a, int axes, const int64_t *shape, int64_t row) {
    char *at = a->data;
    for (int i = axes - 1; i > 0; --i) {
        at += row % shape[i] * a->stride[i];
        row /= shape[i];
    }
    return axes ? at + row * a->stride[0] : at;
}

#endif
