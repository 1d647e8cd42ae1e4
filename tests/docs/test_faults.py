"""docs/faults.md: a fault that a test cites has a row, and the tests that a row names exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no source folder beside the tests")


def rows():
    """The tests' column of each fault, by its number."""
    lines = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(dict(lines)) == len(lines), "a number stands twice"
    return {int(number): tests for number, tests in lines}


def cited(path):
    """The numbers in "Fault N", "faults K, M and N"."""
    text = re.sub(r"\s+", " ", path.read_text("utf-8"))
    lists = re.findall(r"\b[Ff]aults? (\d+(?:(?:, and|,| and) \d+)*)", text)
    return {int(number) for found in lists for number in re.findall(r"\d+", found)}


def test_each_cited_fault_has_a_row():
    known = rows()
    for path in TESTS.rglob("*.py"):
        assert cited(path) <= set(known), path


def test_the_tests_of_each_row_exist_and_cite_it():
    for number, tests in rows().items():
        paths = [TESTS / path for path in re.findall(r"\b\w+/test_\w+\.py\b", tests)]
        assert all(path.exists() for path in paths), (number, tests)
        assert any(number in cited(path) for path in paths), (number, tests)
