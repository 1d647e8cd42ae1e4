"""How many threads a call uses: an argument, a context, a setting, the environment, the machine.

`num_threads=` beats `threads()` beats `set_num_threads()` beats OMP_NUM_THREADS beats what the
machine lets this process use: its CPU affinity and its cgroup's CPU quota. Called by `_args`.

The last two are asked for again and again: a worker process may be pinned, or its environment set,
long after the import, and after a fork.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import operator
import os
import time
from collections.abc import Iterator

from . import _core

MAX_THREADS = 1024  # of one call: more than that is taken for a mistake

_in_context: contextvars.ContextVar[int | None] = contextvars.ContextVar("threads", default=None)
_setting: int | None = None


def get_num_threads() -> int:
    """Return how many threads a call made here would use.

    Examples
    --------
    >>> import selfattn
    >>> with selfattn.threads(3):
    ...     selfattn.get_num_threads()
    3
    """
    return _in_context.get() or _setting or _default()


def set_num_threads(n: int | None) -> None:
    """Use `n` threads from now on, in every Python thread; None goes back to the default.

    The default is OMP_NUM_THREADS, or else the number of CPUs that this process may use: those of
    its affinity mask, at most its cgroup's CPU quota. It is what these say at the time of a call;
    a quota that changes is noticed within a second.

    Raises
    ------
    TypeError, ValueError
        When `n` is not an int from 1 to 1024.

    Examples
    --------
    >>> import selfattn
    >>> selfattn.set_num_threads(2)
    >>> selfattn.get_num_threads()
    2
    >>> selfattn.set_num_threads(None)
    """
    global _setting
    _setting = None if n is None else count("n", n)


@contextlib.contextmanager
def threads(n: int) -> Iterator[None]:
    """Use `n` threads inside a `with` block, in this Python thread (or asyncio task) alone.

    And in threads that are started in the block, where they begin with its context: by default in a
    free-threaded CPython 3.14 (`sys.flags.thread_inherit_context`).

    Raises
    ------
    TypeError, ValueError
        When `n` is not an int from 1 to 1024.

    Examples
    --------
    >>> import selfattn
    >>> with selfattn.threads(1):
    ...     selfattn.get_num_threads()
    1
    """
    token = _in_context.set(count("n", n))
    try:
        yield
    finally:
        _in_context.reset(token)


def count(name: str, n: int) -> int:
    """Check a number of threads that a user gave as the argument `name`."""
    try:
        if isinstance(n, bool):
            raise TypeError
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"{name}: expected an int, got {type(n).__name__}") from None
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"{name}: expected 1 to {MAX_THREADS} threads, got {number}")
    return number


def _default() -> int:
    return _of_environment() or _of_machine()


def _of_environment() -> int | None:
    """OMP_NUM_THREADS as OpenMP reads it: of a list, the first is the outermost level's."""
    text = _core.environment("OMP_NUM_THREADS")
    if text is None:
        return None
    first = text.split(",")[0].strip()
    return min(int(first), MAX_THREADS) if first.isdecimal() and int(first) else None


def _of_machine() -> int:
    return max(1, math.ceil(min(_cores(), _quota(), MAX_THREADS)))


def _cores() -> int:
    """Those of this thread's affinity, if the system tells; else all that there are."""
    if cores := _core.num_cores():
        return cores
    with contextlib.suppress(AttributeError, OSError):  # it has room for more than a thousand cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Reading the files takes longer than many a call: what was found, and how long it is believed.
_QUOTA_SECONDS = 1.0
_found_quota = math.inf
_found_until = -math.inf


def _quota() -> float:
    global _found_quota, _found_until
    now = time.monotonic()
    if now >= _found_until:
        _found_quota, _found_until = _cgroup_quota(), now + _QUOTA_SECONDS
    return _found_quota


def _forget_quota() -> None:
    global _found_until
    _found_until = -math.inf


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_quota)


def _cgroup_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """CPUs' worth of time that this process's cgroup and those above it allow; inf if unlimited.

    Version 2 keeps "quota period" in cpu.max, version 1 two files under cpu/; each lies in the
    group's own folder, or in the root of the mount where a container sees only its own group.
    """
    quota = math.inf
    for line in _read(own).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        names = controllers.split(",")
        mounts = [f"{root}/cpu", f"{root}/cpu,cpuacct"] if "cpu" in names else [root]
        for mount in mounts:
            group = f"{mount}/{path.strip('/')}".rstrip("/")
            while len(group) >= len(mount):
                quota = min(quota, _quota_of_group(group))
                group = group.rpartition("/")[0]
    return quota


def _quota_of_group(group: str) -> float:
    words = _read(f"{group}/cpu.max").split()
    if not words:
        words = [
            *_read(f"{group}/cpu.cfs_quota_us").split(),
            *_read(f"{group}/cpu.cfs_period_us").split(),
        ]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # no such files, or cpu.max says "max"
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
