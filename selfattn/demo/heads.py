"""In which heads of MiniLM does a word attend most sharply? The maps, merged to words, say.

A word of several word pieces attends as the mean of its pieces, and is attended with their sum
(Clark et al., "What does BERT look at?", 2019). Sharpest is the head in which the word gives the
most weight to one other word. Itself does not count, wherever it stands; nor do [CLS], [SEP] and
punctuation: heads with nothing to say rest their weight there. Nor do heads count that look at the
token before or after, whatever it is: they would win every time, and say nothing of the word.

Several heads are found, each the sharpest on another word: one alone would look like the model's
answer. Called by `__init__.py`; `show_head.py` shows the result.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

import selfattn
from selfattn import reference

from .measure import largest_difference, median_seconds
from .minilm import MiniLM
from .words import DemoError, Word, clean, is_mark, positions, split

_BY_POSITION = 0.4  # mean weight on a neighbour, among tokens that mean nothing together
_HEADS = 3  # shown


@dataclass(frozen=True)
class Head:
    """A head, its map over the labels, and the label that the focus attends to most.

    `layer` and `head` count from 0, `name` from 1.
    """

    layer: int
    head: int
    target: int
    map: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.layer + 1}.{self.head + 1}"


@dataclass(frozen=True)
class Sharpest:
    """The heads that were found, the sharpest first, and how its layer's attention ran.

    `focus` attends to each head's target, both indices in `labels`, as the sharpest of `candidates`
    words. `has_no_other` says that the sentence has no other word, so that everything else counted.
    `is_chosen` says that the user chose the head. `by_position` has the heads (layer, head) that
    did not count, `left_out` the number of words past the model's limit.
    """

    sentence: str
    labels: tuple[str, ...]
    heads: tuple[Head, ...]
    focus: int
    has_no_other: bool
    is_chosen: bool
    candidates: int
    by_position: tuple[tuple[int, int], ...]
    left_out: int
    shape: tuple[int, ...]
    seconds: float
    calls: int
    difference: float


def sharpest(
    model: MiniLM, sentence: str, wanted: str | None = None, name: str | None = None
) -> Sharpest:
    """Run the model on a sentence; find the heads for a word, or for the sharpest of all words.

    `name` is that of one head, "6.12", which is then the only one to count.
    """
    sentence = clean(sentence)
    words = split(sentence)
    encoding = model.tokenizer.encode(sentence)
    kept, groups = _pieces_of_words(words, encoding)
    labels = ("[CLS]", *(word.text for word in kept), "[SEP]")
    focuses = _focuses(words, kept, wanted)

    positional = by_position(model)
    left_out = positional if name is None else ~_only(model, name)
    calls = _attention_calls(model, encoding.ids)
    maps = merge(_maps(calls), groups)
    focus, found, has_no_other = find(maps, labels, focuses, left_out)
    query, key, value, _ = calls[found[0][0]]
    seconds, timed = median_seconds(
        lambda: selfattn.scaled_dot_product_attention(query, key, value)
    )
    return Sharpest(
        sentence=sentence,
        labels=labels,
        heads=tuple(Head(*at, maps[at[:2]]) for at in found),
        focus=focus,
        has_no_other=has_no_other,
        is_chosen=name is not None,
        candidates=len(focuses),
        by_position=tuple((int(i), int(j)) for i, j in np.argwhere(positional)),
        left_out=len(words) - len(kept),
        shape=query.shape,
        seconds=seconds,
        calls=timed,
        difference=max(_difference(*call) for call in calls),
    )


def _only(model: MiniLM, name: str) -> np.ndarray:
    """Which heads (layers, heads) have that name: one, or DemoError."""
    only = np.zeros((model.num_layers, model.num_heads), bool)
    match = re.fullmatch(r"([0-9]{1,2})\.([0-9]{1,2})", name)
    layer, head = (int(number) for number in match.groups()) if match else (0, 0)
    if not (1 <= layer <= model.num_layers and 1 <= head <= model.num_heads):
        raise DemoError(
            f"--head: expected LAYER.HEAD, layers 1 to {model.num_layers} and heads 1 to "
            f"{model.num_heads}, got {name!r}"
        )
    only[layer - 1, head - 1] = True
    return only


def merge(maps: np.ndarray, groups: list[list[int]]) -> np.ndarray:
    """Maps over word pieces (..., T, T) to maps over words (..., W, W), whose rows sum to 1 too."""
    member = np.zeros((len(groups), maps.shape[-1]))
    for row, pieces in zip(member, groups, strict=True):
        row[pieces] = 1.0
    return (member / member.sum(-1, keepdims=True)) @ maps @ member.T


def by_position(model: MiniLM) -> np.ndarray:
    """Which heads (layers, heads) attend by position: True where, among 64 tokens without a
    meaning, the token before or the token after gets most of the weight."""
    first, past = 1996, 29000  # the vocabulary between these is words and pieces of words
    ids = [first + 7919 * i % (past - first) for i in range(64)]
    maps = _maps(_attention_calls(model, ids))
    neighbours = [np.diagonal(maps, offset, -2, -1).mean(-1) for offset in (-1, 1)]
    return np.max(neighbours, axis=0) > _BY_POSITION


def find(
    maps: np.ndarray, labels: tuple[str, ...], focuses: list[int], left_out: np.ndarray
) -> tuple[int, list[tuple[int, int, int]], bool]:
    """Where in maps (layers, heads, W, W) a focus gives the most weight to another word.

    Returns the focus, the places (layer, head, target) of the heads that are sharpest on different
    targets, and whether there was no other word to count. Heads that are `left_out` do not count.
    """
    names = np.array([label.casefold() for label in labels])
    is_word = np.array([not is_mark(label) for label in labels])
    is_word[[0, -1]] = False  # [CLS] and [SEP]
    best: tuple[float, int, np.ndarray, bool] | None = None
    for focus in focuses:
        counts = is_word & (names != names[focus])
        has_no_other = not counts.any()
        if has_no_other:
            counts = np.arange(len(labels)) != focus
        given = np.where(counts & ~left_out[..., None], maps[:, :, focus], -1.0)
        if best is None or given.max() > best[0]:
            best = given.max(), focus, given, has_no_other
    _, focus, given, has_no_other = best
    places = []
    while len(places) < _HEADS and given.max() >= 0:
        layer, head, target = (int(i) for i in np.unravel_index(given.argmax(), given.shape))
        places.append((layer, head, target))
        given[:, :, target] = given[layer, head] = -1.0
    return focus, places, has_no_other


def _attention_calls(model: MiniLM, ids: list[int]) -> list[tuple[np.ndarray, ...]]:
    """Run the model on tokens; the query, key, value and result of each layer's attention."""
    calls = []

    def attention(query, key, value, kv_lengths=None):
        out = selfattn.scaled_dot_product_attention(query, key, value, kv_lengths=kv_lengths)
        calls.append((query, key, value, out))
        return out

    model.hidden_states(np.array([ids]), np.array([len(ids)]), attention=attention)
    return calls


def _maps(calls: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """The attention maps of a run on one sentence: (layers, heads, T, T)."""
    return np.stack([selfattn.attention_weights(query, key)[0] for query, key, _, _ in calls])


def _pieces_of_words(words: list[Word], encoding) -> tuple[list[Word], list[list[int]]]:
    """The words that the model sees, and the pieces of [CLS], of each of them and of [SEP]."""
    pieces: dict[int, list[int]] = {}
    last = len(encoding.ids) - 1
    for piece in range(1, last):
        start, end = encoding.offsets[piece]
        word = next(i for i, word in enumerate(words) if word.start < end and start < word.end)
        pieces.setdefault(word, []).append(piece)
    seen = sorted(pieces)
    return [words[i] for i in seen], [[0], *(pieces[i] for i in seen), [last]]


def _focuses(words: list[Word], kept: list[Word], wanted: str | None) -> list[int]:
    """Where in the labels the words to look at stand: every occurrence of the one wanted."""
    if not kept:
        raise DemoError("the sentence has no words")
    if wanted is None:
        plain = [i for i, word in enumerate(kept, 1) if not is_mark(word.text)]
        return plain or list(range(1, len(kept) + 1))
    everywhere = positions([word.text for word in words], wanted)
    found = [kept.index(words[i]) + 1 for i in everywhere if words[i] in kept]
    if not found:
        raise DemoError(
            f"--word {wanted!r} lies past the {MiniLM.max_tokens} tokens that the model reads"
        )
    return found


def _difference(query, key, value, out) -> float:
    """How far the fused result lies from the reference's in float64."""
    truth = reference.scaled_dot_product_attention(
        *(array.astype(np.float64) for array in (query, key, value))
    )
    return largest_difference(out, truth)
