"""The attention function: what a model's attention modules call, as a call of selfattn.torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import torch as ours
from ..torch.options import drawn_seed
from .masktensor import MaskTensor
from .weights import attention_weights


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An entry of transformers' `AttentionInterface`.

    Parameters
    ----------
    module : torch.nn.Module
        Its `is_causal` is taken where the argument is None; True where it has none.
    query : tensor, shape (B, H, L, E)
    key, value : tensors, shapes (B, Hkv, S, E) and (B, Hkv, S, Ev)
        H is a multiple of Hkv.
    attention_mask : MaskTensor, or bool or float tensor that broadcasts to (B, H, L, S), or None
        It is all that masks, if there is one: `is_causal` and `sliding_window` are not looked at.
    dropout : float
        The seed is drawn from PyTorch's generator.
    scaling : float, optional
        1 / sqrt(E) unless given.
    is_causal : bool, optional
        From the first key on, as in PyTorch's function; a single query sees all keys.
    position_bias : tensor, broadcasts to (B, H, L, S), optional
        Added to the scores; it may require grad.
    sliding_window : int, optional
        The number of keys that a query sees, its own place included, on one side.
    softcap : float, optional
    s_aux : tensor, shape (H,), optional
        The logits of attention sinks.
    output_attentions : bool, optional
        Return the weights too, after dropout as the eager functions do. They are computed once more
        for it and cannot be differentiated.

    Returns
    -------
    out : tensor, shape (B, L, H, Ev)
        Contiguous. It is not copied where queries lie in memory with their positions before heads.
    weights : tensor, shape (B, H, L, S), or None
    """
    if attention_mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        options = _options_without_mask(query, key, bool(causal), sliding_window)
    elif isinstance(attention_mask, MaskTensor):
        _check(attention_mask, query, key)
        options = attention_mask.rule.options()
    else:
        options = {"attn_mask": attention_mask}
    if position_bias is not None:
        options["attn_bias"] = position_bias
    if scaling is not None:
        options["scale"] = scaling
    if query.shape[1] != key.shape[1]:
        options["enable_gqa"] = True
    if softcap is not None:
        options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = s_aux.reshape(-1)
    if dropout > 0.0:
        options["dropout_p"] = dropout
        options["dropout_seed"] = drawn_seed()
    weights = attention_weights(query, key, options) if output_attentions else None
    out = ours.scaled_dot_product_attention(query, key, value, **options)
    return out.transpose(1, 2).contiguous(), weights


def _options_without_mask(
    query: Tensor, key: Tensor, is_causal: bool, sliding_window: int | None
) -> dict[str, Any]:
    num_queries, num_keys = query.shape[2], key.shape[2]
    is_causal = is_causal and num_queries > 1
    options: dict[str, Any] = {"is_causal": is_causal}
    if sliding_window is not None and num_keys > sliding_window:
        width = sliding_window - 1
        options["window_size"] = (width, -1 if is_causal else width)
        if num_queries == 1:
            options["query_offset"] = num_keys - 1
    return options


def _check(mask: Any, query: Tensor, key: Tensor) -> None:
    expected = (query.shape[2], key.shape[2])
    if tuple(mask.shape[2:]) != expected:
        raise ValueError(
            f"attention_mask: expected one of {expected[0]} queries and {expected[1]} keys, "
            f"got {mask.shape[2]} and {mask.shape[3]}"
        )
