"""From the options of `aiostage monitor` to its exit status."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING

from ..printing import printable
from ..status import UsageError
from .history import History
from .reading import Program, is_running, open_program

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
            _copy(found, once, interval or 0.0)
        elif once:
            _draw_once(found)
        else:
            print(_show(found, interval))
    finally:
        found.close()
    return 0


def _copy(program: Program, once: bool, interval: float) -> None:
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


def _draw_once(program: Program) -> None:
    from rich.console import Console

    from .view import View

    history = History()
    for line in islice(program.lines(_SILENT), _ONCE):
        if line is None or line.said["kind"] == "end":
            break
        history.add(line.said)
    console = Console(highlight=False)
    console.print(View(console, program.name, program.pid).draw(history))


def _show(program: Program, interval: float | None) -> str:
    """Live, or line by line where there is no terminal. Returns what to say at the end."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal and not console.is_dumb_terminal:
        return _show_live(_Watch(program, interval or _REDRAW), console)
    return _show_lines(_Watch(program, interval or _LINES))


def _show_live(watch: _Watch, console: Console) -> str:
    from rich.live import Live

    from .view import View

    history, view = watch.history, View(console, watch.program.name, watch.program.pid)
    with (
        _ended_in_order(),
        Live(view.draw(history), console=console, auto_refresh=False, vertical_overflow="ellipsis") as live,
    ):
        for silent in watch:
            note = f"silent for {silent:.0f} s" if silent else ""
            live.update(view.draw(history, note, console.height - 1), refresh=True)
        live.update(view.draw(history, height=console.height - 1), refresh=True)
    return watch.ended


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """A `kill` ends it as Ctrl-C does: with the terminal as it was."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_lines(watch: _Watch) -> str:
    from .view import plain_line

    print(f"aiostage monitor · {watch.program.name} · pid {watch.program.pid}", flush=True)
    for silent in watch:
        lines = [plain_line(ring) for ring in watch.history.rings.values()] or ["no ring is open"]
        for text in [f"silent for {silent:.0f} s"] if silent else lines:
            print(text, flush=True)
    return watch.ended


class _Watch:
    """Reads a program into a history. Iterated over until the program ends: whenever it is time for a picture, with 0,
    or with how many seconds nothing has come for."""

    def __init__(self, program: Program, interval: float) -> None:
        self.program = program
        self.history = History()
        self.ended = ""
        """Why, once it has."""
        self._interval = interval

    def __iter__(self) -> Iterator[float]:
        heard_at, due, samples = time.monotonic(), 0.0, 0
        for line in self.program.lines(max(self._interval, _SILENT)):
            now = time.monotonic()
            if line is None:
                yield now - heard_at
                continue
            heard_at = now
            if line.said["kind"] == "end":
                self.ended = printable(str(line.said.get("reason")))
                return
            self.history.add(line.said)
            samples += 1
            if samples > 1 and now >= due:  # from two on there are rates
                due = now + self._interval * 0.95  # they come a little early or late
                yield 0.0
        is_over = not is_running(self.program.pid)
        self.ended = "the program has ended" if is_over else "the program has closed the connection"
