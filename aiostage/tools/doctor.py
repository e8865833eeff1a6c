"""`aiostage doctor`: a short workload on this machine's GPU, and what a ring says about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import cycle
from typing import Any

import anyio
import numpy as np
import wgpu

from ..advice import Advice
from ..budget import KiB, MiB, default_budget, size_text
from ..gpu.device import connect
from ..ring import StagingRing
from .demo.gpu import as_document, describe_document, find_adapter, memory_kind, open_ring
from .printing import Sheet, may_escape, open_console, print_document
from .status import UsageError

SCHEMA = "aiostage.doctor/1"

PLATFORMS = {
    "Vulkan": "tested on Linux, with Mesa's llvmpipe and an NVIDIA H100; not on Windows or Android",
    "D3D12": "never tried",
    "Metal": "never tried",
}
"""What is known of each backend of wgpu that aiostage means to run on."""

_TOTAL = 64 * MiB
_SIZES = (4 * KiB, 256 * KiB, 64 * KiB, 4 * MiB, 16 * KiB, 1 * MiB)
_COROUTINES = 8


def run(ring_count: int | None, buffer_size: int | None, *, as_json: bool) -> int:
    """Upload, verify and print; 1 if a byte did not arrive. Without sizes the ring chooses for the machine.

    :raises UsageError: there is no adapter, or no ring of these sizes.
    """
    with waiting(as_json):
        document = anyio.run(examine, ring_count, buffer_size)
    if as_json:
        print_document(SCHEMA, document)
    else:
        print_sheet(document)
    return 0 if document["verified"] else 1


def waiting(as_json: bool) -> AbstractContextManager[Any]:
    """A sign of life, on a terminal that can take it away again."""
    if as_json or not may_escape():
        return nullcontext()
    return open_console().status(f"{size_text(_TOTAL)} by {_COROUTINES} coroutines …")


async def examine(ring_count: int | None, buffer_size: int | None) -> dict[str, Any]:
    """The document, but for what all documents have."""
    if buffer_size is not None and buffer_size < min(_SIZES):
        raise UsageError(
            f"--buffer-size {buffer_size} is less than {min(_SIZES)} bytes, the workload's smallest upload"
        )
    adapter = find_adapter()
    device = adapter.request_device_sync()
    async with open_ring(device, ring_count, buffer_size) as ring:
        worked = await work(ring)
        backend = adapter.info["backend_type"]
        return {
            "adapter": as_document(adapter),
            "staging": {"host_cached": ring.host_cached},
            "limits": {
                "max_buffer_size": device.limits["max-buffer-size"],
                "budget": default_budget(connect(device)).limit,
            },
            "ring": {"ring_count": ring.ring_count, "buffer_size": ring.buffer_size},
            **worked,
            "advice": [asdict(advice) for advice in ring.advise()],
            "platforms": [
                {"backend": name, "is_this": name == backend, "known": known}
                for name, known in (PLATFORMS | {backend: PLATFORMS.get(backend, "not supported")}).items()
            ],
        }


async def work(ring: StagingRing) -> dict[str, Any]:
    """Coroutines that upload pieces of many sizes side by side; what came of it."""
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
    return {
        "workload": {
            "nbytes": stats.bytes_total,
            "coroutines": _COROUTINES,
            "seconds": took,
            "submits": stats.submits,
            "bytes_per_second": stats.bytes_total / took,
        },
        "stalls": {
            "allocations": stats.allocations_total,
            "waited": stats.buffer_stalls,
            "seconds": stats.stall_seconds,
        },
        "fences": {"p50": stats.fence_latency_p50, "p99": stats.fence_latency_p99},
        "verified": holds(ring.device, buffer, data),
    }


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


def print_sheet(document: dict[str, Any]) -> None:
    sheet = Sheet("aiostage doctor")
    limits, ring = document["limits"], document["ring"]
    budget = f"{size_text(limits['budget'])} of staging memory for all rings of a device"
    sheet.row("adapter", describe_document(document["adapter"]))
    sheet.row("staging", memory_kind(document["staging"]["host_cached"]))
    sheet.row("limits", f"{size_text(limits['max_buffer_size'])} a buffer, {budget}")
    sheet.row("ring", f"{ring['ring_count']} × {size_text(ring['buffer_size'])}")
    sheet.section()
    add_work(sheet, document)
    sheet.section()
    for advice in document["advice"]:
        sheet.row("advice", str(Advice(**advice)))
    if not document["advice"]:
        sheet.row("advice", "none for this workload; ring.advise() has it for your own")
    sheet.section()
    for platform in document["platforms"]:
        sheet.row("platform", f"{platform['backend']}{' (this one)' * platform['is_this']}: {platform['known']}")
    sheet.end()


def add_work(sheet: Sheet, document: dict[str, Any]) -> None:
    workload, stalls, fences = document["workload"], document["stalls"], document["fences"]
    sheet.row(
        "workload",
        f"{size_text(workload['nbytes'])} by {workload['coroutines']} coroutines in {workload['seconds']:.2f} s, "
        f"{workload['submits']} submits, {workload['bytes_per_second'] / 1e9:.2f} GB/s",
    )
    sheet.row(
        "stalls",
        f"{stalls['waited']} of {stalls['allocations']} allocations waited, {stalls['seconds']:.2f} s in all",
        share=stalls["waited"] / max(1, stalls["allocations"]),
    )
    sheet.row("fences", f"{fences['p50'] * 1e3:.2f} ms at p50, {fences['p99'] * 1e3:.2f} ms at p99")
    if document["verified"]:
        sheet.row("verified", "every byte arrived", mood="good")
    else:
        sheet.row("verified", "NO: the buffer does not hold what was uploaded", mood="bad")
