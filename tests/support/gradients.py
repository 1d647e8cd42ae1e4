"""The backward pass as tests of bits, special values and memory call it: upon what forward gave."""

import numpy as np

import selfattn
from selfattn import reference
from support.arrays import normal, same_bits
from support.option_arrays import option

# For the forward's decode kernels, its prefill kernels, and more than one tile of the backward.
ROWS = [1, 3, 40]
DROPOUT = {"dropout_p": 0.3, "dropout_seed": 5}


def wanted_grads(options):
    """Which further gradients the options have: of a float mask, of a bias, of sinks."""
    mask = options.get("attn_mask")
    return {
        "mask_grad": mask is not None and mask.dtype != bool,
        "bias_grad": options.get("attn_bias") is not None,
        "sinks_grad": options.get("sinks") is not None,
    }


def upon(grad_out, *arrays, out, lse, **options):
    """Every gradient that there is, by name; out and lse are given."""
    gradients = selfattn.scaled_dot_product_attention_backward(
        grad_out, *arrays, out, lse, **wanted_grads(options), **options
    )
    return {name: x for name, x in gradients._asdict().items() if x is not None}


def backward(grad_out, *arrays, grad_lse=None, **options):
    """Every gradient that there is, by name, after a forward call of these arguments."""
    out, lse = selfattn.scaled_dot_product_attention(*arrays, return_lse=True, **options)
    given = {} if grad_lse is None else {"grad_lse": grad_lse}
    return upon(grad_out, *arrays, out=out, lse=lse, **given, **options)


def packed_backward(grad_out, packed, **options):
    """The same of packed sequences (packed.py)."""
    out, lse = packed.attend(**options)
    gradients = selfattn.varlen_attention_backward(
        *(grad_out, *packed.arrays, out, lse, packed.cu_q, packed.cu_k),
        enable_gqa=True,
        **wanted_grads(options),
        **options,
    )
    return {name: x for name, x in gradients._asdict().items() if x is not None}


def grad_of(*arrays, seed=7):
    """N(0, 1) of the shape of the result of these arrays, (..., Hq, L, Ev)."""
    heads = max((x.shape[-3:-2] for x in arrays), key=lambda h: h or (0,))
    batch = np.broadcast_shapes(*(x.shape[:-3] for x in arrays))
    query, value = arrays[0], arrays[-1]
    shape = (*batch, *heads, query.shape[-2], value.shape[-1])
    return normal(*shape, dtype=query.dtype, seed=seed)


def assert_same(got, want, context=""):
    """All bits of all gradients; a NaN is a NaN."""
    assert got.keys() == want.keys(), context
    for name, x in want.items():
        assert got[name].dtype == x.dtype, (name, context)
        assert got[name].shape == x.shape, (name, context)
        if not same_bits(got[name], x):
            differ = (got[name] != x) & ~(np.isnan(got[name]) & np.isnan(x))
            at = np.argwhere(differ)
            first = tuple(map(int, at[0])) if len(at) else "the sign of a zero"
            raise AssertionError(f"{name}: {len(at)} of {x.size} differ, first {first}; {context}")


def part(gradients, **index):
    """Those named, each at its index."""
    return {name: gradients[name][i] for name, i in index.items() if name in gradients}


def expected(grad_out, *arrays, **options):
    """The reference's gradients in float64, not rounded to the inputs' dtypes, by name."""
    wide = [x.astype(np.float64) for x in (grad_out, *arrays)]
    for name in ("attn_mask", "attn_bias", "sinks"):
        x = options.get(name)
        if x is not None and x.dtype != bool:
            options[name] = x.astype(np.float64)
    gradients = reference.scaled_dot_product_attention_backward(
        *wide, None, None, **wanted_grads(options), **options
    )
    return {name: x for name, x in gradients._asdict().items() if x is not None}


def options_of(kind, batch, heads, seqlen_q, seqlen_k, dtype):
    """Those of option_arrays.option, of ranges, and dropout alone or on top of all of them."""
    ranges = {
        "plain": {},
        "causal": {"is_causal": True, "query_offset": seqlen_k // 2},
        "window": {"window_size": (seqlen_k // 3, 2), "query_offset": seqlen_k // 2},
        "lengths": {"kv_lengths": np.resize([seqlen_k * 3 // 4, 1], batch)},
        "dropout": DROPOUT,
    }
    if kind in ranges:
        return ranges[kind]
    if kind == "all and dropout":
        return option("all", batch, heads, seqlen_q, seqlen_k, dtype) | DROPOUT
    return option(kind, batch, heads, seqlen_q, seqlen_k, dtype)


def by_kind(gradients):
    """Where each is NaN, +inf, -inf."""
    return {
        name: np.select([np.isnan(x), x == np.inf, x == -np.inf], [1.0, 2.0, 3.0], 0.0)
        for name, x in gradients.items()
    }
