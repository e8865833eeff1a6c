"""What type checkers say of users' programs: nothing of right ones, and something of each mistake."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest

import aiostage.pools
import aiostage.streams
import aiostage.textures
import aiostage.typing

HERE = Path(__file__).parent
RIGHT, WRONG = HERE / "typed" / "right.py", HERE / "typed" / "wrong.py"

MYPY = """
[mypy]
strict = true
[mypy-wgpu.*]
ignore_missing_imports = true
"""

PACKAGES = (aiostage, aiostage.streams, aiostage.textures, aiostage.pools)

Errors = set[tuple[str, int, str]]
"""Each a file, a line, and what is wrong there."""


def mypy(folder: Path) -> Errors:
    config = folder / "mypy.ini"
    config.write_text(MYPY)
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(folder / "cache")]
    outcome = run([*command, str(RIGHT), str(WRONG)], folder)
    lines = (re.match(r"(.*?):(\d+): error: (.*)", line) for line in outcome.splitlines())
    return {(Path(found[1]).name, int(found[2]), found[3]) for found in lines if found}


def pyright(folder: Path) -> Errors:
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    found = json.loads(run([*command, str(RIGHT), str(WRONG)], folder))["generalDiagnostics"]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1, each["message"])
        for each in found
        if each["severity"] == "error"
    }


def run(command: list[str], folder: Path) -> str:
    paths = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"MYPYPATH": str(HERE.parent), "PYTHONPATH": paths}
    outcome = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert outcome.returncode == 1, outcome.stdout + outcome.stderr  # there are errors, and it was not the checker's
    return outcome.stdout


@pytest.mark.parametrize(("check", "marks"), [(mypy, ("# wrong",)), (pyright, ("# wrong", "# wrong to pyright"))])
def test_right_programs_pass_and_each_mistake_is_found(
    check: Callable[[Path], Errors], marks: tuple[str, ...], tmp_path: Path
) -> None:
    found = check(tmp_path)
    marked = {number for number, line in enumerate(WRONG.read_text().splitlines(), 1) if line.endswith(marks)}
    assert [error for error in sorted(found) if error[0] == RIGHT.name] == []
    assert {line for name, line, _ in found if name == WRONG.name} == marked, sorted(found)


def test_annotations_mean_something_at_run_time() -> None:
    hints = get_type_hints(aiostage.StagingRing.write_texture)
    assert hints["destination"] is aiostage.typing.TextureDestination
    assert hints["return"] is aiostage.Fence


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_what_public_calls_take_and_return_can_be_named_by_its_users(package: ModuleType) -> None:
    """Every class of ours in an annotation is in the `__all__` of a package that says so."""
    public = {name for each in (*PACKAGES, aiostage.typing) for name in each.__all__}
    for name in set(package.__all__) - {"StagingBuffer"}:  # whose methods are the engine's
        for method in vars(getattr(package, name)).values() if isinstance(getattr(package, name), type) else ():
            if inspect.isfunction(method) and not method.__name__.startswith("_"):
                for word in re.findall(r"[A-Za-z_]+", " ".join(map(str, method.__annotations__.values()))):
                    assert word in public or not is_ours(word, method), f"{name}.{method.__name__}: {word}"


def is_ours(word: str, function: Callable[..., object]) -> bool:
    found = function.__globals__.get(word)
    return isinstance(found, type) and found.__module__.startswith("aiostage")
