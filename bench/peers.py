"""The contestants: selfattn, its NumPy reference, PyTorch, onnxruntime and OpenVINO.

All get the same arrays, in place where the library can, the same number of threads, and float32
arithmetic for float32. A contestant whose packages are not installed is simply absent. Used by
every benchmark of bench/; what a contestant is stands in contest.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from contest import Call, Peer, Way, group_as_rows, positions_first, repeated_heads
from onnxruntime_peer import OnnxRuntime
from openvino_peer import OpenVino
from rows import SoftmaxRow

REFERENCE_BYTES = 2 << 30


class SelfAttn(Peer):
    """This package, called as its users call it: the output is allocated by each call."""

    name = "selfattn"
    packages = ("selfattn",)

    def unfit(self, row):
        return ""

    def attention(self, row, num_threads):
        import selfattn

        def bind(arrays):
            return Call(
                partial(
                    selfattn.scaled_dot_product_attention,
                    *arrays,
                    is_causal=row.is_causal,
                    enable_gqa=row.is_gqa,
                    num_threads=num_threads,
                )
            )

        return [Way("scaled_dot_product_attention", bind)]

    def softmax(self, row, num_threads):
        import selfattn

        def bind(arrays):
            x, out = arrays
            return Call(partial(selfattn.softmax, x, out=out, num_threads=num_threads))

        return [Way("softmax, out=", bind)]


class Reference(Peer):
    """selfattn's NumPy truth, float64 inside, the whole score matrix in memory."""

    name = "reference"
    packages = ("numpy", "selfattn")

    def unfit(self, row):
        if isinstance(row, SoftmaxRow):
            return ""
        # The scores and what is made of them, and K and V once per query head: all in float64.
        repeated = row.batch * row.num_heads_q * row.seqlen_k * row.head_dim
        needed = 8 * (5 * row.num_scores + 3 * repeated)
        return f"would take {needed / 1e9:.1f} GB" if needed > REFERENCE_BYTES else ""

    def attention(self, row, num_threads):
        from selfattn import reference

        def bind(arrays):
            return Call(
                partial(
                    reference.scaled_dot_product_attention,
                    *arrays,
                    is_causal=row.is_causal,
                    enable_gqa=row.is_gqa,
                )
            )

        return [Way(_blas_threads(num_threads), bind)]

    def softmax(self, row, num_threads):
        from selfattn import reference

        return [Way("one thread", lambda arrays: Call(partial(reference.softmax, arrays[0])))]


class Torch(Peer):
    """PyTorch's scaled_dot_product_attention and softmax, on tensors that share the arrays."""

    name = "torch"
    packages = ("torch",)

    def unfit(self, row):
        return ""

    def attention(self, row, num_threads):
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        torch.set_num_threads(num_threads)

        def bind(arrays, lay_out=torch.from_numpy, gqa=row.is_gqa):
            tensors = [lay_out(x) for x in arrays]
            return Call(
                partial(
                    scaled_dot_product_attention, *tensors, is_causal=row.is_causal, enable_gqa=gqa
                ),
                np.asarray,
            )

        def bshd(x):
            return torch.from_numpy(positions_first(x)).transpose(1, 2)

        ways = [Way("BHSD", bind), Way("BSHD", partial(bind, lay_out=bshd))]
        if row.is_gqa and row.seqlen_q == 1:
            ways.append(Way("group as rows", partial(group_as_rows, row, partial(bind, gqa=False))))
        elif row.is_gqa:
            ways.append(Way("repeated heads", partial(repeated_heads, partial(bind, gqa=False))))
        return ways

    def softmax(self, row, num_threads):
        import torch

        torch.set_num_threads(num_threads)

        def bind(arrays):
            x, out = map(torch.from_numpy, arrays)
            return Call(partial(torch.softmax, x, -1, out=out))

        return [Way("softmax, out=", bind)]


def _blas_threads(num_threads):
    """Set the threads of NumPy's BLAS where threadpoolctl is there to do it; say what holds."""
    try:
        import threadpoolctl
    except ImportError:
        return "BLAS's own number of threads"
    threadpoolctl.threadpool_limits(num_threads, user_api="blas")
    return "threads in BLAS alone"


PEERS = (SelfAttn(), Reference(), Torch(), OnnxRuntime(), OpenVino())


def contenders():
    """The contestants that are installed here, selfattn first."""
    return tuple(peer for peer in PEERS if peer.available())
