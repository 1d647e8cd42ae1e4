"""The ring over torch.distributed's gloo: processes that torchrun starts."""

from support import subprocesses

CODE = """
import warnings
import numpy as np, selfattn, torch.distributed as dist
from selfattn import distributed

dist.init_process_group("gloo")
ranks, rank = dist.get_world_size(), dist.get_rank()
arrays = np.random.default_rng(0).standard_normal((3, 2, 4000, 16)).astype("f4")
shards = [distributed.shard(x, ranks, rank, -2, "zigzag", 512) for x in arrays]
shards[1].flags.writeable = False
warnings.simplefilter("error")
options = {"layout": "zigzag", "block": 512, "is_causal": True}
out = distributed.ring_attention(*shards, dist.group.WORLD, **options)
every = [None] * ranks
dist.all_gather_object(every, out)
want = selfattn.scaled_dot_product_attention(*arrays, is_causal=True)
assert np.array_equal(distributed.unshard(every, -2, "zigzag", 512), want)
if rank == 1:
    options["is_causal"] = False
try:
    distributed.ring_attention(*shards, dist.group.WORLD, **options)
    raise SystemExit("no error")
except ValueError as error:
    assert str(error).startswith("is_causal: expected the same on all ranks"), error
dist.destroy_process_group()
"""


def test_bits_of_one_call_and_errors(tmp_path):
    program = tmp_path / "ring.py"
    program.write_text(CODE)
    arguments = ["--standalone", "--nproc-per-node", "2", str(program)]
    subprocesses.run(
        "import runpy, sys, warnings",
        "warnings.simplefilter('default')",
        f"sys.argv = ['torchrun', *{arguments!r}]",
        "runpy.run_module('torch.distributed.run', run_name='__main__')",
        timeout=300,
    )
