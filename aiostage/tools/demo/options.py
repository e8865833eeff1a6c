"""What the demo's command line may say. Imports nothing heavy, so that `--help` and mistakes answer at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB}


class UsageError(Exception):
    """Something the user can put right: printed as one line, exit status 2."""


def first_cause(error: BaseException) -> BaseException:
    """Of the exceptions that ended several tasks, the one to report: an interrupt, else the user's, else the first."""

    def leaves(error: BaseException) -> Iterator[BaseException]:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from leaves(inner)
        else:
            yield error

    ranks = (KeyboardInterrupt, UsageError)
    return min(leaves(error), key=lambda error: [not isinstance(error, rank) for rank in ranks])


@dataclass(frozen=True)
class Options:
    """One demo run, as asked for."""

    images: tuple[Path, ...] = ()
    frames: int = 240
    ring_count: int = 3
    buffer_size: int = MIB
    coroutines: int = 16
    output: Path = Path("aiostage-demo")
    window: bool = False


def parse_size(text: str) -> int:
    """Bytes from `262144`, `256K`, `256KiB`, `1M` or `1MiB` (all binary: K is 1024)."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 262144, 256K or 1MiB")
    return int(match[1]) * UNITS[match[2]]


def parse_count(text: str) -> int:
    """A whole number from 1 up."""
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def parse_minutes(text: str) -> float:
    """A number of minutes above 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return minutes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options; every `dest` is a field of :class:`Options`."""
    default = Options()
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="IMAGE|DIR", help="default: scikit-image's own photographs"
    )
    parser.add_argument("--frames", type=parse_count, default=default.frames, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--ring-count", type=parse_count, default=default.ring_count, metavar="N", help="default: %(default)s buffers"
    )
    parser.add_argument(
        "--buffer-size", type=parse_size, default=default.buffer_size, metavar="BYTES", help="256K, 1M, … (default: 1M)"
    )
    parser.add_argument(
        "--coroutines", type=parse_count, default=default.coroutines, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=default.output,
        metavar="DIR",
        help="where the pictures go (default: %(default)s)",
    )
    parser.add_argument("--window", action="store_true", help="draw in a window instead of offscreen")


def from_arguments(arguments: argparse.Namespace) -> Options:
    """The :class:`Options` of a parsed command line."""
    return Options(
        images=tuple(arguments.images),
        frames=arguments.frames,
        ring_count=arguments.ring_count,
        buffer_size=arguments.buffer_size,
        coroutines=arguments.coroutines,
        output=arguments.output,
        window=arguments.window,
    )
