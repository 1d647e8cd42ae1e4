"""KVCache and PagedKVCache: what they hold, share, refuse and give back; options; prefixes."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import selfattn
from support.arrays import normal, same_bits
from support.option_arrays import bool_mask, float_mask, runs, slopes
from support.strategies import repeatable

HEADS_KV, E, EV = 2, 16, 12


def rows(n, t, seed=0, dtype=np.float32):
    """Keys and values of n sequences, t positions of each."""
    return (
        normal(n, HEADS_KV, t, E, dtype=dtype, seed=seed),
        normal(n, HEADS_KV, t, EV, dtype=dtype, seed=seed + 1),
    )


def paged(num_blocks=12, size=4, dtype=np.float32):
    return selfattn.PagedKVCache(num_blocks, size, HEADS_KV, E, EV, dtype=dtype)


def causal(query, key, value, **options):
    """One sequence, whose queries are its last positions."""
    offset = key.shape[-2] - query.shape[-2]
    return selfattn.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True, query_offset=offset, **options
    )


# ------------------------------------------------------------------ what is held


def test_contents():
    key, value = rows(3, 9)
    cache = selfattn.KVCache(3, HEADS_KV, 10, E, EV)
    assert (cache.capacity, cache.dtype) == (10, np.float32)
    assert cache.key.shape == (3, HEADS_KV, 0, E)
    cache.append(key, value, lengths=np.array([9, 0, 4]))
    assert cache.lengths.tolist() == [9, 0, 4]
    assert same_bits(cache.key[0], key[0])
    assert same_bits(cache.value[2, :, :4], value[2, :, :4])
    assert not cache.key.flags.writeable
    cache.lengths[0] = 1  # a copy
    cache.append(key[:, :, :1], value[:, :, :1])
    assert cache.lengths.tolist() == [10, 1, 5]
    cache.truncate(np.array([3, 1, 5]))
    assert cache.lengths.tolist() == [3, 1, 5]
    cache.append(key[:, :, 5:7], value[:, :, 5:7])
    assert same_bits(cache.key[0, :, 2:5], np.concatenate([key[0, :, 2:3], key[0, :, 5:7]], 1))
    cache.reset()
    assert cache.lengths.tolist() == [0, 0, 0]
    out = cache.attend(normal(3, 4, 1, E))
    assert same_bits(out, np.zeros((3, 4, 1, EV), "f4"))


def test_int8():
    """Rows are off by half a step at most, and zeros are zeros; the result is the float32 rows'."""
    key, value = rows(1, 300)
    key[0, 0, 3], value[0, 1, 5] = 0, 1e-40
    cache = selfattn.KVCache(1, HEADS_KV, 300, E, EV, dtype=np.int8)
    cache.append(key, value)
    for held, x in ((cache.key, key), (cache.value, value)):
        step = np.abs(x).max(-1, keepdims=True) / 127
        assert (np.abs(held - x) <= step * 0.5001).all()
        assert held.dtype == np.float32
    query = normal(1, 4, 5, E)
    want = causal(query, cache.key, cache.value)
    assert same_bits(cache.attend(query), want)
    half = query.astype("f2")
    want = causal(half.astype("f4"), cache.key, cache.value).astype("f2")
    assert same_bits(cache.attend(half), want)
    cache.append(key[:, :, :0], value[:, :, :0].astype("f8"))
    before = cache.key.copy()
    for bad in (np.nan, np.inf):
        key[0, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=r"^key: expected finite numbers"):
            selfattn.KVCache(1, HEADS_KV, 300, E, EV, dtype=np.int8).append(key, value)
    assert same_bits(cache.key, before)


def test_pages_are_given_back():
    cache = paged(12, 4)
    key, value = rows(1, 9)
    ids = [cache.new_sequence() for _ in range(3)]
    for sequence in ids:
        cache.append([sequence], key, value)
    assert cache.num_free_blocks == 3
    cache.truncate(ids[1], 8)
    assert (cache.length(ids[1]), cache.num_free_blocks) == (8, 4)
    cache.free(ids[0])
    assert cache.num_free_blocks == 7
    with pytest.raises(ValueError, match=r"^sequence: expected the number of a sequence, got 0"):
        cache.length(ids[0])
    assert cache.new_sequence() not in ids  # a number is never given again
    cache.append([ids[1]], *rows(1, 28, seed=9))
    assert cache.num_free_blocks == 0
    query = normal(1, 4, 1, E)
    want = [
        np.concatenate(x, 2)
        for x in zip((key[:, :, :8], value[:, :, :8]), rows(1, 28, seed=9), strict=True)
    ]
    assert same_bits(cache.attend([ids[1]], query), causal(query, *want))


def test_copy_on_write():
    """A prefix is shared until one of the sequences writes where the other reads."""
    cache = paged(12, 4)
    key, value = rows(1, 10)
    first = cache.new_sequence()
    cache.append([first], key, value)  # pages of 4, 4 and 2
    second = cache.new_sequence(prefix_of=first)
    third = cache.new_sequence(prefix_of=first, length=6)
    assert (cache.length(third), cache.num_free_blocks) == (6, 9)
    more = [rows(1, 3, seed=s) for s in (5, 6, 7)]
    for sequence, x in zip((first, second, third), more, strict=True):
        cache.append([sequence], *x)
    # first and second: a page of their own for the last two, one more; third: its second page.
    assert cache.num_free_blocks == 9 - 2 - 1 - 2
    query = normal(1, 4, 3, E)
    for sequence, n, x in zip((first, second, third), (10, 10, 6), more, strict=True):
        held = [np.concatenate([a[:, :, :n], b], 2) for a, b in zip((key, value), x, strict=True)]
        assert same_bits(cache.attend([sequence], query), causal(query, *held))
    for sequence in (first, second, third):
        cache.free(sequence)
    assert cache.num_free_blocks == 12


def test_all_who_share_a_page_leave_it_at_once():
    """It is free then, and none of the pages that they take is."""
    cache = paged(12, 4)
    first = cache.new_sequence()
    cache.append([first], *rows(1, 2))
    ids = [first, cache.new_sequence(first), cache.new_sequence()]
    cache.append(ids, *rows(3, 5, seed=3))
    assert cache.num_free_blocks == 12 - 2 - 2 - 2
    cache.append([cache.new_sequence()], *rows(1, 24, seed=5))
    assert cache.num_free_blocks == 0
    query = normal(1, 2, 1, E)
    for i, sequence in enumerate(ids):
        held = [x[i : i + 1] for x in rows(3, 5, seed=3)]
        if i < 2:
            held = [np.concatenate(x, 2) for x in zip(rows(1, 2), held, strict=True)]
        assert same_bits(cache.attend([sequence], query), causal(query, *held))


@given(data=st.data(), size=st.sampled_from([1, 3, 4]))
@repeatable(40)
def test_any_use(data, size):
    """Against lists of positions: what is appended, cut, shared, freed, in any order."""
    cache, held, taken = paged(30, size), {}, 0
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["new", "prefix", "append", "append", "cut", "free"]))
        if action == "new" or not held:
            held[cache.new_sequence()] = np.empty((1, HEADS_KV, 0, E), "f4")
            continue
        sequence = data.draw(st.sampled_from(sorted(held)))
        length = held[sequence].shape[2]
        if action == "prefix":
            n = data.draw(st.integers(0, length))
            held[cache.new_sequence(sequence, n)] = held[sequence][:, :, :n]
        elif action == "cut":
            n = data.draw(st.integers(0, length))
            cache.truncate(sequence, n)
            held[sequence] = held[sequence][:, :, :n]
        elif action == "free":
            cache.free(sequence)
            del held[sequence]
        else:
            several = sorted(data.draw(st.sets(st.sampled_from(sorted(held)), min_size=1)))
            counts = [data.draw(st.integers(0, 7)) for _ in several]
            taken += 1
            x = normal(len(several), HEADS_KV, 7, E, seed=taken)
            free, lengths = cache.num_free_blocks, [cache.length(s) for s in several]
            try:
                cache.append(several, x, x[..., :EV], lengths=np.array(counts))
            except ValueError:
                assert cache.num_free_blocks == free
                assert [cache.length(s) for s in several] == lengths
            else:
                for i, (s, n) in enumerate(zip(several, counts, strict=True)):
                    held[s] = np.concatenate([held[s], x[i : i + 1, :, :n]], 2)
    query = normal(1, HEADS_KV, 1, E)
    for sequence, x in held.items():
        assert cache.length(sequence) == x.shape[2]
        want = selfattn.scaled_dot_product_attention(query, x, x[..., :EV])
        assert same_bits(cache.attend([sequence], query), want)
    for sequence in list(held):
        cache.free(sequence)
    assert cache.num_free_blocks == 30


# ------------------------------------------------------------------ options

LENGTHS = np.array([300, 140, 7])
OPTIONS = {
    "not causal": {"is_causal": False},
    "window": {"window_size": (40, 3)},
    "numbers": {"scale": 0.3, "softcap": 2.0, "sinks": slopes(4)},
    "alibi": {"alibi_slopes": slopes(4)},
    "mask": {"attn_mask": bool_mask(4, 1, 300)},
    "mask and bias": {"attn_mask": bool_mask(300), "attn_bias": float_mask(3, 4, 5, 300)},
    "starts": {"kv_starts": np.array([140, 3, 7])},
    "segments": {"segment_ids": (np.zeros(5, int), runs(300, 100, 200) % 2)},
    "dropout": {"dropout_p": 0.4, "dropout_seed": 7},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    """Those of attention, with positions and lengths said by the cache."""
    options = OPTIONS[name]
    key, value = rows(3, 300)
    query = normal(3, 4, 5, E)
    want = selfattn.scaled_dot_product_attention(
        query,
        key,
        value,
        enable_gqa=True,
        return_lse=True,
        query_offset=LENGTHS - 5,
        kv_lengths=LENGTHS,
        **({"is_causal": True} | options),
    )
    cache, pages = selfattn.KVCache(3, HEADS_KV, 300, E, EV), paged(80, 8)
    ids = [pages.new_sequence() for _ in range(3)]
    cache.append(key, value, lengths=LENGTHS)
    pages.append(ids, key, value, lengths=LENGTHS)
    for got in (
        cache.attend(query, return_lse=True, **options),
        pages.attend(ids, query, return_lse=True, **options),
    ):
        assert same_bits(got, want)
    out = np.empty_like(want[0])
    assert pages.attend(ids, query, out=out, **options) is out
    assert same_bits(out, want[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_a_shared_prefix(each_isa, dtype):
    """Read once for all its sequences: the bits of each alone, whatever goes on after it."""
    given = np.float32 if dtype == np.int8 else dtype
    cache = paged(200, 16, dtype)
    prompts = [cache.new_sequence() for _ in range(2)]
    cache.append(prompts, *rows(2, 1100, dtype=given), lengths=np.array([1100, 600]))
    ids = [cache.new_sequence(prefix_of=prompts[i % 2]) for i in range(5)]
    alone = cache.new_sequence()
    ids.insert(2, alone)
    more = rows(6, 40, seed=4, dtype=given)
    cache.append(ids, *more, lengths=np.array([1, 40, 30, 7, 0, 12]))
    for seqlen_q in (1, 3, 20):
        query = normal(6, 4, seqlen_q, E, dtype=given)
        for options in ({}, {"softcap": 3.0}, {"sinks": slopes(4)}, {"window_size": (30, -1)}):
            for _ in each_isa():
                got = cache.attend(ids, query, return_lse=True, num_threads=2, **options)
                for b, sequence in enumerate(ids):
                    want = cache.attend([sequence], query[b : b + 1], return_lse=True, **options)
                    assert same_bits(tuple(x[b : b + 1] for x in got), want), (b, options)


# ------------------------------------------------------------------ errors

ONE = rows(2, 1)
BAD = [
    (lambda c: c.append(ONE[0][:1], ONE[1]), ValueError, "key: expected shape (2, 2, t, 16)"),
    (
        lambda c: c.append(ONE[0], ONE[1][..., :3]),
        ValueError,
        "value: expected shape (2, 2, 1, 12)",
    ),
    (lambda c: c.append(ONE[0].astype("f8"), ONE[1]), TypeError, "key: expected float32"),
    (lambda c: c.append(*ONE, lengths=2), ValueError, "lengths: expected values from 0 to 1"),
    (lambda c: c.append(*rows(2, 9)), ValueError, "key: expected at most 5 more positions"),
    (lambda c: c.attend(ONE[0][:1]), ValueError, "query: expected shape (2, Hq, L, 16)"),
    (lambda c: c.attend(normal(2, 3, 1, E)), ValueError, "query: expected a number of heads"),
    (lambda c: c.attend(normal(2, 2, 1, E).astype("f8")), TypeError, "query: expected float32"),
    (lambda c: c.attend(ONE[0], window_size=3), TypeError, "window_size: "),
    (lambda c: c.attend(ONE[0], lengths=np.array([0, 2])), ValueError, "lengths: expected values"),
    (lambda c: c.attend(ONE[0], num_threads=-1), ValueError, "num_threads: "),
    (lambda c: c.truncate(4), ValueError, "lengths: expected values from 0 to"),
    (lambda c: c.truncate(-1), ValueError, "lengths: expected values from 0 to"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    """Nothing has changed after one."""
    cache = selfattn.KVCache(2, HEADS_KV, 8, E, EV)
    cache.append(*rows(2, 3))
    with pytest.raises(error, match="^" + re.escape(message)):
        call(cache)
    assert cache.lengths.tolist() == [3, 3]
    assert same_bits(cache.key, rows(2, 3)[0])


PAGED_BAD = [
    (lambda c: c.append([0, 0], *ONE), ValueError, "sequences: expected each number once"),
    (lambda c: c.append([0, 5], *ONE), ValueError, "sequences: expected the number of a sequence"),
    (lambda c: c.append(0, *ONE), TypeError, "sequences: expected numbers of sequences"),
    (
        lambda c: c.append([0, 1], *rows(2, 9)),
        ValueError,
        "key: expected positions for which 2 free",
    ),
    (lambda c: c.attend([0], ONE[0]), ValueError, "query: expected shape (1, Hq, L, 16)"),
    (lambda c: c.new_sequence(prefix_of=9), ValueError, "prefix_of: expected the number of"),
    (lambda c: c.new_sequence(prefix_of=0, length=4), ValueError, "length: expected 0 to 3"),
    (lambda c: c.new_sequence(length=4), ValueError, "length: expected none without prefix_of"),
    (lambda c: c.truncate(0, 4), ValueError, "length: expected 0 to 3"),
    (lambda c: c.free(7), ValueError, "sequence: expected the number of a sequence"),
    (lambda c: c.free("x"), TypeError, "sequence: expected an int"),
]


@pytest.mark.parametrize(("call", "error", "message"), PAGED_BAD)
def test_errors_of_pages(call, error, message):
    cache = paged(4, 4)
    ids = [cache.new_sequence(), cache.new_sequence()]
    cache.append(ids, *rows(2, 3))
    query = normal(2, 4, 1, E)
    before = cache.attend(ids, query)
    with pytest.raises(error, match="^" + re.escape(message)):
        call(cache)
    assert cache.num_free_blocks == 2
    assert same_bits(cache.attend(ids, query), before)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: selfattn.KVCache(0, 1, 1, 1), ValueError, "batch: expected 1 or more"),
        (lambda: selfattn.KVCache(1, 1, 1, 2.5), TypeError, "head_dim: expected an int"),
        (lambda: selfattn.KVCache(1, 1, 1, 1, dtype="i4"), TypeError, "dtype: expected float32"),
        (lambda: selfattn.KVCache(1, 1, 1, 1, dtype="x"), TypeError, "dtype: expected float32"),
        (lambda: selfattn.KVCache(1, 1, 1, 1, dtype=">f4"), TypeError, "dtype: expected float32"),
        (lambda: selfattn.PagedKVCache(1, 0, 1, 1), ValueError, "block_size: expected 1 or more"),
    ],
)
def test_errors_of_sizes(make, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        make()


def test_more_queries_than_positions_beside_a_shared_prefix():
    """Those before the first position see nothing; and there may be no query at all."""
    cache = paged(40, 128)
    first = cache.new_sequence()
    cache.append([first], *rows(1, 2000))
    ids = [first, cache.new_sequence(first, length=520)]
    query = normal(2, 4, 600, E)
    out = cache.attend(ids, query)
    assert same_bits(out[1:], cache.attend(ids[1:], query[1:]))
    assert not out[1, :, :80].any()
    assert cache.attend(ids, query[:, :, :0]).shape == (2, 4, 0, EV)


def test_no_warning_of_numpys():
    """Where int8 rounds, and where a result leaves a half type's range."""
    cache = selfattn.KVCache(1, 1, 4, 4, dtype=np.int8)
    small, large = np.full((1, 1, 1, 4), 1e-44, "f4"), np.full((1, 1, 1, 4), 1e300)
    query, value = np.ones((1, 1, 1, 4), "f2"), np.full((1, 1, 1, 4), 1e5, "f4")
    with np.errstate(all="raise"):
        cache.append(small, value)
        assert np.isinf(cache.attend(query)).all()
        with pytest.raises(ValueError, match=r"^key: expected finite numbers"):
            cache.append(large, value)
