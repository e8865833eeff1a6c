"""`python -m benchmarks.since CHECKOUT`: uploads by another checkout of the project and by this one, whole processes in
turns.

Sustained throughput of eight coroutines, and the time that one upload alone takes until its submit, by size.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import wgpu

import aiostage
from aiostage.tools.cli import Parser, exit_status

from . import machine

MiB = aiostage.MiB
SIZES = (1, 4, 16, 64)
HERE = Path(__file__).parent.parent
PROCESS = """import sys
sys.path.insert(0, sys.argv[1])
import aiostage
sys.path.insert(0, sys.argv[2])
from benchmarks.since import measure
measure(sys.argv[3] == "1")"""


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
    """One process that has `aiostage` from there, and this file."""
    command = [sys.executable, "-P", "-c", PROCESS, str(path), str(HERE), str(int(software))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    site = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in site if entry and Path(entry).resolve() != HERE)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["file"]).is_relative_to(path), f"measured {found['file']}, not {path}"
    return found


def measure(software: bool) -> None:
    """What a process prints, as JSON."""
    found = asyncio.run(uploads(machine.open_device(software), (0.3, 10) if software else (0.5, 30)))
    print(json.dumps({"file": aiostage.__file__, "sizes": found}))


async def uploads(device: wgpu.GPUDevice, effort: tuple[float, int]) -> dict[str, Any]:
    """GB/s and ms by MiB."""
    from .throughput import COROUTINES, make_sources

    seconds, singles = effort
    found = {}
    async with aiostage.StagingRing(device) as ring:
        for size in SIZES:
            sources = make_sources(size * MiB)
            usage = wgpu.BufferUsage.COPY_DST
            targets = [device.create_buffer(size=size * MiB, usage=usage) for _ in range(COROUTINES)]

            async def stream(index: int, end: float) -> int:
                turn = index
                while time.perf_counter() < end:
                    fence = await ring.write_buffer(targets[index], 0, sources[turn % len(sources)])  # noqa: B023
                    turn += COROUTINES
                await fence
                return (turn - index) // COROUTINES * sources[0].nbytes  # noqa: B023

            async def rate(duration: float) -> float:
                started = time.perf_counter()
                done = await asyncio.gather(*(stream(i, started + duration) for i in range(COROUTINES)))
                return sum(done) / (time.perf_counter() - started) / 1e9

            await rate(seconds / 2)
            sustained, alone = await rate(seconds), []
            for turn in range(singles):
                await asyncio.sleep(0.002)
                started = time.perf_counter()
                fence = await ring.write_buffer(targets[0], 0, sources[turn % len(sources)])
                alone.append((time.perf_counter() - started) * 1e3)
                await fence
            found[str(size)] = {"GB/s": sustained, "alone_ms": statistics.median(alone)}
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
