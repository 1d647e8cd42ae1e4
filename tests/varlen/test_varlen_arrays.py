"""varlen_attention: which arrays it takes in, and where it writes its results."""

import numpy as np
import pytest

import selfattn
from support.arrays import same_bits
from support.packed import LENGTHS, OPTIONS, Packed


def test_strides(isa, dtype):
    """Slices of one fused projection, heads first, every other row, backwards, broadcast heads."""
    lengths = [(5, 5), (0, 0), (30, 30), (1, 1)]
    packed = Packed(lengths, dtype, heads=2, head_dim_v=8)
    want = packed.attend(is_causal=True)
    total, heads, head_dim = packed.query.shape
    fused = np.full((total, 3, heads, head_dim), np.nan, dtype)
    views = {"fused": [fused[:, n] for n in range(3)]}
    views["heads first"] = [np.empty((heads, total, 8), dtype).swapaxes(0, 1) for _ in "qkv"]
    views["strided rows"] = [
        np.full((2 * total, heads, 9), np.nan, dtype)[::2, :, :8] for _ in "qkv"
    ]
    views["backwards"] = [np.empty_like(packed.query)[::-1, ::-1, ::-1] for _ in "qkv"]
    for name, arrays in views.items():
        for view, x in zip(arrays, packed.arrays, strict=True):
            view[...] = x
        got = selfattn.varlen_attention(
            *arrays, packed.cu_q, packed.cu_k, is_causal=True, return_lse=True
        )
        assert same_bits(got, want), name

    one_head = [x[:, :1] for x in packed.arrays[1:]]
    broadcast = [np.broadcast_to(x, (total, heads, head_dim)) for x in one_head]
    got = selfattn.varlen_attention(packed.query, *broadcast, packed.cu_q, packed.cu_k)
    want = selfattn.varlen_attention(packed.query, *one_head, packed.cu_q, packed.cu_k)
    assert same_bits(got, want)


def test_strides_of_options(isa, dtype):
    """A mask, slopes, sinks and ids that are slices of something larger, or backwards."""
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype)
    options = OPTIONS["all"](packed)
    want = packed.attend(**options)

    def backwards(x):
        whole = np.zeros(tuple(2 * n for n in x.shape), x.dtype)
        view = whole[tuple(slice(None, None, -2) for _ in x.shape)]
        view[...] = x
        return view

    strided = {
        name: tuple(map(backwards, x)) if isinstance(x, tuple) and name == "segment_ids" else x
        for name, x in options.items()
    }
    for name in ("attn_mask", "query_offset", "kv_lengths", "alibi_slopes", "sinks"):
        strided[name] = backwards(options[name])
    assert same_bits(packed.attend(**strided), want)
    packed.cu_q, packed.cu_k = backwards(packed.cu_q), backwards(packed.cu_k)
    assert same_bits(packed.attend(**strided), want)


def test_inputs_are_not_written(dtype):
    packed = Packed(LENGTHS["empty among others"], dtype)
    options = OPTIONS["all"](packed)
    given = [*packed.arrays, packed.cu_q, packed.cu_k]
    given += [x for x in options.values() if isinstance(x, np.ndarray)]
    before = [x.copy() for x in given]
    for x in given:
        x.flags.writeable = False
    packed.attend(**options)
    assert all(map(np.array_equal, given, before))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32, np.int16])
def test_dtypes_of_cu_seqlens(kind, dtype):
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype)
    want = packed.attend()
    packed.cu_q, packed.cu_k = packed.cu_q.astype(kind), packed.cu_k.astype(np.int64)
    assert same_bits(packed.attend(), want)


def test_out(isa, dtype):
    """It is returned; any strides, its gaps are left alone; it may be an input."""
    packed = Packed(LENGTHS["one long among short"], dtype, heads=2, head_dim_v=8)
    want, want_lse = packed.attend(is_causal=True)
    out = np.full_like(want, np.nan)
    got, lse = packed.attend(is_causal=True, out=out)
    assert got is out
    assert same_bits((out, lse), (want, want_lse))

    whole = np.full((2 * packed.total_q, 2, 11), 7, dtype)
    view = whole[::-2, :, 1:9]
    packed.attend(is_causal=True, out=view)
    assert same_bits(np.ascontiguousarray(view), want)
    view[...] = 7
    assert (whole == 7).all()

    memory = packed.query.copy()
    packed.query = memory
    got, lse = packed.attend(is_causal=True, out=memory)
    assert same_bits((memory, lse), (want, want_lse))


def test_out_over_the_values(isa, dtype):
    """Fault 18: shifted by some elements, over the packed values, with as many queries as keys."""
    packed = Packed([(5, 5), (30, 30), (1, 1)], dtype, heads=2, head_dim_v=8)
    want, _ = packed.attend()
    size = want.size
    for shift in (-17, -1, 1, 16, size // 2):
        buffer = np.zeros(3 * size, dtype)
        value = buffer[size : 2 * size].reshape(want.shape)
        value[...] = packed.value
        out = buffer[size + shift : 2 * size + shift].reshape(want.shape)
        arrays = packed.query, packed.key, value
        selfattn.varlen_attention(*arrays, packed.cu_q, packed.cu_k, out=out)
        assert same_bits(out, want), shift


def test_without_lse(dtype):
    """The output alone, and the same."""
    packed = Packed(LENGTHS["empty among others"], dtype)
    arguments = *packed.arrays, packed.cu_q, packed.cu_k
    out = selfattn.varlen_attention(*arguments, enable_gqa=True)
    assert isinstance(out, np.ndarray)
    assert same_bits(out, packed.attend()[0])


def test_names_and_order_of_arguments(dtype):
    """Positional up to is_causal, as scaled_dot_product_attention has them; then by name."""
    packed = Packed([(5, 6), (3, 12), (1, 1)], dtype, heads=2)
    mask = packed.mask(packed.total_q, packed.longest)
    arguments = (*packed.arrays, packed.cu_q, packed.cu_k)
    want = packed.attend(attn_mask=mask, is_causal=True)
    got = selfattn.varlen_attention(*arguments, mask, 0.0, True, return_lse=True)
    assert same_bits(got, want)
    got = selfattn.varlen_attention(
        value=packed.value,
        key=packed.key,
        query=packed.query,
        cu_seqlens_k=packed.cu_k,
        cu_seqlens_q=packed.cu_q,
        attn_mask=mask,
        dropout_p=0.0,
        is_causal=True,
        return_lse=True,
    )
    assert same_bits(got, want)
    with pytest.raises(TypeError, match="positional"):
        selfattn.varlen_attention(*arguments, mask, 0.0, True, 0.5)
