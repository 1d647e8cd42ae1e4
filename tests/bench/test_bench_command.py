"""`selfattn bench`: what it measures, prints and refuses. No time is asserted.

Races are short here: one round, on a machine that counts as quiet.
"""

import json
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from selfattn import _core, cli
from selfattn.bench import harness, machine, measure, peers, run, shapes, show
from selfattn.bench.rows import Row
from support import subprocesses

SMALL = "1,2,8,8,4"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Rounds that take no longer than their calls, and count whatever else the machine does."""
    for name in ("PAUSE_SECONDS", "REST_SECONDS", "BURST_SECONDS", "FULL_SHARE"):
        monkeypatch.setattr(harness, name, 0.0)
    monkeypatch.setattr(run, "REPEATS", 1)
    monkeypatch.setattr(machine, "PEAK_SECONDS", 1e-4)
    loop = machine.Loop("memory read", 1, 1e9, lambda: (0.1, 0.1))
    monkeypatch.setattr(machine, "read_loop", lambda num_threads: loop)


def bench(capsys, *arguments):
    """What the command prints, its peers being few enough to be quick."""
    status = cli.main(["bench", "--threads", "1", "--peers", "numpy", *arguments])
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, ""), printed.err
    return printed.out


def test_a_shape(capsys):
    text = bench(capsys, "--shape", SMALL, "--shape", "2,4/2,5,7,3", "--causal")
    for shape in ("shape: 1, 2, 8×8, 4, causal", "shape: 2, 4/2, 5×7, 3, causal"):
        assert shape in text
    assert len(re.findall(r"^  selfattn +\d", text, re.M)) == 2
    assert len(re.findall(r"^  numpy +\d.* selfattn is [\d.]+×$", text, re.M)) == 2
    assert re.search(r"^selfattn is [\d.]+× as fast as numpy, from ", text, re.M)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_json(capsys, dtype):
    found = json.loads(bench(capsys, "--shape", SMALL, "--dtype", dtype, "--json"))
    assert found["machine"]["isa"] == _core.isa()
    (row,) = found["rows"]
    assert row["shape"].endswith(dtype)
    names = [entry["name"] for entry in row["contestants"]]
    assert names == (["selfattn", "numpy"] if dtype == "float64" else ["selfattn"])
    ours = row["contestants"][0]
    assert ours["of_limit"] == pytest.approx(ours["rate"] / row["limit"]["rate"], rel=1e-3)
    assert ("numpy" in row["absent"]) == (dtype == "float16")


def test_rows_by_name(capsys):
    found = json.loads(bench(capsys, "tiny", "--json"))
    assert [row["row"] for row in found["rows"]] == ["tiny"]
    picked = run.rows("softmax", [], "float32")
    assert [row.name for row in picked] == [row.name for row in shapes.SUITES["softmax"]]
    assert {row.name for row in run.rows("forward", [], "float32")} == {*run.DEFAULT_ROWS}


def test_a_busy_machine(capsys, monkeypatch):
    """Where no round counts, rough figures are printed, and said to be rough."""
    monkeypatch.setattr(harness, "FULL_SHARE", 2.0)
    monkeypatch.setattr(harness, "QUIET_TRIES", 1)
    text = bench(capsys, "--shape", SMALL)
    assert "rough figures" in text
    assert re.search(r"^  selfattn +\d", text, re.M)


def test_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figures.png"
    status = cli.main(["bench", "--shape", SMALL, "--threads", "1", "--plot", str(path)])
    assert status == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-row"], "no row no-such-row in the forward table: minilm, "),
        (["--table", "no"], "--table: expected one of forward, "),
        (["--shape", "1,2,3"], "--shape: expected B,H,L,S,E, got '1,2,3'"),
        (["--shape", "1,2,3,4,x"], "--shape: expected ints B,H,L,S,E, got "),
        (["--shape", "1,3/2,3,4,5"], "--shape: expected lengths of 1 or more, query heads a mult"),
        (["--shape", "0,2,3,4,5"], "--shape: expected lengths of 1 or more"),
        (["--dtype", "int8"], "--dtype: expected one of float32, "),
        (["--causal"], "--causal goes with --shape"),
        (["--threads", "0"], "argument --threads: expected 1 to 1024 threads, got '0'"),
        (["--peers", "jax"], "--peers: expected numpy, torch, onnxruntime, openvino, got 'jax'"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"selfattn bench: error: {message}")


def test_what_is_missing(capsys, monkeypatch, tmp_path):
    """One line, before anything is measured: a library, a folder."""
    monkeypatch.setattr(measure, "measure", None)
    if find_spec("openvino") is None:
        with pytest.raises(SystemExit):
            cli.main(["bench", "--peers", "openvino"])
        assert "--peers: openvino is not installed" in capsys.readouterr().err
    if find_spec("matplotlib") is None:
        expected = "selfattn: this needs matplotlib, which is missing: pip install matplotlib\n"
    else:
        expected = "selfattn: --plot: No such folder: "
    assert cli.main(["bench", "--plot", str(tmp_path / "no" / "x.png")]) == 1
    assert capsys.readouterr().err.startswith(expected)


def test_bars():
    assert [show.bar(x) for x in (None, 0.0, 2.0)] == [" " * 20, " " * 20, "█" * 20]
    assert show.bar(0.5) == "█" * 10 + " " * 10
    assert show.bar(0.80625) == "█" * 16 + "▏" + " " * 3


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("heads_kv", "offset"), [(4, 0), (2, 3)])
def test_numpys_formula_is_right(is_causal, heads_kv, offset):
    """`choose` compares it with the reference, and raises where it is not."""
    row = Row("row", 2, 4, heads_kv, 6, 9, 8, is_causal=is_causal)
    if is_causal and offset:
        row = Row("row", 2, 4, heads_kv, 6, 9, 8, is_causal=True, query_offset=offset)
    peers.NumPy().prepare(row, row.arrays(), 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_limits(threads):
    """Loops of C: as many operations and bytes as they say, in some time, by all threads."""
    for is_float64 in (False, True):
        assert _core.peak_flops(is_float64) > 0
        seconds, cpu = _core.time_peak(is_float64, threads, 1000)
        assert 0 < seconds < 60
        assert 0 < cpu < 60 * threads
    x = np.ones(1 << 20, np.uint8)
    assert _core.read_bytes(x.nbytes, threads) == x.nbytes // 64 // threads * threads * 64
    assert _core.time_read(x, threads)[0] > 0


WITHOUT_THREADS = """
import os, resource
from selfattn import _core
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setuid(65534)  # root has no such limit
try:
    _core.time_peak(False, 64, 10)
except MemoryError:
    print("no threads")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits threads as Linux does")
def test_threads_that_cannot_be_had():
    """An error, and no thread is left waiting for them."""
    assert subprocesses.run(WITHOUT_THREADS, timeout=60) == "no threads\n"
