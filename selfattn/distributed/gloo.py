"""The transport of torch.distributed, whose backend for the CPU is gloo. Loaded when asked for."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
import torch.distributed as dist


class TorchTransport:
    """A rank of a process group that is on the CPU; None is the group of all ranks.

    A rank that dies breaks its connections, and one that is silent for longer than the group's
    timeout ends the wait: both raise RuntimeError.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = dist.group.WORLD if group is None else group
        self.rank, self.ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        self._ranks = dist.get_process_group_ranks(self._group)

    def send(self, buffer: np.ndarray, to: int, tag: int) -> _Request:
        return _Request(dist.isend(_tensor(buffer), self._ranks[to], self._group, tag), buffer)

    def receive(self, buffer: np.ndarray, source: int, tag: int) -> _Request:
        return _Request(dist.irecv(_tensor(buffer), self._ranks[source], self._group, tag), buffer)


def _tensor(buffer: np.ndarray) -> Any:
    """The same bytes. PyTorch warns of memory that must not be written; a send only reads it."""
    address, _ = buffer.__array_interface__["data"]
    if buffer.flags.writeable or not buffer.size:
        return torch.from_numpy(buffer)
    return torch.frombuffer((ctypes.c_uint8 * buffer.size).from_address(address), dtype=torch.uint8)


class _Request:
    def __init__(self, work: Any, buffer: np.ndarray) -> None:
        self._work, self._buffer, self._done = work, buffer, False

    def test(self) -> bool:
        return self._done  # gloo has threads of its own, which move messages on

    def wait(self) -> None:
        if not self._done:
            self._work.wait()
            self._done = True
