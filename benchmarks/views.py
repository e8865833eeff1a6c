"""What guarantee 2 costs: making a view of a slot, and the commit's look at what is still alive (docs/views.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import wgpu

import aiostage

from .machine import print_table, spread

COUNT = 1000
SIZE = 64

WAYS: dict[str, tuple[bool, Callable[[aiostage.Allocation], Any]]] = {
    "no view": (False, lambda slot: None),
    "slot.view, dropped": (False, lambda slot: slot.view and None),
    "slot.view, alive": (False, lambda slot: slot.view),
    "slot.array(), dropped": (False, lambda slot: slot.array() is None),
    "slot.array(), alive": (False, lambda slot: slot.array()),
    "slot.array(np.float32, (4, 4)) and its 4 rows, alive": (False, lambda slot: list(slot.array(np.float32, (4, 4)))),
    "slot.array(), dropped, strict_views=True": (True, lambda slot: slot.array() is None),
}


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """CPU of a view and of a commit, µs."""
    figures: dict[str, Any] = {"commit_us": {}, "view_us": {}}
    for name, (strict, make) in WAYS.items():
        views, commits = await costs(device, strict, make, 20 if quick else 100)
        figures["view_us"][name], figures["commit_us"][name] = spread(views, 1e6), spread(commits, 1e6)
    figures["write_us"] = spread(list(map(plain_write, range(20 if quick else 100))), 1e6)
    show(figures)
    return figures


async def costs(
    device: wgpu.GPUDevice, strict: bool, make: Callable[[aiostage.Allocation], Any], rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds for making the views of a slot, and for its commit: means of a thousand slots, for each round."""
    views, commits = [], []
    async with aiostage.StagingRing(device, 3, aiostage.MiB, strict_views=strict) as ring:
        for _ in range(rounds):
            slots = [await ring.allocate(SIZE) for _ in range(COUNT)]
            started = time.thread_time()
            alive = [make(slot) for slot in slots]
            made = time.thread_time()
            for slot in slots:
                slot.commit()
            done = time.thread_time()
            views.append((made - started) / COUNT)
            commits.append((done - made) / COUNT)
            del alive, slots
            await (await ring.submit())
    return views, commits


def plain_write(_: int) -> float:
    """Seconds for writing as many bytes to ordinary memory, to compare."""
    target, data = np.empty(SIZE, np.uint8), np.ones(SIZE, np.uint8)
    started = time.thread_time()
    for _ in range(COUNT):
        target[:] = data
    return (time.thread_time() - started) / COUNT


def show(figures: dict[str, Any]) -> None:
    base = figures["commit_us"]["no view"]["p50"]
    rows = [
        (name, f"{figures['view_us'][name]['p50']:.2f} µs", f"{at['p50']:.2f} µs", f"{at['p50'] - base:+.2f} µs")
        for name, at in figures["commit_us"].items()
    ]
    rows.append(("(64 B written to ordinary memory)", f"{figures['write_us']['p50']:.2f} µs", "–", "–"))
    print_table("Views of a slot of 64 B", rows, ("alive at commit", "making it", "commit", "beside none"))
