"""`python -m benchmarks.since CHECKOUT`: uploads by another checkout of the project and by this one, whole processes in
turns.

Sustained throughput of eight coroutines, and the time that one upload alone takes until its submit, by size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from aiostage.tools.arguments import Parser
from aiostage.tools.status import exit_status

from . import machine
from .one_checkout import SIZES

HERE = Path(__file__).parent.parent


def main() -> None:
    parser = Parser(prog="benchmarks.since", description=__doc__.partition("\n\n")[2].strip())
    parser.add_argument("checkout", type=Path, help="where the other one is")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="processes of each")
    machine.add_arguments(parser)
    arguments = parser.parse_args()
    machine.check_out(arguments.out)
    ways = {"other": arguments.checkout.resolve(), "this": HERE}
    results: dict[str, list[Any]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, path in ways.items():
            results[name].append(in_process(path, arguments.software))
    figures = {name: summarise(rounds) for name, rounds in results.items()}
    show(figures)
    machine.save(arguments.out, "since", machine.open_device(arguments.software), figures)


def in_process(path: Path, software: bool) -> Any:
    """One process that has `aiostage` from there."""
    before = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    rest = [entry for entry in before if Path(entry).resolve() != HERE]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *rest])}
    command = [sys.executable, "-P", str(HERE / "benchmarks" / "one_checkout.py"), str(int(software))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["file"]).is_relative_to(path), f"measured {found['file']}, not {path}"
    return found


def summarise(rounds: list[Any]) -> dict[str, Any]:
    return {
        f"{size} MiB": {
            what: machine.spread([one["sizes"][str(size)][what] for one in rounds]) for what in ("GB/s", "alone_ms")
        }
        for size in SIZES
    }


HEADER = ("size", "GB/s before", "now", "now is ×", "alone, ms before", "now", "now is ×")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for size in figures["this"]:
        cells = []
        for what in ("GB/s", "alone_ms"):
            before, now = (figures[name][size][what]["p50"] for name in ("other", "this"))
            cells += [f"{before:.3g}", f"{now:.3g}", f"{now / before:.2f}"]
        table.append((size, *cells))
    return table


def show(figures: dict[str, Any]) -> None:
    machine.print_table("Uploads by the other checkout, and by this", rows(figures), HEADER)


if __name__ == "__main__":
    sys.exit(exit_status("benchmarks.since", main))
