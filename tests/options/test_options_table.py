"""Signatures are held to the one table of options: names, order, defaults, what is passed on."""

from __future__ import annotations

import inspect
import re
import typing

import numpy as np
import pytest

import selfattn
from selfattn import _core, nn
from selfattn._args import attention, table

OPERANDS = {
    "scaled_dot_product_attention": ["query", "key", "value"],
    "scaled_dot_product_attention_backward": ["grad_out", "query", "key", "value", "out", "lse"],
    "varlen_attention": ["query", "key", "value", "cu_seqlens_q", "cu_seqlens_k"],
    "varlen_attention_backward": [
        "grad_out", "query", "key", "value", "out", "lse", "cu_seqlens_q", "cu_seqlens_k",
    ],
    "scaled_dot_product": ["query", "key"],
    "attention_weights": ["query", "key"],
}  # fmt: skip
METHODS = {
    "MultiheadAttention.forward": ["enable_gqa", "return_lse", "out"],
    "MultiheadAttention.attention_weights": ["enable_gqa", "out"],
}
# As torch has them; all others by name.
POSITIONAL = dict.fromkeys(OPERANDS, ("attn_mask", "dropout_p", "is_causal"))
POSITIONAL["attention_weights"] = ("attn_mask", "is_causal")
OVERLOADED = [name for name in OPERANDS if name.endswith("attention")]


def names_of(function):
    return [option.name for option in table.options_of(function)]


def arguments(function):
    """Operands that are valid, by name."""
    x = np.random.default_rng(0).standard_normal((3, 1, 4)).astype("f4")
    lse, starts = np.zeros((3, 1) if "varlen" not in function else (1, 3), "f4"), np.array([0, 3])
    arrays = {"lse": lse, "cu_seqlens_q": starts, "cu_seqlens_k": starts}
    return {name: arrays.get(name, x) for name in OPERANDS[function]}


def test_every_name_is_a_function_or_a_method():
    found = set().union(*(option.functions for option in table.TABLE))
    assert found == {*OPERANDS, *METHODS}
    assert set(OPERANDS) <= set(selfattn.__all__)


def check_signature(function, parameters):
    """In the table's order, those that may be given by place first."""
    names, positional = names_of(function), POSITIONAL[function]
    by_place, by_name = (
        [n for n in names if (n in positional) is first] for first in (True, False)
    )
    assert list(parameters) == OPERANDS[function] + by_place + by_name
    for name in names:
        assert parameters[name].kind is (
            inspect.Parameter.POSITIONAL_OR_KEYWORD
            if name in positional
            else inspect.Parameter.KEYWORD_ONLY
        )


@pytest.mark.parametrize("function", OPERANDS)
def test_signatures(function):
    parameters = inspect.signature(getattr(selfattn, function)).parameters
    check_signature(function, parameters)
    for name in OPERANDS[function]:
        assert parameters[name].default is inspect.Parameter.empty
    for row in table.options_of(function):
        default = parameters[row.name].default
        assert default == row.default
        assert type(default) is type(row.default)


@pytest.mark.parametrize("function", OVERLOADED)
def test_overloads(function):
    overloads = typing.get_overloads(getattr(selfattn, function))
    assert len(overloads) == 3
    for overload in overloads:
        parameters = inspect.signature(overload).parameters
        check_signature(function, parameters)
        whole = inspect.signature(getattr(selfattn, function)).parameters
        for name, parameter in parameters.items():
            if name != "return_lse":
                assert parameter.annotation == whole[name].annotation


@pytest.mark.parametrize("function", OPERANDS)
def test_every_option_reaches_its_check(function):
    """Its own, wherever it stands among the values that are passed on."""
    for name in names_of(function):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            getattr(selfattn, function)(**arguments(function), **{name: object()})


@pytest.mark.parametrize("method", METHODS)
def test_options_of_a_layer(method):
    """Those of the function that it calls, but what is the layer's own business."""
    layer, x = nn.MultiheadAttention(4, 2, seed=0), np.ones((3, 4), "f4")
    call = getattr(layer, method.rpartition(".")[2])
    called = method.rpartition(".")[2].replace("forward", "scaled_dot_product_attention")
    own = METHODS[method]
    assert names_of(method) == [name for name in names_of(called) if name not in own]
    for name in names_of(method):
        with pytest.raises((TypeError, ValueError), match=f"^{name}: "):
            call(x, **{name: object()})
    for name in own:
        expected = f"expected options among {', '.join(names_of(method))}, got '{name}'"
        with pytest.raises(TypeError, match=re.escape(expected)):
            call(x, **{name: None})


def test_docstrings_name_every_option():
    text = inspect.getdoc(selfattn.scaled_dot_product_attention)
    documented = re.findall(r"^(\w+) : ", text.partition("Returns\n")[0], re.M)
    assert documented == OPERANDS["scaled_dot_product_attention"] + names_of(
        "scaled_dot_product_attention"
    )
    text = inspect.getdoc(nn.MultiheadAttention.forward)
    listed = re.search(r"Those of `scaled_dot_product_attention`: ([\w,\s]+)\.", text)[1]
    assert re.split(r",\s+", listed) == names_of("MultiheadAttention.forward")


def test_rows():
    """What has a check is of the problem, and has a setter there, but what makes the problem."""
    for row in table.TABLE:
        if row.name == "enable_gqa":
            assert row.check is not None
            assert row.setter is None
        else:
            assert (row.check is None) == (row.setter is None)
        assert row.setter is None or hasattr(_core.AttentionProblem, row.setter.__name__)
    assert len({row.name for row in table.TABLE}) == len(table.TABLE)


def test_the_fast_path_knows_every_option():
    """All of the function's but `out` and `num_threads`, which it takes itself."""
    names = names_of("scaled_dot_product_attention")
    assert [*attention._NAMES, "out", "num_threads"] == names


@pytest.mark.parametrize("function", OPERANDS)
def test_defaults_of_signatures_are_recognised(function, monkeypatch):
    """Nothing is left to be set in a call without options; one with an option sets it."""
    found = []
    monkeypatch.setattr(table, "set_options", lambda problem, values: found.append(values))
    getattr(selfattn, function)(**arguments(function))
    assert found == []
    getattr(selfattn, function)(**arguments(function), is_causal=True)
    assert found == [{"is_causal": True}]


def test_only_what_differs_from_its_default_is_checked():
    names, defaults, others = ("a", "b", "c", "d"), (None, 0.0, (-1, -1), False), [-1]
    assert _core.nondefault(names, defaults, (None, -0.0, (-1, *others[:1]), False)) == {}
    others = (0, 0, (-1, 0), None)
    assert _core.nondefault(names, defaults, others) == dict(zip(names, others, strict=True))
    others = ("x", float("nan"), [-1, -1], np.False_)
    assert list(_core.nondefault(names, defaults, others)) == list(names)
    with pytest.raises(ValueError, match="expected values"):
        _core.nondefault(names, defaults, (None, 0.0, (-1, -1)))
