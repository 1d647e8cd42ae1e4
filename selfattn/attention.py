"""Fused attention: `softmax(scale * q @ k.T, masked) @ v` in one pass, no L x S matrix held.

Called by users; `_args` checks what they give and makes a problem of it, `_core` computes it.
The truth it is tested against is `reference/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from . import _args

if TYPE_CHECKING:
    from ._typing import Array, Ints, Number, Window


# Whether lse is returned too is known where `return_lse` is, to type checkers too.
@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: Literal[False] = ...,
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> np.ndarray: ...


@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: Literal[True],
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = ...,
    dropout_p: Number = ...,
    is_causal: bool = ...,
    *,
    scale: Number | None = ...,
    enable_gqa: bool = ...,
    attn_bias: Array | None = ...,
    query_offset: Ints = ...,
    query_lengths: Ints | None = ...,
    kv_starts: Ints | None = ...,
    kv_lengths: Ints | None = ...,
    window_size: Window | None = ...,
    softcap: Number | None = ...,
    alibi_slopes: Array | None = ...,
    sinks: Array | None = ...,
    segment_ids: Array | tuple[Array, Array] | None = ...,
    dropout_seed: int = ...,
    return_lse: bool,
    out: np.ndarray | None = ...,
    num_threads: int | None = ...,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
    attn_bias: Array | None = None,
    query_offset: Ints = 0,
    query_lengths: Ints | None = None,
    kv_starts: Ints | None = None,
    kv_lengths: Ints | None = None,
    window_size: Window | None = (-1, -1),
    softcap: Number | None = 0.0,
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
        float32, float64, float16 or bfloat16 (ml_dtypes'); 2-D is one head. Any strides. A half
        type says how numbers lie in memory: they are computed in float32, and each result is
        rounded once. A NumPy array, or an object that offers
        `__array__`, the buffer protocol or DLPack on the CPU; no tensor that requires grad.
    key : array, shape (..., Hkv, S, E)
    value : array, shape (..., Hkv, S, Ev)
        Of query's dtype. The axes before the last three broadcast; so does a head axis of 1.
    attn_mask : array that broadcasts to (..., Hq, L, S), optional
        Bools: True lets a query see a key. Floats, of query's dtype or float32: added to the
        scores; exactly -inf masks. Any strides, read in place; an axis of 1 broadcasts.
        Axes count from the last: three are (Hq, L, S), whatever the batch is; for a mask of each
        batch entry give (B, 1, L, S). Beside a mask of bools, floats go to `attn_bias`.
    dropout_p : float
        Probability of dropping a weight, 0 to 1; those left are divided by `1 - dropout_p`. As
        torch's function, it drops whenever it is not 0: there is no training mode to switch.
    is_causal : bool, or 0 or 1
        Query i sees key j only where `j <= i + query_offset`. With a mask, both apply.
    scale : float, optional
        Multiplies the scores; `1 / sqrt(E)` unless given. 0 and negative are legal.
    enable_gqa : bool
        Allow Hq to be a multiple of Hkv: query head h attends to key head `h // (Hq // Hkv)`.
    attn_bias : array that broadcasts to (..., Hq, L, S), optional
        Floats, of query's dtype or float32, that are added to the scores, beside `attn_mask` or
        without one; exactly -inf masks. Each of the two is read in place and broadcasts in its own
        way: a position bias (Hq, L, S) and a mask (B, 1, 1, S) need no array of (B, Hq, L, S). A
        key that the mask leaves out adds nothing, whatever the bias holds there. Beside a mask of
        floats, the sum of the two is added.
    query_offset : int, or int array (or list) over the axes before the heads
        Position of the first query among the keys. 0 is torch's alignment, `S - L` aligns the
        last query with the last key; it may be negative.
    query_lengths : int array (or list) over the axes before the heads, optional
        Queries at or past the length are padding: their output is 0, their lse -inf, also with
        sinks, and what they hold is of no account. 0 to L.
    kv_starts : int array (or list) over the axes before the heads, optional
        Keys before the start are masked: padding on the left. 0 to S. Positions still count from
        key 0.
    kv_lengths : int array (or list) over the axes before the heads, optional
        Keys at or past the length are masked. 0 to S. It counts from key 0 too, not from
        `kv_starts`.
    window_size : (int, int)
        (left, right), inclusive, around position `i + query_offset`; -1 is unbounded, None is
        (-1, -1).
    softcap : float
        Cap the scores at `softcap * tanh(scores / softcap)`, before all else; 0 and None do
        not.
    alibi_slopes : array, shape (Hq,) or (..., Hq), optional
        Subtract `slope * abs(i + query_offset - j)` from the scores. Query's dtype or float32.
        A distance that all of a query's keys have in common cancels in the softmax and moves `lse`
        alone; but the scores hold it, rounded to query's dtype, and lose the digits it takes.
    sinks : array, shape (Hq,) or (1, Hq, 1, 1), optional
        One more logit for each head in the softmax's denominator, which no value belongs to.
        Query's dtype or float32.
    segment_ids : int array, shape (..., L), or a pair of shapes (..., L) and (..., S), optional
        A query sees only keys whose id equals its own; one array serves both where L = S. Where
        the keys' ids ascend, as signed numbers, other segments are not even looked at.
    dropout_seed : int
        What is dropped depends on this, 64 bits, and on the place of the weight (batch entry,
        query head, query, key) alone: another call with the same seed drops the same.
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
        Only with `return_lse`, in query's dtype, of half types in float32. It includes the sink:
        where no key is seen it is the sink alone, or -inf without one.

    Raises
    ------
    TypeError
        For a wrong dtype, byte order or kind of argument.
    ValueError
        For a wrong shape or value.

    Notes
    -----
    The softmax is computed online, block by block of keys: Milakov and Gimelshein, "Online
    normalizer calculation for softmax" (2018); Dao et al., "FlashAttention" (2022). Attention
    itself is Vaswani et al., "Attention is all you need" (2017), section 3.2.1; the soft cap that
    of Gemma 2 (2024), ALiBi Press et al., "Train short, test long" (2022), the sinks those of
    gpt-oss (2025), after Xiao et al., "Efficient streaming language models" (2024); dropout that of
    Srivastava et al. (2014), by counters as in Salmon et al., "Parallel random numbers" (2011).

    What is masked adds nothing, even where it holds NaN or inf. A row that sees no key is 0, and
    so is one whose scores are all -inf.

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
    >>> padding = np.array([[False, True]])
    >>> selfattn.scaled_dot_product_attention(query, query, value, attn_mask=padding)
    array([[3., 4.],
           [3., 4.]])
    >>> bias = np.array([[9.0], [0.0]])  # one for each query: all keys of it alike
    >>> selfattn.scaled_dot_product_attention(
    ...     query, query, value, attn_mask=padding, attn_bias=bias, query_lengths=1
    ... )
    array([[3., 4.],
           [0., 0.]])
    """
    values = (
        attn_mask, dropout_p, is_causal, scale, enable_gqa, attn_bias, query_offset, query_lengths,
        kv_starts, kv_lengths, window_size, softcap, alibi_slopes, sinks, segment_ids,
        dropout_seed, return_lse,
    )  # fmt: skip
    return _args.attend(query, key, value, out, values, num_threads)
