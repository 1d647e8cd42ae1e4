"""What a contestant is: ways to do a row, checked and bound beforehand, the fastest of them timed.

A contestant may have several ways to do a row (another operator, another memory layout, repeated
key heads). Each is bound to the row's arrays, untimed, and its result compared with the reference
(truth.py); then the fastest goes to the start, so that a peer is shown at its best. Used by
measure.py; the contestants themselves are in peers.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from . import harness, machine
from .truth import difference

# What a right result may be off by. Peers round half types' weights and sums as well.
TOLERANCE = {"float32": 1e-4, "float64": 1e-4, "float16": 2e-2, "bfloat16": 1e-1, "int8": 5e-2}


@dataclass(frozen=True)
class Call:
    """A bound call. `run()` is what is timed.

    `array(run())` is the result: an array, of attention (B, Hq, L, E); or the gradients dQ, dK, dV.
    """

    run: Callable[[], Any]
    array: Callable[[Any], Any] = np.asarray


@dataclass(frozen=True)
class Way:
    """One way to do a row: what to call it, and arrays -> Call."""

    name: str
    bind: Callable[[tuple], Call]


class Peer:
    """What every contestant answers; a method named as the row's task lists its ways to do it."""

    name = ""
    packages = ()

    def available(self):
        """Whether its packages are installed."""
        return all(importlib.util.find_spec(package) for package in self.packages)

    def version(self):
        """The version of its first package."""
        return importlib.metadata.version(self.packages[0])

    def unfit(self, row):
        """Why it sits this row out; empty if it does not."""
        if row.task != "attention":
            return f"no {row.task} of its own here"
        return "no offset of a causal mask here" if row.query_offset else ""

    def attention(self, row, num_threads):
        """Ways to do an attention row."""
        raise NotImplementedError

    def backward(self, row, num_threads):
        """Ways to do a backward row, on (query, key, value, grad_out)."""
        raise NotImplementedError

    def softmax(self, row, num_threads):
        """Ways to do a softmax row, into the output given."""
        raise NotImplementedError

    def linear(self, row, num_threads):
        """Ways to do a linear row, on (x, weight, out), into the output given."""
        raise NotImplementedError

    def cache(self, row, num_threads):
        """Ways to do a cache row: (query, key, value), the last two to be held by a cache."""
        raise NotImplementedError

    def choose(self, row, arrays, num_threads):
        """The fastest of its ways, all of which must be right."""
        ways = getattr(self, row.task)(row, num_threads)
        timed = []
        for way in ways:
            call = way.bind(arrays)
            error = difference(row, arrays, call.array(call.run()))
            if not error <= TOLERANCE[row.dtype]:
                raise RuntimeError(f"{self.name}, {way.name}: off by {error:.1e} on {row}")
            timed.append((harness.quickest(call.run) if len(ways) > 1 else 0.0, way))
        return min(timed, key=lambda entry: entry[0])[1]

    def prepare(self, row, arrays, num_threads):
        """The Call of its fastest way, checked."""
        return self.choose(row, arrays, num_threads).bind(arrays)


def array_sets(row):
    """The arrays of a row, in a list of sets to be used one after the other.

    One set, but for a single query over many keys, or a single row of a projection, so many that no
    cache holds them all: in a model, too, a layer's keys and weights have left the cache by the
    time they are needed again.
    """
    is_decode = row.task in ("attention", "linear", "cache") and row.unit == "GB"
    sets = math.ceil(4 * machine.last_level_cache() / row.amount) if is_decode else 1
    return [row.arrays(copy) for copy in range(sets)]


def limit(row, num_threads):
    """The loop that a row is held against."""
    if row.unit == "GF":
        return machine.fma_loop(num_threads, row.dtype)
    return machine.read_loop(num_threads)


def rate_unit(row):
    """GF are operations per second by convention; bytes per second are written out."""
    return "GF" if row.unit == "GF" else "GB/s"


def positions_first(x):
    """A (batch, heads, positions, E) array copied to (batch, positions, heads, E)."""
    return np.ascontiguousarray(x.swapaxes(1, 2))


def holding(memory, function, *arguments):
    """`function(*arguments)` as a run() that keeps alive memory the library knows by address."""
    run = partial(function, *arguments)
    run.memory = memory
    return run


def repeated_heads(bind, arrays):
    """Bind as plain multi-head attention: every key and value head copied for each query head."""
    query, key, value = arrays
    group = query.shape[1] // key.shape[1]
    return bind((query, np.repeat(key, group, axis=1), np.repeat(value, group, axis=1)))


def group_as_rows(row, bind, arrays):
    """Bind a single query of several heads as several queries of the one head they share.

    The same numbers in the same memory, only with (group, E) read as (queries, E).
    """
    query, key, value = arrays
    group = row.num_heads_q // row.num_heads_kv
    call = bind((query.reshape(row.batch, row.num_heads_kv, group, row.head_dim), key, value))
    return Call(call.run, lambda out: call.array(out).reshape(query.shape))
