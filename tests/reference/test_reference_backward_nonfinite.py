"""The reference's gradients where rows see no key, where NaN and inf stand, and with finfo.min.

By plain statements of what must come out; what has a derivative is in test_reference_backward.py.
"""

import itertools

import numpy as np
import pytest

from selfattn import reference
from selfattn.reference.distribution import sum_over_visible
from support.arrays import normal, one_head, qkv, same_bits
from support.nonfinite import hidings

POISONS = [np.nan, np.inf, -np.inf]
MORE = [
    {},
    {"softcap": 2.0},
    {"sinks": np.array([0.5])},
    {"dropout_p": 0.3, "dropout_seed": 1},
    {"softcap": 2.0, "sinks": np.array([0.5]), "dropout_p": 0.3, "alibi_slopes": np.array([0.1])},
]


def gradients(grad_out, query, key, value, **options):
    mask = options.get("attn_mask")
    return reference.scaled_dot_product_attention_backward(
        grad_out, query, key, value, None, None,
        mask_grad=mask is not None and mask.dtype != bool,
        sinks_grad=options.get("sinks") is not None,
        **options,
    )  # fmt: skip


def poisoned(x, at, poison):
    x = x.copy()
    x[at] = poison
    return x


def test_out_and_lse_are_not_looked_at():
    """They are rounded to the inputs' dtype: the truth does not depend on them."""
    query, key, value = one_head(4, 6, 3)
    out, lse = reference.scaled_dot_product_attention(query, key, value, return_lse=True)
    call = reference.scaled_dot_product_attention_backward
    want = call(out, query, key, value, out, lse)
    assert same_bits(call(out, query, key, value, out * np.nan, lse * np.nan)[:3], want[:3])


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("poison", [0.0, *POISONS])
def test_rows_without_keys(more, poison):
    """Faults 1 and 7, and docs/semantics.md: gradients of exactly 0, whatever q and grad_out hold
    there, and nothing of theirs in the gradients of keys, values and sinks.
    """
    query, key, value = one_head(5, 6, 3, dtype=np.float64)
    grad_out = normal(5, 3, dtype=np.float64, seed=7)
    rows = [1, 4]
    seen = np.ones((5, 6), bool)
    seen[rows] = False
    ids = np.zeros(5, int), np.zeros(6, int)
    ids[0][rows] = 1
    for options in (
        {"attn_mask": seen},
        {"attn_mask": np.where(seen, 0.25, -np.inf)},
        {"segment_ids": ids},
    ):
        got = gradients(
            poisoned(grad_out, rows, poison), poisoned(query, rows, poison), key, value,
            **options, **more,
        )  # fmt: skip
        want = gradients(grad_out, query, key, value, **options, **more)
        assert (got.query[rows] == 0).all(), options
        for x, wanted in zip(got, want, strict=True):
            assert x is None or np.array_equal(x, wanted), options
        # Nor in those that a call without these rows gives: not by comparison with itself. Dropout
        # goes by the index of a row, so there is none here to compare.
        if "dropout_p" in more or "alibi_slopes" in more:
            continue
        left = {name: x for name, x in options.items() if name == "attn_mask"}
        if left:
            left["attn_mask"] = np.delete(left["attn_mask"], rows, 0)
        fewer = gradients(
            *(np.delete(x, rows, 0) for x in (grad_out, query)), key, value, **left, **more
        )
        np.testing.assert_allclose(np.delete(got.query, rows, 0), fewer.query, rtol=1e-13)
        np.testing.assert_allclose(got.key, fewer.key, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(got.value, fewer.value, rtol=1e-12, atol=1e-15)
        if "sinks" in more:
            np.testing.assert_allclose(got.sinks, fewer.sinks, rtol=1e-12)


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("poison", POISONS)
def test_nothing_but_masked_rows(more, poison):
    """By every rule: all gradients are 0, with NaN or inf in every array, the sinks too."""
    arrays = one_head(4, 6, 3, dtype=np.float64)
    query, key, value = (poisoned(x, (slice(None), 1), poison) for x in arrays)
    grad_out = np.full((4, 3), poison)
    if "sinks" in more:
        more = {**more, "sinks": np.array([poison])}
    for options in (
        {"attn_mask": np.zeros((4, 6), bool)},
        {"attn_mask": np.full((4, 6), -np.inf)},
        {"kv_lengths": 0},
        {"is_causal": True, "query_offset": -4},
        {"window_size": (0, 0), "query_offset": 6},
        {"segment_ids": (np.zeros(4, int), np.ones(6, int))},
    ):
        for x in gradients(grad_out, query, key, value, **options, **more):
            assert x is None or (x == 0).all(), options


@pytest.mark.parametrize("sinks", [None, np.array([0.5])], ids=str)
def test_minus_infinity_by_arithmetic(sinks):
    """A row whose scores are all -inf is as masked, whatever else stands in it."""
    query, key = np.ones((2, 1)), np.full((3, 1), -np.inf)
    value = np.array([[1.0, np.nan], [2.0, 0.0], [3.0, np.inf]])
    for grad_out in (np.ones((2, 2)), np.full((2, 2), np.nan)):
        for x in gradients(grad_out, query, key, value, sinks=sinks):
            assert x is None or (x == 0).all()


@pytest.mark.parametrize("more", MORE, ids=str)
@pytest.mark.parametrize("poison", POISONS)
def test_masked_poison(more, poison):
    """Fault 5: under each rule, NaN or inf in a hidden key or value changes no bit of the gradients
    of the queries that do not see it; in a query or its grad_out, none of the keys that it does
    not see. What sees it is NaN or inf.
    """
    query, key, value = one_head(5, 6, 3, dtype=np.float64)
    grad_out = normal(5, 3, dtype=np.float64, seed=7)
    for options, rows in hidings(5, 6, 3, 2):
        hidden = np.zeros(5, bool)
        hidden[rows] = True
        want = gradients(grad_out, query, key, value, **options, **more)
        bad_key, bad_value = poisoned(key, (3, 1), poison), poisoned(value, 3, poison)
        for k, v in ((bad_key, value), (key, bad_value), (bad_key, bad_value)):
            got = gradients(grad_out, query, k, v, **options, **more)
            assert np.array_equal(got.query[hidden], want.query[hidden]), options
            assert hidden.all() or not np.isfinite(got.query[~hidden]).all(), options
            if got.attn_mask is not None:
                assert np.array_equal(got.attn_mask[hidden], want.attn_mask[hidden]), options
        if hidden.all():  # a key that no query sees
            for x, wanted in zip(got, want, strict=True):
                assert x is None or np.array_equal(x, wanted), options
            assert (got.key[3] == 0).all()
            assert (got.value[3] == 0).all()
        bad_query, bad_grad = (
            poisoned(query, (hidden, 1), poison),
            poisoned(grad_out, hidden, poison),
        )
        for g, q in ((bad_grad, query), (grad_out, bad_query), (bad_grad, bad_query)):
            got = gradients(g, q, key, value, **options, **more)
            assert np.array_equal(got.key[3], want.key[3]), options
            assert np.array_equal(got.value[3], want.value[3]), options
            assert np.array_equal(got.query[~hidden], want.query[~hidden]), options
            if got.attn_mask is not None:
                assert (got.attn_mask[hidden, 3] == 0).all(), options


def test_attended_poison_goes_where_arithmetic_says():
    """To what attends it, and no further. Two heads and entries stay apart."""
    arrays = qkv((2, 2, 4, 3), dtype=np.float64)
    grad_out = normal(2, 2, 4, 3, dtype=np.float64, seed=7)
    want = gradients(grad_out, *arrays, is_causal=True)
    for poison, which in itertools.product(POISONS, range(4)):
        inputs = [grad_out, *arrays]
        inputs[which] = poisoned(inputs[which], (0, 1, 2, 1), poison)
        got = gradients(*inputs, is_causal=True)
        for x, wanted in zip(got[:3], want[:3], strict=True):
            assert np.array_equal(x[1], wanted[1])
            assert np.array_equal(x[:, 0], wanted[:, 0])
        rows = [2] if which in (0, 1) else [2, 3]  # query 2's own row, or those that see key 2
        others = [n for n in range(4) if n not in rows]
        assert np.array_equal(got.query[0, 1, others], want.query[0, 1, others])
        assert not np.isfinite(got.query[0, 1, rows]).all(-1).any()
        last = 3 if which in (0, 1) else 4  # the keys that a poisoned row sees
        assert np.array_equal(got.key[0, 1, last:], want.key[0, 1, last:])
        if which != 2 or np.isnan(poison):  # a key of inf may weigh nothing: scores of -inf
            assert not np.isfinite(got.key[0, 1, :last]).all(-1).any()
        if which == 0:  # the column of grad_out alone
            assert not np.isfinite(got.value[0, 1, :3, 1]).any()
            assert np.array_equal(got.value[0, 1, :, [0, 2]], want.value[0, 1, :, [0, 2]])
        if which == 3:  # values have no part in their own gradients
            assert np.array_equal(got.value, want.value)


@pytest.mark.parametrize("mask_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sinks", [None, np.array([-1.0]), "finfo.min"], ids=str)
def test_finite_minimum(mask_dtype, sinks):
    """Fault 2: a row of nothing but finfo.min attends evenly, and so are its gradients; beside a
    sink that is a number it weighs nothing, beside one of finfo.min it shares evenly with it.
    """
    query, key, value = one_head(1, 5, 3, 4, dtype=np.float64)
    grad_out = normal(1, 4, dtype=np.float64, seed=7)
    least = np.finfo(mask_dtype).min
    count = 5
    if sinks is not None:
        count = 6 if sinks == "finfo.min" else np.inf
        sinks = np.array([least]) if sinks == "finfo.min" else sinks
    attn_mask = np.full((1, 5), least)
    got = gradients(grad_out, query, key, value, attn_mask=attn_mask, sinks=sinks)
    dweights = (value @ grad_out[0])[None]
    delta = dweights.sum() / count
    dscores = (dweights - delta) / count
    expected = [
        dscores @ key / np.sqrt(3),
        dscores.T @ query / np.sqrt(3),
        np.broadcast_to(grad_out / count, (5, 4)),
        dscores,
        None if sinks is None else np.array([-delta / count]),
    ]
    for x, wanted in zip(got, expected, strict=True):
        if wanted is not None:
            np.testing.assert_allclose(x, wanted, rtol=2e-7, atol=1e-15)


def test_the_flat_ends_of_the_cap():
    """Where the cap holds all scores the gradients of q and k are 0, and those of v and the mask
    are not; infinite scores are held too, and 0 times the inf behind them is NaN.
    """
    query, key, value = one_head(4, 6, 3, dtype=np.float64)
    grad_out = normal(4, 3, dtype=np.float64, seed=7)
    attn_mask = np.zeros((4, 6))
    got = gradients(grad_out, query * 1e6, key, value, softcap=0.5, attn_mask=attn_mask)
    assert (got.query == 0).all()
    assert (got.key == 0).all()
    assert got.value.all()
    assert got.attn_mask.all()
    key = poisoned(np.ones((6, 3)), (2, 0), np.inf)
    got = gradients(grad_out, np.ones((4, 3)), key, value, softcap=5.0)
    assert np.isfinite(got.value).all()
    assert np.isnan(got.query[:, 0]).all()
    assert np.isfinite(got.query[:, 1:]).all()
    assert (got.key[2] == 0).all()


@pytest.mark.parametrize("dropout_p", [0.5, 1.0])
def test_dropped_is_not_masked(dropout_p):
    """A dropped weight is 0 times its value: with NaN in it, NaN, as arithmetic says."""
    query, key, value = one_head(3, 8, 2, dtype=np.float64)
    grad_out = np.ones((3, 2))
    options = {"dropout_p": dropout_p, "dropout_seed": 4}
    got = gradients(grad_out, query, key, poisoned(value, 3, np.nan), **options)
    assert np.isnan(got.query).all()
    if dropout_p == 1:
        got = gradients(grad_out, query, key, value, **options)
        assert all((x == 0).all() for x in got[:3])


@pytest.mark.parametrize("poison", POISONS)
def test_sum_over_visible(poison):
    """Against the sum written out, with any kind of number on either side."""
    weights, value = normal(2, 4, 6, dtype=np.float64), normal(2, 6, 3, dtype=np.float64, seed=1)
    visible = normal(2, 4, 6, seed=2) > -0.8
    want = sum_over_visible(weights, visible, value)
    np.testing.assert_allclose(want, np.where(visible, weights, 0) @ value, rtol=1e-13)
    hidden = np.argwhere(~visible)
    seen = np.argwhere(visible)
    value[:, 5, 1] = 0  # times inf is NaN
    for left, right in itertools.product((hidden, seen), repeat=2):
        w, v = weights.copy(), value.copy()
        w[tuple(left[0])] = poison
        v[right[-1][0], right[-1][2]] = -np.inf
        with np.errstate(invalid="ignore"):
            terms = w[..., None] * v[:, None]
            wanted = np.where(visible[..., None], terms, 0.0).sum(-2)
        got = sum_over_visible(w, visible, v)
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-15)
