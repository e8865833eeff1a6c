"""Textures: sustained uploads (P5), and a stream of 200 MB a frame at 30 frames per second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import numpy as np
import wgpu

import aiostage
from aiostage.data.formats import padded_row

from .machine import print_table, spread
from .throughput import Peers, copy_rate, measure, staging_buffer, summarise, watch_lag
from .throughput import show as show_rates

SHAPES = {"2048 x 2048": (2048, 2048), "1000 x 700": (700, 1000)}
LIMIT = "the GPU's own copies of the same"
CHUNK, CHUNKS, FPS = 1500, 22, 30
"""A frame is 22 chunks of 1500 × 1500 RGBA8, 9 MB each: 198 MB."""


class TexturePeers(Peers):
    """The ways to get an array into a texture."""

    names = ("write_texture on the loop", "write_texture in threads")

    async def through_ring(self, target: Any, data: Any) -> None:
        await self.ring.write_texture({"texture": target}, data)

    def _write(self, target: Any, data: Any) -> None:
        rows, columns, _ = data.shape
        self.device.queue.write_texture({"texture": target}, data, {"bytes_per_row": columns * 4}, (columns, rows, 1))
        self.device.queue.submit([])


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """GB/s of each way at each shape, rounds interleaved; then the frames."""
    seconds, rounds = (0.3, 2) if quick else (1.0, 5)
    figures: dict[str, Any] = {}
    async with aiostage.StagingRing(device) as ring:
        peers = TexturePeers(device, ring)
        for label, shape in SHAPES.items():
            count = max(4, (128 << 20) // (shape[0] * shape[1] * 4))
            sources = [np.full((*shape, 4), i, np.uint8) for i in range(count)]
            make = partial(make_texture, device, shape)
            results: dict[str, Any] = {name: {"rates": [], "lags": []} for name in peers.ways}
            for _ in range(rounds):
                for name, upload in peers.ways.items():
                    rate, lags = await measure(device, upload, make, sources, seconds)
                    results[name]["rates"].append(rate)
                    results[name]["lags"] += lags
                limit = results.setdefault(LIMIT, {"rates": []})
                limit["rates"].append(copy_rate(device, TextureCopies(device, shape), seconds / 2))
            figures[label] = summarise(results)
        show_rates(figures)
        figures["frames"] = await frames(device, ring, 20 if quick else 300)
    show_frames(figures["frames"])
    return figures


class TextureCopies:
    """The GPU's copies of the same texels, out of staging memory with padded rows."""

    def __init__(self, device: wgpu.GPUDevice, shape: tuple[int, int]) -> None:
        self.rows, self.columns = shape
        self.size = self.rows * self.columns * 4  # of the texels; the padding is what this costs
        self.stride = padded_row(self.columns * 4)
        self.sources = [staging_buffer(device, self.stride * self.rows) for _ in range(3)]
        self.targets = [make_texture(device, shape) for _ in range(3)]

    def record(self, encoder: Any, turn: int) -> None:
        source = {"buffer": self.sources[turn % 3], "bytes_per_row": self.stride, "rows_per_image": self.rows}
        size = (self.columns, self.rows, 1)
        encoder.copy_buffer_to_texture(source, {"texture": self.targets[turn % 3]}, size)


def make_texture(device: wgpu.GPUDevice, shape: tuple[int, int]) -> Any:
    return device.create_texture(size=(shape[1], shape[0], 1), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST)


async def frames(device: wgpu.GPUDevice, ring: aiostage.StagingRing, count: int) -> dict[str, Any]:
    """Time that a frame takes, from its start until its uploads are submitted, ms; and how many missed their slot."""
    data = [np.full((CHUNK, CHUNK, 4), i, np.uint8) for i in range(4)]
    textures = [make_texture(device, (CHUNK, CHUNK)) for _ in range(CHUNKS)]

    async def through_ring() -> None:
        async with ring.frame() as frame, asyncio.TaskGroup() as chunks:
            for i, texture in enumerate(textures):
                chunks.create_task(frame.write_texture({"texture": texture}, data[i % 4]))

    async def on_loop() -> None:
        for i, texture in enumerate(textures):
            size = (CHUNK, CHUNK, 1)
            device.queue.write_texture({"texture": texture}, data[i % 4], {"bytes_per_row": CHUNK * 4}, size)
        device.queue.submit([])

    result = {}
    for name, draw in (("aiostage", through_ring), ("write_texture on the loop", on_loop)):
        result[name] = await pace(device, draw, count)
    return result


async def pace(device: wgpu.GPUDevice, draw: Callable[[], Awaitable[None]], count: int) -> dict[str, Any]:
    await draw()
    device._poll_wait()
    times: list[float] = []
    lags: list[float] = []
    watch = asyncio.create_task(watch_lag(lags))
    due, missed = time.perf_counter(), 0
    for _ in range(count):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        started = time.perf_counter()
        await draw()
        ended = time.perf_counter()
        times.append(ended - started)
        due += 1 / FPS
        while due < ended:  # its slot is over: a frame is missed
            due += 1 / FPS
            missed += 1
    watch.cancel()
    device._poll_wait()
    return {"frame_ms": spread(times, 1e3), "lag_ms": spread(lags, 1e3), "missed": missed, "frames": count}


FRAMES_HEADER = ("way", "frame ms p50", "p99", "loop lag p99", "max", "missed")


def frame_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for name, at in figures.items():
        frame, lag = at["frame_ms"], at["lag_ms"]
        cells = [f"{figure:.1f}" for figure in (frame["p50"], frame["p99"], lag["p99"], lag["max"])]
        table.append((name, *cells, f"{at['missed']} of {at['frames'] + at['missed']}"))
    return table


def show_frames(figures: dict[str, Any]) -> None:
    print_table(f"198 MB a frame at {FPS} fps", frame_rows(figures), FRAMES_HEADER)
