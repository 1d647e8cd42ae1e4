"""What bits of half types do not depend on: company, threads, other queries, masked keys.

All of it follows from float32's promises, and is looked at here without float32.
"""

import numpy as np
import pytest

import selfattn
from support.arrays import normal, one_head, qkv, same_bits
from support.gradients import grad_of, upon
from support.halves import each_half
from support.option_arrays import option, part_of

attend = selfattn.scaled_dot_product_attention


def with_lse(*arrays, **options):
    return attend(*arrays, return_lse=True, **options)


@each_half
def test_decoding_gives_the_bits_of_a_causal_prefix(isa, half):
    """Row by row, a few at a time, and all at once; alone in the kernels for few rows too."""
    query, key, value = qkv((1, 2, 140, 64), seqlen_k=700, head_dim_v=33, dtype=half)
    offset = 700 - 140
    whole = with_lse(query, key, value, is_causal=True, query_offset=offset)
    for begin, end in [(0, 1), (5, 6), (17, 20), (64, 100), (139, 140)]:
        part = with_lse(
            query[..., begin:end, :],
            key[..., : offset + end, :],
            value[..., : offset + end, :],
            is_causal=True,
            query_offset=offset + begin,
        )
        for got, want in zip(part, whole, strict=True):
            assert same_bits(got, want[:, :, begin:end])


@each_half
@pytest.mark.parametrize("kind", ["bool", "float", "alibi", "sinks", "all"])
def test_a_head_alone_has_the_bits_of_a_batch(isa, half, kind):
    """Keys of a whole batch are converted in other ways than those of one head."""
    arrays = qkv((3, 2, 110, 16), seqlen_k=260, dtype=half)
    options = option(kind, 3, 2, 110, 260, half)
    whole = with_lse(*arrays, **options)
    grad_out = grad_of(*arrays)
    gradients = upon(grad_out, *arrays, out=whole[0], lse=whole[1], **options)
    for b in range(3):
        one = [x[b : b + 1] for x in arrays]
        alone = part_of(options, batch=slice(b, b + 1))
        got = with_lse(*one, **alone)
        assert same_bits(got, tuple(x[b : b + 1] for x in whole))
        got = upon(grad_out[b : b + 1], *one, out=got[0], lse=got[1], **alone)
        for name in ("query", "key", "value"):
            assert same_bits(got[name], gradients[name][b : b + 1]), name


@each_half
def test_a_tile_alone_has_the_bits_of_many(isa, half):
    """Few tiles convert keys block by block, many share a copy of them."""
    query, key, value = qkv((1, 1, 500, 64), seqlen_k=1000, dtype=half)
    whole = with_lse(query, key, value)
    for begin, end in [(0, 8), (0, 48), (100, 130), (499, 500), (37, 437)]:
        got = with_lse(query[:, :, begin:end], key, value)
        assert same_bits(got, tuple(x[:, :, begin:end] for x in whole))


@each_half
@pytest.mark.parametrize("rows", [1, 3, 60, 110])
def test_threads(isa, half, rows):
    arrays = qkv((1, 2, rows, 33), seqlen_k=1100, head_dim_v=16, dtype=half)
    grad_out = grad_of(*arrays)
    one = with_lse(*arrays, num_threads=1)
    given = {"out": one[0], "lse": one[1]}
    gradients = upon(grad_out, *arrays, **given, num_threads=1)
    for threads in (2, 3):
        assert same_bits(with_lse(*arrays, num_threads=threads), one)
        got = upon(grad_out, *arrays, **given, num_threads=threads)
        for name, want in gradients.items():
            assert same_bits(got[name], want), name


@each_half
def test_out_with_and_without_lse_and_into_a_given_array(isa, half):
    """The shorter way of a plain call, and the longer one of any options."""
    arrays = qkv((2, 2, 50, 16), seqlen_k=60, dtype=half)
    want = attend(*arrays)
    assert want.dtype == half
    assert same_bits(with_lse(*arrays)[0], want)
    assert same_bits(attend(*arrays, scale=0.25), want)
    out = np.zeros_like(want)
    assert attend(*arrays, out=out) is out
    assert same_bits(out, want)
    overlapping = arrays[0].copy()
    attend(overlapping, *arrays[1:], out=overlapping)
    assert same_bits(overlapping, want)


@each_half
def test_rows_of_projections(isa, half):
    """Few rows have kernels of their own."""
    x, weight, bias = normal(60, 130, dtype=half), normal(97, 130, dtype=half), normal(97)
    for w in (weight, weight.T.copy().T):
        whole = selfattn.project(x, w, bias.astype(half))
        for begin, end in [(0, 1), (3, 7), (20, 28), (10, 59)]:
            got = selfattn.project(x[begin:end], w, bias.astype(half))
            assert same_bits(got, whole[begin:end])


@each_half
def test_inputs_are_never_written(isa, half):
    for rows in (2, 60):
        arrays = one_head(rows, 140, 16, dtype=half)
        mask = normal(rows, 140, dtype=half)
        before = [x.copy() for x in (*arrays, mask)]
        out, lse = with_lse(*arrays, attn_mask=mask)
        upon(out, *arrays, out=out, lse=lse, attn_mask=mask)
        assert all(map(same_bits, (*arrays, mask), before))
