"""Python threads that run at once: truly so without a GIL, changing at every moment with one."""

import sys
import threading

from support import subprocesses


def at_once(*works):
    """Run each function in a thread of its own, all from one moment on; raise what one raises."""
    raised, ready = [], threading.Barrier(len(works))

    def run(work):
        try:
            ready.wait()
            work()
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        # Daemons: of a thread that hangs the test fails, and the process ends.
        threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(subprocesses.LIMIT)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    if raised:
        raise raised[0]
