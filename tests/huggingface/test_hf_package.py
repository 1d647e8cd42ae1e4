"""selfattn.transformers as it is imported, and the names that it registers."""

import doctest
import importlib

import pytest

from support import subprocesses

pytest.importorskip("torch")
pytest.importorskip("transformers")

import transformers

from selfattn import transformers as ours
from selfattn.transformers import attention, masks, registration, unpadded


def test_it_is_loaded_when_it_is_asked_for():
    code = """
import sys, selfattn, selfattn.nn
assert not {name.partition(".")[0] for name in sys.modules} & {"torch", "transformers"}
selfattn.torch
assert "transformers" not in sys.modules
selfattn.transformers.register_transformers()
assert "sentence_transformers" not in sys.modules
import transformers
print("selfattn" in transformers.AttentionInterface(), transformers.__name__)
"""
    assert subprocesses.run(code).split() == ["True", "transformers"]


def test_without_transformers():
    code = """
import sys, selfattn
sys.modules["transformers"] = None
try:
    import selfattn.transformers
except ModuleNotFoundError as error:
    print(error)
"""
    said = subprocesses.run(code)
    assert "selfattn.transformers: expected transformers, which is not installed" in said


def test_examples():
    found = doctest.testmod(importlib.import_module("selfattn.transformers.registration"))
    assert found.attempted > 0
    assert found.failed == 0


def test_public_functions():
    assert ours.__all__ == ["register_transformers"]
    assert ">>> " in ours.register_transformers.__doc__


@pytest.fixture
def mappings(monkeypatch):
    """transformers' own tables, put back afterwards."""
    interfaces = transformers.AttentionInterface, transformers.AttentionMaskInterface
    for interface in interfaces:
        monkeypatch.setattr(interface, "_global_mapping", dict(interface._global_mapping))
    monkeypatch.setattr(registration, "_unpadding", set(registration._unpadding))
    return [interface._global_mapping for interface in interfaces]


def test_another_name(mappings):
    before = [set(table) for table in mappings]
    ours.register_transformers("other")
    ours.register_transformers("other")
    functions, mask_functions = mappings
    assert [set(t) - b for t, b in zip(mappings, before, strict=True)] == [
        {"other", "other_flash"}
    ] * 2
    assert functions["other"] is attention.attention
    assert functions["other_flash"] is unpadded.unpadded_attention
    assert mask_functions["other"] is masks.attention_mask
    flash = transformers.modeling_flash_attention_utils._lazy_imports("other_flash")
    assert flash[1] is unpadded.flash_attn_varlen_func


@pytest.mark.parametrize(
    "name", ["", "eager", "sdpa", "flash_attention_2", "my_flash", "my_sdpa", "a/b", "paged|x"]
)
def test_names_that_transformers_reads(name):
    before = dict(transformers.AttentionInterface._global_mapping)
    with pytest.raises(ValueError, match="name: expected one that transformers does not read"):
        ours.register_transformers(name)
    assert transformers.AttentionInterface._global_mapping == before


def test_a_name_that_is_no_string():
    with pytest.raises(TypeError, match="name: expected a str, got int"):
        ours.register_transformers(3)


def test_the_hook_is_one_however_often():
    ours.register_transformers()
    once = transformers.modeling_flash_attention_utils._lazy_imports
    ours.register_transformers()
    assert transformers.modeling_flash_attention_utils._lazy_imports is once
