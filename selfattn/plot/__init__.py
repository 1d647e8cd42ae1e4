"""Pictures of attention, by Matplotlib: a head's map, a grid of heads, where one word looks.

    attention.py   attention_map: what is given -> a figure and its panels
      -> given.py  arrays, words and titles, checked
      -> heat.py   a panel that is a map: rows attend to columns, a shade for each weight
      -> word.py   a panel of one word: arcs and bars from it to the words that it attends to
    labels.py      words as labels: fonts that have their characters, lengths, what is cut

Loaded when it is first asked for, and only then is Matplotlib. Called by users, and by
`selfattn demo --png`.
"""

try:
    import matplotlib as _matplotlib  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "selfattn.plot: expected Matplotlib, which is not installed (pip install 'selfattn[plot]')",
        name=error.name,
    ) from error

from .attention import attention_map

__all__ = ["attention_map"]
