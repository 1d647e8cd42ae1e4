"""What a row is: a shape, what is counted on it, and arrays with fixed seeds.

    forward     4 B Hq L S E operations, half of them if causal      of the FMA peak
    decode      (one query) the bytes of K and V                     of the memory read loop
    backward    2.5 times the forward's; with the forward, 3.5       of the FMA peak
    softmax     the bytes read and written                           of the memory read loop
    linear      2 rows n_in n_out; of a single row the weight's bytes, of the read loop
    cache       the bytes that K and V take in it                    of the memory read loop

The tables of rows are in shapes.py.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, replace

import numpy as np

HALF = ("float16", "bfloat16")


def numpy_dtype(name):
    """NumPy's dtype of that name; its bfloat16 is ml_dtypes'."""
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def normal(rng, shape, dtype):
    """N(0, 1) of that dtype; NumPy draws float32 and float64 themselves, without a second copy."""
    if dtype in HALF:
        return rng.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(dtype))
    return rng.standard_normal(shape, dtype=dtype)


@dataclass(frozen=True)
class Row:
    """One shape of scaled_dot_product_attention."""

    name: str
    batch: int
    num_heads_q: int
    num_heads_kv: int
    seqlen_q: int
    seqlen_k: int
    head_dim: int
    is_causal: bool = False
    dtype: str = "float32"
    query_offset: int = 0  # of a causal row
    layout: str = "BHSD"  # in memory; or "BSHD", of which the arrays are views

    task = "attention"

    def __str__(self):
        kv = f"/{self.num_heads_kv}" if self.is_gqa else ""
        notes = (", causal" if self.is_causal else "") + (
            f" from {self.query_offset}" if self.query_offset else ""
        )
        notes += f", {self.dtype}" if self.dtype != "float32" else ""
        notes += f", {self.layout}" if self.layout != "BHSD" else ""
        return (
            f"{self.name}: {self.batch}, {self.num_heads_q}{kv}, "
            f"{self.seqlen_q}×{self.seqlen_k}, {self.head_dim}{notes}"
        )

    @property
    def is_gqa(self):
        """Several query heads share a key head."""
        return self.num_heads_q != self.num_heads_kv

    @property
    def unit(self):
        """What `amount` counts: "GF" (operations) or, with a single query, "GB" (bytes)."""
        return "GB" if self.seqlen_q == 1 else "GF"

    @property
    def amount(self):
        """Operations, or bytes of K and V, in one call."""
        return self.kv_bytes if self.unit == "GB" else self.flops

    @property
    def num_scores(self):
        """Elements of the score matrices, B Hq L S: what a kernel that is not fused stores."""
        return self.batch * self.num_heads_q * self.seqlen_q * self.seqlen_k

    @property
    def flops(self):
        """4 B Hq L S E, by convention half of it where half of the scores are masked."""
        if self.query_offset:
            visible = self.seqlen_q * self.query_offset + self.seqlen_q * self.seqlen_q // 2
            return 4 * self.batch * self.num_heads_q * visible * self.head_dim
        return 4 * self.num_scores * self.head_dim // (2 if self.is_causal else 1)

    @property
    def kv_bytes(self):
        """Bytes of key and value together."""
        kv_elements = self.batch * self.num_heads_kv * self.seqlen_k * self.head_dim
        return 2 * kv_elements * numpy_dtype(self.dtype).itemsize

    def arrays(self, copy=0):
        """(query, key, value), N(0, 1), C-contiguous (batch, heads, positions, head_dim).

        Another `copy` has other numbers in other memory.
        """
        rng = np.random.default_rng([copy, self.seqlen_q, self.seqlen_k, self.head_dim])
        shapes = (
            (self.batch, self.num_heads_q, self.seqlen_q, self.head_dim),
            (self.batch, self.num_heads_kv, self.seqlen_k, self.head_dim),
            (self.batch, self.num_heads_kv, self.seqlen_k, self.head_dim),
        )
        if self.layout == "BSHD":
            swapped = ((b, n, h, e) for b, h, n, e in shapes)
            return tuple(normal(rng, shape, self.dtype).swapaxes(1, 2) for shape in swapped)
        return tuple(normal(rng, shape, self.dtype) for shape in shapes)


@dataclass(frozen=True)
class BackwardRow(Row):
    """One shape of the gradients: of the backward alone, or of forward and backward together."""

    with_forward: bool = False

    task = "backward"
    # A single query, too, is held against the operations: most of the bytes are written, not read.
    unit = "GF"

    def __str__(self):
        return super().__str__() + (", forward + backward" if self.with_forward else ", backward")

    @property
    def flops(self):
        """By convention 2.5 times the forward's: five products where the forward has two."""
        return super().flops * (7 if self.with_forward else 5) // 2

    def arrays(self, copy=0):
        """(query, key, value, grad_out), the last of the output's shape."""
        query, key, value = super().arrays(copy)
        rng = np.random.default_rng([copy, *query.shape])
        return query, key, value, normal(rng, query.shape, self.dtype)


@dataclass(frozen=True)
class CacheRow(Row):
    """One position of a sequence attends to a cache that holds seqlen_k of them.

    `dtype` is what the cache stores: its rows are of it, or float32 which it stores as int8.
    """

    task = "cache"

    @property
    def kv_bytes(self):
        """Bytes of key and value together; of int8 each row has a float32 scale too."""
        if self.dtype != "int8":
            return super().kv_bytes
        rows = 2 * self.batch * self.num_heads_kv * self.seqlen_k
        return rows * (self.head_dim + 4)

    def arrays(self, copy=0):
        """(query, key, value), what the cache is to hold."""
        given = replace(self, dtype="float32") if self.dtype == "int8" else self
        return super(CacheRow, given).arrays(copy)


@dataclass(frozen=True)
class SoftmaxRow:
    """One shape of softmax along the last axis, into a given output."""

    name: str
    num_rows: int
    length: int
    dtype: str = "float32"

    task = "softmax"
    unit = "GB"

    def __str__(self):
        note = f", {self.dtype}" if self.dtype != "float32" else ""
        return f"{self.name}: {self.num_rows}×{self.length}{note}"

    @property
    def amount(self):
        """Bytes read and written by one call."""
        return 2 * self.num_rows * self.length * numpy_dtype(self.dtype).itemsize

    def arrays(self, copy=0):
        """(x, out): N(0, 1), and an output whose pages have been touched."""
        rng = np.random.default_rng([copy, self.num_rows, self.length])
        x = normal(rng, (self.num_rows, self.length), self.dtype)
        return x, np.zeros_like(x)


@dataclass(frozen=True)
class LinearRow:
    """One shape of a projection: rows of x by a weight (n_out, n_in), into a given output."""

    name: str
    num_rows: int
    n_in: int
    n_out: int
    dtype: str = "float32"
    is_transposed: bool = False  # the weight is Fortran-contiguous

    task = "linear"

    def __str__(self):
        notes = ", transposed" if self.is_transposed else ""
        notes += f", {self.dtype}" if self.dtype != "float32" else ""
        return f"{self.name}: {self.num_rows}×{self.n_in}→{self.n_out}{notes}"

    @property
    def unit(self):
        """What `amount` counts: "GF" (operations) or, with a single row, "GB" (bytes)."""
        return "GB" if self.num_rows == 1 else "GF"

    @property
    def amount(self):
        """Operations, or bytes of the weight, in one call."""
        if self.unit == "GB":
            return self.n_in * self.n_out * numpy_dtype(self.dtype).itemsize
        return 2 * self.num_rows * self.n_in * self.n_out

    def arrays(self, copy=0):
        """(x, weight, out): N(0, 1), and an output whose pages have been touched."""
        rng = np.random.default_rng([copy, self.num_rows, self.n_in, self.n_out])
        x = normal(rng, (self.num_rows, self.n_in), self.dtype)
        weight = normal(rng, (self.n_out, self.n_in), self.dtype)
        if self.is_transposed:
            weight = np.asfortranarray(weight)
        return x, weight, np.zeros((self.num_rows, self.n_out), x.dtype)


def backward_of(*shapes):
    """Two rows of each shape: the backward alone, then with the forward."""
    return tuple(
        BackwardRow(**{**asdict(shape), "name": shape.name + suffix}, with_forward=bool(suffix))
        for shape in shapes
        for suffix in ("", "+forward")
    )
