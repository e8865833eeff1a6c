# Settings of the documentation that `./dev docs` builds, from packages alone: no network at build time.
import aiostage

project = "aiostage"
author = "aiostage contributors"
copyright = "2026, aiostage contributors"
version = release = aiostage.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # `name` in a docstring links where it can, and is code elsewhere

html_theme = "furo"
html_title = f"aiostage {version}"
