"""Ranks that are threads of one process: to try what is to run on many machines, and for tests."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from .agreement import RankError

Result = TypeVar("Result")


def run_ranks(ranks: int, function: Callable[..., Result], *args: Any) -> list[Result]:
    """Call `function(comm, *args)` once for each rank, each on a thread of its own.

    Parameters
    ----------
    ranks : int
    function : callable
        It takes its rank's transport, what `ring_attention` takes as `comm`.
    *args
        Passed on.

    Returns
    -------
    list
        What the ranks returned, in their order.

    Raises
    ------
    Exception
        What a rank raised that failed by itself. The others end too: one that waits for a rank that
        has ended raises ConnectionError.

    Examples
    --------
    >>> import numpy as np
    >>> from selfattn import distributed, scaled_dot_product_attention
    >>> query, key, value = np.random.default_rng(0).standard_normal((3, 4000, 8))
    >>> def attend(comm):
    ...     shards = [distributed.shard(x, comm.ranks, comm.rank) for x in (query, key, value)]
    ...     return distributed.ring_attention(*shards, comm)
    >>> whole = distributed.unshard(distributed.run_ranks(3, attend))
    >>> np.array_equal(whole, scaled_dot_product_attention(query, key, value))
    True
    """
    post = _Post()
    results: list[Any] = [None] * ranks
    errors: list[BaseException] = []  # in the order of time

    def run(rank: int) -> None:
        try:
            results[rank] = function(InProcessTransport(post, rank, ranks), *args)
        except BaseException as error:
            errors.append(error)
        finally:
            post.end(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    of_others = (RankError, ConnectionError)
    for error in sorted(errors, key=lambda error: isinstance(error, of_others)):
        raise error
    return results


class InProcessTransport:
    """A rank of `run_ranks`."""

    def __init__(self, post: _Post, rank: int, ranks: int) -> None:
        self._post, self.rank, self.ranks = post, rank, ranks

    def send(self, buffer: np.ndarray, to: int, tag: int) -> _Request:
        return self._post.add((self.rank, to, tag), 0, buffer, to)

    def receive(self, buffer: np.ndarray, source: int, tag: int) -> _Request:
        return self._post.add((source, self.rank, tag), 1, buffer, source)


class _Post:
    """Messages by (source, receiver, tag): copied once both sides have asked."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ended: set[int] = set()  # ranks
        self._waiting: defaultdict[tuple[int, int, int], tuple[deque[_Request], deque[_Request]]]
        self._waiting = defaultdict(lambda: (deque(), deque()))

    def add(self, key: tuple[int, int, int], side: int, buffer: np.ndarray, peer: int) -> _Request:
        request = _Request(self, buffer, peer)
        with self.changed:
            sides = self._waiting[key]
            sides[side].append(request)
            if sides[0] and sides[1]:
                sent, received = sides[0].popleft(), sides[1].popleft()
                received.buffer[:] = sent.buffer
                sent.is_done = received.is_done = True
                self.changed.notify_all()
        return request

    def end(self, rank: int) -> None:
        with self.changed:
            self.ended.add(rank)
            self.changed.notify_all()


class _Request:
    def __init__(self, post: _Post, buffer: np.ndarray, peer: int) -> None:
        self._post, self.buffer, self._peer, self.is_done = post, buffer, peer, False

    def test(self) -> bool:
        return self.is_done

    def wait(self) -> None:
        ended = self._post.ended
        with self._post.changed:
            self._post.changed.wait_for(lambda: self.is_done or self._peer in ended)
        if not self.is_done:
            raise ConnectionError(f"rank {self._peer} has ended, and a message waits for it")
