"""The interpreter ends while daemon threads are inside of calls: exit status 0, never a crash.

Fault 34. CPython ends such a thread where it asks for the GIL; the pool's helpers would go on
working on its stack.
"""

import pytest

from support import subprocesses

CODE = """
import threading, time
import numpy as np, selfattn
from selfattn import nn

n = {threads}
rng = np.random.default_rng(0)
x = rng.standard_normal((1, 4, 2000, 64)).astype("f4")
out, lse = selfattn.scaled_dot_product_attention(x, x, x, return_lse=True)
packed = np.ascontiguousarray(x[0].swapaxes(0, 1))
ends = np.array([0, 2000])
square = np.resize(x, (4, 2000, 2000))
packed_out, packed_lse = selfattn.varlen_attention(
    packed, packed, packed, ends, ends, return_lse=True
)
calls = 0

def serve():
    global calls
    with selfattn.threads(n):
        while True:
            {call}
            calls += 1

for _ in range(2):
    threading.Thread(target=serve, daemon=True).start()
while not calls:
    time.sleep(0.001)
time.sleep(0.06)
"""

CALLS = {
    "attention": "selfattn.scaled_dot_product_attention(x, x, x)",
    "backward": "selfattn.scaled_dot_product_attention_backward(out, x, x, x, out, lse)",
    "varlen": "selfattn.varlen_attention(packed, packed, packed, ends, ends)",
    "varlen backward": "selfattn.varlen_attention_backward("
    "packed_out, packed, packed, packed, packed_out, packed_lse, ends, ends)",
    "scores": "selfattn.scaled_dot_product(x, x)",
    "weights": "selfattn.attention_weights(x, x)",
    "softmax": "selfattn.softmax(square)",
    "sum": "selfattn.weighted_sum(square, x[0])",
    "merge": "selfattn.merge_states(out, lse, out, lse)",
    "gradients of a merge": "selfattn.merge_states_backward(out[0], None, out, lse)",
    "rope": "nn.rope(x)",
    "rope by tables": "nn.rope(x, cos=x[0, 0], sin=x[0, 1])",
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_exit_with_calls_in_flight(name, threads):
    done = subprocesses.attempt(CODE.format(threads=threads, call=CALLS[name]))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_exit_from_inside_a_call(threads):
    """A signal handler ends the process while the main thread computes, helpers too."""
    code = f"""
    import signal, sys
    import numpy as np, selfattn
    x = np.broadcast_to(np.ones((1, 1024, 64), "f4"), (400, 1024, 64))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    while True:
        selfattn.scaled_dot_product_attention(x, x, x, num_threads={threads})
    """
    done = subprocesses.attempt(code)
    assert done.returncode == 7, done.stderr
