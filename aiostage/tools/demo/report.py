"""Saying what happens: a live display on a terminal, plain lines elsewhere, the statistics at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ...budget import size_text
from ..printing import may_escape, open_console
from .observe import Observer, Sample
from .stream import LEVELS, Progress

COLOURS = {"available": "bright_black", "in_use": "dodger_blue1", "fenced": "orange1"}
HISTORY = 48  # cells
RECENT_LAGS = 200  # one second's
LINE_SECONDS = 1.0


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


class Reporter:
    """Follows one run. The display reads snapshots only, so that rich may draw it from a thread of its own."""

    def __init__(self, observer: Observer, progress: Progress, frames: int, is_quiet: bool) -> None:
        self._observer, self._progress, self._frames = observer, progress, frames
        self._is_quiet, self._is_live = is_quiet, may_escape() and not is_quiet
        self._mark = (0.0, 0)  # time and bytes when the rate was last asked for
        self._rate = 0.0

    @contextmanager
    def display(self) -> Iterator[None]:
        """Show the live display while inside; nothing where stdout is no terminal that can move its cursor."""
        if not self._is_live:
            yield
            return
        with Live(console=open_console(), get_renderable=self._render, refresh_per_second=10):
            yield

    async def print_for_ever(self) -> None:
        """Print a line a second; nothing beside the live display."""
        while not (self._is_live or self._is_quiet):
            await anyio.sleep(LINE_SECONDS)
            print(self._line(), flush=True)

    def _line(self) -> str:
        progress, observer = self._progress, self._observer
        states = " ".join(state.value for state in observer.latest.buffer_states)
        return (
            f"{observer.clock():5.1f} s  round {progress.level + 1}/{len(LEVELS)}  {progress.uploads} tiles  "
            f"{progress.frames} frames  {self._current_rate()}  {observer.latest.buffer_stalls} stalls  "
            f"lag p99 {ms(observer.lag(99, RECENT_LAGS))}  [{states}]"
        )

    def _current_rate(self) -> str:
        now, then = (self._observer.clock(), self._progress.bytes), self._mark
        if now[0] - then[0] >= 0.3:
            self._rate = (now[1] - then[1]) / (now[0] - then[0])
            self._mark = now
        return f"{self._rate / 1e6:.0f} MB/s"

    def _render(self) -> Panel:
        progress, observer = self._progress, self._observer
        stats = observer.latest
        table = Table.grid(padding=(0, 2))
        table.add_row("tiles", bar(progress.uploads, progress.uploads_planned), count_of(progress.uploads, "uploaded"))
        table.add_row("frames", bar(progress.frames, self._frames), count_of(progress.frames, "drawn"))
        recent = observer.samples[-HISTORY:]
        for index, state in enumerate(stats.buffer_states):
            table.add_row(f"buffer {index}", history(recent, index), Text(state.value, COLOURS[state.value]))
        figures = (
            f"{self._current_rate()}    {stats.buffer_stalls} stalls, {stats.waiters} waiting    "
            f"loop lag p50 {ms(observer.lag(50, RECENT_LAGS))}, p99 {ms(observer.lag(99, RECENT_LAGS))}"
        )
        title = f"aiostage  {stats.ring_count} × {size_text(stats.buffer_size)}"
        return Panel(Group(table, Text(figures)), title=title, title_align="left", expand=False)


def bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=min(done, total), width=HISTORY)


def count_of(count: int, what: str) -> str:
    return f"{count} {what}".ljust(16)


def history(samples: list[Sample], index: int) -> Text:
    """A cell for each recorded change, the latest at the right."""
    text = Text("·" * (HISTORY - len(samples)), "bright_black")
    for sample in samples:
        text.append("█", COLOURS[sample.states[index]])
    return text


def figures(observer: Observer, progress: Progress, coroutines: int) -> dict[str, Any]:
    """The run in figures, as they are in the document of `--json`. Times are in seconds."""
    stats = observer.latest
    return {
        "ring": {"ring_count": stats.ring_count, "buffer_size": stats.buffer_size},
        "coroutines": coroutines,
        "uploads": progress.uploads,
        "nbytes": progress.bytes,
        "frames": progress.frames,
        "seconds": max(observer.clock(), 1e-9),
        "stalls": {
            "allocations": stats.allocations_total,
            "waited": stats.buffer_stalls,
            "seconds": stats.stall_seconds,
        },
        "submits": stats.submits,
        "fences": {"p50": stats.fence_latency_p50, "p99": stats.fence_latency_p99},
        "loop_lag": {"p50": observer.lag(50), "p99": observer.lag(99), "max": observer.lag(100)},
    }


def print_statistics(observer: Observer, progress: Progress, coroutines: int) -> None:
    """The run in figures."""
    run = figures(observer, progress, coroutines)
    ring, seconds, stalls, fences, lag = (run[name] for name in ("ring", "seconds", "stalls", "fences", "loop_lag"))
    memory = f"{ring['ring_count']} × {size_text(ring['buffer_size'])} of staging memory"
    rows = {
        "uploads": f"{run['uploads']} tiles, {size_text(run['nbytes'])}, by {coroutines} coroutines through {memory}",
        "rate": f"{run['nbytes'] / seconds / 1e6:.1f} MB/s over {seconds:.2f} s",
        "frames": f"{run['frames']} drawn, {run['frames'] / seconds:.1f} per second",
        "stalls": f"{stalls['waited']} suspensions of an allocation, {stalls['seconds']:.2f} s together",
        "submits": f"{run['submits']} with {stalls['allocations']} allocations",
        "fences": f"p50 {ms(fences['p50'])}, p99 {ms(fences['p99'])} from submit to completion",
        "loop lag": f"p50 {ms(lag['p50'])}, p99 {ms(lag['p99'])}, max {ms(lag['max'])}",
    }
    for name, text in rows.items():
        print(f"{name:<9} {text}", flush=True)
