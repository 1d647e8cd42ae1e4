"""Print how long calls go on after Ctrl-C, in milliseconds: the median of a few, and the longest.

    python bench/latency.py [--threads N] [--isa NAME] [--repeats N]

Each call takes seconds if it is not interrupted. A thread of its process sends SIGINT while it
computes; the time is that from there to the exception. On a busy machine it is what the call takes
to be given its turn. Run by whoever changes where a loop asks whether to go on (csrc/call.h).
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time

import numpy as np

import selfattn
from selfattn import _core

rng = np.random.default_rng(0)
unit = rng.standard_normal((1, 8192, 64)).astype("f4")
x = np.broadcast_to(unit, (40, 8192, 64))  # forty times the work, once the memory
long = np.broadcast_to(unit[:, :1], (1, 2**22, 64))
few = unit[:, :64]
wide = np.ones((768, 64), "f4")
row = np.broadcast_to(unit[0, 0, :1], 2**27)

CALLS = {
    "attention": lambda n: selfattn.scaled_dot_product_attention(x, x, x, num_threads=n),
    "decoding": lambda n: [
        selfattn.scaled_dot_product_attention(unit[:, :1], long, long, num_threads=n)
        for _ in range(100)
    ],
    "gradients": lambda n: selfattn.scaled_dot_product_attention_backward(
        x, x, x, x, x, x[..., 0], num_threads=n
    ),
    "gradients of many keys": lambda n: selfattn.scaled_dot_product_attention_backward(
        few, few, long, long, few, few[..., 0], num_threads=n
    ),
    "projection": lambda n: selfattn.project(x, wide, num_threads=n),
    "softmax of a row": lambda n: selfattn.softmax(row, num_threads=n),
}


def latency(call, threads):
    """Milliseconds from the signal to the exception; None if the call was done before it."""
    sent = []

    def interrupt():
        time.sleep(0.05)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    done = False
    thread.start()
    try:
        call(threads)
        done = True
        time.sleep(10)
    except KeyboardInterrupt:
        pass
    after = time.perf_counter()
    thread.join()
    return None if done else 1000 * (after - sent[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--isa", default=_core.isa(), choices=_core.isas())
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    _core.force_isa(asked.isa)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print(f"{'call':24} median  longest   ms, {asked.isa}, {asked.threads} threads")
    for name, call in CALLS.items():
        found = [latency(call, asked.threads) for _ in range(asked.repeats)]
        if None in found:
            print(f"{name:24} done before it could be interrupted")
        else:
            print(f"{name:24} {statistics.median(found):6.1f} {max(found):8.1f}")


if __name__ == "__main__":
    main()
