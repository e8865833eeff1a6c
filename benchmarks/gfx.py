"""Streams into pygfx's textures, beside pygfx's own ways: video in 4k, and a volume that arrives in slabs.

Each way has a scene of its own, drawn 60 times a second to a texture while the texels arrive, and then as fast as it
goes: the one says how long draws take and how late the loop is, the other how much a second gets there.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import wgpu

import aiostage

from .lag import watch_timer
from .machine import print_table, spread

PICTURE = 320, 180
PLAIN = {"pixel_scale": 1, "pixel_filter": "nearest", "ppaa": "none"}  # a draw's own part is not what is measured
DRAWS = 60  # a second
AHEAD = 2  # draws that the GPU may not have done, at its fastest

NOTHING = "nothing arrives"

Write = Callable[[Any, tuple[int, int, int]], Awaitable[object]]


class Workload:
    """What arrives: pieces of a texture, over and over."""

    def __init__(self, shape: tuple[int, ...], depth: int, dim: int, a_second: int) -> None:
        self.shape, self.depth, self.dim, self.a_second = shape, depth, dim, a_second
        rng = np.random.default_rng(1)
        block = rng.integers(0, 255, (depth, *shape[1:]), dtype=np.uint8)
        self._pieces = [np.roll(block, turn, axis=2) for turn in range(4)]
        self.nbytes = block.nbytes

    def pieces(self) -> Iterator[tuple[Any, tuple[int, int, int]]]:
        """Each with the place that it is for."""
        turn = 0
        while True:
            for z in range(0, self.shape[0], self.depth):
                yield self._pieces[turn % 4], (0, 0, z)
                turn += 1

    @property
    def texture(self) -> dict[str, Any]:
        depth, height, width, *channels = self.shape
        return {"dim": self.dim, "size": (width, height, depth), "format": "4xu1" if channels else "u1"}


WORKLOADS = {
    "4k RGBA, 30 frames a second": Workload((1, 2160, 3840, 4), 1, 2, 30),
    "512³ in slabs of 16, 60 a second": Workload((512, 512, 512), 16, 3, 60),
}


class Scene:
    """One texture, and a renderer that draws it to another."""

    def __init__(self, gfx: Any, work: Workload, has_data: bool) -> None:
        options: dict[str, Any] = {"usage": wgpu.TextureUsage.COPY_DST}
        data = np.zeros(work.shape, np.uint8) if has_data else None
        self.texture = gfx.Texture(data, **work.texture, **options)
        geometry = gfx.Geometry(grid=self.texture)
        if work.dim == 2:
            shown = gfx.Image(geometry, gfx.ImageBasicMaterial(clim=(0, 255)))
        else:
            shown = gfx.Volume(geometry, gfx.VolumeSliceMaterial(clim=(0, 255), plane=(0, 0, 1, -100)))
        self._scene = gfx.Scene()
        self._scene.add(shown)
        self._camera = gfx.OrthographicCamera()
        self._camera.show_object(shown, view_dir=(0, 0, -1))
        target = gfx.Texture(dim=2, size=(*PICTURE, 1), format=wgpu.TextureFormat.rgba8unorm)
        self._renderer = gfx.WgpuRenderer(target, **PLAIN)
        self.draw()

    def draw(self) -> float:
        """Seconds that it held the loop."""
        started = time.perf_counter()
        self._renderer.render(self._scene, self._camera)
        return time.perf_counter() - started


class Ways:
    """How texels get into a scene's texture. Those of pygfx's wait for the next draw."""

    has_data: dict[str, bool] = {  # noqa: RUF012
        "aiostage": False,
        "aiostage, with data on the CPU": True,
        "update_full": True,
        "update_range": True,
        "send_data": False,
        NOTHING: False,
    }

    def __init__(self, scene: Scene, stream: Any) -> None:
        texture = scene.texture

        async def write(piece: Any, place: Any) -> None:
            await stream.write(piece, place)

        def change(piece: Any, place: Any) -> None:
            if texture.data.nbytes == piece.nbytes:
                texture.set_data(piece)  # which pygfx has to spare a copy, and marks it all
            else:
                texture.view[place[2] : place[2] + len(piece)] = piece

        async def update_full(piece: Any, place: Any) -> None:
            change(piece, place)
            texture.update_full()

        async def update_range(piece: Any, place: Any) -> None:
            change(piece, place)
            width, height, _ = texture.size
            texture.update_range(place, (width, height, len(piece)))

        async def send_data(piece: Any, place: Any) -> None:
            texture.send_data(place, piece)

        async def nothing(piece: Any, place: Any) -> None:
            """What a draw costs by itself."""

        writes = (write, write, update_full, update_range, send_data, nothing)
        self.by_name: dict[str, Write] = dict(zip(self.has_data, writes, strict=True))


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """For each workload and way: ms of draws and of the loop's lag when it arrives in time, and GB/s at its fastest."""
    import pygfx as gfx

    gfx.renderers.wgpu.select_adapter(device.adapter)
    wgpu.preconfigure_default_device("benchmarks", preferred_features={"mappable-primary-buffers"})  # cached staging
    rounds, seconds = (1, 0.3) if quick else (3, 1.2)
    figures: dict[str, Any] = {"picture": PICTURE, "pygfx": gfx.__version__, "load": os.getloadavg()[0]}
    for name, work in WORKLOADS.items():
        found: dict[str, Any] = {way: {"draws": [], "lags": [], "rates": [], "late": 0} for way in Ways.has_data}
        size = max(8 * aiostage.MiB, work.nbytes + 4096)  # what fits in a buffer takes no detour to be seen whole
        async with aiostage.StagingRing(gfx.renderers.wgpu.get_shared().device, 3, size) as ring:
            for _ in range(rounds):
                for way in Ways.has_data:
                    await measure(gfx, ring, work, way, seconds, found[way])
        figures[name] = {way: summarise(values) for way, values in found.items()}
        figures[name] |= {"bytes": work.nbytes, "ring_count": ring.ring_count, "buffer_size": ring.buffer_size}
    show(figures)
    return figures


def summarise(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "draw_ms": spread(found["draws"], 1e3),
        "lag_ms": spread(found["lags"], 1e3),
        "GB/s": spread(found["rates"]) if found["rates"] else None,
        "late": found["late"],
    }


async def measure(
    gfx: Any, ring: aiostage.StagingRing, work: Workload, way: str, seconds: float, found: dict[str, Any]
) -> None:
    from aiostage.pygfx import attach

    scene = Scene(gfx, work, Ways.has_data[way])
    write = Ways(scene, await attach(ring, scene.texture)).by_name[way]
    at_once = 2 if way.startswith("aiostage") else 1  # what is marked twice before a draw goes once
    await at_its_fastest(ring, scene, write, work, 0.2, at_once)  # warm-up
    watch = asyncio.create_task(watch_timer(found["lags"]))
    await in_time(scene, write, work, seconds, found)
    watch.cancel()
    if way != NOTHING:
        found["rates"].append(await at_its_fastest(ring, scene, write, work, seconds / 2, at_once))


async def in_time(scene: Scene, write: Write, work: Workload, seconds: float, found: dict[str, Any]) -> None:
    """So many pieces a second, and draws beside them."""
    end = time.perf_counter() + seconds

    async def arrive() -> None:
        due, pieces = time.perf_counter(), work.pieces()
        while time.perf_counter() < end:
            await write(*next(pieces))
            due += 1 / work.a_second
            found["late"] += time.perf_counter() > due
            await asyncio.sleep(max(0, due - time.perf_counter()))

    arriving = asyncio.create_task(arrive())
    due = time.perf_counter()
    while time.perf_counter() < end:
        found["draws"].append(scene.draw())
        due = max(due + 1 / DRAWS, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
    await arriving


async def at_its_fastest(
    ring: aiostage.StagingRing, scene: Scene, write: Write, work: Workload, seconds: float, at_once: int
) -> float:
    """GB/s until the GPU has it all: a draw for each piece, and so many writes that have begun."""
    started, fences, drawn = time.perf_counter(), list[aiostage.Fence](), 0
    pieces = work.pieces()
    writing = [asyncio.ensure_future(write(*next(pieces))) for _ in range(at_once)]
    while writing:
        await writing.pop(0)
        scene.draw()
        if time.perf_counter() - started < seconds:
            writing.append(asyncio.ensure_future(write(*next(pieces))))
        drawn += 1
        fences.append(ring.fence())
        if len(fences) > AHEAD:
            await fences.pop(0)
    await fences[-1]
    return drawn * work.nbytes / (time.perf_counter() - started) / 1e9


PEER = "update_full"
HEADER = ("what arrives", "way", "a draw, ms p50 / p99", f"p99 × {PEER}'s", "loop lag, ms p50 / p99", "×", "GB/s", "×")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for name in WORKLOADS:
        peer = figures[name][PEER]
        for way in Ways.has_data:
            at, cells = figures[name][way], list[str]()
            for key in ("draw_ms", "lag_ms"):
                cells += [f"{at[key]['p50']:.2f} / {at[key]['p99']:.2f}", f"{at[key]['p99'] / peer[key]['p99']:.2f}"]
            rate = at["GB/s"]["p50"] if at["GB/s"] else 0
            rates = (f"{rate:.2f}", f"{rate / peer['GB/s']['p50']:.2f}") if rate else ("–", "–")
            table.append((name, way, *cells, *rates))
    return table


def show(figures: dict[str, Any]) -> None:
    print_table("pygfx: texels that arrive while they are drawn", rows(figures), HEADER)
