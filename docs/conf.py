"""The pages of this folder as a site: `make docs` writes it to build/docs, warnings are errors."""

from srpo_jax import __version__

project = "srpo_jax"
release = __version__
copyright = "the srpo_jax authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # a link may end in #a-heading, which is checked too
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
default_role = "code"  # docstrings have `name`
smartquotes = False  # it would make a dash of the -- of an option
html_theme = "furo"
html_title = f"srpo_jax {__version__}"
html_show_sourcelink = False
