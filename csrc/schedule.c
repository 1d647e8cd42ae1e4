/* How a problem is cut: see schedule.h. Called by the loops, by backward_schedule.c and by tile.c.
 */

#include "schedule.h"

#include "dispatch.h"
#include "memory.h"
#include "scoring.h"
#include "visibility.h"

static size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/* Threads that are worth waking, if queries and keys make so many pairs in each head, and `width`
 * elements are multiplied for each pair. */
static double threads_worth(const sa_problem *p, double pairs, int64_t width) {
    return 2.0 * pairs * (double)width * (double)p->num_heads_q / FLOPS_PER_THREAD;
}

int sa_is_serial(const sa_problem *p) {
    double pairs = (double)sa_entries(p) * (double)p->seqlen_q * (double)p->seqlen_k;
    return threads_worth(p, pairs, p->head_dim + p->head_dim_v) < 2;
}

/* Scratch and split state of the larger of the two kernels for the largest tile of each. */
static void find_sizes(sa_schedule *s) {
    const sa_problem *p = s->problem;
    const sa_forward_kernel *kernels[] = {&s->kernels->prefill, &s->kernels->decode};
    int64_t rows = s->group * p->seqlen_q;
    for (int i = 0; i < 2; ++i) {
        const sa_forward_kernel *k = kernels[i];
        int most = rows < k->max_rows ? (int)rows : k->max_rows;
        size_t scratch_size = k->scratch_size(most, p->head_dim, p->head_dim_v);
        s->scratch_size = max_size(s->scratch_size, scratch_size);
        s->state_size = max_size(s->state_size, k->state_size(most, p->head_dim_v));
    }
    s->scratch_size = sa_whole_lines(s->scratch_size);
    s->state_size = sa_whole_lines(s->state_size);
}

sa_schedule sa_schedule_make(const sa_problem *p, int as_scores, int64_t width) {
    sa_schedule s = {.problem = p, .kernels = sa_kernels_for(p->dtype)};
    /* Without rows there is nothing to cut, however many batch entries have none. */
    int64_t entries = p->num_heads_q && p->seqlen_q ? sa_entries(p) : 0;
    sa_key_bounds bounds = sa_key_bounds_of(p, entries);
    s.scoring = sa_scoring_of(p, as_scores);
    s.group = p->num_heads_kv ? p->num_heads_q / p->num_heads_kv : 0;
    s.merge_tail = entries * p->num_heads_kv >= p->num_threads;
    s.tiles_of_head = sa_tiles_of_rows(&s, p->seqlen_q * s.group);
    s.tiles = entries ? sa_first_tile(&s, entries) * p->num_heads_kv : 0;
    s.segments_ascend = sa_segments_ascend(p, entries);
    s.end_key = bounds.last;
    s.first_split = bounds.first / SA_SPLIT_N;
    s.splits = (bounds.last + SA_SPLIT_N - 1) / SA_SPLIT_N - s.first_split;
    if (s.splits < 1) s.splits = 1;

    double threads = threads_worth(p, bounds.pairs, width);
    s.num_threads = threads < p->num_threads ? (int)threads : p->num_threads;
    if (s.num_threads < 1) s.num_threads = 1;
    find_sizes(&s);
    return s;
}

/* Guided self-scheduling: a chunk is a fraction of a thread's share of the tiles that are left.
 * Early chunks are long, so that consecutive tiles share K and V in a thread's caches; late ones
 * are short, so that no thread waits long for another. Chunks longer than a head are whole heads.
 */
int sa_next_chunk(const sa_schedule *s, sa_counter *next, int64_t *first, int64_t *end) {
    int64_t begin = *next, to;
    int is_packed = s->problem->cu_seqlens_q != NULL; /* sequences' tiles differ in number */
    do {
        int64_t chunk = (s->tiles - begin) / (CHUNKS_PER_THREAD * s->num_threads);
        to = begin + (chunk > 1 ? chunk : 1);
        if (!is_packed && chunk > s->tiles_of_head) to -= to % s->tiles_of_head;
    } while (begin < s->tiles && !sa_cas(next, &begin, to));
    *first = begin;
    *end = to; /* s->tiles at most */
    return begin < s->tiles;
}

/* ------------------------------------------------------------------ tiles and their rows */

/* Packed sequences: entry b's first tile is computed from the number of rows before it, plus one
 * for each entry, so that no table is needed; some of the tiles are then empty. */
int64_t sa_first_tile(const sa_schedule *s, int64_t b) {
    const sa_problem *p = s->problem;
    if (p->cu_seqlens_q) return p->cu_seqlens_q[b] * s->group / s->kernels->rows + b;
    return b * s->tiles_of_head;
}

/* As many as suit the kernel. Where one vector would be left over, the other tiles take it in,
 * unless threads would be idle. */
int64_t sa_tiles_of_rows(const sa_schedule *s, int64_t rows) {
    const sa_kernels *k = s->kernels;
    int64_t tiles = (rows + k->rows - 1) / k->rows;
    int64_t most = s->merge_tail ? k->prefill.max_rows : k->rows;
    int leaves_vector = rows - (tiles - 1) * k->rows <= k->lanes;
    return tiles > 1 && leaves_vector && most > k->rows ? tiles - 1 : tiles;
}

/* The batch entry of a tile: the last one to start at or before it. */
static int64_t entry_of_tile(const sa_schedule *s, int64_t tile) {
    const sa_problem *p = s->problem;
    int64_t low = 0, high = sa_entries(p);
    if (!p->cu_seqlens_q) return tile / (sa_first_tile(s, 1) * p->num_heads_kv);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (sa_first_tile(s, middle) * p->num_heads_kv <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

void sa_next_row(const sa_schedule *s, sa_row_pos *at) {
    if (++at->g == s->group) at->g = 0, ++at->i;
}

int sa_rows_of_tile(const sa_schedule *s, int64_t tile, sa_row_pos *at) {
    const sa_problem *p = s->problem;
    int64_t b = entry_of_tile(s, tile), lanes = s->kernels->lanes;
    int64_t slots = sa_first_tile(s, b + 1) - sa_first_tile(s, b);
    int64_t of_entry = tile - sa_first_tile(s, b) * p->num_heads_kv;
    int64_t rows = s->group * sa_num_queries(p, b);
    int64_t tiles = sa_tiles_of_rows(s, rows);
    int64_t vectors = (rows + lanes - 1) / lanes;
    /* The last rows first: with a causal mask they take longest. */
    int64_t in_head = slots - 1 - of_entry % slots;
    if (in_head >= tiles) return 0;
    /* The tiles divide the vectors evenly. */
    int64_t first = in_head * vectors / tiles * lanes;
    int64_t end = (in_head + 1) * vectors / tiles * lanes;
    *at = (sa_row_pos){b, of_entry / slots, first / s->group, first % s->group};
    return (int)((end < rows ? end : rows) - first);
}

/* A run of empty sequences is skipped at once, without a search for the entry of each. */
int64_t sa_after_empty_tile(const sa_schedule *s, int64_t tile, int64_t end) {
    const sa_problem *p = s->problem;
    int64_t b = entry_of_tile(s, tile), last = entry_of_tile(s, end - 1);
    if (sa_num_queries(p, b)) return tile + 1;
    while (b <= last && !sa_num_queries(p, b)) ++b;
    return sa_first_tile(s, b) * p->num_heads_kv;
}

int64_t sa_end_of_head(const sa_schedule *s, int64_t tile, int64_t *b) {
    *b = entry_of_tile(s, tile);
    int64_t first = sa_first_tile(s, *b), slots = sa_first_tile(s, *b + 1) - first;
    int64_t of_entry = tile - first * s->problem->num_heads_kv;
    return tile + slots - of_entry % slots;
}

const sa_forward_kernel *sa_kernel_of(const sa_schedule *s, const sa_tile *t) {
    const sa_kernels *k = s->kernels;
    return t->rows <= k->decode.max_rows ? &k->decode : &k->prefill;
}
