"""Run a piece of Python in a process of its own, for what may not be tried in this one."""

import os
import subprocess
import sys
import textwrap


def run(*code, timeout=120, cwd=None, **environment):
    """What the code, in one or more pieces, prints; its failing is an error.

    Keyword arguments are environment variables, None to unset one.
    """
    done = attempt(*code, timeout=timeout, cwd=cwd, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def attempt(*code, timeout=120, cwd=None, **environment):
    """The finished process, whatever became of it."""
    env = {k: v for k, v in (os.environ | environment).items() if v is not None}
    return subprocess.run(
        # -P: the source folder, which has no compiled core, must not shadow the package.
        [sys.executable, "-P", "-W", "error", "-c", "\n".join(map(textwrap.dedent, code))],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
        cwd=cwd,
    )
