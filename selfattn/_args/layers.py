"""Layers: their sizes, dtype and seed, what goes into them, the weights that are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import EXPECTED, array, as_array, is_dtype
from .foreign import numbers_of
from .hints import of_keyword
from .numbers import size
from .shapes import broadcast_shapes

_MAX_AXES = 63  # of the 64 that NumPy has: what is projected has one more, the heads


def layer_sizes(
    embed_dim: Any, num_heads: Any, num_heads_kv: Any, kdim: Any, vdim: Any
) -> tuple[int, int, int, int, int]:
    """The five as ints that fit together; what is None is as without the option."""
    embed_dim, num_heads = size("embed_dim", embed_dim), size("num_heads", num_heads)
    if embed_dim % num_heads:
        raise ValueError(
            f"num_heads: expected a number that divides embed_dim, {embed_dim}, got {num_heads}"
        )
    num_heads_kv = num_heads if num_heads_kv is None else size("num_heads_kv", num_heads_kv)
    if num_heads % num_heads_kv:
        raise ValueError(
            f"num_heads_kv: expected a number that divides num_heads, {num_heads}, got "
            f"{num_heads_kv}"
        )
    kdim = embed_dim if kdim is None else size("kdim", kdim)
    vdim = embed_dim if vdim is None else size("vdim", vdim)
    return embed_dim, num_heads, num_heads_kv, kdim, vdim


def layer_dtype(dtype: Any) -> np.dtype:
    """One of the dtypes that arrays may have."""
    try:
        found: np.dtype | None = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not is_dtype(found):
        raise TypeError(f"dtype: expected {EXPECTED}, got {dtype!r}")
    return found


def layer_rng(name: str, seed: Any) -> np.random.Generator:
    """A generator of random numbers."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected what default_rng takes, got {seed!r}") from error


def layer_input(name: str, x: Any, width: int, dtype: np.dtype) -> np.ndarray:
    """An array (..., rows, width) of the layer's dtype."""
    rows = array(name, x)
    if rows.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, the layer's dtype, got {rows.dtype}")
    if rows.ndim < 2 or rows.shape[-1] != width:
        raise ValueError(f"{name}: expected shape (..., rows, {width}), got {rows.shape}")
    if rows.ndim > _MAX_AXES:
        raise ValueError(f"{name}: expected up to {_MAX_AXES} axes, got {rows.ndim}")
    return rows


def layer_inputs(
    x: Any, context: Any, widths: tuple[int, int, int], dtype: np.dtype
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], int]:
    """What query, key and value come from, and as how many arrays: x alone, a context, a pair."""
    width, kdim, vdim = widths
    x = layer_input("x", x, width, dtype)
    if context is None:
        context, count = (x, x), 1
    elif isinstance(context, (tuple, list)):
        count = 3
        if len(context) != 2:
            raise ValueError(f"context: expected an array or a pair, got {len(context)} of them")
    else:
        context, count = (context, context), 2
    if count < 3 and (kdim != vdim or (count == 1 and kdim != width)):
        raise ValueError(
            f"context: expected a pair of arrays (..., rows, {kdim}) and (..., rows, {vdim}), got "
            f"{'none' if count == 1 else 'one array'}"
        )
    names = ("context[0]", "context[1]") if count == 3 else ("context", "context")
    of_key = layer_input(names[0], context[0], kdim, dtype)
    of_value = of_key if count < 3 else layer_input(names[1], context[1], vdim, dtype)
    if of_key.shape[-2] != of_value.shape[-2]:
        raise ValueError(
            f"context: expected a pair of as many rows, got {of_key.shape[-2]} and "
            f"{of_value.shape[-2]}"
        )
    return (x, of_key, of_value), count


def layer_leading(x: np.ndarray, *contexts: np.ndarray) -> tuple[int, ...]:
    """The broadcast of all axes before the rows."""
    leading = x.shape[:-2]
    for context in contexts:
        try:
            leading = broadcast_shapes(leading, context.shape[:-2])
        except ValueError:
            raise ValueError(
                f"context: expected leading axes that broadcast with {leading}, got "
                f"{context.shape[:-2]}"
            ) from None
    return leading


def layer_options(what: str, options: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Keywords of another function, by name; those that it has not are refused."""
    if not isinstance(options, Mapping):
        raise TypeError(f"{what}: expected a mapping, got {type(options).__name__}")
    for name in options:
        if name not in names:
            raise TypeError(
                f"{what}: expected options among {', '.join(names)}, got {name!r}{of_keyword(name)}"
            )
    return dict(options)


def layer_state(
    state: Any, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype
) -> dict[str, np.ndarray]:
    """The arrays of `state` by name: just those of `shapes`, each of its shape, as new floats.

    New, because a state may hold the arrays that it is going to be written to.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping of arrays, got {type(state).__name__}")
    missing = [name for name in shapes if name not in state]
    beyond = [name for name in state if name not in shapes]
    if missing or beyond:
        parts = [
            f"{word} {', '.join(map(str, names))}"
            for word, names in (("lacking", missing), ("with", beyond))
            if names
        ]
        raise ValueError(f"state: expected {', '.join(shapes)}, got one {' and '.join(parts)}")
    arrays = {}
    for name, shape in shapes.items():
        x = as_array(name, numbers_of(state[name]))
        if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
            raise TypeError(f"{name}: expected floats, got {x.dtype!r}")
        if x.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {x.shape}")
        with np.errstate(over="ignore"):
            arrays[name] = x.astype(dtype)
        if (np.isinf(arrays[name]) & np.isfinite(x)).any():
            raise ValueError(f"{name}: expected numbers that {dtype} can hold, got larger ones")
    return arrays
