"""docs/performance.md: its tables are the figures of bench/*.json."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="no source folder beside the tests")


def table(name):
    """The cells below the header that names a file of figures."""
    text = PAGE.read_text("utf-8")
    rows = re.search(rf"^\| `bench/{name}` \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.splitlines()]


def figures(name):
    return json.loads((ROOT / "bench" / name).read_text("utf-8"))


def said(number):
    return f"{number:.2f}".removeprefix("0")


@pytest.mark.parametrize(
    ("name", "peers"),
    [("forward.json", ("torch", "onnxruntime", "openvino")), ("backward.json", ("torch",))],
)
def test_speed(name, peers):
    want = []
    for row in figures(name)["rows"]:
        by_name = {one["name"]: one for one in row["contestants"]}
        of_limit = "–" if row["row"] == "tiny" else said(by_name["selfattn"]["of_limit"])
        times = [said(by_name[peer]["selfattn_faster"]) for peer in peers]
        want.append([row["row"], row["shape"].partition(": ")[2], of_limit, *times])
    assert table(name) == want


def test_options():
    want = [
        [one["what"], said(one["cost"]), said(one["visible"]) if one["visible"] else "–"]
        for one in figures("options.json")["options"]
        if one["name"] != "bare"
    ]
    assert table("options.json") == want
