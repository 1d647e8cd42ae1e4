"""The reference itself, against scalars and math.fsum, written as the definitions read.

reference.py says what the kernels must compute; here is said what it must compute. PyTorch agrees
too, where it is installed.
"""

import itertools
import math

import numpy as np
import pytest
from arrays import normal, plain, qkv

from selfattn import reference


def sees(i, j, is_causal=False, query_offset=0, kv_length=None, window_size=(-1, -1)):
    """Whether query i sees key j: the table of DESIGN.md's semantics, line by line."""
    position = i + query_offset
    left, right = window_size
    if is_causal and j > position:
        return False
    if left != -1 and j < position - left:
        return False
    if right != -1 and j > position + right:
        return False
    return kv_length is None or j < kv_length


def attention(query, key, value, scale=None, **mask):
    """out, lse, weights and scores of one head, as lists of Python floats."""
    scale = 1 / math.sqrt(query.shape[1]) if scale is None else scale
    outs, lses, all_weights, all_scores = [], [], [], []
    for i, q in enumerate(query.tolist()):
        scores = [
            scale * math.fsum(x * y for x, y in zip(q, k, strict=True))
            if sees(i, j, **mask)
            else -math.inf
            for j, k in enumerate(key.tolist())
        ]
        top = max(scores)
        if top == -math.inf:
            weights, lse = [0.0] * len(scores), -math.inf
        else:
            total = math.fsum(math.exp(s - top) for s in scores)
            weights, lse = [math.exp(s - top) / total for s in scores], top + math.log(total)
        columns = value.T.tolist()
        outs.append([math.fsum(w * v for w, v in zip(weights, c, strict=True)) for c in columns])
        lses.append(lse)
        all_weights.append(weights)
        all_scores.append(scores)
    return outs, lses, all_weights, all_scores


MASKS = [
    {},
    {"is_causal": True},
    {"is_causal": True, "query_offset": 3},
    {"is_causal": True, "query_offset": -2},
    {"window_size": (2, 1)},
    {"window_size": (0, -1), "query_offset": 1},
    {"window_size": (-1, 0)},
    {"window_size": (1, 3), "is_causal": True, "query_offset": 2},
    {"kv_length": 0},
    {"kv_length": 4},
    {"kv_length": 5, "is_causal": True, "query_offset": 4},
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("scale", [None, 0, -0.5, 3.0])
def test_against_scalars(mask, scale):
    """A few sums of float64 against exact ones: at most 1e-14 apart at these sizes."""
    for rows, seqlen_k, head_dim, head_dim_v in ((1, 1, 1, 1), (5, 7, 3, 2), (4, 9, 8, 5)):
        query, key, value = plain(rows, seqlen_k, head_dim, head_dim_v, dtype=np.float64)
        options = {k: v for k, v in mask.items() if k != "kv_length"}
        plain_mask = dict(mask)
        if "kv_length" in mask:
            plain_mask["kv_length"] = min(mask["kv_length"], seqlen_k)
            options["kv_lengths"] = np.array(plain_mask["kv_length"])
        want = attention(query, key, value, scale, **plain_mask)
        out, lse = reference.scaled_dot_product_attention(
            query, key, value, scale=scale, return_lse=True, **options
        )
        weights = reference.attention_weights(query, key, scale=scale, **options)
        scores = reference.scaled_dot_product(query, key, scale=scale, **options)
        for got, wanted in zip((out, lse, weights, scores), want, strict=True):
            np.testing.assert_allclose(got, np.array(wanted), rtol=1e-14, atol=1e-14)


def test_every_option_of_a_small_grid():
    """Which keys are seen, for all L, S up to 4: the mask alone, with nothing rounded."""
    for rows, seqlen_k in itertools.product(range(1, 5), repeat=2):
        query, key = np.zeros((rows, 1)), np.zeros((seqlen_k, 1))
        for offset, left, right, causal, length in itertools.product(
            range(-4, 5), (-1, 0, 1), (-1, 0, 2), (False, True), (None, 0, seqlen_k - 1)
        ):
            options = {
                "is_causal": causal,
                "query_offset": offset,
                "window_size": (left, right),
            }
            got = reference.scaled_dot_product(query, key, kv_lengths=length, **options) == 0
            want = [
                [sees(i, j, kv_length=length, **options) for j in range(seqlen_k)]
                for i in range(rows)
            ]
            assert np.array_equal(got, want), (rows, seqlen_k, options, length)


def test_batches_heads_and_groups():
    """Each head of each batch entry is a call of its own; groups are in repeat_interleave order."""
    query, key, value = qkv((2, 6, 4, 3), 2, 5, 7, dtype=np.float64)
    offsets, lengths = np.array([1, 3]), np.array([5, 2])
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True, return_lse=True,
        query_offset=offsets, kv_lengths=lengths,
    )  # fmt: skip
    for b, head in itertools.product(range(2), range(6)):
        want = attention(
            query[b, head], key[b, head // 3], value[b, head // 3],
            is_causal=True, query_offset=int(offsets[b]), kv_length=int(lengths[b]),
        )  # fmt: skip
        np.testing.assert_allclose(out[b, head], np.array(want[0]), rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(lse[b, head], np.array(want[1]), rtol=1e-14, atol=1e-14)


def test_softmax():
    x = normal(3, 4, 5, dtype=np.float64) * 300
    x[1, 2] = -np.inf
    for axis in range(-3, 3):
        got = reference.softmax(x, axis)
        for row, y in zip(
            np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]),
            np.moveaxis(got, axis, -1).reshape(-1, x.shape[axis]),
            strict=True,
        ):
            top = max(row.tolist())
            weights = [math.exp(v - top) if top > -math.inf else 0.0 for v in row.tolist()]
            total = math.fsum(weights) or 1.0
            np.testing.assert_allclose(y, [w / total for w in weights], rtol=1e-14)


def test_weighted_sum_and_project():
    weights, value = normal(2, 3, 4, dtype=np.float64), normal(2, 4, 5, dtype=np.float64, seed=1)
    got = reference.weighted_sum(weights, value)
    for h, i, e in np.ndindex(got.shape):
        want = math.fsum(w * v for w, v in zip(weights[h, i], value[h, :, e], strict=True))
        assert math.isclose(got[h, i, e], want, rel_tol=1e-13, abs_tol=1e-14)
    x, weight, bias = (normal(*s, dtype=np.float64) for s in ((3, 4), (5, 4), (5,)))
    got = reference.project(x, weight, bias)
    for i, o in np.ndindex(got.shape):
        want = math.fsum([*(a * b for a, b in zip(x[i], weight[o], strict=True)), bias[o]])
        assert math.isclose(got[i, o], want, rel_tol=1e-13, abs_tol=1e-14)


def test_dtype_and_masked_rows():
    query, key, value = plain(3, 4, 5)
    out, lse = reference.scaled_dot_product_attention(
        query, key, value, is_causal=True, query_offset=-2, return_lse=True
    )
    assert out.dtype == lse.dtype == np.float32
    assert (out[:2] == 0).all()
    assert (lse[:2] == -np.inf).all()
    assert np.isfinite(out[2]).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison(poison):
    """Masked, it adds nothing; attended, it reaches its own column; no row of -inf is ever NaN."""
    query, key, value = plain(4, 6, 3, dtype=np.float64)
    want = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    value[2, 1] = poison
    out = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert np.array_equal(out[:2], want[:2])
    assert np.array_equal(out[:, [0, 2]], want[:, [0, 2]])
    np.testing.assert_array_equal(out[2:, 1], poison)
    key[3] = np.nan
    out = reference.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert np.array_equal(out[:2], want[:2])
    assert np.isnan(out[3]).all()
    ones, none = np.ones((2, 1)), np.full((6, 1), -np.inf)
    assert (reference.scaled_dot_product_attention(ones, none, value) == 0).all()


def test_against_torch():
    torch = pytest.importorskip("torch")
    for causal, gqa in itertools.product((False, True), repeat=2):
        query, key, value = qkv((2, 6, 9, 8), 2 if gqa else 6, 9, dtype=np.float64)
        got = reference.scaled_dot_product_attention(
            query, key, value, is_causal=causal, enable_gqa=gqa
        )
        want = torch.nn.functional.scaled_dot_product_attention(
            *map(torch.from_numpy, (query, key, value)), is_causal=causal, enable_gqa=gqa
        )
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-13, atol=1e-14)
