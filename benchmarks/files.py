"""Parts of a file to the GPU: by the carrier's threads, through a memory map by this library and by wgpu itself, and
read into the view of a slot; from the page cache, and from the disk."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import wgpu

import aiostage
from aiostage.data.files import FileRange

from .lag import watch_timer
from .machine import print_table, spread
from .throughput import COROUTINES

MiB = aiostage.MiB
SIZES = (1 * MiB, 4 * MiB, 16 * MiB)

NAMES = (
    "a range of the file",
    "np.memmap and ring.write_buffer",
    "np.memmap and queue.write_buffer, in threads",
    "readinto a slot's view",
)

Way = Callable[[Any, int, int], Awaitable[Any]]


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """GB/s and loop lag of each way at each size, rounds interleaved; each round goes through the file once."""
    size, rounds = (128 * MiB, 2) if quick else (1024 * MiB, 5)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        write_file(path, size)
        async with aiostage.StagingRing(device) as ring:
            for part in SIZES:
                for cached in (True, False):
                    key = f"{part // MiB} MiB, {'from the page cache' if cached else 'from the disk'}"
                    figures[key] = await compare(device, ring, path, size, part, cached, rounds)
    show(figures)
    return figures


def write_file(path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for _ in range(size // (64 * MiB)):
            file.write(rng.bytes(64 * MiB))
        file.flush()
        os.fsync(file.fileno())


async def compare(
    device: wgpu.GPUDevice, ring: aiostage.StagingRing, path: Path, size: int, part: int, cached: bool, rounds: int
) -> dict[str, Any]:
    usage = wgpu.BufferUsage.COPY_DST
    targets = [device.create_buffer(size=part, usage=usage) for _ in range(COROUTINES)]
    found: dict[str, dict[str, list[float]]] = {name: {"rates": [], "lags": []} for name in NAMES}
    for turn in range(rounds + 1):
        for name in NAMES:
            prepare(path, cached)
            lags: list[float] = []
            watch = asyncio.create_task(watch_timer(lags))
            seconds = await once(ring, path, name, targets, size, part)
            watch.cancel()
            if turn:
                found[name]["rates"].append(size / seconds / 1e9)
                found[name]["lags"] += lags
    for target in targets:
        target.destroy()
    return {
        name: {"GB/s": spread(of["rates"]), "lag_ms": spread(of["lags"], 1e3) if of["lags"] else None}
        for name, of in found.items()
    }


def prepare(path: Path, cached: bool) -> None:
    """Have the whole file in the page cache, or nothing of it."""
    gc.collect()  # no map of it is left, whose pages would stay
    with path.open("rb") as file:
        if cached:
            while file.read(64 * MiB):
                pass
        else:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def once(ring: aiostage.StagingRing, path: Path, name: str, targets: list[Any], size: int, part: int) -> float:
    """Seconds from opening the file until the GPU has all of it."""
    started = time.perf_counter()
    ways = Ways(ring, path)
    way = ways.ways[name]
    offsets = iter(range(0, size, part))

    async def stream(target: Any) -> None:
        fence = None
        for offset in offsets:
            fence = await way(target, offset, part)
        if fence is not None:
            await fence

    await asyncio.gather(*map(stream, targets))
    seconds = time.perf_counter() - started
    ways.close()
    return seconds


class Ways:
    """Each uploads a part of the file and returns a fence."""

    def __init__(self, ring: aiostage.StagingRing, path: Path) -> None:
        self._ring, self._path = ring, path
        self._threads = ThreadPoolExecutor(ring._threads)
        self._file = path.open("rb", buffering=0)
        self._map = np.memmap(path, np.uint8, "r")  # whose pages are not there yet
        self._range = FileRange(path)
        ways = (self.by_range, self.by_map, self.by_queue, self.by_slots)
        self.ways: dict[str, Way] = dict(zip(NAMES, ways, strict=True))

    async def by_range(self, target: Any, offset: int, part: int) -> Any:
        return await self._ring.write_buffer(target, 0, self._range.part(offset, part))

    async def by_map(self, target: Any, offset: int, part: int) -> Any:
        return await self._ring.write_buffer(target, 0, self._map[offset : offset + part])

    async def by_queue(self, target: Any, offset: int, part: int) -> Any:
        """wgpu keeps what was written until the next submit, and only with that has the GPU copy it."""
        loop, queue = asyncio.get_running_loop(), self._ring.device.queue
        data = self._map[offset : offset + part]
        await loop.run_in_executor(self._threads, queue.write_buffer, target, 0, data)
        return await self._ring.submit()

    async def by_slots(self, target: Any, offset: int, part: int) -> Any:
        """In pieces of the size of a staging buffer."""
        ring, loop = self._ring, asyncio.get_running_loop()
        for at in range(0, part, ring.buffer_size):
            slot = await ring.allocate(min(ring.buffer_size, part - at))
            with slot:
                await loop.run_in_executor(self._threads, os.preadv, self._file.fileno(), [slot.view], offset + at)
                slot.copy_to_buffer(target, at)
            fence = await ring.submit()
        return fence

    def close(self) -> None:
        self._threads.shutdown()
        self._file.close()
        self._range.close()


HEADER = ("parts", "way", "GB/s", "a range is ×", "loop lag p99 ms")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for key, ways in figures.items():
        ours = ways["a range of the file"]["GB/s"]["p50"]
        for name, at in ways.items():
            rate, lag = at["GB/s"]["p50"], at["lag_ms"]
            table.append((key, name, f"{rate:.2f}", f"{ours / rate:.2f}", f"{lag['p99']:.2f}" if lag else "–"))
    return table


def show(figures: dict[str, Any]) -> None:
    print_table("Parts of a file", rows(figures), HEADER)
