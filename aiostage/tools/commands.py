"""The commands: what each takes, and whom it asks. What a command does is imported when it runs, and not before.

A new one is a function here that returns the exit status, and its name in `COMMANDS`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .arguments import parse_count, parse_size
from .demo.options import Options
from .status import UsageError, require

NAME = "aiostage"
COMPLETION = "_AIOSTAGE_COMPLETE"
"""Set by a shell that asks how a line could go on."""

DEMO_MODULES = {"rendercanvas": "rendercanvas", "PIL": "pillow"}
SAMPLE_MODULES = {"skimage": "scikit-image"}

_T = TypeVar("_T")
_DEFAULT = Options()


def typed(parse: Callable[[str], _T]) -> Callable[[Any], _T]:
    """With mistakes as typer expects them. Defaults come this way too, and are what they are."""

    def convert(value: Any) -> _T:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        try:
            return parse(value)
        except argparse.ArgumentTypeError as error:
            raise typer.BadParameter(str(error)) from None

    return convert


count, size = typed(parse_count), typed(parse_size)
path = typed(Path)  # not typer's own kind of path, which keeps shells from completing it

Json = Annotated[bool, typer.Option("--json", help="One JSON document, for programs; docs/cli.md has its fields.")]


def info(json: Json = False) -> int:
    """Adapters, the chosen one, staging memory, versions."""
    from . import info

    return info.run(as_json=json)


def doctor(
    ring_count: Annotated[
        int | None, typer.Option(parser=count, metavar="N", help="Buffers. Default: for the machine.")
    ] = None,
    buffer_size: Annotated[
        int | None, typer.Option(parser=size, metavar="BYTES", help="256K, 1M, … Default: for the machine.")
    ] = None,
    json: Json = False,
) -> int:
    """A short workload, and advice on the ring's size."""
    from . import doctor

    return doctor.run(ring_count, buffer_size, as_json=json)


def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE", hidden=True)],
    srgb: Annotated[bool, typer.Option("--srgb", help="As with srgb=True: an sRGB texture.")] = False,
    linear: Annotated[bool, typer.Option("--linear", help="As with srgb=False: a linear one.")] = False,
    no_expand: Annotated[bool, typer.Option("--no-expand", help="As with expand=False.")] = False,
    json: Json = False,
) -> int:
    """What is in KTX2 and DDS files, and whether they load here."""
    from . import inspection

    if srgb and linear:
        raise typer.BadParameter("--srgb and --linear exclude each other")
    choice = True if srgb else False if linear else None
    return 0 if inspection.run(files, as_json=json, srgb=choice, expand=not no_expand) else 1


def demo(
    images: Annotated[
        list[Path] | None,
        typer.Argument(parser=path, metavar="IMAGE|DIR", hidden=True),
    ] = None,
    frames: Annotated[int, typer.Option(parser=count, metavar="N", help="To draw, at least.")] = _DEFAULT.frames,
    ring_count: Annotated[int, typer.Option(parser=count, metavar="N", help="Buffers.")] = _DEFAULT.ring_count,
    buffer_size: Annotated[
        int, typer.Option(parser=size, metavar="BYTES", help="256K, 1M, … Default: 1M.", show_default=False)
    ] = _DEFAULT.buffer_size,
    coroutines: Annotated[
        int, typer.Option(parser=count, metavar="N", help="That decode and upload.")
    ] = _DEFAULT.coroutines,
    output: Annotated[Path, typer.Option(parser=path, metavar="DIR", help="Where the pictures go.")] = _DEFAULT.output,
    window: Annotated[bool, typer.Option("--window", help="Draw in a window instead of offscreen.")] = False,
    json: Json = False,
) -> int:
    """Stream photographs to the GPU and verify every byte.

    Without images these are scikit-image's own photographs.
    """
    require("demo", DEMO_MODULES if images else DEMO_MODULES | SAMPLE_MODULES)
    from .demo import app

    return app.run(
        Options(tuple(images or ()), frames, ring_count, buffer_size, coroutines, output, window, as_json=json)
    )


def monitor(
    pid: Annotated[int | None, typer.Argument(metavar="PID", help="Default: the only one that can be watched.")] = None,
    once: Annotated[bool, typer.Option("--once", help="One picture; with --json one sample.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Lines of JSON; docs/monitor.md has their fields.")] = False,
    interval: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between two pictures. Default: 0.2.", show_default=False)
    ] = None,
) -> int:
    """What the rings of a running program do, live."""
    from .monitor import app

    return app.run(pid, once, json, interval)


def trace(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="What follows it is for the script.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGUMENT", hidden=True)] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", parser=path, metavar="FILE", help="The trace. Default: trace.json.")
    ] = Path("trace.json"),
    is_module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module.")] = False,
) -> int:
    """Run a script, and write what its rings do, for Perfetto."""
    from . import tracer

    return tracer.run(script, arguments or [], output, is_module=is_module)


def bench(arguments: Annotated[list[str] | None, typer.Argument(metavar="NAME")] = None) -> int:
    """Run the benchmarks of a source checkout."""
    from . import checkout

    return checkout.bench(arguments or [])


# What follows `bench`, --help included, is for `python -m benchmarks`.
BENCH: dict[str, Any] = {"add_help_option": False, "context_settings": {"ignore_unknown_options": True}}

# Options behind the script are the script's.
TRACE: dict[str, Any] = {"context_settings": {"allow_interspersed_args": False}}

COMMANDS: tuple[tuple[Callable[..., int], dict[str, Any]], ...] = (
    (info, {}),
    (doctor, {}),
    (inspect, {}),
    (monitor, {}),
    (trace, TRACE),
    (demo, {}),
    (bench, BENCH),
)
"""In the order of the help, with typer's settings."""


def build() -> typer.Typer:
    app = typer.Typer(
        name=NAME,
        help="Asyncio-native GPU uploads for wgpu-py.",
        epilog="Each command has --help of its own. Exit statuses: 0 done, 1 failed, 2 yours to put right.",
        rich_markup_mode=None,  # plain help, which reads the same everywhere: framed, it names Python's types
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for command, settings in COMMANDS:
        app.command(**settings)(command)
    return app


def tell_version(asked: bool) -> None:
    if asked:
        import aiostage

        print(f"{NAME} {aiostage.__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """What stands before a command."""


def parse(arguments: Sequence[str]) -> None:
    """Only look whether there is such a command, and whether it takes these; typer's errors say what is wrong."""
    name, *others = arguments
    group: Any = typer.main.get_command(build())
    group.commands[name].make_context(name, others)


def run(arguments: Sequence[str]) -> int:
    """Parse and run. Not by way of typer's `main`, whose ends are others than those of `status`."""
    app = build()
    if COMPLETION in os.environ:
        app(prog_name=NAME)
    command = typer.main.get_command(app)
    try:
        with command.make_context(NAME, list(arguments)) as context:
            status: int = command.invoke(context)
            return status
    except typer.Exit as end:  # --help and --version
        return end.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer's errors have it, whose home differs between its releases
            raise
        is_of_command = any(arguments[0] == command.__name__ for command, _ in COMMANDS)
        where = f"{NAME} {arguments[0]}" if is_of_command else NAME
        raise UsageError(f"{error.format_message().rstrip('.')} (see {where} --help)") from None
