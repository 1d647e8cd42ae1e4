"""How many threads a call uses: who decides, and what the machine allows.

Fault 25: a cgroup's quota, or an affinity mask, that is ignored makes a call far slower. Fault 40:
the number follows a fork, a new affinity and a new environment.
"""

import asyncio
import math
import os
import sys
import threading

import pytest

import selfattn
from selfattn import _threads
from support import subprocesses

GET = "import selfattn; print(selfattn.get_num_threads())"


def test_argument_beats_context_beats_setting(monkeypatch):
    """num_threads= beats threads() beats set_num_threads(); what reaches the core tells."""
    import numpy as np

    asked = []
    softmax = selfattn.steps._core.softmax

    class Spy:
        @staticmethod
        def softmax(x, out, axis, num_threads):
            asked.append(num_threads)
            softmax(x, out, axis, num_threads)

    monkeypatch.setattr(selfattn.steps, "_core", Spy)
    x = np.ones((2, 3))
    selfattn.set_num_threads(5)
    selfattn.softmax(x)
    with selfattn.threads(4):
        selfattn.softmax(x)
        with selfattn.threads(6):
            selfattn.softmax(x)
        selfattn.softmax(x, num_threads=3)
        assert selfattn.get_num_threads() == 4
    selfattn.softmax(x)
    selfattn.set_num_threads(None)
    selfattn.softmax(x)
    assert asked == [5, 4, 6, 3, 5, selfattn.get_num_threads()]


def test_context_ends_with_an_error():
    before = selfattn.get_num_threads()
    with pytest.raises(ZeroDivisionError), selfattn.threads(7):
        raise ZeroDivisionError
    assert selfattn.get_num_threads() == before


def test_context_is_of_its_thread_and_the_setting_of_all():
    seen = {}

    def look(name):
        seen[name] = selfattn.get_num_threads()

    selfattn.set_num_threads(3)
    with selfattn.threads(9):
        other = threading.Thread(target=look, args=("other",))
        other.start()
        other.join()
        look("own")
    # A free-threaded CPython has a thread begin with the context that it is started in.
    inherits = getattr(sys.flags, "thread_inherit_context", 0)
    assert seen == {"other": 9 if inherits else 3, "own": 9}


def test_context_is_of_its_task():
    async def task(n):
        with selfattn.threads(n):
            await asyncio.sleep(0.01)
            return selfattn.get_num_threads()

    async def both():
        return await asyncio.gather(task(3), task(5))

    assert asyncio.run(both()) == [3, 5]


@pytest.mark.parametrize(
    "set_to", [selfattn.set_num_threads, lambda n: selfattn.threads(n).__enter__()]
)
@pytest.mark.parametrize(
    ("n", "error", "message"),
    [
        (0, ValueError, "n: expected 1 to 1024 threads, got 0"),
        (-3, ValueError, "n: expected 1 to 1024 threads, got -3"),
        (1025, ValueError, "n: expected 1 to 1024 threads, got 1025"),
        (1.0, TypeError, "n: expected an int, got float"),
        (True, TypeError, "n: expected an int, got bool"),
        ("1", TypeError, "n: expected an int, got str"),
    ],
)
def test_bad_counts(set_to, n, error, message):
    before = selfattn.get_num_threads()
    with pytest.raises(error, match=message):
        set_to(n)
    assert selfattn.get_num_threads() == before


@pytest.mark.parametrize(
    ("value", "count"),
    [("3", 3), ("1", 1), (" 5 ", 5), ("4,2,1", 4), ("100000", 1024)],
)
def test_omp_num_threads(value, count):
    assert int(subprocesses.run(GET, OMP_NUM_THREADS=value)) == count


@pytest.mark.parametrize("value", ["", "0", "-1", "x", "1.5", ",3"])
def test_omp_num_threads_that_says_nothing(value):
    of_machine = subprocesses.run(GET, OMP_NUM_THREADS=None)
    assert subprocesses.run(GET, OMP_NUM_THREADS=value) == of_machine


def test_a_setting_beats_the_environment():
    code = "import selfattn; selfattn.set_num_threads(7); print(selfattn.get_num_threads())"
    assert int(subprocesses.run(code, OMP_NUM_THREADS="2")) == 7


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity():
    code = """
    import os
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import selfattn
    print(selfattn.get_num_threads())
    """
    assert int(subprocesses.run(code, OMP_NUM_THREADS=None)) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_that_changes_later():
    """Found anew by each call, in the process and in its children (joblib 880)."""
    code = """
    import os, selfattn
    everywhere = os.sched_getaffinity(0)
    one = {min(everywhere)}
    assert selfattn.get_num_threads() <= len(everywhere)
    for mask in (one, everywhere, one):
        os.sched_setaffinity(0, mask)
        assert selfattn.get_num_threads() <= len(mask)
    os.sched_setaffinity(0, everywhere)
    pid = os.fork()
    if pid == 0:
        os.sched_setaffinity(0, one)
        os._exit(0 if selfattn.get_num_threads() == 1 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    print(selfattn.get_num_threads())
    """
    of_machine = subprocesses.run(GET, OMP_NUM_THREADS=None)
    assert subprocesses.run(code, OMP_NUM_THREADS=None) == of_machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_affinity_of_more_cores_than_a_set_has_room_for(monkeypatch):
    """Python's own look at the mask takes over; and the number of all cores, if that may not be."""
    monkeypatch.setattr(_threads._core, "num_cores", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(1500, 1503)))
    assert _threads._cores() == 3

    def refused(pid):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refused)
    assert _threads._cores() == os.cpu_count()


def test_environment_that_changes_later():
    code = """
    import os, selfattn
    before = selfattn.get_num_threads()
    for value, count in (("5", 5), ("7", 7), ("x", before)):
        os.environ["OMP_NUM_THREADS"] = value
        assert selfattn.get_num_threads() == count
    del os.environ["OMP_NUM_THREADS"]
    assert selfattn.get_num_threads() == before
    """
    subprocesses.run(code, OMP_NUM_THREADS=None)


def test_what_a_call_uses_by_default():
    """A call looks at affinity and environment as get_num_threads() does."""
    code = """
    import os
    import numpy as np, selfattn
    x = np.ones((8, 500, 64), "f4")
    count = lambda: len(os.listdir("/proc/self/task"))
    before = count()
    for value in (1, 3, 6):
        os.environ["OMP_NUM_THREADS"] = str(value)
        selfattn.scaled_dot_product_attention(x, x, x)
        assert count() - before == value - 1, count()
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("counts the threads in /proc")
    subprocesses.run(code)


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2, V1 = "0::/a/b\n", "12:memory:/other\n5:cpu,cpuacct:/a/b\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        (V2, {}, math.inf),
        (V2, {"a/b/cpu.max": "max 100000\n"}, math.inf),
        (V2, {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "max 100000\n"}, 4),
        (V2, {"a/cpu.max": "100000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 1),
        (V2, {"cpu.max": "200000 100000\n"}, 2),  # a container sees its own group as the root
        (V2, {"other/cpu.max": "100000 100000\n"}, math.inf),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (V2, {"a/b/cpu.max": "nonsense\n"}, math.inf),
        (V2, {"a/b/cpu.max": ""}, math.inf),
        (V1, {}, math.inf),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "1000\n"}, math.inf),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "2500\n", "cpu/a/b/cpu.cfs_period_us": "1000\n"}, 2.5),
        (
            V1,
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "30000\n",
                "cpu,cpuacct/a/cpu.cfs_period_us": "10000\n",
                "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/a/b/cpu.cfs_period_us": "10000\n",
            },
            3,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 2),
        ("", {}, math.inf),
        ("garbage\n\n::\n", {}, math.inf),
    ],
)
def test_cgroup_quota(tmp_path, own, files, quota):
    """Fault 25: version 2 and 1, the group's own limit and those above it."""
    root = tmp_path / "cgroup"
    tree(root, files)
    tree(tmp_path, {"own": own})
    assert _threads._cgroup_quota(str(root), str(tmp_path / "own")) == quota


def test_a_quota_that_changes_is_noticed(monkeypatch):
    """After a second at most, and at once in a child."""
    quota, now = 3.0, 100.0
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: quota)
    monkeypatch.setattr(_threads.time, "monotonic", lambda: now)
    _threads._forget_quota()
    assert _threads._quota() == 3.0
    quota, now = 2.0, 100.9
    assert _threads._quota() == 3.0
    now = 101.0
    assert _threads._quota() == 2.0
    quota = 1.0
    _threads._forget_quota()
    assert _threads._quota() == 1.0
    monkeypatch.undo()
    _threads._forget_quota()


def test_no_cgroups_at_all(tmp_path):
    absent = str(tmp_path / "absent")
    assert _threads._cgroup_quota(absent, absent) == math.inf


@pytest.mark.parametrize(("quota", "count"), [(0.5, 1), (1.5, 2), (2, 2), (math.inf, 6), (64, 6)])
def test_the_default_is_the_least_of_cpus_and_quota(monkeypatch, quota, count):
    monkeypatch.setattr(_threads, "_quota", lambda: quota)
    monkeypatch.setattr(_threads._core, "num_cores", lambda: 6)
    assert _threads._of_machine() == count
