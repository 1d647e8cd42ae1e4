"""selfattn.torch as it is imported: only when it is asked for, or else words that say why."""

import doctest
import importlib
import pkgutil

import pytest

from support import subprocesses

pytest.importorskip("torch")

from selfattn import torch as ours


def test_it_is_loaded_when_it_is_asked_for():
    code = """
import sys, selfattn, selfattn.nn
assert not {name.partition(".")[0] for name in sys.modules} & {"torch"}
selfattn.torch.linear
assert "torch" in sys.modules
print(selfattn.torch.__name__)
"""
    assert subprocesses.run(code).strip() == "selfattn.torch"


def test_without_pytorch():
    code = """
import sys, selfattn
sys.modules["torch"] = None
try:
    import selfattn.torch
except ModuleNotFoundError as error:
    print(error)
"""
    assert "selfattn.torch: expected PyTorch" in subprocesses.run(code)


@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.iter_modules(ours.__path__)] or ["none"]
)
def test_examples(name):
    module = importlib.import_module(f"selfattn.torch.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", ours.__all__)
def test_public_functions_have_examples(name):
    documented = getattr(ours, name).__doc__
    assert "Examples\n" in documented
    assert ">>> " in documented
