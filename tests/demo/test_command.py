"""The command `selfattn` where something is wrong: one line, a status that is not 0, no traceback.

Fault 54. It is run as a shell runs it, with its streams where a user may have them.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import selfattn
from selfattn.demo import words
from support import subprocesses

# As the script that pip makes, whose name is the first of the arguments.
BEGIN = "import sys; sys.argv[0] = 'selfattn'; from selfattn.cli import main; sys.exit(main())"
SELFATTN = shlex.join([sys.executable, "-P", "-c", BEGIN])
BUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")


def shell(arguments, **environment):
    """The finished shell that ran `selfattn` with such arguments and redirections."""
    return subprocess.run(
        f"{SELFATTN} {arguments}",
        shell=True,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=subprocesses.LIMIT,
        check=False,
    )


def assert_one_line(done, message, status=1):
    assert re.fullmatch(f"selfattn: {message}\n", done.stderr), done.stderr
    assert done.returncode == status


def assert_wrong_arguments(done, program, message):
    """One line and status 2; the usage is a longer one, and left to --help."""
    assert done.stderr == f"{program}: error: {message} ({program} --help says more)\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_the_script_begins_there():
    """What pip installs as `selfattn` is what these tests run."""
    scripts = entry_points(group="console_scripts", name="selfattn")
    assert {script.value for script in scripts} == {"selfattn.cli:main"}


@pytest.mark.parametrize("arguments", ["info", "demo", "demo --word am", "--help", "--version"])
def test_closed_output(arguments):
    if arguments.startswith("demo"):
        pytest.importorskip("rich")
    assert_one_line(shell(f"{arguments} >&-"), "standard output is closed")


@full
@BUFFERED
@pytest.mark.parametrize("arguments", ["info", "demo", "demo --word am", "--help", "--version"])
def test_full_disk(arguments, unbuffered):
    if arguments.startswith("demo"):
        pytest.importorskip("rich")
    done = shell(f"{arguments} >/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert_one_line(done, "standard output: No space left on device")


@BUFFERED
def test_errors_when_stderr_is_closed_or_full(unbuffered):
    """Without stderr they are not taken for output."""
    pytest.importorskip("rich")
    where = ["2>&-", "2>/dev/full"] if Path("/dev/full").exists() else ["2>&-"]
    for redirection in where:
        done = shell(f"demo --word nothing {redirection}", PYTHONUNBUFFERED=unbuffered)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize("isa", ["AVX2", "sse9", "\x1b[31m", "\udcff"], ids=ascii)
def test_wrong_isa(isa):
    """The command that says which there are says so, whatever is wrong."""
    message = re.escape(
        f"SELFATTN_ISA: expected one of {', '.join(selfattn.isas())}, which this machine can run, "
        f"got {isa!r}"
    )
    done = shell("info", SELFATTN_ISA=isa)
    assert_one_line(done, message)
    assert re.search(rf"^isas: +{', '.join(selfattn.isas())}$", done.stdout, re.M)
    done = shell("demo", SELFATTN_ISA=isa)
    assert_one_line(done, message)
    assert done.stdout == ""
    assert shell("--version", SELFATTN_ISA=isa).returncode == 0


@pytest.mark.parametrize("isa", selfattn.isas())
def test_right_isa(isa):
    done = shell("info", SELFATTN_ISA=isa)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(rf"^isa: +{isa}\nreason: +forced by SELFATTN_ISA$", done.stdout, re.M)
    done = shell("info", SELFATTN_ISA="")
    assert re.search(rf"^isa: +{selfattn.isas()[0]}\nreason: +the best", done.stdout, re.M)


def test_info_for_a_report():
    """What show_config says, and all else that the report of a bug needs: as text, as JSON."""
    environment = {"OMP_NUM_THREADS": "3", "SELFATTN_ISA": "portable", "OMP_PROC_BIND": "\x1b[31m"}
    done = shell("info --json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert set(selfattn.show_config("dicts")) <= set(facts)
    assert (facts["isa"], facts["num_threads"]) == ("portable", 3)
    assert environment.items() <= facts["environment"].items()
    assert facts["location"] == str(Path(selfattn.__file__).parent)
    packages = facts["packages"]
    for name, version in packages.items():
        assert version == importlib.metadata.version(name)
    assert ("rich" in packages) == (importlib.util.find_spec("rich") is not None)
    assert all(facts[name] for name in ("cpu", "cores", "system", "libc", "blas"))
    done = shell("info", **environment)
    names = [line.partition(":")[0] for line in done.stdout.splitlines()]
    assert (done.returncode, names) == (0, list(facts))
    assert r"OMP_PROC_BIND=\x1b[31m" in done.stdout  # which does not colour the terminal


def test_python_m():
    """`python -m selfattn` is the command, and fails as it does."""
    for isa, status, message in (("portable", 0, ""), ("sse9", 1, "selfattn: SELFATTN_ISA: ")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "selfattn", "info", "--json"],
            capture_output=True,
            text=True,
            env={**os.environ, "SELFATTN_ISA": isa},
            timeout=120,
            check=False,
        )
        assert done.returncode == status
        assert done.stderr.startswith(message)
        assert len(done.stderr.splitlines()) == status
        assert json.loads(done.stdout)["isas"] == selfattn.isas()


@pytest.mark.parametrize("seed", ["x", "-1", "1.5", "", "9" * 5000], ids=lambda seed: seed[:5])
def test_seed(seed):
    """In a user's words: the function that reads it is none of them."""
    done = shell(f"demo --train --seed={seed}")
    wrong = "expected 0 or more, got -1" if seed == "-1" else f"invalid int value: {seed!r}"
    assert_wrong_arguments(done, "selfattn demo", f"argument --seed: {wrong}")


@pytest.mark.parametrize("beside", ["sentence", "--word w", "--train", "--seed 1"])
def test_bits_goes_alone(beside):
    done = shell(f"demo --bits {beside}")
    assert re.fullmatch(r"selfattn demo: error: --[^\n]*\n", done.stderr)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("info --xml", "unrecognized arguments: --xml"),
    ],
)
def test_wrong_arguments(arguments, message):
    assert_wrong_arguments(shell(arguments), "selfattn", message)


def test_bits():
    """Every row of the table, and PyTorch's where it is installed."""
    for name in ("rich", "safetensors", "tokenizers"):
        pytest.importorskip(name)
    done = shell("demo --bits", OMP_NUM_THREADS="1")  # libraries' threads wait for each other
    assert (done.returncode, done.stderr) == (0, "")
    for size in (2, 7, 32):
        for kind in ("padded", "not padded"):
            assert len(re.findall(rf" {size}, {kind} +\d+ of 32 ", done.stdout)) >= 2
    assert len(re.findall(r" 32 of 32 +0 ", done.stdout)) >= 6
    is_there = importlib.util.find_spec("torch") is not None
    assert bool(re.search(r"^PyTorch +2, padded", done.stdout, re.M)) == is_there


def test_a_picture_that_cannot_be_written(tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("matplotlib")
    path = tmp_path / "no\x1b[31msuch" / "a.png"
    done = shell(f"demo --train --png {shlex.quote(str(path))}")
    escaped = re.escape(str(path).replace("\x1b", "\\x1b"))
    assert_one_line(done, f"--png: No such file or directory: {escaped}")


# ------------------------------------------------------------------ control characters

COMMANDS = "\x1b]0;title\x07 \x9b31m red\x08 \u202egnal\u202c \x7f"


@pytest.mark.parametrize("sentence", [f"I am {COMMANDS} a student", f"x{COMMANDS}"])
@pytest.mark.parametrize("colors", [{}, {"FORCE_COLOR": "1", "TERM": "xterm-256color"}])
def test_a_sentence_does_not_command_the_terminal(sentence, colors):
    """Its characters are shown, escaped; those that colour the map are rich's own."""
    pytest.importorskip("rich")
    done = shell(f"demo {shlex.quote(sentence)}", COLUMNS="200", **colors)
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout) if colors else done.stdout
    assert not set(shown) & {*map(chr, range(10)), *map(chr, range(11, 32)), "\x7f", "\x9b"}
    assert not set(shown) & {"\u202e", "\u202c"}
    for escaped in (r"\x1b]0;title\x07", r"\x9b31m", r"red\x08", r"\u202egnal\u202c"):
        assert escaped in shown


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (f"demo a b {shlex.quote(COMMANDS)}", 2),
        (f"demo {shlex.quote(COMMANDS)} --word nothing", 1),
        (f"demo a --word {shlex.quote(COMMANDS)}", 1),
        (f"demo --train --seed {shlex.quote(COMMANDS)}", 2),
        (shlex.quote(COMMANDS), 2),
    ],
)
def test_errors_do_not_command_the_terminal(arguments, status):
    pytest.importorskip("rich")
    done = shell(arguments)
    assert done.returncode == status
    assert "\\x1b]0;title\\x07" in done.stderr.replace("\\\\", "\\")
    assert not set(done.stderr) & {*COMMANDS} - {*map(chr, range(32, 127))}


def test_printable():
    assert words.printable("naïve 학생 👩\u200d🔬 a\u200b") == "naïve 학생 👩\u200d🔬 a\u200b"
    assert words.printable("a\tb\nc\0\x85\u2028\u2066") == r"a\tb\nc\x00\x85\u2028\u2066"
