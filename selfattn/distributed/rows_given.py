"""What the backward pass is given of this rank's rows, checked; and problems of some of them.

Made by `backward.py` before data moves; its files that sum gradients ask for parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _args
from .._core import AttentionProblem
from .layout import along
from .problem import RingProblem, has_rows
from .ring import Arrays


class RowsGiven:
    """This rank's rows: query, grad_out, out, lse and, where there is one, grad_lse.

    Attributes
    ----------
    arrays
        The rows, as they were given.
    state
        Each row's maximum and sum over all keys, where some row's cannot be had from its lse.
    masks, sinks
        Where the gradients of mask and bias go, by name, those that are asked for; and whether.
    asked_for, words
        What must be the same on all ranks; what they tell one another.
    """

    def __init__(
        self,
        problem: RingProblem,
        given: tuple[Any, Any, Any, Any],
        wanted: _args.Wanted,
        num_threads: int | None,
    ) -> None:
        self.threads = _args.num_threads(num_threads)
        query, key, value = problem.query, problem.key, problem.value
        batch = {x.shape[:-3] for x in (query, key, value)}
        heads = [x.shape[-3] if x.ndim > 2 else 1 for x in (query, key, value)]
        if len(batch) > 1 or heads[1] != heads[2] or heads[0] < heads[1]:
            raise ValueError(
                "key: expected, with value, query's axes before the heads and no more heads, got "
                f"query {query.shape}, key {key.shape}, value {value.shape}"
            )
        grad_out, out, lse, grad_lse = given
        local = _args.attention_problem(query, key, value, problem.options["enable_gqa"])
        inputs = _args.backward_inputs(local, local.out_shape, grad_out, out, lse)
        of_lse = _args.lse_gradient(local, grad_lse)
        self.arrays: Arrays = [query, *inputs, *([] if of_lse is None else [of_lse])]
        self.real = _args.real_dtype(query.dtype)
        self.state: np.ndarray | None = None
        of_mask, of_sinks, of_bias = _args.option_gradients(self.real, wanted)
        self.masks = {
            name: x for name, x in (("attn_mask", of_mask), ("attn_bias", of_bias)) if x is not None
        }
        for name, flag in (("attn_mask", "mask_grad"), ("attn_bias", "bias_grad")):
            if name in self.masks:
                _check_rows_and_columns(flag, self.masks[name], query.shape[-2], problem.seqlen_k)
        self._has_grad_lse = of_lse is not None
        self.asked_for = {
            "grad_lse": self._has_grad_lse,
            "mask_grad": of_mask is not None,
            "bias_grad": of_bias is not None,
            "sinks_grad": of_sinks is not None,
        }
        self.words = {
            "needs_states": self._has_large_lse() or problem.options["sinks"] is not None,
            "masks_of_rows": [name for name, mask in problem.masks().items() if has_rows(mask)],
        }

    def _has_large_lse(self) -> bool:
        """Whether weights of some row may not be taken from its lse (gradient_rows.inc.h)."""
        lse = np.asarray(self.arrays[3])
        is_usable = np.abs(lse) < (32 if self.real.itemsize == 4 else 256)
        return not is_usable.all()

    # ------------------------------------------------------------------ parts

    def in_reals(self, x: np.ndarray) -> np.ndarray:
        return x if x.dtype == self.real else x.astype(self.real)

    def part(self, x: np.ndarray, axis: int, span: tuple[int, int]) -> np.ndarray:
        """Positions [begin, end) of an array of this rank's, in reals."""
        return self.in_reals(x[along(x.ndim, axis, span)])

    def parts(self, span: tuple[int, int]) -> tuple[Arrays, np.ndarray | None]:
        """Rows [begin, end) of this rank's arrays, in reals, and of their state."""
        rows = [self.part(x, -2, span) for x in self.arrays[:3]]
        rows += [self.part(x, -1, span) for x in self.arrays[3:]]
        return rows, None if self.state is None else self.part(self.state, -2, span)

    def given(self, rows: Arrays, state: np.ndarray | None) -> tuple[np.ndarray | None, ...]:
        """What `_core` is given of rows in reals: grad_out, out, lse, grad_lse and the state."""
        return (*rows[1:4], rows[4] if self._has_grad_lse else None, state)

    def problem_of(
        self,
        query: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        options: dict[str, Any],
        first: tuple[int, int],
    ) -> AttentionProblem:
        """That of some rows and some keys; `first` is of each the position in the whole."""
        options = options | {"query_offset": options["query_offset"] - first[1]}
        for name in ("attn_mask", "attn_bias", "alibi_slopes", "sinks"):
            x = options.get(name)
            if x is not None and np.asarray(x).dtype != bool:
                options[name] = self.in_reals(np.asarray(x))
        problem = _args.attention_problem(query, key, value, **options)
        problem.set_place(*first)
        return problem


def _check_rows_and_columns(flag: str, mask: np.ndarray, seqlen_q: int, seqlen_k: int) -> None:
    if mask.shape[-2:] != (seqlen_q, seqlen_k):
        raise ValueError(
            f"{flag}: expected one of shape (..., {seqlen_q}, {seqlen_k}), this rank's queries by "
            f"the keys of all ranks, got {mask.shape}; give np.broadcast_to of it, and sum the "
            "gradient"
        )
