"""How many threads a call uses: an argument, a context, a setting, the environment, the machine.

`num_threads=` beats `threads()` beats `set_num_threads()` beats OMP_NUM_THREADS beats what the
machine lets this process use: its CPU affinity and its cgroup's CPU quota. Called by `_args`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
import operator
import os
from collections.abc import Iterator
from pathlib import Path

MOST = 1024  # threads of one call: more is a slip of the pen

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
    its affinity mask, at most its cgroup's CPU quota.

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
    if not 1 <= number <= MOST:
        raise ValueError(f"{name}: expected 1 to {MOST} threads, got {number}")
    return number


@functools.cache
def _default() -> int:
    return _of_environment() or _of_machine()


def _of_environment() -> int | None:
    """OMP_NUM_THREADS as OpenMP reads it: of a list, the first is the outermost level's."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(int(first), MOST) if first.isdecimal() and int(first) else None


def _of_machine() -> int:
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    return max(1, math.ceil(min(cpus, _cgroup_quota(), MOST)))


def _cgroup_quota(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> float:
    """CPUs' worth of time that this process's cgroup and those above it allow; inf if unlimited.

    Version 2 keeps "quota period" in cpu.max, version 1 two files under cpu/; each lies in the
    group's own folder, or in the root of the mount where a container sees only its own group.
    """
    quota = math.inf
    for line in _read(Path(own)).splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for base in (Path(root), Path(root) / "cpu", Path(root) / "cpu,cpuacct"):
            if (base == Path(root)) == ("cpu" in controllers.split(",")):
                continue
            folder = base / path.lstrip("/")
            for group in (folder, *folder.parents):
                if not group.is_relative_to(base):
                    break
                quota = min(quota, _quota_of_group(group))
    return quota


def _quota_of_group(group: Path) -> float:
    words = _read(group / "cpu.max").split()
    if not words:
        words = [
            *_read(group / "cpu.cfs_quota_us").split(),
            *_read(group / "cpu.cfs_period_us").split(),
        ]
    try:
        quota, period = (float(word) for word in words)
    except ValueError:  # no such files, or cpu.max says "max"
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
