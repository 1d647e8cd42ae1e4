/* Every budget of the loops in one place: cache sizes, least work for a thread, sizes of pieces.
 * None of them changes a bit of any result; those that do are in kernels.h. Sizes of caches are
 * those of usual machines, halved where something else is in use beside. */
#ifndef SA_TUNING_H
#define SA_TUNING_H

enum {
    /* ---- caches, in bytes */
    CACHE_LINE = 64,
    L1_PREFETCH = 32 << 10,        /* decoding: of a block, prefetched while one is read */
    L2_BUDGET = 1 << 20,           /* keys and values of a head beyond this come from outside L2 */
    L2_PREFETCH_HEAD = 256 << 10,  /* a head's keys and values up to this are prefetched ahead */
    L2_PREFETCH_GRADS = 256 << 10, /* of keys' gradients, prefetched beside a head's own data */
    L3_BUDGET = 8 << 20,           /* a weight beyond this comes from memory */
    STREAM_BYTES = 32 << 20,       /* results of softmax beyond this are stored around the caches */

    /* ---- staged keys and values (kv.h), per thread */
    STAGED_BYTES = 1 << 20, /* forward: K and V; backward: twice as much, with their gradients */
    STAGE_MIN_TILES = 4,    /* forward: staging pays if so many tiles read the copy */
    STAGE_MIN_TILES_BACKWARD = 3,
    STAGE_MIN_TILES_HALF = 2, /* where each tile would convert them */

    /* ---- threads */
    FLOPS_PER_THREAD = 150 * 1000, /* less work does not pay for waking a thread */
    ELEMENTS_PER_THREAD = 1 << 13, /* the same for functions of rows, in elements */
    CHUNKS_PER_THREAD = 4, /* a chunk of tiles: this fraction of a thread's share of what is left */
    JOBS_PER_THREAD = 4,   /* of the backward pass, where it can be cut so finely */
    GRAIN_ELEMENTS = 1 << 14, /* of rows, taken from the shared counter at once */

    /* ---- projections: tiles that each thread should find, and the smallest tile */
    PROJECT_TILES_PER_THREAD = 4,
    PROJECT_FLOPS_PER_TILE = 2000 * 1000,
    PROJECT_MIN_LANES = 48, /* packing x costs little of such a tile */
    PROJECT_MIN_M = 96,
    PROJECT_M_UNIT = 48, /* rows of w come in multiples of it: a multiple of each set's MR */

    /* ---- memory */
    SMALL_SCRATCH = 24 << 10, /* scratch up to this lies on the stack: no allocation */
};

#endif
