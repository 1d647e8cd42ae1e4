"""docs/four_steps.ipynb: its cells run as plain Python, and print what the notebook shows."""

import contextlib
import io
import json
from pathlib import Path

import pytest

matplotlib = pytest.importorskip("matplotlib")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "four_steps.ipynb"


def shown(cell):
    """What the notebook shows below a cell: the text that it printed, and how many pictures."""
    texts = ["".join(o["text"]) for o in cell["outputs"] if o["output_type"] == "stream"]
    pictures = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
    return "".join(texts), len(pictures)


@pytest.mark.skipif(not NOTEBOOK.exists(), reason="no source folder beside the tests")
@pytest.mark.filterwarnings("ignore:Glyph .* missing")  # of Korean, where no font has it
def test_its_cells_run():
    from matplotlib import pyplot

    matplotlib.use("agg")
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) > 8
    namespace = {}
    for n, cell in enumerate(cells):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("".join(cell["source"]), f"cell {n}", "exec"), namespace)
        for figure in map(pyplot.figure, pyplot.get_fignums()):
            figure.canvas.draw()
        assert shown(cell) == (printed.getvalue(), len(pyplot.get_fignums()))
        pyplot.close("all")
