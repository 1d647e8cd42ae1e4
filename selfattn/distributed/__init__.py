"""Attention past one machine: positions of a sequence on many ranks, with one machine's bits.

    layout.py      which positions each rank holds
    attention.py   ring_attention: keys and values travel, in their order, past
                   row_pieces.py: pieces of a rank's rows, and attention so far
    backward.py    ring_attention_backward: keys and values, and then rows;
                   rows_given.py: a rank's rows, checked; row_states.py: their maxima and sums;
                   query_gradient.py: sums over keys; key_gradients.py, sinks_gradient.py: over rows
    problem.py     what the ranks agree on, and the pieces that it is cut into
    ring.py        pieces that travel from rank to rank
    agreement.py   a few words from each rank to all; errors that all raise
    transport.py   what carries bytes; mpi.py: MPI; gloo.py: torch.distributed;
                   inprocess.py: threads of one process

Loaded when first asked for, and MPI or PyTorch only when a communicator of theirs comes.
"""

from __future__ import annotations

from .agreement import RankError
from .attention import ring_attention
from .backward import ring_attention_backward
from .inprocess import run_ranks
from .layout import BLOCK, FORWARD_BLOCK, Piece, pieces, shard, unshard
from .transport import MeasuredTransport, Request, Transport

__all__ = [
    "BLOCK",
    "FORWARD_BLOCK",
    "MeasuredTransport",
    "Piece",
    "RankError",
    "Request",
    "Transport",
    "pieces",
    "ring_attention",
    "ring_attention_backward",
    "run_ranks",
    "shard",
    "unshard",
]
