"""`aiostage bench`: the benchmarks, which are no part of an installation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .status import UsageError


def bench(arguments: Sequence[str]) -> int:
    """Run `python -m benchmarks` with these arguments, where this module lies in a source checkout."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks").is_dir():
        raise UsageError("the benchmarks are not installed: use ./dev bench in a source checkout of aiostage")
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "benchmarks", *arguments]  # -P: not what lies in the user's directory
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode
