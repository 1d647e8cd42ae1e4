"""Type checkers: a user's typed code passes `mypy --strict`, and so do the public modules.

Fault 55.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import selfattn
from support import subprocesses

TESTS = Path(__file__).parents[1]
PACKAGE = Path(selfattn.__file__).parent


def mypy(*arguments, cwd):
    """What it says; nothing of it is kept. A source folder is told where the package is."""
    pytest.importorskip("mypy")
    env = dict(os.environ)
    if "site-packages" not in PACKAGE.parts:
        env["MYPYPATH"] = str(PACKAGE.parent)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mypy", "--cache-dir", os.devnull, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=subprocesses.LIMIT,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_code_of_a_user(tmp_path):
    """The errors that it must find are ignored in it, and reported where they are none."""
    status, said = mypy(
        "--strict",
        "--follow-imports=silent",
        "--config-file=",
        TESTS / "support" / "typed_sample.py",
        cwd=tmp_path,
    )
    assert status == 0, said
    assert "Success" in said


def test_mypy_would_find_it(tmp_path):
    """That the test above can fail: errors in such code are errors here."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import numpy as np\nimport selfattn\nx = np.ones((3, 4))\n"
        "selfattn.scaled_dot_product_attention(x, x, x, return_lse=True).shape\n"
        "selfattn.softmax(x).no_such_thing\n"
        "selfattn.softmax(x, axis='last')\n"
    )
    status, said = mypy(
        "--strict", "--follow-imports=silent", "--config-file=", wrong, cwd=tmp_path
    )
    assert status == 1, said
    for line, code in ((4, "attr-defined"), (5, "attr-defined"), (6, "arg-type")):
        assert f"wrong.py:{line}: error:" in said
        assert f"[{code}]" in said


def test_the_public_modules():
    """By the settings of pyproject.toml, in a source folder."""
    folder = TESTS.parent
    if not (folder / "pyproject.toml").exists() or not (folder / "selfattn").exists():
        pytest.skip("no source folder")
    status, said = mypy("selfattn", cwd=folder)
    assert status == 0, said


def test_no_public_module_is_exempt():
    """Strict is strict: only what users do not import is left out, and no line is ignored."""
    folder = TESTS.parent
    if not (folder / "pyproject.toml").exists() or not (folder / "selfattn").exists():
        pytest.skip("no source folder")
    settings = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["mypy"]
    overrides = settings.pop("overrides")
    assert settings == {"strict": True}
    loosened = {name for entry in overrides for name in entry["module"]}
    assert loosened == {
        "selfattn.bench.*",
        "selfattn.demo.*",
        "selfattn.reference.*",
        "matplotlib.*",
        "mpi4py.*",
        "safetensors.*",
        "torch.*",
        "transformers.*",
    }
    for path in (folder / "selfattn").rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            assert "type: ignore" not in path.read_text()


def test_the_sample_runs(capsys):
    from support import typed_sample

    typed_sample.main()
    assert "float32 (1, 2, 3, 4) True" in capsys.readouterr().out
