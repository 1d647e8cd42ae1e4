"""Projections: rows, a matrix and a bias that fit together."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import array, same_dtype


def projection(
    x: Any, weight: Any, bias: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, tuple[int, ...]]:
    """The three as arrays, the last one or None, and the shape of the result."""
    rows, matrix = array("x", x), array("weight", weight)
    same_dtype("weight", matrix, "x", rows)
    if rows.ndim < 1:
        raise ValueError(f"x: expected 1 or more axes, got shape {rows.shape}")
    if matrix.ndim != 2 or matrix.shape[1] != rows.shape[-1]:
        raise ValueError(f"weight: expected shape (n_out, {rows.shape[-1]}), got {matrix.shape}")
    shape = (*rows.shape[:-1], len(matrix))
    if bias is None:
        return rows, matrix, None, shape
    offset = array("bias", bias)
    same_dtype("bias", offset, "x", rows)
    if offset.shape != matrix.shape[:1]:
        raise ValueError(f"bias: expected shape {matrix.shape[:1]}, got {offset.shape}")
    return rows, matrix, offset, shape


def gradient_of(name: str, x: Any, shape: tuple[int, ...], like: np.ndarray) -> np.ndarray:
    """The gradient of a result of that shape and of like's dtype, as an array."""
    grad = array(name, x)
    same_dtype(name, grad, "x", like)
    if grad.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {grad.shape}")
    return grad
