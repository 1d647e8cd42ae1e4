"""Words as labels: a font for each of their characters, how wide they are, where they are cut.

Matplotlib draws a box for a character that its font lacks. So installed fonts are looked through,
the usual ones of each script first, until every character has one. Called by `heat.py`, `word.py`.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

INK, QUIET, ACCENT = "#1b1f3b", "#6b7086", "#b8401a"
POINTS = 72.0  # an inch
_LONGEST = 18  # cells
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# Fonts of many scripts, and of Korean, Japanese and Chinese on Linux, macOS and Windows: first.
_LIKELY = (
    "Noto Sans CJK KR", "NanumGothic", "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR",
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Yu Gothic",
    "Microsoft YaHei", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS",
)  # fmt: skip


def label(token: str) -> str:
    """A token as it is drawn: control characters escaped, the end of a long one cut off."""
    token = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), token)
    if cells(token) <= _LONGEST:
        return token
    while cells(token) > _LONGEST - 1:
        token = token[:-1]
    return token + "…"


def cells(text: str) -> int:
    """How wide a text is, in widths of a digit: 2 for an East Asian character."""
    wide = (unicodedata.east_asian_width(character) in "WF" for character in text)
    marks = (unicodedata.combining(character) > 0 for character in text)
    return sum(0 if mark else 1 + double for double, mark in zip(wide, marks, strict=True))


def inches(text: str, size: float) -> float:
    """About how wide a text of that font size is: a little more than it is."""
    return cells(text) * 0.64 * size / POINTS


def families(texts: Iterable[str]) -> list[str]:
    """Font families that together have the characters of the texts, as far as any does.

    The first is the one that Matplotlib's settings choose.
    """
    return list(_families(frozenset("".join(texts)))[0])


def without_font(texts: Iterable[str]) -> str:
    """The characters of the texts that no installed font has: they are drawn as boxes."""
    return _families(frozenset("".join(texts)))[1]


def write(text: Any, family: Sequence[str], **style: Any) -> None:
    """Set a Matplotlib text's fonts and style; what it says is not read as mathematics."""
    if len(family) > len(mpl.rcParams["font.family"]):
        style.pop("fontweight", None)  # few of the others are there in bold
    text.set(fontfamily=list(family), parse_math=False, **style)


@functools.lru_cache(maxsize=64)
def _families(characters: frozenset[str]) -> tuple[tuple[str, ...], str]:
    default = font_manager.findfont(font_manager.FontProperties())
    families = list(mpl.rcParams["font.family"])
    left = {c for c in characters if not c.isspace()} - _characters(default)
    if not left:
        return tuple(families), ""
    paths = {entry.name: entry.fname for entry in reversed(font_manager.fontManager.ttflist)}
    names = [name for name in _LIKELY if name in paths]
    names += sorted(name for name in paths if name not in names and "Last Resort" not in name)
    for name in names:
        has = left & _characters(paths[name])
        if has:
            families.append(name)
            left -= has
        if not left:
            break
    return tuple(families), "".join(sorted(left))


@functools.lru_cache(maxsize=512)
def _characters(path: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font that went away, or that FreeType cannot read
        return frozenset()
