"""What the calls of a submit cost the thread that makes them, alone and beside threads that copy.

With the interpreter's lock given away at each call, as through cffi, and kept (`aiostage/gpu/functions.py`).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import lib_path

from aiostage.data.copies import BufferCopy
from aiostage.gpu.device import connect
from aiostage.gpu.functions import Functions
from aiostage.gpu.protocol import map_first

from .machine import print_table

MiB = 1 << 20
SIZE = 4 * MiB
BESIDE = {"alone": (0, 0), "8 threads copy 4 MiB": (8, 4 * MiB), "8 threads copy 1 MiB": (8, MiB)}
HEADER = ("a submit's calls, µs", "lock given away", "kept")


class Source(NamedTuple):
    """A staging buffer, as copies see it."""

    handle: Any


async def run(device: wgpu.GPUDevice, quick: bool) -> dict[str, Any]:
    """Median µs of a whole submit of one 4 MiB copy: seal, encode, submit, fence, map again."""
    native = connect(device)
    native.attach()
    target = device.create_buffer(size=SIZE, usage=wgpu.BufferUsage.COPY_DST)
    sources = [Source(native.create_staging_buffer(SIZE, native.is_host_cached(None))) for _ in range(8)]
    map_first(native, [source.handle for source in sources])
    figures: dict[str, Any] = {}
    kept = native._holding
    for name, (threads, size) in BESIDE.items():
        with copying(threads, size):
            for way, holding in (("given away", False), ("kept", True)):
                native._holding = Functions(lib_path, holding=True) if holding else None
                times = [submit(native, source, target) for source in sources * (10 if quick else 50)]
                figures.setdefault(name, {})[way] = round(statistics.median(times) * 1e6, 1)
    native._holding = kept
    for source in sources:
        native.destroy(source.handle)
    native.detach()
    show(figures)
    return figures


def submit(native: Any, source: Source, target: Any) -> float:
    """Seconds that the calls take; then the buffer is waited for."""
    done: list[bool] = []
    started = time.perf_counter()
    native.unmap(source.handle)
    native.submit([BufferCopy(source, 0, target, 0, SIZE)], [])
    native.on_work_done(done.append)
    native.map(source.handle, done.append)
    elapsed = time.perf_counter() - started
    while len(done) < 2:
        native.poll()
        time.sleep(0)
    return elapsed


@contextmanager
def copying(threads: int, size: int) -> Iterator[None]:
    """That many threads copy so much again and again, as those that fill staging buffers do."""
    stopping = threading.Event()

    def copy() -> None:
        source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
        while not stopping.is_set():
            np.copyto(target, source)

    running = [threading.Thread(target=copy) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        time.sleep(0.1)
        yield
    finally:
        stopping.set()
        for thread in running:
            thread.join()


def rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, str(at["given away"]), str(at["kept"])) for name, at in figures.items()]


def show(figures: dict[str, Any]) -> None:
    print_table("Calls of a submit", rows(figures), HEADER)
