"""Shapes that broadcast: what several have in common, and a view of an array in a larger one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all broadcast to, a tuple; ValueError where there is none.

    `np.broadcast_shapes` knows 32 axes, of the 64 that arrays may have, and under torch.compile
    returns another kind of tuple.
    """
    axes = max([0, *map(len, shapes)])
    padded = [(1,) * (axes - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(_common(lengths) for lengths in zip(*padded, strict=True))


def _common(lengths: tuple[int, ...]) -> int:
    """The one length that is not 1, if there is any."""
    others = set(lengths) - {1}
    if len(others) > 1:
        raise ValueError(f"lengths {lengths} of one axis do not broadcast")
    return others.pop() if others else 1


def unrepeated(x: np.ndarray) -> np.ndarray:
    """What a broadcast view has of its array: nothing twice."""
    return x[tuple(slice(None) if stride else slice(0, 1) for stride in x.strides)]


def broadcast(
    name: str,
    x: np.ndarray,
    shape: tuple[int, ...],
    what: str,
    last: bool = False,
    hint: Callable[[tuple[int, ...]], str] | None = None,
) -> np.ndarray:
    """A view of `shape`; with `last`, the last axis of `x` must be there and must not stretch.

    A `hint` is asked, with x's shape, what the error should add.
    """
    if x.shape == shape:
        return x
    try:
        if last and (x.ndim == 0 or x.shape[-1] != shape[-1]):
            raise ValueError
        return np.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(
            f"{name}: expected a shape that broadcasts to {what}, {shape}, got {x.shape}"
            f"{hint(x.shape) if hint else ''}"
        ) from None
