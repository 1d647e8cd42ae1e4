"""The contestants: selfattn, NumPy, selfattn's NumPy reference, PyTorch, onnxruntime and OpenVINO.

All get the same arrays, in place where the library can, the same number of threads, and float32
arithmetic for float32. A contestant whose packages are not installed is simply absent. Used by
`measure.py` and by the repository's bench/; what a contestant is stands in contest.py.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import numpy as np

from .contest import Call, Peer, Way
from .onnxruntime_peer import OnnxRuntime
from .openvino_peer import OpenVino
from .rows import HALF, numpy_dtype
from .torch_peer import Torch

REFERENCE_BYTES = 2 << 30
SCORES_BYTES = 1 << 28  # of NumPy's formula, which goes through them six times


class SelfAttn(Peer):
    """This package, called as its users call it: the output is allocated by each call."""

    name = "selfattn"
    packages = ("selfattn",)

    def unfit(self, row):
        return ""

    def attention(self, row, num_threads):
        import selfattn

        bind = partial(_bind_attention, selfattn, row, num_threads=num_threads)
        return [Way("scaled_dot_product_attention", bind)]

    def cache(self, row, num_threads):
        import selfattn

        def bind(arrays):
            query, key, value = arrays
            shape = row.batch, row.num_heads_kv, row.seqlen_k, row.head_dim
            cache = selfattn.KVCache(*shape, dtype=numpy_dtype(row.dtype))
            cache.append(key, value)
            return Call(partial(cache.attend, query, num_threads=num_threads))

        return [Way("KVCache.attend", bind)]

    def backward(self, row, num_threads):
        import selfattn

        bind = partial(_bind_backward, selfattn, row, num_threads=num_threads)
        return [Way("scaled_dot_product_attention_backward", bind)]

    def softmax(self, row, num_threads):
        import selfattn

        def bind(arrays):
            x, out = arrays
            return Call(partial(selfattn.softmax, x, out=out, num_threads=num_threads))

        return [Way("softmax, out=", bind)]

    def linear(self, row, num_threads):
        import selfattn

        def bind(arrays):
            x, weight, out = arrays
            return Call(partial(selfattn.project, x, weight, out=out, num_threads=num_threads))

        return [Way("project, out=", bind)]


class SelfAttnPaged(SelfAttn):
    """A PagedKVCache, whose pages a sequence has in no order, as after a while of serving."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.name = f"pages of {block_size}"

    def unfit(self, row):
        return "" if row.task == "cache" else "no cache in this row"

    def cache(self, row, num_threads):
        import selfattn

        def bind(arrays):
            query, key, value = arrays
            num_blocks = -(-row.seqlen_k // self.block_size)
            shape = num_blocks, self.block_size, row.num_heads_kv, row.head_dim
            cache = selfattn.PagedKVCache(*shape, dtype=numpy_dtype(row.dtype))
            # One sequence takes each page, and they end in no order: so the pages come back.
            taken = [cache.new_sequence() for _ in range(num_blocks)]
            for sequence in taken:
                cache.append([sequence], key[:, :, :1], value[:, :, :1])
            for i in np.random.default_rng(0).permutation(num_blocks):
                cache.free(taken[i])
            ids = [cache.new_sequence()]
            cache.append(ids, key, value)
            return Call(partial(cache.attend, ids, query, num_threads=num_threads))

        return [Way("PagedKVCache.attend", bind)]


class SelfAttnFloat32(SelfAttn):
    """The same on the same numbers in float32: what smaller types are held against."""

    name = "as float32"

    def unfit(self, row):
        return "" if row.dtype in (*HALF, "int8") else "for smaller types"

    def attention(self, row, num_threads):
        return _widened(super().attention(row, num_threads))

    def backward(self, row, num_threads):
        return _widened(super().backward(row, num_threads))

    def cache(self, row, num_threads):
        return _widened(super().cache(replace(row, dtype="float32"), num_threads))


def _widened(ways):
    def bind(bind_same, arrays):
        return bind_same([x.astype(np.float32) for x in arrays])

    return [Way(way.name, partial(bind, way.bind)) for way in ways]


class NumPy(Peer):
    """NumPy's product, which is its BLAS's, and attention as it is written with it."""

    name = "numpy"
    packages = ("numpy",)

    def unfit(self, row):
        if row.task not in ("linear", "attention"):
            return f"no {row.task} of its own"
        if row.dtype in HALF:
            return f"no BLAS of {row.dtype}"
        if row.task == "attention" and row.num_scores * 4 > SCORES_BYTES:
            return f"its scores would take {row.num_scores * 4 / 1e9:.1f} GB"
        if row.task == "linear" and "OPENBLAS_CORETYPE" in os.environ:
            return "OPENBLAS_CORETYPE is set, and the kernel not its own choice"
        return ""

    def attention(self, row, num_threads):
        bind = partial(_bind_formula, row)
        return [Way(f"matmul, exp, matmul; {_blas_threads(num_threads)}", bind)]

    def linear(self, row, num_threads):
        def bind(arrays):
            x, weight, out = arrays
            return Call(partial(np.matmul, x, weight.T, out=out))

        threads = _blas_threads(num_threads)
        return [Way(f"matmul, {_blas_kernel() or threads}", bind)]


def _bind_formula(row, arrays):
    """softmax(Q K^T / sqrt(E)) V by NumPy's functions, with as few arrays as can be."""
    query, key, value = arrays
    group = row.num_heads_q // row.num_heads_kv
    shape = row.batch, row.num_heads_kv, group * row.seqlen_q, row.head_dim
    scale = query.dtype.type(1 / np.sqrt(row.head_dim))
    hidden = None
    if row.is_causal:
        hidden = ~np.tri(row.seqlen_q, row.seqlen_k, row.query_offset, dtype=bool)

    def run():
        scores = (query * scale).reshape(shape) @ key.swapaxes(-1, -2)
        if hidden is not None:  # the queries of a group follow one another
            by_head = scores.reshape(*shape[:2], group, *hidden.shape)
            np.copyto(by_head, -np.inf, where=hidden)
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        return (scores @ value / total).reshape(query.shape)

    return Call(run)


class Reference(Peer):
    """selfattn's NumPy truth, float64 inside, the whole score matrix in memory."""

    name = "reference"
    packages = ("numpy", "selfattn")

    def unfit(self, row):
        if row.task == "softmax":
            return ""
        if row.task == "linear":
            return "float64 by the same BLAS"
        if row.task == "cache":
            return "no cache of its own"
        # The scores and what is made of them, and K and V once per query head: all in float64.
        repeated = row.batch * row.num_heads_q * row.seqlen_k * row.head_dim
        matrices = 11 if row.task == "backward" else 5
        needed = 8 * (matrices * row.num_scores + 3 * repeated)
        return f"would take {needed / 1e9:.1f} GB" if needed > REFERENCE_BYTES else ""

    def attention(self, row, num_threads):
        from selfattn import reference

        bind = partial(_bind_attention, reference, row)
        return [Way(_blas_threads(num_threads), bind)]

    def backward(self, row, num_threads):
        from selfattn import reference

        bind = partial(_bind_backward, reference, row)
        return [Way(_blas_threads(num_threads), bind)]

    def softmax(self, row, num_threads):
        from selfattn import reference

        return [Way("one thread", lambda arrays: Call(partial(reference.softmax, arrays[0])))]


def _bind_attention(library, row, arrays, **options):
    """A call of selfattn's function, or of the reference's."""
    options |= {"is_causal": row.is_causal, "enable_gqa": row.is_gqa}
    if row.query_offset:
        options["query_offset"] = row.query_offset
    return Call(partial(library.scaled_dot_product_attention, *arrays, **options))


def _bind_backward(library, row, arrays, **options):
    """A call of the backward on what one forward returned, or of forward and backward."""
    *inputs, grad_out = arrays
    forward = _bind_attention(library, row, inputs, return_lse=True, **options).run
    options |= {"is_causal": row.is_causal, "enable_gqa": row.is_gqa}
    backward = partial(library.scaled_dot_product_attention_backward, grad_out, *inputs, **options)
    run = (lambda: backward(*forward())) if row.with_forward else partial(backward, *forward())
    return Call(run, lambda gradients: gradients[:3])


def _blas_kernel():
    """Which kernel NumPy's BLAS chose, where threadpoolctl is there to tell."""
    try:
        import threadpoolctl
    except ImportError:
        return ""
    found = [x for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]
    return f"{found[0]['internal_api']}, {found[0].get('architecture')}" if found else ""


def _blas_threads(num_threads):
    """Set the threads of NumPy's BLAS where threadpoolctl is there to do it; say what holds."""
    try:
        import threadpoolctl
    except ImportError:
        return "BLAS's own number of threads"
    threadpoolctl.threadpool_limits(num_threads, user_api="blas")
    return "threads in BLAS alone"


# Those that are libraries of others, which a user would choose between.
LIBRARIES = ("numpy", "torch", "onnxruntime", "openvino")
PEERS = (SelfAttn(), SelfAttnFloat32(), NumPy(), Reference(), Torch(), OnnxRuntime(), OpenVino())
CACHE_PEERS = (
    SelfAttn(),
    SelfAttnPaged(128),
    SelfAttnPaged(16),
    SelfAttnFloat32(),
    Torch(),
    OnnxRuntime(),
)


def contenders(suite=None):
    """The contestants of a suite that are installed here, selfattn first."""
    chosen = CACHE_PEERS if suite == "caches" else PEERS
    return tuple(peer for peer in chosen if peer.available())
