"""The projections of a layer: where their weights stand under torch's names, forward, backward.

    y = x W' + b        dx = dy W        dW = dy' x        db = sum of dy over the rows

Query, key and value come from one packed matrix, `in_proj_weight`, whose rows are those of the
query, then the key's, then the value's; from three where keys or values have a width of their own.
Called by `multihead.py`; the products are those of `linear.py` and its gradients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .. import _core
from ..linear import project

_APART = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layout:
    """Which parameters a layer has, and which rows of them project to query, key and value."""

    embed_dim: int
    kv_dim: int
    kdim: int
    vdim: int
    bias: bool

    @property
    def is_packed(self) -> bool:
        return self.kdim == self.vdim == self.embed_dim

    @property
    def rows(self) -> tuple[slice, slice, slice]:
        """Those of query, key and value in what is packed, the bias always."""
        ends = (self.embed_dim, self.embed_dim + self.kv_dim, self.embed_dim + 2 * self.kv_dim)
        return slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2])

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, in the order of torch's `state_dict`."""
        total = self.rows[-1].stop
        shapes: dict[str, tuple[int, ...]]
        if self.is_packed:
            shapes = {"in_proj_weight": (total, self.embed_dim)}
        else:
            heights = (self.embed_dim, self.kv_dim, self.kv_dim)
            widths = (self.embed_dim, self.kdim, self.vdim)
            shapes = dict(zip(_APART, zip(heights, widths, strict=True), strict=True))
        if self.bias:
            shapes["in_proj_bias"] = (total,)
        shapes["out_proj.weight"] = (self.embed_dim, self.embed_dim)
        if self.bias:
            shapes["out_proj.bias"] = (self.embed_dim,)
        return shapes

    def initial(self, rng: np.random.Generator, dtype: np.dtype) -> dict[str, np.ndarray]:
        """Parameters drawn as torch draws them: uniform within bounds of the sizes, biases 0."""
        params = {}
        for name, shape in self.shapes.items():
            if len(shape) == 1:
                params[name] = np.zeros(shape, dtype)
                continue
            is_out = name == "out_proj.weight"
            bound = 1 / math.sqrt(shape[1]) if is_out else math.sqrt(6 / sum(shape))
            params[name] = rng.uniform(-bound, bound, shape).astype(dtype)
        return params

    def of_inputs(
        self, arrays: dict[str, np.ndarray]
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Views of the weight and the bias (or None) of query, key and value."""
        if self.is_packed:
            weights = [arrays["in_proj_weight"][rows] for rows in self.rows]
        else:
            weights = [arrays[name] for name in _APART]
        biases = [arrays["in_proj_bias"][rows] if self.bias else None for rows in self.rows]
        return list(zip(weights, biases, strict=True))

    def of_output(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """The weight and the bias (or None) of the output."""
        return arrays["out_proj.weight"], arrays.get("out_proj.bias")

    def project(
        self, inputs: tuple[np.ndarray, ...], params: dict[str, np.ndarray], num_threads: int | None
    ) -> list[np.ndarray]:
        """Query, key and value rows of three inputs, or query and key rows of two.

        One product where the inputs are one array.
        """
        x, *others = inputs
        count = len(inputs)
        if self.is_packed and all(other is x for other in others):
            in_use = slice(0, self.rows[count - 1].stop)
            bias = params["in_proj_bias"][in_use] if self.bias else None
            y = project(x, params["in_proj_weight"][in_use], bias, num_threads=num_threads)
            return [y[..., rows] for rows in self.rows[:count]]
        return [
            project(x, weight, bias, num_threads=num_threads)
            for x, (weight, bias) in zip(inputs, self.of_inputs(params)[:count], strict=True)
        ]


def grad_of_input(grad_y: np.ndarray, weight: np.ndarray, num_threads: int) -> np.ndarray:
    """dx of the formulas above."""
    grad_x = np.empty((*grad_y.shape[:-1], weight.shape[1]), grad_y.dtype)
    _core.project_backward(grad_y, grad_x, weight, grad_x, None, None, num_threads)
    return grad_x


def write_grads(
    grad_y: np.ndarray,
    x: np.ndarray,
    grad_weight: np.ndarray,
    grad_bias: np.ndarray | None,
    num_threads: int,
) -> None:
    """dW, and db where it is not None, are written.

    A row whose gradient is all 0, as that of a masked key, adds nothing, whatever x holds there.
    """
    _core.project_backward(grad_y, x, grad_weight, None, grad_weight, grad_bias, num_threads)
