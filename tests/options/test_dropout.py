"""Dropout: which weights it keeps, forward and backward, and how many.

Compared with the reference's own elements exactly, by what dropout.py makes visible: not one may
differ, whatever the tile, the thread or the instruction set. What else stands in a call with it is
in test_dropout_with_options.py.
"""

import itertools

import numpy as np
import pytest

import selfattn
from selfattn import reference
from support.arrays import normal, qkv, same_bits
from support.dropout import DROPOUT, SEED, P, attend, mild, seen_by_backward, seen_by_forward, unit
from support.gradients import backward

LENGTHS_Q = [1, 2, 3, 7, 17, 64, 65, 130]


LENGTHS_K = [1, 5, 32, 33, 128, 129, 300]


@pytest.mark.parametrize("rows", LENGTHS_Q)
def test_the_elements_that_are_kept(isa, dtype, rows):
    """By place alone: in few rows and many, around the edges of lanes, chunks, tiles and blocks."""
    for seqlen_k in LENGTHS_K:
        query, key = mild(2, 3, rows, 8, dtype=dtype, seqlen_k=seqlen_k)
        want = reference.dropout_kept((2, 3, rows, seqlen_k), P, SEED)
        kept, weighs = seen_by_forward(query, key, **DROPOUT)
        assert weighs.all()
        assert np.array_equal(kept, want), seqlen_k
        for kept in seen_by_backward(query, key, **DROPOUT):
            assert np.array_equal(kept, want), seqlen_k


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_the_elements_of_many_keys(isa, dtype, rows):
    """Over several splits, and by threads that share them."""
    query, key = mild(1, 1, rows, 8, dtype=dtype, seqlen_k=1300)
    want = reference.dropout_kept((1, 1, rows, 1300), P, SEED)
    for n in (1, 2, 5):
        kept, _ = seen_by_forward(query, key, num_threads=n, **DROPOUT)
        assert np.array_equal(kept, want), n
        for kept in seen_by_backward(query, key, num_threads=n, **DROPOUT):
            assert np.array_equal(kept, want), n


@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1), (8, 1), (9, 3)], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_heads_are_those_of_the_query(isa, dtype, heads, rows):
    """GQA: each head of a group has elements of its own, wherever in a tile its rows stand."""
    heads_q, heads_kv = heads
    query, key = mild(2, heads_q, rows, 8, dtype=dtype, heads_kv=heads_kv, seqlen_k=70)
    want = reference.dropout_kept((2, heads_q, rows, 70), P, SEED)
    kept, _ = seen_by_forward(query, key, enable_gqa=True, **DROPOUT)
    assert np.array_equal(kept, want)
    grad_out = np.zeros((2, heads_q, rows, rows), dtype)
    for head in range(heads_q):  # one at a time: what a group's share of dV is made of
        grad_out[:] = 0
        grad_out[:, head] = np.eye(rows)
        value = np.ones((2, heads_kv, 70, rows), dtype)
        dv = backward(grad_out, query, key, value, enable_gqa=True, **DROPOUT)["value"]
        of_head = dv[:, head // (heads_q // heads_kv)].swapaxes(-1, -2) != 0
        assert np.array_equal(of_head, want[:, head]), head


BATCHES = [
    ((), ()),
    ((4,), (4,)),
    ((3, 4), (3, 4)),
    ((2, 1, 3, 2), (1, 2, 1, 2)),
    ((2, 3, 2), (2,)),
    ((2,), (3, 2, 2)),
    ((1, 1, 1, 2), (1, 1, 1, 2)),
]


@pytest.mark.parametrize("batches", BATCHES, ids=str)
def test_batch_axes_are_counted_from_the_last(isa, dtype, batches):
    """Those of the problem: an entry that an input is broadcast to has its own elements."""
    of_query, of_key = batches
    for rows in (2, 20):
        query = normal(*of_query, rows, 8, dtype=dtype) / 2
        key = normal(*of_key, 40, 8, dtype=dtype, seed=1)
        shape = *np.broadcast_shapes(of_query, of_key), rows, 40
        want = reference.dropout_kept(shape, P, SEED)
        assert np.array_equal(seen_by_forward(query, key, **DROPOUT)[0], want)
        # The last axis before the rows is the heads.
        if of_key == shape[:-2]:
            for kept in seen_by_backward(query, key, **DROPOUT):
                assert np.array_equal(kept, want)


def test_an_axis_that_only_the_values_have(isa, dtype):
    """It is an axis of the batch like any other."""
    query, key = mild(1, 2, 20, 8, dtype=dtype, seqlen_k=30)
    value = unit(3, 2, n=30, dtype=dtype)
    out, _ = attend(query, key, value, **DROPOUT)
    assert np.array_equal(out != 0, reference.dropout_kept((3, 2, 20, 30), P, SEED))


# ------------------------------------------------------------------ seeds and probabilities


def test_seeds(isa, dtype):
    """Whole numbers of 64 bits, with a sign or without; each has its own elements."""
    query, key = mild(1, 2, 20, 8, dtype=dtype, seqlen_k=60)
    masks = []
    for seed in (0, 1, 2, 2**31, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1):
        kept, _ = seen_by_forward(query, key, dropout_p=P, dropout_seed=seed)
        assert np.array_equal(kept, reference.dropout_kept(kept.shape, P, seed)), seed
        masks.append(kept)
        same = [seed - 2**64] if seed >= 2**63 else []
        same += [np.uint64(seed), np.array(seed, np.uint64)]
        for other in same:
            again, _ = seen_by_forward(query, key, dropout_p=P, dropout_seed=other)
            assert np.array_equal(again, kept), other
    for a, b in itertools.combinations(masks, 2):
        agree = (a == b).mean()
        assert abs(agree - (P**2 + (1 - P) ** 2)) < 0.07  # 2,400 elements: 7 sigma


PROBABILITIES = [
    2.0**-34, 2.0**-33, 2.0**-32, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 0.999,
    1 - 2.0**-31, 1 - 2.0**-33, 1 - 2.0**-53, 1.0,
]  # fmt: skip


@pytest.mark.parametrize("p", PROBABILITIES)
def test_probabilities(isa, dtype, p):
    """From the least that drops anything to those that drop all."""
    query, key = mild(1, 2, 40, 8, dtype=dtype, seqlen_k=300)
    value = unit(1, 2, n=300, dtype=dtype)
    want = reference.dropout_kept((1, 2, 40, 300), p, SEED)
    if p > 1 - 1e-6:
        assert not want.any()
    options = {"dropout_p": p, "dropout_seed": SEED}
    if p < 1:
        kept, _ = seen_by_forward(query, key, **options)
        assert np.array_equal(kept, want)
        grad_out = unit(1, 2, n=40, dtype=dtype)
        dv = backward(grad_out, query, key, value[..., :40], **options)["value"]
        assert np.array_equal(dv.swapaxes(-1, -2) != 0, want)
        np.testing.assert_allclose(
            dv.swapaxes(-1, -2),
            np.where(want, selfattn.attention_weights(query, key).astype(np.float64) / (1 - p), 0),
            rtol=64 * np.finfo(dtype).eps,
        )
    if not want.any():
        out, lse = attend(query, key, value, **options)
        assert not out.any()
        assert same_bits(lse, attend(query, key, value)[1])
        mask, sinks = normal(40, 300, dtype=dtype), normal(2, dtype=dtype)
        gradients = backward(
            np.ones_like(out), query, key, value, attn_mask=mask, sinks=sinks, **options
        )
        for name, x in gradients.items():
            assert not x.any(), name


def test_a_probability_of_zero_is_no_dropout(isa, dtype):
    arrays = qkv((1, 2, 40, 8), seqlen_k=300, dtype=dtype)
    want = attend(*arrays)
    for p in (0, 0.0, -0.0, np.float32(0), False * 1.0):
        for seed in (0, 1, -5):
            assert same_bits(attend(*arrays, dropout_p=p, dropout_seed=seed), want)


def test_numbers_of_any_kind(isa, dtype):
    """A probability may be an int, a NumPy number, an array of one."""
    arrays = qkv((1, 2, 9, 8), seqlen_k=30, dtype=dtype)
    want = attend(*arrays, dropout_p=0.5)
    for p in (np.float32(0.5), np.float64(0.5), np.array(0.5), np.float16(0.5)):
        assert same_bits(attend(*arrays, dropout_p=p), want)
    assert not attend(*arrays, dropout_p=1)[0].any()


def test_scores_have_no_dropout():
    arrays = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match="unexpected keyword argument 'dropout_p'"):
        selfattn.scaled_dot_product(*arrays, dropout_p=0.5)


# ------------------------------------------------------------------ the weights themselves


@pytest.mark.parametrize("rows", [1, 3, 20, 65])
def test_attention_weights(isa, dtype, rows):
    """Those that attention drops are 0; the others lack the kept fraction alone."""
    for heads_q, heads_kv, seqlen_k in ((2, 2, 1), (6, 2, 33), (2, 1, 700)):
        query, key, _ = qkv((2, heads_q, rows, 8), heads_kv, seqlen_k, dtype=dtype)
        options = {"enable_gqa": True, "is_causal": True, "query_offset": np.array([20, -2])}
        plain = selfattn.attention_weights(query, key, **options)
        kept = reference.dropout_kept(plain.shape, P, SEED)
        want = np.where(kept, plain.astype(np.float64) / (1 - P), 0)
        for threads in (1, 3):
            got = selfattn.attention_weights(query, key, num_threads=threads, **options, **DROPOUT)
            assert np.array_equal(got != 0, (plain != 0) & kept)
            assert not np.signbit(got).any()
            np.testing.assert_allclose(got, want, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("p", [2.0**-33, 0.5, 1 - 2.0**-33, 1.0])
def test_attention_weights_make_the_fused_result(isa, dtype, p):
    """With all options that weights have; of a query that sees nothing, of NaN, of a sink."""
    query, key, value = qkv((2, 3, 30, 8), seqlen_k=150, dtype=dtype)
    query[1, 0, 4] = np.nan
    options = {"dropout_p": p, "dropout_seed": -3, "sinks": normal(3, dtype=dtype), "softcap": 2.0}
    options |= {"attn_mask": normal(30, 150, dtype=dtype), "kv_lengths": np.array([0, 140])}
    weights = selfattn.attention_weights(query, key, **options)
    assert not weights[0].any()
    assert np.isnan(weights[1, 0, 4, :140]).all()
    got = selfattn.weighted_sum(weights, value)
    want = selfattn.scaled_dot_product_attention(query, key, value, **options)
    bound = 16 * np.finfo(dtype).eps * np.abs(value).max() * max(np.nanmax(weights.sum(-1)), 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound)
    reference_weights = reference.attention_weights(query, key, **options)
    np.testing.assert_allclose(weights, reference_weights, rtol=64 * np.finfo(dtype).eps, atol=0)


# ------------------------------------------------------------------ statistics


def test_the_kept_fraction_and_independence():
    """Of the kernels' own elements, 500,000 of them: within 5 standard deviations of chance.

    The fraction, and how neighbours along keys, rows and heads, and two seeds, go together.
    """
    query, key = mild(1, 4, 250, 4, dtype=np.float32, seqlen_k=500)
    for p in (0.1, 0.5, 0.8):
        masks = []
        for seed in (0, 1):
            kept, _ = seen_by_forward(query, key, dropout_p=p, dropout_seed=seed)
            x = kept[0].astype(np.float64) - (1 - p)
            variance = p * (1 - p)
            assert abs(x.mean()) < 5 * np.sqrt(variance / x.size), (p, seed)
            pairs = {
                "keys": (x[..., 1:], x[..., :-1]),
                "keys a vector apart": (x[..., 8:], x[..., :-8]),
                "keys a block apart": (x[..., 128:], x[..., :-128]),
                "rows": (x[:, 1:], x[:, :-1]),
                "rows and keys": (x[:, 1:, 1:], x[:, :-1, :-1]),
                "rows and keys back": (x[:, 1:, :-1], x[:, :-1, 1:]),
                "heads": (x[1:], x[:-1]),
            }
            for name, (a, b) in pairs.items():
                assert abs((a * b).mean()) < 5 * variance / np.sqrt(a.size), (p, seed, name)
            for axis in (-1, -2):  # as many in a row, or in a column, as of so many draws
                sums = x.sum(axis) / np.sqrt(variance * x.shape[axis])
                spread = (sums**2).mean()
                assert abs(spread - 1) < 5 * np.sqrt(2 / sums.size), (p, seed, axis)
            masks.append(x)
        assert abs((masks[0] * masks[1]).mean()) < 5 * variance / np.sqrt(x.size), p


def test_the_mean_over_seeds_is_the_result_without(isa):
    """Inverted dropout: nothing is to be scaled afterwards."""
    query, key, value = qkv((1, 1, 4, 8), seqlen_k=50, dtype=np.float64)
    want, _ = attend(query, key, value)
    outs = np.stack(
        [attend(query, key, value, dropout_p=0.5, dropout_seed=s)[0] for s in range(1000)]
    )
    off = np.abs(outs.mean(0) - want)
    assert (off < 5 * outs.std(0) / np.sqrt(1000)).all()
