/* Bounds of the keys that queries see, and segments as ranges: see visibility.h. */

#include "visibility.h"

/* How many keys a query sees at most, if no window or length can show it more than `most`. */
static int64_t most_keys(const sa_problem *p, int64_t most) {
    if (p->window_left < 0 || p->window_right < 0) return most;
    int64_t window = p->window_left + p->window_right + 1;
    return window < most ? window : most;
}

sa_key_bounds sa_key_bounds_of(const sa_problem *p, int64_t entries) {
    int alike = !p->query_offset_of_batch && !p->query_lengths && !p->kv_starts && !p->kv_lengths &&
                !p->cu_seqlens_q && !p->cu_seqlens_k;
    sa_key_bounds s = {.first = INT64_MAX};
    for (int64_t b = 0; b < (alike && entries ? 1 : entries); ++b) {
        int64_t first, last, queries = sa_used_queries(p, b);
        if (queries == 0) continue;
        sa_keys_of_entry(p, b, &first, &last);
        if (first < s.first) s.first = first;
        if (last > s.last) s.last = last;
        int64_t most = most_keys(p, last - first);
        s.pairs += (double)queries * (double)most * (alike ? (double)entries : 1);
    }
    if (s.first > s.last) s.first = s.last;
    return s;
}

static int ascend(const char *id, ptrdiff_t stride, int size, int64_t n) {
    for (int64_t j = 1; j < n; ++j, id += stride)
        if (sa_segment_id(id + stride, size) < sa_segment_id(id, size)) return 0;
    return 1;
}

/* Whether batch entry b has the same ids as an earlier entry, because the ids broadcast along an
 * axis on which b's index is not 0. */
static int repeats_segments(const sa_problem *p, int64_t b) {
    for (int i = p->batch_axes - 1; i >= 0 && !p->cu_seqlens_k; --i) {
        if (p->key_segments.batch[i] == 0 && b % p->batch_shape[i] > 0) return 1;
        b /= p->batch_shape[i];
    }
    return 0;
}

int sa_segments_ascend(const sa_problem *p, int64_t entries) {
    if (!p->key_segments.data) return 0;
    for (int64_t b = 0; b < entries; ++b) {
        if (repeats_segments(p, b)) continue;
        const char *ids = sa_row_of(p, &p->key_segments, b, 0, sa_first_key(p, b));
        if (!ascend(ids, p->key_segments.row, p->segment_size, sa_num_keys(p, b))) return 0;
    }
    return 1;
}

/* Of n ids that never decrease, how many are less than `id`. */
static int64_t ids_below(const char *ids, ptrdiff_t stride, int size, int64_t n, int64_t id) {
    int64_t low = 0, high = n;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (sa_segment_id(ids + middle * stride, size) < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

sa_segment sa_segment_range(const sa_problem *p, int64_t b, int64_t id) {
    const char *ids = sa_row_of(p, &p->key_segments, b, 0, sa_first_key(p, b));
    int64_t n = sa_num_keys(p, b);
    ptrdiff_t stride = p->key_segments.row;
    sa_segment s = {.id = id, .hi = n};
    s.lo = ids_below(ids, stride, p->segment_size, n, id);
    if (id < INT64_MAX) s.hi = ids_below(ids, stride, p->segment_size, n, id + 1);
    return s;
}
