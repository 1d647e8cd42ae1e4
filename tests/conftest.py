"""What tests share: the kernel sets to run under, the dtypes, settings that must be put back."""

import os

import numpy as np
import pytest

import selfattn
from selfattn import _core
from support import arrays, layers

# CI runs the suite once for each set, by SELFATTN_ISA; without it one run tests them all.
ISAS = [os.environ["SELFATTN_ISA"]] if os.environ.get("SELFATTN_ISA") else selfattn.isas()


@pytest.fixture(params=ISAS)
def isa(request):
    """Each kernel set in turn; the one that was in use is put back."""
    before = _core.isa()
    assert _core.force_isa(request.param)
    yield request.param
    assert _core.force_isa(before)


@pytest.fixture
def each_isa():
    """A generator of the names of the sets, each in use while its name is the current one."""
    before = _core.isa()

    def sets():
        for name in ISAS:
            assert _core.force_isa(name)
            yield name

    yield sets
    assert _core.force_isa(before)


@pytest.fixture(params=arrays.DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def layer(rng):
    """A learnable layer that has run forward and backward once."""
    layer = layers.make(rng, 8, 2)
    x, _ = layers.given(rng, layer, (3, 5))
    layer.backward(layer.forward(x))
    return layer


@pytest.fixture(autouse=True)
def the_setting_of_threads_stays():
    yield
    selfattn.set_num_threads(None)


def pytest_collection_modifyitems(items):
    """Mark what depends on the kernel set: `pytest -m kernels`."""
    for item in items:
        if {"isa", "each_isa"} & set(item.fixturenames):
            item.add_marker("kernels")
