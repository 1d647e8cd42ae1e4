"""segment_ids: a query sees the keys of its own segment, as if each segment were a call of its own.

Ids that ascend make a range of keys for each row, others are compared key by key: both must give
what the mask of bools says that compares them, and the bits of it.
"""

from itertools import pairwise

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.compare import check_each
from support.option_arrays import bool_mask, float_mask, range_mask, runs, slopes

DECODE, PREFILL = 2, 37  # rows for either kernel


def attend(*arrays, **options):
    return selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)


def of_ids(ids_q, ids_k):
    """The mask that the ids stand for: (..., 1, L, S)."""
    return (ids_q[..., :, None] == ids_k[..., None, :])[..., None, :, :]


def check(each_isa, query, key, value, segment_ids, *, scores=True, **options):
    """Against the reference, under every set; and in bits against the mask of bools."""
    options["segment_ids"] = segment_ids
    check_each(each_isa, query, key, value, scores=scores, **options)
    if "attn_mask" not in options:
        got = attend(query, key, value, **options)
        ids = options.pop("segment_ids")
        mask = of_ids(*(ids if isinstance(ids, (tuple, list)) else (ids, ids)))
        options["attn_mask"] = mask if query.ndim > 2 else mask[0]
        assert same_bits(got, attend(query, key, value, **options))


RUNS = [
    (150,),
    (1, 149),
    (149, 1),
    (128, 22),
    (127, 1, 1, 21),
    (37, 41, 30, 42),
    (16, 16, 16, 8, 8, 4, 4, 1, 1, 76),
    (1,) * 150,
]


@pytest.mark.parametrize("lengths", RUNS, ids=lambda lengths: str(lengths[:10]))
def test_packed_sequences(each_isa, dtype, lengths):
    """One array for queries and keys, of runs that ascend, descend, or come back later."""
    query, key, value = qkv((2, 2, 150, 6), 1, 150, 5, dtype=dtype)
    ids = runs(150, *lengths)
    shuffled = np.random.default_rng(0).permutation(len(lengths))[ids]
    for given in (ids, -ids, shuffled, ids % 2, ids % 3, np.stack([ids, shuffled])):
        check(each_isa, query, key, value, given, enable_gqa=True)
    check(each_isa, query, key, value, ids, enable_gqa=True, is_causal=True)


def test_in_plain_words(isa):
    """Not by the reference: all scores are equal, so the weights are not 0 where a key is seen."""
    query, key = np.zeros((7, 1), np.float32), np.zeros((9, 1), np.float32)
    rng = np.random.default_rng(0)
    for _ in range(40):
        ids_q, ids_k = rng.integers(0, 3, 7), rng.integers(0, 3, 9)
        for pair in ((ids_q, ids_k), [np.sort(ids_q), np.sort(ids_k)], (np.sort(ids_q), ids_k)):
            want = [[int(a) == int(b) for b in pair[1]] for a in pair[0]]
            got = selfattn.attention_weights(query, key, segment_ids=pair)
            assert np.array_equal(got > 0, want)


@pytest.mark.parametrize("rows", [1, 3, PREFILL])
@pytest.mark.parametrize("order", ["ascending", "random", "keys ascend", "queries ascend", "down"])
def test_a_pair(each_isa, dtype, rows, order):
    """Ids of their own for queries and keys; some of either have no counterpart."""
    rng = np.random.default_rng(0)
    for seqlen_k in (1, 4, 17, 127, 128, 129, 300, 513, 700):
        query, key, value = one_head(rows, seqlen_k, 7, 3, dtype=dtype)
        for most in (2, 5, seqlen_k):
            ids_q, ids_k = rng.integers(0, most, rows), rng.integers(0, most, seqlen_k)
            if order in ("ascending", "queries ascend", "down"):
                ids_q.sort()
            if order in ("ascending", "keys ascend", "down"):
                ids_k.sort()
            if order == "down":
                ids_q, ids_k = ids_q[::-1], ids_k[::-1]
            check(each_isa, query, key, value, (ids_q, ids_k))


@pytest.mark.parametrize("edge", [1, 4, 16, 24, 64, 127, 128, 129, 511, 512, 513, 699])
def test_edges_at_blocks_and_splits(each_isa, dtype, edge):
    """A segment that begins or ends at the edge of lanes, of a tile, of a block, of a split."""
    for rows in (1, PREFILL):
        query, key, value = one_head(rows, 700, 4, dtype=dtype)
        before = max(edge - 130, 0)
        for begin, end in ((0, edge), (edge, 700), (edge - 1, edge + 1), (before, edge)):
            ids_k = np.zeros(700, int)
            ids_k[begin:end] = 1
            ascending = np.where(np.arange(700) < end, ids_k, 2)
            for ids_q in (np.ones(rows, int), np.arange(rows) % 2):
                check(each_isa, query, key, value, (ids_q, ids_k), scores=False)
            ids_q = np.minimum(np.arange(rows), 1)
            check(each_isa, query, key, value, (ids_q, ascending), scores=False)


def test_each_segment_is_as_a_call_of_its_own(isa, dtype):
    """The numbers are those of separate calls, to the reference's bound of either.

    Their blocks of keys start at the segment's first key, so the bits are the same only where that
    is a multiple of the block, or of the split where it reaches into the next one.
    """
    query, key, value = one_head(300, 300, 12, dtype=dtype)
    ids = runs(300, 37, 3, 88, 1, 100, 71)
    out, lse = attend(query, key, value, segment_ids=ids, is_causal=True)
    for n in range(6):
        own = ids == n
        alone = attend(query[own], key[own], value[own], is_causal=True)
        # Both are within 8 + 3 A units of the truth, and A is about 15 here: see compare.py.
        atol = 2 * (8 + 3 * 15) * np.finfo(dtype).eps / 2 * float(np.abs(value).max())
        np.testing.assert_allclose(out[own], alone[0], rtol=0, atol=atol)
        np.testing.assert_allclose(lse[own], alone[1], rtol=0, atol=atol)


@pytest.mark.parametrize("lengths", [(128, 256, 100), (512, 512, 70), (384, 128, 512, 600)])
def test_bits_of_a_call_of_its_own(isa, dtype, lengths):
    total = sum(lengths)
    query, key, value = one_head(total, total, 6, dtype=dtype)
    starts = np.cumsum((0, *lengths))
    out, lse = attend(query, key, value, segment_ids=runs(total, *lengths[:-1]))
    for first, last in pairwise(starts):
        own = slice(first, last)
        alone = attend(query[own], key[own], value[own])
        assert same_bits((out[own], lse[own]), alone), (first, last)


DTYPES = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]


@pytest.mark.parametrize("kind", DTYPES, ids=lambda kind: kind.__name__)
def test_dtypes_of_ids(each_isa, kind):
    """All that an integer can be, from its least to its largest, in order as its type has it."""
    query, key, value = one_head(PREFILL, 140, 6)
    least, largest = np.iinfo(kind).min, np.iinfo(kind).max
    middle = largest // 2 + 1 if least == 0 else 0
    names = np.array([least, least + 1, middle - 1, middle, largest - 1, largest], kind)
    rng = np.random.default_rng(0)
    ids_q, ids_k = rng.choice(names, PREFILL), rng.choice(names, 140)
    for pair in ((ids_q, ids_k), (np.sort(ids_q), np.sort(ids_k)), (ids_q, np.sort(ids_k))):
        check(each_isa, query, key, value, pair)


def test_ids_of_bools(each_isa):
    query, key, value = one_head(PREFILL, 140, 6)
    ids_q, ids_k = bool_mask(PREFILL), bool_mask(140)
    for pair in ((ids_q, ids_k), (np.sort(ids_q), np.sort(ids_k))):
        check(each_isa, query, key, value, pair)


@pytest.mark.parametrize("bit", [8, 16, 31, 32, 53, 62])
def test_ids_that_differ_in_one_high_bit(each_isa, bit):
    """No id is cut to fewer bits, nor taken for a float."""
    query, key, value = one_head(PREFILL, 140, 6)
    for base in (0, 1, 2**62 + 1 - 2**bit if bit == 62 else 1):
        names = np.array([base, base + 2**bit])
        rng = np.random.default_rng(bit)
        ids_q, ids_k = rng.choice(names, PREFILL), rng.choice(names, 140)
        for pair in ((ids_q, ids_k), (np.sort(ids_q), np.sort(ids_k))):
            check(each_isa, query, key, value, pair)


def test_axes_before_the_heads(each_isa, dtype):
    """Ids may be one for all batch entries, or lack and broadcast any of their axes."""
    query, key, value = qkv((2, 3, 2, 12, 6), 1, 130, 5, dtype=dtype)
    rng = np.random.default_rng(0)
    leadings = [(), (1,), (3,), (1, 1), (2, 1), (1, 3), (2, 3)]
    for of_queries in leadings:
        for of_keys in leadings:
            ids_q = rng.integers(0, 3, (*of_queries, 12))
            ids_k = rng.integers(0, 3, (*of_keys, 130))
            check(each_isa, query, key, value, (ids_q, np.sort(ids_k)), enable_gqa=True)
            if of_queries == of_keys:
                check(each_isa, query, key, value, (ids_q, ids_k), enable_gqa=True)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1), (1, 2, 2, 1)], ids=str)
def test_every_number_of_axes(each_isa, dtype, leading):
    """2-D and 3-D inputs have no axes before the heads: their ids are (L,) and (S,)."""
    query, key = normal(*leading, 9, 4, dtype=dtype), normal(*leading, 21, 4, dtype=dtype, seed=1)
    ids_q, ids_k = runs(9, 2, 3), runs(21, 6, 11)
    check(each_isa, query, key, key, (ids_q, ids_k))
    batch = leading[:-1]
    if batch:
        ids_k = np.random.default_rng(0).integers(0, 3, (*batch, 21))
        check(each_isa, query, key, key, (ids_q, ids_k))


def test_with_ranges_masks_and_the_rest(each_isa, dtype):
    """All that is masked is masked, whichever rule says so."""
    for rows in (DECODE, PREFILL):
        query, key, value = qkv((2, 4, rows, 6), 2, 150, dtype=dtype)
        rng = np.random.default_rng(0)
        ids_q, ids_k = rng.integers(0, 3, (2, rows)), rng.integers(0, 3, (2, 150))
        for pair in ((ids_q, ids_k), (np.sort(ids_q), np.sort(ids_k))):
            for options in (
                {"is_causal": True, "query_offset": 100},
                {"window_size": (40, 10), "query_offset": np.array([120, 60])},
                {"kv_lengths": np.array([130, 7])},
                {"attn_mask": bool_mask(rows, 150)},
                {"attn_mask": float_mask(2, 1, rows, 150, dtype=dtype)},
                {"alibi_slopes": slopes(4, dtype=dtype), "softcap": 2.0, "is_causal": True},
                {"sinks": normal(4, dtype=dtype)},
            ):
                check(each_isa, query, key, value, pair, enable_gqa=True, **options)


@pytest.mark.parametrize("rows", [DECODE, PREFILL])
@pytest.mark.parametrize("head_dim", [1, 15, 64, 127, 1024])
def test_head_dims(each_isa, dtype, rows, head_dim):
    query, key, value = one_head(rows, 150, head_dim, dtype=dtype)
    rng = np.random.default_rng(0)
    ids_q, ids_k = rng.integers(0, 3, rows), rng.integers(0, 3, 150)
    check(each_isa, query, key, value, (ids_q, ids_k))
    check(each_isa, query, key, value, (np.sort(ids_q), np.sort(ids_k)))


def test_layouts_of_ids(isa):
    """Ids lie in memory as they like: reversed, with gaps, broadcast, unaligned, read-only."""
    query, key, value = qkv((3, 2, 20, 6), seqlen_k=140)
    rng = np.random.default_rng(0)
    ids_q = np.broadcast_to(rng.integers(0, 3, 20), (3, 20))
    ids_k = rng.integers(0, 3, (3, 140))
    want = attend(query, key, value, segment_ids=(ids_q.copy(), ids_k))
    packed = np.zeros(ids_k.shape, [("more", "u1"), ("id", ids_k.dtype)])
    packed["id"] = ids_k
    frozen = ids_k.copy()
    frozen.flags.writeable = False
    for layout in (
        np.repeat(ids_k, 3, -1)[..., ::3],
        ids_k[..., ::-1].copy()[..., ::-1],
        np.asfortranarray(ids_k),
        packed["id"],
        frozen,
    ):
        assert np.array_equal(layout, ids_k)
        assert same_bits(attend(query, key, value, segment_ids=(ids_q, layout)), want)


def test_ids_are_the_calls_own(isa):
    """Fault 18: ids that lie where out does have been read before it is written."""
    query, key, value = one_head(PREFILL, PREFILL, 2, dtype=np.float64)
    ids = runs(PREFILL, 5, 9, 11).astype(np.int64)
    want = selfattn.scaled_dot_product_attention(query, key, value, segment_ids=ids)
    memory = np.zeros((PREFILL, 2))
    aliased = memory.reshape(-1)[:PREFILL].view(np.int64)
    aliased[:] = ids
    selfattn.scaled_dot_product_attention(query, key, value, segment_ids=aliased, out=memory)
    assert same_bits(memory, want)


def test_a_segment_says_what_a_range_says(isa, dtype):
    """One id for all is no mask, in bits; and two ids that part the keys are kv_lengths."""
    for rows in (DECODE, PREFILL):
        query, key, value = one_head(rows, 700, 6, dtype=dtype)
        one = (np.full(rows, 7), np.full(700, 7))
        assert same_bits(attend(query, key, value, segment_ids=one), attend(query, key, value))
        for length in (1, 127, 128, 129, 512, 650):
            pair = np.zeros(rows, int), runs(700, length)
            got = attend(query, key, value, segment_ids=pair)
            assert same_bits(got, attend(query, key, value, kv_lengths=length)), length
        causal = range_mask(rows, 700, is_causal=True, query_offset=300)
        got = attend(query, key, value, segment_ids=one, attn_mask=causal)
        want = attend(query, key, value, is_causal=True, query_offset=300)
        assert same_bits(got, want)
