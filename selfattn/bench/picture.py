"""The picture that `selfattn bench --plot FILE` writes: for each row, the fractions of its limit.

matplotlib is imported when a picture is asked for. Called by run.py.
"""

from __future__ import annotations

import os

import numpy as np

COLORS = {
    "selfattn": "#1b6ca8",
    "numpy": "#b0b0b0",
    "torch": "#e07a3f",
    "onnxruntime": "#7b5ea7",
    "openvino": "#4c9f70",
}


def check(path):
    """Raise, before anything is measured, what would keep the picture from being written."""
    import matplotlib  # noqa: F401  (ModuleNotFoundError is the caller's to explain)

    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(2, "No such folder", path)
    if os.path.isdir(path) or not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise PermissionError(13, "Cannot be written", path)


def draw(results, about, path):
    """Write it: bars of each contestant, a group for each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(entry["name"] for r in results for entry in r["contestants"]))
    figure = Figure(figsize=(1.8 + 1.7 * len(results), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = [_fraction_of(result, name) for result in results]
        places = np.arange(len(results)) + (i - (len(names) - 1) / 2) * width
        bars = axes.bar(places, heights, width * 0.92, label=name, color=COLORS.get(name))
        axes.bar_label(bars, [f"{x:.2f}".lstrip("0") if x else "" for x in heights], fontsize=7)
    axes.set_xticks(range(len(results)), [_tick(result) for result in results], fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_ylabel("of the FMA peak; of the read loop where one query decodes", fontsize=8)
    axes.set_title(f"{about['cpu']}, {about['threads']} threads, {about['isa']}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=len(names), loc="upper center")
    figure.savefig(path, dpi=160)


def _fraction_of(result, name):
    """A contestant's, 0 where it sat out or nothing counted."""
    found = [entry["of_limit"] for entry in result["contestants"] if entry["name"] == name]
    return (found[0] if found else None) or 0.0


def _tick(result):
    name, _, shape = result["shape"].partition(": ")
    return f"{name}\n{shape}"
