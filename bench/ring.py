"""Attention past one machine: time, bytes and waiting for 1, 2, 4 and 8 ranks that share this one.

    python bench/ring.py            measure, by mpiexec where mpi4py is installed

Ranks share the cores, so this measures no speed-up: it measures what being cut costs, the sum of
the ranks' time on a core beside that of one process. How long shards must be for a network is
reckoned, from the rate measured here: `docs/distributed.md` has both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np

import selfattn
from selfattn import distributed

LENGTH, HEADS, HEAD_DIM, REPEATS = 49152, 1, 64, 2
RANKS = (1, 2, 4, 8)
NETWORKS = (10, 25, 100)  # Gb/s


def inputs():
    """query, key and value of the whole."""
    shape = (3, HEADS, LENGTH, HEAD_DIM)
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def measure(compute):
    """(seconds, seconds on a core) of the quickest of some calls."""
    found = []
    for _ in range(REPEATS):
        wall, cpu = time.perf_counter(), time.process_time()
        compute()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


def rank_of_mpi(layout, is_causal):
    """One rank's part, under mpiexec; rank 0 prints what all have measured."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    comm = distributed.MeasuredTransport(world)
    shards = [distributed.shard(x, comm.ranks, comm.rank, -2, layout) for x in inputs()]
    kept = []

    def attend():
        world.Barrier()
        comm.bytes_sent, comm.seconds_waiting = 0, 0.0
        distributed.ring_attention(*shards, comm, layout=layout, is_causal=is_causal, num_threads=1)
        kept.append((comm.bytes_sent, comm.seconds_waiting))

    wall, cpu = measure(attend)
    ranks = world.gather((wall, cpu, *min(kept, key=lambda x: x[1])))
    if comm.rank == 0:
        print(json.dumps(ranks))


def measured(ranks, layout, is_causal):
    """What so many ranks measure: of each (seconds, on a core, bytes sent, waiting)."""
    oversubscribe = {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    done = subprocess.run(
        ["mpiexec", "-n", str(ranks), sys.executable, __file__, "--rank", layout, str(is_causal)],
        capture_output=True,
        text=True,
        env=os.environ | oversubscribe,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def show(is_causal, layout):
    whole = inputs()
    alone = measure(
        lambda: selfattn.scaled_dot_product_attention(*whole, is_causal=is_causal, num_threads=1)
    )
    print(f"\n{'causal, ' if is_causal else ''}{layout}; one process, one thread: {alone[0]:.2f} s")
    print(
        "| ranks | seconds | on a core, all ranks | of one process | MB sent, all | waiting, most |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for ranks in RANKS:
        rows = np.array(measured(ranks, layout, is_causal))
        wall, cpu, sent, waiting = rows.T
        print(
            f"| {ranks} | {wall.max():.2f} | {cpu.sum():.2f} | {cpu.sum() / alone[1]:.2f} "
            f"| {sent.sum() / 1e6:.1f} | {waiting.max():.2f} |"
        )
    return alone[1]


def reckon(seconds):
    """The shortest shards whose keys arrive before those before them are attended to.

    A rank with n queries and n keys computes 4 n² H E operations on a shard, and its next one has
    2 n Hkv E elements.
    """
    rate = 4 * LENGTH**2 * HEADS * HEAD_DIM / seconds
    print(
        f"\nmeasured: {rate / 1e9:.0f} Gflop/s on one core. Positions of a shard, Hkv = H, float32:"
    )
    print("| a rank's rate | " + " | ".join(f"{network} Gb/s" for network in NETWORKS) + " |")
    print("| --- | " + "--- | " * len(NETWORKS))
    for cores in (1, 8, 64):
        lengths = [
            2 * 4 * 8 / (4 * network * 1e9) * rate * cores for network in NETWORKS
        ]  # n: 4 n² H E / rate = 8 · 4 · 2 n H E / network
        rates = f"{cores} cores, {cores * rate / 1e12:.2f} Tflop/s"
        print(f"| {rates} | " + " | ".join(f"{length:.0f}" for length in lengths) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rank", nargs=2, help="used by itself: one rank's part")
    arguments = parser.parse_args()
    if arguments.rank:
        layout, is_causal = arguments.rank
        rank_of_mpi(layout, is_causal == "True")
        return
    seconds = show(False, "contiguous")
    show(True, "zigzag")
    reckon(seconds)


if __name__ == "__main__":
    main()
