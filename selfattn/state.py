"""Attention over keys that come in pieces: a state that goes from one piece to the next.

Called by users, by `caches/cascade.py` and `distributed/`. `_args` checks each piece as a problem
of its own; `_core` adds it to the state (csrc/forward.c, csrc/kernels/resume.inc.h).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import _args, _core

if TYPE_CHECKING:
    from ._core import AttentionProblem
    from ._typing import Array, Ints, Number, Window


class AttentionState:
    """Attention of a query over keys that come piece by piece, in their order.

    Out of a file that is larger than memory, from another machine, from a prefix that many
    sequences share: whatever the pieces, the result is that of one call over all of the keys.
    Where pieces end at multiples of 512 keys it has that call's bits; elsewhere it is exact to
    rounding, since sums are cut elsewhere.

    Parameters
    ----------
    query : array, shape (..., Hq, L, E)
        As `scaled_dot_product_attention` takes it. It is copied.
    dropout_p, is_causal, scale, enable_gqa, window_size, softcap, alibi_slopes, sinks, dropout_seed
        Options of `scaled_dot_product_attention`, as there.
    query_lengths : int array over the axes before the heads, optional
        Queries at or past the length are padding, as there.
    query_offset : int, or int array over the axes before the heads
        Position of the first query among all keys, of all pieces: the first piece begins at 0.
    segment_ids : int array, shape (..., L), optional
        The queries' ids; each `update` has its keys'.
    first_query : int
        How many queries of a larger problem come before these: dropout counts from there.
    num_threads : int, optional
        Of every update and result; else `threads()`, `set_num_threads()`, then the environment.

    Raises
    ------
    TypeError, ValueError
        As `scaled_dot_product_attention`.

    Notes
    -----
    A state is, for each row, the maximum of its scores, the sum of its weights and the weighted sum
    of the values: the running softmax of Milakov and Gimelshein (2018). A call over many keys
    keeps the same numbers, and adds 512 keys at a time. A state is for one thread at a time.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 2000, 8))
    >>> state = selfattn.AttentionState(query, is_causal=True)
    >>> for begin in range(0, 2000, 1024):
    ...     state.update(key[begin : begin + 1024], value[begin : begin + 1024])
    >>> state.num_keys
    2000
    >>> at_once = selfattn.scaled_dot_product_attention(query, key, value, is_causal=True)
    >>> np.array_equal(state.result(), at_once)
    True
    """

    _copies = True  # the query, and the state before each update

    def __init__(
        self,
        query: Array,
        *,
        dropout_p: Number = 0.0,
        is_causal: bool = False,
        scale: Number | None = None,
        enable_gqa: bool = False,
        query_offset: Ints = 0,
        query_lengths: Ints | None = None,
        window_size: Window | None = (-1, -1),
        softcap: Number | None = 0.0,
        alibi_slopes: Array | None = None,
        sinks: Array | None = None,
        segment_ids: Array | None = None,
        dropout_seed: int = 0,
        first_query: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self._query = _args.array("query", query)
        if self._copies:
            self._query = np.array(self._query)
        numbers = {
            "dropout_p": dropout_p,
            "is_causal": is_causal,
            "scale": scale,
            "enable_gqa": enable_gqa,
            "window_size": window_size,
            "softcap": softcap,
            "dropout_seed": dropout_seed,
        }
        # Keys without rows, of the last update's shape: what a result is asked of.
        self._no_keys = (self._query[..., :0, :],) * 2
        # Arrays are checked beside keys, which may have more axes or heads than the query.
        _args.attention_problem(self._query, *self._no_keys, **numbers)
        arrays: dict[str, Any] = {
            name: None if x is None else np.array(_args.array(name, x))
            for name, x in (("alibi_slopes", alibi_slopes), ("sinks", sinks))
        }
        arrays["query_lengths"] = (
            None if query_lengths is None else _offset("query_lengths", query_lengths)
        )
        self._options = numbers | arrays
        self._query_offset = _offset("query_offset", query_offset)
        ids = "an array of ints"
        self._segment_ids = (
            None
            if segment_ids is None
            else np.array(_args.ints("segment_ids", segment_ids, ids, "iub"))
        )
        self._first_query = _args.integer("first_query", first_query)
        if not 0 <= self._first_query <= _args.MAX_POSITION:
            raise ValueError(f"first_query: expected 0 to 2**61, got {first_query}")
        self._num_threads = None if num_threads is None else _args.num_threads(num_threads)
        self._num_keys = 0
        self._state: np.ndarray | None = None  # before the first update
        self._spare: np.ndarray | None = None  # of the same shape: what an update writes to
        self._is_natural = False

    @property
    def num_keys(self) -> int:
        """How many keys there have been."""
        return self._num_keys

    def update(
        self,
        key: Array,
        value: Array,
        *,
        attn_mask: Array | None = None,
        attn_bias: Array | None = None,
        kv_starts: Ints | None = None,
        kv_lengths: Ints | None = None,
        segment_ids: Array | None = None,
    ) -> None:
        """Add the next keys, and their values.

        Parameters
        ----------
        key : array, shape (..., Hkv, S, E)
        value : array, shape (..., Hkv, S, Ev)
            S may differ from piece to piece, and be 0; all else is as in the first piece.
        attn_mask, attn_bias : array that broadcasts to (..., Hq, L, S), optional
            Of these keys, as `scaled_dot_product_attention` takes them.
        kv_starts, kv_lengths : int array over the axes before the heads, optional
            Where among these keys those begin and end that are there, 0 to S; the next piece begins
            after all S.
        segment_ids : int array, shape (..., S), optional
            These keys' ids, in the dtype of the queries'.

        Raises
        ------
        TypeError, ValueError
            As `scaled_dot_product_attention`; the state is as it was.
        """
        problem = self._problem(
            key,
            value,
            segment_ids=segment_ids,
            attn_mask=attn_mask,
            attn_bias=attn_bias,
            kv_starts=kv_starts,
            kv_lengths=kv_lengths,
        )
        shape = (*problem.lse_shape, _core.STATE_HEAD + problem.out_shape[-1])
        if self._state is None:
            target = empty_state(shape, _args.real_dtype(self._query.dtype))
        elif self._state.shape != shape:
            first = (*self._state.shape[:-1], self._state.shape[-1] - _core.STATE_HEAD)
            raise ValueError(
                f"key: expected, with value, what makes a result of shape {first}, as the first "
                f"piece, got {problem.out_shape}"
            )
        elif not self._copies or not problem.scores_shape[-1]:
            target = self._state
        else:  # into a copy: an update that is interrupted leaves the state as it was
            target = np.empty_like(self._state) if self._spare is None else self._spare
            self._spare = None
            np.copyto(target, self._state)
        threads = _args.num_threads(self._num_threads)
        if problem.scores_shape[-1]:  # else there is nothing to add
            self._is_natural = problem.update(target, self._is_natural, threads)
        if self._state is not target:
            self._spare, self._state = self._state, target
        self._num_keys += problem.scores_shape[-1]
        _, keys, values, *_ = problem.arrays
        self._no_keys = np.empty_like(keys[..., :0, :]), np.empty_like(values[..., :0, :])

    def skip(self, num_keys: int) -> None:
        """Pass over keys that no query sees: the next piece begins after them.

        Parameters
        ----------
        num_keys : int
            How many, 0 or more.

        Raises
        ------
        TypeError, ValueError
            For a number that is none or negative.
        """
        number = _args.integer("num_keys", num_keys)
        if number < 0:
            raise ValueError(f"num_keys: expected 0 or more, got {number}")
        self._num_keys += number

    def result(
        self, out: np.ndarray | None = None, return_lse: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Attention over the keys so far; more may come after it.

        Parameters
        ----------
        out : array, shape (..., Hq, L, Ev), optional
            Where to write the result, of query's dtype.
        return_lse : bool
            Return the natural log of each row's sum of exponentials too.

        Returns
        -------
        out : array, shape (..., Hq, L, Ev)
            In query's dtype. Before the first update Ev is E, and all is 0.
        lse : array, shape (..., Hq, L)
            Only with `return_lse`, in query's dtype, of half types in float32.
        """
        with_lse = _args.flag("return_lse", return_lse)
        ids = None if self._segment_ids is None else _no_ids(self)
        problem = self._problem(*self._no_keys, segment_ids=ids)
        real = _args.real_dtype(self._query.dtype)
        lse = np.empty(problem.lse_shape, real) if with_lse else None
        state = self._state
        if state is None:
            shape = (*problem.lse_shape, _core.STATE_HEAD + problem.out_shape[-1])
            state = empty_state(shape, real)
        threads = _args.num_threads(self._num_threads)
        result = _args.compute_into(
            out,
            problem.out_shape,
            self._query,
            [state],
            lambda target: problem.attend_to_state(state, self._is_natural, target, lse, threads),
        )
        return result if lse is None else (result, lse)

    def copy(self) -> AttentionState:
        """A state of its own, with the same keys so far."""
        other = AttentionState.__new__(AttentionState)
        other.__dict__.update(self.__dict__)
        other._spare = None
        other._state = None if self._state is None else self._state.copy()
        return other

    def _problem(
        self, key: Any, value: Any, segment_ids: Any = None, **options: Any
    ) -> AttentionProblem:
        """That of a piece of keys, whose first one is at position 0 there."""
        if (segment_ids is None) != (self._segment_ids is None):
            has = "no" if self._segment_ids is None else "the queries'"
            got = "none" if segment_ids is None else "ids of keys"
            raise ValueError(
                f"segment_ids: expected as the state was made, with {has} ids, got {got}"
            )
        if segment_ids is not None:
            options["segment_ids"] = (self._segment_ids, segment_ids)
        offset = self._query_offset
        if self._num_keys:
            offset = offset - self._num_keys  # an int, or an array that was checked
        problem = _args.attention_problem(
            self._query, key, value, **self._options, query_offset=offset, **options
        )
        problem.set_place(self._first_query, self._num_keys)
        return problem


class BorrowingState(AttentionState):
    """One whose maker leaves the query as it is, and drops the state when an update fails.

    Made by `distributed/`.
    """

    _copies = False


def _offset(name: str, x: Any) -> int | np.ndarray:
    """Of the whole sequence: our own, and of a type from which many keys can be subtracted."""
    expected = "an int or an array of ints"
    offset = _args.ints_in(name, np.asarray(x) if isinstance(x, int) else x, expected)
    low, high = offset.min(initial=0), offset.max(initial=0)
    if low < -_args.MAX_POSITION or high > _args.MAX_POSITION:
        raise ValueError(f"{name}: expected values from -2**61 to 2**61, got {x}")
    return int(offset) if offset.ndim == 0 else offset.astype(np.int64)


def _no_ids(state: AttentionState) -> np.ndarray:
    """Ids of no keys, of the dtype of the queries'."""
    return np.empty(0, np.asarray(state._segment_ids).dtype)


def heads_of_state(state: AttentionState, shape: tuple[int, ...]) -> np.ndarray:
    """Each row's maximum, sum and factor; of the shape (..., Hq, L, STATE_HEAD) before any key."""
    if state._state is None:
        return empty_state(shape, _args.real_dtype(state._query.dtype))
    return state._state[..., : _core.STATE_HEAD]


def empty_state(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The state of no keys (selfattn.h)."""
    state = np.zeros(shape, dtype)
    state[..., 0] = -np.inf
    state[..., 2] = 1
    return state
