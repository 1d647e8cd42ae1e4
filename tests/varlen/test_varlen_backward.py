"""varlen_attention_backward: packed sequences, each as a call of its own, and as the reference.

docs/semantics.md, packed sequences. The gradients of a sequence's own rows are those of that call,
bit for bit; those of a mask and of sinks, which sequences share, are sums over them.
"""

import numpy as np
import pytest

from selfattn import reference
from selfattn.reference.axes import summed_to
from support.arrays import normal, same_bits
from support.compare_gradients import assert_near, gradient_bounds
from support.gradients import assert_same, backward, packed_backward, wanted_grads
from support.packed import LENGTHS, OPTIONS, Packed, of_sequence

DROPOUT = {"dropout_p": 0.3, "dropout_seed": 2**64 - 7}


def wide(packed, grad_out, options):
    """The reference's gradients in float64, by name."""
    options = {
        name: x.astype(np.float64)
        if name in ("attn_mask", "attn_bias", "sinks") and x.dtype != bool
        else x
        for name, x in options.items()
    }
    gradients = reference.varlen_attention_backward(
        *(x.astype(np.float64) for x in (grad_out, *packed.arrays)),
        *(None, None, packed.cu_q, packed.cu_k),
        enable_gqa=True,
        **wanted_grads(options),
        **options,
    )
    return {name: x for name, x in gradients._asdict().items() if x is not None}


def packed_bounds(packed, grad_out, options):
    """By how much each gradient may be off: sequence by sequence, or summed over all of them."""
    bounds = {
        name: np.zeros(x.shape)
        for name, x in zip(("query", "key", "value"), packed.arrays, strict=True)
    }
    more = wanted_grads(options)
    of_scores = np.zeros((packed.heads, packed.total_q, packed.longest))
    if more["sinks_grad"]:
        bounds["sinks"] = np.zeros(packed.heads)
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, options)
        k = slice(*packed.cu_k[b : b + 2])
        grad = grad_out[q].swapaxes(0, 1)
        of_one = gradient_bounds(grad, *rows, enable_gqa=True, sequence=b, **alone)
        for name, at in (("query", q), ("key", k), ("value", k)):
            bounds[name][at] = of_one[name].swapaxes(0, 1)
        for name in ("attn_mask", "attn_bias"):
            if name in of_one:
                of_scores[:, q, : packed.lengths_k[b]] = of_one[name]
        if more["sinks_grad"]:
            bounds["sinks"] += of_one["sinks"]
    for name, wanted in (("attn_mask", "mask_grad"), ("attn_bias", "bias_grad")):
        if more[wanted]:
            bounds[name] = summed_to(of_scores, options[name].shape)
    return bounds


def check(each_isa, packed, context="", **options):
    """The first set of kernels is compared, the others have its bits."""
    shape = packed.total_q, packed.heads, packed.value.shape[2]
    grad_out = normal(*shape, dtype=packed.dtype, seed=7)
    got = None
    for isa in each_isa():
        gradients = packed_backward(grad_out, packed, **options)
        if got is None:
            got = gradients
            check_one_set(packed, grad_out, got, options, context)
        assert_same(gradients, got, (isa, context))


def check_one_set(packed, grad_out, got, options, context):
    """Against the reference, and bit for bit against a call for each sequence."""
    want = wide(packed, grad_out, options)
    names = dict(zip(("query", "key", "value"), packed.arrays, strict=True)) | options
    assert_near(got, want, packed_bounds(packed, grad_out, options), names, context)
    if options.get("dropout_p"):
        return  # which counts the sequences
    for b in range(packed.batch):
        q, rows, alone = of_sequence(packed, b, options)
        k = slice(*packed.cu_k[b : b + 2])
        one = backward(grad_out[q].swapaxes(0, 1), *rows, enable_gqa=True, **alone)
        for name, at in (("query", q), ("key", k), ("value", k)):
            assert same_bits(got[name][at], one[name].swapaxes(0, 1)), (context, b, name)


# ------------------------------------------------------------------ lengths and options


@pytest.mark.parametrize("lengths", LENGTHS)
def test_lengths(each_isa, dtype, lengths):
    """Sequences of none, one, many and few rows, with no options and with all of them."""
    packed = Packed(LENGTHS[lengths], dtype)
    for name in ("plain", "causal", "offsets", "sinks", "all"):
        check(each_isa, packed, f"{lengths}, {name}", **OPTIONS[name](packed))


@pytest.mark.parametrize("option", OPTIONS)
def test_options(each_isa, dtype, option):
    for lengths in ("empty among others", "one long among short", "many short"):
        packed = Packed(LENGTHS[lengths], dtype)
        check(each_isa, packed, f"{lengths}, {option}", **OPTIONS[option](packed))


@pytest.mark.parametrize("option", ["plain", "offsets", "all"])
@pytest.mark.parametrize("lengths", ["one", "empty among others", "ends of blocks", "many short"])
def test_dropout(each_isa, dtype, lengths, option):
    """A sequence is to dropout what an entry of a batch is."""
    packed = Packed(LENGTHS[lengths], dtype)
    check(each_isa, packed, f"{lengths}, {option}", **OPTIONS[option](packed), **DROPOUT)


@pytest.mark.parametrize(("heads", "heads_kv"), [(1, 1), (3, 3), (6, 2), (6, 1), (40, 2)])
def test_heads(each_isa, dtype, heads, heads_kv):
    packed = Packed([(4, 6), (0, 2), (19, 19), (1, 150)], dtype, heads, heads_kv)
    check(each_isa, packed)
    check(each_isa, packed, **OPTIONS["all"](packed))


@pytest.mark.parametrize("head_dim", [1, 3, 17, 64])
def test_head_dims(each_isa, dtype, head_dim):
    """Fault 12."""
    for head_dim_v in (1, 16, 33):
        lengths = [(4, 6), (20, 140), (1, 3)]
        packed = Packed(lengths, dtype, head_dim=head_dim, head_dim_v=head_dim_v)
        check(each_isa, packed, f"{head_dim}, {head_dim_v}", is_causal=True)


def test_random_lengths(each_isa, dtype, rng):
    for _ in range(15):
        lengths = rng.integers(0, rng.choice([3, 20, 150]), (rng.integers(1, 12), 2))
        packed = Packed(lengths, dtype)
        name = str(rng.choice(list(OPTIONS)))
        check(each_isa, packed, f"{lengths.tolist()}, {name}", **OPTIONS[name](packed))


# ------------------------------------------------------------------ what sequences share


@pytest.mark.parametrize(
    "axes", [(1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
)
def test_masks_of_every_shape(each_isa, dtype, axes):
    """Columns are counted from each sequence's first key: they are summed over sequences."""
    for lengths in ("alike", "one long among short", "queries without keys"):
        packed = Packed(LENGTHS[lengths], dtype)
        whole = packed.heads, packed.total_q, packed.longest
        shape = [n if kept else 1 for n, kept in zip(whole, axes, strict=True)]
        for mask in (packed.bias(*shape), packed.bias(*shape).astype(np.float32)):
            check(each_isa, packed, f"{lengths} {shape}", attn_mask=mask)
            if axes[0] == 0:  # neither need it be there
                check(each_isa, packed, f"{lengths} {shape[1:]}", attn_mask=mask[0], is_causal=True)
    check(each_isa, packed, "no axes", attn_mask=np.asarray(0.5, dtype))


def test_columns_past_a_sequences_keys(isa, dtype):
    """They are not looked at, and their gradient is 0."""
    packed = Packed(LENGTHS["one long among short"], dtype)
    past = np.arange(packed.longest) >= np.repeat(packed.lengths_k, packed.lengths_q)[:, None]
    bias = packed.bias(packed.heads, packed.total_q, packed.longest)
    grad_out = normal(packed.total_q, packed.heads, 5, dtype=dtype, seed=7)
    want = packed_backward(grad_out, packed, attn_mask=bias)
    assert past.any()
    assert not want["attn_mask"][:, past].any()
    for filling in (np.nan, np.inf, -np.inf):
        filled = np.where(past, dtype(filling), bias)
        got = packed_backward(grad_out, packed, attn_mask=filled)
        assert all(same_bits(got[name], x) for name, x in want.items()), filling


def test_sequences_without_rows_or_keys(each_isa, dtype):
    """Fault 9: rows without keys have a gradient of 0, keys without rows too."""
    packed = Packed([(3, 0), (0, 4), (2, 5), (0, 0), (0, 140), (20, 0)], dtype)
    grad_out = normal(packed.total_q, packed.heads, 5, dtype=dtype, seed=7)
    sinks = normal(packed.heads, dtype=dtype)
    for options in ({}, {"sinks": sinks}, {"sinks": sinks, "attn_mask": packed.bias(1, 1)}):
        check(each_isa, packed, str(options), **options)
        got = packed_backward(grad_out, packed, **options)
        assert not got["query"][:3].any()
        assert not got["query"][5:].any()
        assert not got["key"][:4].any()
        assert not got["value"][9:].any()


def test_one_array_of_segments(each_isa, dtype):
    for lengths in ([(5, 5), (1, 1), (9, 9)], [(5, 2), (1, 9), (9, 4)]):
        packed = Packed(lengths, dtype)
        check(each_isa, packed, str(lengths), segment_ids=packed.ids(15))
