"""What `atomic=True` costs, and what it is for: frames of 4k that are looked at while they are uploaded."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import wgpu

import aiostage

from .machine import print_table, spread

WIDTH, HEIGHT = 3840, 2160
NBYTES = WIDTH * HEIGHT * 4
RINGS: dict[str, dict[str, int]] = {"3 × 1 MiB": {"ring_count": 3, "buffer_size": aiostage.MiB}, "by default": {}}
WAYS = {"plain": False, "atomic=True": True}


class Looks:
    """Submits of the program's own, each of which copies the texture to a buffer that is read back."""

    def __init__(self, device: wgpu.GPUDevice, texture: wgpu.GPUTexture) -> None:
        self._device, self._texture = device, texture
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
        self._buffer = device.create_buffer(size=NBYTES, usage=usage)
        self.count = self.torn = 0

    async def look(self) -> None:
        await asyncio.sleep(self.count % 16 * 1e-3)  # or it would always come right after a frame's end
        encoder = self._device.create_command_encoder()
        layout = {"buffer": self._buffer, "bytes_per_row": WIDTH * 4, "rows_per_image": HEIGHT}
        encoder.copy_texture_to_buffer({"texture": self._texture}, layout, (WIDTH, HEIGHT, 1))
        self._device.queue.submit([encoder.finish()])
        await self._buffer.map_async(wgpu.MapMode.READ)
        words = np.frombuffer(self._buffer.read_mapped(), np.uint32)
        self._buffer.unmap()
        self.count += 1
        self.torn += bool((words != words[0]).any())


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """For each ring and way: looks and how many were torn; GB/s of one task, and of two with a texture each."""
    looks, seconds, rounds = (20, 0.3, 2) if quick else (200, 1.0, 5)
    frames = [np.full((HEIGHT, WIDTH), number, np.uint32) for number in range(4)]
    figures: dict[str, Any] = {"bytes": NBYTES}
    for name, options in RINGS.items():
        figures[name] = {way: {"rates": [], "rates_of_two": []} for way in WAYS}
        async with aiostage.StagingRing(device, **options) as ring:
            textures = [new_texture(device) for _ in range(2)]
            for way, atomic in WAYS.items():
                figures[name][way] |= await watch(device, ring, textures[0], frames, atomic, looks)
            for _ in range(rounds):
                for way, atomic in WAYS.items():
                    found = figures[name][way]
                    found["rates"].append(await rate(ring, textures[:1], frames, atomic, seconds))
                    found["rates_of_two"].append(await rate(ring, textures, frames, atomic, seconds))
            figures[name]["scratch_bytes"] = ring.stats_nowait().scratch_bytes
        for way in WAYS:
            for key in ("rates", "rates_of_two"):
                figures[name][way][key] = spread(figures[name][way][key])
    show(figures)
    return figures


def new_texture(device: wgpu.GPUDevice) -> wgpu.GPUTexture:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=(WIDTH, HEIGHT, 1), format="rgba8unorm", usage=usage)


async def watch(
    device: wgpu.GPUDevice, ring: aiostage.StagingRing, texture: Any, frames: list[Any], atomic: bool, count: int
) -> dict[str, int]:
    """Look while frames are uploaded without a pause."""
    looks, over = Looks(device, texture), False

    async def upload() -> None:
        number = 0
        while not over:
            await (await ring.write_texture({"texture": texture}, frames[number % len(frames)], atomic=atomic))
            number += 1

    task = asyncio.create_task(upload())
    while looks.count < count:
        await looks.look()
    over = True
    await task
    return {"looks": looks.count, "torn": looks.torn}


async def rate(
    ring: aiostage.StagingRing, textures: list[Any], frames: list[Any], atomic: bool, seconds: float
) -> float:
    """GB/s until the GPU has it all: a task for each texture, two frames of each in flight."""
    started, uploaded = time.perf_counter(), 0

    async def upload(texture: Any) -> None:
        nonlocal uploaded
        before = last = None
        while time.perf_counter() - started < seconds:
            frame = frames[uploaded % len(frames)]
            before, last = last, await ring.write_texture({"texture": texture}, frame, atomic=atomic)
            uploaded += 1
            if before is not None:
                await before
        if last is not None:
            await last

    await asyncio.gather(*map(upload, textures))
    return uploaded * NBYTES / (time.perf_counter() - started) / 1e9


def show(figures: dict[str, Any]) -> None:
    rows = [
        (
            f"{ring}, {way}",
            f"{found['torn']} of {found['looks']}",
            f"{found['rates']['p50']:.2f}",
            f"{found['rates_of_two']['p50']:.2f}",
        )
        for ring in RINGS
        for way, found in ((way, figures[ring][way]) for way in WAYS)
    ]
    print_table(f"Frames of {NBYTES / 1e6:.0f} MB", rows, ("ring", "torn looks", "GB/s", "GB/s, two at once"))
