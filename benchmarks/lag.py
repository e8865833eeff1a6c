"""The event loop's lag while eight coroutines upload, beside that of an idle loop, and of one beside threads that only
copy.

It is measured with a timer of the kernel's, and beside it with sleeps. Those are late by themselves on a loop that is
woken for anything else: asyncio's wait for whole milliseconds, and so for longer than what is left, unless another
event ends the wait.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import wgpu

import aiostage

from .machine import print_table, spread
from .throughput import COROUTINES, make_sources, watch_lag

MiB = aiostage.MiB
SIZES = (1 * MiB, 4 * MiB, 16 * MiB)


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """Lags in ms by `watches`, ten seconds of each, a round of each in turn."""
    seconds, rounds = (0.5, 2) if quick else (2.5, 4)
    lags: dict[str, dict[str, list[float]]] = {}
    async with aiostage.StagingRing(device) as ring:
        copies = BareCopies(ring._threads)
        ways: dict[str, Callable[[float], Awaitable[None]]] = {"idle": asyncio.sleep, "bare copies": copies.go_on}
        ways["bare copies, woken"] = copies.go_on_woken
        ways |= {f"uploads of {size // MiB} MiB": Uploads(device, ring, size).go_on for size in SIZES}
        for _ in range(rounds):
            for name, go_on in ways.items():
                for kind, watch_one in watches.items():
                    values = lags.setdefault(name, {}).setdefault(kind, [])
                    watch = asyncio.create_task(watch_one(values))
                    await go_on(seconds)
                    watch.cancel()
    figures = {name: {kind: spread(found, 1e3) for kind, found in of.items()} for name, of in lags.items()}
    show(figures)
    return figures


class KernelTimer:
    """A timer of Linux that wakes the loop at the time asked for, to the microsecond."""

    def __init__(self, rung: Callable[[], object]) -> None:
        self._rung = rung
        self._libc = ctypes.CDLL(None)
        self._file = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._file, self._ring)

    def set(self, at: float, every: float = 0.0) -> None:
        """To this time of `time.monotonic`, and then again every so many seconds."""
        times = (ctypes.c_long * 4)(0, int(every * 1e9), int(at), int(at % 1 * 1e9))
        self._libc.timerfd_settime(self._file, 1, times, None)  # absolute

    def _ring(self) -> None:
        os.read(self._file, 8)
        self._rung()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._file)
        os.close(self._file)


async def watch_timer(lags: list[float]) -> None:
    """How late a task runs that a timer of the kernel's wakes each ms, in seconds, until cancelled."""
    rung = asyncio.Event()
    timer = KernelTimer(rung.set)
    try:
        while True:
            due = time.monotonic() + 0.001
            timer.set(due)
            await rung.wait()
            rung.clear()
            lags.append(time.monotonic() - due)
    finally:
        timer.close()


watches = {"timer": watch_timer, "sleep": watch_lag}


class Uploads:
    """Eight coroutines that upload, each to a buffer of its own."""

    def __init__(self, device: wgpu.GPUDevice, ring: aiostage.StagingRing, size: int) -> None:
        self._ring, self._sources = ring, make_sources(size)
        usage = wgpu.BufferUsage.COPY_DST
        self._targets = [device.create_buffer(size=size, usage=usage) for _ in range(COROUTINES)]

    async def go_on(self, seconds: float) -> None:
        end = time.perf_counter() + seconds

        async def stream(index: int) -> None:
            turn = index
            while time.perf_counter() < end:
                await self._ring.write_buffer(self._targets[index], 0, self._sources[turn % len(self._sources)])
                turn += COROUTINES

        await asyncio.gather(*(stream(index) for index in range(COROUTINES)))


class BareCopies:
    """As many threads as the ring has, that copy memory and need the interpreter only now and then."""

    def __init__(self, threads: int) -> None:
        self._arrays = [np.ones((2, 64 * MiB), np.uint8) for _ in range(threads)]
        self._copy = ctypes.CDLL(None).memcpy
        self._copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

    async def go_on(self, seconds: float) -> None:
        end = time.perf_counter() + seconds

        def copy(target: Any, source: Any) -> None:
            where = target.ctypes.data, source.ctypes.data, source.nbytes
            while time.perf_counter() < end:
                self._copy(*where)

        threads = [threading.Thread(target=copy, args=tuple(arrays)) for arrays in self._arrays]
        for thread in threads:
            thread.start()
        await asyncio.sleep(seconds)
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)

    async def go_on_woken(self, seconds: float) -> None:
        """And the loop is woken as often as beside uploads of 16 MiB, and then does nothing."""
        timer = KernelTimer(lambda: None)
        timer.set(time.monotonic(), every=125e-6)
        await self.go_on(seconds)
        timer.close()


HEADER = ("loop beside", "lag p50 ms", "p99", "max", "p99 over bare copies'", "of a sleep: p99 ms")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    base = figures["bare copies"]["timer"]["p99"]
    return [
        (
            name,
            *(f"{at['timer'][quantile]:.3f}" for quantile in ("p50", "p99", "max")),
            f"{at['timer']['p99'] / base:.2f}",
            f"{at['sleep']['p99']:.3f}",
        )
        for name, at in figures.items()
    ]


def show(figures: dict[str, Any]) -> None:
    print_table("The loop's lag", rows(figures), HEADER)
