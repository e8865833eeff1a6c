"""Where `aiostage` and `python -m aiostage` begin. Needs no extra, so that somebody can say which one is missing."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

from .status import exit_status, require

MODULES = {"typer": "typer", "rich": "rich"}
"""What the extra `cli` installs: the module to look for, and the name to say."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, see `status`."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")  # ASCII has no ×
    program = "aiostage" if arguments[0].startswith("-") else f"aiostage {arguments[0]}"
    return exit_status(program, lambda: run(arguments))


def run(arguments: Sequence[str]) -> int:
    require("cli", MODULES)
    from . import commands

    return commands.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
