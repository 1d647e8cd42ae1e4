"""Gradients beside PyTorch's: its float64 autograd as truth, and its error beside ours.

The promise of docs/numerics.md: the largest error of a gradient is at most 1.1 times that of
PyTorch's autograd in the same dtype, the median over seeds; of float64 against the formulas in a
longer type. What attention with each option is, is written here by torch's own functions, apart
from selfattn/reference/.
"""

import math
import statistics

import numpy as np
import pytest

from support import oracle
from support.arrays import normal, one_head, qkv
from support.compare_gradients import assert_near, gradient_bounds
from support.gradients import backward, grad_of, wanted_grads
from support.option_arrays import KINDS, option

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread_of_torchs():
    """On a busy machine its threads wait for one another longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(x):
    return torch.from_numpy(x.astype(np.float64)).requires_grad_()


# ------------------------------------------------------------------ beside its float64 autograd


def torch_attention(
    query,
    key,
    value,
    *,
    attn_mask=None,
    is_causal=False,
    scale=None,
    attn_bias=None,
    query_offset=0,
    query_lengths=None,
    kv_starts=None,
    kv_lengths=None,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    sinks=None,
    segment_ids=None,
):
    """(batch, heads, rows, E) of tensors; those that have a gradient are tensors."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * query @ key.transpose(-1, -2)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(query.shape[2])[:, None] + query_offset, torch.arange(key.shape[2])
    if alibi_slopes is not None:
        slopes = torch.from_numpy(alibi_slopes.astype(np.float64))
        scores = scores - slopes[..., None, None] * (i - j).abs()
    seen = torch.ones(scores.shape, dtype=torch.bool)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        scores = scores + attn_mask
    elif attn_mask is not None:
        seen = seen & attn_mask
    if attn_bias is not None:
        scores = scores + attn_bias
    left, right = window_size
    seen = seen & ((j <= i) | (not is_causal))
    seen = seen & ((j >= i - left) | (left < 0)) & ((j <= i + right) | (right < 0))
    if kv_starts is not None:
        seen = seen & (j >= torch.from_numpy(kv_starts)[:, None, None, None])
    if kv_lengths is not None:
        seen = seen & (j < torch.from_numpy(kv_lengths)[:, None, None, None])
    if segment_ids is not None:
        ids_q, ids_k = map(torch.from_numpy, segment_ids)
        seen = seen & (ids_q[:, None, :, None] == ids_k[:, None, None, :])
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, column], -1)
    out = torch.softmax(scores, -1)[..., : key.shape[2]] @ value
    if query_lengths is not None:
        is_padding = torch.arange(query.shape[2]) >= torch.from_numpy(query_lengths)[:, None]
        out = out.masked_fill(is_padding[:, None, :, None], 0)
    return out


def torch_gradients(grad_out, query, key, value, options):
    inputs = {"query": tensor(query), "key": tensor(key), "value": tensor(value)}
    more, options = wanted_grads(options), dict(options)
    mask = options.get("attn_mask")
    if mask is not None:
        options["attn_mask"] = torch.from_numpy(mask) if mask.dtype == bool else tensor(mask)
    if more["sinks_grad"]:
        options["sinks"] = inputs["sinks"] = tensor(options["sinks"])
    if more["mask_grad"]:
        inputs["attn_mask"] = options["attn_mask"]
    if options.get("attn_bias") is not None:
        options["attn_bias"] = inputs["attn_bias"] = tensor(options["attn_bias"])
    arrays = (inputs.pop(name) for name in ("query", "key", "value"))
    query, key, value = arrays
    out = torch_attention(query, key, value, **options)
    out.backward(torch.from_numpy(grad_out.astype(np.float64)))
    leaves = {"query": query, "key": key, "value": value} | inputs
    return {name: x.grad.numpy() for name, x in leaves.items()}


RANGES = {
    "plain": {},
    "causal": {"is_causal": True, "query_offset": 90},
    "window": {"window_size": (20, 3), "query_offset": 60},
    "lengths": {"kv_lengths": np.array([70, 150]), "scale": -0.4},
}


@pytest.mark.parametrize("kind", [*RANGES, *KINDS])
@pytest.mark.parametrize("rows", [2, 37])
def test_beside_autograd(isa, dtype, kind, rows):
    """Every option, by formulas of another hand and derivatives of another library."""
    arrays = qkv((2, 4, rows, 12), 2, 150, 7, dtype=dtype)
    options = RANGES[kind] if kind in RANGES else option(kind, 2, 4, rows, 150, dtype)
    mask = options.get("attn_mask")
    if mask is not None:  # torch's gradient of a row that sees nothing is NaN
        mask[..., 0] = mask[..., 0] if mask.dtype != bool else True
        options = options | {"attn_mask": np.where(mask == -np.inf, dtype(-3), mask)}
        if mask.dtype == bool:
            options["attn_mask"] = mask
    bias = options.get("attn_bias")
    if bias is not None:
        options = options | {"attn_bias": np.where(bias == -np.inf, dtype(-3), bias)}
    if "segment_ids" in options:
        options["segment_ids"][1][:, :3] = [0, 1, 2]
    grad_out = grad_of(*arrays)
    got = backward(grad_out, *arrays, enable_gqa=True, **options)
    want = torch_gradients(grad_out, *arrays, options)
    bounds = gradient_bounds(grad_out, *arrays, enable_gqa=True, **options)
    # torch's float64 is no better than the reference's, which the bounds allow for.
    bounds = {name: 1.5 * x for name, x in bounds.items()}
    inputs = dict(zip(("query", "key", "value"), arrays, strict=True)) | options
    assert_near(got, want, bounds, inputs, kind)


# ------------------------------------------------------------------ the promised error


def formulas(grad_out, query, key, value, *, is_causal):
    """dq, dk, dv in a type longer than the inputs', of one head."""
    wide = oracle.wider(query.dtype)
    g, q, k, v = (x.astype(wide) for x in (grad_out, query, key, value))
    scale = wide(1 / math.sqrt(q.shape[-1]))
    scores = scale * (q @ k.T)
    if is_causal:
        scores = np.where(np.tri(*scores.shape, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    ds = p * (g @ v.T - (g * (p @ v)).sum(-1, keepdims=True))
    return scale * (ds @ k), scale * (ds.T @ q), p.T @ g


def of_torch(grad_out, query, key, value, is_causal):
    inputs = [torch.from_numpy(x)[None, None].requires_grad_() for x in (query, key, value)]
    out = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=is_causal)
    out.backward(torch.from_numpy(grad_out)[None, None])
    return [x.grad[0, 0].numpy() for x in inputs]


# L, S, E, Ev
SHAPES = [
    (128, 128, 64, 64),
    (300, 300, 64, 64),
    (64, 513, 32, 32),
    (513, 64, 80, 80),
    (200, 200, 128, 128),
    (50, 77, 16, 16),
    (100, 400, 64, 24),
    (16, 1000, 64, 64),
]
# Where a row sees few keys, a gradient is what is left of two numbers that are nearly the same.
SHAPES += [(100, keys, e, e) for keys in (1, 2, 3, 4, 8) for e in (16, 64, 128)]
LONG_DOUBLE_SHAPES = [SHAPES[n] for n in (0, 5, 7)]  # which is slow
CASES = [(np.float32, shape) for shape in SHAPES] + [(np.float64, s) for s in LONG_DOUBLE_SHAPES]


@oracle.needs_long_double
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_error_beside_torchs(dtype, shape, is_causal):
    """At most 1.1 times PyTorch's, dQ, dK and dV each for itself.

    Where keys are few or rows see few, the largest error is that of a few large weights: they must
    be exp(score - lse) of the very score that is in lse. The smaller a call, the more seeds a
    median needs.
    """
    ours, theirs = ([], [], []), ([], [], [])
    for seed in range(100 if shape[0] * shape[1] < 5_000 else 40):
        arrays = one_head(*shape, dtype=dtype, seed=100 * seed)
        grad_out = normal(shape[0], shape[3], dtype=dtype, seed=100 * seed + 7)
        want = formulas(grad_out, *arrays, is_causal=is_causal)
        for errors, got in (
            (ours, backward(grad_out, *arrays, is_causal=is_causal).values()),
            (theirs, of_torch(grad_out, *arrays, is_causal)),
        ):
            for found, x, y in zip(errors, got, want, strict=True):
                found.append(float(np.abs(x - y).max()))
    for name, a, b in zip(("dq", "dk", "dv"), ours, theirs, strict=True):
        ratio = statistics.median(a) / statistics.median(b)
        assert ratio <= 1.1, (name, ratio)
