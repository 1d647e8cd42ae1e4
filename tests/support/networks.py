"""Two network namespaces that a link joins: two machines as TCP sees them, on one.

A namespace is there as long as a process is in it: whatever becomes of the tests, nothing is left.
"""

import contextlib
import os
import shutil
import subprocess

import pytest

from support import subprocesses

LINK = "ring0"  # the name of either end
ADDRESSES = ("10.0.0.1", "10.0.0.2")
_LONGEST = 300  # seconds


class Network:
    """One of the namespaces, for as long as its process sleeps."""

    def __init__(self, address):
        self.address = address
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", f"echo && exec sleep {_LONGEST}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not self.holder.stdout.readline():
            _, why = self.holder.communicate()
            pytest.skip(f"no network namespace can be made: {why.strip()}")

    def command(self, *command):
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", *command]

    def ip(self, *arguments):
        _call(self.command("ip", *arguments))

    def end(self):
        self.holder.kill()
        self.holder.communicate()


@contextlib.contextmanager
def two_networks():
    """The two, linked; skips the test where there can be none."""
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if os.geteuid():
        missing.append("root")
    if missing:
        pytest.skip(f"network namespaces need {', '.join(missing)}")
    networks = []
    try:
        for address in ADDRESSES:
            networks.append(Network(address))
        one, other = (str(network.holder.pid) for network in networks)
        ends = ["netns", one, "type", "veth", "peer", "name", LINK, "netns", other]
        _call(["ip", "link", "add", LINK, *ends])
        for network in networks:
            network.ip("link", "set", LINK, "addrgenmode", "none")  # no address but this one
            network.ip("addr", "add", f"{network.address}/24", "dev", LINK)
            for name in ("lo", LINK):
                network.ip("link", "set", name, "up")
        yield networks
    finally:
        for network in networks:
            network.end()


def run_all(commands, timeout, **changes):
    """[(exit status, what it printed, its errors)] of commands that run side by side.

    None is left running, not even where one takes longer than that.
    """
    running = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=subprocesses.environment(**changes),
                )
            )
        return [
            (process.returncode, out, errors)
            for process in running
            for out, errors in [process.communicate(timeout=timeout)]
        ]
    finally:
        for process in running:
            process.kill()
            process.communicate()


def _call(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no link between namespaces can be made: {done.stderr.strip()}")
