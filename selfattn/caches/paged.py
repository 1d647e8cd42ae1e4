"""PagedKVCache: sequences of any length, whose keys and values share one pool of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _args
from .._core import AttentionProblem
from . import attend, cascade
from .pages import Pages, PagesOfSequence
from .sharing import Shared
from .storage import Encoded, Rows, checked_rows, encoded, storage_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._typing import Array, Ints, Number, Window


class PagedKVCache(Shared):
    """Keys and values of sequences of any length, in pages that they take from one pool.

    A sequence takes a page whenever its last one is full, and a new sequence may begin with the
    positions of another one, whose pages they share until one of them writes there. What attends
    gets the bits of one call of `scaled_dot_product_attention` over its sequence alone, whatever
    the size and the order of pages, and so those of `KVCache`.

    Parameters
    ----------
    num_blocks, block_size : int
        Pages in the pool, and positions in each. A few queries read pages of any size in place;
        for more of them a block of 128 positions is copied at a time, unless a page holds it.
    num_heads_kv, head_dim : int
        Heads of keys, and the length E of a key.
    head_dim_v : int, optional
        The length Ev of a value; E unless given.
    dtype : dtype
        As `KVCache` has it.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype or kind; for a size below 1.

    Notes
    -----
    The layout is that of vLLM's PagedAttention (Kwon et al., 2023). Where sequences begin with the
    same pages, 512 positions of them or more, these are read once for the queries of all (as in
    Juravsky et al., "Hydragen", 2024): a query has the bits that it has apart, since a state goes
    from the prefix's keys to its own (`AttentionState`).

    Threads may use it at once, as `KVCache`. But while a sequence is asked, no other thread may
    free or truncate it, nor append to others that share its last page: what is read may be
    written to then.

    Examples
    --------
    >>> import numpy as np, selfattn
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 1, 2, 5, 8))
    >>> cache = selfattn.PagedKVCache(20, 16, num_heads_kv=2, head_dim=8, dtype=np.float64)
    >>> prompt = cache.new_sequence()
    >>> cache.append([prompt], key, value)
    >>> other = cache.new_sequence(prefix_of=prompt)
    >>> cache.append([other], key[:, :, :1], value[:, :, :1])
    >>> cache.length(prompt), cache.length(other), cache.num_free_blocks
    (5, 6, 18)
    >>> out = cache.attend([prompt, other], np.concatenate([query[:, :, :1]] * 2))
    >>> whole = selfattn.scaled_dot_product_attention(query[:, :, :1], key, value)
    >>> np.array_equal(out[:1], whole)
    True
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        num_heads_kv: int,
        head_dim: int,
        head_dim_v: int | None = None,
        *,
        dtype: Any = np.float32,
    ) -> None:
        super().__init__()
        self._dtype = storage_dtype(dtype)
        sizes = {
            "num_blocks": num_blocks,
            "block_size": block_size,
            "num_heads_kv": num_heads_kv,
            "head_dim": head_dim,
            "head_dim_v": head_dim if head_dim_v is None else head_dim_v,
        }
        n, size, heads, e, ev = (_args.size(name, x) for name, x in sizes.items())
        self._keys = Rows((n, heads, size, e), self._dtype)
        self._values = Rows((n, heads, size, ev), self._dtype)
        self._pages = Pages(n, size)
        self._sequences: dict[int, PagesOfSequence] = {}
        self._next_id = 0

    @property
    def dtype(self) -> np.dtype:
        """What rows are stored as."""
        return self._dtype

    @property
    def block_size(self) -> int:
        """Positions of a page."""
        return self._pages.size

    @property
    def num_free_blocks(self) -> int:
        """Pages that no sequence has."""
        return self._pages.num_free

    def length(self, sequence: int) -> int:
        """How many positions a sequence has."""
        return self._sequence(sequence).length

    def new_sequence(self, prefix_of: int | None = None, length: int | None = None) -> int:
        """Begin a sequence, with the first `length` positions of another one, or all of them.

        Returns its number. ValueError where there is no such sequence, or it has fewer positions.
        """
        if prefix_of is None:
            if length is not None and _args.integer("length", length) != 0:
                raise ValueError(f"length: expected none without prefix_of, got {length}")
        elif length is not None:
            length = _args.integer("length", length)
        with self._lock:
            if prefix_of is None:
                sequence = PagesOfSequence(np.empty(0, np.int64), 0)
            else:
                source = self._sequence(prefix_of, "prefix_of")
                n = source.length if length is None else length
                if not 0 <= n <= source.length:
                    raise ValueError(f"length: expected 0 to {source.length}, prefix_of's, got {n}")
                sequence = self._pages.prefix(source, n)
            number, self._next_id = self._next_id, self._next_id + 1
            self._sequences[number] = sequence
        return number

    def append(
        self,
        sequences: Sequence[int] | np.ndarray,
        key: Array,
        value: Array,
        lengths: Ints | None = None,
    ) -> None:
        """Append positions to each of the sequences.

        Parameters
        ----------
        sequences : ints, shape (n,)
            Their numbers, each once.
        key : array, shape (n, Hkv, t, E)
        value : array, shape (n, Hkv, t, Ev)
            As `KVCache.append` takes them.
        lengths : int array, shape (n,), optional
            How many of the t positions each sequence gets, the first ones; all unless given.

        Raises
        ------
        TypeError, ValueError
            For a wrong dtype; for a wrong shape, numbers of no sequence or twice the same, where
            too few pages are free, and where int8 is to hold what is not finite. Nothing has
            changed then.
        """
        numbers = self._numbers(sequences)
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"sequences: expected each number once, got {sequences}")
        heads, n = self._keys.rows.shape[1], len(numbers)
        axes = "(sequences, num_heads_kv, t, head_dim)"
        e, ev = self._keys.rows.shape[3], self._values.rows.shape[3]
        key = checked_rows("key", key, (n, heads, None, e), axes, self._dtype)
        t = key.shape[2]
        value = checked_rows("value", value, (n, heads, t, ev), axes, self._dtype)
        counts = [t] * n
        if lengths is not None:
            counts = _args.per_batch("lengths", lengths, (n,), 0, t).tolist()
        keys, values = encoded("key", key, self._dtype), encoded("value", value, self._dtype)
        with self._lock:
            self._append(self._found(numbers), keys, values, counts)

    def _append(
        self, found: list[PagesOfSequence], keys: Encoded, values: Encoded, counts: list[int]
    ) -> None:
        """Write the rows, and give each sequence the pages that it takes more."""
        pages = self._pages
        growths = [pages.growth(s, count) for s, count in zip(found, counts, strict=True)]
        needed = sum(g.new + (g.copied is not None) for g in growths)
        if needed > pages.num_free:
            raise ValueError(
                f"key: expected positions for which {pages.num_free} free blocks are enough, got "
                f"some that take {needed}"
            )
        # First into pages and rows that no sequence has, so that a call which is interrupted
        # changes nothing; then the sequences get them.
        free, given = pages.candidates(needed), []
        for i, (sequence, growth) in enumerate(zip(found, growths, strict=True)):
            mine = [free.pop(0) for _ in range(growth.new + (growth.copied is not None))]
            given.append(mine)
            table = sequence.pages.tolist()
            if growth.copied is not None:
                self._keys.copy(mine[0], table[growth.copied])
                self._values.copy(mine[0], table[growth.copied])
                table[growth.copied] = mine[0]
                table += mine[1:]
            else:
                table += mine
            self._write(self._keys, keys, i, growth.first, growth.added, table)
            self._write(self._values, values, i, growth.first, growth.added, table)
        pages.grow(found, growths, given)

    def attend(
        self,
        sequences: Sequence[int] | np.ndarray,
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
        """Attend to what each of the sequences holds, from its newest positions.

        Parameters
        ----------
        sequences : ints, shape (n,)
            Their numbers.
        query : array, shape (n, Hq, L, E)
            As `KVCache.attend` takes it, and so are all other parameters.

        Returns
        -------
        out : array, shape (n, Hq, L, Ev)
        lse : array, shape (n, Hq, L)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As `KVCache.attend`, and for numbers of no sequence.
        """
        numbers = self._numbers(sequences)
        with self._lock:
            found = [(s.length, s.pages) for s in self._found(numbers)]
        tables = [pages for _, pages in found]
        heads, head_dim = self._keys.rows.shape[1], self._keys.rows.shape[3]
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
            (len(found), heads, head_dim),
            self._dtype,
            np.array([length for length, _ in found], np.int64),
            lengths,
            num_threads,
            options,
        )
        problem = self._problem(call.query, tables, int(call.lengths.max(initial=0)))
        attend.set_options(problem, call)
        found_prefixes = cascade.prefixes(call, tables, self.block_size)
        compute = None
        if found_prefixes:

            def compute(target: np.ndarray, lse: np.ndarray | None) -> None:
                cascade.attend(
                    call, tables, self.block_size, found_prefixes, self._problem, target, lse
                )

        return attend.attend(problem, call, return_lse, out, compute)

    def truncate(self, sequence: int, length: int) -> None:
        """Keep the first positions of a sequence; pages that it no longer needs become free.

        ValueError where there is no such sequence, or it has fewer positions.
        """
        n = _args.integer("length", length)
        with self._lock:
            found = self._sequence(sequence)
            if not 0 <= n <= found.length:
                raise ValueError(f"length: expected 0 to {found.length}, the sequence's, got {n}")
            self._pages.truncate(found, n)

    def free(self, sequence: int) -> None:
        """End a sequence; its number is no one's from now on. ValueError where there is none."""
        with self._lock:
            self._pages.truncate(self._sequence(sequence), 0)
            del self._sequences[_args.integer("sequence", sequence)]

    # ---------------------------------------------------------------- pages and problems

    def _sequence(self, number: Any, name: str = "sequence") -> PagesOfSequence:
        found = self._sequences.get(_args.integer(name, number))
        if found is None:
            raise ValueError(f"{name}: expected the number of a sequence, got {number}")
        return found

    def _found(self, numbers: list[int]) -> list[PagesOfSequence]:
        """The sequences of these numbers."""
        return [self._sequence(number, "sequences") for number in numbers]

    @staticmethod
    def _numbers(sequences: Any) -> list[int]:
        """Those of sequences, as a caller names them."""
        if isinstance(sequences, np.ndarray) and sequences.ndim == 1:
            sequences = sequences.tolist()
        if not isinstance(sequences, (list, tuple, range)):
            raise TypeError(
                f"sequences: expected numbers of sequences, got {type(sequences).__name__}"
            )
        return [_args.integer("sequences", number) for number in sequences]

    def _write(
        self, rows: Rows, given: Encoded, i: int, first: int, count: int, table: list[int]
    ) -> None:
        """Write `count` positions of entry i of what is given, from position `first` on."""
        size, every, done = self.block_size, slice(None), 0
        while done < count:
            page, at = divmod(first + done, size)
            n = min(size - at, count - done)
            where, part = (table[page], every, slice(at, at + n)), (i, every, slice(done, done + n))
            rows.write(where, given, part)
            done += n

    def _problem(
        self, query: np.ndarray, tables: list[np.ndarray], seqlen_k: int
    ) -> AttentionProblem:
        """Attention of (batch, Hq, L, E) to keys in these pages, of each entry of the batch."""
        heads_kv = self._keys.rows.shape[1]
        keys, values = self._keys, self._values
        problem = AttentionProblem(
            query,
            keys.rows[0],
            values.rows[0],
            (len(tables),),
            heads_kv if query.shape[1] == 1 else query.shape[1],
            heads_kv,
        )
        table = np.zeros((len(tables), max([1, *map(len, tables)])), np.int64)
        for row, pages in zip(table, tables, strict=True):
            row[: len(pages)] = pages
        problem.set_pages(table, seqlen_k, keys.rows, values.rows)
        if keys.scales is not None and values.scales is not None:
            problem.set_scales(keys.scales, values.scales, True)
        return problem
