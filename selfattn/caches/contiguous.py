"""KVCache: the keys and values of a batch of sequences, each with room of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _args
from .._core import AttentionProblem
from . import attend
from .sharing import Shared
from .storage import Rows, checked_rows, encoded, storage_dtype

if TYPE_CHECKING:
    from .._typing import Array, Ints, Number, Window


class KVCache(Shared):
    """Keys and values of a batch of sequences, to which more are appended as they come.

    Each sequence has room for `capacity` positions. What attends gets the bits of one call of
    `scaled_dot_product_attention` over its sequence alone, however the keys came: one by one, in
    chunks or at once, alone or beside others.

    Parameters
    ----------
    batch, num_heads_kv, capacity, head_dim : int
        How many sequences there are, heads of keys, positions of each sequence; and the length E
        of a key.
    head_dim_v : int, optional
        The length Ev of a value; E unless given.
    dtype : dtype
        float32, float64, float16, bfloat16 (ml_dtypes'), or int8. Of int8 each row of a head has
        a scale, its largest element / 127, and an element is off by half of that at most; what is
        appended and attends is float32 or a half type then, and the result is that of the
        float32 rows which the cache stands for.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a size below 1.

    Notes
    -----
    Threads may append to it and ask it at once. A call sees what had been appended when it began.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 8))
    >>> cache = selfattn.KVCache(1, 2, capacity=100, head_dim=8, dtype=np.float64)
    >>> out = np.empty_like(query)
    >>> for i in range(5):  # one position after the other
    ...     cache.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
    ...     out[:, :, i : i + 1] = cache.attend(query[:, :, i : i + 1])
    >>> cache.lengths
    array([5])
    >>> at_once = selfattn.scaled_dot_product_attention(query, key, value, is_causal=True)
    >>> np.array_equal(out, at_once)
    True
    """

    def __init__(
        self,
        batch: int,
        num_heads_kv: int,
        capacity: int,
        head_dim: int,
        head_dim_v: int | None = None,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        self._dtype = storage_dtype(dtype)
        sizes = {
            "batch": batch,
            "num_heads_kv": num_heads_kv,
            "capacity": capacity,
            "head_dim": head_dim,
            "head_dim_v": head_dim if head_dim_v is None else head_dim_v,
        }
        *leading, e, ev = (_args.size(name, n) for name, n in sizes.items())
        self._keys = Rows((*leading, e), self._dtype)
        self._values = Rows((*leading, ev), self._dtype)
        self._lengths = np.zeros(leading[0], np.int64)

    @property
    def dtype(self) -> np.dtype:
        """What rows are stored as."""
        return self._dtype

    @property
    def capacity(self) -> int:
        """Positions that a sequence has room for."""
        return int(self._keys.rows.shape[2])

    @property
    def lengths(self) -> np.ndarray:
        """How many positions of each sequence there are, (batch,): a copy."""
        return self._lengths.copy()

    @property
    def key(self) -> np.ndarray:
        """The keys, (batch, Hkv, longest sequence, E): a read-only view, of int8 a decoded copy.

        Past a sequence's length it holds anything.
        """
        return self._view(self._keys)

    @property
    def value(self) -> np.ndarray:
        """The values, (batch, Hkv, longest sequence, Ev), as `key`."""
        return self._view(self._values)

    def append(self, key: Array, value: Array, lengths: Ints | None = None) -> None:
        """Append positions to each sequence.

        Parameters
        ----------
        key : array, shape (batch, Hkv, t, E)
        value : array, shape (batch, Hkv, t, Ev)
            Of the cache's dtype; for int8 of float32, float64, float16 or bfloat16.
        lengths : int array, shape (batch,), optional
            How many of the t positions each sequence gets, the first ones; all unless given.

        Raises
        ------
        TypeError, ValueError
            For a wrong dtype; for a wrong shape, where a sequence has no room, and where int8 is
            to hold what is not finite. Nothing has changed then.
        """
        batch, heads, capacity, _ = self._keys.rows.shape
        e, ev = self._keys.rows.shape[3], self._values.rows.shape[3]
        axes = "(batch, num_heads_kv, t, head_dim)"
        key = checked_rows("key", key, (batch, heads, None, e), axes, self._dtype)
        t = key.shape[2]
        value = checked_rows("value", value, (batch, heads, t, ev), axes, self._dtype)
        if lengths is None:
            counts = np.full(batch, t, np.int64)
        else:
            counts = _args.per_batch("lengths", lengths, (batch,), 0, t)
        keys, values = encoded("key", key, self._dtype), encoded("value", value, self._dtype)
        with self._lock:
            starts = self._lengths
            ends = starts + counts
            if (ends > capacity).any():
                b = int(np.argmax(ends > capacity))
                raise ValueError(
                    f"key: expected at most {capacity - starts[b]} more positions of sequence "
                    f"{b}, of whose {capacity} {starts[b]} are taken, got {counts[b]}"
                )
            every = slice(None)
            if (counts == t).all() and (starts == starts[0]).all():
                runs = [(every, int(starts[0]), t)]
            else:
                runs = [(slice(b, b + 1), int(starts[b]), int(counts[b])) for b in range(batch)]
            for entries, first, n in runs:
                where, part = (entries, every, slice(first, first + n)), (entries, every, slice(n))
                self._keys.write(where, keys, part)
                self._values.write(where, values, part)
            self._lengths = ends

    def attend(
        self,
        query: Array,
        *,
        attn_mask: Array | None = None,
        attn_bias: Array | None = None,
        is_causal: bool = True,
        lengths: Ints | None = None,
        kv_starts: Ints | None = None,
        scale: Number | None = None,
        window_size: Window | None = (-1, -1),
        softcap: Number | None = 0.0,
        alibi_slopes: Array | None = None,
        sinks: Array | None = None,
        segment_ids: Array | tuple[Array, Array] | None = None,
        dropout_p: Number = 0.0,
        dropout_seed: int = 0,
        return_lse: bool = False,
        out: np.ndarray | None = None,
        num_threads: int | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Attend to what each sequence holds, from its newest positions.

        Parameters
        ----------
        query : array, shape (batch, Hq, L, E)
            Of the cache's dtype; for int8 of float32, float16 or bfloat16. Hq is a multiple of
            Hkv. The L queries are at the last L positions of their sequence.
        is_causal : bool
            Query i of a sequence of n positions sees those up to n - L + i.
        lengths : int array, shape (batch,), optional
            How many of the L queries each sequence has, as `append` was given: these are at its
            last positions, and results of the others are 0.
        attn_mask, attn_bias, segment_ids
            Over the keys of the longest sequence, S of them.
        kv_starts : int array, shape (batch,), optional
            Where each sequence begins: what it holds before is padding, which no query sees.
        scale, window_size, softcap, alibi_slopes, sinks, dropout_p, dropout_seed
            As `scaled_dot_product_attention` has them.
        return_lse, out, num_threads
            Likewise.

        Returns
        -------
        out : array, shape (batch, Hq, L, Ev)
            In query's dtype.
        lse : array, shape (batch, Hq, L)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As `scaled_dot_product_attention`.
        """
        batch, heads, _, head_dim = self._keys.rows.shape
        options = {
            "attn_mask": attn_mask,
            "attn_bias": attn_bias,
            "dropout_p": dropout_p,
            "is_causal": is_causal,
            "scale": scale,
            "kv_starts": kv_starts,
            "window_size": window_size,
            "softcap": softcap,
            "alibi_slopes": alibi_slopes,
            "sinks": sinks,
            "segment_ids": segment_ids,
            "dropout_seed": dropout_seed,
        }
        call = attend.call_of(
            query,
            (batch, heads, head_dim),
            self._dtype,
            self._lengths,
            lengths,
            num_threads,
            options,
        )
        longest = int(call.lengths.max(initial=0))
        problem = AttentionProblem(
            call.query,
            self._keys.rows[:, :, :longest],
            self._values.rows[:, :, :longest],
            (batch,),
            heads if call.query.shape[1] == 1 else call.query.shape[1],
            heads,
        )
        if self._keys.scales is not None and self._values.scales is not None:
            problem.set_scales(self._keys.scales, self._values.scales, False)
        attend.set_options(problem, call)
        return attend.attend(problem, call, return_lse, out)

    def truncate(self, lengths: Ints) -> None:
        """Keep the first positions of each sequence, as many as `lengths` says; (batch,) or one.

        ValueError where that is negative or more than there are.
        """
        with self._lock:
            batch = len(self._lengths)
            self._lengths = np.array(
                _args.per_batch("lengths", lengths, (batch,), 0, self._lengths), np.int64
            )

    def reset(self) -> None:
        """Forget all positions."""
        with self._lock:
            self._lengths = np.zeros_like(self._lengths)

    def _view(self, x: Rows) -> np.ndarray:
        view = x.decoded((slice(None), slice(None), slice(int(self._lengths.max(initial=0)))))
        view.flags.writeable = False
        return view
