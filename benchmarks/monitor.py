"""What being watched costs an upload (docs/monitor.md): not served, nobody looks, one reads.

The ways take turns of a second, ninety times in any order, and each is compared with "not served" of its own round. Who
reads is a process of its own. So is `aiostage monitor`, whose CPU is measured apart: where there are few cores it takes
a share of them, which is no cost of the program's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import wgpu

import aiostage
from aiostage import monitoring, opened
from aiostage.monitoring.samples import _Watched
from aiostage.monitoring.server import PERIOD

from .machine import print_table, spread

MiB = aiostage.MiB
SIZE = 1 * MiB
COROUTINES = 8
WAYS = ("not served", "nobody looks", "one reads")
HEADER = ("way", "upload, µs", "time, beside not served", "CPU, µs an upload", "CPU, beside not served")

READ = """
import os, select, socket, sys
connection = None
while True:
    ready = select.select([0] if connection is None else [0, connection], [], [])[0]
    if connection in ready:
        connection.recv(1 << 16)
    if 0 in ready:
        if connection is not None:
            connection.close()
        path = os.read(0, 1000).decode().strip()
        connection = None
        if path:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
        os.write(1, b".")
"""
"""Each line on its standard input is where to read from now; an empty one: nowhere."""


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """Time and CPU of an upload of 1 MiB, by eight coroutines; CPU of the thread that serves, of one answer, and of
    the live view."""
    rounds, seconds = (10, 0.1) if quick else (90, 1.0)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    serving: list[float] = []
    async with aiostage.StagingRing(device) as ring:
        uploads = Uploads(device, ring)
        await uploads.go_on(2 * seconds)
        with Visitor() as visitor:
            for turn in range(rounds):
                for way in random.Random(turn).sample(WAYS, len(WAYS)):
                    with watched(way, visitor):
                        await uploads.go_on(seconds / 8)  # what was between the turns is over
                        served, used = serving_cpu(), time.process_time()
                        took, count = await uploads.go_on(seconds)
                        cpu[way].append((time.process_time() - used) / count)
                        times[way].append(took / count)
                        if way == "one reads":
                            serving.append((serving_cpu() - served) / took)
        figures = {
            "upload_us": {way: spread(found, 1e6) for way, found in times.items()},
            "cpu_us": {way: spread(found, 1e6) for way, found in cpu.items()},
            "time_ratio": {way: median(beside(found, times["not served"])) for way, found in times.items()},
            "cpu_ratio": {way: median(beside(found, cpu["not served"])) for way, found in cpu.items()},
            "serving_percent_of_a_core": spread(serving, 100),
            "answer_us": spread(answers(200 if quick else 2000), 1e6),
            "answers_a_second": 1 / PERIOD,
            "live_view_percent_of_a_core": await live_view(uploads, 1.0 if quick else 10.0),
        }
    show(figures)
    return figures


class Uploads:
    """Eight coroutines, each with a buffer of its own."""

    def __init__(self, device: wgpu.GPUDevice, ring: aiostage.StagingRing) -> None:
        self._ring = ring
        usage = wgpu.BufferUsage.COPY_DST
        self._targets = [device.create_buffer(size=SIZE, usage=usage) for _ in range(COROUTINES)]
        self._sources = [np.full(SIZE, value, np.uint8) for value in range(64)]

    async def go_on(self, seconds: float) -> tuple[float, int]:
        """How long it took, and how many they were."""
        count = 0

        async def stream(index: int) -> None:
            nonlocal count
            while True:  # once at least, however late it comes to begin
                fence = await self._ring.write_buffer(self._targets[index], 0, self._sources[count % 64])
                count += 1
                if time.perf_counter() > end:
                    break
            await fence

        started = time.perf_counter()
        end = started + seconds
        await asyncio.gather(*(stream(index) for index in range(COROUTINES)))
        return time.perf_counter() - started, count


class Visitor:
    """A process that reads where it is told to."""

    def __enter__(self) -> Visitor:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-S", "-c", READ], stdin=pipe, stdout=pipe, bufsize=0)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def look_at(self, path: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n".encode())
        assert self._process.stdout.read(1) == b".", "who reads has left"


@contextlib.contextmanager
def watched(way: str, visitor: Visitor) -> Iterator[None]:
    """So, and not otherwise, while this lasts."""
    if way == "not served":
        yield
        return
    path = monitoring.serve()
    if way == "one reads":
        visitor.look_at(path)
    try:
        yield
    finally:
        visitor.look_at("")
        monitoring.stop()


def serving_cpu() -> float:
    """Seconds of the thread that serves; 0 without one. On Linux."""
    for thread in threading.enumerate():
        if thread.name == "aiostage monitor":
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            return int(text.split()[0]) / 1e9
    return 0.0


def beside(found: list[float], base: list[float]) -> list[float]:
    """Each beside that of its own round."""
    return [one / other for one, other in zip(found, base, strict=True)]


def median(values: list[float]) -> dict[str, float]:
    """With its 95 % interval, by rank."""
    ordered, half = sorted(values), 0.98 * len(values) ** 0.5
    middle = len(values) / 2
    at = lambda rank: round(ordered[min(max(0, int(rank)), len(values) - 1)], 5)  # noqa: E731
    return {"n": len(values), "low": at(middle - half), "p50": at(middle), "high": at(middle + half)}


def answers(count: int) -> list[float]:
    """CPU seconds of the loop's thread for an answer of each open ring."""
    watched = [_Watched(one) for one in opened.rings()]
    used = []
    for _ in range(count):
        started = time.thread_time()
        for one in watched:
            one._look(time.perf_counter())
        used.append(time.thread_time() - started)
    return used


async def live_view(uploads: Uploads, seconds: float) -> float:
    """CPU of `aiostage monitor` in a terminal of 100 columns, in percent of a core, once it shows something."""
    monitoring.serve()
    screen, inner = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "aiostage.tools.cli", "monitor", str(os.getpid())]
    process = psutil.Popen(command, stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    shown = 0

    def read_away() -> None:
        nonlocal shown
        shown += len(os.read(screen, 1 << 16))

    loop = asyncio.get_running_loop()
    loop.add_reader(screen, read_away)
    try:
        while shown < 10_000:  # it is through with its imports
            assert process.poll() is None, "the live view has ended"
            await uploads.go_on(0.1)
        before = sum(process.cpu_times()[:2])
        took, _ = await uploads.go_on(seconds)
        return round(100 * (sum(process.cpu_times()[:2]) - before) / took, 2)
    finally:
        loop.remove_reader(screen)
        process.kill()
        process.wait()
        os.close(screen)
        monitoring.stop()


def rows(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            way,
            f"{figures['upload_us'][way]['p50']:.0f}",
            percent(figures["time_ratio"][way]),
            f"{figures['cpu_us'][way]['p50']:.0f}",
            percent(figures["cpu_ratio"][way]),
        )
        for way in figures["upload_us"]
    ]


def percent(ratio: dict[str, float]) -> str:
    """Median, and its 95 % interval."""
    middle, low, high = (100 * (ratio[at] - 1) for at in ("p50", "low", "high"))
    return f"{middle:+.1f} % ({low:+.1f} … {high:+.1f})"


def show(figures: dict[str, Any]) -> None:
    print_table("An upload of 1 MiB, by eight coroutines", rows(figures), HEADER)
    serving, answer = figures["serving_percent_of_a_core"]["p50"], figures["answer_us"]["p50"]
    times = figures["answers_a_second"]
    print(
        f"\n  While one reads: {serving:.2f} % of a core in the thread that serves; and {answer:.0f} µs of the loop's"
    )
    print(f"  thread for an answer, {times:.0f} times a second, {answer * times / 1e4:.2f} % of it.")
    print(f"  The live view itself: {figures['live_view_percent_of_a_core']:.1f} % of a core, in its own process.")
