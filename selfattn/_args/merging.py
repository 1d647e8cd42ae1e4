"""States of attention, stacked or one by one, that fit together; arrays for their results."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import options
from .arrays import array, lse_dtype, same_dtype
from .numbers import integer

Arrays = tuple[np.ndarray, ...]


class Parts(NamedTuple):
    """Arrays of one shape and one layout, one for each state; and what a user knows them as."""

    parts: Arrays
    whole: np.ndarray | Arrays


class States(NamedTuple):
    """Outputs (..., E) and their lse (...), of one layout each."""

    outs: Arrays
    lses: Arrays
    out_shape: tuple[int, ...]
    given: tuple[np.ndarray | Arrays, np.ndarray | Arrays]  # arrays, as they came
    axis: int
    lse_heads_first: bool

    def lse_order(self, lse: np.ndarray) -> np.ndarray:
        """A view with the rows of an lse in the user's order; or back from there."""
        return lse.swapaxes(-1, -2) if self.lse_heads_first else lse

    def new_merged(self) -> tuple[np.ndarray, np.ndarray]:
        """Arrays for out and lse; in memory as those of the first state, if there is one."""
        if self.outs:
            return new_merged(self.outs, self.lses)
        dtypes = [x.dtype for x in self.given if isinstance(x, np.ndarray)]
        return np.empty(self.out_shape, dtypes[0]), np.empty(self.out_shape[:-1], dtypes[1])

    def gradients_of_merged(
        self, grad_out: Any, grad_lse: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Those of out and lse as arrays, the second in the order of out's rows, or None."""
        of_out = array("grad_out", grad_out)
        merged = self.new_merged()
        same_dtype("grad_out", of_out, "outs", merged[0])
        _check_shape("grad_out", of_out, self.out_shape, "merged out")
        if grad_lse is None:
            return of_out, None
        of_lse = array("grad_lse", grad_lse)
        same_dtype("grad_lse", of_lse, "lses", merged[1])
        _check_shape("grad_lse", of_lse, self.lse_order(merged[1]).shape, "merged lse")
        return of_out, self.lse_order(of_lse)

    def new_gradients(self) -> tuple[Parts, Parts]:
        """Arrays for the gradients of outs and lses, as they were given."""
        of_outs, of_lses = (_like(x, self.axis) for x in self.given)
        return of_outs, of_lses._replace(parts=tuple(map(self.lse_order, of_lses.parts)))


def new_merged(outs: Arrays, lses: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Arrays for out and lse, in memory as those of the first state."""
    return np.empty_like(outs[0], subok=False), np.empty_like(lses[0], subok=False)


def states(outs: Any, lses: Any, axis: Any, lse_heads_first: Any) -> States:
    """Those of `merge_states_many`."""
    heads_first = options.flag("lse_heads_first", lse_heads_first)
    outs, lses = _arrays("outs", outs), _arrays("lses", lses)
    axis = _axis(outs, axis)
    out_parts = _parts(outs, axis)
    if isinstance(outs, np.ndarray):
        out_shape, like = outs.shape[:axis] + outs.shape[axis + 1 :], outs
    else:
        out_shape, like = outs[0].shape, outs[0]
        for i, x in enumerate(outs):
            same_dtype(f"outs[{i}]", x, "outs[0]", like)
            _check_shape(f"outs[{i}]", x, out_shape, "outs[0]")
    if len(out_shape) < 1 + 2 * heads_first:
        raise ValueError(
            f"outs: expected {1 + 2 * heads_first} or more axes of each state, got {out_shape}"
        )
    lse_shape = out_shape[:-1]
    if heads_first:
        lse_shape = (*lse_shape[:-2], lse_shape[-1], lse_shape[-2])
    if isinstance(lses, np.ndarray):
        lse_dtype("lses", lses, "outs", like)
        expected = (*lse_shape[:axis], len(out_parts), *lse_shape[axis:])
        _check_shape("lses", lses, expected, f"lse of {len(out_parts)} outs of shape {out_shape}")
    elif len(lses) != len(out_parts):
        raise ValueError(f"lses: expected {len(out_parts)}, one for each of outs, got {len(lses)}")
    else:
        for i, x in enumerate(lses):
            lse_dtype(f"lses[{i}]", x, "outs", like)
            _check_shape(f"lses[{i}]", x, lse_shape, f"lse of an out of shape {out_shape}")
    new = States(out_parts, _parts(lses, axis), out_shape, (outs, lses), axis, heads_first)
    return new._replace(lses=tuple(map(new.lse_order, new.lses)))


def pair_of_states(out_a: Any, lse_a: Any, out_b: Any, lse_b: Any) -> tuple[Arrays, Arrays]:
    """Those of `merge_states`: arrays of one dtype and shape (..., L, E), and the lse, (..., L)."""
    arrays = {
        name: array(name, x)
        for name, x in (("out_a", out_a), ("lse_a", lse_a), ("out_b", out_b), ("lse_b", lse_b))
    }
    out_a = arrays["out_a"]
    if out_a.ndim == 0:
        raise ValueError(f"out_a: expected 1 or more axes, got shape {out_a.shape}")
    for name, x in arrays.items():
        is_lse = name.startswith("lse")
        (lse_dtype if is_lse else same_dtype)(name, x, "out_a", out_a)
        shape = out_a.shape[:-1] if is_lse else out_a.shape
        if x.shape != shape:
            raise ValueError(
                f"{name}: expected shape {shape} where out_a's is {out_a.shape}, got {x.shape}"
            )
    return _alike((out_a, arrays["out_b"])), _alike((arrays["lse_a"], arrays["lse_b"]))


def _arrays(name: str, given: Any) -> np.ndarray | Arrays:
    """Stacked states as one array, a sequence of them as several."""
    if not isinstance(given, (list, tuple)):
        return array(name, given)
    if not given:
        raise ValueError(f"{name}: expected one state or more, got an empty {type(given).__name__}")
    return tuple(array(f"{name}[{i}]", x) for i, x in enumerate(given))


def _axis(outs: np.ndarray | Arrays, axis: Any) -> int:
    """The axis of states, counted from the first."""
    if not isinstance(outs, np.ndarray):
        if integer("axis", axis) != 0:
            raise ValueError(f"axis: expected 0 where outs is a sequence, got {axis}")
        return 0
    if outs.ndim < 2:
        raise ValueError(f"outs: expected 2 or more axes, got shape {outs.shape}")
    place = options.axis("axis", axis, outs)
    if place == outs.ndim - 1:
        raise ValueError(f"axis: expected one before the last of shape {outs.shape}, got {axis}")
    return place


def _parts(given: np.ndarray | Arrays, axis: int) -> Arrays:
    """One array for each state."""
    if not isinstance(given, np.ndarray):
        return _alike(given)
    stacked = np.moveaxis(given, axis, 0)
    return tuple(stacked[i, ...] for i in range(len(stacked)))


def _alike(arrays: Arrays) -> Arrays:
    """The arrays, or copies of them, so that all have the same strides."""
    first = arrays[0].strides
    if all(x.strides == first for x in arrays) or len({_steps(x) for x in arrays}) == 1:
        return arrays
    return tuple(np.ascontiguousarray(x) if x.ndim else x for x in arrays)


def _steps(x: np.ndarray) -> tuple[int, ...]:
    return tuple(step for step, n in zip(x.strides, x.shape, strict=True) if n > 1)


def _like(given: np.ndarray | Arrays, axis: int) -> Parts:
    """New arrays of the shapes and dtypes of those."""
    if isinstance(given, np.ndarray):
        new = np.empty_like(given, subok=False)
        return Parts(_parts(new, axis), new)
    parts = tuple(np.empty(x.shape, x.dtype) for x in given)
    return Parts(parts, parts)


def _check_shape(name: str, x: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if x.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, that of {what}, got {x.shape}")
