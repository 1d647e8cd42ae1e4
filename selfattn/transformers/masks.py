"""The mask function: what transformers asks for the attention mask of a whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from ..torch import eager
from .masktensor import of_rule
from .recognition import Pattern, recognised
from .rules import Rule, ids_with_padding, joined_ids, padding


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    **kwargs: Any,
) -> Any:
    """An entry of transformers' `AttentionMaskInterface`; parameters are those of its `sdpa_mask`.

    Returns
    -------
    None
        Where it may and where there is nothing to say but what the module's `is_causal` says.
    MaskTensor, shape (B, 1, L, S)
        Where causality, windows, chunks, packed sequences and padding say all of it. It holds
        numbers of each batch entry, or of each token, but of no pair of tokens.
    bool tensor, shape (B, 1, L, S)
        `sdpa_mask`'s, for any other function of positions, and inside compilers and tracers.
    """
    pattern = None
    if _is_readable(attention_mask, q_offset, device):
        pattern = recognised(mask_function)
    if pattern is None:
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            local_size=local_size,
            allow_is_causal_skip=allow_is_causal_skip,
            allow_is_bidirectional_skip=allow_is_bidirectional_skip,
            use_vmap=use_vmap,
            device=device,
            **kwargs,
        )
    rule = _rule(pattern, batch_size, q_length, kv_length, int(q_offset), kv_offset, attention_mask)
    if pattern.is_causal:
        may_skip = allow_is_causal_skip and (
            rule.is_plainly_causal or (q_length == 1 and rule.is_empty)
        )
    else:
        may_skip = allow_is_bidirectional_skip and rule.is_empty
    if may_skip:
        return None
    return of_rule(rule, batch_size, q_length, kv_length)


def _is_readable(attention_mask: Any, q_offset: Any, device: Any) -> bool:
    """Whether elements may be looked at: in no compiler and no tracer, and on the CPU."""
    tensors = [x for x in (attention_mask, q_offset) if isinstance(x, torch.Tensor)]
    return (
        not torch.compiler.is_compiling()
        and eager.is_plain(*tensors)
        and torch.device(device).type == "cpu"
        and all(x.is_cpu for x in tensors)
    )


def _rule(
    pattern: Pattern,
    batch: int,
    num_queries: int,
    num_keys: int,
    q_offset: int,
    kv_offset: int,
    attention_mask: Tensor | None,
) -> Rule:
    """The rule of a pattern and of the padding, without what changes nothing."""
    offset = q_offset - kv_offset
    left, right = pattern.window
    last = offset + num_queries - 1  # the place of the last query among the keys
    if last <= left:
        left = -1
    if offset + right >= num_keys - 1:
        right = -1
    is_causal = pattern.is_causal and offset < num_keys - 1
    lengths = None
    ids = _sequences(pattern, batch)
    ids = joined_ids(ids, _chunks(pattern, batch, num_queries, num_keys, q_offset, kv_offset))
    if attention_mask is not None:
        lengths, of_padding = padding(_kept(attention_mask, num_keys, kv_offset))
        if of_padding is not None:
            ids = ids_with_padding(ids, of_padding, num_queries)
    query_ids, key_ids = ids or (None, None)
    is_placed = is_causal or (left, right) != (-1, -1)
    return Rule(is_causal, (left, right), offset * is_placed, lengths, query_ids, key_ids)


def _kept(attention_mask: Tensor, num_keys: int, kv_offset: int) -> Tensor:
    """The bools of the keys that are there, (B, S), of those of all tokens; the rest are False."""
    kept = attention_mask[:, kv_offset : kv_offset + num_keys].bool()
    missing = num_keys - kept.shape[-1]
    return torch.nn.functional.pad(kept, (0, missing)) if missing > 0 else kept


def _sequences(pattern: Pattern, batch: int) -> Any:
    """The ids of packed sequences, of queries and of keys, which are the same tokens."""
    if pattern.sequences is None:
        return None
    ids = pattern.sequences.expand(batch, -1)
    return ids, ids


def _chunks(
    pattern: Pattern, batch: int, num_queries: int, num_keys: int, q_offset: int, kv_offset: int
) -> Any:
    """The ids of chunks, of queries and of keys; at least 0."""
    if pattern.chunk_size is None or pattern.left_padding is None:
        return None
    if pattern.positions is None:
        places = (
            (torch.arange(num_queries) + q_offset).expand(batch, -1),
            (torch.arange(num_keys) + kv_offset).expand(batch, -1),
        )
    else:
        positions = pattern.positions.expand(batch, -1)
        places = positions, positions
    start = pattern.left_padding[:, None]
    # Before the start a chunk's number is below 0.
    before = 1 + int(start.max()) // pattern.chunk_size
    queries, keys = ((x - start) // pattern.chunk_size + before for x in places)
    return queries, keys
