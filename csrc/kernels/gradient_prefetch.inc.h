/* Prefetch targets of the backward pass while the products of a block are computed: K, V, dK and dV
 * of the next block, where they exceed L2 or no tile has read them before; the block's share of the
 * dK and dV that are written between this tile and the next; and in the last block but one the next
 * tile's rows of Q, dO and out, and this tile's rows of dQ. Called by backward.inc.h. */
#ifndef SA_KERNELS_GRADIENT_PREFETCH_INC_H
#define SA_KERNELS_GRADIENT_PREFETCH_INC_H

#include "../kernels.h"
#include "prefetch.inc.h"
#include "prefill.inc.h"
#include "gradient_scratch.inc.h"

static int grads_exceed_l2(const sa_backward_tile *g) {
    const sa_tile *t = &g->fwd;
    return exceeds_l2(t, 2 * (t->head_dim + t->head_dim_v) * REAL_SIZE);
}

/* K, V, dK and dV of a block. The first tile finds dK and dV in L2 if they fit: just cleared. */
static void prefetch_keys(const sa_backward_tile *g, int64_t block, prefetch_queue *queue) {
    const sa_tile *t = &g->fwd;
    const sa_key_gradients *grads = &g->grads;
    int64_t n = at_most(t->end - block, SA_BLOCK_N), at = block - grads->first;
    if (n <= 0 || (!grads_exceed_l2(g) && !g->is_first)) return;
    prefetch_block(t, block, queue);
    if (!grads_exceed_l2(g)) return;
    if (needs_grad(g, SA_GRADIENT_KEY))
        prefetch_rows(queue, grads->key + at * grads->key_row, grads->key_row, n,
                      t->head_dim * REAL_SIZE);
    if (needs_grad(g, SA_GRADIENT_VALUE))
        prefetch_rows(queue, grads->value + at * grads->value_row, grads->value_row, n,
                      t->head_dim_v * REAL_SIZE);
}

/* The block's share of next_grads, which are cleared or copied to before the next tile begins; no
 * more than L2 has room for. */
static void prefetch_grads(const sa_backward_tile *g, int64_t block, prefetch_queue *queue) {
    const sa_tile *t = &g->fwd;
    const sa_key_gradients *next_grads = &g->next_grads;
    int64_t k_bytes = t->head_dim * ELEM_SIZE, v_bytes = t->head_dim_v * ELEM_SIZE;
    int64_t all = t->end - first_block(t), done = block - first_block(t), next = done + SA_BLOCK_N;
    int64_t rows = next_grads->rows, max_rows = L2_PREFETCH_GRADS / (k_bytes + v_bytes + 1);
    if (rows > max_rows) rows = max_rows;
    int64_t i = rows * done / all, n = rows * (next < all ? next : all) / all - i;
    if (n <= 0) return;
    prefetch_rows(queue, next_grads->key + i * next_grads->key_row, next_grads->key_row, n,
                  k_bytes);
    prefetch_rows(queue, next_grads->value + i * next_grads->value_row, next_grads->value_row, n,
                  v_bytes);
}

static void gradient_prefetch(const sa_backward_tile *g, int64_t block, prefetch_queue *queue) {
    const sa_tile *t = &g->fwd;
    const sa_backward_tile *next = g->next;
    int64_t k_bytes = t->head_dim * ELEM_SIZE, v_bytes = t->head_dim_v * ELEM_SIZE;
    int64_t left = t->end - block - SA_BLOCK_N;
    prefetch_begin(queue);
    prefetch_grads(g, block, queue);
    if (left > 0)
        prefetch_keys(g, block + SA_BLOCK_N, queue);
    else if (next)
        prefetch_keys(next, first_block(&next->fwd), queue);
    int is_last_but_one = left > 0 && left <= SA_BLOCK_N, is_only = left <= 0 && block <= t->begin;
    if (!is_last_but_one && !is_only) return;
    if (next) {
        const char *const *out = (const char *const *)next->fwd.out;
        prefetch_list(queue, next->fwd.q, next->fwd.rows, t->group, k_bytes);
        prefetch_list(queue, next->dout, next->fwd.rows, t->group, v_bytes);
        prefetch_list(queue, out, next->fwd.rows, t->group, v_bytes);
    }
    if (needs_grad(g, SA_GRADIENT_QUERY))
        prefetch_list(queue, (const char *const *)g->dq, t->rows, t->group, k_bytes);
}

#endif
