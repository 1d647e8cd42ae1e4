"""What counts as an array: NumPy's, and what offers __array__, the buffer protocol or DLPack."""

import numpy as np
import pytest

import selfattn
from support.array_likes import KINDS, OfArray, OfDLPack
from support.arrays import normal, one_head, same_bits


@pytest.mark.parametrize("kind", KINDS)
def test_array_likes(kind, dtype):
    query, key, value = one_head(5, 9, 8, dtype=dtype)
    want = selfattn.scaled_dot_product_attention(query, key, value)
    like = KINDS[kind]
    got = selfattn.scaled_dot_product_attention(like(query), like(key), like(value))
    assert type(got) is np.ndarray
    assert same_bits(got, want)
    assert same_bits(selfattn.softmax(like(query)), selfattn.softmax(query))
    assert same_bits(selfattn.project(like(query), like(key)), selfattn.project(query, key))
    of_projection = (normal(5, 9, dtype=dtype), query, key, normal(9, dtype=dtype))
    assert same_bits(
        selfattn.project_backward(*map(like, of_projection)),
        selfattn.project_backward(*of_projection),
    )
    weights = selfattn.attention_weights(like(query), like(key))
    assert same_bits(
        selfattn.weighted_sum(like(weights), like(value)),
        np.asarray(selfattn.weighted_sum(weights, value)),
    )


def test_no_copy_is_made_of_an_array_like(dtype):
    """out that overlaps what an object lends is found out to overlap."""
    x = normal(7, 30, dtype=dtype)
    want = selfattn.softmax(x, 0)
    for like in (OfArray, OfDLPack):
        memory = x.copy()
        selfattn.softmax(like(memory), 0, out=memory)
        assert same_bits(memory, want)


def test_an_error_in_array_is_the_callers(dtype):
    class Fails:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("as the user wrote it")

    with pytest.raises(RuntimeError, match="as the user wrote it"):
        selfattn.softmax(Fails())


def test_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    query, key, value = one_head(5, 9, 8, dtype=dtype)
    tensors = [torch.from_numpy(x.copy()) for x in (query, key, value)]
    want = selfattn.scaled_dot_product_attention(query, key, value)
    assert same_bits(selfattn.scaled_dot_product_attention(*tensors), want)
    transposed = [x.T.contiguous().T for x in tensors]
    assert same_bits(selfattn.scaled_dot_product_attention(*transposed), want)
    half = [x.astype(np.float16) for x in (query, key, value)]
    got = selfattn.scaled_dot_product_attention(*(x.half() for x in tensors))
    assert same_bits(got, selfattn.scaled_dot_product_attention(*half))
    with pytest.raises(TypeError, match=r"(query|value): expected .*int64"):
        selfattn.scaled_dot_product_attention(*(x.long() for x in tensors))


def test_the_calls_of_torch_move_over_unchanged():
    """Positional arguments and names of torch.nn.functional.scaled_dot_product_attention."""
    torch = pytest.importorskip("torch")
    query, key, value = (normal(2, 4, 9, 8, seed=i) for i in range(3))
    tensors = [torch.from_numpy(x) for x in (query, key, value)]
    of_torch = torch.nn.functional.scaled_dot_product_attention
    for arguments, options in (
        ((), {}),
        ((None, 0.0, True), {}),
        ((), {"is_causal": True}),
        ((), {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": 0.3}),
    ):
        got = selfattn.scaled_dot_product_attention(query, key, value, *arguments, **options)
        want = of_torch(*tensors, *arguments, **options).numpy()
        # Both are within a few units of 2^-24 max|V| of the truth; see compare.py.
        np.testing.assert_allclose(got, want, rtol=0, atol=20 * 2.0**-24 * np.abs(value).max())
    for heads in (1, 2):
        few = [x[:, :heads] for x in tensors[1:]]
        got = selfattn.scaled_dot_product_attention(query, *few, enable_gqa=True)
        want = of_torch(tensors[0], *few, enable_gqa=True).numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=20 * 2.0**-24 * np.abs(value).max())
