"""Packed sequences in half types: float32's results and gradients, rounded once, in every set."""

import numpy as np
import pytest

import selfattn
from support.arrays import same_bits
from support.halves import assert_rounded, each_half, flat, widened
from support.packed import LENGTHS, OPTIONS, Packed


def results(packed, arrays, options, grad_out, given=None, threads=1):
    """out, lse and the gradients, upon `given` or upon this call's own out and lse."""
    sequences = packed.cu_q, packed.cu_k
    more = options | {"enable_gqa": True, "num_threads": threads}
    forward = selfattn.varlen_attention(*arrays, *sequences, return_lse=True, **more)
    out, lse = given or forward
    mask = options.get("attn_mask")
    gradients = selfattn.varlen_attention_backward(
        *(grad_out, *arrays, out, lse, *sequences),
        mask_grad=mask is not None and mask.dtype != bool,
        sinks_grad="sinks" in options,
        **more,
    )
    return forward, gradients


def compare(each_isa, half, lengths, option, threads=1):
    packed = Packed(LENGTHS[lengths], half)
    options = OPTIONS[option](packed)
    arrays = packed.query, packed.key, packed.value
    shape = (packed.total_q, packed.heads, packed.value.shape[-1])
    grad_out = np.random.default_rng(7).standard_normal(shape).astype(half)
    forward, _ = results(packed, arrays, options, grad_out)
    wide = widened((arrays, options, grad_out, forward))
    want = results(packed, *wide)
    for isa in each_isa():
        got = results(packed, arrays, options, grad_out, forward, threads)
        assert_rounded(got, want, f"{lengths} {option} {isa}")
        assert [x.dtype for x in flat(got[0])] == [half, np.float32]
        assert {x.dtype for x in flat(got[1])} <= {np.dtype(half), np.dtype(np.float32)}


@each_half
@pytest.mark.parametrize("lengths", LENGTHS)
def test_all_lengths(each_isa, half, lengths):
    compare(each_isa, half, lengths, "plain")
    compare(each_isa, half, lengths, "offsets", threads=2)


@each_half
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option(each_isa, half, option):
    compare(each_isa, half, "one long among short", option)
    compare(each_isa, half, "many short", option)


@each_half
def test_a_sequence_alone_has_the_same_bits(isa, half):
    packed = Packed(LENGTHS["one long among short"], half)
    out, lse = packed.attend()
    for b in range(packed.batch):
        q, k = (slice(*cu[b : b + 2]) for cu in (packed.cu_q, packed.cu_k))
        arrays = [x.swapaxes(0, 1) for x in (packed.query[q], packed.key[k], packed.value[k])]
        alone = selfattn.scaled_dot_product_attention(*arrays, enable_gqa=True, return_lse=True)
        assert same_bits(alone[0], out[q].swapaxes(0, 1))
        assert same_bits(alone[1], lse[:, q])
