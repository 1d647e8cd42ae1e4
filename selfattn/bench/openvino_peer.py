"""OpenVINO as a contestant: a model of ScaledDotProductAttention, compiled for the row's shapes.

Used by peers.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .contest import Call, Peer, Way, group_as_rows, holding, positions_first, repeated_heads


class OpenVino(Peer):
    """OpenVINO's CPU plugin. Inputs are read in place; the output tensor is the request's own."""

    name = "openvino"
    packages = ("openvino",)

    def unfit(self, row):
        return super().unfit(row) or ("" if row.dtype == "float32" else f"no {row.dtype} attention")

    def attention(self, row, num_threads):
        compiler = _Compiler(row.is_causal, num_threads)
        heads_first = partial(_bind, compiler)
        rows_first = partial(_bind_positions_first, compiler)
        # The operator itself knows no groups.
        if row.is_gqa and row.seqlen_q == 1:
            return [Way("group as rows", partial(group_as_rows, row, heads_first))]
        if row.is_gqa:
            heads_first = partial(repeated_heads, heads_first)
            rows_first = partial(repeated_heads, rows_first)
        return [Way("BHSD", heads_first), Way("BSHD", rows_first)]


class _Compiler:
    """Compiles the model once per shape of the inputs."""

    def __init__(self, is_causal, num_threads):
        self._is_causal = is_causal
        self._num_threads = num_threads
        self._models = {}

    def model(self, arrays, *, transpose):
        """Attention over (batch, heads, positions, E), or transposed to it and back again."""
        key = (*(x.shape for x in arrays), transpose)
        if key not in self._models:
            self._models[key] = self._compile(arrays, transpose)
        return self._models[key]

    def _compile(self, arrays, transpose):
        import openvino
        from openvino import opset13

        def swap(node):
            return opset13.transpose(node, opset13.constant([0, 2, 1, 3])) if transpose else node

        inputs = [opset13.parameter(list(x.shape), x.dtype) for x in arrays]
        attention = opset13.scaled_dot_product_attention(*map(swap, inputs), causal=self._is_causal)
        return openvino.Core().compile_model(
            openvino.Model([swap(attention)], inputs),
            "CPU",
            {
                # Without the first it computes in bfloat16 where the CPU has it.
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": self._num_threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                # Pinned threads would not step aside for the other contestants' threads; alone
                # they are no faster.
                "ENABLE_CPU_PINNING": False,
            },
        )


def _bind(compiler, arrays, *, transpose=False):
    import openvino

    arrays = tuple(map(np.ascontiguousarray, arrays))  # a view's strides mean nothing to a Tensor
    request = compiler.model(arrays, transpose=transpose).create_infer_request()
    for i, x in enumerate(arrays):
        request.set_input_tensor(i, openvino.Tensor(x, shared_memory=True))
    out = request.get_output_tensor(0)
    run = holding(arrays, request.infer)
    return Call(run, lambda _: out.data.swapaxes(1, 2) if transpose else out.data)


def _bind_positions_first(compiler, arrays):
    return _bind(compiler, tuple(map(positions_first, arrays)), transpose=True)
