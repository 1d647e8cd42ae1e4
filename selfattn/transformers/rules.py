"""Rule: which keys a query sees, said by a few numbers and ids, and not by a matrix of bools."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """The options of `selfattn.torch.scaled_dot_product_attention` that say which keys are seen.

    B batch entries, L queries, S keys. A query sees the keys that all of them let it see.

    Parameters
    ----------
    is_causal : bool
        Key j is seen by query i where `j <= i + query_offset`.
    window : (int, int)
        Keys to the left and to the right of position `i + query_offset`, inclusive; -1 for all.
    query_offset : int
        The place of the first query among the keys.
    kv_lengths : int tensor, shape (B,), optional
        The keys from there on are not seen.
    query_ids, key_ids : int tensors, shapes (B, L) and (B, S), optional
        A query sees keys of its own id. Keys of padding have an id that no query has.
    """

    is_causal: bool = False
    window: tuple[int, int] = (-1, -1)
    query_offset: int = 0
    kv_lengths: Tensor | None = None
    query_ids: Tensor | None = None
    key_ids: Tensor | None = None

    @property
    def is_empty(self) -> bool:
        """Whether all keys are seen."""
        return not self.is_causal and self._is_of_positions_alone

    @property
    def is_plainly_causal(self) -> bool:
        """Whether query i sees the keys up to key i."""
        return self.is_causal and self.query_offset == 0 and self._is_of_positions_alone

    @property
    def _is_of_positions_alone(self) -> bool:
        return self.window == (-1, -1) and self.kv_lengths is None and self.query_ids is None

    def options(self) -> dict[str, Any]:
        """The keywords of `selfattn.torch.scaled_dot_product_attention`."""
        given: dict[str, Any] = {"is_causal": self.is_causal, "window_size": self.window}
        if self.is_causal or self.window != (-1, -1):
            given["query_offset"] = self.query_offset
        if self.kv_lengths is not None:
            given["kv_lengths"] = self.kv_lengths
        if self.query_ids is not None:
            given["segment_ids"] = (self.query_ids, self.key_ids)
        return given

    def shortened(self, num_keys: int) -> Rule:
        """The same of the first keys alone."""
        lengths, ids = self.kv_lengths, self.key_ids
        return replace(
            self,
            kv_lengths=None if lengths is None else lengths.clamp(max=num_keys),
            key_ids=None if ids is None else ids[:, :num_keys],
        )

    def dense(self, batch: int, num_queries: int, num_keys: int) -> Tensor:
        """The bools that it stands for, shape (B, 1, L, S); True is seen."""
        at = torch.arange(num_queries)[:, None] + self.query_offset
        keys = torch.arange(num_keys)
        seen = torch.ones(batch, 1, num_queries, num_keys, dtype=torch.bool)
        left, right = self.window
        if self.is_causal:
            seen &= keys <= at
        if left >= 0:
            seen &= keys >= at - left
        if right >= 0:
            seen &= keys <= at + right
        if self.kv_lengths is not None:
            seen &= keys < self.kv_lengths[:, None, None, None]
        if self.query_ids is not None and self.key_ids is not None:
            seen &= (self.query_ids[:, :, None] == self.key_ids[:, None, :])[:, None]
        return seen


def padding(kept: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Bools of keys, shape (B, S), as lengths (B,), or else as ids (B, S), or neither.

    Neither where all are kept; lengths where what is not kept is at the end. Ids are 0 where kept,
    below 0 before the first kept key and above 0 after it: with padding on the left they ascend,
    and the kernels then look at no key of it.
    """
    if bool(kept.all()):
        return None, None
    lengths = kept.sum(-1)
    places = torch.arange(kept.shape[-1])
    if torch.equal(places < lengths[:, None], kept):
        return lengths, None
    is_before = kept.cumsum(-1) == 0
    return None, torch.where(kept, 0, torch.where(is_before, -1, 1))


def joined_ids(first: Any, second: Any) -> Any:
    """Two pairs of ids (queries', keys') as one: equal where both are. Ids are at least 0."""
    if first is None or second is None:
        return second if first is None else first
    step = 1 + max(int(ids.max()) for ids in second)
    return tuple(a * step + b for a, b in zip(first, second, strict=True))


def ids_with_padding(ids: Any, of_padding: Tensor, num_queries: int) -> Any:
    """A pair of ids, or None, and the ids that `padding` gave, as one pair."""
    if ids is None:
        queries = torch.zeros(of_padding.shape[0], num_queries, dtype=torch.int64)
        return queries, of_padding
    queries, keys = ids
    lowest = min(int(queries.min()), int(keys.min())) - 1
    highest = max(int(queries.max()), int(keys.max())) + 1
    outside = torch.where(of_padding < 0, lowest, highest)
    return queries, torch.where(of_padding == 0, keys, outside)
