"""The README's table: what bench/features.py finds of the libraries that are installed here."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.skipif(not README.exists(), reason="no source folder beside the tests")
@pytest.mark.filterwarnings("ignore")  # of other libraries
def test_the_table():
    features = pytest.importorskip("features")
    table = re.search(
        r"^\| on the CPU \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", README.read_text("utf-8"), re.M
    )
    names = [cell.strip() for cell in table[0].splitlines()[0].strip("|").split("|")][1:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
    said = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
    assert list(said) == [*features.ASKED, *features.OTHERS]
    for library in features.libraries():
        for asked, answers in said.items():
            assert answers[library.name] == features.answer(library, asked), (library.name, asked)
