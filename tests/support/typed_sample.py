"""What typed code of a user looks like: mypy --strict finds nothing, and it runs.

An ignored error is one that must be found: mypy says so where it is not.
"""

from __future__ import annotations

import array
import tempfile
from pathlib import Path
from typing import assert_type

import numpy as np
import numpy.typing as npt

import selfattn
from selfattn import nn


def attend(x: npt.NDArray[np.float32]) -> None:
    """One array, or two of them, as `return_lse` says."""
    out = selfattn.scaled_dot_product_attention(x, x, x)
    assert_type(out, np.ndarray)
    print(out.shape, out + 1, out.mean())
    assert_type(selfattn.scaled_dot_product_attention(x, x, x, return_lse=False), np.ndarray)
    both = selfattn.scaled_dot_product_attention(x, x, x, None, 0.0, True, return_lse=True)
    assert_type(both, tuple[np.ndarray, np.ndarray])
    out, lse = both
    asked = bool(lse.size)
    either = selfattn.scaled_dot_product_attention(x, x, x, return_lse=asked)
    assert_type(either, np.ndarray | tuple[np.ndarray, np.ndarray])
    try:
        print(either.shape)  # type: ignore[union-attr]
    except AttributeError as error:
        print(error)
    merged, lse = selfattn.merge_states(out, lse, out, lse)
    selfattn.merge_states_many(out, lse, axis=0, num_threads=1)
    selfattn.merge_states_many([out, merged], (lse, lse), lse_heads_first=False)
    of_states = selfattn.merge_states_backward(out, None, [out, merged], [lse, lse])
    assert_type(of_states, selfattn.MergeGradients)
    print(len(of_states.lses))
    gradients = selfattn.scaled_dot_product_attention_backward(
        np.ones_like(out), x, x, x, out, lse, is_causal=True
    )
    assert_type(gradients, selfattn.AttentionGradients)
    print(merged.dtype, gradients.query.shape, gradients.attn_mask is None)


def attend_packed(x: npt.NDArray[np.float64]) -> None:
    starts = np.array([0, 2, 3])
    out = selfattn.varlen_attention(x, x, x, starts, starts)
    assert_type(out, np.ndarray)
    assert_type(
        selfattn.varlen_attention(x, x, x, starts, starts, return_lse=True),
        tuple[np.ndarray, np.ndarray],
    )
    out, lse = selfattn.varlen_attention(x, x, x, starts, starts, return_lse=True)
    of_key = selfattn.varlen_attention_backward(out, x, x, x, out, lse, starts, starts).key
    print(out.mean(), of_key.sum())


def options(x: npt.NDArray[np.float32]) -> None:
    """Every kind of argument."""
    out = selfattn.scaled_dot_product_attention(
        x,
        x,
        x,
        np.ones((3, 3), np.bool_),
        np.float32(0.5),
        scale=np.float64(0.3),
        query_offset=np.array([1]),
        kv_lengths=np.array([2]),
        window_size=[1, 2],
        softcap=2,
        alibi_slopes=np.ones(2, np.float32),
        sinks=np.ones(2, np.float32),
        segment_ids=(np.zeros(3, np.int64), np.zeros(3, np.int64)),
        dropout_seed=7,
        num_threads=1,
    )
    selfattn.scaled_dot_product_attention(x, x, x, query_offset=np.int64(1), out=out)
    selfattn.scaled_dot_product(x, x, window_size=(1, -1)).max()
    selfattn.attention_weights(x, x, None, True, dropout_p=0.1, dropout_seed=1).max()
    selfattn.weighted_sum(selfattn.softmax(x, axis=-1), x[..., :1, :].repeat(4, -2)).max()
    weight, bias = np.ones((2, 4), np.float32), np.ones(2, np.float32)
    projected = selfattn.project(x, weight, bias, num_threads=1)
    assert_type(selfattn.project(x, weight, out=projected), np.ndarray)
    of_projection = selfattn.project_backward(projected, x, weight, bias, num_threads=1)
    assert_type(of_projection, selfattn.ProjectionGradients)
    assert_type(of_projection.bias, np.ndarray | None)
    print(projected.max(), of_projection.x.shape, of_projection.weight.max())


class Lent:
    """Offers `__array__` alone."""

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return np.ones(3)


def array_likes() -> None:
    selfattn.softmax(Lent()).max()
    selfattn.softmax(memoryview(array.array("f", [1.0, 2.0]))).max()
    try:
        selfattn.softmax([1.0, 2.0])  # type: ignore[arg-type]
    except TypeError as error:
        print(error)


def learn(x: npt.NDArray[np.float32]) -> None:
    layer = nn.MultiheadAttention(4, 2, seed=0)
    y = layer.forward(x, is_causal=True, rope={"theta": 500})
    assert_type(y, np.ndarray)
    gradient = layer.backward(y)
    weight: np.ndarray = layer.params["in_proj_weight"]
    weight -= 0.1 * layer.grads["in_proj_weight"]
    print(gradient.shape, layer.attention_weights(x).shape, layer(x).shape)
    print(nn.rope_backward(nn.rope(x, np.int64(3)), positions=np.arange(3)).shape)
    print(nn.rope(x, cos=np.ones((3, 4)), sin=np.zeros((3, 4), np.float32)).shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        nn.save(layer.state_dict(), path)
        loaded = nn.load(path, strict=False)
        assert_type(loaded, dict[str, np.ndarray])
        layer.load_state_dict(loaded)


def settings() -> None:
    selfattn.set_num_threads(2)
    with selfattn.threads(1):
        print(selfattn.get_num_threads() + 1, selfattn.isas()[-1].upper())
    selfattn.set_num_threads(None)
    config = selfattn.show_config("dicts")
    print(config and config["isa"], selfattn.__version__.split("."))


def main() -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 4)).astype(np.float32)
    attend(x)
    attend_packed(np.ones((3, 2, 4)))
    options(x)
    array_likes()
    learn(x[0])
    settings()


if __name__ == "__main__":
    main()
