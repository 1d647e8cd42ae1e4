"""Fused attention: `softmax(scale * q @ k.T, masked) @ v` in one pass, no L x S matrix held.

Called by users; `_args.py` checks what they give and makes a problem of it, `_core` computes it.
The truth it is tested against is `reference.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from . import _args

if TYPE_CHECKING:
    from ._typing import Array, Ints, Number, Window


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    query_offset: Ints = 0,
    kv_lengths: Ints | None = None,
    window_size: Window = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    segment_ids: Array | tuple[Array, Array] | None = None,
    dropout_seed: int = 0,
    return_lse: bool = False,
    out: np.ndarray | None = None,
    num_threads: int | None = None,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Attend: `softmax(scale * query @ key.T, masked) @ value`, all positions in parallel.

    A call written for `torch.nn.functional.scaled_dot_product_attention` works unchanged; what
    follows `enable_gqa` is selfattn's own. The result of a query has the same bits whatever else
    is in the call, whatever the number of threads and whatever the instruction set.

    Parameters
    ----------
    query : array, shape (..., Hq, L, E)
        float32 or float64; 2-D is one head. Any strides, read in place. A NumPy array, or an
        object that offers `__array__`, the buffer protocol or DLPack on the CPU.
    key : array, shape (..., Hkv, S, E)
    value : array, shape (..., Hkv, S, Ev)
        Of query's dtype. The axes before the last three broadcast; so does a head axis of 1.
    attn_mask : not built yet
    dropout_p : not built yet
    is_causal : bool
        Query i sees key j only where `j <= i + query_offset`.
    scale : float, optional
        Multiplies the scores; `1 / sqrt(E)` unless given. 0 and negative are legal.
    enable_gqa : bool
        Allow Hq to be a multiple of Hkv: query head h attends to key head `h // (Hq // Hkv)`.
    query_offset : int, or int array over the axes before the heads
        Position of the first query among the keys. 0 is torch's alignment, `S - L` aligns the
        last query with the last key; it may be negative.
    kv_lengths : int array over the axes before the heads, optional
        Keys at or past the length are masked. 0 to S.
    window_size : (int, int)
        (left, right), inclusive, around position `i + query_offset`; -1 is unbounded.
    softcap, alibi_slopes, sinks, segment_ids, dropout_seed : not built yet
    return_lse : bool
        Return the natural log of each row's sum of exponentials too.
    out : array, shape (..., Hq, L, Ev), optional
        Where to write the result, of query's dtype. It may overlap an input.
    num_threads : int, optional
        For this call; else `threads()`, `set_num_threads()`, then the environment decide.

    Returns
    -------
    out : array, shape (..., Hq, L, Ev)
        In query's dtype and memory layout. A query that sees no key gets 0.
    lse : array, shape (..., Hq, L)
        Only with `return_lse`: float32, or float64 for float64; -inf where no key is seen.

    Raises
    ------
    TypeError
        For a wrong dtype, byte order or kind of argument.
    ValueError
        For a wrong shape or value.
    NotImplementedError
        For an option that is not built yet, by its name.

    Notes
    -----
    The softmax is computed online, block by block of keys: Milakov and Gimelshein, "Online
    normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022). Attention
    itself is Vaswani et al., "Attention is all you need" (2017), section 3.2.1.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> value = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> selfattn.scaled_dot_product_attention(query, query, value, scale=1.0).round(3)
    array([[1.538, 2.538],
           [2.462, 3.462]])
    >>> selfattn.scaled_dot_product_attention(query, query, value, is_causal=True)[0]
    array([1., 2.])
    """
    _args.not_built(
        attn_mask, dropout_p, softcap, alibi_slopes, sinks, segment_ids, dropout_seed=dropout_seed
    )
    problem = _args.attention_problem(
        query,
        key,
        _args.array("value", value),
        is_causal,
        scale,
        enable_gqa,
        query_offset,
        kv_lengths,
        window_size,
    )
    num_threads = _args.num_threads(num_threads)
    result, target = _args.output(out, problem.out_shape, problem.query, problem.arrays)
    lse = np.empty(problem.lse_shape, problem.query.dtype) if return_lse else None
    problem.attend(target, lse, num_threads)
    if target is not result:
        result[...] = target
    return result if lse is None else (result, lse)
