"""Every case of the misuse matrix ends with a clear exception, never with a signal, and is in docs/misuse.md."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import misuse_cases
import pytest
from misuse_cases import CASES

Outcomes = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def run_case(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", misuse_cases.__file__, name]
    paths = [str(Path(misuse_cases.__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": ""}  # for cases provoke some
    return subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, check=False)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Outcomes]:
    """Of the selected cases, each in a process of its own, two at a time."""
    chosen = [item.callspec.params["name"] for item in request.session.items if item.originalname == "test_a_case"]
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run_case, name) for name in chosen}


@pytest.mark.parametrize("name", CASES)
def test_a_case(name: str, outcomes: Outcomes) -> None:
    outcome = outcomes[name].result()
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert outcome.stdout == "done\n"
    for trouble in ("panicked", "Traceback", "Exception ignored"):
        assert trouble not in outcome.stderr


def test_the_matrix_has_thirty_cases_at_least() -> None:
    assert len(CASES) >= 30


def test_the_documentation_has_this_matrix() -> None:
    text = Path(__file__).parents[1].joinpath("docs", "misuse.md").read_text()
    assert misuse_cases.table() in text, "run 'python tests/misuse_cases.py' and put its output there"
