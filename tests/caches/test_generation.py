"""300 positions, one by one, in chunks and at once: the same bits from every kind of cache.

Each is compared with one call of attention over the whole sequence alone, causal.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import HALF_DTYPES, normal, same_bits

N, HEADS_KV, GROUP, E, EV = 300, 2, 2, 24, 20
LENGTHS = np.array([300, 1, 17, 128, 129, 256, 299, 64])
CHUNKS = {
    "one by one": [1] * N,
    "chunks": [7, 1, 120, 128, 3, 41],
    "at once": [N],
}
PAGE_SIZES = [None, 1, 16, 24, 48, 128]  # None: KVCache; 24: lanes cross the end of a page
DTYPES = [np.float32, np.float64, *HALF_DTYPES, np.int8]


class Contiguous:
    """KVCache, as the tests call it."""

    def __init__(self, batch, dtype):
        self.cache = selfattn.KVCache(batch, HEADS_KV, N, E, EV, dtype=dtype)
        self.append, self.attend = self.cache.append, self.cache.attend

    def rows(self, b, n):
        return self.cache.key[b, :, :n], self.cache.value[b, :, :n]


class Paged:
    """PagedKVCache, whose pages the sequences take in turns, from a pool with holes."""

    def __init__(self, batch, dtype, size):
        num_blocks = batch * -(-N // size) + 8
        self.cache = selfattn.PagedKVCache(num_blocks, size, HEADS_KV, E, EV, dtype=dtype)
        before = [self.cache.new_sequence() for _ in range(4)]
        one = np.zeros((1, HEADS_KV, 2 * size, E), "f4" if dtype == np.int8 else dtype)
        for sequence in before:
            self.cache.append([sequence], one, one[..., :EV])
        self.ids = [self.cache.new_sequence() for _ in range(batch)]
        for sequence in before[::2]:
            self.cache.free(sequence)

    def append(self, *arrays, lengths):
        self.cache.append(self.ids, *arrays, lengths=lengths)

    def attend(self, query, **options):
        return self.cache.attend(self.ids, query, **options)


def arrays_of(dtype, batch):
    given = np.float32 if dtype == np.int8 else dtype
    return (
        normal(batch, HEADS_KV * GROUP, N, E, dtype=given),
        normal(batch, HEADS_KV, N, E, dtype=given, seed=1),
        normal(batch, HEADS_KV, N, EV, dtype=given, seed=2),
    )


def generated(cache, arrays, lengths, chunks):
    """What attends to each chunk's positions when it has been appended."""
    query, key, value = arrays
    out, lse, begin = np.zeros((*query.shape[:-1], EV), query.dtype), [], 0
    for n in chunks:
        part = slice(begin, begin + n)
        counts = np.clip(lengths - begin, 0, n)
        cache.append(key[:, :, part], value[:, :, part], lengths=counts)
        out[:, :, part], of_chunk = cache.attend(
            query[:, :, part], lengths=counts, return_lse=True, num_threads=1 + (n > 100)
        )
        lse.append(of_chunk)
        begin += n
    return out, np.concatenate(lse, -1)


def at_once(dtype, arrays, lengths):
    """One call for each sequence alone; of int8, on the rows that a cache stands for."""
    query, key, value = arrays
    if dtype == np.int8:
        cache = selfattn.KVCache(len(key), HEADS_KV, N, E, EV, dtype=np.int8)
        cache.append(key, value)
        key, value = cache.key, cache.value
    out = np.zeros((*query.shape[:-1], EV), query.dtype)
    lse = np.full(query.shape[:-1], -np.inf, np.float64 if dtype == np.float64 else np.float32)
    for b, n in enumerate(lengths):
        out[b, :, :n], lse[b, :, :n] = selfattn.scaled_dot_product_attention(
            query[b, :, :n],
            key[b, :, :n],
            value[b, :, :n],
            is_causal=True,
            enable_gqa=True,
            return_lse=True,
        )
    return out, lse


@pytest.fixture(scope="module", params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def storage(request):
    """A dtype, eight sequences, and the result of each alone."""
    arrays = arrays_of(request.param, len(LENGTHS))
    return request.param, arrays, at_once(request.param, arrays, LENGTHS)


@pytest.mark.parametrize("size", PAGE_SIZES)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_bits(each_isa, storage, chunks, size):
    """One sequence, and eight of different lengths."""
    dtype, arrays, want = storage
    for isa in each_isa():
        batches = [slice(8), slice(1)] if isa == selfattn.isas()[0] else [slice(5, 7)]
        for entries in batches:
            if chunks == "one by one" and isa == "portable" and size != 16:
                continue
            batch = len(LENGTHS[entries])
            cache = Contiguous(batch, dtype) if size is None else Paged(batch, dtype, size)
            part = [x[entries] for x in arrays]
            got = generated(cache, part, LENGTHS[entries], CHUNKS[chunks])
            assert same_bits(got, tuple(x[entries] for x in want)), (isa, entries)


@pytest.mark.parametrize("size", [24, 128, None])
def test_long_sequences(each_isa, size):
    """Keys that fit no worker's room are staged block by block, also where threads share them."""
    n, heads = 5000, 2
    query = normal(1, heads, 70, 64)
    key, value = normal(1, 1, n, 64, seed=1), normal(1, 1, n, 64, seed=2)
    for dtype in (np.float32, np.int8):
        want = None
        for isa in each_isa():
            if isa == "portable":
                continue
            if size is None:
                cache = selfattn.KVCache(1, 1, n, 64, dtype=dtype)
                cache.append(key, value)
                rows, attend = (cache.key, cache.value), cache.attend
                want = selfattn.scaled_dot_product_attention(
                    query, *rows, is_causal=True, query_offset=n - 70, enable_gqa=True
                )
            else:
                cache = selfattn.PagedKVCache(-(-n // size), size, 1, 64, dtype=dtype)
                ids = [cache.new_sequence()]
                cache.append(ids, key, value)
                if want is None:
                    flat = selfattn.KVCache(1, 1, n, 64, dtype=dtype)
                    flat.append(key, value)
                    want = flat.attend(query)

                def attend(query, ids=ids, cache=cache, **options):
                    return cache.attend(ids, query, **options)

            for threads in (1, 2):
                assert same_bits(attend(query, num_threads=threads), want), (isa, threads)
                few = attend(query[:, :, -3:], num_threads=threads)
                assert same_bits(few, want[:, :, -3:]), (isa, threads)
