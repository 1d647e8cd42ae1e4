"""Has a sentence the same embedding alone and in a batch? Counted, bit for bit, one way by another.

Sentences are embedded alone and in batches of 2, 7 and 32, in the order in which they are given,
twice: padded to the longest of a batch; and not padded, the tokens of each cut or repeated to 9.
Where the weights of MiniLM are not installed, they are random numbers in the same shapes: bits
depend on the order of operations, not on what is learned.

Called by `__init__.py`, whose `count_bits` is `selfattn demo --bits`, and by `bench/real_model.py`;
`show.py` shows the result. PyTorch is imported where it is installed, by `ways` alone.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import minilm
from .minilm import MiniLM, pool
from .words import split

SIZES = (2, 7, 32)
LENGTH = 9  # tokens of each sentence where nothing is padded

SENTENCES = (
    "I am a student",
    "나는 학생입니다",
    "Attention",
    "물",
    "The bank by the river was muddy, but the bank that holds my money was closed.",
    "The animal did not cross the street because it was too tired.",
    "오늘 아침에 비가 많이 와서 학교에 늦었다.",
    "Is it raining?",
    "naïve café, 3.14159 & C++: déjà vu!",
    "Yes.",
    "How do I reset my password?",
    "I forgot my password and cannot log in to my account any more.",
    "비밀번호를 잊어버렸어요.",
    "Where is my order?",
    "The parcel should have been here on Monday, but nobody has called and nothing has come.",
    "A cat sits on the mat.",
    "A kitten is on the rug.",
    "Stocks fell sharply.",
    "고양이가 방석 위에 앉아 있다.",
    "Water boils at 100 degrees Celsius at sea level, and at less in the mountains.",
    "She sells sea shells by the sea shore.",
    "서울은 대한민국의 수도이다.",
    "Good morning",
    "감사합니다",
    "The train to Busan leaves at ten past nine from platform four.",
    "부산으로 가는 기차는 아홉 시 십 분에 떠난다.",
    "No",
    "Please find attached the invoice for March; it is due within thirty days.",
    "Who wrote this book, and when?",
    "He read the letter twice, folded it, and put it back where he had found it.",
    "봄이 오면 꽃이 핀다.",
    "To be, or not to be, that is the question.",
)

Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids (B, L), lengths (B,) -> (B, 384)


@dataclass(frozen=True)
class Batched:
    """Embeddings (n, 384) of the same tokens, alone and in batches of one size."""

    size: int
    is_padded: bool
    alone: np.ndarray
    together: np.ndarray

    @property
    def same(self) -> int:
        """How many embeddings have the same bits both times."""
        return int((_bits(self.alone) == _bits(self.together)).all(axis=-1).sum())

    @property
    def total(self) -> int:
        return len(self.alone)

    @property
    def difference(self) -> float:
        """The largest of any number of any embedding."""
        wide = self.together.astype(np.float64)
        return float(np.abs(wide - self.alone).max())


@dataclass(frozen=True)
class Way:
    """What one way to compute the encoder did with its sentences."""

    name: str
    batched: tuple[Batched, ...]

    @property
    def keeps_all(self) -> bool:
        """Whether every embedding of every batch has the bits that it has alone."""
        return all(part.same == part.total for part in self.batched)


def measure(name: str, embed: Embed, tokens: Sequence[Sequence[int]]) -> Way:
    """Embed sentences, given as token ids, alone and in every kind of batch."""
    batched = []
    for is_padded in (True, False):
        rows = [np.array(ids) if is_padded else np.resize(ids, LENGTH) for ids in tokens]
        alone = _embed_all(embed, rows, 1)
        batched += [Batched(n, is_padded, alone, _embed_all(embed, rows, n)) for n in SIZES]
    return Way(name, tuple(batched))


def ways(model: MiniLM) -> dict[str, Embed]:
    """The ways of the demo by name: selfattn, NumPy, and PyTorch where it is installed."""
    found = {"selfattn": through(model), "NumPy": through(model, numpy_attention, numpy_project)}
    if importlib.util.find_spec("torch") is not None:
        from .torch_minilm import TorchMiniLM

        found["PyTorch"] = TorchMiniLM(model).embed
    return found


def through(model: MiniLM, attention=None, project=None) -> Embed:
    """The NumPy model with such attention and projection; selfattn's unless given."""

    def embed(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        x = model.hidden_states(ids, lengths, attention=attention, project=project)
        return pool(x, lengths)

    return embed


def numpy_project(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The projection by NumPy's product of matrices, which is a BLAS's."""
    return x @ weight.T + bias


def numpy_attention(query, key, value, kv_lengths=None) -> np.ndarray:
    """Attention as NumPy code writes it: product, softmax, product."""
    scores = query @ key.swapaxes(-2, -1) * np.float32(query.shape[-1] ** -0.5)
    if kv_lengths is not None:
        is_token = np.arange(key.shape[-2]) < kv_lengths[:, None, None, None]
        scores = np.where(is_token, scores, np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def load() -> tuple[MiniLM, bool]:
    """The encoder, and whether its weights are MiniLM's; else they are random."""
    return (MiniLM(), True) if minilm.is_installed() else (_Random(), False)


def example(found: Sequence[Way]) -> tuple[int, int]:
    """Which sentence and which of its numbers to look at, in the largest padded batch.

    One that differs from itself alone in as many ways as possible; of those the first.
    """
    parts = [largest(way) for way in found]
    differs = sum((_bits(part.alone) != _bits(part.together)).astype(int) for part in parts)
    sentence, number = np.unravel_index(np.argmax(differs), differs.shape)
    return int(sentence), int(number)


def largest(way: Way) -> Batched:
    """The largest padded batch."""
    return max((part for part in way.batched if part.is_padded), key=lambda part: part.size)


def hexadecimal(number: np.float32) -> str:
    """The bits of a number, in eight digits."""
    return f"{int(number.view(np.uint32)):08x}"


def _bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def _embed_all(embed: Embed, rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    parts = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        lengths = np.array([len(row) for row in batch], np.int64)
        ids = np.zeros((len(batch), lengths.max()), np.int64)
        for padded, row in zip(ids, batch, strict=True):
            padded[: len(row)] = row
        parts.append(embed(ids, lengths))
    return np.concatenate(parts)


class _Random(MiniLM):
    """An encoder of MiniLM's shapes, of random weights; a token is a hash of a word."""

    _words_known = 4096

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        weights = {}

        def add(name: str, *shape: int, scale: float = 0.05, mean: float = 0.0) -> None:
            x = rng.standard_normal(shape, np.float32)
            weights[name] = x * np.float32(scale) + np.float32(mean)

        def add_norm(name: str) -> None:
            add(f"{name}.LayerNorm.weight", self.d_model, mean=1.0)
            add(f"{name}.LayerNorm.bias", self.d_model)

        def add_linear(name: str, rows: int, columns: int) -> None:
            add(f"{name}.weight", rows, columns)
            add(f"{name}.bias", rows)

        add("embeddings.word_embeddings.weight", self._words_known, self.d_model)
        add("embeddings.position_embeddings.weight", self.max_tokens, self.d_model)
        add("embeddings.token_type_embeddings.weight", 2, self.d_model)
        add_norm("embeddings")
        for i in range(self.num_layers):
            layer = f"encoder.layer.{i}"
            for part in ("self.query", "self.key", "self.value", "output.dense"):
                add_linear(f"{layer}.attention.{part}", self.d_model, self.d_model)
            add_norm(f"{layer}.attention.output")
            add_linear(f"{layer}.intermediate.dense", 4 * self.d_model, self.d_model)
            add_linear(f"{layer}.output.dense", self.d_model, 4 * self.d_model)
            add_norm(f"{layer}.output")
        self._take(weights)

    def tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        known = self._words_known
        found = ([zlib.crc32(word.text.encode()) % known for word in split(s)] for s in sentences)
        return [[1, *ids[: self.max_tokens - 2], 2] for ids in found]
