"""A long sequence on many ranks: how long each computes and waits, and that the bits are one's.

Called by the command, as `selfattn demo --ring`: under mpiexec its ranks are MPI's; without it they
are threads of this process. Every rank makes its own positions of the same random numbers.
"""

from __future__ import annotations

import os
import time

import numpy as np

from .. import distributed, get_num_threads, scaled_dot_product_attention
from ..distributed.agreement import allgather

LENGTH, HEAD_DIM, RANKS = 65536, 16, 4  # ranks without mpiexec
SAMPLE = 24  # rows at the end of each piece that are computed again on one machine
_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")  # what mpiexec sets


def run(length: int = LENGTH) -> bool:
    """Attend, and show it; whether all bits that were compared are the same."""
    if any(name in os.environ for name in _LAUNCHED):
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
        here = comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()  # ranks of this machine
        return _attend(comm, length, "MPI", here)
    return all(distributed.run_ranks(RANKS, _attend, length, "threads of one process", RANKS))


def _attend(comm, length, what, ranks_here):
    comm = distributed.MeasuredTransport(comm)
    pieces = [p for p in distributed.pieces(length, comm.ranks, "zigzag") if p.owner == comm.rank]
    shards = [
        np.concatenate([_numbers(which, piece.begin, piece.end) for piece in pieces])
        for which in range(3)
    ]
    threads = max(1, get_num_threads() // ranks_here)
    distributed.ring_attention(
        *(x[:0] for x in shards), comm, is_causal=True, layout="zigzag"
    )  # all are ready
    comm.bytes_sent, comm.seconds_waiting = 0, 0.0
    began = time.perf_counter()
    out = distributed.ring_attention(
        *shards, comm, is_causal=True, layout="zigzag", num_threads=threads
    )
    took = time.perf_counter() - began
    mine = {
        "positions": len(out),
        "took": took,
        "waited": comm.seconds_waiting,
        "sent": comm.bytes_sent,
        "same": _same_bits(out, pieces, length),
    }
    ranks = allgather(comm, mine)
    if comm.rank == 0:
        _show(ranks, length, what)
    return all(same == compared for same, compared in (rank["same"] for rank in ranks))


def _numbers(which: int, begin: int, end: int) -> np.ndarray:
    """Positions of query, key or value, which are the same whoever makes them."""
    block = distributed.BLOCK
    found = [
        np.random.default_rng([which, i]).standard_normal((block, HEAD_DIM), np.float32)
        for i in range(begin // block, -(-end // block))
    ]
    first = begin // block * block
    return np.concatenate([np.empty((0, HEAD_DIM), np.float32), *found])[
        begin - first : end - first
    ]


def _same_bits(out, pieces, length):
    """(rows with the bits of one machine, rows that were compared)."""
    key, value = (_numbers(which, 0, length) for which in (1, 2))
    same = compared = end = 0
    for piece in pieces:
        end += piece.end - piece.begin
        rows = min(SAMPLE, piece.end - piece.begin)
        first = piece.end - rows
        alone = scaled_dot_product_attention(
            _numbers(0, first, piece.end), key, value, is_causal=True, query_offset=first
        )
        equal = alone.view(np.uint32) == out[end - rows : end].view(np.uint32)
        same, compared = same + int(equal.all(-1).sum()), compared + rows
    return same, compared


def _show(ranks, length, what):
    print(f"Causal self-attention over {length} positions, {HEAD_DIM} wide, on {len(ranks)} ranks")
    print(f"({what}): keys and values go from rank to rank, none has all of them.\n")
    print("rank  positions  seconds  computing  waiting   MB sent  rows with one machine's bits")
    for number, rank in enumerate(ranks):
        computed = rank["took"] - rank["waited"]
        same, compared = rank["same"]
        print(
            f"{number:4d}  {rank['positions']:9d}  {rank['took']:7.2f}  {computed:9.2f}  "
            f"{rank['waited']:7.2f}  {rank['sent'] / 1e6:8.2f}  {same} of {compared} compared"
        )
