"""Memory pools: time per range against a GPUBuffer of its own, fragmentation, and what defragmenting gives back."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import wgpu

from aiostage import MiB
from aiostage.pools import BufferPool, PoolStatistics

from .machine import print_table, spread
from .throughput import watch_lag

USAGE = wgpu.BufferUsage.VERTEX | wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
SIZES = {"64 B": 64, "4 KiB": 4 << 10, "64 KiB": 64 << 10, "1 MiB": 1 << 20, "8 MiB": 8 << 20}
LIVE = 400 * MiB
SLICE = 0.002  # seconds


def mixed(rng: random.Random) -> int:
    """60 % of the sizes are up to 4 KiB, 30 % up to 256 KiB, 10 % up to 8 MiB; each class uniform."""
    kind = rng.random()
    if kind < 0.6:
        return rng.randrange(64, 4 << 10)
    return rng.randrange(4 << 10, 256 << 10) if kind < 0.9 else rng.randrange(256 << 10, 8 << 20)


def uniform(rng: random.Random) -> int:
    """Any size up to 8 MiB: few ranges, all of them large for their blocks. The hard case."""
    return rng.randrange(64, 8 << 20)


WORKLOADS = {"mixed": mixed, "uniform": uniform}


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """Times, then each workload, then a pool that shrinks."""
    figures: dict[str, Any] = {"times": times(device, 5 if quick else 15)}
    steps = 20_000 if quick else 60_000
    figures["times"]["mixed sizes"] = time_mixed(device, 3 if quick else 7)
    for name, sizes in WORKLOADS.items():
        for slices in (False, True):
            key = f"{name}, defragmented" if slices else name
            figures[key] = await fragmentation(device, sizes, steps if name == "mixed" else 10_000, slices)
    figures["shrink"] = await shrink(device)
    print_table("memory pools", rows(figures), HEADER)
    return figures


def times(device: wgpu.GPUDevice, rounds: int, repeats: int = 400) -> dict[str, Any]:
    """µs of CPU to make and give up one of each size, beside 2,000 ranges that live on; rounds interleaved."""

    def through_pool(size: int) -> None:
        pool.allocate(size).release()

    def own_buffer(size: int) -> None:
        device.create_buffer(size=size, usage=USAGE).destroy()

    ways: dict[str, Callable[[int], None]] = {"aiostage": through_pool, "create_buffer": own_buffer}
    figures: dict[str, Any] = {}
    rng = random.Random(1)
    with BufferPool(device, USAGE) as pool:
        ranges = [pool.allocate(rng.randrange(64, 64 << 10)) for _ in range(4000)]
        rng.shuffle(ranges)
        for _ in range(2000):
            ranges.pop().release()
        for label, size in SIZES.items():
            taken: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    started = time.thread_time()
                    for _ in range(repeats):
                        way(size)
                    taken[name].append((time.thread_time() - started) / repeats)
            figures[label] = {name: spread(values, 1e6) for name, values in taken.items()}
        for range_ in ranges:
            range_.release()
    return figures


class Churn:
    """Random allocations and releases, `LIVE` bytes being held once that is reached."""

    def __init__(self, make: Callable[[int], Any], drop: Callable[[Any], object], sizes: Callable[..., int]) -> None:
        self._make, self._drop, self._sizes = make, drop, sizes
        self._rng = random.Random(2)
        self.held: list[tuple[Any, int]] = []
        self.requested = self.peak = 0
        self.allocations = 0

    def step(self) -> None:
        size = self._sizes(self._rng)
        if self.requested + size <= LIVE:
            self.held.append((self._make(size), size))
            self.requested += size
            self.peak = max(self.peak, self.requested)
            self.allocations += 1
        else:
            self.drop_one()

    def drop_one(self) -> None:
        index = self._rng.randrange(len(self.held))
        self.held[index], self.held[-1] = self.held[-1], self.held[index]
        made, size = self.held.pop()
        self._drop(made)
        self.requested -= size

    def end(self) -> None:
        while self.held:
            self.drop_one()


def time_mixed(device: wgpu.GPUDevice, rounds: int, steps: int = 15_000) -> dict[str, Any]:
    """µs of CPU to make and give up one of the mixed workload, less what the workload itself takes."""

    def own_buffer(size: int) -> Any:
        return device.create_buffer(size=size, usage=USAGE)

    taken: dict[str, list[float]] = {"aiostage": [], "create_buffer": []}
    for _ in range(rounds):
        idle = run_mixed(int, lambda _: None, steps)
        with BufferPool(device, USAGE) as pool:
            taken["aiostage"].append(run_mixed(pool.allocate, lambda range_: range_.release(), steps) - idle)
        taken["create_buffer"].append(run_mixed(own_buffer, lambda buffer: buffer.destroy(), steps) - idle)
    return {name: spread(values, 1e6) for name, values in taken.items()}


def run_mixed(make: Callable[[int], Any], drop: Callable[[Any], object], steps: int) -> float:
    """Seconds of CPU for each allocation of a churn, its release included."""
    churn = Churn(make, drop, mixed)
    started = time.thread_time()
    for _ in range(steps):
        churn.step()
    churn.end()
    return (time.thread_time() - started) / churn.allocations


async def fragmentation(
    device: wgpu.GPUDevice, sizes: Callable[[random.Random], int], steps: int, slices: bool
) -> dict[str, Any]:
    """Shares that are lost, over the second half of a workload; with a slice of `defragment` each 500 steps or not."""
    samples: list[PoolStatistics] = []
    reserved = 0
    with BufferPool(device, USAGE) as pool:
        churn = Churn(pool.allocate, lambda range_: range_.release(), sizes)
        for step in range(steps):
            churn.step()
            if step % 500 == 0:
                if slices:
                    await pool.defragment(SLICE)
                samples.append(pool.statistics())
                reserved = max(reserved, samples[-1].reserved)
        moved = pool.statistics().bytes_moved
        churn.end()
    half = samples[len(samples) // 2 :]
    return {
        "ranges": statistics.mean(stats.ranges for stats in half),
        "requested": statistics.mean(stats.requested for stats in half),
        "reserved": statistics.mean(stats.reserved for stats in half),
        "internal": statistics.mean(stats.internal_fragmentation for stats in half),
        "external": statistics.mean(stats.external_fragmentation for stats in half),
        "fragmentation": statistics.mean(stats.fragmentation for stats in half),
        "fragmentation_max": max(stats.fragmentation for stats in half),
        "peak_over_live": reserved / churn.peak - 1,
        "bytes_moved": moved,
        "steps": steps,
    }


async def shrink(device: wgpu.GPUDevice) -> dict[str, Any]:
    """Fill a pool, release three ranges of four at random, and defragment in slices until nothing is left to do."""
    with BufferPool(device, USAGE) as pool:
        churn = Churn(pool.allocate, lambda range_: range_.release(), mixed)
        while churn.requested < LIVE * 0.98:
            churn.step()
        for _ in range(len(churn.held) * 3 // 4):
            churn.drop_one()
        before = pool.statistics()
        lags: list[float] = []
        watch = asyncio.create_task(watch_lag(lags))
        slices, finished = [], False
        while not finished:
            done = await pool.defragment(SLICE)
            slices.append(done.seconds)
            finished = done.finished
            await asyncio.sleep(0)
        watch.cancel()
        after = pool.statistics()
        churn.end()
    return {
        "blocks_before": before.blocks,
        "blocks_after": after.blocks,
        "blocks_needed": -(-after.used // after.block_size),
        "fragmentation_before": before.fragmentation,
        "fragmentation_after": after.fragmentation,
        "ranges_moved": after.ranges_moved,
        "bytes_moved": after.bytes_moved,
        "slice_ms": spread(slices, 1e3),
        "lag_ms": spread(lags, 1e3),
    }


HEADER = ("what", "target", "aiostage", "create_buffer + destroy")


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for label, ways in figures["times"].items():
        ours, theirs = ways["aiostage"]["p50"], ways["create_buffer"]["p50"]
        cell = f"{ours:.1f} µs: {1 - ours / theirs:.0%} less"
        table.append((f"CPU to make and give up one, {label}", "≥ 50 % less", cell, f"{theirs:.1f} µs"))
    for name in WORKLOADS:
        for key in (name, f"{name}, defragmented"):
            at = figures[key]
            cell = (
                f"{at['fragmentation']:.1%}, at most {at['fragmentation_max']:.1%} (internal {at['internal']:.1%}, "
                f"external {at['external']:.1%}); {at['reserved'] / at['requested'] - 1:.1%} more held than asked for"
            )
            label = f"fragmentation, {key}: {at['ranges']:.0f} ranges in {at['reserved'] / MiB:.0f} MiB"
            table.append((label, "< 5 %" if name == "mixed" else "–", cell, "–"))
    at, slices = figures["shrink"], figures["shrink"]["slice_ms"]
    cell = (
        f"{at['blocks_before']} → {at['blocks_after']} blocks ({at['blocks_needed']} at least), "
        f"{at['bytes_moved'] / MiB:.0f} MiB moved in {slices['n']} slices of {slices['p50']:.1f} ms; "
        f"loop lag p99 {at['lag_ms']['p99']:.1f} ms"
    )
    table.append(("three ranges of four released, then defragmented", "blocks come free", cell, "–"))
    return table
