"""The learnable layer beside torch.nn.MultiheadAttention, and rotary positions beside PyTorch's.

    python bench/layer.py [--threads N] [--repeats N] [--json FILE]

Per shape: the layer forward alone (nothing kept for gradients), the layer forward and backward to
input and parameters, and rope over the queries of such a layer, with the tables of cosines and
sines of an earlier call (as a model's layers share them) and with new ones. Equal results are
checked first. Contestants take turns (harness.py); a figure is a median, a ratio that of two.
Without torch, selfattn alone is timed. The shapes are in suites/shapes.py. Run by hand.
"""

from __future__ import annotations

import command
import numpy as np
from suites.shapes import LAYERS

from selfattn import nn
from selfattn.bench import harness, machine
from selfattn.nn import rotary

try:
    import torch
except ModuleNotFoundError:
    torch = None

TOLERANCE = 1e-4  # of the largest number


def main():
    arguments = command.parse(command.parser(__doc__, repeats=9))
    if torch is not None:
        torch.set_num_threads(arguments.threads)
    about = command.announce(arguments.threads)
    results = []
    for row in LAYERS:
        for what, calls in works(row).items():
            same(f"{row.name} {what}", calls)
            result = {"shape": row.name, "what": what, "ms": timed(calls, arguments)}
            results.append(result)
            print(line(row, what, result["ms"]), flush=True)
    command.write_json(arguments.json, about, rows=results)


def works(row):
    """What is timed: {what: {contestant: call}}, each call returns arrays."""
    rng = np.random.default_rng(0)
    x, grad_out = rng.standard_normal((2, row.batch, row.length, row.embed_dim), np.float32)
    layer = nn.MultiheadAttention(row.embed_dim, row.num_heads, seed=0)
    queries = x.reshape(row.batch, row.length, row.num_heads, -1).swapaxes(1, 2)
    is_causal = row.is_causal

    def both():
        layer.forward(x, is_causal=is_causal)
        return [layer.backward(grad_out), *layer.grads.values()]

    ours = {
        "forward": lambda: [layer.forward(x, is_causal=is_causal, requires_grad=False)],
        "forward + backward": both,
        "rope": lambda: [nn.rope(queries)],
        "rope, new tables": lambda: [rope_anew(queries)],
    }
    theirs = {} if torch is None else peers(layer, x, grad_out, queries, is_causal)
    return {
        what: {"selfattn": call} | ({"torch": theirs[what]} if theirs else {})
        for what, call in ours.items()
    }


def rope_anew(queries):
    """With cosines and sines that no earlier call has left."""
    rotary._kept_angles.cache_clear()
    return nn.rope(queries)


def peers(layer, x, grad_out, queries, is_causal):
    """The same by PyTorch, of the same numbers."""
    state = {name: torch.from_numpy(x) for name, x in layer.state_dict().items()}
    twin, inferring = (
        torch.nn.MultiheadAttention(layer.embed_dim, layer.num_heads, batch_first=True)
        for _ in range(2)
    )
    twin.load_state_dict(state)
    inferring.load_state_dict(state)
    inferring.eval()  # which lets it take its fast path
    given, grad = torch.from_numpy(x), torch.from_numpy(grad_out)
    leaf = given.clone().requires_grad_()
    length, head_dim = queries.shape[-2:]
    mask = None
    if is_causal:
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)

    def attend(module, x):
        return module(x, x, x, need_weights=False, attn_mask=mask, is_causal=is_causal)[0]

    def forward():
        with torch.inference_mode():
            return [attend(inferring, given).numpy()]

    def both():
        leaf.grad = None
        twin.zero_grad()
        attend(twin, leaf).backward(grad)
        return [leaf.grad.numpy(), *(p.grad.numpy() for p in twin.parameters())]

    rows = torch.from_numpy(queries)
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)

    def tables():
        angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
        return angles.cos(), angles.sin()

    def rope(cos, sin):
        """As models do it: two products and a sum."""
        with torch.inference_mode():
            a, b = rows.chunk(2, -1)
            return [(rows * cos + torch.cat((-b, a), -1) * sin).numpy()]

    kept = tables()
    return {
        "forward": forward,
        "forward + backward": both,
        "rope": lambda: rope(*kept),
        "rope, new tables": lambda: rope(*tables()),
    }


def same(what, calls):
    """All contestants give the same numbers."""
    results = {name: [np.array(x) for x in call()] for name, call in calls.items()}
    for name, arrays in results.items():
        for got, want in zip(arrays, results["selfattn"], strict=True):
            off = float(np.abs(got - want).max() / np.abs(want).max())
            if not off <= TOLERANCE:
                raise SystemExit(f"layer.py: {name} differs on {what}, by {off:.1e}")


def timed(calls, arguments):
    """The median time of each contestant, in ms."""
    loop = machine.fma_loop(arguments.threads)
    turns = {name: harness.Burst(call) for name, call in calls.items()}
    _, outcomes = harness.race(turns, arguments.repeats, loop)
    return {name: command.plain(outcome.seconds * 1e3) for name, outcome in outcomes.items()}


def line(row, what, ms):
    """A row to be read."""
    ours, theirs = ms["selfattn"], ms.get("torch")
    text = f"{row.name:6} {row!s:28} {what:19}" + (f"{ours:9.3f} ms" if ours else f"{'-':>12}")
    if ours and theirs:
        text += f"   torch {theirs:9.3f} ms   selfattn is {theirs / ours:.2f}×"
    return text


if __name__ == "__main__":
    main()
