"""kv_lengths and query_offset are the call's own: what happens to the user's array does not matter.

Fault 31, and an `out=` that may overlap any input: lengths that were checked and then changed under
the kernels would send them past the end of the keys.
"""

import numpy as np

import selfattn
from support import subprocesses
from support.arrays import one_head, same_bits

attend = selfattn.scaled_dot_product_attention


def test_out_over_the_lengths(isa):
    query, key, value = one_head(4, 9, 2, dtype=np.float64)
    queries = np.broadcast_to(query, (50, 1, 4, 2))
    lengths = np.resize(np.arange(10), 50)
    want = attend(queries, key, value, kv_lengths=lengths)
    memory = np.zeros((50, 1, 4, 2))
    aliased = memory.reshape(-1)[:50].view(np.int64)
    aliased[:] = lengths
    attend(queries, key, value, kv_lengths=aliased, out=memory, num_threads=1)
    assert same_bits(memory, want)


def test_lengths_that_change_during_calls():
    """A process that dies read past the keys."""
    subprocesses.run("""
    import threading, time, numpy as np, selfattn
    query = np.ones((2000, 1, 4, 8), "f4")
    key = np.ones((1, 16, 8), "f4")
    lengths = np.full(2000, 16)
    done = time.monotonic() + 1.5
    def spoil():
        while time.monotonic() < done:
            lengths[:] = 2**40
            lengths[:] = 16
    thread = threading.Thread(target=spoil)
    thread.start()
    calls = 0
    while time.monotonic() < done:
        try:
            out = selfattn.scaled_dot_product_attention(query, key, key, kv_lengths=lengths)
        except ValueError:
            continue
        assert (out == 1).all()
        calls += 1
    thread.join()
    """)


def test_few_keys_of_a_long_cache_wake_no_thread():
    """Work is what the queries see, not what the arrays could hold."""
    subprocesses.run("""
    import os, numpy as np, selfattn
    count = lambda: len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else 0
    query, key = np.ones((1, 1, 64), "f4"), np.ones((1, 2**16, 64), "f4")
    before = count()
    for options in ({"kv_lengths": 8}, {"window_size": (7, 0), "query_offset": 2**16 - 1}):
        selfattn.scaled_dot_product_attention(query, key, key, num_threads=4, **options)
    assert count() == before
    """)
