"""A sentence -> its words, as a reader sees them; which one `--word` means; what may be shown.

Words stand between spaces, with punctuation at their ends taken off as words of its own, and each
Chinese character by itself, as BERT does. Called by `__init__.py`, `heads.py`, `minilm.py`,
`show.py`, `learn/show.py` and `cli.py`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_IDEOGRAPHS = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f"
_IN_A_CHUNK = re.compile(f"[{_IDEOGRAPHS}]|[^{_IDEOGRAPHS}]+")
_COMMANDS = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_LISTED = 12  # words that an error message lists


class DemoError(ValueError):
    """What the user asked for cannot be shown; the message is one line that says why."""


@dataclass(frozen=True)
class Word:
    """A word and where it stands: `text == sentence[start:end]`."""

    text: str
    start: int
    end: int


def printable(text: str) -> str:
    """The text with what would command a terminal, or turn the order of its characters, escaped."""
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def clean(text: str) -> str:
    """The text in composed form (a Hangul syllable is one character then), with single spaces."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DemoError("the sentence is not valid text in this terminal's encoding") from None
    return " ".join(unicodedata.normalize("NFC", text).split())


def split(sentence: str) -> list[Word]:
    """The words of a cleaned sentence, punctuation included, in order."""
    spans = []
    for chunk in re.finditer(r"\S+", sentence):
        start, end = chunk.span()
        first, last = start, end
        while first < last and is_mark(sentence[first]):
            first += 1
        while last > first and is_mark(sentence[last - 1]):
            last -= 1
        spans += [(i, i + 1) for i in range(start, first)]
        spans += [m.span() for m in _IN_A_CHUNK.finditer(sentence, first, last)]
        spans += [(i, i + 1) for i in range(last, end)]
    words = [Word(sentence[start:end], start, end) for start, end in spans]
    return [word for word in words if any(_is_visible(character) for character in word.text)]


def is_mark(text: str) -> bool:
    """Whether a word is nothing but punctuation and symbols."""
    return all(unicodedata.category(character)[0] in "PS" for character in text)


def positions(words: Sequence[str], wanted: str) -> list[int]:
    """Where `wanted` stands among the words, whatever its case; DemoError where it does not."""
    wanted = clean(wanted)
    found = [i for i, word in enumerate(words) if word.casefold() == wanted.casefold()]
    if not found:
        listed = ", ".join(words[:_LISTED]) + (", ..." if len(words) > _LISTED else "")
        raise DemoError(f"--word {wanted!r} is not a word of the sentence, which has: {listed}")
    return found


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf")
