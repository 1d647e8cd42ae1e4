"""Print what PyTorch's own functions and layers take on selfattn beside PyTorch's own kernels.

    python bench/torch_provider.py [--threads N] [--repeats N] [--waiting] [--busy]
                                     [--json FILE]

Calls of F.scaled_dot_product_attention and F.linear without gradients, small ones among them, where
Python and the dispatcher take most of the time; the same with gradients; and whole encoder layers,
in eval() and in train(): with PyTorch's own kernels, with selfattn's attention, and with its linear
layers too. Both libraries have threads of their own there, which take turns inside every layer, and
may spin while they wait. With --waiting all of it is done in a process for each way of waiting that
OpenMP knows, since it is chosen when a process begins. Contestants take turns (harness.py); a
figure is a median, a ratio that of two. The shapes are in suites/shapes.py. Run by hand.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import command
import torch
import torch.nn.functional as F
from suites.shapes import TORCH_CALLS, TORCH_ENCODERS

import selfattn
from selfattn.bench import harness, machine
from selfattn.torch import enabled

WAYS = {
    "torch": contextlib.nullcontext,
    "selfattn": enabled,
    "selfattn, linear too": lambda: enabled(linear=True),
}
WAITING = ({}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"})


def main():
    parser = command.parser(__doc__, repeats=15)
    parser.add_argument("--waiting", action="store_true", help="in each of OpenMP's ways to wait")
    parser.add_argument("--busy", action="store_true", help="count every round: for ratios alone")
    arguments = command.parse(parser)
    if arguments.waiting:
        for change in WAITING:
            print(
                f"--- {' '.join(f'{k}={v}' for k, v in change.items()) or 'as it is'}", flush=True
            )
            again = [x for x in sys.argv if x != "--waiting"]
            subprocess.run([sys.executable, *again], env=os.environ | change, check=True)
        return
    torch.set_num_threads(arguments.threads)
    selfattn.set_num_threads(arguments.threads)
    about = command.announce(arguments.threads)
    results = []
    for name, what, calls in [*attention(), *small(), *encoders()]:
        ms = timed(calls, arguments)
        results.append({"shape": name, "what": what, "ms": ms})
        print(line(name, what, ms), flush=True)
    command.write_json(arguments.json, about, rows=results)


def attention():
    """(row, what, {way: call}) of the function itself."""
    for row in TORCH_CALLS:
        arrays = [torch.from_numpy(x) for x in row.arrays()]

        def forward(arrays=arrays, row=row):
            with torch.inference_mode():
                F.scaled_dot_product_attention(*arrays, is_causal=row.is_causal)

        leaves = [x.clone().requires_grad_() for x in arrays]

        def both(leaves=leaves, row=row):
            out = F.scaled_dot_product_attention(*leaves, is_causal=row.is_causal)
            torch.autograd.grad(out, leaves, out.detach())

        for what, call in (("forward", forward), ("forward + backward", both)):
            yield str(row), what, dict.fromkeys(("torch", "selfattn"), call)


def small():
    """The same of masks, grouped heads and a linear layer, in the smallest call's shape."""
    row = TORCH_CALLS[0]
    query, key, value = (torch.from_numpy(x) for x in row.arrays())
    visible = torch.ones(row.seqlen_q, row.seqlen_k, dtype=torch.bool).tril()
    bias = torch.randn(row.seqlen_q, row.seqlen_k)
    rows, weight = query[0, 0], torch.randn(row.head_dim, row.head_dim)
    leaves = rows.clone().requires_grad_(), weight.clone().requires_grad_()

    def attend(*arguments, **options):
        with torch.inference_mode():
            F.scaled_dot_product_attention(*arguments, **options)

    def project():
        with torch.inference_mode():
            F.linear(rows, weight)

    def both():
        out = F.linear(*leaves)
        torch.autograd.grad(out, leaves, out.detach())

    for what, call in {
        "bool mask": lambda: attend(query, key, value, visible),
        "float mask": lambda: attend(query, key, value, bias),
        "grouped heads": lambda: attend(query, key[:, :2], value[:, :2], enable_gqa=True),
    }.items():
        yield str(row), what, dict.fromkeys(("torch", "selfattn"), call)
    for what, call in (("linear", project), ("linear + backward", both)):
        yield str(row), what, dict.fromkeys(("torch", "selfattn, linear too"), call)


def encoders():
    """The same of whole layers."""
    for row in TORCH_ENCODERS:
        layer = torch.nn.TransformerEncoderLayer(
            row.embed_dim, row.num_heads, 4 * row.embed_dim, dropout=0.0, batch_first=True
        )
        x = torch.randn(row.batch, row.length, row.embed_dim)

        def evaluate(layer=layer, x=x):
            layer.eval()
            with torch.inference_mode():
                layer(x)

        leaf = x.clone().requires_grad_()

        def train(layer=layer, leaf=leaf):
            layer.train()
            layer.zero_grad()
            leaf.grad = None
            layer(leaf).sum().backward()

        for what, call in (("eval()", evaluate), ("train()", train)):
            yield str(row), what, dict.fromkeys(WAYS, call)


def timed(calls, arguments):
    """The median time of each way, in ms."""
    loop = None if arguments.busy else machine.fma_loop(arguments.threads)
    turns = {way: inside(WAYS[way], harness.Burst(call)) for way, call in calls.items()}
    _, outcomes = harness.race(turns, arguments.repeats, loop)
    return {way: command.plain(outcome.seconds * 1e3) for way, outcome in outcomes.items()}


def inside(way, turn):
    """A turn in which PyTorch's functions run that way."""

    def whole():
        with way():
            return turn()

    return whole


def line(name, what, ms):
    """A row to be read: the time of PyTorch's own, and how much of it the others take."""
    theirs = ms["torch"]
    if not theirs:
        return f"{name:36} {what:19} {'-':>9}"
    ratios = "".join(
        f"   {way} takes {x / theirs:.2f} of it" for way, x in ms.items() if way != "torch" and x
    )
    return f"{name:36} {what:19} torch {theirs:9.4f} ms{ratios}"


if __name__ == "__main__":
    main()
