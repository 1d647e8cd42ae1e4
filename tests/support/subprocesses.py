"""Run a piece of Python in a process of its own, for what may not be tried in this one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

LIMIT = 900  # seconds, for what hangs: a busy machine may take many times longer than a quiet one


def environment(**changes):
    """The environment of a child; keyword arguments are variables, None to unset one.

    The source folder, which has no compiled core, must not shadow the package, so Python looks
    neither in the current folder nor beside its program. The tests' folder is named instead: what
    these programs import from there is found whether the user has PYTHONSAFEPATH set or not.
    """
    folders = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    path = os.pathsep.join(filter(None, folders))
    env = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": path} | changes
    return {name: value for name, value in env.items() if value is not None}


def run(*code, timeout=LIMIT, cwd=None, **changes):
    """What the code, in one or more pieces, prints; its failing is an error.

    Other keyword arguments are environment variables, None to unset one.
    """
    done = attempt(*code, timeout=timeout, cwd=cwd, **changes)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def attempt(*code, timeout=LIMIT, cwd=None, **changes):
    """The finished process, whatever became of it."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(map(textwrap.dedent, code))],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**changes),
        cwd=cwd,
    )
