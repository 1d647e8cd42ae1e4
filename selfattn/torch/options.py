"""Attention's options as operators take them, and as the NumPy API does.

An operator's schema knows tensors and numbers apart, so an option that may be either is two
arguments of it: `query_offset` and `query_offsets`, `dropout_seed` and `dropout_seeds`. A window
and a pair of segment ids are two arguments each, and `floats_as_bools` is the provider's alone
(`masks.py`). OPTIONS is the one list of them, in the order of every operator's arguments: schemas
are written from it, and arguments that the dispatcher leaves out, since they equal the default, are
filled in from it.

The values themselves are checked by the NumPy API, when a kernel runs; here only what a schema
could not take is refused.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import _core
from .._args import flag
from .._args.numbers import finite, integer
from .arrays import array_of
from .masks import bools_of

OPTIONS: tuple[tuple[str, str, Any], ...] = (
    ("Tensor?", "attn_mask", None),
    ("float", "dropout_p", 0.0),
    ("bool", "is_causal", False),
    ("float?", "scale", None),
    ("bool", "enable_gqa", False),
    ("Tensor?", "attn_bias", None),
    ("SymInt", "query_offset", 0),
    ("Tensor?", "query_offsets", None),
    ("Tensor?", "query_lengths", None),
    ("Tensor?", "kv_starts", None),
    ("Tensor?", "kv_lengths", None),
    ("SymInt", "window_left", -1),
    ("SymInt", "window_right", -1),
    ("float", "softcap", 0.0),
    ("Tensor?", "alibi_slopes", None),
    ("Tensor?", "sinks", None),
    ("Tensor?", "query_segments", None),
    ("Tensor?", "key_segments", None),
    ("SymInt", "dropout_seed", 0),
    ("Tensor?", "dropout_seeds", None),
    ("int?", "num_threads", None),
    ("bool", "floats_as_bools", False),
)
NAMES = tuple(name for _, name, _ in OPTIONS)
DEFAULTS = tuple(default for _, _, default in OPTIONS)
SCHEMA = ", ".join(f"{kind} {name}={default}" for kind, name, default in OPTIONS)

TENSORS = tuple(i for i, (kind, _, _) in enumerate(OPTIONS) if kind == "Tensor?")
MASK, BIAS, SINKS, SEEDS = (
    NAMES.index(name) for name in ("attn_mask", "attn_bias", "sinks", "dropout_seeds")
)
# Those that are flags, which the kernels take without a look by the validator.
_SHORT = frozenset(("enable_gqa", "is_causal"))
# Those that have a gradient, in the order in which the operators return them.
DIFFERENTIABLE = MASK, SINKS, BIAS


def drawn_seed() -> torch.Tensor:
    """A seed of dropout, from PyTorch's generator."""
    return torch.randint(0, 2**62, (), dtype=torch.int64, device="cpu")


def filled(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """All options, of those that the dispatcher passed on: the last ones may be left out."""
    return options + DEFAULTS[len(options) :]


def of_call(
    attn_mask: Any, dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: Any, attn_bias: Any,
    query_offset: Any, query_lengths: Any, kv_starts: Any, kv_lengths: Any, window_size: Any,
    softcap: Any, alibi_slopes: Any, sinks: Any, segment_ids: Any, dropout_seed: Any,
    num_threads: Any,
) -> tuple[Any, ...]:  # fmt: skip
    """The operator's arguments, of the options of a public function."""
    if isinstance(segment_ids, (tuple, list)):
        if len(segment_ids) != 2:
            raise ValueError(
                f"segment_ids: expected one tensor or a pair, got {len(segment_ids)} of them"
            )
        query_segments, key_segments = (_tensor("segment_ids", ids) for ids in segment_ids)
    else:
        query_segments, key_segments = _tensor("segment_ids", segment_ids), None
    if window_size is None:
        window_size = (-1, -1)
    if not isinstance(window_size, (tuple, list)) or len(window_size) != 2:
        raise TypeError(f"window_size: expected two ints (left, right), got {window_size!r}")
    left, right = (_int("window_size", side) for side in window_size)
    offsets = seeds = None
    if isinstance(query_offset, torch.Tensor):
        query_offset, offsets = 0, query_offset
    if isinstance(dropout_seed, torch.Tensor):
        dropout_seed, seeds = 0, dropout_seed
    seed = _int("dropout_seed", dropout_seed)
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"dropout_seed: expected an int of 64 bits, got {seed}")
    return (
        _tensor("attn_mask", attn_mask),
        _float("dropout_p", dropout_p),
        flag("is_causal", is_causal),
        None if scale is None else _float("scale", scale),
        flag("enable_gqa", enable_gqa),
        _tensor("attn_bias", attn_bias),
        _int("query_offset", query_offset),
        offsets,
        _lengths("query_lengths", query_lengths),
        _lengths("kv_starts", kv_starts),
        _lengths("kv_lengths", kv_lengths),
        left,
        right,
        0.0 if softcap is None else _float("softcap", softcap),
        _tensor("alibi_slopes", alibi_slopes),
        _tensor("sinks", sinks),
        query_segments,
        key_segments,
        seed - 2**64 if seed >= 2**63 else seed,
        seeds,
        num_threads,
        False,
    )


def _tensor(name: str, x: Any) -> Any:
    if x is None or isinstance(x, torch.Tensor):
        return x
    raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")


def _lengths(name: str, x: Any) -> Any:
    """A tensor, of one number where an int is given."""
    if _is_int(x):
        return torch.full((), x, dtype=torch.int64, device="cpu")
    return _tensor(name, x)


def _is_int(x: Any) -> bool:
    return isinstance(x, (int, torch.SymInt)) and not isinstance(x, bool)


def _int(name: str, x: Any) -> Any:
    return x if _is_int(x) else integer(name, x)


def _float(name: str, x: Any) -> Any:
    return x if isinstance(x, (float, torch.SymFloat)) else finite(name, x)


def of_kernel(options: tuple[Any, ...]) -> dict[str, Any]:
    """The keywords of the NumPy API, of an operator's arguments: those that are no defaults."""
    given: dict[str, Any] = _core.nondefault(NAMES, DEFAULTS, options)
    if not given:
        return given
    for name, x in given.items():
        if isinstance(x, torch.Tensor):
            given[name] = array_of(name, x)
    if given.pop("floats_as_bools", False) and "attn_mask" in given:
        given["attn_mask"] = bools_of(given["attn_mask"])
    if "window_left" in given or "window_right" in given:
        given["window_size"] = given.pop("window_left", -1), given.pop("window_right", -1)
    if "query_offsets" in given:
        given["query_offset"] = given.pop("query_offsets")
    if "dropout_seeds" in given:
        given["dropout_seed"] = _one_seed(given.pop("dropout_seeds"))
    if "query_segments" in given:
        ids, of_key = given.pop("query_segments"), given.pop("key_segments", None)
        given["segment_ids"] = ids if of_key is None else (ids, of_key)
    return given


def is_short(keywords: dict[str, Any]) -> bool:
    """Whether these are options that the kernels take without a look by the validator."""
    return not keywords or keywords.keys() <= _SHORT


def short(keywords: dict[str, Any]) -> tuple[bool, bool]:
    """(enable_gqa, is_causal)."""
    if not keywords:
        return False, False
    return (
        flag("enable_gqa", keywords.get("enable_gqa", False)),
        flag("is_causal", keywords.get("is_causal", False)),
    )


def _one_seed(seeds: Any) -> int:
    if seeds.size != 1:
        raise ValueError(f"dropout_seed: expected an int or a tensor of one, got {seeds.shape}")
    return integer("dropout_seed", seeds.item())
