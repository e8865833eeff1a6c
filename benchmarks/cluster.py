"""Uploads and maximum-intensity projections by the workers of a dask cluster on this machine: 1, 2 and 4 processes.

GB/s of all workers together, by the client's clock; within tasks by theirs. Workers take the machine's GPUs by turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import wgpu

from .machine import print_table, spread

SIDE = 512
"""Of a slice of float32, 1 MiB."""

MIP = """
@group(0) @binding(0) var<storage, read> volume: array<f32>;
@group(0) @binding(1) var<storage, read_write> picture: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) pixel: vec3u) {
    let area = arrayLength(&picture);
    var brightest = volume[pixel.x];
    for (var i = pixel.x + area; i < arrayLength(&volume); i += area) { brightest = max(brightest, volume[i]); }
    picture[pixel.x] = brightest;
}
"""


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """For each number of workers the rates of each way, by rounds. `device` says which adapters to use, no more."""
    software = device.adapter.info["adapter_type"] == "CPU"
    slices, chunks, rounds = (16, 4, 2) if quick else (64, 8, 5)
    figures = {}
    for workers in (1, 2) if quick else (1, 2, 4):
        figures[str(workers)] = await asyncio.to_thread(measure, workers, software, slices, chunks, rounds)
    show(figures)
    return figures


def measure(workers: int, software: bool, slices: int, chunks: int, rounds: int) -> dict[str, Any]:
    """`chunks` chunks of `slices` MiB on each worker, `rounds` times."""
    from distributed import Client, LocalCluster, wait  # what the other benchmarks do without

    from aiostage.dask import RingPlugin

    options = {"n_workers": workers, "threads_per_worker": 4, "dashboard_address": ":0"}
    with LocalCluster(processes=True, **options) as cluster, Client(cluster) as client:
        client.register_plugin(RingPlugin(software=software))
        adapters = sorted(client.run(adapter).values())
        volumes = []
        for address in client.scheduler_info(n_workers=-1)["workers"]:
            volumes += client.map(volume, range(chunks), slices=slices, workers=[address], pure=False)
        wait(volumes)
        ways = {WITHIN: [within(client, volumes)], UPLOADS: [], PROJECTIONS: []}  # and so warm
        for _ in range(rounds):
            ways[WITHIN].append(within(client, volumes))
            uploads, projections = as_tasks(client, volumes, slices * len(volumes) << 20)
            ways[UPLOADS].append(uploads)
            ways[PROJECTIONS].append(projections)
    rates = {name: {"GB/s": spread(rates[-rounds:])} for name, rates in ways.items()}
    return {"adapters": adapters, "chunk_MiB": slices, "chunks": len(volumes), "ways": rates}


WITHIN, UPLOADS, PROJECTIONS = "uploads within a task", "uploads, a task each", "projections, a task each"


def adapter(dask_worker: Any) -> str:
    summary: str = dask_worker.plugins["aiostage"].gpu.device.adapter.summary
    return summary


def volume(seed: int, slices: int) -> np.ndarray:
    return np.random.default_rng(seed).random((slices, SIDE, SIDE), np.float32)


def as_tasks(client: Any, volumes: list[Any], nbytes: int) -> tuple[float, float]:
    """GB/s of uploads, and of projections of what was uploaded."""
    from distributed import wait

    from aiostage.dask import compute, upload

    def rate(submit: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
        started = time.perf_counter()
        futures = submit()
        wait(futures)
        return nbytes / (time.perf_counter() - started) / 1e9, futures

    uploads, arrays = rate(lambda: upload(client, volumes))
    projections, _ = rate(lambda: [compute(client, project, array) for array in arrays])
    return uploads, projections


def within(client: Any, volumes: list[Any]) -> float:
    """GB/s of all workers, each in one task that uploads a chunk of its own again and again."""
    from aiostage.dask import compute

    where = client.who_has(volumes)
    one_on_each = {where[chunk.key][0]: chunk for chunk in volumes}
    streams = [compute(client, stream, chunk, workers=[home]) for home, chunk in one_on_each.items()]
    return sum(client.gather(streams))


async def stream(gpu: Any, chunk: np.ndarray, seconds: float = 1.0) -> float:
    """GB/s of four coroutines that upload for a while, the GPU's copies included."""
    targets = [await gpu.empty(chunk.shape, chunk.dtype) for _ in range(4)]
    done = 0

    async def repeat(target: Any) -> None:
        nonlocal done
        while time.perf_counter() < started + seconds:
            await gpu.ring.write_buffer(target.buffer, 0, chunk)
            done += chunk.nbytes

    started = time.perf_counter()
    await asyncio.gather(*map(repeat, targets))
    await gpu.ring.fence()
    return done / (time.perf_counter() - started) / 1e9


async def project(gpu: Any, chunk: Any) -> None:
    picture = await gpu.empty(chunk.shape[1:], chunk.dtype)
    await gpu.run(MIP, chunk, picture, groups=(SIDE * SIDE // 64, 1, 1))


HEADER = ("workers", "chunks", "way", "GB/s p50", "min", "max")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for workers, at in figures.items():
        for way, rates in at["ways"].items():
            rate = rates["GB/s"]
            cells = [f"{rate[column]:.2f}" for column in ("p50", "min", "max")]
            table.append((workers, f"{at['chunks']} × {at['chunk_MiB']} MiB", way, *cells))
    return table


def show(figures: dict[str, Any]) -> None:
    print_table("All workers together", rows(figures), HEADER)
