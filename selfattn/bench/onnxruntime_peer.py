"""onnxruntime as a contestant: models of a single attention operator, bound to arrays in place.

Three operators can do a row: the standard Attention (opset 23), and Microsoft's own
MultiHeadAttention and GroupQueryAttention; which is the fastest depends on the row. Used by
peers.py.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .contest import Call, Peer, Way, group_as_rows, holding, positions_first, repeated_heads

OPSET = 23
MICROSOFT = "com.microsoft"
IR_VERSION = 11  # the first of opset 23


class OnnxRuntime(Peer):
    """onnxruntime's CPU kernels. Outputs are written to memory given beforehand."""

    name = "onnxruntime"
    packages = ("onnxruntime", "onnx")

    def unfit(self, row):
        reason = "" if row.task == "cache" else super().unfit(row)
        return reason or ("" if row.dtype == "float32" else f"no {row.dtype} attention")

    def cache(self, row, num_threads):
        """Its operator for this; and one without a cache, for which a group goes as rows."""
        b, kv, e = row.batch, row.num_heads_kv, row.head_dim
        cache, group = (b, kv, row.seqlen_k, e), (b, kv, row.num_heads_q // kv, e)
        shapes = {"q": group, "k": cache, "v": cache}
        as_rows = partial(_bind_heads_first, _session(num_threads, "Attention", shapes))
        return [
            _grouped_decode(row, num_threads),
            Way("Attention, group as rows", partial(group_as_rows, row, as_rows)),
        ]

    def attention(self, row, num_threads):
        causal = int(row.is_causal)
        b, h, kv, e = row.batch, row.num_heads_q, row.num_heads_kv, row.head_dim
        length, total = row.seqlen_q, row.seqlen_k
        new_session = partial(_session, num_threads)

        def packed(kv_heads, kv_length=total):
            keys = (b, kv_length, kv_heads * e)
            return {"q": (b, length, h * e), "k": keys, "v": keys}

        cache = (b, kv, total, e)
        standard = new_session(
            "Attention", {"q": (b, h, length, e), "k": cache, "v": cache}, is_causal=causal
        )
        standard_packed = new_session(
            "Attention", packed(kv), is_causal=causal, q_num_heads=h, kv_num_heads=kv
        )
        # This one knows no groups: it gets a copy of the key head for every query head.
        multi_head = new_session(
            "MultiHeadAttention", packed(h), domain=MICROSOFT, num_heads=h, unidirectional=causal
        )
        as_multi_head = partial(_bind_packed, multi_head)
        ways = [
            Way("Attention, BHSD", partial(_bind_heads_first, standard)),
            Way("Attention, BSHD", partial(_bind_packed, standard_packed)),
            Way(
                "MultiHeadAttention, BSHD",
                partial(repeated_heads, as_multi_head) if row.is_gqa else as_multi_head,
            ),
        ]
        # GroupQueryAttention is always causal, its last query at the last key.
        if row.is_causal and length == total:
            inputs = {**packed(kv), "past_key": None, "past_value": None}
            grouped = _grouped_session(row, num_threads, inputs)
            return [*ways, Way("GroupQueryAttention", partial(_bind_prefill, grouped))]
        if length == 1 and not row.is_causal:
            return [*ways, _grouped_decode(row, num_threads)]
        return ways


def _grouped_decode(row, num_threads):
    """The Way of a single position, whose cache is key and value in place."""
    b, h, kv, e = row.batch, row.num_heads_q, row.num_heads_kv, row.head_dim
    newest, cache = (b, 1, kv * e), (b, kv, row.seqlen_k, e)
    inputs = {"q": (b, 1, h * e), "k": newest, "v": newest}
    inputs |= {"past_key": cache, "past_value": cache}
    grouped = _grouped_session(row, num_threads, inputs)
    return Way("GroupQueryAttention", partial(_bind_decode, grouped))


def _grouped_session(row, num_threads, inputs):
    cache = row.batch, row.num_heads_kv, row.seqlen_k, row.head_dim
    return _session(
        num_threads,
        "GroupQueryAttention",
        {**inputs, "seqlens_k": (row.batch,), "total_sequence_length": ()},
        {"present_key": cache, "present_value": cache},
        domain=MICROSOFT,
        num_heads=row.num_heads_q,
        kv_num_heads=row.num_heads_kv,
    )


def _bind_heads_first(session, arrays):
    arrays = tuple(map(np.ascontiguousarray, arrays))  # strides are not told
    out = np.zeros_like(arrays[0])
    return _bind(session, dict(zip("qkv", arrays, strict=True)), {"out": out}, out)


def _bind_packed(session, arrays):
    query = arrays[0]
    out = np.zeros_like(_packed(query))
    inputs = {name: _packed(x) for name, x in zip("qkv", arrays, strict=True)}
    return _bind(session, inputs, {"out": out}, _unpacked(out, query.shape))


def _bind_prefill(session, arrays):
    query, key, value = arrays
    out = np.zeros_like(_packed(query))
    inputs = {name: _packed(x) for name, x in zip("qkv", arrays, strict=True)}
    inputs |= _lengths(key)
    outputs = {"out": out, "present_key": np.empty_like(key), "present_value": np.empty_like(value)}
    return _bind(session, inputs, outputs, _unpacked(out, query.shape))


def _bind_decode(session, arrays):
    """The cache is key and value themselves, read and appended to in place.

    The operator appends the newest position, here the last one: it writes what already stands
    there, so the arrays stay as they are.
    """
    query, key, value = arrays
    out = np.zeros_like(_packed(query))
    inputs = {
        "q": _packed(query),
        "k": _packed(key[:, :, -1:]),
        "v": _packed(value[:, :, -1:]),
        "past_key": key,
        "past_value": value,
    }
    inputs |= _lengths(key)
    outputs = {"out": out, "present_key": key, "present_value": value}
    return _bind(session, inputs, outputs, _unpacked(out, query.shape))


def _lengths(key):
    """GroupQueryAttention's inputs that say that all keys count."""
    batch, _, length, _ = key.shape
    return {
        "seqlens_k": np.full(batch, length - 1, np.int32),
        "total_sequence_length": np.array(length, np.int32),
    }


def _packed(x):
    """(batch, heads, positions, E), copied to (batch, positions, heads * E)."""
    batch, _, positions, _ = x.shape
    return positions_first(x).reshape(batch, positions, -1)


def _unpacked(out, shape):
    """A (batch, positions, heads * E) result viewed as (batch, heads, positions, E)."""
    batch, heads, positions, width = shape
    return out.reshape(batch, positions, heads, width).swapaxes(1, 2)


def _session(num_threads, operator, inputs, more_outputs=None, *, domain="", **attributes):
    """A session of a model that is the operator alone.

    `inputs` and `more_outputs` name shapes, an input of None being left out; the first output has
    the query's shape.
    """
    import onnx
    import onnxruntime
    from onnx import helper

    outputs = {"out": inputs["q"], **(more_outputs or {})}

    def declare(name, shape):
        kind = "INT32" if name in ("seqlens_k", "total_sequence_length") else "FLOAT"
        return helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)

    node = helper.make_node(
        operator,
        [name if shape is not None else "" for name, shape in inputs.items()],
        list(outputs),
        domain=domain,
        **attributes,
    )
    graph = helper.make_graph(
        [node],
        operator,
        [declare(name, shape) for name, shape in inputs.items() if shape is not None],
        [declare(name, shape) for name, shape in outputs.items()],
    )
    versions = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _bind(session, inputs, outputs, result):
    """A Call that reads the inputs, and writes the outputs, where they are."""
    binding = session.io_binding()
    for name, x in inputs.items():
        binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    for name, x in outputs.items():
        binding.bind_output(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    run = holding((inputs, outputs), session.run_with_iobinding, binding)
    return Call(run, lambda _: result)
