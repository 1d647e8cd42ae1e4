"""The reference itself, against plain Python: each option, with the others and by head and batch.

reference/ says what the kernels must compute; scalars.py says what it must compute. PyTorch and
a longer type agree too.
"""

import itertools
import math

import numpy as np
import pytest

from selfattn import reference
from support import oracle
from support.arrays import normal, one_head, qkv
from support.scalars import attention, sees


def assert_equal_to(want, query, key, value, **options):
    """out, lse, weights and scores are those that `attention` gave, but for float64's rounding."""
    out, lse = reference.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
    weights = reference.attention_weights(query, key, **options)
    options.pop("sinks", None)
    scores = reference.scaled_dot_product(query, key, **options)
    for got, wanted in zip((out, lse, weights, scores), want, strict=True):
        np.testing.assert_allclose(got, np.array(wanted), rtol=1e-14, atol=1e-14)


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
    {"kv_start": 2},
    {"kv_start": 3, "kv_length": 2},
    {"kv_start": 1, "kv_length": 6, "window_size": (2, 1), "query_offset": 1},
    {"query_length": 0},
    {"query_length": 3, "kv_start": 1, "is_causal": True, "query_offset": 2},
]


@pytest.mark.parametrize("mask", MASKS, ids=str)
@pytest.mark.parametrize("scale", [None, 0, -0.5, 3.0])
def test_against_scalars(mask, scale):
    """A few sums of float64 against exact ones: at most 1e-14 apart at these sizes."""
    for rows, seqlen_k, head_dim, head_dim_v in ((1, 1, 1, 1), (5, 7, 3, 2), (4, 9, 8, 5)):
        query, key, value = one_head(rows, seqlen_k, head_dim, head_dim_v, dtype=np.float64)
        most = {"kv_length": seqlen_k, "kv_start": seqlen_k, "query_length": rows}
        plain_mask = {k: min(v, most[k]) if k in most else v for k, v in mask.items()}
        options = {f"{k}s" if k in most else k: np.array(v) for k, v in plain_mask.items()}
        want = attention(query, key, value, scale, **plain_mask)
        assert_equal_to(want, query, key, value, scale=scale, **options)


@pytest.mark.parametrize("kind", [None, "bool", "float", "float with -inf"])
def test_every_combination_of_rules(kind):
    """Each rule alone and with every other, in the order of docs/semantics.md.

    Scores are large enough that a cap applied after a slope or a mask would be another number.
    """
    query, key, value = one_head(5, 7, 3, 2, dtype=np.float64)
    query *= 4
    masks = {
        None: None,
        "bool": normal(5, 7) > -0.5,
        "float": normal(5, 7, dtype=np.float64, seed=1),
        "float with -inf": np.where(normal(5, 7) > -0.5, normal(5, 7, dtype=np.float64), -np.inf),
    }
    segments = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 7, 2])
    window = {"is_causal": True, "query_offset": 2, "window_size": (3, 1)}
    bias = np.where(normal(5, 7, seed=2) > -1, normal(5, 7, dtype=np.float64, seed=3), -np.inf)
    for softcap, slope, sink, ids, ranges, added in itertools.product(
        (0.0, 1.5), (0.0, 0.25), (-math.inf, 0.75), (None, segments), ({}, window), (None, bias)
    ):
        length = {} if added is None else {"query_length": 4}
        want = attention(
            query, key, value, softcap=softcap, slope=slope, attn_mask=masks[kind],
            attn_bias=added, ids=ids, sink=sink, **ranges, **length,
        )  # fmt: skip
        assert_equal_to(
            want, query, key, value, softcap=softcap, alibi_slopes=np.array([slope]),
            attn_mask=masks[kind], attn_bias=added, segment_ids=ids, sinks=np.array([sink]),
            **ranges, **{f"{name}s": x for name, x in length.items()},
        )  # fmt: skip


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


MASK_SHAPES = [(2, 6, 4, 5), (6, 4, 5), (4, 5), (5,), (4, 1), (6, 1, 1), (2, 1, 1, 5), (1,), ()]


@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
@pytest.mark.parametrize("per_batch", [False, True])
def test_batches_heads_and_groups(shape, per_batch):
    """Each head of each batch entry is a call of its own; groups are in repeat_interleave order.

    A mask of any shape that broadcasts, bool and float; what is given per head or per batch entry
    goes to that head and entry.
    """
    query, key, value = qkv((2, 6, 4, 3), 2, 5, 7, dtype=np.float64)
    batch = (2,) if per_batch else ()
    ids_q, ids_k = normal(*batch, 4) > 0, normal(*batch, 5) > 0
    options = {
        "query_offset": np.array([1, 3]),
        "kv_lengths": np.array([5, 2]),
        "alibi_slopes": normal(*batch, 6, dtype=np.float64),
        "sinks": normal(6, dtype=np.float64),
        "segment_ids": (ids_q, ids_k),
    }
    bias = normal(*shape, dtype=np.float64)
    for attn_mask in (bias, bias > -0.5):
        got = reference.scaled_dot_product_attention(
            query, key, value, attn_mask, True, enable_gqa=True, return_lse=True, **options
        )
        without = {k: v for k, v in options.items() if k != "sinks"}
        got += (
            reference.attention_weights(query, key, attn_mask, True, enable_gqa=True, **options),
            reference.scaled_dot_product(query, key, attn_mask, True, enable_gqa=True, **without),
        )
        whole = np.broadcast_to(attn_mask, (2, 6, 4, 5))
        for b, head in itertools.product(range(2), range(6)):
            want = attention(
                query[b, head], key[b, head // 3], value[b, head // 3],
                is_causal=True,
                query_offset=int(options["query_offset"][b]),
                kv_length=int(options["kv_lengths"][b]),
                slope=np.broadcast_to(options["alibi_slopes"], (2, 6))[b, head],
                sink=options["sinks"][head],
                ids=[np.broadcast_to(x, (2, x.shape[-1]))[b] for x in (ids_q, ids_k)],
                attn_mask=whole[b, head],
            )  # fmt: skip
            for x, wanted in zip(got, want, strict=True):
                np.testing.assert_allclose(x[b, head], wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("enable_gqa", [False, True])
def test_a_head_axis_of_one_broadcasts(enable_gqa):
    """In the query, the key or the value, and so do leading axes that only one of them has."""
    whole = qkv((2, 6, 4, 3), dtype=np.float64)
    options = {
        "alibi_slopes": normal(6, dtype=np.float64),
        "sinks": normal(6, dtype=np.float64),
        "attn_mask": normal(6, 4, 4, dtype=np.float64),
        "kv_lengths": np.array([4, 2]),
    }
    for few in itertools.product((False, True), repeat=3):
        for narrow in (lambda x: x[:1, :1], lambda x: x[0, :1], lambda x: x[0, 0]):
            arrays = [narrow(x) if one else x for x, one in zip(whole, few, strict=True)]
            if all(few):
                continue
            want = reference.scaled_dot_product_attention(
                *(np.broadcast_to(x, whole[0].shape) for x in arrays), return_lse=True, **options
            )
            got = reference.scaled_dot_product_attention(
                *arrays, enable_gqa=enable_gqa, return_lse=True, **options
            )
            assert got[1].shape == (2, 6, 4)
            for x, wanted in zip(got, want, strict=True):
                np.testing.assert_allclose(x, wanted, rtol=1e-14, atol=1e-14)


def test_2d_inputs_are_one_head():
    """Slopes and sinks have one element, ids and masks no axis for the head."""
    query, key, value = one_head(4, 4, 3, dtype=np.float64)
    ids, attn_mask = np.array([0, 1, 1, 0]), normal(4, 4, dtype=np.float64)
    want = attention(
        query, key, value, slope=0.5, sink=0.25, ids=(ids, ids), attn_mask=attn_mask
    )  # fmt: skip
    for slopes in (np.array([0.5]), np.array(0.5)):
        assert_equal_to(
            want, query, key, value, alibi_slopes=slopes, sinks=np.array([0.25]),
            segment_ids=ids, attn_mask=attn_mask,
        )  # fmt: skip


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


@oracle.needs_long_double
def test_against_the_oracle():
    """At sizes where plain Python is slow, in a longer type: softcap, a float mask, sinks."""
    query, key, value = qkv((2, 3, 40, 64), 3, 300, dtype=np.float64)
    attn_mask = normal(2, 1, 40, 300, dtype=np.float64)
    attn_mask[attn_mask < -1] = -np.inf
    sinks = normal(3, dtype=np.float64)
    want = oracle.attention(query, key, value, attn_mask, softcap=3.0, sinks=sinks)
    got = reference.scaled_dot_product_attention(
        query, key, value, attn_mask, softcap=3.0, sinks=sinks, return_lse=True
    )
    for x, wanted in zip(got, want, strict=True):
        np.testing.assert_allclose(x, wanted.astype(np.float64), rtol=0, atol=1e-14)


def test_against_torch():
    """Causal or not, heads shared or not, and the shapes of mask that torch takes."""
    torch = pytest.importorskip("torch")
    call = torch.nn.functional.scaled_dot_product_attention
    for gqa in (False, True):
        query, key, value = qkv((2, 6, 9, 8), 2 if gqa else 6, 11, dtype=np.float64)
        tensors = [torch.from_numpy(x) for x in (query, key, value)]
        bias = normal(2, 6, 9, 11, dtype=np.float64)
        bias[..., 0] = np.abs(bias[..., 0])  # no row is wholly masked
        masks = [m for x in (bias, bias[:1, :1], bias[0, 0], bias[:, :1, :1]) for m in (x, x > 0)]
        masks += [None, np.where(bias > 0, bias, -np.inf), np.where(bias > 0, 0, -1e308)]
        for attn_mask in masks:
            for causal in (False, True) if attn_mask is None else (False,):
                got = reference.scaled_dot_product_attention(
                    query, key, value, attn_mask, causal, enable_gqa=gqa
                )
                mask = None if attn_mask is None else torch.from_numpy(attn_mask)
                want = call(*tensors, mask, is_causal=causal, enable_gqa=gqa)
                np.testing.assert_allclose(got, want.numpy(), rtol=1e-12, atol=1e-14)
