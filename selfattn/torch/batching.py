"""What torch.func.vmap makes of an operator: one call whose leading axes have one more in front.

An input that is not mapped is expanded, with a stride of 0, so that its gradient is one for each
entry, as vmap asks. What one call cannot hold is done in one call for each entry (`looped`): sinks
of each entry, or their gradient; a seed of each entry; packed sequences; a weight of each entry, or
its gradient.

A rule is called with the place of the mapped axis in each argument, or None, and returns results
and the places in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import options

Results = tuple[Any, Any]
Rule = Callable[..., Results]

_operators: Any = torch.ops.selfattn


def in_front(x: Any, dim: int | None, n: int) -> Any:
    """`x` with the mapped axis first; expanded to `n` entries where there is none."""
    return x.unsqueeze(0).expand(n, *x.shape) if dim is None else x.movedim(dim, 0)


def padded(x: Any, rank: int) -> Any:
    """`x` with axes of 1 after its first, so that it has 1 + rank of them."""
    return x[(slice(None), *[None] * (rank + 1 - x.dim()))]


def unpadded(x: Any, rank: int) -> Any:
    """The inverse, to 1 + rank axes."""
    return x[(slice(None), *[0] * (x.dim() - 1 - rank))]


def looped(operator: Any, info: Any, in_dims: Any, arguments: Any) -> Results:
    """One call for each entry."""
    entries = []
    for i in range(info.batch_size):
        chosen = [
            x if dim is None else x.select(dim, i)
            for x, dim in zip(arguments, in_dims, strict=True)
        ]
        entries.append(operator(*chosen))
    if isinstance(entries[0], torch.Tensor):
        return torch.stack(entries), 0
    stacked = tuple(torch.stack(results) for results in zip(*entries, strict=True))
    return stacked, (0,) * len(stacked)


def _rank(x: Any, dim: int | None) -> int:
    return int(x.dim()) - (dim is not None)


def _options(given: Any, dims: Any, n: int, rank: int, wanted: Any = ()) -> tuple[Any, ...]:
    """Options of entries whose queries, keys and values have `rank` axes.

    Those whose gradients are `wanted`, by their names, are given to each entry.
    """
    ranks = {  # of each option of which there may be one for each entry
        "attn_mask": rank,
        "attn_bias": rank,
        "query_offsets": rank - 3,
        "query_lengths": rank - 3,
        "kv_starts": rank - 3,
        "kv_lengths": rank - 3,
        "alibi_slopes": rank - 2,
        "query_segments": rank - 2,
        "key_segments": rank - 2,
    }
    values = []
    for name, x, dim in zip(options.NAMES, given, dims, strict=True):
        is_mapped = dim is not None or name in wanted
        values.append(padded(in_front(x, dim, n), ranks[name]) if is_mapped else x)
    return tuple(values)


def _filled(given: Any, dims: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """All options and all dims, of those that the dispatcher passed on."""
    return options.filled(given), (*dims, *[None] * (len(options.NAMES) - len(dims)))


def _needs_a_loop(dims: Any) -> bool:
    return dims[options.SINKS] is not None or dims[options.SEEDS] is not None


def attention(info: Any, in_dims: Any, *arguments: Any) -> Results:
    n = info.batch_size
    given, dims = _filled(arguments[3:], in_dims[3:])
    if _needs_a_loop(dims):
        return looped(_operators.attention.default, info, in_dims, arguments)
    operands = list(zip(arguments[:3], in_dims[:3], strict=True))
    most = max(_rank(x, dim) for x, dim in operands)
    rank = max(3, most)
    results = _operators.attention.default(
        *(padded(in_front(x, dim, n), rank) for x, dim in operands),
        *_options(given, dims, n, rank),
    )
    if most == 2:  # one head, without an axis for it
        results = tuple(x[:, 0] for x in results)
    return results, (0, 0)


def attention_backward(info: Any, in_dims: Any, *arguments: Any) -> Results:
    n = info.batch_size
    grad_lse, mask_grad, sinks_grad, bias_grad = arguments[6:10]
    given, dims = _filled(arguments[10:], in_dims[10:])
    is_wanted = {options.MASK: mask_grad, options.BIAS: bias_grad}
    if sinks_grad or _needs_a_loop(dims):
        return looped(_operators.attention_backward.default, info, in_dims, arguments)
    tensors = list(zip(arguments[:6], in_dims[:6], strict=True))
    ranks = [_rank(x, dim) for x, dim in tensors]
    rank = max(3, *ranks[1:4])
    *folded, lse = (in_front(x, dim, n) for x, dim in tensors)
    if grad_lse is not None:
        grad_lse = padded(in_front(grad_lse, in_dims[6], n), rank - 1)
    found = _operators.attention_backward.default(
        *(padded(x, rank) for x in folded),
        padded(lse, rank - 1),
        *(grad_lse, mask_grad, sinks_grad, bias_grad),
        *_options(given, dims, n, rank, [options.NAMES[i] for i, x in is_wanted.items() if x]),
    )
    of_inputs = tuple(unpadded(x, r) for x, r in zip(found[:3], ranks[1:4], strict=True))
    of_mask, of_bias = (
        unpadded(x, _rank(given[i], dims[i])) if is_wanted[i] else x
        for x, i in ((found[3], options.MASK), (found[5], options.BIAS))
    )
    places = (0 if mask_grad else None, None, 0 if bias_grad else None)
    return (*of_inputs, of_mask, found[4], of_bias), (0, 0, 0, *places)


def varlen(info: Any, in_dims: Any, *arguments: Any) -> Results:
    return looped(_operators.varlen.default, info, in_dims, arguments)


def varlen_backward(info: Any, in_dims: Any, *arguments: Any) -> Results:
    return looped(_operators.varlen_backward.default, info, in_dims, arguments)


def linear(info: Any, in_dims: Any, *arguments: Any) -> Results:
    if any(dim is not None for dim in in_dims[1:]):
        return looped(_operators.linear.default, info, in_dims, arguments)
    x, *others = arguments
    return _operators.linear.default(x.movedim(in_dims[0], 0), *others), 0


def linear_backward(info: Any, in_dims: Any, *arguments: Any) -> Results:
    grad_out, x, weight, x_grad, weight_grad, bias_grad, *others = arguments
    if weight_grad or bias_grad or in_dims[2] is not None:
        return looped(_operators.linear_backward.default, info, in_dims, arguments)
    grad_out, x = (
        in_front(y, dim, info.batch_size) for y, dim in zip((grad_out, x), in_dims, strict=False)
    )
    found = _operators.linear_backward.default(grad_out, x, weight, x_grad, False, False, *others)
    return found, (0 if x_grad else None, None, None)
