"""The options of attention: the row that they are timed on, their arguments, their limits.

Used by bench/options.py, which holds each against the BARE call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selfattn import reference
from selfattn.bench.rows import Row

BASE = Row("options", 4, 12, 12, 1024, 1024, 64)
# Scores of N(0, 1) inputs are N(0, 1) too: a cap low enough to change them.
SOFTCAP = 5.0


@dataclass(frozen=True)
class Option:
    """One option: its arguments on a row, and what its cost is held against."""

    name: str
    what: str
    build: Callable[[Row, np.random.Generator], dict]
    limit: float | None = None
    empties: bool = False  # masks whole blocks of keys, which need not be computed

    def arguments(self, row):
        """Its keyword arguments, the same numbers every time."""
        return self.build(row, np.random.default_rng(0))


def _full(row):
    return row.batch, 1, row.seqlen_q, row.seqlen_k


def _lower_triangle(row, rng):
    return {"attn_mask": np.tri(*_full(row)[2:], dtype=bool) & np.ones(_full(row), bool)}


def _lengths(row):
    """From half of the keys to all of them, over the batch."""
    return np.linspace(row.seqlen_k // 2, row.seqlen_k, row.batch).astype(np.int64)


def _is_key(row):
    """The same lengths as a mask, (B, 1, 1, S)."""
    return np.arange(row.seqlen_k) < _lengths(row)[:, None, None, None]


def _float_padding(row, rng):
    return {"attn_mask": np.where(_is_key(row), 0, -np.inf).astype(row.dtype)}


def _alibi(row, rng):
    """The slopes of Press et al., "Train short, test long" (2022)."""
    head = np.arange(1, row.num_heads_q + 1)
    return {"alibi_slopes": (2.0 ** (-8 * head / row.num_heads_q)).astype(row.dtype)}


def _documents(row, rng):
    """Eight documents in each batch entry, cut anywhere: cuts between blocks would flatter."""
    places = np.arange(1, row.seqlen_q)
    cuts = np.array([rng.choice(places, 7, replace=False) for _ in range(row.batch)])
    return {"segment_ids": (np.arange(row.seqlen_q) >= cuts[:, :, None]).sum(1)}


BARE = Option("bare", "no option", lambda row, rng: {})

# An option without a limit that `empties` blocks is to cost the visible share.
OPTIONS = (
    Option(
        "bool-random",
        "full bool mask, half True at random",
        lambda row, rng: {"attn_mask": rng.random(_full(row)) < 0.5},
        limit=1.25,
    ),
    Option(
        "bool-true",
        "full bool mask, all True",
        lambda row, rng: {"attn_mask": np.ones(_full(row), bool)},
        limit=1.25,
    ),
    Option("bool-causal", "full bool mask, causal", _lower_triangle, limit=1.25, empties=True),
    Option(
        "float",
        "full float mask",
        lambda row, rng: {"attn_mask": rng.standard_normal(_full(row), dtype=row.dtype)},
    ),
    Option(
        "padding-bool",
        "key padding, bool, S/2 to S keys",
        lambda row, rng: {"attn_mask": _is_key(row)},
        limit=1.08,
        empties=True,
    ),
    Option(
        "padding-float",
        "key padding, float, S/2 to S keys",
        _float_padding,
        limit=1.08,
        empties=True,
    ),
    Option(
        "keys-random",
        "key mask, half True at random",
        lambda row, rng: {"attn_mask": rng.random((row.batch, 1, 1, row.seqlen_k)) < 0.5},
        limit=1.08,
    ),
    Option("alibi", "ALiBi", _alibi, limit=1.08),
    Option(
        "sinks",
        "sinks",
        lambda row, rng: {"sinks": rng.standard_normal(row.num_heads_q, dtype=row.dtype)},
        limit=1.08,
    ),
    Option("softcap", "softcap", lambda row, rng: {"softcap": SOFTCAP}),
    Option(
        "kv-lengths",
        "kv_lengths, S/2 to S keys",
        lambda row, rng: {"kv_lengths": _lengths(row)},
        empties=True,
    ),
    Option("causal", "causal", lambda row, rng: {"is_causal": True}, empties=True),
    Option(
        "window",
        "causal window of 128 keys",
        lambda row, rng: {"window_size": (127, 0)},
        empties=True,
    ),
    Option("documents", "segment_ids, 8 documents", _documents, empties=True),
    Option(
        "scattered",
        "segment_ids, 8 ids at random",
        lambda row, rng: {"segment_ids": rng.integers(8, size=(row.batch, row.seqlen_q))},
    ),
)


def visible_share(row, arguments):
    """The share of the scores that are not masked: the reference gives a masked key no weight."""
    query = np.zeros((row.batch, 1, row.seqlen_q, 1), row.dtype)
    key = np.zeros((row.batch, 1, row.seqlen_k, 1), row.dtype)
    return float(np.mean(reference.attention_weights(query, key, **arguments) > 0))
