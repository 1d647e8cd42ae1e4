"""Sentences whose "it" may mean either of two nouns, and which of them it means.

    The animal didn't cross the street because it was too tired.    it = the animal
    The animal didn't cross the street because it was too wide.     it = the street

A frame says who does what to what, and which adjectives tell that the doer is meant, and which that
the other is. None is enough by itself: a trophy that does not fit is too big, a box that nobody can
lift is too big as well; and a passive has the two nouns the other way round.

Training has made-up nouns alone, as in Berko's test of children ("This is a wug", 1958), and each
of them in any role: nothing can be learned from which noun it is. The test has real nouns, of which
no training has seen one. Called by `training.py`, `__init__.py` and the tests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """What x and y do, in several wordings, and the adjectives that point at each."""

    wordings: tuple[str, ...]
    of_x: tuple[str, ...]
    of_y: tuple[str, ...]
    x: str
    y: str


@dataclass(frozen=True)
class Sentence:
    """Words in lower case; where "it" stands, which noun it means, and which it does not."""

    words: tuple[str, ...]
    it: int
    antecedent: int
    other: int

    def __str__(self) -> str:
        return f"{' '.join(self.words).capitalize()}."


KINDS = ("animal", "place", "thing", "holder")
REAL = {
    "animal": "animal cat dog horse fox bear wolf goat cow sheep pig hen duck deer lion tiger "
    "camel mule rabbit squirrel badger otter beaver lizard turtle frog goose monkey elephant",
    "place": "street road river bridge field valley desert lake forest hill mountain path tunnel "
    "swamp canyon garden meadow square market park beach ditch stream glacier ridge lane highway",
    "thing": "trophy ball book lamp chair vase clock kettle guitar drum mirror pillow blanket "
    "statue barrel ladder table basket bottle jar toy globe plate shovel tent helmet cushion",
    "holder": "suitcase box bag drawer closet car van cupboard trunk locker shed cabinet chest "
    "case pocket backpack wagon cellar attic garage envelope tin pouch hall room boat truck crib",
}
REAL = {kind: tuple(nouns.split()) for kind, nouns in REAL.items()}


def _made_up(count: int) -> tuple[str, ...]:
    """Words that nobody knows: two syllables each, always the same."""
    starts, vowels = tuple("bdfgklmnprstvwz"), "aeiou"
    ends = ("b", "d", "g", "k", "lp", "m", "nt", "p", "rk", "x")
    words = [
        first + vowel + middle + other + end
        for first, middle in itertools.product(starts, starts)
        for vowel, other in itertools.product(vowels, vowels)
        for end in ends
    ]
    return tuple(words[i] for i in np.random.default_rng(0).permutation(len(words))[:count])


# Any of them does anything: what it is called says nothing about it.
MADE_UP = dict.fromkeys(KINDS, _made_up(4000))

FRAMES = (
    Frame(
        wordings=(
            "{x} didn't cross {y}",
            "{x} never crossed {y}",
            "{y} wasn't crossed by {x}",
            "{y} was never crossed by {x}",
        ),
        of_x=("tired", "scared", "sleepy", "hungry", "weak", "lazy", "old", "slow"),
        of_y=("wide", "long", "busy", "muddy", "dark", "noisy", "steep", "big"),
        x="animal",
        y="place",
    ),
    Frame(
        wordings=("{x} didn't fit into {y}", "{x} wouldn't go into {y}", "{y} didn't hold {x}"),
        of_x=("big", "large", "long", "wide", "bulky", "tall"),
        of_y=("small", "narrow", "tight", "short", "tiny", "full"),
        x="thing",
        y="holder",
    ),
    Frame(
        wordings=(
            "{x} couldn't lift {y}",
            "{x} didn't carry {y}",
            "{y} wasn't carried by {x}",
            "{y} couldn't be lifted by {x}",
        ),
        of_x=("weak", "small", "tired", "lazy", "tiny", "sleepy"),
        of_y=("heavy", "big", "large", "bulky", "hot", "full"),
        x="animal",
        y="thing",
    ),
    Frame(
        wordings=(
            "{x} didn't catch {y}",
            "{x} never caught {y}",
            "{y} wasn't caught by {x}",
            "{y} was never caught by {x}",
        ),
        of_x=("slow", "old", "clumsy", "lazy", "big"),
        of_y=("fast", "clever", "quick", "nimble", "small"),
        x="animal",
        y="animal",
    ),
)
OPENERS = ("", "", "yesterday", "last night", "this morning", "in the end")
BEFORE = ("the", "the", "that", "the little", "the neighbour's", "our old")
AFTER = ("", "", "outside", "over there", "next door", "of ours")
REASONS = ("because it was too", "because it was too", "since it was too", "as it seemed too")


def sentences(rng: np.random.Generator, nouns: dict[str, tuple[str, ...]]) -> Iterator[Sentence]:
    """Sentences without end, in pairs of two that differ in the adjective alone."""
    while True:
        frame = FRAMES[rng.integers(len(FRAMES))]
        x = _pick(rng, nouns[frame.x])
        y = x
        while y == x:
            y = _pick(rng, nouns[frame.y])
        wording = _pick(rng, frame.wordings)
        opener, reason = _pick(rng, OPENERS), _pick(rng, REASONS)
        phrases = (f"{_pick(rng, BEFORE)} {noun} {_pick(rng, AFTER)}" for noun in (x, y))
        clause = wording.format(**dict(zip("xy", phrases, strict=True)))
        for adjectives, antecedent, other in ((frame.of_x, x, y), (frame.of_y, y, x)):
            words = tuple(f"{opener} {clause} {reason} {_pick(rng, adjectives)}".split())
            yield Sentence(words, words.index("it"), words.index(antecedent), words.index(other))


def example(adjective: str) -> Sentence:
    """The sentence that the demo is about, of real nouns."""
    words = f"the animal didn't cross the street because it was too {adjective}".split()
    pair = words.index("animal"), words.index("street")
    antecedent, other = pair if adjective in FRAMES[0].of_x else pair[::-1]
    return Sentence(tuple(words), words.index("it"), antecedent, other)


def _pick(rng, choices):
    return choices[rng.integers(len(choices))]


def _vocabulary() -> tuple[str, ...]:
    nouns = {noun for words in (*REAL.values(), *MADE_UP.values()) for noun in words}
    texts = [*nouns, *OPENERS, *BEFORE, *AFTER, *REASONS]
    for frame in FRAMES:
        texts += [wording.format(x="", y="") for wording in frame.wordings]
        texts += [*frame.of_x, *frame.of_y]
    return tuple(sorted({word for text in texts for word in text.split()}))


VOCABULARY = _vocabulary()
LONGEST = 24  # words, more than any sentence has
