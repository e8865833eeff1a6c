"""`python -m benchmarks NAME … [--quick] [--out PATH]`: measure, print, and keep the raw figures if asked to."""

from __future__ import annotations

import asyncio
import importlib
import sys
from contextlib import nullcontext, redirect_stdout

from aiostage.tools.arguments import Parser
from aiostage.tools.printing import print_document
from aiostage.tools.status import exit_status, require

from . import machine

SCHEMA = "aiostage.bench/1"
NAMES = (
    "fences",
    "costs",
    "throughput",
    "lag",
    "textures",
    "files",
    "pools",
    "views",
    "atomic",
    "streams",
    "monitor",
    "trace",
)
ALONE = ("cluster", "gfx")
"""Not among all: the one starts processes, and needs dask; the other needs pygfx, whose one device it takes."""


def main() -> None:
    parser = Parser(prog="benchmarks", description="Measure aiostage and its peers, and print the figures.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(NAMES)}; or all; {', '.join(ALONE)}"
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; all of them in under two minutes")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop in place of asyncio's own loop")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, the tables on stderr")
    machine.add_arguments(parser)
    if len(sys.argv) == 1:
        parser.print_help()
        return
    arguments = parser.parse_args()
    names = NAMES if arguments.names == ["all"] else tuple(arguments.names)
    if not names:
        parser.error(f"which ones? {', '.join(NAMES)}; or all")
    unknown = set(names) - {*NAMES, *ALONE}
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES + ALONE)}; or all")
    if len(names) > 1 and machine.is_file(arguments.out):
        parser.error(f"--out {arguments.out}: a file holds one benchmark's figures; name a directory for several")
    require("bench", {"psutil": "psutil"} | ({"uvloop": "uvloop"} if arguments.uvloop else {}))
    if "cluster" in names:
        require("dask", {"distributed": "distributed"})
    if "gfx" in names:
        require("pygfx", {"pygfx": "pygfx"})
    machine.check_out(arguments.out)
    runner = asyncio.run
    if arguments.uvloop:
        import uvloop

        runner = uvloop.run
    measured = {}
    with redirect_stdout(sys.stderr) if arguments.json else nullcontext():
        for name in names:
            device = machine.open_device(arguments.software)
            print(f"{name} on {device.adapter.summary}", flush=True)
            kind = f"{name}-uvloop" if arguments.uvloop else name
            measured[kind] = runner(importlib.import_module(f".{name}", __package__).run(device, arguments.quick))
            machine.save(arguments.out, kind, device, measured[kind])
    if arguments.json:
        print_document(SCHEMA, {"machine": machine.describe(device), "figures": measured})


if __name__ == "__main__":
    sys.exit(exit_status("benchmarks", main))
