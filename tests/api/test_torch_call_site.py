"""A call site of torch.nn.functional.scaled_dot_product_attention moves over unchanged.

The calls below are written once, for a function and arrays; PyTorch's function gets tensors,
selfattn's gets the same numbers in NumPy arrays, in tensors, or in objects that offer `__array__`,
DLPack or the buffer protocol and nothing else.
"""

import inspect
import math

import numpy as np
import pytest

import selfattn
from support.array_likes import OfArray, OfDLPack
from support.arrays import normal, qkv, same_bits
from support.compare import assert_close, largest, score_size, unit_roundoff

BATCH, HEADS, SEQLEN_Q, SEQLEN_K, HEAD_DIM = 2, 4, 6, 9, 8


def masks(dtype):
    """As model code makes them: padding, packed documents, causal by hand, biases."""
    lengths = np.array([[9], [4]])
    padding = np.arange(SEQLEN_K) < lengths
    causal = np.tri(SEQLEN_Q, SEQLEN_K, SEQLEN_K - SEQLEN_Q, dtype=bool)
    least = np.where(padding, dtype(0), np.finfo(dtype).min)
    return {
        "padding": padding[:, None, None, :],
        "causal": causal,
        "both": padding[:, None, None, :] & causal,
        "of heads": normal(HEADS, 1, SEQLEN_K) > -1,
        "full": normal(BATCH, HEADS, SEQLEN_Q, SEQLEN_K, seed=1) > -1,
        "added": np.where(causal, dtype(0), dtype(-np.inf)),
        "added, with the least number": least[:, None, None, :],
        "bias": normal(BATCH, HEADS, SEQLEN_Q, SEQLEN_K, dtype=dtype, seed=2),
        "bias of heads": normal(1, HEADS, 1, SEQLEN_K, dtype=dtype, seed=3),
        "bias of rows": normal(SEQLEN_Q, 1, dtype=dtype, seed=4),
    }


# f is the function, in either library; m is a mask.
CALLS = {
    "f(q, k, v)": lambda f, q, k, v, m: f(q, k, v),
    "f(q, k, v, m)": lambda f, q, k, v, m: f(q, k, v, m),
    "f(q, k, v, m, 0.0)": lambda f, q, k, v, m: f(q, k, v, m, 0.0),
    "f(q, k, v, m, 0.0, False)": lambda f, q, k, v, m: f(q, k, v, m, 0.0, False),
    "f(q, k, v, None, 0.0, True)": lambda f, q, k, v, m: f(q, k, v, None, 0.0, True),
    "attn_mask": lambda f, q, k, v, m: f(q, k, v, attn_mask=m),
    "is_causal": lambda f, q, k, v, m: f(q, k, v, is_causal=True),
    "scale": lambda f, q, k, v, m: f(q, k, v, attn_mask=m, scale=1 / math.sqrt(3)),
    "every name": lambda f, q, k, v, m: f(
        query=q,
        key=k,
        value=v,
        attn_mask=m,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    ),
    "a model's": lambda f, q, k, v, m: f(
        q, k, v, attn_mask=m, dropout_p=0, is_causal=m is None and q.shape[-2] > 1
    ),
}


def torch():
    return pytest.importorskip("torch")


def of_torch(*arguments, **options):
    return torch().nn.functional.scaled_dot_product_attention(*arguments, **options).numpy()


def tensors(*arrays):
    return [None if x is None else torch().from_numpy(x.copy()) for x in arrays]


def bound_of(query, key, value, mask=None, scale=None):
    """Both may be as far from the truth as compare.py says, where a mask is added too."""
    u, size = 2 * unit_roundoff(query.dtype), score_size(query, key, scale)
    moved = 0.0
    if mask is not None and mask.dtype != bool:
        usual = mask[mask > np.finfo(mask.dtype).min]
        moved = 2 * (size + largest(usual) + 3 * math.log(key.shape[-2]))
    return u * (8 + 3 * size + moved + key.shape[-2] / 4) * largest(value)


def check(call, query, key, value, mask=None):
    scale = 1 / math.sqrt(3) if call is CALLS["scale"] else None
    got = call(selfattn.scaled_dot_product_attention, query, key, value, mask)
    want = call(of_torch, *tensors(query, key, value, mask))
    assert type(got) is np.ndarray
    assert got.dtype == want.dtype
    assert_close(got, want, bound_of(query, key, value, mask, scale))


# ------------------------------------------------------------------ NumPy arrays


def test_the_signature_is_torchs():
    """Names, order and defaults of what torch documents; the rest of ours is keyword-only."""
    ours = inspect.signature(selfattn.scaled_dot_product_attention).parameters
    first = ["query", "key", "value", "attn_mask=None", "dropout_p=0.0", "is_causal=False"]
    positional = [p for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in positional] == [x.split("=")[0] for x in first]
    assert [p.default for p in positional[3:]] == [None, 0.0, False]
    assert (ours["scale"].default, ours["enable_gqa"].default) == (None, False)
    assert all(p.kind is p.KEYWORD_ONLY for p in list(ours.values())[6:])
    documented = torch().nn.functional.scaled_dot_product_attention.__doc__
    signature = " ".join(documented.split("->")[0].split())
    options = ", ".join([*first, "scale=None", "enable_gqa=False"])
    assert signature == f"scaled_dot_product_attention({options})"


@pytest.mark.parametrize("call", CALLS)
def test_calls(isa, dtype, call):
    """Every form of a call with every kind of mask."""
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), seqlen_k=SEQLEN_K, dtype=dtype)
    check(CALLS[call], *arrays)
    for mask in masks(dtype).values():
        check(CALLS[call], *arrays, mask)


def test_grouped_heads(isa, dtype):
    for heads_kv in (1, 2, 4):
        arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), heads_kv, SEQLEN_K, dtype=dtype)
        for mask in (None, *masks(dtype).values()):
            check(lambda f, q, k, v, m: f(q, k, v, m, enable_gqa=True), *arrays, mask)
        check(lambda f, q, k, v, m: f(q, k, v, is_causal=True, enable_gqa=True), *arrays)


def test_grouped_heads_are_asked_for(dtype):
    """Both refuse them where the call does not say enable_gqa."""
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), 2, SEQLEN_K, dtype=dtype)
    with pytest.raises(ValueError, match="enable_gqa"):
        selfattn.scaled_dot_product_attention(*arrays)
    with pytest.raises(RuntimeError):
        of_torch(*tensors(*arrays))


@pytest.mark.parametrize(
    ("shape_q", "shape_k", "head_dim_v"),
    [
        ((3, 5, 8), (3, 7, 8), 8),
        ((2, 1, 4, 1, 16), (2, 1, 4, 33, 16), 16),
        ((2, 4, 70, 16), (2, 4, 70, 16), 16),
        ((2, 4, 5, 8), (2, 4, 7, 8), 3),
        ((2, 1, 5, 8), (2, 4, 7, 8), 8),
        ((2, 4, 5, 8), (2, 1, 7, 8), 8),
        ((1, 4, 5, 8), (2, 4, 7, 8), 8),
        ((1, 2, 200, 64), (1, 2, 300, 64), 64),
    ],
    ids=str,
)
def test_shapes(isa, dtype, shape_q, shape_k, head_dim_v):
    """Three axes to five, decoding, a narrow value, axes that broadcast."""
    query, key = normal(*shape_q, dtype=dtype), normal(*shape_k, dtype=dtype, seed=1)
    value = normal(*shape_k[:-1], head_dim_v, dtype=dtype, seed=2)
    mask = normal(shape_q[-2], shape_k[-2], seed=3) > -1
    for call in ("f(q, k, v)", "f(q, k, v, m)", "is_causal", "scale"):
        check(CALLS[call], query, key, value, mask)


def test_causal_is_aligned_as_torchs(isa, dtype):
    """Fault 8: top-left, for every L and S up to 7."""
    for seqlen_q in range(1, 8):
        for seqlen_k in range(1, 8):
            arrays = qkv((1, 2, seqlen_q, 4), seqlen_k=seqlen_k, dtype=dtype)
            check(CALLS["is_causal"], *arrays)


def test_fully_masked_rows(isa, dtype):
    """Fault 1: 0 in both, for bools and for -inf."""
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), seqlen_k=SEQLEN_K, dtype=dtype)
    keep = np.ones((SEQLEN_Q, SEQLEN_K), bool)
    keep[2] = False
    for mask in (keep, np.where(keep, dtype(0), dtype(-np.inf))):
        check(CALLS["attn_mask"], *arrays, mask)
        got = selfattn.scaled_dot_product_attention(*arrays, attn_mask=mask)
        assert not got[:, :, 2].any()


def test_least_numbers(isa, dtype):
    """Fault 2: a row of nothing but finfo.min attends to all keys alike, in both."""
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), seqlen_k=SEQLEN_K, dtype=dtype)
    mask = np.full((SEQLEN_Q, SEQLEN_K), np.finfo(dtype).min, dtype)
    mask[3] = 0
    check(CALLS["attn_mask"], *arrays, mask)
    mean = arrays[2].mean(2, keepdims=True, dtype=np.float64)
    got = selfattn.scaled_dot_product_attention(*arrays, attn_mask=mask)[:, :, :3]
    assert_close(got, np.broadcast_to(mean, got.shape), bound_of(*arrays))


# ------------------------------------------------------------------ other arrays


def reversed_axes(x):
    """A tensor whose axes lie in memory in the opposite order."""
    backwards = np.ascontiguousarray(x.transpose())
    return torch().from_numpy(backwards).permute(*reversed(range(x.ndim)))


LIKES = {
    "torch": lambda x: torch().from_numpy(x.copy()),
    "torch, other strides": reversed_axes,
    "__array__": OfArray,
    "DLPack": OfDLPack,
    "buffer": memoryview,
}


@pytest.mark.parametrize("kind", LIKES)
def test_inputs_and_masks_of_other_kinds(kind, dtype):
    """The call as it stands, with what is no NumPy array: its bits are those of NumPy's."""
    like = LIKES[kind]
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), seqlen_k=SEQLEN_K, dtype=dtype)
    for name, mask in masks(dtype).items():
        mask = np.ascontiguousarray(mask)
        want = selfattn.scaled_dot_product_attention(*arrays, mask)
        got = selfattn.scaled_dot_product_attention(*map(like, arrays), like(mask))
        assert type(got) is np.ndarray
        assert same_bits(np.ascontiguousarray(got), want), name
        got = selfattn.scaled_dot_product_attention(*arrays, attn_mask=like(mask))
        assert same_bits(got, want), name


@pytest.mark.parametrize("kind", LIKES)
def test_options_of_other_kinds(kind, dtype):
    """Slopes, sinks, segments, lengths, offsets: each as an object of its own kind."""
    like = LIKES[kind]
    arrays = qkv((BATCH, HEADS, SEQLEN_Q, HEAD_DIM), seqlen_k=SEQLEN_K, dtype=dtype)
    ids_q, ids_k = np.arange(SEQLEN_Q) % 2, np.arange(2 * SEQLEN_K).reshape(2, -1) % 3
    options = {
        "alibi_slopes": normal(BATCH, HEADS, dtype=dtype, seed=5),
        "sinks": normal(HEADS, dtype=dtype, seed=6),
        "kv_lengths": np.array([9, 5]),
        "query_offset": np.array([3, 1]),
        "segment_ids": (ids_q, ids_k),
    }
    for name, option in options.items():
        want = selfattn.scaled_dot_product_attention(*arrays, **{name: option})
        given = tuple(map(like, option)) if isinstance(option, tuple) else like(option)
        got = selfattn.scaled_dot_product_attention(*arrays, **{name: given})
        assert same_bits(got, want), name


@pytest.mark.parametrize("kind", LIKES)
def test_sequences_of_other_kinds(kind, dtype):
    like = LIKES[kind]
    arrays = [normal(12, 2, 8, dtype=dtype, seed=n) for n in range(3)]
    cu_seqlens = np.array([0, 5, 5, 12], np.int32)
    mask = normal(12, 7) > -0.5
    want = selfattn.varlen_attention(*arrays, cu_seqlens, cu_seqlens, mask)
    given = map(like, (*arrays, cu_seqlens, cu_seqlens, mask))
    assert same_bits(np.ascontiguousarray(selfattn.varlen_attention(*given)), want)


def test_a_mask_is_not_copied():
    """A tensor's own memory is read: what is written to it between two calls counts."""
    query, key, value = qkv((1, 2, 5, 8), seqlen_k=7)
    for like in (torch().from_numpy, OfArray, OfDLPack):
        mask = np.ones((5, 7), bool)
        tensor = like(mask)
        before = selfattn.scaled_dot_product_attention(query, key, value, tensor)
        mask[:, 3] = False
        after = selfattn.scaled_dot_product_attention(query, key, value, tensor)
        want = selfattn.scaled_dot_product_attention(query, key, value, mask)
        assert same_bits(after, want)
        assert not same_bits(before, after)


def test_masks_that_torch_refuses_too(dtype):
    """A float mask of a dtype that is not query's, float32 aside; ints."""
    query, key, value = qkv((1, 2, 5, 8), seqlen_k=7, dtype=dtype)
    for wrong in (np.float16, np.int64, np.uint8):
        mask = np.ones((5, 7), wrong)
        with pytest.raises(TypeError, match=rf"^attn_mask: expected .*got.*{np.dtype(wrong).name}"):
            selfattn.scaled_dot_product_attention(query, key, value, mask)
        with pytest.raises(RuntimeError):
            of_torch(*tensors(query, key, value, mask))
