"""Print the error of selfattn, of naive NumPy, of PyTorch and of onnxruntime, side by side.

    python bench/accuracy.py [--dtype float32|float64] [--seeds 20] [--threads N]

    error = max |out - oracle| / (u * max |V|),   u = 2^-24 for float32, 2^-53 for float64

per call on N(0, 1) inputs; printed is the median over the seeds. The oracle is the formula in
float64 for float32, and in long double for float64. Run by whoever changes the arithmetic:
DESIGN.md section 6 allows 1.0 up to 1000 keys.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from statistics import median

import machine
import numpy as np
import peers
from rows import Row

# A single batch entry, and few heads where the matrices are large: more would only add work.
SHAPES = (
    Row("minilm", 1, 12, 12, 128, 128, 32),
    Row("vit", 1, 12, 12, 197, 197, 64),
    Row("bert", 1, 4, 4, 512, 512, 64),
    Row("causal", 1, 2, 2, 1000, 1000, 64, is_causal=True),
    Row("grouped", 1, 8, 2, 64, 1000, 128),
    Row("cross", 1, 4, 4, 77, 333, 80),
    Row("odd", 1, 2, 2, 65, 129, 33),
    Row("decode", 1, 8, 8, 1, 1000, 128),
    Row("keys4096", 1, 2, 2, 64, 4096, 64),
    Row("keys16384", 1, 1, 1, 64, 16384, 64),
)
UNITS = {"float32": 2.0**-24, "float64": 2.0**-53}
WIDER = {"float32": np.float64, "float64": np.longdouble}


def formula(row, query, key, value):
    """Attention as it is written down, in the dtype of its arguments."""
    group = row.num_heads_q // row.num_heads_kv
    key, value = np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.dtype.type(row.head_dim))
    if row.is_causal:
        scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights @ value / weights.sum(-1, keepdims=True)


def contestants(row, num_threads):
    """(name, arrays -> output) of everyone who can do the row, each by its first way."""
    yield "numpy", partial(formula, row)
    for peer in peers.contenders():
        if peer.name != "reference" and not peer.unfit(row):
            yield peer.name, partial(_run, peer.attention(row, num_threads)[0])


def errors(row, num_threads, num_seeds):
    """The median error of each contestant, by name."""
    outputs = list(contestants(row, num_threads))
    seen = {name: [] for name, _ in outputs}
    for seed in range(num_seeds):
        arrays = row.arrays(seed)
        oracle = formula(row, *(x.astype(WIDER[row.dtype]) for x in arrays))
        unit = UNITS[row.dtype] * np.abs(arrays[2]).max()
        for name, output in outputs:
            seen[name].append(float(np.abs(output(*arrays) - oracle).max() / unit))
    return {name: median(values) for name, values in seen.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=tuple(UNITS), action="append")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=machine.available_threads())
    arguments = parser.parse_args()
    names = ["selfattn", "numpy", "torch", "onnxruntime", "openvino"]
    for dtype in arguments.dtype or UNITS:
        exponent = int(np.log2(UNITS[dtype]))
        print(f"{dtype}: largest error in 2^{exponent} max|V|, median of {arguments.seeds} seeds")
        print(f"{'':50}" + "".join(f"{name:>13}" for name in names))
        for shape in SHAPES:
            row = replace(shape, dtype=dtype)
            found = errors(row, arguments.threads, arguments.seeds)
            figures = (f"{found[name]:13.2f}" if name in found else f"{'-':>13}" for name in names)
            print(f"{row!s:50}" + "".join(figures), flush=True)


def _run(way, *arrays):
    call = way.bind(arrays)
    return call.array(call.run())


if __name__ == "__main__":
    main()
