"""Sustained uploads from numpy arrays, and the event loop's lag meanwhile, against every peer in the same run, and the
limit: the GPU's own copies out of the same kind of staging memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import wgpu

import aiostage

from .machine import print_table, spread

MiB = 1 << 20
SIZES = (1 * MiB, 4 * MiB, 16 * MiB, 64 * MiB)
COROUTINES = 8
LIMIT = "the GPU's own copies of 16 MiB"

Upload = Callable[[Any, "np.ndarray[Any, Any]"], Awaitable[Any]]


class Peers:
    """The ways to get an array into a GPUBuffer. Each uploads one array and returns when the data may be reused."""

    names = ("write_buffer on the loop", "write_buffer in threads")

    def __init__(self, device: wgpu.GPUDevice, ring: aiostage.StagingRing) -> None:
        self.device = device
        self.ring = ring
        self.threads = ThreadPoolExecutor(COROUTINES)
        self.ways: dict[str, Upload] = {
            "aiostage": self.through_ring,
            self.names[0]: self.on_loop,
            self.names[1]: self.in_threads,
        }

    async def through_ring(self, target: Any, data: Any) -> None:
        await self.ring.write_buffer(target, 0, data)

    async def on_loop(self, target: Any, data: Any) -> None:
        self._write(target, data)
        await asyncio.sleep(0)

    async def in_threads(self, target: Any, data: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(self.threads, self._write, target, data)

    def _write(self, target: Any, data: Any) -> None:
        self.device.queue.write_buffer(target, 0, data)
        self.device.queue.submit([])


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """GB/s and loop lag of each way at each size, rounds interleaved."""
    seconds, rounds = (0.3, 2) if quick else (1.0, 5)
    figures: dict[str, Any] = {}
    sizes = SIZES[:3] if quick else SIZES
    async with aiostage.StagingRing(device) as ring:
        figures["ring"] = {"ring_count": ring.ring_count, "buffer_size": ring.buffer_size, "threads": ring._threads}
        for size in sizes:
            peers = Peers(device, ring)
            make = partial(device.create_buffer, size=size, usage=wgpu.BufferUsage.COPY_DST)
            sources = make_sources(size)
            results: dict[str, Any] = {name: {"rates": [], "lags": []} for name in peers.ways}
            for _ in range(rounds):
                for name, upload in peers.ways.items():
                    rate, lags = await measure(device, upload, make, sources, seconds)
                    results[name]["rates"].append(rate)
                    results[name]["lags"] += lags
                rate = torch_rate(sources, seconds / 2)
                if rate:
                    results.setdefault("PyTorch pageable → pinned → device", {"rates": []})["rates"].append(rate)
                limit = results.setdefault(LIMIT, {"rates": []})
                limit["rates"].append(copy_rate(device, BufferCopies(device, 16 * MiB), seconds / 2))
            figures[f"{size // MiB} MiB"] = summarise(results)
    show(figures)
    return figures


def make_sources(size: int) -> list[Any]:
    """Enough different arrays that none is in the processor's cache when its turn comes again."""
    count = max(4, (256 * MiB) // size)
    rng = np.random.default_rng(1)
    block = rng.integers(0, 255, size, dtype=np.uint8)
    return [np.roll(block, i) for i in range(count)]


async def measure(
    device: wgpu.GPUDevice, upload: Upload, make_target: Callable[[], Any], sources: list[Any], seconds: float
) -> tuple[float, list[float]]:
    """GB/s of `COROUTINES` coroutines uploading for `seconds`, GPU copies included, and the loop's lags in seconds."""
    targets = [make_target() for _ in range(COROUTINES)]
    done = 0

    async def stream(index: int) -> None:
        nonlocal done
        turn = index
        while time.perf_counter() < end:
            await upload(targets[index], sources[turn % len(sources)])
            turn += COROUTINES
            done += sources[0].nbytes

    end = time.perf_counter() + seconds / 5  # warm-up
    await asyncio.gather(*(stream(i) for i in range(COROUTINES)))
    device._poll_wait()
    lags: list[float] = []
    watch = asyncio.create_task(watch_lag(lags))
    done, started = 0, time.perf_counter()
    end = started + seconds
    await asyncio.gather(*(stream(i) for i in range(COROUTINES)))
    watch.cancel()
    device._poll_wait()
    rate = done / (time.perf_counter() - started) / 1e9
    for target in targets:
        target.destroy()
    return rate, lags


async def watch_lag(lags: list[float]) -> None:
    """Overshoot of a 1 ms sleep, in seconds, until cancelled."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append(time.perf_counter() - started - 0.001)


class BufferCopies:
    """The GPU's copies out of staging memory into buffers, one destination each."""

    def __init__(self, device: wgpu.GPUDevice, size: int) -> None:
        self.size = size
        self.sources = [staging_buffer(device, size) for _ in range(3)]
        self.targets = [device.create_buffer(size=size, usage=wgpu.BufferUsage.COPY_DST) for _ in range(3)]

    def record(self, encoder: Any, turn: int) -> None:
        encoder.copy_buffer_to_buffer(self.sources[turn % 3], 0, self.targets[turn % 3], 0, self.size)


def staging_buffer(device: wgpu.GPUDevice, size: int) -> Any:
    """One of the kind that a ring has: in the host's cache, where the device has that."""
    is_cached = "mappable-primary-buffers" in device.features
    mode = wgpu.BufferUsage.MAP_READ if is_cached else wgpu.BufferUsage.MAP_WRITE
    return device.create_buffer(size=size, usage=mode | wgpu.BufferUsage.COPY_SRC)


def copy_rate(device: wgpu.GPUDevice, copies: Any, seconds: float) -> float:
    """GB/s of the GPU's copies, as many in a submit as make 512 MiB: what no upload can exceed."""
    count = max(4, 512 * MiB // copies.size)

    def submit() -> None:
        encoder = device.create_command_encoder()
        for turn in range(count):
            copies.record(encoder, turn)
        device.queue.submit([encoder.finish()])
        device._poll_wait()

    submit()  # the first time, memory is cleared
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        submit()
        done += count * copies.size
    return done / (time.perf_counter() - started) / 1e9


def torch_rate(sources: list[Any], seconds: float) -> float | None:
    """GB/s of PyTorch's copy to pinned memory and on to the device, or None without PyTorch and CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    host = [torch.from_numpy(source) for source in sources[:16]]
    pinned = [torch.empty_like(host[0]).pin_memory() for _ in range(3)]
    device = [torch.empty_like(host[0], device="cuda") for _ in range(3)]
    events = [torch.cuda.Event() for _ in range(3)]
    done = turn = 0
    torch.cuda.synchronize()
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        slot = turn % 3
        events[slot].synchronize()
        pinned[slot].copy_(host[turn % len(host)])
        device[slot].copy_(pinned[slot], non_blocking=True)
        events[slot].record()
        done += host[0].numel()
        turn += 1
    torch.cuda.synchronize()
    return done / (time.perf_counter() - started) / 1e9


def summarise(results: dict[str, Any]) -> dict[str, Any]:
    figures = {}
    for name, result in results.items():
        figures[name] = {"GB/s": spread(result["rates"])}
        if result.get("lags"):
            figures[name]["lag_ms"] = spread(result["lags"], 1e3)
    return figures


HEADER = ("way", "GB/s", "aiostage is ×", "lag p50 ms", "p99", "max")


def rows(ways: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of the ways at one size."""
    ours = ways["aiostage"]["GB/s"]["p50"]
    table = []
    for name, result in ways.items():
        rate, lag = result["GB/s"]["p50"], result.get("lag_ms")
        lags = [f"{lag[p]:.2f}" for p in ("p50", "p99", "max")] if lag else ["–"] * 3
        table.append((name, f"{rate:.2f}", f"{ours / rate:.2f}", *lags))
    return table


def show(figures: dict[str, Any]) -> None:
    for size, ways in figures.items():
        if "aiostage" in ways:
            print_table(f"{size}, {COROUTINES} coroutines", rows(ways), HEADER)
