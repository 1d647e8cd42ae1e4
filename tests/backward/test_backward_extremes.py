"""Gradients of very large scores, masks, sinks and scales: as near as those of small ones.

Faults 2, 6 and 16. Here the scores are made of small whole numbers and powers of two, so that the
kernels' are exact however large they are: what is compared is all that comes after. The weights
exp(score - lse), with an lse of 2048 that is rounded to the dtype, would be off by 1000 u.
"""

import numpy as np
import pytest

from selfattn import reference
from selfattn.reference.axes import summed_to
from support.arrays import normal, one_head, qkv
from support.compare import assert_close, unit_roundoff
from support.gradients import ROWS, assert_same, backward, expected, grad_of, packed_backward
from support.nonfinite import INF
from support.option_arrays import bool_mask
from support.packed import Packed, of_sequence

ROUNDED = 48  # u that each term of a gradient's sum may be off by, of its size
FROM_LSE = 512  # up to here lse, which is rounded, serves for the weights


def whole(*shape, dtype=np.float32, seed=0):
    """-2, -1, 0, 1, 2."""
    return np.random.default_rng((seed, *shape)).integers(-2, 3, shape).astype(dtype)


def inputs_of(rows, seqlen_k, dtype, heads=2):
    """grad_out, query, key, value: the products of query and key are whole numbers, 16 at most."""
    query = whole(1, heads, rows, 4, dtype=dtype)
    key = whole(1, heads, seqlen_k, 4, dtype=dtype, seed=1)
    value = normal(1, heads, seqlen_k, 6, dtype=dtype, seed=2)
    return normal(1, heads, rows, 6, dtype=dtype, seed=3), query, key, value


@np.errstate(under="ignore")
def bounds(grad_out, query, key, value, *, scale, **options):
    """How far each gradient may be off, by name: in each sum, a part of the sizes of its terms."""
    u, least = unit_roundoff(query.dtype), float(np.finfo(query.dtype).smallest_subnormal)
    g, q, k, v = (x.astype(np.float64) for x in (grad_out, query, key, value))
    weights = reference.attention_weights(q, k, scale=scale, **options)
    _, lse = reference.scaled_dot_product_attention(
        q, k, v, scale=scale, return_lse=True, **options
    )
    size = np.nan_to_num(np.abs(lse), posinf=0)[..., None]
    part = u * (ROUNDED + 4 * np.where(size <= FROM_LSE, size, 0))
    g, q, k, v = (np.abs(x) for x in (g, q, k, v))
    dweights = g @ v.swapaxes(-1, -2)
    delta = (weights * dweights).sum(-1, keepdims=True)
    dscores = part * weights * (dweights + delta)
    found = {
        "query": abs(scale) * (dscores @ k),
        "key": abs(scale) * (dscores.swapaxes(-1, -2) @ q),
        "value": (part * weights).swapaxes(-1, -2) @ g,
    }
    mask, sinks = options.get("attn_mask"), options.get("sinks")
    if mask is not None and mask.dtype != bool:
        found["attn_mask"] = summed_to(dscores, mask.shape)
    if sinks is not None:
        away = sinks.astype(np.float64)[:, None] - lse
        share = np.where(np.isfinite(lse), np.exp(away) * (part[..., 0] - 4 * u * away), 0)
        found["sinks"] = (share * delta[..., 0]).sum((0, 2))
    return {name: x + 1000 * least for name, x in found.items()}


def check(inputs, context="", **options):
    """Every gradient against the reference's."""
    got, want = backward(*inputs, **options), expected(*inputs, **options)
    for name, bound in bounds(*inputs, **options).items():
        if got[name].dtype != inputs[0].dtype:  # that of a mask of float32 beside float64
            bound = bound + unit_roundoff(np.float32) * np.abs(want[name])
        assert_close(got[name], want[name], bound, f"{name} {context}")
    return got


# ------------------------------------------------------------------ masks

CONSTANTS = [0, 500, 511.5, 512.5, -511.5, -512.5, 600, -600, 2048, -2048, 2**16, -(2**20)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("constant", CONSTANTS)
def test_constant_masks(isa, dtype, rows, constant):
    """Which move every score of a row, and no weight of it; around 512 too."""
    for seqlen_k in (1, 140, 600):
        inputs = inputs_of(rows, seqlen_k, dtype)
        for kind in {dtype, np.float32}:
            for shape in ((), (rows, 1), (1, 2, rows, seqlen_k)):
                mask = np.full(shape, constant, kind)
                check(inputs, seqlen_k, attn_mask=mask, scale=0.25)


@pytest.mark.parametrize("rows", [16, 70])
def test_a_constant_for_each_row(isa, dtype, rows):
    """Of all sizes within a tile: -inf, the least number, large ones, small ones."""
    least, largest = np.finfo(np.float32).min, np.finfo(np.float32).max
    constants = [0, 2048, -INF, least, -(2**20), 0.5, -700, largest, 512.5, 1e30, -1e30]
    column = np.resize(np.array(constants, np.float32), (rows, 1))
    for seqlen_k in (20, 140, 600):
        inputs = inputs_of(rows, seqlen_k, dtype)
        mask = np.broadcast_to(column, (rows, seqlen_k))
        some = np.where(bool_mask(rows, seqlen_k, share=0.7), mask, np.float32(-INF))
        for attn_mask in (column, mask, some):
            got = check(inputs, seqlen_k, attn_mask=attn_mask, scale=0.25)
            assert not got["query"][:, :, 2::11].any()
            for softcap, more in ((0.0, {}), (0.0, {"is_causal": True}), (1e6, {})):
                again = backward(*inputs, attn_mask=attn_mask, scale=0.25, softcap=softcap, **more)
                for x in again.values():
                    assert np.isfinite(x).all(), (seqlen_k, more)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("least", ["min", "max"])
def test_rows_of_nothing_but_the_least_number(isa, dtype, rows, least):
    """Fault 2: finfo.min is a number like any other: such a row attends to all keys evenly.

    So does one of finfo.max. What is -inf beside it is masked; beside smaller numbers it weighs
    nothing, and has no gradient.
    """
    for kind in {dtype, np.float32}:
        number = getattr(np.finfo(kind), least)
        for seqlen_k in (1, 17, 128, 300, 600):
            inputs = inputs_of(rows, seqlen_k, dtype)
            mask = np.full((rows, seqlen_k), number)
            check(inputs, seqlen_k, attn_mask=mask, scale=0.25)
            check(inputs, seqlen_k, attn_mask=mask[0], scale=0.25)
            some = bool_mask(rows, seqlen_k)
            some[:, 0] = True
            hidden = np.where(some, number, kind(-INF))
            got = check(inputs, seqlen_k, attn_mask=hidden, scale=0.25)
            assert not got["attn_mask"][~some].any()
            if least == "min":
                beside = np.where(some, kind(0), number)
                got = check(inputs, seqlen_k, attn_mask=beside, scale=0.25)
                assert not got["attn_mask"][~some].any()


@pytest.mark.parametrize("rows", ROWS)
def test_the_largest_number_beside_others(isa, dtype, rows):
    """Fault 16: finfo.max takes all of the weight, and leaves no gradient but of its value."""
    for seqlen_k in (2, 17, 140, 600):
        inputs = inputs_of(rows, seqlen_k, dtype)
        for kind in {dtype, np.float32}:
            info = np.finfo(kind)
            for other in (info.min, kind(-INF), kind(0), kind(-1e30)):
                mask = np.full((rows, seqlen_k), other)
                mask[:, seqlen_k // 2] = info.max
                got = check(inputs, (seqlen_k, other), attn_mask=mask, scale=0.25)
                others = np.arange(seqlen_k) != seqlen_k // 2
                assert not got["value"][:, :, others].any()


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [32, 64, 256])
def test_large_scores(isa, dtype, rows, size):
    """Of products of size^2: of all keys alike, of one sign for a key, of one sign for a row."""
    for seqlen_k in (1, 20, 140, 600):
        for signs in ("one", "of keys", "of rows"):
            grad_out, query, key, value = inputs_of(rows, seqlen_k, dtype)
            query[..., 0] = size
            key[..., 0] = size
            if signs == "of keys":
                key[:, :, ::3, 0] = -size
            if signs == "of rows":
                query[:, :, ::2, 0] = -size
            for options in ({}, {"is_causal": True, "query_offset": seqlen_k // 2}):
                inputs = grad_out, query, key, value
                check(inputs, (seqlen_k, signs), scale=1.0, **options)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("slope", [1.0, 0.25, 16.0])
def test_large_distances(isa, dtype, rows, slope):
    """ALiBi far from all keys: every score is far below 0."""
    for seqlen_k in (1, 20, 140, 600):
        inputs = inputs_of(rows, seqlen_k, dtype)
        slopes = np.array([slope, -slope / 2], dtype)
        for offset in (5000, -3000):
            check(inputs, offset, alibi_slopes=slopes, query_offset=offset, scale=0.25)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("size", [0, 600, 2048, 2.0**18])
def test_large_sinks(isa, dtype, rows, size):
    """Beside scores as large, beside smaller ones and beside larger ones."""
    for seqlen_k in (1, 20, 140, 600):
        inputs = inputs_of(rows, seqlen_k, dtype)
        for sign in (1, -1):
            mask = np.full((rows, 1), sign * size, dtype)
            if rows > 2:
                mask[1] = -INF
            for more in ((2, 1), (-1, 600), (-700, 3)):
                sinks = np.array(more, dtype) + dtype(sign * size)
                got = check(inputs, (seqlen_k, sinks), attn_mask=mask, sinks=sinks, scale=0.25)
                if rows > 2:
                    assert not got["query"][:, :, 1].any()


# ------------------------------------------------------------------ scales


def test_huge_scales(isa, dtype):
    """The largest scales that the dtype holds leave one key a row, and never NaN."""
    query, key, value = one_head(40, 140, 6, dtype=dtype)
    grad_out = normal(40, 6, dtype=dtype)
    top = (query.astype(np.float64) @ key.T.astype(np.float64)).argmax(-1)
    one = np.arange(140) == top[:, None]
    largest = float(np.finfo(dtype).max)
    near = 16 * np.finfo(dtype).eps
    for scale in (largest, -largest, largest / 1.2, largest / 1e4, largest**0.5):
        for rows in (slice(0, 2), slice(None)):
            inputs = grad_out[rows], query[rows] * dtype(np.sign(scale)), key, value
            for options in ({}, {"sinks": np.zeros(1, dtype)}):
                got = backward(*inputs, scale=scale, **options)
                want = one[rows].T.astype(np.float64) @ grad_out[rows]
                np.testing.assert_allclose(got["value"], want, rtol=0, atol=near)
                for name in ("query", "key"):
                    # Nothing is left but what delta and the same product elsewhere are rounded by.
                    size = np.abs(got[name]).max() / abs(scale)
                    assert size < 40 * 64 * np.finfo(dtype).eps, (name, scale)


@pytest.mark.parametrize("rows", ROWS)
def test_tiny_scales(isa, dtype, rows):
    """Down to those that the dtype cannot hold: the gradient of q and K goes to 0 with them."""
    inputs = inputs_of(rows, 140, dtype)
    info = np.finfo(dtype)
    for scale in (2.0**-20, 2.0**-100, float(info.tiny), float(info.smallest_subnormal), 1e-320):
        for sign in (1, -1):
            check(inputs, scale, scale=sign * scale)
    for scale in (0.0, -0.0):
        got = check(inputs, scale, scale=scale)
        assert not got["query"].any()
        assert not got["key"].any()


@pytest.mark.parametrize("exponent", [-60, -20, 1, 20, 60])
def test_gradients_are_linear(isa, dtype, exponent):
    """In grad_out, and of all but V in V: a power of two scales each bit of them."""
    factor = dtype(2.0**exponent)
    for rows in ROWS:
        arrays = qkv((1, 2, rows, 12), seqlen_k=200, dtype=dtype)
        grad_out = grad_of(*arrays)
        query, key, value = arrays
        for options in ({}, {"sinks": np.ones(2, dtype), "softcap": 2.0, "is_causal": True}):
            want = backward(grad_out, *arrays, **options)
            scaled = {name: x * factor for name, x in want.items()}
            assert_same(backward(grad_out * factor, *arrays, **options), scaled, options)
            got = backward(grad_out, query, key, value * factor, **options)
            assert_same(got, scaled | {"value": want["value"]}, options)


# ------------------------------------------------------------------ with other things


def test_large_scores_and_dropout(isa, dtype):
    """The same weights, some of them dropped: as of the mask of 0."""
    for rows in ROWS:
        inputs = inputs_of(rows, 140, dtype)
        for p in (0.25, 0.75):  # 1 / (1 - p) is 4 at most
            options = {"dropout_p": p, "dropout_seed": 3, "scale": 0.25}
            for constant in (-600, 2048):
                mask = np.full((rows, 1), constant, dtype)
                got = backward(*inputs, attn_mask=mask, **options)
                want = expected(*inputs, attn_mask=mask, **options)
                bound = bounds(*inputs, attn_mask=mask, scale=0.25)
                for name, x in bound.items():
                    # Twice the factor of dropout, as it is in both of dweights and delta; of the
                    # keys that are dropped and of those that are not.
                    allowed = 4 * x.max() if name != "value" else 4 * x
                    assert_close(got[name], want[name], allowed, (name, rows, p))


def test_large_scores_of_packed_sequences(isa, dtype):
    """A constant for each sequence: each is as it is alone."""
    packed = Packed([(3, 20), (40, 140), (0, 3), (1, 600), (5, 0)], dtype)
    grad_out = normal(packed.total_q, packed.heads, 5, dtype=dtype, seed=7)
    mask = np.repeat(np.array([600, -2048, 0, 1e30, 1], dtype), packed.lengths_q)[:, None]
    whole = packed_backward(grad_out, packed, attn_mask=mask)
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, {"attn_mask": mask})
        one = backward(grad_out[q].swapaxes(0, 1), *rows, enable_gqa=True, **alone)
        k = slice(*packed.cu_k[b : b + 2])
        want = {name: one[name].swapaxes(0, 1) for name in ("query", "key", "value")}
        got = {"query": whole["query"][q], "key": whole["key"][k], "value": whole["value"][k]}
        assert_same(got, want, b)
