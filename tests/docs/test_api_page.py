"""docs/api.md: it has every public name, under the module that the name is of."""

import re
from pathlib import Path

import pytest

import selfattn
from selfattn import distributed, nn

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.mark.skipif(not PAGE.exists(), reason="no source folder beside the tests")
def test_it_has_every_public_name():
    pytest.importorskip("matplotlib")
    listed: dict[str, set[str]] = {}
    for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)$", PAGE.read_text("utf-8"), re.M):
        if kind == "currentmodule":
            names = listed.setdefault(name, set())
        else:
            names.add(name)
    assert listed == {
        "selfattn": set(selfattn.__all__) - {"__version__"},
        "selfattn.distributed": set(distributed.__all__),
        "selfattn.nn": set(nn.__all__),
        "selfattn.plot": set(selfattn.plot.__all__),
    }
