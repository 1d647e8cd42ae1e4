"""How bytes go from rank to rank: what a transport must do, those there are, and one that counts.

Called by `ring.py` and `agreement.py`, which need no more than this of MPI or any other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np


class Request(Protocol):
    """A message on its way."""

    def test(self) -> bool:
        """Whether it has arrived, or its buffer is free; moves it on where nothing else does."""

    def wait(self) -> None:
        """Return when it has; raise if it never will."""


class Transport(Protocol):
    """A rank among others. Messages between two ranks that have the same tag keep their order."""

    rank: int
    ranks: int

    def send(self, buffer: np.ndarray, to: int, tag: int) -> Request:
        """Start to send contiguous bytes, which stay as they are until the request is done."""

    def receive(self, buffer: np.ndarray, source: int, tag: int) -> Request:
        """Start to fill contiguous bytes, as many as are sent."""


def transport_of(comm: Any) -> Transport:
    """The transport of a communicator: one itself, mpi4py's, or torch.distributed's group."""
    if all(hasattr(comm, name) for name in ("rank", "ranks", "send", "receive")):
        found: Transport = comm
        return found
    module = type(comm).__module__
    if module.startswith("mpi4py"):
        from .mpi import MPITransport

        return MPITransport.of(comm)
    if module.startswith("torch."):
        from .gloo import TorchTransport

        return TorchTransport(comm)
    raise TypeError(
        "comm: expected a communicator of mpi4py, a process group of torch.distributed or a "
        f"transport, got {type(comm).__name__}"
    )


class MeasuredTransport:
    """A transport that counts what it is asked for.

    Parameters
    ----------
    comm
        As `ring_attention` takes it.

    Attributes
    ----------
    bytes_sent : int
    seconds_waiting : float
        Spent in waiting for messages.
    """

    def __init__(self, comm: Any) -> None:
        self._inner = transport_of(comm)
        self.rank, self.ranks = self._inner.rank, self._inner.ranks
        self.bytes_sent = 0
        self.seconds_waiting = 0.0

    def send(self, buffer: np.ndarray, to: int, tag: int) -> Request:
        self.bytes_sent += buffer.nbytes
        return _Measured(self, self._inner.send(buffer, to, tag))

    def receive(self, buffer: np.ndarray, source: int, tag: int) -> Request:
        return _Measured(self, self._inner.receive(buffer, source, tag))


class _Measured:
    def __init__(self, transport: MeasuredTransport, request: Request) -> None:
        self._transport, self._request = transport, request

    def test(self) -> bool:
        return self._request.test()

    def wait(self) -> None:
        began = time.perf_counter()
        self._request.wait()
        self._transport.seconds_waiting += time.perf_counter() - began


def wait_all(requests: Iterable[Request]) -> None:
    for request in requests:
        request.wait()


def as_bytes(x: np.ndarray) -> np.ndarray:
    """The bytes of a contiguous array, uncopied."""
    return x.reshape(-1).view(np.uint8)
