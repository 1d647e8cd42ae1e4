"""Print what each library's attention does when asked by an argument, as a table of Markdown.

    python bench/features.py

Each is asked once, on small arrays, and its result compared with the NumPy reference:

    yes      the result is the reference's
    differs  there is an argument for it, and another result
    no       there is no argument for it, or an error

What takes an array of queries by keys can be had from any library that adds a mask; that is not
asked here. PyTorch is `scaled_dot_product_attention` and `varlen_attn`, onnxruntime the operators
Attention, MultiHeadAttention and GroupQueryAttention, OpenVINO ScaledDotProductAttention; all on
the CPU, where they are installed. Run by whoever wants to know, and for the README.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np

import selfattn
from selfattn import reference

TOLERANCE = {np.float64: 1e-12, np.float32: 2e-5}
RNG = np.random.default_rng(0)
HEADS, ROWS, WIDTH = 4, 12, 16
QUERY, KEY, VALUE = RNG.standard_normal((3, 2, HEADS, ROWS, WIDTH), np.float32)
FEW = RNG.standard_normal((2, 2, 2, ROWS, WIDTH), np.float32)  # keys and values of 2 heads
KEEP = RNG.random((ROWS, ROWS)) < 0.7
KEEP[:, 0] = True
NOTHING = KEEP.copy()
NOTHING[3] = False  # a row that sees no key
LENGTHS = np.array([7, 12])
BIAS = RNG.standard_normal((ROWS, ROWS), np.float32)
SINKS = RNG.standard_normal(HEADS, np.float32)
SLOPES = np.array([0.5, 0.25, 0.125, 0.0625], np.float32)
IDS = np.repeat([0, 1, 2], ROWS // 3)
STARTS = np.array([0, 4, 8, 12], np.int32)
GRAD = np.ones_like(QUERY)

# What is asked: its name, then the options by which selfattn and its reference are asked.
ASKED = {
    "a mask of bools": {"attn_mask": KEEP},
    "a mask of numbers": {"attn_mask": BIAS},
    "causal": {"is_causal": True},
    "causal and a mask": {"is_causal": True, "attn_mask": KEEP},
    "a length for each batch entry": {"kv_lengths": LENGTHS},
    "a causal window": {"is_causal": True, "window_size": (3, 0)},
    "segments": {"segment_ids": IDS},
    "ALiBi": {"alibi_slopes": SLOPES},
    "a softcap": {"softcap": 2.0},
    "sinks, causal": {"sinks": SINKS, "is_causal": True},
    "fewer heads of keys": {"enable_gqa": True},
    "a row that sees no key is 0": {"attn_mask": NOTHING},
}
OTHERS = (
    "NaN in masked keys and values changes nothing",
    "packed sequences",
    "float64",
    "gradients",
    "gradients of a mask",
    "a query has the same bits alone",
)


def arrays_of(asked):
    return (QUERY, *FEW) if asked == "fewer heads of keys" else (QUERY, KEY, VALUE)


def poisoned():
    """Keys and values that a mask hides, which hold NaN; and that mask."""
    keep = np.ones((ROWS, ROWS), bool)
    keep[:, 5] = False
    key, value = KEY.copy(), VALUE.copy()
    key[..., 5, :] = value[..., 5, :] = np.nan
    return key, value, keep


def packed():
    return tuple(np.ascontiguousarray(x[0].swapaxes(0, 1)) for x in (QUERY, KEY, VALUE))


def keeps_bits(attend):
    """Whether each query of a call has the bits of a call of its own, at several lengths."""
    for length in (7, 100, 300):
        query, key, value = RNG.standard_normal((3, 1, 2, length, 64), np.float32)
        together = attend(query, key, value)
        for i in range(length):
            alone = attend(np.ascontiguousarray(query[:, :, i : i + 1]), key, value)
            if not np.array_equal(alone[:, :, 0], together[:, :, i]):
                return False
    return True


class Selfattn:
    name = "selfattn"

    def ask(self, asked, query, key, value):
        return selfattn.scaled_dot_product_attention(query, key, value, **ASKED[asked])

    attend = staticmethod(selfattn.scaled_dot_product_attention)

    def masked(self, query, key, value, keep):
        return selfattn.scaled_dot_product_attention(query, key, value, keep)

    def varlen(self, query, key, value):
        return selfattn.varlen_attention(query, key, value, STARTS, STARTS)

    def gradients(self, bias):
        out, lse = self.attend(QUERY, KEY, VALUE, bias, return_lse=True)
        return selfattn.scaled_dot_product_attention_backward(
            GRAD, QUERY, KEY, VALUE, out, lse, bias, mask_grad=bias is not None
        )


class Torch:
    name = "PyTorch"
    OPTIONS = ("attn_mask", "is_causal", "enable_gqa")

    def __init__(self):
        import torch

        self.torch, self.sdpa = torch, torch.nn.functional.scaled_dot_product_attention

    def ask(self, asked, *arrays):
        options = ASKED[asked]
        if not set(options) <= set(self.OPTIONS):
            raise NotImplementedError
        options = {
            name: self.torch.from_numpy(x) if isinstance(x, np.ndarray) else x
            for name, x in options.items()
        }
        return self.attend(*arrays, **options)

    def attend(self, *arrays, **options):
        return self.sdpa(*map(self.torch.from_numpy, arrays), **options).numpy()

    def masked(self, query, key, value, keep):
        return self.attend(query, key, value, attn_mask=self.torch.from_numpy(keep))

    def varlen(self, *arrays):
        from torch.nn.attention.varlen import varlen_attn

        starts = self.torch.from_numpy(STARTS)
        return varlen_attn(*map(self.torch.from_numpy, arrays), starts, starts, 4, 4).numpy()

    def gradients(self, bias):
        inputs = [self.torch.tensor(x, requires_grad=True) for x in (QUERY, KEY, VALUE)]
        if bias is not None:
            inputs.append(self.torch.tensor(bias, requires_grad=True))
        self.sdpa(*inputs).backward(self.torch.from_numpy(GRAD))
        return [x.grad.numpy() for x in inputs]


class OnnxRuntime:
    name = "onnxruntime"

    def ask(self, asked, query, key, value):
        options = dict(ASKED[asked])
        if asked in ("a causal window", "sinks, causal"):
            return self._grouped(options, query, key, value)
        if asked == "a length for each batch entry":
            inputs = {**self._joined(query, key, value), "": None, "lengths": np.int32(LENGTHS)}
            out = _run("MultiHeadAttention", inputs, "com.microsoft", num_heads=HEADS)
            return out.reshape(2, ROWS, HEADS, WIDTH).swapaxes(1, 2)
        inputs = {"q": query, "k": key, "v": value}
        if "attn_mask" in options:
            inputs["mask"] = options.pop("attn_mask")
        options.pop("enable_gqa", None)
        known = {"is_causal": int, "softcap": float}
        if not set(options) <= set(known):
            raise NotImplementedError
        return _run("Attention", inputs, **{name: known[name](x) for name, x in options.items()})

    def attend(self, query, key, value):
        return _run("Attention", {"q": query, "k": key, "v": value})

    def masked(self, query, key, value, keep):
        return _run("Attention", {"q": query, "k": key, "v": value, "mask": keep})

    def _joined(self, *arrays):
        swapped = (x.swapaxes(1, 2).reshape(2, ROWS, -1) for x in arrays)
        return dict(zip("qkv", swapped, strict=True))

    def _grouped(self, options, *arrays):
        """GroupQueryAttention, which is causal; its window counts the query's own key."""
        inputs = self._joined(*arrays) | {"past_key": None, "past_value": None}
        inputs["lengths"] = np.full(2, ROWS - 1, np.int32)
        inputs["total"] = np.array(ROWS, np.int32)
        attributes = {"num_heads": HEADS, "kv_num_heads": HEADS}
        if "window_size" in options:
            attributes["local_window_size"] = options["window_size"][0] + 1
        if "sinks" in options:
            inputs |= dict.fromkeys(("cos", "sin", "positions", "bias")) | {"sinks": SINKS}
        out = _run("GroupQueryAttention", inputs, "com.microsoft", outputs=3, **attributes)
        return out.reshape(2, ROWS, HEADS, WIDTH).swapaxes(1, 2)


def _run(operator, inputs, domain="", outputs=1, **attributes):
    """A model of one operator: inputs of None are left out; the first output."""
    import onnxruntime
    from onnx import helper

    onnxruntime.set_default_logger_severity(4)
    given = {name: x for name, x in inputs.items() if x is not None}
    names = [name if name in given else "" for name in inputs]
    results = ["out", "present_key", "present_value"][:outputs]
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in given.items()
    ]
    kind = helper.np_dtype_to_tensor_dtype(given["q"].dtype)
    made = [helper.make_tensor_value_info(name, kind, None) for name in results]
    node = helper.make_node(operator, names, results, domain=domain, **attributes)
    graph = helper.make_graph([node], operator, declared, made)
    versions = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=11)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, given)[0]


class OpenVino:
    name = "OpenVINO"

    def ask(self, asked, *arrays):
        options = dict(ASKED[asked])
        options.pop("enable_gqa", None)
        mask, causal = options.pop("attn_mask", None), options.pop("is_causal", False)
        if options:
            raise NotImplementedError
        return self._run(arrays, mask, causal)

    def attend(self, *arrays):
        return self._run(arrays)

    def masked(self, query, key, value, keep):
        return self._run((query, key, value), keep)

    def _run(self, arrays, mask=None, causal=False):
        import openvino
        from openvino import opset13

        given = [*arrays] if mask is None else [*arrays, mask]
        nodes = [opset13.parameter(list(x.shape), x.dtype) for x in given]
        attention = opset13.scaled_dot_product_attention(*nodes, causal=causal)
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(openvino.Model([attention], nodes), "CPU", precision)
        return model(given)[0]


def answer(library, asked):
    """yes, differs or no."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "yes" if _is_right(library, asked) else "differs"
    except Exception:  # an error of whatever kind is a no
        return "no"


def _is_right(library, asked):
    if asked in ASKED:
        arrays = arrays_of(asked)
        truth = reference.scaled_dot_product_attention(*arrays, **ASKED[asked])
        return _is_near(library.ask(asked, *arrays), truth)
    if asked.startswith("NaN"):
        key, value, keep = poisoned()
        truth = reference.scaled_dot_product_attention(QUERY, KEY, VALUE, keep)
        return _is_near(library.masked(QUERY, key, value, keep), truth)
    if asked == "packed sequences":
        truth = reference.varlen_attention(*packed(), STARTS, STARTS)
        return _is_near(library.varlen(*packed()), truth)
    if asked == "float64":
        arrays = [x.astype(np.float64) for x in (QUERY, KEY, VALUE)]
        return _is_near(library.attend(*arrays), reference.scaled_dot_product_attention(*arrays))
    if asked.startswith("gradients"):
        bias = BIAS if asked.endswith("mask") else None
        forward = reference.scaled_dot_product_attention(QUERY, KEY, VALUE, bias, return_lse=True)
        truth = reference.scaled_dot_product_attention_backward(
            GRAD, QUERY, KEY, VALUE, *forward, bias, mask_grad=bias is not None
        )
        got, count = library.gradients(bias), 3 if bias is None else 4
        return all(_is_near(a, b) for a, b in zip(got[:count], truth[:count], strict=True))
    return keeps_bits(library.attend)


def _is_near(got, truth):
    size = max(1.0, float(np.abs(truth).max()))
    return np.abs(np.asarray(got, np.float64) - truth).max() <= TOLERANCE[got.dtype.type] * size


def libraries():
    there = [Selfattn()]
    for kind, package in ((Torch, "torch"), (OnnxRuntime, "onnxruntime"), (OpenVino, "openvino")):
        if importlib.util.find_spec(package):
            there.append(kind())
    return there


def main():
    asked_of = libraries()
    print("| on the CPU |", " | ".join(library.name for library in asked_of), "|")
    print("|---|" + "---|" * len(asked_of))
    for asked in (*ASKED, *OTHERS):
        print(f"| {asked} |", " | ".join(answer(library, asked) for library in asked_of), "|")


if __name__ == "__main__":
    main()
