"""The ring over MPI: processes that mpiexec starts."""

import pytest

from support import mpi

pytestmark = mpi.needs_mpi

SETUP = """
import os, signal
import numpy as np, selfattn
from mpi4py import MPI
from selfattn import distributed

comm = MPI.COMM_WORLD
arrays = np.random.default_rng(0).standard_normal((3, 2, 4000, 16)).astype("f4")
def shards(layout):
    return [distributed.shard(x, comm.size, comm.rank, -2, layout, 512) for x in arrays]
def attend(layout, **options):
    return distributed.ring_attention(*shards(layout), comm, layout=layout, block=512, **options)
"""


@pytest.mark.parametrize("ranks", [2, 3])
def test_bits_of_one_call(ranks):
    code = """
for layout in ("contiguous", "zigzag"):
    for options in ({}, {"is_causal": True, "dropout_p": 0.1}, {"window_size": (900, 50)}):
        got = comm.gather(attend(layout, **options))
        if comm.rank == 0:
            want = selfattn.scaled_dot_product_attention(*arrays, **options)
            print(np.array_equal(distributed.unshard(got, -2, layout, 512), want))
"""
    assert mpi.run(ranks, SETUP + code).split() == ["True"] * 6


def test_gradients_of_one_call():
    code = """
sinks = np.array([1, -1], "f4")
mine = [distributed.shard(x, comm.size, comm.rank) for x in (*arrays, arrays[0])]
def gradients(forward, backward, qkv, grad_out, *more):
    out, lse = forward(*qkv, *more, sinks=sinks, return_lse=True)
    return backward(grad_out, *qkv, out, lse, *more, sinks=sinks, sinks_grad=True)
ring = distributed.ring_attention, distributed.ring_attention_backward
got = comm.gather(tuple(gradients(*ring, mine[:3], mine[3], comm)))
if comm.rank == 0:
    call = selfattn.scaled_dot_product_attention, selfattn.scaled_dot_product_attention_backward
    want = gradients(*call, arrays, arrays[0])
    print(*(np.array_equal(distributed.unshard([x[i] for x in got]), want[i]) for i in range(3)))
    print(*(np.array_equal(x[4], want.sinks) for x in got))
"""
    assert mpi.run(3, SETUP + code).split() == ["True"] * 6


def test_errors_on_all_ranks():
    code = """
try:
    attend("contiguous", scale=1 + comm.rank // 2)
except ValueError as error:
    errors = comm.gather(str(error))
    if comm.rank == 0:
        print(len(set(errors)), errors[0])
"""
    expected = "1 scale: expected the same on all ranks, got 1 on rank 0 and 2 on rank 2\n"
    assert mpi.run(3, SETUP + code) == expected


def test_a_rank_that_fails_or_dies_midway():
    """An exception ends the call on all ranks; a kill ends their processes, by mpiexec."""
    code = """
inner = selfattn.AttentionState.update
def update(self, key, value, **options):
    if comm.rank == 1 and self.num_keys:
        LAST_DEED
    inner(self, key, value, **options)
selfattn.AttentionState.update = update
try:
    attend("contiguous")
except (MemoryError, distributed.RankError) as error:
    names = comm.gather(type(error).__name__)
    if comm.rank == 0:
        print(*names)
"""
    raises = code.replace("LAST_DEED", "raise MemoryError")
    assert mpi.run(3, SETUP + raises) == "RankError MemoryError RankError\n"
    dies = code.replace("LAST_DEED", "os.kill(os.getpid(), signal.SIGKILL)")
    done = mpi.attempt(3, SETUP + dies)
    assert done.returncode != 0
    assert "Error" not in done.stdout


def test_a_message_that_does_not_come():
    code = """
transport = distributed.mpi.MPITransport(comm, timeout=0.2)
if comm.rank == 0:
    try:
        transport.receive(np.empty(3, "u1"), 1, 7).wait()
    except TimeoutError as error:
        print(error, flush=True)
    comm.Abort(3)
comm.Barrier()
"""
    done = mpi.attempt(2, SETUP + "import selfattn.distributed.mpi\n" + code)
    assert done.returncode != 0
    assert "rank 1 has sent no message in 0.2 s" in done.stdout
