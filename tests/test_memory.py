"""The synchronous facade: blocking calls from any thread, a ring on a loop that nobody sees, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from simulated import SimulatedGpu

import aiostage
from aiostage import KiB, MiB, memory


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def our_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("aiostage")}


@pytest.fixture(autouse=True)
def threads_before() -> Iterator[set[threading.Thread]]:
    """Those that ran before the test; when it has ended there must be no others."""
    before = our_threads()
    yield before
    memory.close_memory_system()
    wait_until(lambda: our_threads() <= before)


def test_the_program_wide_system_uploads_counts_and_closes(device: wgpu.GPUDevice, target: Any) -> None:
    result = memory.init_memory_system(staging_rings=True, ring_count=3, buffer_size=64 * KiB, device=device)
    data = np.random.default_rng(0).integers(0, 255, 500 * KiB, np.uint8)
    buffer = target(data.nbytes)
    result["staging_rings"].upload(buffer, data)
    assert bytes(device.queue.read_buffer(buffer)) == data.tobytes()
    stats = memory.staging_stats()
    assert stats["ring_count"] * stats["buffer_size"] == result["staging_memory"] == 192 * KiB
    assert stats["bytes_total"] == data.nbytes
    assert 0 <= stats["current_ring_index"] < 3
    assert stats["buffer_stalls"] >= 0
    result["staging_rings"].wait()
    wait_until(lambda: memory.staging_stats()["bytes_in_flight"] == 0)
    memory.close_memory_system()
    assert not result["staging_rings"].is_initialized()
    memory.init_memory_system(device=device, buffer_size=64 * KiB)  # it may be set up anew
    assert memory.staging_stats()["bytes_total"] == 0


def test_without_a_device_the_high_performance_adapter_gives_one() -> None:
    manager = memory.StagingRingManager(ring_count=3, buffer_size=64 * KiB)
    assert manager.device is None
    assert manager.initialize()
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = manager.device.create_buffer(size=16, usage=usage)
    manager.wait(manager.upload(buffer, b"half", 4), timeout=30)
    assert bytes(manager.device.queue.read_buffer(buffer)) == bytes(4) + b"half" + bytes(8)
    manager.close()


def test_threads_upload_side_by_side(device: wgpu.GPUDevice, target: Any) -> None:
    part = 200 * KiB
    buffer = target(8 * part)
    texture = device.create_texture(
        size=(64, 64, 8), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    )
    data = np.random.default_rng(1).integers(0, 255, (8, part), np.uint8)
    image = np.random.default_rng(2).integers(0, 255, (8, 64, 64, 4), np.uint8)

    def work(index: int) -> None:
        manager.upload(buffer, data[index], index * part)
        manager.upload({"texture": texture, "origin": (0, 0, index)}, image[index])

    with memory.StagingRingManager(3, 64 * KiB, device=device) as manager:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))
        assert bytes(device.queue.read_buffer(buffer)) == data.tobytes()
        layers = device.queue.read_texture(
            {"texture": texture}, {"bytes_per_row": 256, "rows_per_image": 64}, (64, 64, 8)
        )
        assert bytes(layers) == image.tobytes()


def test_a_texture_is_a_destination_as_it_is() -> None:
    gpu = SimulatedGpu(free_running=True)
    texture = gpu.texture("rgba8unorm", (4, 4, 1))
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        manager.wait(manager.upload(texture, np.full((4, 4, 4), 7, np.uint8)))
    assert (texture.level() == 7).all()


def test_before_initialize_twice_and_after_close_each_say_so(device: wgpu.GPUDevice) -> None:
    manager = memory.StagingRingManager(3, 64 * KiB, device=device)

    def each_use_raises(words: str) -> None:
        uses = [manager.stats, manager.wait, lambda: manager.upload(None, b""), lambda: manager.call(anyio.sleep)]
        for use in uses:
            with pytest.raises(aiostage.RingClosed, match=words):
                use()

    assert not manager.is_initialized()
    each_use_raises("not initialized: call initialize")
    manager.close()
    assert manager.initialize()
    assert manager.is_initialized()
    with pytest.raises(aiostage.AlreadyInitialized):
        manager.initialize()
    assert manager.stats()["ring_count"] == 3
    manager.close()
    manager.close()
    assert not manager.is_initialized()
    each_use_raises("was closed")
    with pytest.raises(aiostage.AlreadyInitialized, match="make another"):
        manager.initialize()


def test_the_program_wide_system_says_so_too(device: wgpu.GPUDevice) -> None:
    with pytest.raises(aiostage.RingClosed, match="call init_memory_system"):
        memory.staging_stats()
    memory.init_memory_system(staging_rings=False, device=device)
    with pytest.raises(aiostage.RingClosed, match="without staging rings"):
        memory.staging_stats()
    with pytest.raises(aiostage.AlreadyInitialized, match="close_memory_system"):
        memory.init_memory_system(device=device)
    memory.close_memory_system()
    memory.close_memory_system()
    with pytest.raises(aiostage.RingClosed, match="call init_memory_system"):
        memory.staging_stats()


def test_pools_stand_beside_the_ring_on_its_device(device: wgpu.GPUDevice) -> None:
    vertices = wgpu.BufferUsage.VERTEX | wgpu.BufferUsage.COPY_SRC
    result = memory.init_memory_system(buffer_size=64 * KiB, memory_pools={"vertices": vertices}, device=device)
    [(name, pool)] = result["memory_pools"].items()
    assert (name, pool.usage & vertices) == ("vertices", vertices)
    held = pool.allocate(1024)
    result["staging_rings"].upload(held, bytes(range(256)) * 4)
    assert bytes(device.queue.read_buffer(held.buffer, held.offset, 1024)) == bytes(range(256)) * 4
    statistics = pool.statistics()
    assert statistics.staging_used == result["staging_memory"] == 192 * KiB
    assert statistics.requested == 1024
    with pytest.raises(aiostage.RangesStillAlive):
        memory.close_memory_system()
    with pytest.raises(aiostage.RingClosed, match="closed"):
        memory.staging_stats()
    held.release()
    memory.close_memory_system()
    result = memory.init_memory_system(staging_rings=False, memory_pools=True, device=device)
    assert list(result["memory_pools"]) == ["buffers"]
    assert result["staging_rings"] is None
    with result["memory_pools"]["buffers"].allocate(64) as held:
        assert held.buffer.usage & wgpu.BufferUsage.STORAGE


def test_without_pools_none_are_imported() -> None:
    code = "import sys, aiostage.memory; sys.exit('aiostage.pools' in sys.modules or 'aiostage.advice' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unfit_ring_is_refused_and_leaves_nothing_behind(
    device: wgpu.GPUDevice, threads_before: set[threading.Thread]
) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        memory.StagingRingManager(3, 1023, device=device)
    budget = aiostage.MemoryBudget(1 * MiB)
    manager = memory.StagingRingManager(3, 512 * KiB, device=device, budget=budget)
    with pytest.raises(aiostage.BudgetExceeded):
        manager.initialize()
    assert not manager.is_initialized()
    wait_until(lambda: our_threads() <= threads_before)
    budget.limit = 2 * MiB
    assert manager.initialize()
    manager.close()
    assert budget.used == 0
    with pytest.raises(aiostage.BudgetExceeded):
        memory.init_memory_system(ring_count=3, buffer_size=171 * MiB, device=device)
    memory.init_memory_system(ring_count=1, buffer_size=64 * KiB, device=device)


def test_without_an_adapter_initialize_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    def request_adapter_sync(**options: Any) -> None:
        raise RuntimeError("Request adapter failed (2): No suitable adapter found")

    monkeypatch.setattr(wgpu.gpu, "request_adapter_sync", request_adapter_sync)
    manager = memory.StagingRingManager()
    assert manager.initialize() is False
    assert not manager.is_initialized()
    with pytest.raises(aiostage.StagingError, match="no GPU adapter"), manager:
        pass
    with pytest.raises(aiostage.StagingError, match="no GPU adapter"):
        memory.init_memory_system()


def in_thread(function: Callable[..., Any], *args: Any) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def test_an_upload_blocks_its_thread_until_the_gpu_gives_a_buffer_back() -> None:
    gpu = SimulatedGpu()
    buffer = gpu.buffer(4096)
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        upload = in_thread(manager.upload, buffer, bytes(range(256)) * 16)
        wait_until(lambda: manager.stats()["waiters"])  # other threads go on
        assert not upload.done()
        gpu.free_running = True
        manager.wait(upload.result(30))
    assert buffer.bytes.tobytes() == bytes(range(256)) * 16


def test_closing_wakes_a_blocked_thread_and_waits_for_what_the_gpu_has() -> None:
    gpu = SimulatedGpu()
    buffer = gpu.buffer(4096)
    manager = memory.StagingRingManager(3, 1024, device=gpu)
    manager.initialize()
    upload = in_thread(manager.upload, buffer, bytes(range(256)) * 16)
    other = in_thread(manager.call, lambda ring: anyio.sleep(3600))
    wait_until(lambda: manager.stats()["waiters"])
    closing = in_thread(manager.close)
    with pytest.raises(aiostage.RingClosed):
        upload.result(30)
    assert not closing.done()
    gpu.free_running = True
    closing.result(30)
    with pytest.raises(aiostage.RingClosed):
        other.result(30)
    assert buffer.bytes[:3072].tobytes() == bytes(range(256)) * 12
    assert gpu.violations == []


def test_a_fence_is_waited_for_by_its_value() -> None:
    gpu = SimulatedGpu()
    buffer = gpu.buffer(4)
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        first, second = manager.upload(buffer, b"1111"), manager.upload(buffer, b"2222")
        assert 0 < first < second
        with pytest.raises(aiostage.FenceTimeout):
            manager.wait(first, timeout=0.01)
        gpu.complete()
        manager.wait(first)
        assert buffer.bytes.tobytes() == b"1111"
        with pytest.raises(aiostage.FenceTimeout):
            manager.wait(timeout=0.01)
        gpu.complete()
        manager.wait()
        manager.wait(first)  # again, and late
        with pytest.raises(ValueError, match="no fence has the value 99"):
            manager.wait(99)


def test_whatever_a_ring_can_do_is_called_through_the_manager() -> None:
    gpu = SimulatedGpu(free_running=True)
    buffer = gpu.buffer(8)

    async def two_writes(ring: aiostage.StagingRing, first: bytes, *, second: bytes) -> int:
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, first)
            await batch.write_buffer(buffer, 4, second)
        await batch.fence
        return ring.stats_nowait().submits

    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        assert manager.call(two_writes, b"1234", second=b"5678") == 1
        with pytest.raises(aiostage.InvalidCopy):
            manager.upload(buffer, b"too long for it", 4)
        with pytest.raises(ZeroDivisionError):
            manager.call(lambda ring: 1 // 0)
        assert manager.stats()["submits"] == 1
    assert buffer.bytes.tobytes() == b"12345678"


def test_a_blocking_call_on_the_managers_own_loop_is_refused() -> None:
    async def inside(ring: aiostage.StagingRing) -> None:
        manager.stats()

    async def close_inside(ring: aiostage.StagingRing) -> None:
        manager.close()

    async def initialize_inside(ring: aiostage.StagingRing) -> None:
        manager.initialize()

    with memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True)) as manager:
        for function in (inside, close_inside, initialize_inside):
            with pytest.raises(aiostage.WrongLoop, match="own event loop"):
                manager.call(function)
        assert manager.is_initialized()


def test_of_many_threads_that_initialize_one_succeeds() -> None:
    manager = memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True))
    attempts = [in_thread(manager.initialize) for _ in range(8)]
    errors = [attempt.exception(30) for attempt in attempts]
    assert errors.count(None) == 1
    assert sum(isinstance(error, aiostage.AlreadyInitialized) for error in errors) == 7
    closings = [in_thread(manager.close) for _ in range(8)]
    assert [closing.exception(30) for closing in closings] == [None] * 8


def test_a_lost_device_is_told_to_the_thread_that_waits() -> None:
    gpu = SimulatedGpu()
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        upload = in_thread(manager.upload, gpu.buffer(4096), bytes(4096))
        wait_until(lambda: manager.stats()["waiters"])
        gpu.lose()
        with pytest.raises(aiostage.DeviceLost):
            upload.result(30)
        with pytest.raises(aiostage.DeviceLost):
            manager.stats()
