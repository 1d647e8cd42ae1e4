"""Gradients over many ranks: the bits of one call, whatever their number, layout and options."""

import numpy as np
import pytest

import selfattn
from selfattn import distributed
from support.arrays import DTYPES, HALF_DTYPES, normal, qkv, same_bits
from support.option_arrays import bool_mask, float_mask, runs, slopes

SEQLEN, HEADS = 6000, 3
OFFSETS = np.array([0, -500])
IDS = runs(SEQLEN, 900, 500)
OPTIONS = {
    "causal": {"is_causal": True, "query_offset": OFFSETS},
    "window": {"window_size": (1700, 2), "scale": -0.3},
    "lengths": {"kv_lengths": np.array([SEQLEN - 1, 1900]), "softcap": 2.0},
    "bools": {"attn_mask": bool_mask(HEADS, 1, SEQLEN)},
    "floats": {"attn_mask": float_mask(SEQLEN, SEQLEN), "is_causal": True},
    "alibi": {"alibi_slopes": slopes(HEADS), "is_causal": True},
    "segments": {"segment_ids": IDS},
    "dropout": {"dropout_p": 0.3, "dropout_seed": 5, "sinks": slopes(HEADS)},
    "large": {"scale": 40.0, "is_causal": True},
    "large and sinks": {"scale": -30.0, "sinks": 50 * slopes(HEADS)},
}


def inputs(shape, heads_kv, seqlen_k, head_dim_v, options, dtype=np.float32):
    """grad_out, query, key, value, out, lse, grad_lse of the whole."""
    arrays = qkv(shape, heads_kv, seqlen_k, head_dim_v, dtype=dtype)
    out, lse = selfattn.scaled_dot_product_attention(
        *arrays, return_lse=True, enable_gqa=True, **options
    )
    grad_out = normal(*out.shape, dtype=dtype, seed=7)
    grad_lse = normal(*lse.shape, dtype=lse.dtype, seed=8) / 8
    return grad_out, *arrays, out, lse, grad_lse


def at_once(given, options, with_grad_lse=True):
    *arrays, grad_lse = given
    grad_lse = grad_lse if with_grad_lse else None
    return selfattn.scaled_dot_product_attention_backward(
        *arrays, grad_lse=grad_lse, enable_gqa=True, **options
    )[:3]


def in_shards(comm, given, options, layout, with_grad_lse):
    def shard(x, axis=-2):
        return distributed.shard(x, comm.ranks, comm.rank, axis, layout)

    options = dict(options)
    mask = options.get("attn_mask")
    if mask is not None and mask.shape[-2] > 1:
        options["attn_mask"] = shard(mask)
    if "segment_ids" in options:
        options["segment_ids"] = shard(options["segment_ids"], -1)
    *arrays, lse, grad_lse = given
    return distributed.ring_attention_backward(
        *map(shard, arrays),
        shard(lse, -1),
        comm,
        grad_lse=shard(grad_lse, -1) if with_grad_lse else None,
        layout=layout,
        enable_gqa=True,
        num_threads=1,
        **options,
    )


def ring(ranks, given, options, layout, with_grad_lse=True):
    shards = distributed.run_ranks(ranks, in_shards, given, options, layout, with_grad_lse)
    return [distributed.unshard([s[i] for s in shards], layout=layout) for i in range(3)]


@pytest.mark.parametrize("name", OPTIONS)
def test_bits_of_one_call(name):
    options = OPTIONS[name]
    given = inputs((2, HEADS, SEQLEN, 8), None, SEQLEN, 6, options)
    want = at_once(given, options)
    for ranks, layout in ((2, "zigzag"), (3, "contiguous")):
        for got, gradient, which in zip(
            ring(ranks, given, options, layout), want, "qkv", strict=True
        ):
            assert same_bits(got, gradient), (ranks, layout, which)


@pytest.mark.parametrize("dtype", [*DTYPES, *HALF_DTYPES], ids=lambda dtype: np.dtype(dtype).name)
def test_dtypes_and_groups(dtype):
    options = {"is_causal": True, "query_offset": 100}
    given = inputs((4, SEQLEN, 16), 2, SEQLEN, 8, options, dtype)
    want = at_once(given, options, with_grad_lse=False)
    for ranks, layout in ((1, "zigzag"), (2, "contiguous"), (4, "zigzag"), (7, "contiguous")):
        got = ring(ranks, given, options, layout, with_grad_lse=False)
        assert all(map(same_bits, got, want)), (ranks, layout)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(0, 2000), (1, 1), (600, 4000), (4000, 600)])
def test_shards_without_positions(seqlen_q, seqlen_k):
    for options in ({"is_causal": True, "query_offset": -700}, {"kv_lengths": 0}):
        given = inputs((1, seqlen_q, 8), None, seqlen_k, 5, options)
        want = at_once(given, options)
        for layout in ("contiguous", "zigzag"):
            assert all(map(same_bits, ring(3, given, options, layout), want)), (options, layout)


def test_errors():
    given = inputs((2, 1536, 8), None, 1536, 8, {})

    def attempt(comm, changed):
        try:
            arrays = [*given[:6]]
            for place, x in changed.items():
                arrays[place] = x
            distributed.ring_attention_backward(
                *arrays, comm, grad_lse=given[6] if comm.rank else None
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    for changed, message in (
        ({}, "ValueError: grad_lse: expected the same on all ranks, got False on rank 0"),
        ({0: given[0][:, :5]}, "ValueError: rank 0: grad_out: expected shape (2, 1536, 8), got"),
        ({5: given[5].astype("f8")}, "TypeError: rank 0: lse: expected float32"),
        ({3: given[3][:1]}, "ValueError: rank 0: key: expected, with value, query's axes"),
    ):
        errors = distributed.run_ranks(2, attempt, changed)
        assert len(set(errors)) == 1
        assert errors[0].startswith(message)
