"""The gallery: runs each example of gallery.toml as a user does, and writes a page with picture, text, time and source.

Why not sphinx-gallery: it runs the examples inside of Sphinx. There one that ends with `sys.exit(0)`, as most of ours
do, ends the build, with success and without a page; one that hangs hangs it; and each would need a heading of
reStructuredText in the text that its reader sees first. The cards are sphinx-design's.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
IMAGES = {".png", ".jpg", ".gif"}
THUMBNAIL = (640, 640)  # pixels at most: twice what a card shows

PAGE = """\
# {title}

{text}

![What {file} drew]({picture})

It drew this when these pages were built, in {seconds:.1f} s, and printed:

```console
$ {command}
{printed}
```
"""
SOURCE = """
## {file}

```{{literalinclude}} ../../examples/{file}
:language: python
```
"""
CARD = """
````{{grid-item-card}} {title}
:img-top: gallery/{name}-small.jpg
:img-alt: What {file} drew
:link: gallery/{name}
:link-type: doc

{summary}

*{seconds:.1f} s*
````
"""


class ExampleFailed(Exception):
    """Says how, and what it printed."""


@dataclass(frozen=True)
class Example:
    """An entry of gallery.toml, which explains the fields."""

    file: str
    section: str
    title: str
    options: str = ""
    picture: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    limit: float = 300

    @property
    def name(self) -> str:
        return Path(self.file).stem


@dataclass(frozen=True)
class Result:
    """What a run left; the picture is a file's name in the folder of pages."""

    printed: str
    seconds: float
    picture: str


def load(path: Path = DOCS / "gallery.toml") -> tuple[list[Example], list[str]]:
    """The examples that are shown, and the modules that help them."""
    content = tomllib.loads(path.read_text())
    return [Example(**entry) for entry in content["example"]], content["helpers"]


# -- running --


def run(example: Example, source: Path, pages: Path) -> Result:
    """In a process and an empty folder of its own; its picture and a thumbnail are put into `pages`.

    :raises ExampleFailed: it exits with another code than 0, takes too long, or writes no picture, or several.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        printed = _execute([sys.executable, str(source), *shlex.split(example.options)], example, folder)
        seconds = time.monotonic() - start
        images = [path for path in Path(folder).rglob("*") if path.suffix in IMAGES]
        chosen = [path for path in images if example.picture in ("", path.name)]
        if len(chosen) != 1:
            names = ", ".join(sorted(path.name for path in images)) or "none"
            wanted = example.picture or "one picture"
            raise ExampleFailed(f"{example.file}: {wanted} is shown; written: {names}\n{printed}")
        picture = pages / f"{example.name}{chosen[0].suffix}"
        picture.write_bytes(chosen[0].read_bytes())
    with Image.open(picture) as image:
        image.seek(getattr(image, "n_frames", 1) - 1)  # of a moving picture, how it ends
        small = image.convert("RGB")
        small.thumbnail(THUMBNAIL)
        small.save(pages / f"{example.name}-small.jpg", quality=88)
    return Result(printed.rstrip(), seconds, picture.name)


def _execute(command: list[str], example: Example, folder: str) -> str:
    """What it printed. Processes that it started count as part of it, and end with it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **example.environment}  # to know what it said before it hung
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    status = "took too long"
    with subprocess.Popen(command, cwd=folder, env=environment, process_group=0, text=True, **streams) as process:
        try:
            printed, complaints = process.communicate(timeout=example.limit)
            status = f"exited with {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, complaints = process.communicate()
        except BaseException:  # Ctrl-C, which a group of its own does not hear
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if status != "exited with 0":
        raise ExampleFailed(f"{example.file} {status} and printed:\n{printed}{complaints}")
    return printed


def run_or_recall(example: Example, helpers: list[str], version: str, pages: Path, examples: Path) -> Result:
    """A run of the same sources in the same way, with the same version of the package, stands for another one."""
    known = pages / f"{example.name}.json"
    key = hashlib.sha256(repr((version, example.options, example.environment, example.picture)).encode())
    for file in (example.file, *helpers):
        key.update((examples / file).read_bytes())
    past = json.loads(known.read_text()) if known.exists() else {}
    if past.pop("key", None) == key.hexdigest():
        return Result(**past)
    known.unlink(missing_ok=True)
    result = run(example, examples / example.file, pages)
    known.write_text(json.dumps({"key": key.hexdigest(), **asdict(result)}))
    return result


# -- pages --


def text_of(source: Path) -> str:
    """Its docstring as Markdown: what a reader pastes is code there, with straight quotes."""
    text = ast.get_docstring(ast.parse(source.read_text())) or ""
    return re.sub(r"(Needs: )(pip install(?: '[^']+'| \w+)+)", r"\1`\2`", text)


def files_of(example: Example, helpers: list[str], examples: Path) -> list[str]:
    """The example, and what it imports of `helpers`, which have helpers too."""
    files = [example.file]
    for file in files:  # which grows
        imported = set(re.findall(r"^(?:import|from) (\w+)", (examples / file).read_text(), re.MULTILINE))
        files += [helper for helper in helpers if Path(helper).stem in imported and helper not in files]
    return files


def page(example: Example, result: Result, helpers: list[str], examples: Path) -> str:
    """With the sources of the example and of what it imports of `helpers`."""
    source = examples / example.file
    settings = "".join(f"{name}={value} " for name, value in example.environment.items())
    command = f"{settings}python examples/{example.file} {example.options}".rstrip()
    files = files_of(example, helpers, examples)
    shown = PAGE.format(**{**asdict(example), **asdict(result)}, text=text_of(source), command=command)
    return shown + "".join(SOURCE.format(file=file) for file in files)


def cards(shown: list[tuple[Example, Result]], examples: Path) -> str:
    """The thumbnails, section by section, and the pages for the sidebar: docs/gallery.md includes them."""
    lines = []
    for section, entries in groupby(shown, key=lambda each: each[0].section):
        lines.append(f"## {section}\n\n`````{{grid}} 1 1 2 2\n:gutter: 3\n")
        for example, result in entries:
            summary = text_of(examples / example.file).partition("\n")[0]
            lines.append(CARD.format(**asdict(example), name=example.name, summary=summary, seconds=result.seconds))
        lines.append("`````\n")
    names = "\n".join(f"gallery/{example.name}" for example, _ in shown)
    lines.append(f"```{{toctree}}\n:hidden:\n\n{names}\n```\n")
    return "\n".join(lines)


def make(examples: Path, pages: Path, version: str, listed: tuple[list[Example], list[str]]) -> Iterator[str]:
    """Writes all pages and the cards; yields how each example that failed did."""
    everything, helpers = listed
    shown = []
    pages.mkdir(exist_ok=True)
    for old in pages.glob("*.md"):
        old.unlink()
    for example in everything:
        try:
            result = run_or_recall(example, helpers, version, pages, examples)
        except ExampleFailed as failure:
            yield str(failure)
            continue
        (pages / f"{example.name}.md").write_text(page(example, result, helpers, examples))
        shown.append((example, result))
    (pages / "cards.txt").write_text(cards(shown, examples))


def setup(app: Any) -> dict[str, bool]:
    """Sphinx's entry point: the pages are written before it looks for pages."""
    from sphinx.util import logging  # the tests have no Sphinx

    def build(app: Any) -> None:
        logger = logging.getLogger(__name__)
        for failure in make(EXAMPLES, DOCS / "gallery", app.config.version, load()):
            logger.warning(failure)  # makes a build with -W fail; the other examples run all the same

    app.connect("builder-inited", build)
    return {"parallel_read_safe": True}
