"""What a trace costs: the same uploads with and without one, in turns, and with the GPU's time of each submit where the
device has timestamps."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import wgpu

import aiostage
from aiostage import tracing

from .machine import print_table, spread
from .throughput import Peers, make_sources, measure

MiB = 1 << 20
SIZES = (1 * MiB, 4 * MiB, 16 * MiB)
TIMESTAMPS = ("timestamp-query", "timestamp-query-inside-encoders")


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """GB/s of eight coroutines without and with a trace, and their CPU for a GB, in turns; and ratios of neighbours."""
    seconds, rounds = (0.2, 5) if quick else (0.15, 40)  # short ones, so that both of a pair find the same machine
    figures: dict[str, Any] = {}
    devices = {"a trace": device, "a trace with GPU time": timed_device(device)}
    for size in SIZES:
        sources = make_sources(size)
        for name, used in devices.items():
            if used is not None:
                figures[f"{size // MiB} MiB, {name}"] = await compare(used, sources, seconds, rounds)
    print_table("Uploads with a trace", rows(figures), HEADER)
    return figures


def timed_device(device: wgpu.GPUDevice) -> wgpu.GPUDevice | None:
    """One with timestamps beside what the other has, or None."""
    if not set(TIMESTAMPS) <= set(device.adapter.features):
        return None
    features = sorted({*device.features, *TIMESTAMPS})
    return device.adapter.request_device_sync(required_features=features, required_limits=device.limits)


async def compare(device: wgpu.GPUDevice, sources: list[Any], seconds: float, rounds: int) -> dict[str, Any]:
    """In pairs, each of which begins with the other one."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    costs: dict[bool, list[float]] = {False: [], True: []}  # seconds of CPU for a GB, of all threads
    lost = nbytes = 0
    uploads = 0.0
    async with aiostage.StagingRing(device) as ring:
        peers = Peers(device, ring)
        make = partial(device.create_buffer, size=sources[0].nbytes, usage=wgpu.BufferUsage.COPY_DST)
        for number in range(rounds):
            for is_traced in (number % 2 == 0, number % 2 == 1):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "run.json"
                    with tracing.trace(path) if is_traced else nullcontext() as trace:
                        await anyio.sleep(3 * tracing.PERIOD)  # until it knows the ring
                        before, cpu = ring.stats_nowait().bytes_total, time.process_time()
                        rate, _ = await measure(device, peers.through_ring, make, sources, seconds)
                        moved = ring.stats_nowait().bytes_total - before
                        costs[is_traced].append((time.process_time() - cpu) / moved * 1e9)
                    rates[is_traced].append(rate)
                    if trace is not None:
                        lost += trace.lost
                        nbytes += os.path.getsize(path)
                        uploads += moved / sources[0].nbytes
    return {
        "without": spread(rates[False]),
        "with": spread(rates[True]),
        "ratio": ratio(rates),
        "cpu_without": spread(costs[False]),
        "cpu_with": spread(costs[True]),
        "cpu_ratio": ratio(costs),
        "file_bytes_per_upload": round(nbytes / uploads),
        "lost_events": lost,
    }


def ratio(values: dict[bool, list[float]]) -> dict[str, float]:
    return spread([on / off for on, off in zip(values[True], values[False], strict=True)])


HEADER = (
    "uploads of",
    "GB/s without",
    "with",
    "ratio, median",
    "p25",
    "p75",
    "CPU s a GB without",
    "with",
    "ratio, median",
    "p25",
    "p75",
    "file, bytes an upload",
    "lost",
)


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{found['without']['p50']:.2f}",
            f"{found['with']['p50']:.2f}",
            *(f"{found['ratio'][at]:.3f}" for at in ("p50", "p25", "p75")),
            f"{found['cpu_without']['p50']:.3f}",
            f"{found['cpu_with']['p50']:.3f}",
            *(f"{found['cpu_ratio'][at]:.3f}" for at in ("p50", "p25", "p75")),
            str(found["file_bytes_per_upload"]),
            str(found["lost_events"]),
        )
        for name, found in figures.items()
    ]
