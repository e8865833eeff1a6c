"""What makes uploads fast and cannot be noisy: how often the GPU is called, which thread copies, what is allocated.

The timed verdicts are in benchmarks/.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wgpu
from interpose import count_calls
from readback import read_buffer
from simulated import SimulatedGpu

import aiostage
from aiostage import KiB, MiB
from aiostage import ring as ring_module
from aiostage.data import pieces
from aiostage.gpu.device import connect

OpenRing = Callable[..., Any]
Target = Callable[[int], wgpu.GPUBuffer]


@pytest.fixture
def calls(device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch) -> Callable[[aiostage.StagingRing], Counter[str]]:
    """Counts what a ring asks of the GPU from now on."""
    native = connect(device)
    monkeypatch.setattr(native, "functions", native.functions)
    names = {
        "submit": "wgpuQueueSubmit",
        "map": "wgpuBufferMapAsync",
        "unmap": "wgpuBufferUnmap",
        "on_work_done": "wgpuQueueOnSubmittedWorkDone",
    }
    called = count_calls(native, *names.values())
    counter: Counter[str] = Counter()
    for name in ("create_staging_buffer", "create_relay"):
        original = getattr(native, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            counter[name] += 1
            return original(*args)

        monkeypatch.setattr(native, name, counted)

    class Since(Counter[str]):
        """Without what was before."""

        def __init__(self) -> None:
            self.before = called.copy()
            counter.clear()

        def __getitem__(self, name: str) -> int:
            return called[names[name]] - self.before[names[name]] if name in names else counter[name]

    return lambda ring: Since()


async def test_a_large_upload_costs_one_map_a_buffer_and_copies_each_byte_once(
    open_ring: OpenRing, target: Target, calls: Any
) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=MiB), target(10 * MiB)
    counter, data = calls(ring), np.arange(10 * MiB, dtype=np.uint8)
    await (await ring.write_buffer(buffer, 0, data))
    assert counter["unmap"] == counter["map"] == 10
    assert counter["submit"] <= ring.stats_nowait().submits == 10  # some go together
    assert counter["on_work_done"] == counter["submit"]
    assert counter["create_staging_buffer"] == counter["create_relay"] == 0
    assert ring.stats_nowait().bytes_total == 10 * MiB
    assert read_buffer(buffer).tobytes() == data.tobytes()


async def test_uploads_of_the_same_turn_share_one_submit_and_one_buffer(
    open_ring: OpenRing, target: Target, calls: Any
) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=MiB), target(64 * KiB)
    counter = calls(ring)
    data = [np.full(KiB, i, np.uint8) for i in range(64)]
    fences = await asyncio.gather(*(ring.write_buffer(buffer, i * KiB, data[i]) for i in range(64)))
    await fences[-1]
    assert counter["on_work_done"] == 1
    assert counter["submit"] == counter["unmap"] == counter["map"] == 1
    assert read_buffer(buffer).tobytes() == b"".join(data)


async def test_a_thousand_small_writes_in_a_batch_are_one_submit(
    open_ring: OpenRing, target: Target, calls: Any
) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=MiB), target(64_000)
    counter = calls(ring)
    async with ring.batch() as batch:
        for i in range(1000):
            await batch.write_buffer(buffer, 64 * i, np.full(64, i % 251, np.uint8))
    await batch.fence
    assert counter["on_work_done"] == 1
    assert counter["submit"] == counter["unmap"] == counter["map"] == 1
    assert read_buffer(buffer).tobytes() == b"".join(bytes([i % 251]) * 64 for i in range(1000))


@pytest.mark.parametrize(("size", "on_loop"), [(256 * KiB, True), (256 * KiB + 4, False)])
async def test_only_uploads_within_the_inline_size_are_copied_on_the_loop(
    open_ring: OpenRing, target: Target, monkeypatch: pytest.MonkeyPatch, size: int, on_loop: bool
) -> None:
    here = []

    def noted(*args: Any, **kwargs: Any) -> None:
        here.append(threading.get_ident())
        copy_bytes(*args, **kwargs)

    copy_bytes = pieces.copy_bytes
    monkeypatch.setattr(pieces, "copy_bytes", noted)
    ring = await open_ring(ring_count=3, buffer_size=MiB)
    await (await ring.write_buffer(target(size), 0, bytes(size)))
    assert here == [threading.get_ident()] * on_loop  # the others know nothing of Python


async def test_streaming_leaves_no_more_objects_than_there_were(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=MiB), target(MiB)
    data = np.ones(MiB, np.uint8)

    async def stream(count: int) -> dict[str, Any]:
        for _ in range(count):
            fence = await ring.write_buffer(buffer, 0, data)
        await fence
        gc.collect()  # other tests' objects
        counts: dict[str, Any] = wgpu.diagnostics.object_counts.get_dict()
        return {name: of["count"] for name, of in counts.items()}

    before, after = await stream(4), await stream(100)
    assert {name: count for name, count in after.items() if count > before[name]} == {}  # others' may go meanwhile


async def test_with_nothing_pending_nobody_polls(open_ring: OpenRing, target: Target) -> None:
    ring = await open_ring(ring_count=3, buffer_size=MiB)
    await (await ring.write_buffer(target(MiB), 0, bytes(MiB)))
    while not ring._tracker.carrier.counts["is_idle"]:
        await asyncio.sleep(0.001)
    polls = ring._tracker.carrier.counts["polls"]
    await asyncio.sleep(0.05)
    assert ring._tracker.carrier.counts["polls"] == polls


@pytest.mark.parametrize(
    ("cores", "limit", "chosen"),
    [(16, 512, (12, 8)), (16, 128, (8, 8)), (16, 48, (3, 8)), (4, 512, (3, 8))],
)
async def test_the_default_ring_follows_cores_and_budget(
    monkeypatch: pytest.MonkeyPatch, cores: int, limit: int, chosen: tuple[int, int]
) -> None:
    monkeypatch.setattr(ring_module.os, "cpu_count", lambda: cores)
    budget = aiostage.MemoryBudget(limit * MiB)
    async with aiostage.StagingRing(SimulatedGpu(free_running=True), budget=budget) as ring:
        assert (ring.ring_count, ring.buffer_size // MiB) == chosen
        assert budget.used == ring.ring_count * ring.buffer_size
        assert ring.frames_in_flight == 3


async def test_a_ring_that_was_told_its_size_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module.os, "cpu_count", lambda: 64)
    async with aiostage.StagingRing(SimulatedGpu(free_running=True), 5, 4 * KiB) as ring:
        assert (ring.ring_count, ring.buffer_size, ring.frames_in_flight) == (5, 4 * KiB, 5)


def test_importing_it_brings_in_no_event_loop_and_none_of_the_parts_beside_the_ring() -> None:
    code = "import sys, wgpu, numpy, anyio; old = set(sys.modules); import aiostage; aiostage.StagingRing; "
    code += "print(*set(sys.modules) - old)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "aiostage.ring" in loaded
    assert not {"asyncio", "trio", "uvloop", "aiostage.textures", "aiostage.pools", "aiostage.tools"} & set(loaded)


async def test_no_way_of_uploading_leaves_work_for_the_garbage_collector(
    gpu: SimulatedGpu, simulated_ring: Any
) -> None:
    """A collection of a large program's heap holds the loop for 100 ms."""
    gpu.free_running = True
    ring, buffer, data = await simulated_ring(buffer_size=64 * KiB, inline_size=1024), gpu.buffer(64 * KiB), bytes(2048)

    async def slot() -> None:
        with await ring.allocate(64) as slot:
            slot.array()[:] = 1
            slot.copy_to_buffer(buffer)
        await ring.submit()

    async def together(make: Any) -> None:
        async with make() as batch:
            await batch.write_buffer(buffer, 0, data)
            await batch.write_buffer(buffer, 0, data[:64])

    ways = {
        "slots": slot,
        "small uploads": lambda: ring.write_buffer(buffer, 0, data[:64]),
        "uploads": lambda: ring.write_buffer(buffer, 0, data),
        "batches": lambda: together(ring.batch),
        "frames": lambda: together(ring.frame),
    }
    for name, upload in ways.items():
        for counted in (False, True):
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await upload()
                await ring.fence()
                gc.set_debug(gc.DEBUG_SAVEALL)
                gc.collect()
                left = [thing for thing in gc.garbage if type(thing).__module__.startswith("aiostage")]
                assert not counted or not left, f"{name} leave {left}"
                left.clear()
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
