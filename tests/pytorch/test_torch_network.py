"""The ring over a network: gloo's TCP connections between two network namespaces."""

import sys

from support import networks

CODE = """
import datetime, os, subprocess, sys
import numpy as np, selfattn, torch.distributed as dist
from selfattn import distributed
from selfattn.state import BorrowingState

rank, ranks = int(sys.argv[1]), int(sys.argv[2])
of = {"rank": rank, "world_size": ranks, "timeout": datetime.timedelta(seconds=120)}
dist.init_process_group("gloo", init_method=f"tcp://{sys.argv[3]}:29500", **of)
query, key, value, grad = np.random.default_rng(0).standard_normal((4, 2, 4700, 16)).astype("f4")
sinks, layout = np.array([1, -1], "f4"), {"layout": "zigzag"}
options = {"is_causal": True, "sinks": sinks}
mine = [distributed.shard(x, ranks, rank, **layout) for x in (query, key, value, grad)]

def received():
    for line in open("/proc/net/dev"):
        if line.split(":")[0].strip() == sys.argv[4]:
            return int(line.split(":")[1].split()[0])

def ring(group, **more):
    *arrays, grad_out = mine
    shared = {**options, **layout, **more}
    out, lse = distributed.ring_attention(*arrays, group, return_lse=True, **shared)
    return distributed.ring_attention_backward(
        grad_out, *arrays, out, lse, group, sinks_grad=True, **shared
    )

before = received()
gradients = ring(dist.group.WORLD)
bytes_received = received() - before
every = [None] * ranks
dist.all_gather_object(every, tuple(gradients))
out, lse = selfattn.scaled_dot_product_attention(query, key, value, return_lse=True, **options)
want = selfattn.scaled_dot_product_attention_backward(
    grad, query, key, value, out, lse, sinks_grad=True, **options
)
for i, x in enumerate(want[:3]):
    assert np.array_equal(distributed.unshard([of_rank[i] for of_rank in every], **layout), x), i
assert np.array_equal(gradients.sinks, want.sinks)
if rank == ranks - 1:  # alone on its side: others' keys and values have come over the link
    assert bytes_received > key.nbytes + value.nbytes - 2 * mine[1].nbytes, bytes_received

inner = BorrowingState.update
def update(self, *arrays, **named):
    if rank == ranks - 1:
        subprocess.run(["ip", "link", "set", sys.argv[4], "down"], check=True)
    inner(self, *arrays, **named)
BorrowingState.update = update
group = dist.new_group(timeout=datetime.timedelta(seconds=5))
try:
    ring(group, is_causal=False)
except RuntimeError as error:
    print("it ends", flush=True)
os._exit(0)  # what is left of the connections would wait for its end
"""


def test_bits_of_one_call_and_a_link_that_breaks():
    """Two ranks on one side, one on the other."""
    with networks.two_networks() as (one, other):
        commands = [
            network.command(sys.executable, "-c", CODE, str(rank), "3", one.address, networks.LINK)
            for rank, network in enumerate((one, one, other))
        ]
        done = networks.run_all(commands, timeout=200, GLOO_SOCKET_IFNAME=networks.LINK)
    for status, printed, errors in done:
        assert (status, printed) == (0, "it ends\n"), errors
