"""What being watched costs an upload (docs/monitor.md): not served, nobody looks, one reads, one has the live view.

The ways take turns in one run, each beside the others of its round. Who looks is a process of its own; where there are
few cores it takes some of them, which is no cost of the program's. So beside the time there is the CPU of this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import wgpu

import aiostage
from aiostage import monitoring, opened
from aiostage.monitoring.samples import _Watched
from aiostage.monitoring.server import PERIOD

from .machine import print_table, spread

MiB = aiostage.MiB
SIZE = 1 * MiB
COROUTINES = 8
READ = """
import socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect(sys.argv[1])
while connection.recv(1 << 16):
    pass
"""
WAYS = ("not served", "nobody looks", "one reads", "the live view")
HEADER = ("way", "upload, µs", "time, beside not served", "CPU, µs an upload", "CPU, beside not served")


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """Time and CPU of an upload of 1 MiB, by eight coroutines; CPU of the thread that serves, and of one answer."""
    rounds, seconds = (3, 0.3) if quick else (32, 0.7)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    cpu: dict[str, list[float]] = {way: [] for way in WAYS}
    serving: list[float] = []
    async with aiostage.StagingRing(device) as ring:
        uploads = Uploads(device, ring)
        await uploads.go_on(seconds)
        for turn in range(rounds):
            for way in (*WAYS[turn % len(WAYS) :], *WAYS[: turn % len(WAYS)]):
                with watched(way) as visitor:
                    await settle(visitor)
                    served, used = serving_cpu(), time.process_time()
                    took, count = await uploads.go_on(seconds)
                    cpu[way].append((time.process_time() - used) / count)
                    times[way].append(took / count)
                    if way == "one reads":
                        serving.append((serving_cpu() - served) / took)
        figures = {
            "upload_us": {way: spread(found, 1e6) for way, found in times.items()},
            "cpu_us": {way: spread(found, 1e6) for way, found in cpu.items()},
            "time_ratio": {way: ratios(found, times["not served"]) for way, found in times.items()},
            "cpu_ratio": {way: ratios(found, cpu["not served"]) for way, found in cpu.items()},
            "serving_percent_of_a_core": spread(serving, 100),
            "answer_us": spread(answers(200 if quick else 2000), 1e6),
            "answers_a_second": 1 / PERIOD,
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
            while time.perf_counter() < end:
                fence = await self._ring.write_buffer(self._targets[index], 0, self._sources[count % 64])
                count += 1
            await fence

        started = time.perf_counter()
        end = started + seconds
        await asyncio.gather(*(stream(index) for index in range(COROUTINES)))
        return time.perf_counter() - started, count


@contextlib.contextmanager
def watched(way: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """So, and not otherwise, while this lasts."""
    if way == "not served":
        yield None
        return
    path = monitoring.serve()
    try:
        if way == "nobody looks":
            yield None
        else:
            with visitor(way, str(path)) as process:
                yield process
    finally:
        monitoring.stop()


@contextlib.contextmanager
def visitor(way: str, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks; the live view in a terminal that something empties."""
    reads = [sys.executable, "-S", "-c", READ, path]
    shows = [sys.executable, "-m", "aiostage.tools.cli", "monitor", str(os.getpid())]
    screen, inner = pty.openpty()
    command = reads if way == "one reads" else shows
    process = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner)
    os.close(inner)
    loop = asyncio.get_running_loop()
    loop.add_reader(screen, read_away, loop, screen)
    try:
        yield process
    finally:
        loop.remove_reader(screen)
        process.kill()
        process.wait()
        os.close(screen)


def read_away(loop: asyncio.AbstractEventLoop, screen: int) -> None:
    try:
        os.read(screen, 1 << 16)
    except OSError:
        loop.remove_reader(screen)


async def settle(process: subprocess.Popen[bytes] | None) -> None:
    """Until who looks does nothing but that."""
    await asyncio.sleep(0.2 if process is None else 0.5 if process.args[1] == "-S" else 3.0)  # type: ignore[index]
    if process is not None:
        assert process.poll() is None, "who looks has left"


def serving_cpu() -> float:
    """Seconds of the thread that serves; 0 without one. On Linux."""
    for thread in threading.enumerate():
        if thread.name == "aiostage monitor":
            text = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text()
            return int(text.split()[0]) / 1e9
    return 0.0


def ratios(found: list[float], base: list[float]) -> dict[str, float]:
    """Median and quartiles, each beside that of its own round."""
    return spread([one / other for one, other in zip(found, base, strict=True)])


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
    """Median, and the quartiles."""
    median, low, high = (100 * (ratio[at] - 1) for at in ("p50", "p25", "p75"))
    return f"{median:+.1f} % ({low:+.1f} … {high:+.1f})"


def show(figures: dict[str, Any]) -> None:
    print_table("An upload of 1 MiB, by eight coroutines", rows(figures), HEADER)
    serving, answer = figures["serving_percent_of_a_core"]["p50"], figures["answer_us"]["p50"]
    share = answer * figures["answers_a_second"] / 1e4
    print(
        f"\n  While one reads: {serving:.2f} % of a core in the thread that serves, and {answer:.0f} µs of the loop's"
    )
    print(f"  thread for an answer, {figures['answers_a_second']:.0f} times a second: {share:.2f} % of it.")
