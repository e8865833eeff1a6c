"""The command line: `aiostage info`, `doctor`, `inspect`, `monitor`, `trace`, `demo` and `bench`.

Imports what each needs when it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import aiostage
from aiostage.tools.demo import options as demo_options
from aiostage.tools.demo.options import UsageError, first_cause

# What the extra `demo` installs: the module to look for, and the name to say.
DEMO_MODULES = {"rich": "rich", "rendercanvas": "rendercanvas", "PIL": "pillow"}
SAMPLE_MODULES = {"skimage": "scikit-image"}


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, where argparse would print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, see `exit_status`."""
    return exit_status("aiostage", lambda: run(argv))


def run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments, others = parser.parse_known_args(argv)
    if arguments.name == "bench":
        arguments.others = others
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return exit_status(f"aiostage {arguments.name}", lambda: arguments.command(arguments))


def exit_status(program: str, command: Callable[[], int | None]) -> int:
    """Run a command to its exit status; what was expected to go wrong gets one line on stderr, or none.

    2: what the user can put right. 1: other errors of the library. 130: Ctrl-C. 141: whoever read the output has gone,
    as `head` does.
    """
    try:
        try:
            return command() or 0
        finally:
            if sys.stdout is not None:  # closed by the shell
                sys.stdout.flush()
    except BaseException as error:
        cause = first_cause(error)
        if isinstance(cause, KeyboardInterrupt):
            return 130
        if isinstance(cause, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
            return 141
        if isinstance(cause, UsageError):
            print(f"{program}: {cause}", file=sys.stderr)
            return 2
        if isinstance(cause, aiostage.StagingError):
            print(f"{program}: {type(cause).__name__}: {cause}", file=sys.stderr)
            return 1
        raise


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="aiostage", description="Asyncio-native GPU uploads for wgpu-py.")
    parser.add_argument("--version", action="version", version=f"aiostage {aiostage.__version__}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", required=True)

    info = commands.add_parser("info", help="adapters, the chosen one, staging memory, versions")
    info.set_defaults(command=run_info)

    doctor = commands.add_parser("doctor", help="a short workload, and advice on the ring's size")
    doctor.add_argument("--ring-count", type=demo_options.parse_count, metavar="N", help="default: for the machine")
    doctor.add_argument("--buffer-size", type=demo_options.parse_size, metavar="BYTES", help="256K, 1M, … (likewise)")
    doctor.set_defaults(command=run_doctor)

    inspect = commands.add_parser("inspect", help="what is in texture files, and whether they load here")
    inspect.add_argument("files", nargs="+", metavar="FILE", help="KTX2 or DDS")
    inspect.add_argument("--json", action="store_true", help="for programs: the schema is in docs/textures.md")
    colours = inspect.add_mutually_exclusive_group()
    colours.add_argument("--srgb", action="store_true", default=None, help="as with srgb=True: an sRGB texture")
    colours.add_argument("--linear", action="store_false", dest="srgb", help="as with srgb=False: a linear one")
    inspect.add_argument("--no-expand", action="store_false", dest="expand", help="as with expand=False")
    inspect.set_defaults(command=run_inspect)

    monitor = commands.add_parser("monitor", help="what the rings of a running program do, live")
    monitor.add_argument("pid", nargs="?", type=int, metavar="PID", help="default: the only one that can be watched")
    monitor.add_argument("--once", action="store_true", help="one picture; with --json one sample")
    monitor.add_argument("--json", action="store_true", help="for programs: the schema is in docs/monitor.md")
    monitor.add_argument("--interval", type=float, metavar="SECONDS", help="between two pictures, default: 0.2")
    monitor.set_defaults(command=run_monitor)

    demo = commands.add_parser("demo", help="stream photographs to the GPU and verify every byte")
    demo_options.add_arguments(demo)
    demo.set_defaults(command=run_demo)

    trace = commands.add_parser("trace", help="run a script, and write what happens in it for Perfetto")
    trace.add_argument("-o", "--output", default="trace.json", metavar="FILE", help="default: trace.json")
    trace.add_argument("-m", action="store_true", dest="is_module", help="it is a module, as with python -m")
    trace.add_argument("script", metavar="SCRIPT")
    trace.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="what the script is given")
    trace.set_defaults(command=run_trace)

    # What follows, --help included, is for `python -m benchmarks`.
    bench = commands.add_parser("bench", help="run the benchmarks of a source checkout", add_help=False)
    bench.set_defaults(command=run_bench)
    return parser


def run_demo(arguments: argparse.Namespace) -> int:
    require("demo", DEMO_MODULES if arguments.images else DEMO_MODULES | SAMPLE_MODULES)
    from aiostage.tools.demo import app

    return app.run(demo_options.from_arguments(arguments))


def run_bench(arguments: argparse.Namespace) -> int:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "benchmarks").is_dir():
        raise UsageError("the benchmarks are not installed: use ./dev bench in a source checkout of aiostage")
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", "benchmarks", *arguments.others]  # -P: not what lies in the user's directory
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode


def run_info(arguments: argparse.Namespace) -> int:
    import anyio

    for name, version in versions().items():
        print(f"{name:<15} {version}")
    anyio.run(print_adapters)
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    import anyio

    from aiostage.tools import doctor

    return 0 if anyio.run(doctor.run, arguments.ring_count, arguments.buffer_size) else 1


def run_inspect(arguments: argparse.Namespace) -> int:
    from aiostage.tools import inspection

    options = {"as_json": arguments.json, "srgb": arguments.srgb, "expand": arguments.expand}
    return 0 if inspection.run(arguments.files, **options) else 1


def run_monitor(arguments: argparse.Namespace) -> int:
    if not arguments.json:
        require("cli", {"rich": "rich"})
    from aiostage.tools.monitor import app

    return app.run(arguments.pid, arguments.once, arguments.json, arguments.interval)


def run_trace(arguments: argparse.Namespace) -> int:
    from aiostage.tools import tracer

    return tracer.run(arguments.script, arguments.arguments, arguments.output, is_module=arguments.is_module)


async def print_adapters() -> None:
    """Every adapter that wgpu finds, the one the demo would choose, the kind of staging memory on it."""
    import wgpu

    from aiostage.tools.demo.gpu import describe, find_adapter, memory_kind

    chosen = find_adapter()
    for adapter in wgpu.gpu.enumerate_adapters_sync():
        print(f"{'adapter':<15} {describe(adapter)}")
    print(f"{'chosen':<15} {describe(chosen)}")
    async with aiostage.StagingRing(chosen.request_device_sync(), ring_count=1, buffer_size=65536) as ring:
        print(f"{'staging':<15} {memory_kind(ring)}")


def versions() -> dict[str, str]:
    """Versions of aiostage, of what it stands on, and of Python."""
    from wgpu.backends import wgpu_native

    return {
        "aiostage": aiostage.__version__,
        "wgpu": metadata.version("wgpu"),
        "wgpu-native": ".".join(map(str, wgpu_native.lib_version_info)),
        "numpy": metadata.version("numpy"),
        "anyio": metadata.version("anyio"),
        "Python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
    }


def require(extra: str, modules: dict[str, str]) -> None:
    """Raise UsageError, with the command that helps, unless all these modules can be imported."""
    missing = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"needs {', '.join(missing)}: pip install 'aiostage[{extra}]'")


if __name__ == "__main__":
    sys.exit(main())
