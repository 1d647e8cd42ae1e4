"""Gradients by pieces of keys, each from the out and lse of all of them, as ring attention needs.

Faults 37 and 47. A weight is e^(score - lse), so it is off by what lse was rounded by, at most
|lse| u of itself, as the scores are, and no more.
"""

import numpy as np
import pytest

import selfattn
from support import oracle
from support.arrays import normal, qkv
from support.gradients import backward, grad_of


def gradients_of_pieces(grad_out, query, key, value, ends, **options):
    """Out and lse merged from the pieces; then each piece's gradients, joined or summed."""
    pieces = [slice(a, b) for a, b in zip([0, *ends], [*ends, key.shape[-2]], strict=True)]
    out = lse = None
    for piece in pieces:
        at = options | ({"query_offset": options["query_offset"] - piece.start} if options else {})
        part = selfattn.scaled_dot_product_attention(
            query, key[..., piece, :], value[..., piece, :], return_lse=True, **at
        )
        out, lse = part if out is None else selfattn.merge_states(out, lse, *part)
    dq, dk, dv = np.zeros_like(query), [], []
    for piece in pieces:
        at = options | ({"query_offset": options["query_offset"] - piece.start} if options else {})
        part = selfattn.scaled_dot_product_attention_backward(
            grad_out, query, key[..., piece, :], value[..., piece, :], out, lse, **at
        )
        dq += part.query
        dk.append(part.key)
        dv.append(part.value)
    return lse, dq, np.concatenate(dk, -2), np.concatenate(dv, -2)


@pytest.mark.parametrize("size", [1, 10, 60, 400, 3000, 20000])
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "query_offset": 100}], ids=str)
@pytest.mark.parametrize("ends", [[70], [128], [3, 100, 190]], ids=str)
def test_pieces(isa, dtype, ends, options, size):
    query, key, value = qkv((2, 100, 16), seqlen_k=200, dtype=dtype)
    query = query * dtype(size)
    grad_out = grad_of(query, key, value)
    lse, *got = gradients_of_pieces(grad_out, query, key, value, ends, **options)
    whole = backward(grad_out, query, key, value, **options)
    u = np.finfo(dtype).eps / 2
    top = float(np.abs(lse[np.isfinite(lse)]).max())
    assert size < 10 or top > size
    weights = selfattn.attention_weights(
        query.astype(np.float64), key.astype(np.float64), **options
    )
    # What each weight may be off by, of itself; then sums of 200 products as large as these.
    off = 4 * u * (top + 40)
    dp = np.abs(grad_out) @ np.abs(value).swapaxes(-1, -2)
    ds = weights * (dp + (weights * dp).sum(-1, keepdims=True)) / 4
    bounds = [
        off * (ds @ np.abs(key)),
        off * (ds.swapaxes(-1, -2) @ np.abs(query)),
        off * (weights.swapaxes(-1, -2) @ np.abs(grad_out)),
    ]
    for name, x, bound in zip(("query", "key", "value"), got, bounds, strict=True):
        excess = np.abs(x - whole[name]) - bound
        assert (excess <= 64 * u * np.abs(whole[name]).max()).all(), (name, top, excess.max())


@pytest.mark.parametrize("size", [1, 200, 20000])
def test_an_lse_of_these_keys_alone(isa, dtype, size):
    """Of whatever size, its last bit is no part of the error: rows are recomputed."""
    query, key, value = qkv((2, 60, 16), seqlen_k=1200, dtype=dtype)
    query = query * dtype(size)
    grad_out = grad_of(query, key, value)
    got = backward(grad_out, query, key, value)["value"]
    wide = oracle.wider(dtype)
    scores = selfattn.scaled_dot_product(query, key).astype(wide)  # rounded as in the kernels
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    want = weights.swapaxes(-1, -2) @ grad_out
    # Scores are kept to a bit of the largest; lse, which is one more rounding, is not in it.
    tolerance = 2 * np.finfo(dtype).eps * (1 + float(np.abs(scores).max()) / 4)
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def test_a_piece_that_no_query_sees_or_that_weighs_nothing(isa, dtype):
    query, key, value = qkv((1, 40, 16), seqlen_k=64, dtype=dtype)
    key[:, 32:] = 0
    query, key[:, :32] = query * 0 + dtype(100), key[:, :32] * 0 + dtype(100)
    grad_out = grad_of(query, key, value)
    out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True)
    assert lse.min() > 10_000
    for options in ({}, {"kv_lengths": np.array([0])}):
        got = selfattn.scaled_dot_product_attention_backward(
            grad_out[None], query[None], key[None, :, 32:], value[None, :, 32:], out[None],
            lse[None], **options,
        )  # fmt: skip
        assert not any(x.any() for x in got[:3])


def test_bits_of_recomputed_rows_over_splits(isa, dtype):
    """Keys in many splits: rows recomputed have the forward's own lse, to the bit, and so do
    rows alone."""
    query, key, value = qkv((1, 130, 16), seqlen_k=2300, dtype=dtype)
    query = query * dtype(300)
    grad_out = normal(1, 130, 16, dtype=dtype)
    whole = backward(grad_out, query, key, value)
    for r in (0, 77, 129):
        row = backward(grad_out[:, r : r + 1], query[:, r : r + 1], key, value)
        assert np.array_equal(row["query"][:, 0], whole["query"][:, r])
