"""Fences: how soon a coroutine learns that the GPU is done, and what that costs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import wgpu

import aiostage

from .machine import GpuWork, print_table, spread, thread_cpu

TARGETS = {
    "wake-up over a blocking poll, p50": "<= 0.25 ms",
    "wake-up over a blocking poll, p99": "<= 0.5 ms",
    "submit with 100 ms of GPU work, a fence and a promise pending": "<= 1 ms",
    "insert + resolve, CPU": "<= 20 µs",
    "polling with one fence pending, CPU": "<= 2 % of a core",
    "polls per second with nothing pending": "0",
}


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """All figures, in the units that their names say."""
    figures: dict[str, Any] = {}
    work = GpuWork(device)
    async with aiostage.FenceTracker(device) as tracker:
        await tracker.insert()  # the first takes a while in the driver
        figures["wake_up_ms"] = await wake_up(tracker, work, 40 if quick else 300)
        if device.adapter.info["adapter_type"] != "CPU":
            figures["submit_ms"] = await submit_while_pending(tracker, work, 5 if quick else 30)
        figures["insert_resolve_us"] = await insert_and_resolve(tracker, 500 if quick else 5000)
        figures["polling_percent"] = await polling_cpu(tracker, work, 0.5 if quick else 3.0)
        figures["idle_polls_per_s"] = await idle_polls(tracker, 0.5 if quick else 2.0)
    if device.adapter.info["adapter_type"] != "CPU":
        figures["bare_submit_ms"] = bare_submit_while_pending(device, work, 3 if quick else 10)
    show(figures)
    return figures


async def wake_up(tracker: aiostage.FenceTracker, work: GpuWork, rounds: int) -> dict[str, Any]:
    """From submit to the awaiting coroutine, against a blocking poll for the same work, in turns."""
    awaited, blocking = [], []
    for _ in range(rounds):
        blocking.append(blocking_poll(work))
        command_buffer = work.command_buffer(0.005)
        started = time.perf_counter()
        work.device.queue.submit([command_buffer])
        await tracker.insert()
        awaited.append(time.perf_counter() - started)
    return compare(awaited, blocking)


def compare(awaited: list[float], blocking: list[float]) -> dict[str, Any]:
    """Both distributions in ms, and how much later the awaits end, quantile by quantile: the GPU's own hiccups are in
    both, and no single pair says which of the two was the slow one."""
    ours, base = spread(awaited, 1e3), spread(blocking, 1e3)
    late = {quantile: round(ours[quantile] - base[quantile], 6) for quantile in ("p25", "p50", "p75", "p99")}
    return {"late": late, "awaited": ours, "blocking_poll": base}


def blocking_poll(work: GpuWork) -> float:
    """Seconds from submit to the return of a blocking poll for 5 ms of GPU work."""
    command_buffer = work.command_buffer(0.005)
    started = time.perf_counter()
    work.device.queue.submit([command_buffer])
    work.wait()
    return time.perf_counter() - started


async def submit_while_pending(tracker: aiostage.FenceTracker, work: GpuWork, rounds: int) -> dict[str, float]:
    """Time of `queue.submit` on the loop behind 100 ms of GPU work, with a fence and a map_async outstanding."""
    times = []
    for _ in range(rounds):
        fence, promise = pend(work, tracker)
        await asyncio.sleep(0.003)
        command_buffer = work.command_buffer(0)
        started = time.perf_counter()
        work.device.queue.submit([command_buffer])
        times.append(time.perf_counter() - started)
        await fence
        promise.sync_wait()  # which cannot be awaited on uvloop
    return spread(times, 1e3)


def bare_submit_while_pending(device: wgpu.GPUDevice, work: GpuWork, rounds: int) -> dict[str, float]:
    """The same without the library: wgpu-py's poll thread blocks, and the submit behind it."""
    times = []
    for _ in range(rounds):
        _, promise = pend(work, None)
        time.sleep(0.003)
        command_buffer = work.command_buffer(0)
        started = time.perf_counter()
        device.queue.submit([command_buffer])
        times.append(time.perf_counter() - started)
        promise.sync_wait()
    return spread(times, 1e3)


def pend(work: GpuWork, tracker: aiostage.FenceTracker | None) -> tuple[Any, Any]:
    """Submit 100 ms of GPU work and a read-back of its result: a fence and a promise of wgpu-py's are pending."""
    usage = wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST
    result = work.device.create_buffer(size=64, usage=usage)
    encoder = work.device.create_command_encoder()
    encoder.copy_buffer_to_buffer(work.output, 0, result, 0, 64)
    work.device.queue.submit([work.command_buffer(0.1), encoder.finish()])
    fence = tracker.insert() if tracker is not None else None
    return fence, result.map_async("READ")


async def insert_and_resolve(tracker: aiostage.FenceTracker, count: int) -> float:
    """CPU of one fence, all threads, µs."""
    await tracker.insert()
    started = time.process_time()
    for _ in range(count // 50):
        for _ in range(50):
            fence = tracker.insert()
        await fence
    return round((time.process_time() - started) / count * 1e6, 2)


async def polling_cpu(tracker: aiostage.FenceTracker, work: GpuWork, seconds: float) -> float:
    """CPU of the polling thread while 100 ms of GPU work after another is pending, percent of a core."""
    used = waited = 0.0
    while waited < seconds:
        work.device.queue.submit([work.command_buffer(0.1)])
        fence = tracker.insert()
        cpu, started = thread_cpu("aiostage gpu"), time.perf_counter()
        await fence
        used += thread_cpu("aiostage gpu") - cpu
        waited += time.perf_counter() - started
    return round(used / waited * 100, 2)


async def idle_polls(tracker: aiostage.FenceTracker, seconds: float) -> float:
    """Polls and wake-ups of the polling thread per second while nothing is pending."""
    await tracker.wait_all()
    await asyncio.sleep(0.05)
    before, cpu = tracker.carrier.counts["polls"], thread_cpu("aiostage gpu")
    await asyncio.sleep(seconds)
    assert thread_cpu("aiostage gpu") == cpu, "the polling thread ran"
    return (tracker.carrier.counts["polls"] - before) / seconds


HEADER = ("what", "target", "aiostage", "bare wgpu-py")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    late = figures["wake_up_ms"]["late"]
    measured = [f"{late['p50']:.3f} ms", f"{late['p99']:.3f} ms"]
    submit = figures.get("submit_ms")
    measured.append(f"{submit['p50']:.3f} ms, max {submit['max']:.3f}" if submit else "not on a software adapter")
    measured.append(f"{figures['insert_resolve_us']} µs")
    measured.append(f"{figures['polling_percent']} %")
    measured.append(f"{figures['idle_polls_per_s']:g}")
    bare = ["–", "–"]
    bare_submit = figures.get("bare_submit_ms")
    bare += [f"{bare_submit['p50']:.3f} ms" if bare_submit else "–", "raises TypeError", "–", "–"]
    return list(zip(TARGETS, TARGETS.values(), measured, bare, strict=True))


def show(figures: dict[str, Any]) -> None:
    print_table("Fences", rows(figures), HEADER)
