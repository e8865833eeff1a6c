"""The gallery of the documentation: nothing is missing in it, and an example that fails makes the build say so."""

from __future__ import annotations

import ast
import importlib.util
import os
import shlex
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aiostage.tools import commands

ROOT = Path(__file__).parent.parent


def gallery_module() -> Any:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "docs" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["gallery"] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


gallery = gallery_module()
SHOWN, HELPERS = gallery.load()
ELSEWHERE = tomllib.loads((ROOT / "docs" / "gallery.toml").read_text())["elsewhere"]
FILES = {path.name for path in gallery.EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


# -- what is shown --


def test_every_example_is_shown_or_named_as_a_helper() -> None:
    listed = [*(example.file for example in SHOWN), *HELPERS, *ELSEWHERE]
    assert sorted(listed) == sorted(FILES), "docs/gallery.toml lists what is in examples/, each once"


def test_what_is_shown_elsewhere_is_named_there() -> None:
    for file, page in ELSEWHERE.items():
        assert f"examples/{file}" in (ROOT / "docs" / page).read_text()
        assert not file.endswith(".py"), "a script has its own page in the gallery"


@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_is_imported_by_an_example_that_is_shown(helper: str) -> None:
    name = Path(helper).stem
    sources = [(gallery.EXAMPLES / file).read_text() for file in (*(example.file for example in SHOWN), *HELPERS)]
    assert any(f"import {name}\n" in source or f"from {name} import" in source for source in sources)


@pytest.mark.parametrize("example", SHOWN, ids=lambda example: example.name)
def test_an_example_begins_with_a_sentence_that_fits_a_card(example: Any) -> None:
    first, *rest = gallery.text_of(gallery.EXAMPLES / example.file).splitlines()
    assert first.endswith(".")
    assert not rest or not rest[0], "the sentence goes on in the next line, where a card does not"


@pytest.mark.parametrize("example", SHOWN, ids=lambda example: example.name)
def test_an_example_has_the_options_that_the_gallery_gives_it(example: Any) -> None:
    given = [word for word in shlex.split(example.options) if word.startswith("-")]
    if example.file == "staging_ring_demo.py":
        commands.parse(["demo", *shlex.split(example.options)])
        return
    files = gallery.files_of(example, HELPERS, gallery.EXAMPLES)
    trees = [ast.parse((gallery.EXAMPLES / file).read_text()) for file in files]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    known = {word.value for call in added for word in call.args if isinstance(word, ast.Constant)}
    assert set(given) <= known


# -- what a run comes to --

DRAW = "from PIL import Image; Image.new('RGB', (800, 400), 'red').save({name!r})\n"


class Gallery:
    """One of a test's, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.examples, self.pages = folder / "examples", folder / "pages"
        self.examples.mkdir()

    def make(self, source: str, version: str = "1", helpers: tuple[str, ...] = (), **fields: Any) -> list[str]:
        """The failures of a build that shows one example with this source."""
        (self.examples / "one.py").write_text(f'"""One example."""\n{source}')
        example = gallery.Example("one.py", "Section", "Title", **fields)
        return list(gallery.make(self.examples, self.pages, version, ([example], list(helpers))))

    def page(self) -> str:
        return (self.pages / "one.md").read_text()


@pytest.fixture
def here(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path)


def test_an_example_gets_a_page_with_its_text_picture_time_output_and_source(here: Gallery) -> None:
    (here.examples / "helper.py").touch()
    (here.examples / "stranger.py").touch()
    source = "import helper, os, sys; print('said', sys.argv[1:], os.environ['SETTING'])\n" + DRAW.format(name="a.png")
    helpers = ("helper.py", "stranger.py")
    assert here.make(source, helpers=helpers, options="-n 'a b'", environment={"SETTING": "x"}) == []
    page = here.page()
    assert page.startswith("# Title\n\nOne example.\n\n![What one.py drew](one.png)\n")
    assert " s, and printed:\n\n```console\n$ SETTING=x python examples/one.py -n 'a b'\n" in page
    assert "\nsaid ['-n', 'a b'] x\n```\n" in page
    assert "{literalinclude} ../../examples/one.py" in page
    assert "{literalinclude} ../../examples/helper.py" in page
    assert "stranger" not in page
    with Image.open(here.pages / "one.png") as picture, Image.open(here.pages / "one-small.jpg") as small:
        assert (picture.size, small.size) == ((800, 400), (640, 320))
    cards = (here.pages / "cards.txt").read_text()
    assert "## Section\n" in cards
    assert ":img-top: gallery/one-small.jpg\n" in cards
    assert "\nOne example.\n\n*" in cards


def test_what_a_reader_pastes_is_code(here: Gallery) -> None:
    source = here.examples / "one.py"
    source.write_text('"""One.\n\nNeeds: pip install etcpak \'aiostage[demo]\', and glfw for a window\n"""')
    assert gallery.text_of(source) == "One.\n\nNeeds: `pip install etcpak 'aiostage[demo]'`, and glfw for a window"


def test_an_example_that_fails_is_reported_with_all_that_it_printed(here: Gallery) -> None:
    (failure,) = here.make(DRAW.format(name="a.png") + "import sys; print('before'); sys.exit('what is wrong')")
    assert failure == "one.py exited with 1 and printed:\nbefore\nwhat is wrong\n"
    assert not (here.pages / "one.md").exists()
    assert "one" not in (here.pages / "cards.txt").read_text()


def test_the_page_of_an_earlier_run_does_not_outlive_a_failure(here: Gallery) -> None:
    good = DRAW.format(name="a.png")
    assert here.make(good) == []
    assert len(here.make(good + "raise SystemExit(3)")) == 1
    assert not (here.pages / "one.md").exists()
    assert len(here.make(good + "raise SystemExit(3)")) == 1, "a failure is not remembered"


def test_an_example_that_hangs_is_ended_with_what_it_started_and_reported(here: Gallery, tmp_path: Path) -> None:
    child = tmp_path / "child"
    source = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))\n"
        "print('started'); child.wait()"
    )
    (failure,) = here.make(source, limit=8)
    assert failure == "one.py took too long and printed:\nstarted\n"
    assert ends(int(child.read_text()))


def ends(pid: int) -> bool:
    """Within ten seconds: somebody else collects it."""
    for _ in range(1000):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False


@pytest.mark.parametrize(
    ("source", "picture", "said"),
    [
        ("print('drew nothing')", "", "one.py: one picture is shown; written: none\ndrew nothing\n"),
        ("{a}{b}", "", "one.py: one picture is shown; written: a.png, b.png\n"),
        ("{a}", "b.png", "one.py: b.png is shown; written: a.png\n"),
    ],
    ids=["none", "two", "another"],
)
def test_an_example_without_its_picture_is_reported(here: Gallery, source: str, picture: str, said: str) -> None:
    drawn = source.format(a=DRAW.format(name="a.png"), b=DRAW.format(name="b.png"))
    assert here.make(drawn, picture=picture) == [said]


def test_of_several_pictures_the_named_one_is_shown_wherever_it_lies(here: Gallery) -> None:
    source = DRAW.format(name="a.png") + "import os; os.mkdir('deep')\n" + DRAW.format(name="deep/b.jpg")
    assert here.make(source, picture="b.jpg") == []
    assert "](one.jpg)" in here.page()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that have been run."""
    ran: list[str] = []
    run: Callable[..., Any] = gallery.run
    monkeypatch.setattr(gallery, "run", lambda example, *rest: ran.append(example.file) or run(example, *rest))
    return ran


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({}, 1),
        ({"limit": 100.0}, 1),
        ({"source": "print(2)\n" + DRAW.format(name="a.png")}, 2),
        ({"version": "2"}, 2),
        ({"options": "--more"}, 2),
        ({"environment": {"SETTING": "x"}}, 2),
        ({"helper": "1"}, 2),
    ],
    ids=lambda change: next(iter(change), "nothing") if isinstance(change, dict) else "",
)
def test_a_second_build_runs_what_has_changed(here: Gallery, counting: list[str], change: Any, runs: int) -> None:
    helper = here.examples / "helper.py"
    helper.touch()
    arguments = {"source": DRAW.format(name="a.png"), "helpers": ("helper.py",)}
    assert here.make(**arguments) == []
    first = here.page()
    helper.write_text(change.pop("helper", ""))
    assert here.make(**{**arguments, **change}) == []
    assert len(counting) == runs
    assert runs > 1 or here.page() == first
