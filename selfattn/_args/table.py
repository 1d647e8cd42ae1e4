"""Attention's options, one a row: name, default, the functions that take it, its check, its setter.

A new option is a row here, its check in `options.py`, its setter in `_core.pyx`, and its place in
the functions that take it: in their signatures, which stay written out for documentation and for
type checkers, and in the tuple of values below them. `tests/options/test_options_table.py` holds
both to the rows. (`locals()` would spare the tuple, and take longer than a small call.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import _core
from .._core import AttentionProblem as Problem
from . import options

_FORWARD = {"scaled_dot_product_attention", "varlen_attention"}
_BACKWARD = {f"{name}_backward" for name in _FORWARD}
_SCORES, _WEIGHTS = {"scaled_dot_product"}, {"attention_weights"}
_LAYER, _LAYER_WEIGHTS = {"MultiheadAttention.forward"}, {"MultiheadAttention.attention_weights"}

_FUNCTIONS = _FORWARD | _BACKWARD | _SCORES | _WEIGHTS  # a layer's options are those of its calls
_NORMALISED = _FORWARD | _BACKWARD | _LAYER | _WEIGHTS | _LAYER_WEIGHTS
_ALL = _NORMALISED | _SCORES


class Option:  # no NamedTuple or dataclass, which every import of the package would make anew
    """One option of attention."""

    __slots__ = ("check", "default", "functions", "name", "setter")

    def __init__(
        self,
        name: str,
        default: object,
        functions: set[str],  # that take it
        check: Callable[[Any, Problem], Any] | None = None,  # (value, problem) -> for `setter`
        setter: Callable[[Problem, Any], None] | None = None,
    ) -> None:
        self.name, self.default, self.functions = name, default, functions
        self.check, self.setter = check, setter


# In the order of every signature, where those that may be given by place come first. Options
# without a check are of the call, not of the problem: they are checked where they are used.
# `enable_gqa` has no setter: it says which arrays make a problem.
TABLE = (
    Option("attn_mask", None, _ALL, options.attn_mask, Problem.set_mask),
    Option("dropout_p", 0.0, _NORMALISED, options.dropout_p, Problem.set_dropout_p),
    Option("is_causal", False, _ALL, options.is_causal, Problem.set_causal),
    Option("scale", None, _ALL, options.scale, Problem.set_scale),
    Option("enable_gqa", False, _FUNCTIONS, options.enable_gqa),
    Option("attn_bias", None, _ALL, options.attn_bias, Problem.set_bias),
    Option("query_offset", 0, _ALL, options.query_offset, Problem.set_query_offset),
    Option("query_lengths", None, _ALL, options.query_lengths, Problem.set_query_lengths),
    Option("kv_starts", None, _ALL, options.kv_starts, Problem.set_kv_starts),
    Option("kv_lengths", None, _ALL, options.kv_lengths, Problem.set_kv_lengths),
    Option("window_size", (-1, -1), _ALL, options.window_size, Problem.set_window),
    Option("softcap", 0.0, _ALL, options.softcap, Problem.set_softcap),
    Option("alibi_slopes", None, _ALL, options.alibi_slopes, Problem.set_alibi_slopes),
    Option("sinks", None, _NORMALISED, options.sinks, Problem.set_sinks),
    Option("segment_ids", None, _ALL, options.segment_ids, Problem.set_segments),
    Option("dropout_seed", 0, _NORMALISED, options.dropout_seed, Problem.set_dropout_seed),
    Option("return_lse", False, _FORWARD),
    Option("grad_lse", None, _BACKWARD),
    Option("mask_grad", False, _BACKWARD),
    Option("bias_grad", False, _BACKWARD),
    Option("sinks_grad", False, _BACKWARD),
    Option("out", None, _FORWARD | _SCORES | _WEIGHTS),
    Option("num_threads", None, _ALL),
)
_SETTERS = {
    option.name: (option.default, option.check, option.setter)
    for option in TABLE
    if option.check and option.setter
}


def options_of(function: str) -> tuple[Option, ...]:
    """The rows of what a function takes, in the order of its signature."""
    return tuple(option for option in TABLE if function in option.functions)


def set_options(problem: Problem, values: dict[str, Any]) -> None:
    """Check the values of options, by name, and set them; a new problem has the defaults."""
    for name, x in values.items():
        default, check, setter = _SETTERS[name]
        if x is not default:
            setter(problem, check(x, problem))


def _names_and_defaults(function: str) -> tuple[tuple[str, ...], tuple[object, ...]]:
    rows = [option for option in options_of(function) if option.check is not None]
    return tuple(option.name for option in rows), tuple(option.default for option in rows)


_OF_PROBLEM = {function: _names_and_defaults(function) for function in _FUNCTIONS}


def nondefault(function: str, values: tuple[Any, ...]) -> dict[str, Any]:
    """{name: value} of the options that the problem is made of and that differ from their default.

    `values` are those of all of the function's options that have a check, in the table's order.
    """
    names, defaults = _OF_PROBLEM[function]
    return _core.nondefault(names, defaults, values)
