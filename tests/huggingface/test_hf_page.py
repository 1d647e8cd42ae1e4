"""docs/transformers.md: its code runs as it stands there, block after block."""

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"


def test_its_code_runs():
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 2
    namespace = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert namespace["model"].config._attn_implementation == "selfattn"
    assert namespace["batch"].shape == (4, 12, 99)
