"""The synchronous facade: blocking calls from any thread, a ring on a loop that nobody sees, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Any

import anyio
import numpy as np
import pytest
import trio
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


@pytest.mark.parametrize("kind", ["buffer", "texture"])
def test_an_atomic_upload_goes_by_way_of_scratch_memory(kind: str, device: wgpu.GPUDevice, target: Any) -> None:
    data = np.random.default_rng(3).integers(0, 255, (64, 64, 4), np.uint8)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    texture = device.create_texture(size=(64, 64, 1), format="rgba8unorm", usage=usage)
    destination = target(data.nbytes) if kind == "buffer" else texture
    with memory.StagingRingManager(3, 4 * KiB, device=device) as manager:  # a fourth of it in each buffer
        manager.upload(destination, data)
        assert manager.stats()["scratch_bytes"] == 0
        manager.upload(destination, data[::-1], atomic=True)
        assert manager.stats()["scratch_bytes"] > 0
        manager.wait()
    if kind == "buffer":
        seen = device.queue.read_buffer(destination)
    else:
        seen = device.queue.read_texture({"texture": texture}, {"bytes_per_row": 256}, (64, 64, 1))
    assert bytes(seen) == data[::-1].tobytes()


# -- start: without waiting --


@pytest.fixture
def manager() -> Iterator[memory.StagingRingManager]:
    with memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True)) as manager:
        yield manager


class Endless:
    """A coroutine function that waits until it is cancelled, then for `may_end`, and says how far it has come."""

    def __init__(self, swallows: bool = False) -> None:
        self.swallows = swallows
        self.began, self.was_cancelled, self.may_end = threading.Event(), threading.Event(), threading.Event()
        self.ended = False

    async def __call__(self, ring: aiostage.StagingRing) -> str:
        self.began.set()
        try:
            await anyio.sleep(3600)
        except anyio.get_cancelled_exc_class():
            self.was_cancelled.set()
            with anyio.move_on_after(30, shield=True):
                while not self.may_end.is_set():
                    await anyio.sleep(0.001)
            self.ended = True
            if not self.swallows:
                raise
        return "all the same"


def tasks_of(manager: memory.StagingRingManager) -> int:
    async def count(ring: aiostage.StagingRing) -> int:
        return len(anyio.get_running_tasks())

    return manager.call(count)


def test_what_is_started_runs_beside_its_thread_and_gives_a_future(manager: memory.StagingRingManager) -> None:
    buffer = manager.device.buffer(16)

    async def write(ring: aiostage.StagingRing, data: bytes, *, offset: int) -> int:
        await (await ring.write_buffer(buffer, offset, data))
        return threading.get_ident()

    future = manager.start(write, b"12345678", offset=8)
    assert isinstance(future, Future)
    assert future.result(30) != threading.get_ident()
    assert buffer.bytes.tobytes() == bytes(8) + b"12345678"
    assert not future.cancel()
    assert not future.running()
    assert not future.cancelled()
    assert manager.start(aiostage.StagingRing.stats).result(30).ring_count == 3  # any method that is to be awaited


def test_many_threads_start_at_once_and_each_gets_its_own(device: wgpu.GPUDevice, target: Any) -> None:
    part, each = 1 * KiB, 8
    buffer = target(8 * each * part)
    data = np.random.default_rng(4).integers(0, 255, (8 * each, part), np.uint8)

    async def write(ring: aiostage.StagingRing, index: int) -> int:
        await ring.write_buffer(buffer, index * part, data[index])
        return index

    def start(thread: int) -> list[Future[int]]:
        return [manager.start(write, thread * each + number) for number in range(each)]

    with memory.StagingRingManager(3, 4 * KiB, device=device) as manager:
        with ThreadPoolExecutor(8) as threads:
            futures = [future for some in threads.map(start, range(8)) for future in some]
        assert [future.result(30) for future in futures] == list(range(8 * each))
        manager.wait()
    assert bytes(device.queue.read_buffer(buffer)) == data.tobytes()


def test_what_is_started_begins_in_that_order_and_ends_in_its_own(manager: memory.StagingRingManager) -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def work(ring: aiostage.StagingRing, number: int) -> None:
        begun.append(number)
        await anyio.sleep(0.05 if number == 0 else 0)

    futures = [manager.start(work, number) for number in range(20)]
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: ended.append(number))
    wait(futures, 30)
    wait_until(lambda: len(ended) == 20)
    assert begun == list(range(20))
    assert ended == [*range(1, 20), 0]


def test_starting_waits_for_no_turn_of_the_loop(manager: memory.StagingRingManager) -> None:
    standing, may_go_on = threading.Event(), threading.Event()

    async def hold(ring: aiostage.StagingRing) -> None:
        standing.set()
        may_go_on.wait(30)

    held = manager.start(hold)
    assert standing.wait(30)
    future = manager.start(_nothing)
    assert future.cancel()  # nor does cancelling
    assert not future.done()
    may_go_on.set()
    held.result(30)
    with pytest.raises(CancelledError):
        future.result(30)


async def _nothing(ring: aiostage.StagingRing) -> None:
    pass


def test_what_is_cancelled_before_it_begins_never_does(manager: memory.StagingRingManager) -> None:
    begun: list[object] = []

    async def hold(ring: aiostage.StagingRing) -> None:
        futures.append(in_thread(manager.start, begin).result(30))
        assert futures[0].cancel()

    async def begin(ring: aiostage.StagingRing) -> None:
        begun.append(ring)

    futures: list[Future[None]] = []
    manager.start(hold).result(30)
    with pytest.raises(CancelledError):
        futures[0].result(30)
    assert futures[0].cancelled()
    assert futures[0].cancel()  # again: it is
    assert not begun


def test_a_future_that_is_cancelled_ends_when_its_coroutine_has(manager: memory.StagingRingManager) -> None:
    work = Endless()
    future = manager.start(work)
    assert work.began.wait(30)
    assert future.running()
    assert future.cancel()
    assert work.was_cancelled.wait(30)
    assert not future.done()
    assert future.running()
    work.may_end.set()
    done, _ = wait([future], 30)
    assert done == {future}
    assert future.cancelled()
    assert not future.running()
    assert work.ended


def test_a_coroutine_may_end_otherwise_than_it_was_told(manager: memory.StagingRingManager) -> None:
    async def fail(ring: aiostage.StagingRing) -> None:
        try:
            await anyio.sleep(3600)
        finally:
            raise ZeroDivisionError

    work = Endless(swallows=True)
    work.may_end.set()
    swallowed, failed = manager.start(work), manager.start(fail)
    wait_until(lambda: swallowed.running() and failed.running() and work.began.is_set())
    assert swallowed.cancel()
    assert failed.cancel()
    assert swallowed.result(30) == "all the same"
    assert isinstance(failed.exception(30), ZeroDivisionError)
    assert not swallowed.cancel()  # too late
    assert not swallowed.cancelled()


def test_a_cancelled_upload_gives_its_place_in_the_line_back() -> None:
    gpu = SimulatedGpu()
    buffer = gpu.buffer(4096)
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        upload = manager.start(aiostage.StagingRing.write_buffer, buffer, 0, bytes(range(256)) * 16)
        wait_until(lambda: manager.stats()["waiters"])
        assert upload.cancel()
        with pytest.raises(CancelledError):
            upload.result(30)
        assert manager.stats()["waiters"] == 0
        gpu.free_running = True
        manager.wait(manager.upload(buffer, bytes(4096)))
    assert gpu.violations == []


def test_exceptions_arrive_in_the_future_whatever_they_are(manager: memory.StagingRingManager) -> None:
    async def leave(ring: aiostage.StagingRing) -> None:
        raise SystemExit(3)

    async def write(ring: aiostage.StagingRing) -> None:
        await ring.write_buffer(manager.device.buffer(4), 0, bytes(8))

    async def cancelled(ring: aiostage.StagingRing) -> None:
        raise anyio.get_cancelled_exc_class()

    endless = Endless()
    other = manager.start(endless)
    assert isinstance(manager.start(leave).exception(30), SystemExit)
    assert isinstance(manager.start(write).exception(30), aiostage.InvalidCopy)
    with pytest.raises(CancelledError):
        manager.start(cancelled).result(30)
    assert tasks_of(manager)  # it goes on, and so do others
    assert other.running()
    endless.may_end.set()


def test_an_error_keeps_nothing_alive(manager: memory.StagingRingManager) -> None:
    class Data(bytearray):
        pass

    async def fail(ring: aiostage.StagingRing, data: Data) -> None:
        raise ZeroDivisionError

    data = Data(16)
    kept = weakref.ref(data)
    gc.collect()
    gc.disable()
    try:
        future = manager.start(fail, data)
        with pytest.raises(ZeroDivisionError):
            future.result(30)
        del future, data
        wait_until(lambda: kept() is None)
    finally:
        gc.enable()


def test_closing_ends_what_runs_with_an_error_that_says_so() -> None:
    manager = memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True))
    manager.initialize()
    work = Endless()
    running, waiting = manager.start(work), manager.start(hold_a_slot_and_wait)
    assert work.began.wait(30)
    wait_until(waiting.running)
    closing = in_thread(manager.close)
    assert work.was_cancelled.wait(30)
    assert not running.done()
    assert not closing.done()
    work.may_end.set()
    closing.result(30)
    for future in (running, waiting):
        with pytest.raises(aiostage.RingClosed, match="was closed"):
            future.result(0)
    assert work.ended
    with pytest.raises(aiostage.RingClosed, match="was closed"):
        manager.start(_nothing)


async def hold_a_slot_and_wait(ring: aiostage.StagingRing) -> None:
    slots = [await ring.allocate(1024) for _ in range(3)]
    try:
        await ring.allocate(1024)
    finally:
        for slot in slots:
            slot.abandon()


def test_what_is_started_while_it_closes_ends_or_is_refused() -> None:
    for _ in range(20):
        manager = memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True))
        manager.initialize()
        futures: list[Future[None]] = []

        def start(manager: memory.StagingRingManager = manager, futures: list[Future[None]] = futures) -> None:
            with pytest.raises(aiostage.RingClosed):
                while True:
                    futures.append(manager.start(_nothing))

        starting = [in_thread(start) for _ in range(3)]
        wait_until(lambda futures=futures: futures)
        manager.close()
        for thread in starting:
            thread.result(30)
        for future in futures:
            assert isinstance(future.exception(30), aiostage.RingClosed | None)


def test_a_loop_that_breaks_down_ends_what_waits_for_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(ring: aiostage.StagingRing) -> None:
        asyncio.get_running_loop().stop()
        await anyio.sleep(3600)

    class Loop(asyncio.SelectorEventLoop):
        def close(self) -> None:
            late.append(in_thread(manager.start, _nothing).result(30))  # is accepted, and never begun
            super().close()

    late: list[Future[None]] = []
    monkeypatch.setattr(memory, "_new_event_loop", Loop)
    manager = memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True))
    manager.initialize()
    with pytest.raises((CancelledError, aiostage.RingClosed)):
        manager.start(break_down).result(30)
    wait_until(lambda: not manager.is_initialized())
    assert isinstance(late[0].exception(30), aiostage.RingClosed)
    with pytest.raises(aiostage.RingClosed, match="thread has ended"):
        manager.start(_nothing)
    assert "loop has ended" in caplog.text


def test_a_lost_device_is_told_to_the_futures() -> None:
    gpu = SimulatedGpu()
    with memory.StagingRingManager(3, 1024, device=gpu) as manager:
        upload = manager.start(aiostage.StagingRing.write_buffer, gpu.buffer(4096), 0, bytes(4096))
        wait_until(lambda: manager.stats()["waiters"])
        gpu.lose()
        with pytest.raises(aiostage.DeviceLost):
            upload.result(30)
        with pytest.raises(aiostage.DeviceLost):
            manager.start(aiostage.StagingRing.stats).result(30)


def test_nothing_is_left_of_what_has_ended(manager: memory.StagingRingManager) -> None:
    before = tasks_of(manager)
    works = [Endless() for _ in range(10)]
    futures = [manager.start(work) for work in works] + [manager.start(_nothing) for _ in range(10)]
    assert tasks_of(manager) >= before + 10
    for work, future in zip(works, futures, strict=False):
        work.may_end.set()
        future.cancel()
    futures += [manager.start(lambda ring: 1 // 0) for _ in range(10)]
    assert wait(futures, 30).not_done == set()
    wait_until(lambda: tasks_of(manager) == before)
    assert not manager._portal._unfinished


def test_what_cannot_be_started_says_what_can(manager: memory.StagingRingManager) -> None:
    coroutine = _nothing(None)
    with pytest.raises(TypeError, match="give the function itself, its arguments behind it"):
        manager.start(coroutine)
    coroutine.close()
    with pytest.raises(TypeError, match="give an 'async def'"):
        manager.start(None)
    with pytest.raises(TypeError, match="nothing to await in 7"):
        manager.start(lambda ring: 7).result(30)
    with pytest.raises(TypeError, match="positional argument"):
        manager.start(_nothing, 1).result(30)

    async def inside(ring: aiostage.StagingRing) -> None:
        manager.start(_nothing)

    with pytest.raises(aiostage.WrongLoop, match="own event loop"):
        manager.start(inside).result(30)
    with pytest.raises(aiostage.RingClosed, match="not initialized"):
        memory.StagingRingManager(device=manager.device).start(_nothing)


def test_asyncio_and_trio_await_and_cancel_it_too(manager: memory.StagingRingManager) -> None:
    variable: ContextVar[str] = ContextVar("variable")

    async def work(ring: aiostage.StagingRing) -> str:
        await ring.stats()
        return variable.get()

    async def on_asyncio() -> str:
        variable.set("asyncio")
        endless = Endless()
        endless.may_end.set()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(manager.start(endless)), 0.05)
        wait_until(lambda: endless.ended)
        return await asyncio.wrap_future(manager.start(work))

    async def on_trio() -> str:
        variable.set("trio")
        future, event, token = manager.start(work), trio.Event(), trio.lowlevel.current_trio_token()
        future.add_done_callback(lambda _: token.run_sync_soon(event.set))
        await event.wait()
        return future.result()

    assert asyncio.run(on_asyncio()) == "asyncio"
    assert trio.run(on_trio) == "trio"


def test_the_managers_loop_is_its_own_whatever_policy_the_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class OfAnotherThread(asyncio.DefaultEventLoopPolicy):  # as Qt's are
        def new_event_loop(self) -> asyncio.AbstractEventLoop:
            raise AssertionError("made in the manager's thread")

    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(OfAnotherThread())
    try:
        with memory.StagingRingManager(3, 1024, device=SimulatedGpu(free_running=True)) as manager:
            assert manager.stats()["ring_count"] == 3
    finally:
        asyncio.set_event_loop_policy(before)
