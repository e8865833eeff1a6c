"""What an upload costs beside the copying: CPU, waiting in line, resident memory, import time (P1, P3, P6 to P10)."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import psutil
import wgpu

import aiostage

from .machine import print_table, spread, thread_cpu

MiB = aiostage.MiB
UPLOAD = 100_000_000 // 4 * 4

HEADER = ("#", "what", "target", "aiostage", "peer")
TARGETS = {
    "P1": "<= 0.2 + 0.3 ms at 3 × 32 MiB, <= 1 + 7 ms at 3 × 1 MiB (GPU machine)",
    "P3": ">= 0.95 ×",
    "P6": ">= 6 × faster to buffers, >= 5 × to textures",
    "P6 many": ">= 20 × faster, both",
    "P7": "<= 3 µs",
    "P8": "within 1.5 × of the 10-coroutine figure",
    "P9": "+0 after warm-up",
    "P10": "<= 20 ms",
}


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """All figures, in the units that their names say."""
    rounds = 20 if quick else 100
    figures = {
        "transfers_ms": await transfers(device, rounds),
        "P1_overhead_ms": {f"3 x {size} MiB": await overhead(device, size * MiB, rounds) for size in (32, 1)},
        "P3_zero_copy_GB_s": await zero_copy(device, 0.5 if quick else 2.0),
        "P6_small_write_us": await small_writes(device, 3 if quick else 10),
        "P7_allocate_commit_us": await allocate_and_commit(device, 20 if quick else 100),
        "P8_grant_us": await grants(device, 3 if quick else 7),
        "P9_resident_MiB": await resident(device, 2_000 if quick else 10_000),
        "P10_import_ms": import_time(5 if quick else 15),
    }
    show(figures)
    return figures


async def transfers(device: wgpu.GPUDevice, rounds: int) -> dict[str, Any]:
    """Uploads of 1, 10 and 100 MB alone, through a ring of the default size."""
    figures = {}
    async with aiostage.StagingRing(device) as ring:
        for megabytes in (1, 10, 100):
            figures[str(megabytes)] = await uploads_alone(device, ring, megabytes * 1_000_000, rounds)
    return figures


async def overhead(device: wgpu.GPUDevice, buffer_size: int, rounds: int) -> dict[str, Any]:
    """Of 100 MB through a small ring."""
    async with aiostage.StagingRing(device, 3, buffer_size) as ring:
        return await uploads_alone(device, ring, UPLOAD, rounds)


async def uploads_alone(
    device: wgpu.GPUDevice, ring: aiostage.StagingRing, size: int, rounds: int
) -> dict[str, dict[str, float]]:
    """For an upload until its fence, ms: CPU of the loop's thread, CPU of all threads but those that copy, and time."""
    target = device.create_buffer(size=size, usage=wgpu.BufferUsage.COPY_DST)
    data = np.ones(size, np.uint8)
    used: dict[str, list[float]] = {"loop": [], "all": [], "time": []}
    for _ in range(rounds + 3):
        await ring._tracker.wait_all()
        await asyncio.sleep(0.002)
        on_gpu_thread, on_loop, started = thread_cpu("aiostage gpu"), time.thread_time(), time.perf_counter()
        await (await ring.write_buffer(target, 0, data))
        used["time"].append(time.perf_counter() - started)
        used["loop"].append(time.thread_time() - on_loop)
        used["all"].append(used["loop"][-1] + thread_cpu("aiostage gpu") - on_gpu_thread)
    target.destroy()
    return {name: spread(values[3:], 1e3) for name, values in used.items()}


async def zero_copy(device: wgpu.GPUDevice, seconds: float) -> dict[str, float]:
    """GB/s of 12 threads that fill slots, and of the same threads copying into buffers that stay mapped."""
    size, threads = 8 * MiB, 12
    data = np.ones(size, np.uint8)
    target = device.create_buffer(size=size, usage=wgpu.BufferUsage.COPY_DST)
    rates: dict[str, list[float]] = {"slots": [], "mapped memory": []}
    pool = ThreadPoolExecutor(threads)
    loop = asyncio.get_running_loop()
    budget = aiostage.MemoryBudget(threads * size)
    async with (
        aiostage.StagingRing(device, 20, size) as ring,
        aiostage.StagingRing(device, threads, size, budget=budget) as other,
    ):
        kept = [await other.allocate(size) for _ in range(threads)]
        memories = [slot.array(np.uint8, (size,)) for slot in kept]

        async def into_slot(index: int) -> None:
            slot = await ring.allocate(size)
            with slot:
                await loop.run_in_executor(pool, np.copyto, slot.array(np.uint8, (size,)), data)
                slot.copy_to_buffer(target, 0)
            await ring.submit()

        async def into_mapped(index: int) -> None:
            await loop.run_in_executor(pool, np.copyto, memories[index], data)

        for _ in range(3):
            for name, way in (("slots", into_slot), ("mapped memory", into_mapped)):
                rates[name].append(await rate(way, threads, size, seconds / 3))
        memories.clear()
        for slot in kept:
            slot.abandon()
    return {name: round(statistics.median(values), 2) for name, values in rates.items()}


async def rate(way: Callable[[int], Awaitable[None]], coroutines: int, size: int, seconds: float) -> float:
    """GB/s of that many coroutines that each do `way` again and again."""
    done = 0

    async def repeat(index: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await way(index)
            done += size

    started = time.perf_counter()
    end = started + seconds
    await asyncio.gather(*(repeat(index) for index in range(coroutines)))
    return done / (time.perf_counter() - started) / 1e9


async def small_writes(device: wgpu.GPUDevice, rounds: int) -> dict[str, Any]:
    """The loop's CPU per write, µs, a thousand to a batch and submit: one by one, many in one call, and wgpu-py's."""
    count = 1000
    usage = wgpu.BufferUsage.COPY_DST
    buffer = device.create_buffer(size=64 * count, usage=usage)
    texture = device.create_texture(size=(2048, 2048), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST)
    data, image = np.ones(64, np.uint8), np.ones((64, 64, 4), np.uint8)
    places = [{"texture": texture, "origin": (64 * (i % 32), 64 * (i // 32), 0)} for i in range(count)]
    layout, size = {"bytes_per_row": 256, "rows_per_image": 64}, (64, 64, 1)
    queue = device.queue
    offsets, pieces, images = 64 * np.arange(count), np.ones((count, 64), np.uint8), [image] * count
    names = ("buffer", "buffers", "write_buffer", "texture", "textures", "write_texture")
    used: dict[str, list[float]] = {name: [] for name in names}
    async with aiostage.StagingRing(device, 3, 32 * MiB) as ring:
        for _ in range(rounds):
            async with measured(used["buffer"], count, ring), ring.batch() as batch:
                for i in range(count):
                    await batch.write_buffer(buffer, 64 * i, data)
            async with measured(used["buffers"], count, ring), ring.batch() as batch:
                await batch.write_buffers(buffer, offsets, pieces)
            async with measured(used["write_buffer"], count, ring):
                for i in range(count):
                    queue.write_buffer(buffer, 64 * i, data)
                queue.submit([])
            async with measured(used["texture"], count, ring), ring.batch() as batch:
                for place in places:
                    await batch.write_texture(place, image)
            async with measured(used["textures"], count, ring), ring.batch() as batch:
                await batch.write_textures(places, images)
            async with measured(used["write_texture"], count, ring):
                for place in places:
                    queue.write_texture(place, image, layout, size)
                queue.submit([])
    return {name: spread(values, 1e6) for name, values in used.items()}


class measured:
    """Appends the CPU seconds of one write to `used`; ends once the GPU is idle, which is not counted."""

    def __init__(self, used: list[float], count: int, ring: aiostage.StagingRing) -> None:
        self._used, self._count, self._ring = used, count, ring

    async def __aenter__(self) -> None:
        self._started = time.thread_time()

    async def __aexit__(self, *exc_info: object) -> None:
        self._used.append((time.thread_time() - self._started) / self._count)
        await self._ring._tracker.insert()


async def allocate_and_commit(device: wgpu.GPUDevice, rounds: int) -> dict[str, float]:
    """µs for `allocate_nowait` and `commit` of 64 B."""
    used, count = [], 1000
    async with aiostage.StagingRing(device, 3, MiB) as ring:
        for _ in range(rounds):
            slots = []
            started = time.perf_counter()
            for _ in range(count):
                slot = ring.allocate_nowait(64)
                slot.commit()
                slots.append(slot)
            used.append((time.perf_counter() - started) / count)
            await ring.submit()
            await ring._tracker.wait_all()
    return spread(used, 1e6)


async def grants(device: wgpu.GPUDevice, rounds: int) -> dict[str, Any]:
    """CPU per grant, µs, with that many coroutines in line for a whole buffer each."""
    figures = {}
    async with aiostage.StagingRing(device, 3, MiB) as ring:
        for waiting in (10, 1_000, 10_000):
            used = []
            for _ in range(rounds * (20 if waiting == 10 else 1)):
                held = [await ring.allocate(MiB) for _ in range(3)]
                tasks = [asyncio.create_task(take(ring)) for _ in range(waiting)]
                await asyncio.sleep(0)
                started = time.thread_time()
                for slot in held:
                    slot.abandon()
                await asyncio.gather(*tasks)
                used.append((time.thread_time() - started) / waiting)
            figures[str(waiting)] = spread(used, 1e6)
    return figures


async def take(ring: aiostage.StagingRing) -> None:
    (await ring.allocate(MiB)).abandon()


async def resident(device: wgpu.GPUDevice, megabytes: int) -> dict[str, float]:
    """Growth of resident memory, MiB: while that much streams through the ring, and by 20 × 16 MB unsubmitted."""
    process, size = psutil.Process(), 16_000_000
    data = np.ones(size, np.uint8)
    target = device.create_buffer(size=size, usage=wgpu.BufferUsage.COPY_DST)
    async with aiostage.StagingRing(device, 3, 8 * MiB) as ring:
        for _ in range(20):
            await ring.write_buffer(target, 0, data)
        before = process.memory_info().rss
        for _ in range(megabytes // 16):
            await ring.write_buffer(target, 0, data)
        through_ring = process.memory_info().rss - before
    before = process.memory_info().rss
    for _ in range(20):
        device.queue.write_buffer(target, 0, data)
    unsubmitted = process.memory_info().rss - before
    device.queue.submit([])
    device._poll_wait()
    return {"aiostage": round(through_ring / MiB, 2), "write_buffer unsubmitted": round(unsubmitted / MiB, 2)}


def import_time(rounds: int) -> dict[str, float]:
    """ms of `import aiostage` after what it stands on was imported, from bytecode, as an installed package has it."""
    code = "import time, wgpu, numpy, anyio; t = time.perf_counter(); import aiostage; print(time.perf_counter() - t)"
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        run = partial(subprocess.run, check=True, capture_output=True, text=True, env=environment)
        times = [float(run([sys.executable, "-c", code]).stdout) for _ in range(rounds + 1)]
    return spread(times[1:], 1e3)


TRANSFERS_HEADER = ("upload", "CPU beside copying, ms", "until the GPU has it, ms", "GB/s")


def transfer_rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Of uploads alone."""
    return [
        (f"{size} MB", f"{at['all']['p50']:.2f}", f"{at['time']['p50']:.2f}", f"{float(size) / at['time']['p50']:.1f}")
        for size, at in figures["transfers_ms"].items()
    ]


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(target's number, what, target, measured, peer), for the report too."""
    overhead, slots, small = figures["P1_overhead_ms"], figures["P3_zero_copy_GB_s"], figures["P6_small_write_us"]
    grant, memory = figures["P8_grant_us"], figures["P9_resident_MiB"]
    return [
        (
            "P1",
            "CPU beside copying, 100 MB: the loop's thread + the GPU's",
            TARGETS["P1"],
            ", ".join(f"{at['loop']['p50']:.2f} + {other(at):.2f} ms at {size}" for size, at in overhead.items()),
            "–",
        ),
        (
            "P3",
            "12 threads fill slots of 8 MiB",
            TARGETS["P3"],
            f"{slots['slots']} GB/s: {slots['slots'] / slots['mapped memory']:.2f} ×",
            f"{slots['mapped memory']} GB/s",
        ),
        *small_rows(small),
        ("P7", "allocate_nowait + commit", TARGETS["P7"], f"{figures['P7_allocate_commit_us']['p50']:.2f} µs", "–"),
        (
            "P8",
            "per grant, 10 / 1,000 / 10,000 waiting",
            TARGETS["P8"],
            " / ".join(f"{at['p50']:.1f} µs" for at in grant.values())
            + f": {grant['10000']['p50'] / grant['10']['p50']:.2f} ×",
            "–",
        ),
        (
            "P9",
            "growth of resident memory",
            TARGETS["P9"],
            f"{memory['aiostage']:+.1f} MiB",
            f"{memory['write_buffer unsubmitted']:+.1f} MiB for 20 × 16 MB",
        ),
        ("P10", "import aiostage", TARGETS["P10"], f"{figures['P10_import_ms']['p50']:.1f} ms", "–"),
    ]


def other(at: dict[str, Any]) -> float:
    return float(at["all"]["p50"] - at["loop"]["p50"])


def small_rows(small: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    for ours, peer, what, target in (
        ("buffer", "write_buffer", "64 B to a buffer, in a batch", "P6"),
        ("texture", "write_texture", "64 × 64 RGBA8 to a texture, in a batch", "P6"),
        ("buffers", "write_buffer", "the same to buffers, 1,000 in one call", "P6 many"),
        ("textures", "write_texture", "the same to textures, 1,000 in one call", "P6 many"),
    ):
        if ours in small:  # which earlier figures do not have
            mine, theirs = small[ours]["p50"], small[peer]["p50"]
            yield "P6", what, TARGETS[target], f"{mine:.2f} µs: {theirs / mine:.2f} ×", f"{theirs:.1f} µs"


def show(figures: dict[str, Any]) -> None:
    print_table("One upload at a time", transfer_rows(figures), TRANSFERS_HEADER)
    print_table("Costs", rows(figures), HEADER)
