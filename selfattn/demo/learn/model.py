"""The model that learns: where in the sentence stands the noun that "it" means?

    h  = embedding[words] + positions
    h += attention 1 (h)                    4 heads each: words find what they do in the sentence,
    h += attention 2 (h)                    and "it" finds the adjective
    p  = attention 3 (h, (h, positions))    1 head: "it" finds the noun, and gets its position
    logits = p[it] W' + b                   one for each place in a sentence

The values of the last attention are the bare positions: what it looks at is what it answers. The
read-out starts as the transpose of how they come out of it, so that it tells places apart from the
beginning. Forward and backward are `selfattn.nn`'s; the loss is the cross-entropy. Called by
`training.py` and `__init__.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

import selfattn
from selfattn import nn

from .sentences import LONGEST, VOCABULARY, Sentence

WIDTH, HEADS = 64, (4, 4, 1)
_STREAM = 2**32 + 1  # of random numbers: no step's, and not the test's
_SPREAD = 0.5  # of the embeddings and positions, at first
_IDS = {word: i for i, word in enumerate(VOCABULARY)}


class Batch(NamedTuple):
    """Sentences as arrays: words (n, longest), padded; length, place of "it" and answer (n,)."""

    words: np.ndarray
    lengths: np.ndarray
    it: np.ndarray
    answer: np.ndarray

    @classmethod
    def of(cls, sentences: list[Sentence]) -> Batch:
        lengths = np.array([len(sentence.words) for sentence in sentences])
        words = np.zeros((len(sentences), lengths.max()), np.intp)
        for row, sentence in zip(words, sentences, strict=True):
            row[: len(sentence.words)] = [_IDS[word] for word in sentence.words]
        it = np.array([sentence.it for sentence in sentences])
        return cls(words, lengths, it, np.array([sentence.antecedent for sentence in sentences]))


class Model:
    """Embedding, positions, attention, a linear read-out; all of it drawn by `seed`.

    `params` has the arrays of all by name, those of the layers under "attention1." and so on.
    """

    def __init__(self, seed: int, dtype=np.float32) -> None:
        rng = np.random.default_rng((seed, _STREAM))
        embedding = rng.normal(0, _SPREAD, (len(VOCABULARY), WIDTH)).astype(dtype)
        positions = rng.normal(0, _SPREAD, (LONGEST, WIDTH)).astype(dtype)
        self.layers = [
            nn.MultiheadAttention(WIDTH, heads, dtype=dtype, seed=rng) for heads in HEADS
        ]
        last = self.layers[-1].params
        value = last["in_proj_weight"][-WIDTH:]
        self.params = {
            "embedding": embedding,
            "positions": positions,
            "readout.weight": positions @ value.T @ last["out_proj.weight"].T,
            "readout.bias": np.zeros(LONGEST, dtype),
        }
        self.params |= self._of_layers(lambda layer: layer.params)

    def logits(self, batch: Batch) -> np.ndarray:
        """(n, LONGEST): how much speaks for each place."""
        hidden = self._hidden(batch)
        at_it = self._found(hidden, batch)[np.arange(len(batch.it)), batch.it]
        return self._read_out(at_it)

    def answers(self, batch: Batch) -> np.ndarray:
        """(n,): the likeliest place in each sentence."""
        places = np.arange(LONGEST) < batch.lengths[:, None]
        return np.where(places, self.logits(batch), -np.inf).argmax(-1)

    def maps(self, batch: Batch) -> np.ndarray:
        """The attention of the last layer: (n, longest, longest)."""
        hidden = self._hidden(batch)
        context = hidden, self._positions(batch)
        maps = self.layers[-1].attention_weights(hidden, context, kv_lengths=batch.lengths)
        return maps[:, 0]

    def loss(self, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
        """The mean cross-entropy over the sentences, and its gradients by the names of `params`."""
        count = np.arange(len(batch.it))
        hidden = self._hidden(batch, requires_grad=True)
        found = self._found(hidden, batch, requires_grad=True)
        at_it = found[count, batch.it]
        chances = selfattn.softmax(self._read_out(at_it))
        loss = -np.log(chances[count, batch.answer]).mean()

        grad_logits = chances
        grad_logits[count, batch.answer] -= 1
        grad_logits /= len(count)
        grad_found = np.zeros_like(found)
        grad_found[count, batch.it] = grad_logits @ self.params["readout.weight"]
        grad, (grad_keys, grad_positions) = self.layers[-1].backward(grad_found)
        grad += grad_keys
        for layer in reversed(self.layers[:-1]):
            grad += layer.backward(grad)

        grads = {"readout.weight": grad_logits.T @ at_it, "readout.bias": grad_logits.sum(0)}
        grads |= self._of_layers(lambda layer: layer.grads)
        for name in ("embedding", "positions"):
            grads[name] = np.zeros_like(self.params[name])
        np.add.at(grads["embedding"], batch.words, grad)
        grads["positions"][: grad.shape[1]] = grad.sum(0) + grad_positions
        return float(loss), grads

    def _hidden(self, batch, requires_grad=False):
        """What goes into the last layer: (n, longest, WIDTH)."""
        hidden = self.params["embedding"][batch.words] + self._positions(batch)
        options = {"kv_lengths": batch.lengths, "requires_grad": requires_grad}
        for layer in self.layers[:-1]:
            hidden = hidden + layer.forward(hidden, **options)
        return hidden

    def _found(self, hidden, batch, requires_grad=False):
        """What comes out of the last layer: (n, longest, WIDTH)."""
        context = hidden, self._positions(batch)
        options = {"kv_lengths": batch.lengths, "requires_grad": requires_grad}
        return self.layers[-1].forward(hidden, context, **options)

    def _positions(self, batch):
        return self.params["positions"][: batch.words.shape[1]]

    def _read_out(self, at_it):
        return selfattn.project(at_it, self.params["readout.weight"], self.params["readout.bias"])

    def _of_layers(self, arrays):
        return {
            f"attention{n}.{name}": x
            for n, layer in enumerate(self.layers, 1)
            for name, x in arrays(layer).items()
        }
