"""What threads of Python share: arrays, caches, layers, settings, the environment, first calls.

Fault 31. Without a GIL, where CPython has none, the threads truly run at once (support/at_once.py).
"""

import copy
import os
import pickle
import sysconfig

import numpy as np
import pytest

import selfattn
from selfattn import nn
from support import subprocesses
from support.arrays import normal, same_bits
from support.at_once import at_once

THREADS, HEADS, E = 6, 2, 16
attend = selfattn.scaled_dot_product_attention
has_no_gil = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.mark.skipif(not has_no_gil, reason="a CPython with a GIL")
def test_the_gil_stays_off():
    """The core declares that it needs none; else importing it would switch it on."""
    code = "import sys, selfattn, selfattn.nn; print(sys._is_gil_enabled())"
    assert subprocesses.run(code, PYTHON_GIL=None) == "False\n"


def test_every_function_at_once():
    """The same arrays in all, the number of threads of each of them its own."""
    x, y, matrix = normal(2, 60, E), normal(2, 60, E, seed=1), normal(8, E)
    starts = [0, 1, 2]
    out, lse = attend(x, y, y, return_lse=True)
    layer = nn.MultiheadAttention(E, 2, seed=0)
    state = selfattn.AttentionState(x)
    state.update(y[:, :40], y[:, :40])

    def of_a_copy():
        mine = state.copy()
        mine.update(y[:, 40:], y[:, 40:])
        return mine.result()

    def of_a_layer_of_its_own():
        mine = nn.MultiheadAttention(E, 2, seed=1)
        return mine.backward(mine.forward(x, rope={}))

    calls = [
        lambda: attend(x, y, y),
        lambda: attend(x, y, y, attn_mask=x @ y.swapaxes(1, 2), kv_lengths=50, num_threads=2),
        lambda: selfattn.scaled_dot_product_attention_backward(out, x, y, y, out, lse).key,
        lambda: selfattn.varlen_attention(x, y, y, starts, starts),
        lambda: selfattn.project(x, matrix),
        lambda: selfattn.project_backward(x @ matrix.T, x, matrix).weight,
        lambda: selfattn.softmax(x),
        lambda: selfattn.attention_weights(x, y, is_causal=True),
        lambda: selfattn.merge_states(out, lse, out, lse)[0],
        lambda: nn.rope(x, offset=7),
        lambda: layer.forward(x, requires_grad=False, rope={}),
        state.result,
        of_a_copy,
        of_a_layer_of_its_own,
    ]
    want = [call() for call in calls]

    def work(first):
        for i in range(30):
            with selfattn.threads(1 + (first + i) % 3):
                n = (first + i) % len(calls)
                assert same_bits(calls[n](), want[n]), n

    at_once(*[lambda first=first: work(first) for first in range(len(calls))])


def test_first_calls_at_once():
    """What is made when it is first needed: modules, tables, the pool, the kernel set in use."""
    code = """
    import numpy as np, selfattn
    from support.at_once import at_once

    x = np.random.default_rng(0).standard_normal((2, 2, 300, 32)).astype("f4")
    found = [None] * 8
    def work(i):
        layer = selfattn.nn.MultiheadAttention(32, 2, seed=0)
        state = selfattn.AttentionState(x)
        state.update(x, x)
        cache = selfattn.KVCache(2, 2, 300, 32)
        cache.append(x, x)
        rotated = selfattn.nn.rope(x)
        results = layer.forward(x[:, 0], rope={}), state.result(), cache.attend(x), rotated
        found[i] = [*results, selfattn.merge_states_many(x[None], x[None, ..., 0])[0]]
    at_once(*[lambda i=i: work(i) for i in range(8)])
    work(0)  # alone, and nothing is new
    for mine in found[1:]:
        assert all(map(np.array_equal, mine, found[0]))
    """
    for _ in range(3):
        subprocesses.run(code)


def test_settings_change_during_calls():
    """Fault 31: variables of the environment come and go, so that C's list of them moves."""
    code = """
    import os, threading
    import numpy as np, selfattn
    from support.at_once import at_once

    x = np.random.default_rng(0).standard_normal((4, 90, 32)).astype("f4")
    want = selfattn.scaled_dot_product_attention(x, x, x)
    calling = 4
    def call():
        global calling
        for _ in range(500):
            assert np.array_equal(selfattn.scaled_dot_product_attention(x, x, x), want)
            assert 1 <= selfattn.get_num_threads() <= 1024
        calling -= 1
    def change(first):
        n = first
        while calling > 0:
            n += 2
            selfattn.set_num_threads((None, 1, 2, 3)[n % 4])
            os.environ["OMP_NUM_THREADS"] = str(1 + n % 3)
            os.environ[f"SELFATTN_TEST_{n % 500}"] = "x" * (n % 90)
            os.environ.pop(f"SELFATTN_TEST_{n * 7 % 500}", None)
    at_once(*[call] * 4, lambda: change(0), lambda: change(1))
    """
    subprocesses.run(code)


def test_calls_go_on_while_the_main_thread_is_interrupted():
    """KeyboardInterrupt ends the call of the main thread; those of others are whole."""
    code = """
    import os, signal, threading, time
    import numpy as np, selfattn

    signal.signal(signal.SIGINT, signal.default_int_handler)
    x = np.random.default_rng(0).standard_normal((2, 200, 64)).astype("f4")
    long = np.broadcast_to(x[:1, :1], (40, 8192, 64))
    want = selfattn.scaled_dot_product_attention(x, x, x)
    wrong, stop, counts = [], False, [0] * 3
    def work(i):
        while not stop:
            if not np.array_equal(selfattn.scaled_dot_product_attention(x, x, x), want):
                wrong.append(i)
            counts[i] += 1
    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        before = list(counts)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            selfattn.scaled_dot_product_attention(long, long, long, num_threads=2)
            raise AssertionError("not interrupted")
        except KeyboardInterrupt:
            pass
        timer.join()
    stop = True
    for thread in threads:
        thread.join()
    assert not wrong and min(counts) > 0, (wrong, counts)
    """
    subprocesses.run(code)


# ------------------------------------------------------------------ caches


def rows(t, seed):
    """Queries, keys and values of one sequence."""
    return [normal(1, HEADS, t, E, seed=seed + n) for n in range(3)]


def causal(query, key, value):
    return attend(query, key, value, is_causal=True)


def test_sequences_of_a_cache_grow_at_once():
    """Each thread appends to an entry of its own, and gets the bits of it alone."""
    cache = selfattn.KVCache(THREADS, HEADS, 100, E)

    def work(i):
        query, key, value = rows(100, seed=3 * i)
        want = causal(query, key, value)
        for t in range(0, 100, 4):
            new = [np.repeat(x[:, :, t : t + 4], THREADS, 0) for x in (query, key, value)]
            cache.append(*new[1:], lengths=np.where(np.arange(THREADS) == i, 4, 0))
            assert same_bits(cache.attend(new[0])[i], want[0, :, t : t + 4])

    at_once(*[lambda i=i: work(i) for i in range(THREADS)])
    assert cache.lengths.tolist() == [100] * THREADS


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_sequences_share_a_pool_at_once(dtype):
    """They take pages, share and copy those of a prompt, shrink, end: no page is lost or shared."""
    size, blocks = 8, 200
    cache = selfattn.PagedKVCache(blocks, size, HEADS, E, dtype=dtype)
    prompt, of_prompt = cache.new_sequence(), rows(20, seed=0)
    cache.append([prompt], *of_prompt[1:])

    def turn(i, again):
        mine = rows(60, seed=3 * (1 + i))
        begins = 20 - (again % 3)  # inside a page: who writes there copies it
        query, key, value = (
            np.concatenate([x[:, :, :begins], y], 2) for x, y in zip(of_prompt, mine, strict=True)
        )
        alone = selfattn.KVCache(1, HEADS, 80, E, dtype=dtype)
        alone.append(key, value)
        want = alone.attend(query)
        sequence = cache.new_sequence(prefix_of=prompt, length=begins)
        for t in range(begins, query.shape[2], 5):
            part = np.s_[:, :, t : t + 5]
            cache.append([sequence], key[part], value[part])
            assert same_bits(cache.attend([sequence], query[part]), want[part])
        cache.truncate(sequence, begins + 11)
        left = np.s_[:, :, : begins + 11]
        assert same_bits(cache.attend([sequence], query[left]), want[left])
        cache.free(sequence)

    def work(i):
        for again in range(4):
            turn(i, again)

    at_once(*[lambda i=i: work(i) for i in range(THREADS)])
    assert cache.num_free_blocks == blocks - 3
    cache.free(prompt)
    assert cache.num_free_blocks == blocks


def test_a_cache_that_shrinks_under_a_call():
    """What a call gets is of no use then, but it reads nothing that is not the cache's."""
    cache = selfattn.PagedKVCache(64, 1, HEADS, E)
    sequence, (query, key, value) = cache.new_sequence(), rows(60, seed=0)
    done = []

    def change():
        for _ in range(300):
            cache.append([sequence], key, value)
            cache.truncate(sequence, 0)
        done.append(True)

    def ask():
        while not done:
            assert np.isfinite(cache.attend([sequence], query[:, :, :1])).all()

    at_once(change, ask, ask)


def test_a_copy_of_a_cache_has_a_lock_of_its_own():
    cache = selfattn.PagedKVCache(8, 4, HEADS, E)
    sequence, (query, key, value) = cache.new_sequence(), rows(5, seed=0)
    cache.append([sequence], key, value)
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        other.append([sequence], key, value)
        assert (other.length(sequence), cache.length(sequence)) == (10, 5)
        assert same_bits(cache.attend([sequence], query), causal(query, key, value))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_a_child_of_fork_has_locks_of_its_own():
    """One that another thread held at that moment would never be given back."""
    code = """
    import os, signal, threading
    import numpy as np, selfattn

    cache = selfattn.PagedKVCache(64, 128, 8, 64)
    mine, other = cache.new_sequence(), cache.new_sequence()
    rows, stop = np.zeros((1, 8, 3000, 64), "f4"), False
    def work():
        while not stop:
            cache.append([other], rows, rows)
            cache.truncate(other, 0)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    for _ in range(15):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            cache.append([mine], rows[:, :, :5], rows[:, :, :5])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    stop = True
    thread.join()
    """
    subprocesses.run(code)


def test_a_collection_inside_a_call_frees_pages():
    """Of a request in a cycle, whose end frees its sequence while another one is appended to."""
    code = """
    import gc
    import numpy as np, selfattn

    cache = selfattn.PagedKVCache(12, 16, 1, 8)
    rows = np.zeros((1, 1, 64, 8), "f4")
    class Request:
        def __init__(self):
            self.number, self.me = cache.new_sequence(), self
        def __del__(self):
            cache.free(self.number)
    gc.disable()
    write = cache._write
    cache._write = lambda *arguments: (gc.collect(), write(*arguments))
    for i in range(50):
        request = Request()
        cache.append([request.number], rows, rows)
        assert cache.length(request.number) == 64 and cache.num_free_blocks == 8
        del request
    gc.collect()
    assert sorted(cache._pages._free) == list(range(12))
    """
    subprocesses.run(code)
