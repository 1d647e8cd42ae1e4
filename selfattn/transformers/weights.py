"""The attention weights, for those who ask to look at them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import steps
from ..torch.arrays import array_of, tensor_of


def _forward(ctx: Any, query: Tensor, key: Tensor, options: Any) -> Tensor:
    ids = options.get("segment_ids")
    arrays: dict[str, Any] = {
        name: array_of(name, x) if isinstance(x, torch.Tensor) else x for name, x in options.items()
    }
    if ids is not None:
        arrays["segment_ids"] = tuple(array_of("segment_ids", x) for x in ids)
    return tensor_of(
        steps.attention_weights(array_of("query", query), array_of("key", key), **arrays)
    )


def _backward(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError("output_attentions: the gradient of attention weights is not built")


# By a call: where PyTorch is not installed, type checkers refuse a class of an unknown base.
_Weights: Any = type(
    "AttentionWeights",
    (torch.autograd.Function,),
    {"forward": staticmethod(_forward), "backward": staticmethod(_backward)},
)


def attention_weights(query: Tensor, key: Tensor, options: dict[str, Any]) -> Tensor:
    """The weights, shape (B, H, L, S), under the options of `attention`'s call.

    Their gradient raises NotImplementedError, and is never silently 0.
    """
    weights: Tensor = _Weights.apply(query, key, options)
    return weights
