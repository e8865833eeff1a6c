"""From the options of `aiostage monitor` to its exit status."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from ..demo.options import UsageError
from .history import History
from .reading import Line, Program, is_running, open_program

if TYPE_CHECKING:
    from rich.console import Console

_REDRAW = 0.2
_LINES = 1.0
_SILENT = 1.0
_ONCE = 6
"""Samples for the one picture of `--once`."""


def run(pid: int | None, once: bool, as_json: bool, interval: float | None) -> int:
    """Show a program until it ends, or Ctrl-C. 0: it has ended, or the one picture is drawn.

    :param pid: its number; None for the only one that there is. With several they are listed, and the status is 2.
    :param once: one picture, or one sample.
    :param as_json: the lines of the schema as they come.
    :param interval: seconds between two pictures (0.2 by default), lines of text where there is no terminal (1), or
        samples (all of them).
    :raises UsageError: there is no such program.
    """
    if interval is not None and not 0 < interval < float("inf"):
        raise UsageError(f"an interval is a number of seconds above 0, not {interval}")
    found = open_program(pid)
    if isinstance(found, dict):
        for number, name in found.items():
            print(f"{number:>8}  {name}")
        raise UsageError("there are several programs: which one? aiostage monitor PID")
    try:
        if as_json:
            ended = _copy(found, once, interval or 0.0)
        elif once:
            return _draw_once(found)
        else:
            ended = _show(found, interval)
    finally:
        found.close()
    if ended and not as_json:
        print(ended)
    return 0


def _copy(program: Program, once: bool, interval: float) -> str:
    """Print lines as they come; the last says why it ends."""
    due = 0.0
    if not once:
        print(program.hello.text, flush=True)
    for line in program.lines(_SILENT):
        if line is None:
            continue
        if line.said["kind"] == "sample":
            if time.monotonic() < due:
                continue
            due = time.monotonic() + interval * 0.95  # they come a little early or late
        print(line.text, flush=True)
        if once:
            break
    return ""


def _draw_once(program: Program) -> int:
    from rich.console import Console

    from .view import View

    history = History()
    for line in islice(program.lines(_SILENT), _ONCE):
        if line is None or not _take(line, history):
            break
    console = Console(highlight=False)
    console.print(View(console, program.name, program.pid).draw(history))
    return 0


def _show(program: Program, interval: float | None) -> str:
    """Live, or line by line where there is no terminal. Returns what to say at the end."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return _show_live(program, console, interval or _REDRAW)
    return _show_lines(program, interval or _LINES)


def _show_live(program: Program, console: Console, interval: float) -> str:
    from rich.live import Live

    from .view import View

    history, end = History(), [""]
    view = View(console, program.name, program.pid)
    with (
        _ended_in_order(),
        Live(view.draw(history), console=console, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        for silent in _changes(program, history, interval, end):
            note = f"silent for {silent:.0f} s" if silent else ""
            live.update(view.draw(history, note, console.height - 1), refresh=True)
        live.update(view.draw(history, height=console.height - 1), refresh=True)
    return end[0]


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A `kill` ends it as Ctrl-C does: with the terminal as it was."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_lines(program: Program, interval: float) -> str:
    from .view import plain_line

    history, end = History(), [""]
    print(f"aiostage monitor · {program.name} · pid {program.pid}", flush=True)
    for silent in _changes(program, history, interval, end):
        lines = [plain_line(ring) for ring in history.rings.values()] or ["no ring is open"]
        for text in [f"silent for {silent:.0f} s"] if silent else lines:
            print(text, flush=True)
    return end[0]


def _changes(program: Program, history: History, interval: float, end: list[str]) -> Iterator[float]:
    """Add to the history, and yield when it is time for a picture: 0, or for how long nothing has come.

    `end` gets the reason for which it ends.
    """
    heard_at, due, samples = time.monotonic(), 0.0, 0
    for line in program.lines(max(interval, _SILENT)):
        now = time.monotonic()
        if line is None:
            yield now - heard_at
            continue
        heard_at = now
        if not _take(line, history):
            end[0] = str(line.said.get("reason"))
            return
        samples += line.said["kind"] == "sample"
        if samples > 1 and now >= due:  # from two on there are rates
            due = now + interval * 0.95
            yield 0.0
    end[0] = "the program has closed the connection" if is_running(program.pid) else "the program has ended"


def _take(line: Line, history: History) -> bool:
    """Whether there is more to come."""
    kind = line.said["kind"]
    if kind == "sample":
        history.add(line.said)
    return bool(kind != "end")
