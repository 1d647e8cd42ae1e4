"""The example that `selfattn demo` walks through: words as small vectors, and fixed weights.

    query = x @ Wq.T + bq        key = x @ Wk.T + bk        value = x @ Wv.T + bv

The numbers are chosen by hand, not trained, so that the attention can be read: each of the four
channels of the queries and keys is a question that one word asks and another answers. Words of the
user's own get vectors from a hash instead. Called by `__init__.py` and `show_walk.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SENTENCE = "I am a student"

# What the numbers of a row of x stand for (of its position two), of a query or key, and of a value.
COLUMNS = ("noun", "verb", "art.", "pron.", "sing.", "pers.", "pos.", "pos.")
CHANNELS = ("noun", "verb", "subj.", "art.")
VALUES = ("who", "does", "kind")

_EMBEDDINGS = {
    "I": [0.2, -0.1, 0.0, 1.0, 0.5, 0.9, 0.0, 1.0],
    "am": [-0.2, 1.0, 0.1, 0.2, 0.5, 0.1, 0.8, 0.5],
    "a": [0.1, 0.0, 1.0, -0.1, 0.6, -0.3, 0.9, -0.4],
    "student": [1.0, 0.1, -0.1, 0.1, 0.6, 0.8, 0.1, -1.0],
}


@dataclass(frozen=True)
class Weights:
    """The learnable part of self-attention: weights (n_out, d_model) and biases (n_out,)."""

    query: tuple[np.ndarray, np.ndarray]
    key: tuple[np.ndarray, np.ndarray]
    value: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Example:
    """What the walk starts from: words, a vector (a row of x) for each, and the weights."""

    sentence: str
    words: tuple[str, ...]
    x: np.ndarray
    weights: Weights


def _array(rows) -> np.ndarray:
    array = np.array(rows, np.float32)
    array.flags.writeable = False
    return array


WEIGHTS = Weights(
    # what a word looks for: channel 0 a noun, 1 a verb, 2 the subject, 3 an article
    query=(
        _array(
            [
                [-0.3, 1.4, 2.6, 0.2, 0.1, 0.0, 0.3, -0.2],
                [0.4, 0.1, -0.2, 2.2, 0.0, 0.3, -0.1, 0.5],
                [1.6, 2.0, 0.0, -0.4, 0.2, 0.1, 0.1, 0.0],
                [1.8, -0.3, 0.1, 0.0, 0.1, 0.0, -0.2, -0.3],
            ]
        ),
        _array([0.1, 0.0, -0.1, 0.2]),
    ),
    # what a word offers, channel for channel
    key=(
        _array(
            [
                [2.4, -0.2, 0.1, 0.3, 0.0, 0.2, -0.1, -0.4],
                [0.0, 2.6, -0.3, 0.1, 0.2, -0.1, 0.4, 0.0],
                [0.3, -0.1, 0.0, 2.0, 0.1, 0.8, -0.3, 0.2],
                [-0.2, 0.1, 2.2, 0.0, 0.3, 0.0, 0.2, -0.1],
            ]
        ),
        _array([0.0, 0.1, 0.0, -0.1]),
    ),
    # what it hands over: who, does or is, of which kind
    value=(
        _array(
            [
                [0.5, 0.0, 0.0, 1.2, 0.1, 1.1, 0.0, 0.2],
                [0.1, 1.5, -0.2, 0.0, 0.3, 0.0, 0.4, 0.0],
                [1.4, 0.0, 0.6, -0.3, 0.2, 0.0, 0.0, -0.5],
            ]
        ),
        _array([0.0, 0.1, -0.1]),
    ),
)


def embedded() -> Example:
    """The embedded example."""
    words = tuple(SENTENCE.split())
    return Example(SENTENCE, words, _array([_EMBEDDINGS[word] for word in words]), WEIGHTS)


def hashed(sentence: str, words: Sequence[str]) -> Example:
    """A sentence of any words: numbers from -1 to 1 by a hash of each, always the same."""
    d_model = WEIGHTS.query[0].shape[1]
    x = []
    for word in words:
        digest = hashlib.sha256(word.casefold().encode()).digest()
        pairs = np.frombuffer(digest, ">u2")[:d_model]
        x.append((pairs / 32767.5 - 1.0).round(2))
    return Example(sentence, tuple(words), _array(x), WEIGHTS)
