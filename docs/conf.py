# Settings of the documentation that `./dev docs` builds, from packages alone: no network at build time.
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import elsewhere

import aiostage.typing

project = "aiostage"
author = "aiostage contributors"
copyright = "2026, aiostage contributors"
version = release = aiostage.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "gallery",
]
myst_heading_anchors = 3  # [text](page.md#heading), as on GitHub
templates_path = ["_templates"]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: f"aiostage.typing.{name}" for name in aiostage.typing.__all__}
default_role = "py:obj"  # `name` in a docstring links where it can, and is code elsewhere
intersphinx_mapping = elsewhere.mapping(Path(tempfile.gettempdir()) / "aiostage-inventories")
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# ./dev docs --links
linkcheck_ignore = [r"http://127\.0\.0\.1"]
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]  # which makes them by script
linkcheck_timeout = 20
linkcheck_retries = 2

html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines imports, as if they were links
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"aiostage {version}"


def part_fields(app: Any, what: str, name: str, about: Any, options: Any, lines: list[str]) -> None:
    """Short docstrings say `What it does. :raises Error: why` in one line; a field is one only in a line of its own."""
    lines[:] = re.sub(r"(?<=\S) (?=:raises [\w., ]+:)", "\n\n", "\n".join(lines)).split("\n")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", part_fields)
