"""`python -m benchmarks [NAME …] [--quick] [--software]`: measure, print, and keep the raw figures."""

from __future__ import annotations

import argparse
import asyncio
import importlib

from . import machine

NAMES = ("fences", "costs", "calls", "throughput", "textures", "pools", "views")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(NAMES)}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; under two minutes")
    parser.add_argument("--software", action="store_true", help="the software adapter, also where there is a GPU")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop in place of asyncio's own loop")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(NAMES)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    runner = asyncio.run
    if arguments.uvloop:
        import uvloop

        runner = uvloop.run
    for name in arguments.names or NAMES:
        device = machine.open_device(arguments.software)
        print(f"{name} on {device.adapter.summary}", flush=True)
        kind = f"{name}-uvloop" if arguments.uvloop else name
        figures = runner(importlib.import_module(f".{name}", __package__).run(device, arguments.quick))
        print(f"\nraw figures: {machine.save(kind, device, figures)}")


if __name__ == "__main__":
    main()
