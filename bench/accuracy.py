"""Print the error of selfattn, of naive NumPy, of PyTorch and of onnxruntime, side by side.

    python bench/accuracy.py [--of out|gradients|linear] [--dtype float32|float64] [--seeds 20]
                             [--threads N]

    error = max |out - oracle| / (u * max |V|),   u = 2^-24 for float32, 2^-53 for float64
            max |dQ - oracle| / (u * max |oracle|), and dK and dV likewise; a projection too

per call on N(0, 1) inputs; printed is the median over the seeds. The oracle is the formula in
float64 for float32, and in long double for float64. Run by whoever changes the arithmetic.
What tests allow is in docs/numerics.md: 1.0 for the output, and for gradients 1.1 times PyTorch's
error. A projection should stay below NumPy's.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from functools import partial

import numpy as np
from suites.shapes import ACCURACY, ACCURACY_LINEAR, ACCURACY_PEERS

from selfattn.bench import machine, peers
from selfattn.bench.rows import backward_of

UNITS = {"float32": 2.0**-24, "float64": 2.0**-53}
WIDER = {"float32": np.float64, "float64": np.longdouble}


def formula(row, query, key, value):
    """Attention as it is written down, in the dtype of its arguments."""
    weights, total = weights_of(row, query, key)
    return weights @ repeated(row, value) / total


def formula_of_gradients(row, query, key, value, grad_out):
    """(dQ, dK, dV) as they are written down, in the dtype of the arguments."""
    weights, total = weights_of(row, query, key)
    weights = weights / total
    grad_weights = grad_out @ repeated(row, value).swapaxes(-1, -2)
    delta = (weights * grad_weights).sum(-1, keepdims=True)
    grad_scores = weights * (grad_weights - delta) / np.sqrt(query.dtype.type(row.head_dim))
    return (
        grad_scores @ repeated(row, key),
        summed(row, grad_scores.swapaxes(-1, -2) @ query),
        summed(row, weights.swapaxes(-1, -2) @ grad_out),
    )


def weights_of(row, query, key):
    """The softmax of the scores before its division, and what it is divided by."""
    scores = query @ repeated(row, key).swapaxes(-1, -2) / np.sqrt(query.dtype.type(row.head_dim))
    if row.is_causal:
        scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights, weights.sum(-1, keepdims=True)


def repeated(row, x):
    """Each key head once for every query head of its group."""
    return np.repeat(x, row.num_heads_q // row.num_heads_kv, axis=1)


def summed(row, x):
    """The gradients of what `repeated` made, summed over each group."""
    return x.reshape(row.batch, row.num_heads_kv, -1, *x.shape[2:]).sum(2)


def contestants(row, num_threads):
    """(name, arrays -> results) of everyone who can do the row, each by its first way."""
    left_out = ["reference"]
    if row.task == "attention":
        yield "numpy", lambda *arrays: [formula(row, *arrays)]
        left_out.append("numpy")
    for peer in peers.contenders():
        if peer.name not in left_out and not peer.unfit(row):
            way = getattr(peer, row.task)(row, num_threads)[0]
            yield peer.name, partial(_run, row, way)


def errors(row, num_threads, num_seeds):
    """The median errors by contestant: of the output, or of dQ, dK and dV."""
    functions = list(contestants(row, num_threads))
    samples = {name: [] for name, _ in functions}
    for seed in range(num_seeds):
        arrays = row.arrays(seed)
        wide = [x.astype(WIDER[row.dtype]) for x in arrays]
        if row.task == "linear":
            oracles = [wide[0] @ wide[1].T]
            sizes = [np.abs(oracles[0]).max()]
        elif row.task == "attention":
            oracles, sizes = [formula(row, *wide)], [np.abs(arrays[2]).max()]
        else:
            oracles = formula_of_gradients(row, *wide)
            sizes = [np.abs(oracle).max() for oracle in oracles]
        for name, function in functions:
            found = zip(function(*arrays), oracles, sizes, strict=True)
            samples[name].append(
                [float(np.abs(x - y).max() / (UNITS[row.dtype] * size)) for x, y, size in found]
            )
    return {name: np.median(values, axis=0) for name, values in samples.items()}


def table_of_out(dtype, num_threads, num_seeds):
    """Lines, one a shape, as they are found."""
    yield f"{'out, of max|V|':50}" + "".join(f"{name:>13}" for name in ACCURACY_PEERS)
    for shape in ACCURACY:
        row = replace(shape, dtype=dtype)
        found = errors(row, num_threads, num_seeds)
        figures = (
            f"{found[name][0]:13.2f}" if name in found else f"{'-':>13}" for name in ACCURACY_PEERS
        )
        yield f"{row!s:50}" + "".join(figures)


def table_of_gradients(dtype, num_threads, num_seeds):
    """Lines likewise: of each of dQ, dK and dV, selfattn's error, PyTorch's, and their ratio."""
    heads = "".join(f"{name:>14}{'torch':>7}{'ratio':>7}" for name in ("dQ", "dK", "dV"))
    yield f"{'gradients, of the largest':56}" + heads
    for shape in ACCURACY:
        row = replace(backward_of(shape)[0], dtype=dtype)
        found = errors(row, num_threads, num_seeds)
        ours, theirs = found["selfattn"], found.get("torch", [math.nan] * 3)
        figures = (f"{x:14.2f}{y:7.2f}{x / y:7.2f}" for x, y in zip(ours, theirs, strict=True))
        yield f"{row!s:56}" + "".join(figures)


def table_of_projections(dtype, num_threads, num_seeds):
    """Lines likewise: of selfattn, NumPy and PyTorch, and selfattn's over NumPy's."""
    names = ("selfattn", "numpy", "torch")
    heads = (*names, "over numpy's")
    yield f"{'projections, of the largest':50}" + "".join(f"{head:>13}" for head in heads)
    for shape in ACCURACY_LINEAR:
        row = replace(shape, dtype=dtype)
        found = errors(row, num_threads, num_seeds)
        values = [found[name][0] if name in found else math.nan for name in names]
        figures = "".join(f"{x:13.2f}" for x in (*values, values[0] / values[1]))
        yield f"{row!s:50}" + figures


TABLES = {"out": table_of_out, "gradients": table_of_gradients, "linear": table_of_projections}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--of", choices=tuple(TABLES), action="append")
    parser.add_argument("--dtype", choices=tuple(UNITS), action="append")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=machine.available_threads())
    arguments = parser.parse_args()
    for dtype in arguments.dtype or UNITS:
        exponent = int(np.log2(UNITS[dtype]))
        for what in arguments.of or TABLES:
            print(f"{dtype}: largest error in 2^{exponent}, median of {arguments.seeds} seeds")
            for line in TABLES[what](dtype, arguments.threads, arguments.seeds):
                print(line, flush=True)


def _run(row, way, *arrays):
    call = way.bind(arrays)
    result = call.array(call.run())
    return result if row.task == "backward" else [result]


if __name__ == "__main__":
    main()
