"""The four steps of self-attention on an example, each computed alone, then all fused in one call.

    1  query, key, value = project(x)
    2  scores  = query @ key.T / sqrt(d_k)
    3  weights = softmax(scores)             what heat maps show
    4  out     = weights @ value             the fused call gives the same without steps 2 and 3

Every result is compared with the NumPy reference, which computes the whole chain in float64.
Called by `__init__.py`; `show.py` shows what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import selfattn
from selfattn import reference

from .example import Example
from .measure import largest_difference, median_seconds


@dataclass(frozen=True)
class Walk:
    """The result of every step; differences from the reference have the same names."""

    example: Example
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    out: np.ndarray
    fused: np.ndarray
    differences: dict[str, float]
    seconds: float
    calls: int


def walk(example: Example) -> Walk:
    """Take the steps, then the fused call, and time that."""
    steps = _steps(selfattn, example, np.float32)
    truth = _steps(reference, example, np.float64)
    q, k, v = steps["query"], steps["key"], steps["value"]
    seconds, calls = median_seconds(lambda: selfattn.scaled_dot_product_attention(q, k, v))
    differences = {name: largest_difference(steps[name], truth[name]) for name in truth}
    return Walk(example, **steps, differences=differences, seconds=seconds, calls=calls)


def _steps(module, example: Example, dtype) -> dict[str, np.ndarray]:
    """Every step by the functions of `module`: selfattn or its reference, which share names."""
    x = example.x.astype(dtype)
    query, key, value = (
        module.project(x, weight.astype(dtype), bias.astype(dtype))
        for weight, bias in (example.weights.query, example.weights.key, example.weights.value)
    )
    scores = module.scaled_dot_product(query, key)
    weights = module.softmax(scores)
    return {
        "query": query,
        "key": key,
        "value": value,
        "scores": scores,
        "weights": weights,
        "out": module.weighted_sum(weights, value),
        "fused": module.scaled_dot_product_attention(query, key, value),
    }
