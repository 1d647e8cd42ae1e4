"""docs/pictures.py makes the pictures that the pages show, and small ones."""

import importlib.util
import re
from pathlib import Path

import pytest

from selfattn.demo import minilm

for _name in ("matplotlib", "rich"):
    pytest.importorskip(_name)

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = [
    pytest.mark.skipif(not DOCS.exists(), reason="no source folder beside the tests"),
    pytest.mark.filterwarnings("ignore:Glyph .* missing"),
]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


def test_they_are_made(pictures, tmp_path, capsys):
    names = [name for name in pictures.DRAWN if name != "it" or minilm.is_installed()]
    pictures.main(names)
    assert capsys.readouterr().out.count("kB") == len(names)
    for name in names:
        made, shown = tmp_path / f"{name}.png", DOCS / "pictures" / f"{name}.png"
        assert made.read_bytes().startswith(b"\x89PNG")
        assert shown.stat().st_size < 60_000
        assert 0.5 < made.stat().st_size / shown.stat().st_size < 2
    with pytest.raises(SystemExit, match="expected some of map, it, speed, tiles, got 'no'"):
        pictures.main(["no"])


def test_each_is_shown_by_a_page(pictures):
    pages = [DOCS.parent / "README.md", *DOCS.glob("*.md")]
    text = "".join(page.read_text("utf-8") for page in pages)
    assert set(re.findall(r"pictures/(\w+)\.png", text)) == set(pictures.DRAWN)
    files = {path.stem for path in (DOCS / "pictures").iterdir()}
    assert files == set(pictures.DRAWN)
