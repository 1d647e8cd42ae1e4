"""What all ranks do together: they tell one another a few words, and fail as one.

Called by `problem.py`, `backward.py`, `ring.py` and `sinks_gradient.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from .transport import Transport, as_bytes, wait_all

_LENGTH, _WORDS, SUMS = 0, 1, 2  # tags; those of pieces begin behind them
TAGS = 3
_SHARED = {"TypeError": TypeError, "ValueError": ValueError}


class RankError(RuntimeError):
    """Another rank failed, so that this one has no result."""


def allgather(comm: Transport, words: Any) -> list[Any]:
    """The words of every rank, in the ranks' order: what JSON can hold. By way of rank 0."""
    mine = _packed(words)
    if comm.rank:
        _send(comm, mine, 0)
        return list(json.loads(_receive(comm, 0)))
    all_words = [words, *(json.loads(_receive(comm, rank)) for rank in range(1, comm.ranks))]
    everything = _packed(all_words)
    for rank in range(1, comm.ranks):
        _send(comm, everything, rank)
    return list(json.loads(everything.tobytes()))


def together(comm: Transport, compute: Callable[[], Any]) -> list[Any]:
    """What compute() returns on every rank; where it fails on one, the same error on all."""
    failure: Exception | None = None
    answer: dict[str, Any] = {}
    try:
        answer["words"] = compute()
    except Exception as error:
        failure = error
        answer["error"] = [type(error).__name__, str(error)]
    answers = allgather(comm, answer)
    for rank, got in enumerate(answers):
        if "error" in got:
            kind, message = got["error"]
            shared = kind in _SHARED
            raised = _SHARED.get(kind, RankError)
            raise raised(f"rank {rank}: {message if shared else f'{kind}: {message}'}") from failure
    return [got["words"] for got in answers]


def settle(comm: Transport, failure: BaseException | None) -> None:
    """Return if no rank has failed; else raise its failure there, and on all others RankError."""
    mine = None if failure is None else f"{type(failure).__name__}: {failure}"
    failures = allgather(comm, mine)
    if failure is not None:
        raise failure
    for rank, message in enumerate(failures):
        if message is not None:
            raise RankError(f"rank {rank} failed: {message}")


def in_step(comm: Transport, compute: Callable[[], Any]) -> Any:
    """compute() on each rank, before data moves on; where it fails, all raise, as `settle` does."""
    failure: BaseException | None = None
    result = None
    try:
        result = compute()
    except BaseException as error:
        failure = error
    settle(comm, failure)
    return result


def check_same(answers: list[dict[str, Any]]) -> None:
    """Every value must be the same on all ranks."""
    for name, want in answers[0].items():
        for rank, answer in enumerate(answers):
            if answer[name] != want:
                raise ValueError(
                    f"{name}: expected the same on all ranks, got {want} on rank 0 and "
                    f"{answer[name]} on rank {rank}"
                )


def summary(x: Any) -> Any:
    """Words that differ where options do; of an array, its dtype, shape and a digest."""
    if x is None or isinstance(x, str):
        return x
    if isinstance(x, (tuple, list)):
        return [summary(part) for part in x]
    y = np.asarray(x)
    if y.dtype.kind not in "biuf" and y.itemsize != 2:  # what is no option's: its check says so
        return type(x).__name__
    if y.ndim == 0:
        number = y.item()
        return repr(number if number % 1 else int(number))  # True is 1, and so is 1.0
    digest = hashlib.sha256(np.ascontiguousarray(y).tobytes()).hexdigest()[:8]
    return f"{y.dtype} {y.shape} ({digest})"


def _packed(words: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(words).encode(), np.uint8)


def _send(comm: Transport, words: np.ndarray, to: int) -> None:
    length = as_bytes(np.array([words.size], np.int64))
    wait_all([comm.send(length, to, _LENGTH), comm.send(words.copy(), to, _WORDS)])


def _receive(comm: Transport, source: int) -> bytes:
    length = np.empty(1, np.int64)
    comm.receive(as_bytes(length), source, _LENGTH).wait()
    words = np.empty(int(length[0]), np.uint8)
    comm.receive(words, source, _WORDS).wait()
    return words.tobytes()
