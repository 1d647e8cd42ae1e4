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


def test_caches():
    """Those of 16384 positions."""

    def of(entry, field="selfattn_faster"):
        return said(entry[field]) if entry else "–"

    want = []
    for row in figures("caches.json")["rows"]:
        length, heads, dtype = row["row"].split("-")
        if length == "16k":
            by_name = {one["name"]: one for one in row["contestants"]}
            names = ("as float32", "torch", "onnxruntime", "pages of 128", "pages of 16")
            of_limit = of(by_name["selfattn"], "of_limit")
            times = [of(by_name.get(name)) for name in names]
            want.append([dtype, heads.replace("x", " × "), of_limit, *times])
    assert table("caches.json") == want


def test_options():
    want = [
        [one["what"], said(one["cost"]), said(one["visible"]) if one["visible"] else "–"]
        for one in figures("options.json")["options"]
        if one["name"] != "bare"
    ]
    assert table("options.json") == want
