"""Objects that several threads may change at once: what belongs together changes under a lock.

The lock is held while rows are written and pages change hands, never while attention is computed.
A thread may take it again: what a garbage collection inside a call ends may free its pages. A child
of fork has new locks, since those that another thread held would never be given back. Base of both
caches.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any


class Shared:
    """Has a lock, which copies and pickles do not take along."""

    def __init__(self) -> None:
        self._renew_lock()
        _all.add(self)

    def _renew_lock(self) -> None:
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: x for name, x in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Shared.__init__(self)


_all: weakref.WeakSet[Shared] = weakref.WeakSet()


def _renew_locks() -> None:
    for shared in list(_all):
        shared._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
