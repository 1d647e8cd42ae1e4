"""The site of these pages, by Sphinx: `sphinx-build -W docs build/docs`, with `selfattn[docs]`.

Pages are Markdown that reads well on its own; the API is taken from the docstrings of the package
that is installed, and no example is run here: tests/docs/test_examples.py runs them all.
"""

from __future__ import annotations

import selfattn

project = "selfattn"
author = "The selfattn authors"
version = release = selfattn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["pictures.py"]

myst_heading_anchors = 3
nb_execution_mode = "off"

default_role = "code"  # of single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have shapes and dtypes
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"selfattn {release}"
html_copy_source = False
html_show_copyright = False
