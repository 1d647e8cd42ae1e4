"""NaN, infinity and rows that see nothing: what they must reach, and what they must not.

Faults 1, 3, 4, 5 and 6. The tables of expected values are plain Python floats. Masks, segments,
slopes, caps and sinks have a file of their own, test_nonfinite_options.py.
"""

import itertools
import math

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.nonfinite import (
    INF,
    NAN,
    POISON,
    ROWS,
    attend,
    check_poisoned_key,
    expected,
    is_masked,
)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("seqlen_k", [1, 127, 128, 300, 700])
def test_rows_that_see_no_key(isa, dtype, rows, seqlen_k):
    """Fault 1: 0 and -inf, whatever stands in q, K and V."""
    query, key, value = qkv((1, 2, rows, 8), seqlen_k=seqlen_k, dtype=dtype)
    nothing = [
        {"kv_lengths": np.array([0])},
        {"is_causal": True, "query_offset": -rows},
        {"is_causal": True, "query_offset": -(2**40)},
        {"window_size": (3, -1), "query_offset": seqlen_k + 3},
        {"window_size": (0, 0), "query_offset": seqlen_k},
        {"window_size": (5, 5), "kv_lengths": np.array([seqlen_k - 1]), "query_offset": 2000},
    ]
    for poison in (1.0, *POISON):
        arrays = [x * dtype(poison) for x in (query, key, value)]
        for options in nothing:
            for n in (1, 2):
                assert is_masked(*attend(*arrays, num_threads=n, **options)), (options, poison)
            assert not selfattn.attention_weights(*arrays[:2], **options).any(), options
            scores = selfattn.scaled_dot_product(*arrays[:2], **options)
            assert (scores == -INF).all(), options


def test_masked_rows_beside_others(isa, dtype):
    """Fault 1: the first rows of a causal call see nothing; the others are what they are alone."""
    query, key, value = one_head(40, 200, 8, dtype=dtype)
    for offset in (-1, -5, -16, -39):
        out, lse = attend(query, key, value, is_causal=True, query_offset=offset)
        assert is_masked(out[:-offset], lse[:-offset])
        rest = attend(query[-offset:], key, value, is_causal=True)
        assert same_bits((out[-offset:], lse[-offset:]), rest)


@pytest.mark.parametrize("poison", POISON)
def test_poisoned_query(isa, dtype, poison):
    """Fault 4: a NaN or infinite query gives NaN at every S, and reaches no other row."""
    for seqlen_k in range(1, 71):
        for rows, bad in ((1, 0), (3, 1), (40, 17)):
            query, key, value = one_head(rows, seqlen_k, 8, dtype=dtype)
            want = attend(query, key, value)
            query[bad, 5] = poison
            if math.isinf(poison):
                key[:, 5] = np.copysign(key[:, 5], poison)  # every score +inf
            out, lse = attend(query, key, value)
            assert np.isnan(out[bad]).all(), (seqlen_k, rows)
            assert np.isnan(lse[bad]), (seqlen_k, rows)
            if math.isnan(poison):
                others = np.arange(rows) != bad
                assert same_bits((out[others], lse[others]), tuple(x[others] for x in want))


MASKS = [
    {"is_causal": True, "query_offset": 200},
    {"window_size": (30, 10), "query_offset": 150},
    {"kv_lengths": np.array([231])},
    {"is_causal": True, "query_offset": 230, "kv_lengths": np.array([250])},
]


@pytest.mark.parametrize("options", MASKS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_masked_keys(isa, dtype, rows, options):
    """Fault 5: NaN and inf in K or V change no bit of a row that does not see them."""
    query, key, value = qkv((1, 1, rows, 8), seqlen_k=300, head_dim_v=21, dtype=dtype)
    visible = np.isfinite(selfattn.scaled_dot_product(query, key, **options))[0, 0]
    assert not visible.all()
    for j in (*range(0, 300, 13), *range(190, 252), 299):
        check_poisoned_key(query, key, value, j, visible[:, j], **options)


@pytest.mark.parametrize("options", MASKS, ids=str)
@pytest.mark.parametrize("rows", ROWS)
def test_poison_in_every_masked_key(isa, dtype, rows, options):
    """Fault 5: all keys that no row sees, at once; and through the steps on their own."""
    query, key, value = qkv((1, 2, rows, 8), seqlen_k=300, head_dim_v=21, dtype=dtype)
    want = attend(query, key, value, **options)
    weights = selfattn.attention_weights(query, key, **options)
    scores = selfattn.scaled_dot_product(query, key, **options)
    unseen = ~np.isfinite(scores[0, 0]).any(0)
    assert unseen.any()
    for poison in POISON:
        bad_key, bad_value = key.copy(), value.copy()
        bad_key[:, :, unseen] = bad_value[:, :, unseen] = poison
        for n in (1, 3):
            got = attend(query, bad_key, bad_value, num_threads=n, **options)
            assert same_bits(got, want), poison
        assert same_bits(selfattn.attention_weights(query, bad_key, **options), weights), poison
        assert same_bits(selfattn.scaled_dot_product(query, bad_key, **options), scores), poison


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("poison", POISON)
def test_poison_in_one_element_of_an_attended_value(isa, dtype, rows, poison):
    """It reaches its own column, of every row that sees the key, and no other."""
    query, key, value = one_head(rows, 140, 8, 37, dtype=dtype)
    want, want_lse = attend(query, key, value)
    for j, e in itertools.product((0, 1, 127, 128, 139), (0, 15, 16, 31, 36)):
        bad = value.copy()
        bad[j, e] = poison
        out, lse = attend(query, key, bad)
        others = np.arange(37) != e
        assert same_bits(out[:, others], want[:, others])
        assert same_bits(out[:, e], np.full(rows, poison, dtype))
        assert same_bits(lse, want_lse)


def test_infinite_scores(isa, dtype):
    """Fault 6: q times k over a table of 0, 1, infinities and NaN, at two and three keys."""
    table = [0.0, 1.0, -1.0, INF, -INF, NAN]
    values = [1.0, 2.0, 4.0]
    for count in (2, 3):
        for q, *keys in itertools.product(table, repeat=count + 1):
            scores = [q * k for k in keys]
            out, lse = expected(scores, values[:count])
            column = np.array(keys, dtype)[:, None]
            value = np.array(values[:count], dtype)[:, None]
            for rows in (1, 20):
                got, got_lse = attend(np.full((rows, 1), q, dtype), column, value, scale=1.0)
                # 3 rounded numbers of size 4: 2e-6, 4e-15
                close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
                np.testing.assert_allclose(got, np.full((rows, 1), out), err_msg=(q, keys), **close)
                np.testing.assert_allclose(got_lse, np.full(rows, lse), err_msg=(q, keys), **close)


@pytest.mark.parametrize("rows", ROWS)
def test_scores_that_are_minus_infinity_by_arithmetic(isa, dtype, rows):
    """They count as masked: all of them make a masked row, some weigh nothing."""
    for seqlen_k in [*range(1, 35), 127, 128, 129, 300, 600]:
        query, key, value = one_head(rows, seqlen_k, 4, dtype=dtype)
        query[:, 0] = 1
        key[:, 0] = -INF
        assert is_masked(*attend(query, key, value)), seqlen_k
        assert not selfattn.attention_weights(query, key).any(), seqlen_k
        key[seqlen_k // 2, 0] = 0
        out, lse = attend(query, key, value)
        one = attend(query, key[seqlen_k // 2][None], value[seqlen_k // 2][None])
        np.testing.assert_array_equal(out, one[0])
        np.testing.assert_array_equal(lse, one[1])


def test_masked_by_arithmetic_whatever_the_values(isa, dtype):
    """The same with poisoned values: a fully masked row is 0, never NaN."""
    for rows, poison in itertools.product(ROWS, POISON):
        key = np.full((20, 1), -INF, dtype)
        value = np.full((20, 3), poison, dtype)
        assert is_masked(*attend(np.ones((rows, 1), dtype), key, value)), (rows, poison)


def test_softmax_of_minus_infinity(isa, dtype):
    """Fault 3: 0 for every n, in a row of its own and beside others."""
    for n in range(1, 301):
        x = normal(4, n, dtype=dtype)
        x[1] = x[3] = -INF
        y = selfattn.softmax(x)
        assert same_bits(y[1::2], np.zeros((2, n), dtype)), n
        assert same_bits(y[::2], selfattn.softmax(x[::2])), n


def test_softmax_of_special_values(isa, dtype):
    """NaN or +inf makes its own row NaN, -inf weighs 0; at every place of a row of every tail."""
    for n in (1, 2, 15, 16, 17, 33, 300):
        for at in {0, n // 2, n - 1}:
            x = normal(3, n, dtype=dtype)
            want = selfattn.softmax(x)
            for poison in (NAN, INF):
                x[1, at] = poison
                y = selfattn.softmax(x)
                assert np.isnan(y[1]).all(), (n, at, poison)
                assert same_bits(y[::2], want[::2]), (n, at, poison)
            x[1, at] = -INF
            y = selfattn.softmax(x)
            assert y[1, at] == 0, (n, at)
            # The others: n positive numbers, each rounded, and their sum to 1.
            assert n == 1 or abs(float(y[1].sum(dtype=np.float64)) - 1) < n * np.finfo(dtype).eps
