"""`aiostage doctor`: a short workload on this machine's GPU, and what a ring says about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import anyio
import numpy as np
import wgpu

from ..budget import KiB, MiB, default_budget, size_text
from ..gpu.device import connect
from ..ring import StagingRing
from .demo.gpu import describe, find_adapter, memory_kind, open_ring
from .demo.options import UsageError

PLATFORMS = {
    "Vulkan": "tested on Linux, with Mesa's llvmpipe and an NVIDIA H100; not on Windows or Android",
    "D3D12": "never tried",
    "Metal": "never tried",
}
"""What is known of each backend of wgpu that aiostage means to run on."""

_TOTAL = 64 * MiB
_SIZES = (4 * KiB, 256 * KiB, 64 * KiB, 4 * MiB, 16 * KiB, 1 * MiB)
_COROUTINES = 8


async def run(ring_count: int | None, buffer_size: int | None) -> bool:
    """Upload, verify and print; False if a byte did not arrive. Without sizes the ring chooses for the machine."""
    if buffer_size is not None and buffer_size < min(_SIZES):
        raise UsageError(
            f"--buffer-size {buffer_size} is less than {min(_SIZES)} bytes, the workload's smallest upload"
        )
    adapter = find_adapter()
    print_line("adapter", describe(adapter))
    device = adapter.request_device_sync()
    async with open_ring(device, ring_count, buffer_size) as ring:
        budget = default_budget(connect(device))
        largest = size_text(device.limits["max-buffer-size"])
        print_line("staging", memory_kind(ring))
        print_line(
            "limits", f"{largest} a buffer, {size_text(budget.limit)} of staging memory for all rings of a device"
        )
        print_line("ring", f"{ring.ring_count} × {size_text(ring.buffer_size)}")
        arrived = await work(ring)
        for advice in ring.advise():
            print_line("advice", str(advice))
        if not ring.advise():
            print_line("advice", "none for this workload; ring.advise() has it for your own")
    backend = adapter.info["backend_type"]
    for name, note in PLATFORMS.items():
        print_line("platform", f"{name}{' (this one)' * (name == backend)}: {note}")
    if backend not in PLATFORMS:
        print_line("platform", f"{backend} (this one): not supported")
    return arrived


async def work(ring: StagingRing) -> bool:
    """Coroutines that upload pieces of many sizes side by side; prints what came of it."""
    data = np.random.default_rng(0).integers(0, 255, _TOTAL, np.uint8)
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = ring.device.create_buffer(size=_TOTAL, usage=usage)
    pieces = cut()

    async def upload() -> None:
        for start, end in pieces:
            await ring.write_buffer(buffer, start, data[start:end])

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(_COROUTINES):
            tasks.start_soon(upload)
    await ring.fence()
    took = time.perf_counter() - started
    stats = await ring.stats()
    print_line(
        "workload",
        f"{size_text(stats.bytes_total)} by {_COROUTINES} coroutines in {took:.2f} s, {stats.submits} submits, "
        f"{stats.bytes_total / took / 1e9:.2f} GB/s",
    )
    print_line(
        "stalls",
        f"{stats.buffer_stalls} of {stats.allocations_total} allocations waited, {stats.stall_seconds:.2f} s in all",
    )
    print_line(
        "fences", f"{stats.fence_latency_p50 * 1e3:.2f} ms at p50, {stats.fence_latency_p99 * 1e3:.2f} ms at p99"
    )
    arrived = holds(ring.device, buffer, data)
    print_line("verified", "every byte arrived" if arrived else "NO: the buffer does not hold what was uploaded")
    return arrived


def cut() -> Iterator[tuple[int, int]]:
    """(start, end) of one piece after the other."""
    start = 0
    for size in cycle(_SIZES):
        end = min(start + size, _TOTAL)
        yield start, end
        if end == _TOTAL:
            return
        start = end


def holds(device: Any, buffer: Any, data: Any) -> bool:
    return bool(np.array_equal(np.frombuffer(device.queue.read_buffer(buffer), np.uint8), data))


def print_line(name: str, text: str) -> None:
    print(f"{name:<15} {text}")
