"""A prefix that sequences share, attended to once for the queries of all.

    state of the sequences' queries over the prefix's keys  ->  each goes on with its own keys

Queries of sequences that begin with the same pages are rows that share a key/value head, as those
of a group's heads are, so that the prefix is read once for all. It is cut to end at a multiple of
512 keys: a query then has the bits that it has alone (AttentionState). Called by paged.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .. import _args, _core
from ..state import empty_state
from .attend import set_options

if TYPE_CHECKING:
    from .._core import AttentionProblem
    from .attend import Call

ALIKE = ("is_causal", "scale", "softcap", "sinks")  # a prefix is seen alike from all positions

# (query, pages of each batch entry, keys of the longest) -> the problem, without options
MakeProblem = Callable[[np.ndarray, list[np.ndarray], int], "AttentionProblem"]


class Prefix(NamedTuple):
    """The first pages of some of the call's entries, the same for all of these."""

    entries: list[int]
    pages: np.ndarray


def prefixes(call: Call, tables: list[np.ndarray], size: int) -> list[Prefix]:
    """Those that are worth it; none where options look at positions."""
    if len(tables) < 2 or call.query.size == 0:
        return []
    defaults = {row.name: row.default for row in _args.options_of("scaled_dot_product_attention")}
    others = [name for name in call.options if name not in ALIKE]
    values = tuple(call.options[name] for name in others)
    if _core.nondefault(tuple(others), tuple(defaults[name] for name in others), values):
        return []
    beginnings: dict[int, list[int]] = {}
    for b, table in enumerate(tables):
        if len(table):
            beginnings.setdefault(int(table[0]), []).append(b)
    groups = (entries for entries in beginnings.values() if len(entries) > 1)
    found = (Prefix(entries, _common(call, tables, size, entries)) for entries in groups)
    return [prefix for prefix in found if len(prefix.pages)]


def _common(call: Call, tables: list[np.ndarray], size: int, entries: list[int]) -> np.ndarray:
    """The first pages of all these entries, whole splits of keys that all of their queries see."""
    common = tables[entries[0]][: max(0, int(call.offsets[entries].min())) // size]
    for b in entries[1:]:
        common = common[: len(tables[b])]
        differ = np.flatnonzero(tables[b][: len(common)] != common)
        common = common[: differ[0] if len(differ) else None]
    step = _core.SPLIT // int(np.gcd(_core.SPLIT, size))  # pages that make whole splits
    return common[: len(common) // step * step]


def attend(
    call: Call,
    tables: list[np.ndarray],
    size: int,
    found: list[Prefix],
    make_problem: MakeProblem,
    out: np.ndarray,
    lse: np.ndarray | None,
) -> None:
    """The call's result: of the prefixes first, then of what each entry has beside its own."""
    batch, heads_of_query, seqlen_q, head_dim = call.query.shape
    heads, head_dim_v = out.shape[1], out.shape[-1]
    begins = np.zeros(batch, np.int64)  # where each entry's other keys begin
    real = _args.real_dtype(call.query.dtype)
    states = empty_state((batch, heads, seqlen_q, _core.STATE_HEAD + head_dim_v), real)
    is_natural = False
    for entries, pages in found:
        n = len(entries) * seqlen_q
        rows = call.query[entries].swapaxes(0, 1).reshape(1, heads_of_query, n, head_dim)
        problem = make_problem(rows, [pages], len(pages) * size)
        # All see all of it; sinks join at the end.
        _args.set_options(problem, call.options | {"is_causal": False, "sinks": None})
        state = empty_state((1, heads, n, states.shape[-1]), real)
        is_natural = problem.update(state, False, call.num_threads)
        by_entry = state.reshape(heads, len(entries), seqlen_q, -1)
        states[entries] = by_entry.swapaxes(0, 1)
        begins[entries] = len(pages) * size
    others = [table[begin // size :] for table, begin in zip(tables, begins, strict=True)]
    longest = int((call.lengths - begins).max(initial=0))
    problem = make_problem(call.query, others, longest)
    set_options(problem, call, begins)
    problem.set_place(0, int(begins.max()))
    problem.attend_to_state(states, is_natural, out, lse, call.num_threads)
