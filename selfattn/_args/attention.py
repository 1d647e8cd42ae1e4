"""Attention from arguments to arrays; its first gate is the fast path of calls without options."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import _core
from .._threads import count, get_num_threads
from .arrays import compute_into, real_dtype
from .options import flag
from .problems import attention_problem
from .table import options_of

# All but `out` and `num_threads`.
_OPTIONS = options_of("scaled_dot_product_attention")[:-2]
_NAMES = tuple(option.name for option in _OPTIONS)
_DEFAULTS = tuple(option.default for option in _OPTIONS)


def attend(
    query: Any, key: Any, value: Any, out: Any, values: tuple[Any, ...], num_threads: Any
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The result of `scaled_dot_product_attention`, of its options' values in the table's order."""
    if num_threads is not None:
        num_threads = count("num_threads", num_threads)
    result = _core.fast_path(
        query, key, value, out, values, _DEFAULTS, num_threads, get_num_threads
    )
    if result is not None:
        return result
    num_threads = num_threads or get_num_threads()
    options = _core.nondefault(_NAMES, _DEFAULTS, values)
    return_lse = options.pop("return_lse", False)
    problem = attention_problem(query, key, value, **options)
    with_lse = flag("return_lse", return_lse)
    lse = np.empty(problem.lse_shape, real_dtype(problem.query.dtype)) if with_lse else None
    result = compute_into(
        out,
        problem.out_shape,
        problem.query,
        problem.arrays,
        lambda target: problem.attend(target, lse, num_threads),
    )
    return result if lse is None else (result, lse)
