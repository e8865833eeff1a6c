"""Arguments, and numbers as they are typed. Mistakes are errors as argparse prints them; `commands` makes typer's of
them."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
LONGEST = 4000  # digits that `int` takes


class Parser(argparse.ArgumentParser):
    """For scripts of a checkout: reports a mistake in one line, where argparse would print the usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parse_size(text: str) -> int:
    """Bytes from `262144`, `256K`, `256KiB`, `1M` or `1MiB` (all binary: K is 1024)."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(?:i?b)?", text.strip().lower())
    if match is None or len(text) > LONGEST:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a size; write 262144, 256K or 1MiB")
    return int(match[1]) * UNITS[match[2]]


def parse_count(text: str) -> int:
    """A whole number from 1 up."""
    if not re.fullmatch(r"\d+", text) or len(text) > LONGEST or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 up")
    return int(text)


def parse_minutes(text: str) -> float:
    """A number of minutes above 0."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of minutes above 0")
    return minutes
