"""Rules of which keys are visible, whose time growth.py follows over the length.

non-causal    L^2 scores                  a window of w    L w
causal        L^2 / 2                     documents        the sum of their squares
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfattn.bench.rows import Row

NUM_HEADS, HEAD_DIM = 8, 64
SHORTEST = 64
WINDOW = 256
DOCUMENT = 512


@dataclass(frozen=True)
class Rule:
    """Which keys are visible: as arguments of a call, and how many scores of a head there are."""

    name: str
    arguments: Callable[[int], dict]
    scores: Callable[[int], int]
    is_packed: bool = False  # the documents are sequences of one varlen_attention instead


def shape(length):
    """The row of a length."""
    return Row("growth", 1, NUM_HEADS, NUM_HEADS, length, length, HEAD_DIM)


def _causal(length):
    return length * (length + 1) // 2


def _in_window(length):
    full = max(length - WINDOW, 0)  # queries that see WINDOW keys; the others see fewer
    return full * WINDOW + _causal(length - full)


def _in_documents(length):
    whole, rest = divmod(length, DOCUMENT)
    return whole * DOCUMENT**2 + rest**2


def _ids(length):
    return {"segment_ids": np.arange(length) // DOCUMENT}


RULES = (
    Rule("non-causal", lambda length: {}, lambda length: length**2),
    Rule("causal", lambda length: {"is_causal": True}, _causal),
    Rule(
        f"causal window of {WINDOW}",
        lambda length: {"window_size": (WINDOW - 1, 0)},
        _in_window,
    ),
    Rule(f"documents of {DOCUMENT}, segment_ids", _ids, _in_documents),
    Rule(f"documents of {DOCUMENT}, varlen_attention", _ids, _in_documents, is_packed=True),
)
