"""One scenario of everything, on asyncio, uvloop and trio."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
import types
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import wgpu
from simulated import SimulatedGpu, until

import aiostage
from aiostage import StagingRing
from aiostage.loop import LoopPort

Run = Callable[[Callable[[], Awaitable[None]]], None]  # conftest.py's fixture


async def test_this_suite_runs_on_the_loop_that_was_asked_for() -> None:
    wanted = os.environ.get("AIOSTAGE_TEST_LOOP", "asyncio")
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == wanted


def test_waiting_hand_over_cancellation_and_close(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        target, order = gpu.buffer(1024), []

        async def wait(ring: StagingRing, name: str) -> None:
            slot = await ring.allocate(1024)
            order.append(name)
            slot.abandon()

        async with StagingRing(gpu, 1, 1024) as ring:
            fence = await ring.write_buffer(target, 0, bytes([1] * 1024))
            async with anyio.create_task_group() as group:
                scope = anyio.CancelScope()

                async def cancelled() -> None:
                    with scope:
                        await wait(ring, "cancelled")

                for number, start in enumerate((cancelled, lambda: wait(ring, "b"), lambda: wait(ring, "c"))):
                    group.start_soon(start)
                    await until(lambda number=number: ring.stats_nowait().waiters == number + 1)
                scope.cancel()
                await until(lambda: ring.stats_nowait().waiters == 2)
                gpu.complete()
            await fence
            assert order == ["b", "c"]
            assert ring.stats_nowait().buffer_stalls == 3
            with pytest.raises(aiostage.FenceTimeout):
                await (await ring.write_buffer(target, 0, b"late")).wait(0.01)

            async with anyio.create_task_group() as group:

                async def closed() -> None:
                    with pytest.raises(aiostage.RingClosed):
                        await ring.allocate(4)

                group.start_soon(closed)
                await until(lambda: ring.stats_nowait().waiters == 1)
                gpu.complete()
                gpu.free_running = True
                await ring.aclose()
        assert target.bytes[:4].tobytes() == b"late"

    run(scenario)


def test_a_posted_callback_that_raises_holds_up_none_of_the_others() -> None:
    async def scenario() -> list[int]:
        port, ran, reports = LoopPort(), [], []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context["exception"]))
        port.post(lambda: ran.append(1))
        port.post(lambda: 1 / 0)
        port.post(lambda: ran.append(2))
        await until(lambda: len(ran) == 2)
        assert [type(error) for error in reports] == [ZeroDivisionError]
        return ran

    assert asyncio.run(scenario()) == [1, 2]


def test_slots_uploads_batches_frames_and_copy_threads(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        gpu.free_running = True
        target, seen = gpu.buffer(64_000), []
        async with StagingRing(gpu, 3, 4096, inline_size=64) as ring:

            async def produce(number: int) -> None:
                start, data = 3200 * number, bytes([number + 1] * 800)
                with await ring.allocate(800) as slot:
                    slot.view[:] = data
                    await anyio.lowlevel.checkpoint()
                    slot.copy_to_buffer(target, start)
                await ring.submit()
                await ring.write_buffer(target, start + 800, data)
                async with ring.batch() as batch:
                    await batch.write_buffer(target, start + 1600, data)
                async with ring.frame() as frame:
                    await frame.write_buffer(target, start + 2400, data)
                    frame.encoder.run(lambda: seen.append(number))
                await batch.fence
                await frame.fence

            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(produce, number)
            async for stats in ring.watch(0):
                assert stats.waiters == 0
                break
        assert target.bytes.tolist() == [number + 1 for number in range(20) for _ in range(3200)]
        assert sorted(seen) == list(range(20))

    run(scenario)


def test_a_lost_device_wakes_everybody(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = gpu.buffer(1024)
        async with StagingRing(gpu, 1, 1024) as ring:
            fence = await ring.write_buffer(target, 0, bytes(1024))

            async def lost(wait: Callable[[], Awaitable[Any]]) -> None:
                with pytest.raises(aiostage.DeviceLost):
                    await wait()

            async with anyio.create_task_group() as group:
                for wait in (fence.wait, lambda: ring.allocate(4), lambda: ring.write_buffer(target, 0, b"1234")):
                    group.start_soon(lost, wait)
                await until(lambda: ring.stats_nowait().waiters == 2)
                gpu.lose()

    run(scenario)


def test_a_real_device(run: Run, device: wgpu.GPUDevice, target: Callable[[int], wgpu.GPUBuffer]) -> None:
    buffer = target(100_000)
    data = bytes(i % 253 for i in range(100_000))

    async def scenario() -> None:
        async with StagingRing(device, 2, 4096) as ring:
            async with anyio.create_task_group() as group:
                for start in range(0, 100_000, 10_000):
                    group.start_soon(ring.write_buffer, buffer, start, data, start, 10_000)
            await ring.submit()

    run(scenario)
    assert bytes(device.queue.read_buffer(buffer)) == data


def test_a_device_serves_one_loop_after_another(
    run: Run, device: wgpu.GPUDevice, target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    buffer = target(4)

    async def scenario() -> None:
        async with StagingRing(device, 1, 1024) as ring:
            await (await ring.write_buffer(buffer, 0, b"data"))

    for _ in range(3):
        run(scenario)


async def test_trio_may_be_half_imported_by_another_thread(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", types.ModuleType("trio"))
    async with StagingRing(gpu, 1, 1024):
        pass


def test_a_loop_that_is_closed_with_something_posted_to_it_keeps_nothing_of_a_ring(gpu: SimulatedGpu) -> None:
    loop = asyncio.new_event_loop()

    async def leave_open() -> weakref.ref[Any]:
        ring = StagingRing(gpu, 3, 1024)
        await ring.open()
        await ring.write_buffer(gpu.buffer(16), 0, bytes(16))
        return weakref.ref(ring._engine)

    with pytest.warns(ResourceWarning, match="not closed"):
        engine = loop.run_until_complete(leave_open())
    gpu.complete()
    gpu.poll()  # the loop is told, and ends before it hears
    loop.close()
    for _ in range(100):  # a thread may be just polling
        gc.collect()
        if engine() is None:
            break
        time.sleep(0.02)
    assert engine() is None
    assert gpu.attached == 0
