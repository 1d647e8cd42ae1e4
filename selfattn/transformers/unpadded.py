"""The second name: a batch is attended without its padding, as one row of packed sequences.

transformers does the unpadding for implementations whose name contains "flash", and so does
sentence-transformers, for the whole model: they ask for functions with the signatures of the
package flash-attn, which are here, on `selfattn.torch`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_flash_attention_utils import _flash_attention_forward

from .. import torch as ours
from ..flash_attn import arguments
from .attention import attention
from .masktensor import of_rule
from .rules import Rule, ids_with_padding, padding


def unpadded_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An entry of transformers' `AttentionInterface`; parameters are those of `attention`.

    The mask is of tokens, shape (B, S), or None. What packed sequences have no place for, a bias of
    positions, weights to be returned, a mask of pairs of tokens, is done with the padding.
    """
    is_of_pairs = attention_mask is not None and attention_mask.dim() != 2
    if not is_of_pairs and position_bias is None and not output_attentions:
        return _unpadded(module, query, key, value, attention_mask, **kwargs), None
    return attention(
        module,
        query,
        key,
        value,
        attention_mask if is_of_pairs else _rule(module, query, key, attention_mask, kwargs),
        position_bias=position_bias,
        output_attentions=output_attentions,
        **kwargs,
    )


def _unpadded(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> Tensor:
    """By transformers' own unpadding, as for its flash attention, but in the tensors' own dtype."""
    out: Tensor = _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        query_length=query.shape[2],
        is_causal=_is_causal(module, is_causal),
        dropout=dropout,
        softmax_scale=scaling,
        attn_implementation=module.config._attn_implementation,
        **kwargs,
    )
    return out


def _is_causal(module: Any, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)


def _rule(
    module: Any, query: Tensor, key: Tensor, attention_mask: Tensor | None, given: dict[str, Any]
) -> Any:
    """The mask of a call in flash-attn's semantics: the last query is at the last key."""
    batch, _, num_queries, _ = query.shape
    num_keys = key.shape[2]
    is_causal = _is_causal(module, given.get("is_causal"))
    window = _window(given.get("sliding_window"), num_keys)
    lengths = ids = None
    if attention_mask is None:
        ids = _ids_of_packed(given, batch, num_queries, num_keys)
    else:
        lengths, of_padding = padding(attention_mask.bool())
        if of_padding is not None:
            ids = ids_with_padding(None, of_padding, num_queries)
    query_ids, key_ids = ids or (None, None)
    rule = Rule(is_causal, window, num_keys - num_queries, lengths, query_ids, key_ids)
    return of_rule(rule, batch, num_queries, num_keys)


def _ids_of_packed(given: dict[str, Any], batch: int, num_queries: int, num_keys: int) -> Any:
    """The numbers of the packed sequences, of queries and of keys, where the call says them.

    By their starts in the one row of the batch, or by places that start anew.
    """
    starts: Any = given.get("cu_seq_lens_q"), given.get("cu_seq_lens_k")
    if batch == 1 and all(x is not None for x in starts):
        lengths = num_queries, num_keys
        return tuple(
            torch.searchsorted(x, torch.arange(n, dtype=x.dtype), right=True)[None]
            for x, n in zip(starts, lengths, strict=True)
        )
    places = given.get("position_ids")
    if batch == 1 and places is not None and num_queries == num_keys == places.shape[-1]:
        ids = find_packed_sequence_indices(places)
        return None if ids is None else (ids, ids)
    return None


def _window(sliding_window: int | None, num_keys: int) -> tuple[int, int]:
    if sliding_window is None or num_keys <= sliding_window:
        return -1, -1
    return sliding_window - 1, sliding_window - 1


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """flash-attn's function: shapes (B, L, H, E); causal with the last query at the last key."""
    given = _options(dropout_p, softmax_scale, causal, window_size, softcap, s_aux)
    if arguments.is_aligned(given):
        given["query_offset"] = k.shape[1] - q.shape[1]
    out = ours.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), **given
    )
    result: Tensor = out.transpose(1, 2).contiguous()
    return result


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """flash-attn's function of packed sequences: shapes (total, H, E)."""
    given = _options(dropout_p, softmax_scale, causal, window_size, softcap, s_aux)
    if arguments.is_aligned(given) and cu_seqlens_q is not cu_seqlens_k:
        given["query_offset"] = (cu_seqlens_k.diff() - cu_seqlens_q.diff()).to(cu_seqlens_k.dtype)
    out: Tensor = ours.varlen_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, **given)
    return out


def _options(
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    s_aux: Tensor | None,
) -> dict[str, Any]:
    """Those of `selfattn.flash_attn`, and sinks."""
    given = arguments.options(softmax_scale, causal, window_size, softcap, None, dropout_p)
    return given if s_aux is None else {**given, "sinks": s_aux}
