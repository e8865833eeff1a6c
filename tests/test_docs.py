"""Every example in the README and the documentation runs as it stands."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from aiostage import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "index.md")


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.blocks_loop("the pages ask for devices and read back, and wait")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom_in_one_session(page: Path) -> None:
    async def session() -> None:
        namespace: dict[str, object] = {}
        for block in blocks(page):
            code = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            pending = types.FunctionType(code, namespace)()
            if inspect.isawaitable(pending):
                await pending

    asyncio.run(session())


def test_the_commands_of_the_migration_page_exist() -> None:
    """They run elsewhere: the tests that they name in this suite, the demo and the command line in others."""
    lines = re.findall(r"^\$ (.*)$", (ROOT / "docs" / "migrating.md").read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        program, *arguments = line.split()
        if program == "aiostage":
            cli.build_parser().parse_args(arguments)
            continue
        assert program == "./dev"
        assert f"cmd_{arguments[0]}()" in (ROOT / "dev").read_text()
        for path in [argument for argument in arguments[1:] if not argument.startswith("-")]:
            assert (ROOT / path).is_file(), path


def test_the_first_program_of_the_readme_runs_as_pasted(tmp_path: Path) -> None:
    program = blocks(ROOT / "README.md")[0]
    assert len(program.strip().splitlines()) <= 15
    script = tmp_path / "first.py"
    script.write_text(program)
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "done" in run.stdout


def test_every_test_that_the_documentation_names_exists() -> None:
    named = re.findall(r"`(\w+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"
