"""The upload queue: time to queue, change a priority, cancel and admit, beside many that wait; and a feed's."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

import wgpu

import aiostage
from aiostage.streams import UploadQueue, feed

from .machine import print_table, spread

WAITING = 100_000
DATA = bytes(4096)


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """µs of CPU for each call, with `WAITING` uploads in the queue, and of time for an item of a feed."""
    rounds = 3 if quick else 7
    target = device.create_buffer(size=1 << 20, usage=wgpu.BufferUsage.COPY_DST)
    figures: dict[str, Any] = {}
    async with aiostage.StagingRing(device, 3, aiostage.MiB) as ring:
        for name, values in (await calls(ring, target, rounds)).items():
            figures[name] = spread(values, 1e6)
        figures["feed_us"] = spread([await feeding(ring, target, 1000) for _ in range(rounds)], 1e6)
        figures["write_us"] = spread([await writing(ring, target, 1000) for _ in range(rounds)], 1e6)
    print_table("upload queue", rows(figures), HEADER)
    return figures


async def calls(ring: aiostage.StagingRing, target: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds for each call of a kind, each round in a queue of its own."""
    taken: dict[str, list[float]] = {}
    rng = random.Random(1)
    priorities = [rng.random() for _ in range(WAITING)]

    def measure(name: str, call: Callable[[Any], object], values: Sequence[Any], each: int = 1) -> list[Any]:
        """Means of a thousand calls, each of which is about `each` uploads."""
        made = []
        for first in range(0, len(values), 1000):
            some = values[first : first + 1000]
            started = time.thread_time()
            made += [call(value) for value in some]
            taken.setdefault(name, []).append((time.thread_time() - started) / len(some) / each)
        return made

    for _ in range(rounds):
        async with UploadQueue(ring, bytes_per_frame=aiostage.MiB, idle_after=None) as queue:

            def add(number: int, queue: UploadQueue = queue) -> Any:
                return queue.write_buffer(target, 0, DATA, priority=priorities[number], tag=number // 10)

            def rank(upload: Any) -> None:
                upload.priority = 1 - upload.priority

            uploads = measure("queue_us", add, range(WAITING))
            measure("reprioritize_us", rank, uploads)
            started = time.thread_time()
            async with ring.frame(uploads=queue):
                pass
            admitted = queue.statistics().done or queue.statistics().running
            taken.setdefault("admit_us", []).append((time.thread_time() - started) / max(1, admitted))
            measure("cancel_us", lambda upload: upload.cancel(), uploads[: WAITING // 2])
            measure("cancel_by_tag_us", queue.cancel, range(WAITING // 20, WAITING // 10), 10)
            assert queue.statistics().queued == 0
    return taken


async def feeding(ring: aiostage.StagingRing, target: Any, items: int) -> float:
    """Seconds of time for an item."""
    started = time.perf_counter()
    await feed(ring, range(items), lambda number: ring.write_buffer(target, 4096 * (number % 256), DATA))
    return (time.perf_counter() - started) / items


async def writing(ring: aiostage.StagingRing, target: Any, items: int) -> float:
    """The same, one by one by hand."""
    started = time.perf_counter()
    for number in range(items):
        fence = await ring.write_buffer(target, 4096 * (number % 256), DATA)
    await fence
    return (time.perf_counter() - started) / items


HEADER = ("what", "target", "µs, median", "p25", "p75", "p99")
NAMES = {
    "queue_us": f"queue one of {WAITING:,}",
    "reprioritize_us": "change its priority",
    "cancel_us": "cancel it",
    "cancel_by_tag_us": "cancel it with nine others of its tag",
    "admit_us": "admit one of 4 KiB to a frame",
    "feed_us": "feed an item of 4 KiB, eight at a time",
    "write_us": "write it by hand, one at a time",
}


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    table = []
    for key, name in NAMES.items():
        target = "<= 5" if "cancel" in key or key in ("queue_us", "reprioritize_us") else "-"
        table.append((name, target, *(f"{figures[key][at]:.2f}" for at in ("p50", "p25", "p75", "p99"))))
    return table
