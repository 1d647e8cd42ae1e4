"""Every example of the README and of docs/ runs as it stands there, block after block of its page.

What a page imports must be installed, or the page is skipped: PyTorch, transformers, Matplotlib.
docs/torch.md and docs/transformers.md have tests of their own besides, of what their code gives.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
OPTIONAL = {
    "matplotlib": r"import matplotlib|from matplotlib|selfattn import plot",
    "torch": r"import torch|selfattn\.(torch|flash_attn|transformers)",
    "transformers": r"import transformers|selfattn\.transformers",
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.exists() and BLOCK.search(page.read_text("utf-8"))]


def needed(code):
    """Of the libraries that need not be there, those that the code uses."""
    return [name for name, pattern in OPTIONAL.items() if re.search(pattern, code)]


@pytest.mark.skipif(not PAGES, reason="no source folder beside the tests")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for what they write
    text = page.read_text("utf-8")
    blocks = list(BLOCK.finditer(text))
    namespace = {"__name__": "__main__"}
    for name in needed("\n".join(block[1] for block in blocks)):
        pytest.importorskip(name)
    for block in blocks:
        above = "\n" * text[: block.start(1)].count("\n")  # errors name the page's own lines
        exec(compile(above + block[1], str(page), "exec"), namespace)


def test_what_skips_a_page():
    """Imports, and not words in a comment."""
    assert needed("import torch\nimport selfattn.torch") == ["torch"]
    assert needed("from selfattn import plot") == ["matplotlib"]
    assert needed("nn.save(state, 'a.npz')  # torch's names") == []
