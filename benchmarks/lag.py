"""The event loop's lag while eight coroutines upload, beside that of an idle loop, and of one beside threads that only
copy."""

from __future__ import annotations

import asyncio
import ctypes
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
    """Lags in ms, ten seconds of each, a round of each in turn."""
    seconds, rounds = (0.5, 2) if quick else (2.5, 4)
    lags: dict[str, list[float]] = {}
    async with aiostage.StagingRing(device) as ring:
        copies = BareCopies(ring._threads)
        ways: dict[str, Callable[[float], Awaitable[None]]] = {"idle": asyncio.sleep, "bare copies": copies.go_on}
        ways |= {f"uploads of {size // MiB} MiB": Uploads(device, ring, size).go_on for size in SIZES}
        for _ in range(rounds):
            for name, go_on in ways.items():
                watch = asyncio.create_task(watch_lag(lags.setdefault(name, [])))
                await go_on(seconds)
                watch.cancel()
    figures = {name: spread(values, 1e3) for name, values in lags.items()}
    show(figures)
    return figures


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


HEADER = ("loop beside", "lag p50 ms", "p99", "max", "p99 over bare copies'")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    base = figures["bare copies"]["p99"]
    return [
        (name, *(f"{at[quantile]:.3f}" for quantile in ("p50", "p99", "max")), f"{at['p99'] / base:.2f}")
        for name, at in figures.items()
    ]


def show(figures: dict[str, Any]) -> None:
    print_table("The loop's lag", rows(figures), HEADER)
