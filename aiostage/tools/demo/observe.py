"""Watching what the ring and the event loop do during a run, for those who look on. The trace has it in full."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import numpy as np

import aiostage

SAMPLE_PERIOD = 0.002  # s
LAG_PERIOD = 0.005  # s


@dataclass(frozen=True)
class Sample:
    """The ring at one moment. `stalls` counts from the start of the run."""

    time: float
    states: tuple[str, ...]
    stalls: int
    waiters: int
    bytes_total: int


@dataclass
class Observer:
    """Samples the ring's statistics and measures how late the event loop wakes a sleeping task."""

    snapshot: Callable[[], aiostage.StagingStats]
    started: float = field(default_factory=time.perf_counter)
    samples: list[Sample] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)  # s
    latest: aiostage.StagingStats = field(init=False)
    stopped: float | None = None  # when the run ended, by the run's clock

    def __post_init__(self) -> None:
        self.look()

    def clock(self) -> float:
        """Seconds since the run began, until it was stopped."""
        return time.perf_counter() - self.started if self.stopped is None else self.stopped

    def stop(self) -> None:
        """Take the last sample and stop the clock."""
        self.look()
        self.stopped = self.clock()

    def look(self) -> None:
        """Take a sample now; one that shows nothing new only moves the end of the one before."""
        stats = self.latest = self.snapshot()
        states = tuple(str(state.value) for state in stats.buffer_states)
        sample = Sample(self.clock(), states, stats.buffer_stalls, stats.waiters, stats.bytes_total)
        if len(self.samples) > 1 and all(unchanged(sample, before) for before in self.samples[-2:]):
            self.samples.pop()
        self.samples.append(sample)

    async def sample_for_ever(self) -> None:
        while True:
            self.look()
            await anyio.sleep(SAMPLE_PERIOD)

    async def measure_lag_for_ever(self) -> None:
        while True:
            before = time.perf_counter()
            await anyio.sleep(LAG_PERIOD)
            self.lags.append(max(0.0, time.perf_counter() - before - LAG_PERIOD))

    def lag(self, percentile: float, last: int = 0) -> float:
        """A percentile of the loop's lag in seconds, over everything or over the last so many measurements."""
        lags = self.lags[-last:]
        return float(np.percentile(lags, percentile)) if lags else 0.0


def unchanged(a: Sample, b: Sample) -> bool:
    return (a.states, a.stalls, a.waiters, a.bytes_total) == (b.states, b.stalls, b.waiters, b.bytes_total)
