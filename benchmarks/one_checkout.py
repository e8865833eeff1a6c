"""What `benchmarks.since` runs in a process of its own, with whichever checkout of the project is on the path.

So it imports nothing of the benchmarks, and uses what has been public for long.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from typing import Any

import numpy as np
import wgpu

import aiostage

MiB = 1 << 20
SIZES = (1, 4, 16, 64)
COROUTINES = 8


def open_device(software: bool) -> wgpu.GPUDevice:
    """The discrete GPU's, or else the software adapter's; with host-cached staging memory if it can."""
    order = ["CPU"] if software else ["DiscreteGPU", "IntegratedGPU", "CPU"]
    adapters = [a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["backend_type"] == "Vulkan"]
    adapter = min(
        (a for a in adapters if a.info["adapter_type"] in order), key=lambda a: order.index(a.info["adapter_type"])
    )
    features = {"mappable-primary-buffers"} & set(adapter.features)
    return adapter.request_device_sync(required_features=sorted(features))


async def uploads(device: wgpu.GPUDevice, seconds: float, singles: int) -> dict[str, Any]:
    """By MiB: GB/s of eight coroutines, and ms that one upload alone takes until its submit."""
    found = {}
    async with aiostage.StagingRing(device) as ring:
        for size in SIZES:
            sources = [np.full(size * MiB, i, np.uint8) for i in range(max(4, 256 // size))]  # more than a cache holds
            usage = wgpu.BufferUsage.COPY_DST
            targets = [device.create_buffer(size=size * MiB, usage=usage) for _ in range(COROUTINES)]
            await rate(ring, sources, targets, seconds / 2)
            sustained = await rate(ring, sources, targets, seconds)
            found[str(size)] = {"GB/s": sustained, "alone_ms": await alone(ring, sources, targets[0], singles)}
    return found


async def rate(ring: aiostage.StagingRing, sources: list[Any], targets: list[Any], seconds: float) -> float:
    async def stream(index: int) -> int:
        turn = index
        while time.perf_counter() < end:
            fence = await ring.write_buffer(targets[index], 0, sources[turn % len(sources)])
            turn += COROUTINES
        await fence
        return (turn - index) // COROUTINES * sources[0].nbytes

    started = time.perf_counter()
    end = started + seconds
    done = await asyncio.gather(*(stream(index) for index in range(COROUTINES)))
    return sum(done) / (time.perf_counter() - started) / 1e9


async def alone(ring: aiostage.StagingRing, sources: list[Any], target: Any, count: int) -> float:
    times = []
    for turn in range(count):
        await asyncio.sleep(0.002)
        started = time.perf_counter()
        fence = await ring.write_buffer(target, 0, sources[turn % len(sources)])
        times.append((time.perf_counter() - started) * 1e3)
        await fence
    return statistics.median(times)


if __name__ == "__main__":
    is_software = sys.argv[1] == "1"
    figures = asyncio.run(uploads(open_device(is_software), *((0.4, 10) if is_software else (0.5, 30))))
    print(json.dumps({"file": aiostage.__file__, "sizes": figures}))
