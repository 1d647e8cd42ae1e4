"""The transport of MPI, by mpi4py. Loaded when a communicator of it comes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mpi4py import MPI

_KEYVAL = MPI.Comm.Create_keyval()  # under which a communicator keeps its transport
_SHORTEST, _LONGEST = 20e-6, 1e-3  # seconds between two looks at a message


class MPITransport:
    """A rank of a communicator.

    Messages go through a duplicate of it: none of them meets the user's own.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm
        All of its ranks make their transport at the same time, as its duplicate is made.
    timeout : float, optional
        Seconds after which a message that does not come is an error. Without it a rank waits as
        long as MPI lets it: `mpiexec` ends all ranks when one dies.
    """

    def __init__(self, comm: Any, timeout: float | None = None) -> None:
        self._comm = comm.Dup()
        self.rank, self.ranks = self._comm.Get_rank(), self._comm.Get_size()
        self.timeout = timeout

    @classmethod
    def of(cls, comm: Any) -> MPITransport:
        """The communicator's transport, made when first asked for."""
        found: MPITransport | None = comm.Get_attr(_KEYVAL)
        if found is None:
            found = cls(comm)
            comm.Set_attr(_KEYVAL, found)
        return found

    def send(self, buffer: np.ndarray, to: int, tag: int) -> _Request:
        request = self._comm.Isend([buffer, MPI.BYTE], to, tag)
        return _Request(request, self.timeout, f"rank {to} has not taken a message")

    def receive(self, buffer: np.ndarray, source: int, tag: int) -> _Request:
        request = self._comm.Irecv([buffer, MPI.BYTE], source, tag)
        return _Request(request, self.timeout, f"rank {source} has sent no message")


class _Request:
    def __init__(self, request: Any, timeout: float | None, missing: str) -> None:
        self._request, self._timeout, self._missing = request, timeout, missing

    def test(self) -> bool:
        done: bool = self._request.Test()
        return done

    def wait(self) -> None:
        # MPI's own wait never sleeps, and would take a core from ranks that compute.
        end = None if self._timeout is None else time.monotonic() + self._timeout
        pause = _SHORTEST
        while not self._request.Test():
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"{self._missing} in {self._timeout} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
