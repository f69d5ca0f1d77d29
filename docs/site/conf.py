"""The documentation site: docs/*.md as they are, and what is generated from the code beside them.

make docs
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import docstrings  # noqa: E402
import generated  # noqa: E402

project = "GRAM"
author = "the GRAM pipeline's authors"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["site"]

html_theme = "furo"
html_title = "GRAM"
html_show_sourcelink = False
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# A type named as one of another module may be either; a command with a placeholder is no script.
suppress_warnings = ["ref.python", "misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
# What a package takes in from its modules is described there.
autodoc_default_options = {
    "members": True,
    "ignore-module-all": True,
}
# What takes seconds to import and is documented elsewhere.
autodoc_mock_imports = [
    "datasets",
    "faiss",
    "hdbscan",
    "img2dataset",
    "mlflow",
    "open_clip",
    "plotly",
    "safetensors",
    "sentence_transformers",
    "timm",
    "torch",
    "torchvision",
    "transformers",
    "umap",
]


def setup(app):
    """Pages are generated before they are read; docstrings are this project's plain text."""
    generated.write(Path(app.srcdir) / "_generated")
    app.connect("autodoc-process-docstring", docstrings.as_restructured)
    app.connect("autodoc-skip-member", docstrings.not_ours)
