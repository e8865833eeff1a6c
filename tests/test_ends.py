"""Whatever ends, ends once and is heard of: submissions, batches, rings, threads, callbacks. Nothing is kept by it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import heapq
import logging
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import anyio
import numpy as np
import pytest
import trio
from held import HeldCopies
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import StagingRing, native
from aiostage.engine.views import Views
from aiostage.memory import StagingRingManager

OpenRing = Callable[..., Any]


@contextmanager
def without_gc() -> Iterator[None]:
    """What is still alive in here is alive for a reference, not for a cycle that was not collected yet."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def no_room_for_stacks() -> Iterator[None]:
    """No new thread can be started, native or not: each would have a stack larger than the address space."""
    libc, attributes, size = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_size_t()
    if not hasattr(libc, "pthread_setattr_default_np"):
        pytest.skip("only glibc lets a test refuse native threads")
    assert libc.pthread_getattr_default_np(attributes) == 0
    assert libc.pthread_attr_getstacksize(attributes, ctypes.byref(size)) == 0

    def have(stack_size: int) -> None:
        assert libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(stack_size)) == 0
        assert libc.pthread_setattr_default_np(attributes) == 0

    have(1 << 48)
    try:
        yield
    finally:
        have(size.value)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`no_threads(n)`: n more native threads can be started, and then none, as under a container's limit."""
    start, add_copiers, left = native.Carrier.start, native.Carrier.add_copiers, [0]

    def start_limited(carrier: Any) -> bool:
        if left[0]:
            left[0] -= 1
            return start(carrier)
        with no_room_for_stacks():
            return start(carrier)

    def add_limited(carrier: Any, count: int) -> bool:
        before = carrier.counts()["threads"]
        if left[0]:
            add_copiers(carrier, min(count, left[0]))
        left[0] -= carrier.counts()["threads"] - before
        with no_room_for_stacks():
            return add_copiers(carrier, count)

    def limit(n: int) -> None:
        left[0] = n
        monkeypatch.setattr(native.Carrier, "start", start_limited)
        monkeypatch.setattr(native.Carrier, "add_copiers", add_limited)

    return limit


@pytest.fixture
def bad_handler() -> Iterator[None]:
    """A log handler that raises whatever it is given."""

    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError(record.getMessage())

    handler, logger = Raises(), logging.getLogger("aiostage")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


async def in_time(awaitable: Any) -> Any:
    with anyio.fail_after(30):
        return await awaitable


# -- submissions --


@pytest.mark.parametrize("level", [logging.NOTSET, logging.DEBUG])
async def test_a_log_handler_that_raises_ends_nothing_but_its_own_record(
    gpu: SimulatedGpu, simulated_ring: OpenRing, bad_handler: None, level: int
) -> None:
    ring, good, bad = await simulated_ring(), gpu.buffer(16), gpu.buffer(16)
    logging.getLogger("aiostage").setLevel(level)
    try:
        with await ring.allocate(32) as slot:
            slot.view[:] = bytes(range(32))
            slot.copy_to_buffer(bad, size=16)
            slot.copy_to_buffer(good, data_offset=16)
        bad.destroy()
        with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
            await in_time(ring.submit())
        await until(lambda: gpu.in_flight == 1)
        gpu.complete_all()
        await in_time(ring.submit())
        assert good.bytes.tobytes() == bytes(range(16, 32))
    finally:
        logging.getLogger("aiostage").setLevel(logging.NOTSET)


async def test_every_record_says_what_it_is(
    gpu: SimulatedGpu, simulated_ring: OpenRing, caplog: pytest.LogCaptureFixture
) -> None:
    ring = await simulated_ring(ring_count=1, stall_timeout=0.01)
    with caplog.at_level(logging.DEBUG, "aiostage"):
        gpu.free_running = True
        await ring.write_buffer(gpu.buffer(4), 0, bytes(4))  # a submit notices a level that was changed
        with await ring.allocate(32) as slot:
            slot.copy_to_buffer(bad := gpu.buffer(32))
            with pytest.raises(aiostage.StallTimeout):
                await ring.allocate(1024)
        bad.destroy()
        with pytest.raises(aiostage.InvalidCopy):
            await ring.submit()
    assert {record.event for record in caplog.records} >= {"stall_timeout", "left_out", "allocated", "submitted"}


@pytest.mark.parametrize("broken", ["unusable", "handle"])
async def test_a_submit_that_fails_in_an_unforeseen_way_is_heard_of_by_everybody(
    gpu: SimulatedGpu, simulated_ring: OpenRing, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(4096)
    before = await ring.write_buffer(target, 0, bytes(16))

    def fail(*arguments: object) -> None:
        raise MemoryError(broken)

    async with anyio.create_task_group() as group:
        heard: list[BaseException] = []

        async def expect(awaitable: Any) -> None:
            with pytest.raises((aiostage.DeviceLost, MemoryError)) as caught:
                await in_time(awaitable)
            heard.append(caught.value)

        with await ring.allocate(16) as slot:
            slot.copy_to_buffer(target)
        held = await ring.allocate(1000)
        monkeypatch.setattr(gpu, broken, fail)
        group.start_soon(expect, ring.write_buffer(target, 0, bytes(512)))
        group.start_soon(expect, ring.write_buffer(target, 0, bytes(4096)))
        group.start_soon(expect, ring.allocate(1024))
        group.start_soon(expect, ring.submit())
    assert len(heard) == 4
    monkeypatch.undo()
    held.abandon()
    with pytest.raises(aiostage.DeviceLost):
        await ring.allocate(4)
    gpu.complete_all()
    await in_time(before)  # what was submitted before is not touched by it


async def test_a_fence_has_its_value_before_a_thread_has_submitted(simulated_ring: OpenRing) -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    async with StagingRing(gpu, 3, 1024) as ring, aiostage.FenceTracker(gpu) as other:
        tracker = ring._tracker
        gpu.may_submit.clear()
        first = ring.submit_nowait()
        second = ring.submit_nowait()
        inserted = tracker.insert()
        assert 0 < first.value < second.value < inserted.value
        assert tracker.fence(second.value) is second
        gpu.free_running = True
        await other.insert()  # polls went by, and the queue had nothing to do
        assert not inserted.done()  # it is behind both, though asked of an idle queue
        gpu.may_submit.set()
        for fence in (first, second, inserted):
            await in_time(fence)
        assert first.completed_at <= second.completed_at <= inserted.completed_at


async def test_a_submit_that_is_refused_leaves_later_fences_in_order(simulated_ring: OpenRing) -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    ring, other = StagingRing(gpu, 3, 1024), StagingRing(gpu, 3, 1024)
    async with ring, other:
        gpu.may_submit.clear()
        lost = ring.submit_nowait()
        inserted = ring._tracker.insert()
        gpu.lose()
        for fence in (lost, inserted):
            with pytest.raises(aiostage.DeviceLost):
                await in_time(fence)


# -- copies and batches --


class Refuses:
    """An encoder of another kind of device."""


@pytest.mark.parametrize("size", [64, 63])
@pytest.mark.parametrize("bad_first", [True, False])
async def test_a_copy_for_two_encoders_of_which_one_is_refused_is_right_in_the_other(
    gpu: SimulatedGpu, simulated_ring: OpenRing, size: int, bad_first: bool
) -> None:
    ring, target, encoder = await simulated_ring(), gpu.buffer(64), gpu.create_encoder()
    encoders = [Refuses(), encoder] if bad_first else [encoder, Refuses()]
    slot = await ring.allocate(size)
    slot.view[:] = bytes(range(1, size + 1))
    for each in encoders:
        slot.copy_to_buffer(target, size=60, encoder=each)
    with pytest.raises(aiostage.InvalidCopy, match="encoder"):
        slot.commit()
    await ring.submit([encoder.finish()])
    gpu.complete_all()
    assert target.bytes.tobytes() == bytes(range(1, 61)) + bytes(4)
    await until(lambda: ring.stats_nowait().bytes_in_flight == 0)


async def test_a_slot_whose_only_encoder_is_refused_leaves_nothing_behind(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring = await simulated_ring()
    slot = await ring.allocate(64)
    slot.copy_to_buffer(gpu.buffer(64), encoder=Refuses())
    with pytest.raises(aiostage.InvalidCopy):
        slot.commit()
    assert ring.stats_nowait().bytes_in_flight == 0
    assert ring.stats_nowait().buffer_states == ("available",) * 3


@pytest.mark.parametrize(("first", "second"), [(700, 300), (700, 1000), (300, 700)], ids="{} bytes".format)
async def test_uploads_to_one_place_keep_their_order_whoever_copies_them(
    held: HeldCopies, held_ring: OpenRing, first: int, second: int
) -> None:
    ring, place = await held_ring(inline_size=600), held.buffer(1024)
    order: list[int] = []

    async def write(number: int, nbytes: int) -> None:
        await ring.write_buffer(place, 0, np.full(nbytes, number, np.uint8))
        order.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(write, 1, first)
        group.start_soon(write, 2, second)
        await turns(20)
        await anyio.sleep(0.02)
        assert 2 not in order  # the second must not overtake the first
        held.may_copy.set()
        await until(lambda: order == [1, 2])
        held.free_running = True
    await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
    assert set(place.bytes[:second].tolist()) == {2}
    assert set(place.bytes[second:first].tolist()) <= {1}


@pytest.mark.parametrize(
    ("nbytes", "gone"), [(1024, 0), (8192, 3 * 1024)], ids=["with room for all", "with a wait for room"]
)
async def test_a_write_in_a_batch_that_another_task_abandons_raises(
    held: HeldCopies, held_ring: OpenRing, nbytes: int, gone: int
) -> None:
    """Only what has made way for the rest is copied: it has departed before."""
    ring, target = await held_ring(inline_size=16), held.buffer(8192)
    raised: list[BaseException] = []

    async def write(batch: Any, nbytes: int) -> None:
        with pytest.raises(aiostage.AllocationClosed, match="batch") as caught:
            await batch.write_buffer(target, 0, b"\1" * nbytes)
        raised.append(caught.value)

    async with anyio.create_task_group() as group:
        with pytest.raises(ZeroDivisionError):
            async with ring.batch() as batch:
                group.start_soon(write, batch, 512)  # waits for a thread
                group.start_soon(write, batch, nbytes)  # and for staging memory, if it is large
                await turns(5)
                raise ZeroDivisionError
        await turns(5)
        held.may_copy.set()
        held.free_running = True
    assert len(raised) == 2
    await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
    assert not target.bytes[gone:].any()


async def test_a_refused_copy_that_no_task_staged_is_logged_and_raised_where_no_task_submits(
    gpu: SimulatedGpu, simulated_ring: OpenRing, caplog: pytest.LogCaptureFixture
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    outcome: list[object] = []

    def callback() -> None:  # of the loop: there is no current task
        with ring.allocate_nowait(16) as slot:
            slot.copy_to_buffer(target)
        target.destroy()

    asyncio.get_running_loop().call_soon(callback)
    await turns(3)
    await ring.submit()  # it is not this task's mistake
    assert "a staged copy was left out" in caplog.text

    def submit() -> None:
        try:
            outcome.append(ring.submit_nowait())
        except aiostage.InvalidCopy as error:
            outcome.append(str(error))

    asyncio.get_running_loop().call_soon(submit)
    await turns(3)
    assert "destroyed" in str(outcome)


# -- threads --


@pytest.mark.parametrize("left", [0, 1])
async def test_a_ring_that_gets_no_threads_is_not_opened(no_threads: Callable[[int], None], left: int) -> None:
    gpu, budget = SimulatedGpu(), aiostage.MemoryBudget(1 << 20)
    no_threads(left)
    with pytest.raises(aiostage.CannotStartThread, match=r"could (not )?be started"):
        await StagingRing(gpu, 3, 1024, budget=budget).open()
    assert (gpu.attached, budget.used) == (0, 0)
    assert all(buffer.destroyed for buffer in gpu.staging)


async def test_uploads_need_no_more_threads_than_could_be_started(no_threads: Callable[[int], None]) -> None:
    gpu = SimulatedGpu(free_running=True)
    no_threads(3)
    target = gpu.buffer(1 << 20)
    data = np.arange(1 << 18, dtype=np.uint32)
    async with StagingRing(gpu, 4, 1 << 18, inline_size=0, threads=8) as ring:
        assert ring._tracker.carrier.counts["threads"] == 3
        async with anyio.create_task_group() as group:
            for start in range(0, 1 << 18, 1 << 15):
                group.start_soon(ring.write_buffer, target, 4 * start, data[start : start + (1 << 15)])
        await in_time(ring._tracker.insert())
    assert np.array_equal(target.bytes.view(np.uint32), data)


# -- event loops --


class Driver:
    """Steps a coroutine from callbacks of the loop, as rendercanvas does; what it yields is ignored."""

    def __init__(self, coroutine: Any, name: str | None) -> None:
        self.coroutine, self.name = coroutine, name
        self.outcome: object = None
        self.steps = 0
        asyncio.get_running_loop().call_soon(self.step)

    def step(self) -> None:
        self.steps += 1
        sniffio = sys.modules["sniffio"]
        before, sniffio.thread_local.name = sniffio.thread_local.name, self.name
        try:
            self.coroutine.send(None)
        except StopIteration as stop:
            self.outcome = stop.value
        except BaseException as error:
            self.outcome = error
        finally:
            sniffio.thread_local.name = before


CALLS: dict[str, Callable[[StagingRing, Any], Any]] = {
    "open": lambda ring, gpu: StagingRing(gpu, 1, 1024).open(),
    "aclose": lambda ring, gpu: ring.aclose(),
    "allocate": lambda ring, gpu: ring.allocate(1024),
    "submit": lambda ring, gpu: ring.submit(),
    "write_buffer": lambda ring, gpu: ring.write_buffer(gpu.buffer(4096), 0, bytes(4096)),
    "write_texture": lambda ring, gpu: ring.write_texture({"texture": gpu.texture("r8unorm", (4, 4, 1))}, bytes(16)),
    "batch": lambda ring, gpu: ring.batch().__aenter__(),
    "frame": lambda ring, gpu: ring.frame().__aenter__(),
    "stats": lambda ring, gpu: ring.stats(),
    "fence": lambda ring, gpu: ring._tracker.insert().wait(),
}


@pytest.mark.parametrize("name", [None, "rendercanvas.utils.asyncadapter"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_coroutine_that_another_driver_steps_raises_at_once(
    gpu: SimulatedGpu, simulated_ring: OpenRing, call: str, name: str | None
) -> None:
    pytest.importorskip("sniffio", reason="comes with trio, which the tests use: `./dev test` installs it")
    ring = await simulated_ring(ring_count=1)
    held = await ring.allocate(16)
    driver = Driver(CALLS[call](ring, gpu), name)
    await turns(3)
    assert isinstance(driver.outcome, aiostage.WrongLoop)
    assert driver.steps == 1
    assert "StagingRingManager" in str(driver.outcome)
    assert (name or "something else") in str(driver.outcome)
    held.abandon()
    with await ring.allocate(1024):  # and nothing has happened
        pass


def test_a_done_callback_that_raises_does_not_end_trio(caplog: pytest.LogCaptureFixture) -> None:
    called: list[object] = []

    def fail(fence: object) -> None:
        called.append(fence)
        raise ZeroDivisionError("in a callback")

    async def main() -> None:
        async with StagingRing(SimulatedGpu(free_running=True), 1, 1024) as ring:
            fence = await ring.submit()
            fence.add_done_callback(fail)
            fence.add_done_callback(called.append)
            await fence
            fence.add_done_callback(fail)
            await until(lambda: len(called) == 3)
            with await ring.allocate(16):
                pass

    trio.run(main)
    failed = [record for record in caplog.records if record.event == "callback_failed"]
    assert len(failed) == 2
    assert all("in a callback" in str(record.exc_info) for record in failed)


async def test_a_done_callback_that_raises_goes_to_asyncios_exception_handler(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, contexts, called = await simulated_ring(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    fence = await ring.submit()
    fence.add_done_callback(lambda fence: 1 / 0)
    fence.add_done_callback(called.append)
    gpu.complete_all()
    await fence
    await until(lambda: called == [fence])
    assert [type(context["exception"]) for context in contexts] == [ZeroDivisionError]


class NestingLoop(asyncio.SelectorEventLoop):
    """A loop that a callback may run further, as nest_asyncio makes one."""

    def _run_once(self) -> None:
        timers = self._scheduled  # type: ignore[attr-defined]
        wait = None if not timers and not self._ready else 0.0005  # type: ignore[attr-defined]
        self._process_events(self._selector.select(0 if self._ready else wait))  # type: ignore[attr-defined]
        while timers and timers[0]._when <= self.time():
            self._ready.append(heapq.heappop(timers))  # type: ignore[attr-defined]
        for _ in range(len(self._ready)):  # type: ignore[attr-defined]
            if self._ready:  # type: ignore[attr-defined] # or a nested turn had it
                handle = self._ready.popleft()  # type: ignore[attr-defined]
                if not handle.cancelled():
                    handle._run()


@pytest.mark.parametrize("submit_blocks", [False, True])
def test_a_done_callback_may_run_an_upload_nested_in_it(submit_blocks: bool) -> None:
    gpu = SimulatedGpu(submit_blocks=submit_blocks, free_running=True)
    target, data, outcome = gpu.buffer(4096), np.arange(1024, dtype=np.uint32), []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def upload() -> None:
            await (await ring.write_buffer(target, 0, data))

        def nested(_: object) -> None:
            task = loop.create_task(upload())
            for _ in range(20000):
                if task.done():
                    break
                loop._run_once()  # type: ignore[attr-defined]
            outcome.append(task.done() and task.exception())

        async with StagingRing(gpu, 3, 1024, inline_size=16) as ring:
            fence = await ring.submit()
            fence.add_done_callback(nested)
            await in_time(fence)
            await until(lambda: outcome)

    with asyncio.Runner(loop_factory=NestingLoop) as runner:
        runner.run(main())
    assert outcome == [None]
    assert np.array_equal(target.bytes.view(np.uint32), data)


async def test_a_fence_of_another_loop_cannot_guard_a_buffer(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring = await simulated_ring()
    with StagingRingManager(1, 1024, device=SimulatedGpu()) as manager:

        async def insert(other: StagingRing) -> aiostage.Fence:
            return other._tracker.insert()

        foreign = manager.call(insert)
        with pytest.raises(aiostage.WrongLoop):
            ring.advance(foreign)
        with pytest.raises(aiostage.WrongLoop):
            foreign.add_done_callback(print)
        manager.device.free_running = True
    assert ring.stats_nowait().buffer_states == ("available",) * 3


# -- slots that were committed without a copy --


@pytest.mark.parametrize("wait", [True, False])
async def test_slots_that_nobody_copies_out_of_do_not_hold_the_ring(
    gpu: SimulatedGpu, simulated_ring: OpenRing, wait: bool
) -> None:
    gpu.free_running = True
    ring = await simulated_ring(ring_count=2, buffer_size=1024, stall_timeout=5)
    for _ in range(64):  # ten times what the ring has
        if wait:
            slot = await in_time(ring.allocate(256))
        else:
            await until(lambda: ring.stats_nowait().buffer_states.count("available") or ring._engine.slots.buffers)
            slot = await ring.allocate(256)
        slot.view[:] = bytes(256)
        slot.commit()
    assert ring.stats_nowait().allocations_total == 64


async def test_a_slot_that_is_dropped_while_somebody_waits_lets_its_buffer_go(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    gpu.free_running = True
    ring = await simulated_ring(ring_count=1, stall_timeout=60)
    slot = await ring.allocate(1024)
    slot.commit()
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            (await ring.allocate(1024)).abandon()

        group.start_soon(wait)
        await turns(10)
        assert ring.stats_nowait().waiters == 1  # its holder may still copy out of it
        del slot
        await until(lambda: ring.stats_nowait().waiters == 0)


async def test_a_slot_whose_buffer_was_asked_for_waits_for_a_submit_and_the_error_says_so(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring = await simulated_ring(ring_count=1, stall_timeout=0.02)
    slot = await ring.allocate(1024)
    source = slot.buffer.handle
    slot.view[:] = bytes(range(256)) * 4
    slot.commit()
    del slot
    with pytest.raises(aiostage.StallTimeout, match=r"committed without a copy.*ring\.submit\(\)"):
        await in_time(ring.allocate(4))
    target, encoder = gpu.buffer(1024), gpu.create_encoder()
    encoder.run(lambda: np.copyto(target.bytes, source.bytes))
    await ring.submit([encoder.finish()])
    await until(lambda: gpu.in_flight)
    gpu.complete_all()
    assert target.bytes.tobytes() == bytes(range(256)) * 4


# -- closing --


async def test_closing_does_not_wait_for_another_rings_work(gpu: SimulatedGpu) -> None:
    async with StagingRing(gpu, 1, 1024) as busy:
        idle = StagingRing(gpu, 1, 1024, fence_timeout=0.05)
        await idle.open()
        fence = await busy.write_buffer(gpu.buffer(16), 0, bytes(16))
        await in_time(idle.aclose())
        assert not fence.done()
        gpu.complete_all()


async def test_closing_twice_at_a_time_returns_when_it_is_closed(gpu: SimulatedGpu) -> None:
    ring, closed = StagingRing(gpu, 1, 1024), []
    await ring.open()
    await ring.write_buffer(gpu.buffer(16), 0, bytes(16))

    async def close() -> None:
        await ring.aclose()
        closed.append(gpu.staging[0].destroyed)

    async with anyio.create_task_group() as group:
        group.start_soon(close)
        group.start_soon(close)
        await turns(20)
        assert closed == []
        gpu.complete_all()
    assert closed == [True, True]
    await ring.aclose()


async def test_a_second_close_returns_though_the_first_was_cancelled(gpu: SimulatedGpu) -> None:
    ring = StagingRing(gpu, 1, 1024)
    await ring.open()
    await ring.write_buffer(gpu.buffer(16), 0, bytes(16))
    first = asyncio.ensure_future(ring.aclose())
    await turns(5)
    second = asyncio.ensure_future(ring.aclose())
    await turns(5)
    first.cancel()
    await in_time(second)
    assert first.cancelled()
    gpu.complete_all()


# -- what is kept --


async def test_a_ring_that_nobody_closed_gives_its_budget_back() -> None:
    gpu, budget = SimulatedGpu(free_running=True), aiostage.MemoryBudget(3 * 1024)
    target, carriers = gpu.buffer(4096), list[native.Carrier]()
    with without_gc():
        for _ in range(22):  # of a notebook cell
            ring = StagingRing(gpu, 3, 1024, budget=budget)
            await ring.open()
            await (await ring.write_buffer(target, 0, bytes(4096)))
            await until(lambda stats=ring.stats_nowait: stats().bytes_in_flight == 0)
            carriers.append(ring._tracker.carrier._native)
            assert carriers[-1].counts()["threads"] > 1
            with pytest.warns(ResourceWarning, match="not closed"):
                ring = None
            assert budget.used == 0
    await until(lambda: not any(carrier.counts()["threads"] for carrier in carriers))


async def cancelled(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    task = asyncio.ensure_future(ring.write_buffer(gpu.buffer(4096), 0, data))
    await turns(3)
    task.cancel()
    gpu.free_running = True
    await asyncio.wait([task])
    assert task.cancelled()


async def timed_out(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    with anyio.move_on_after(0.01):
        await ring.write_buffer(gpu.buffer(4096), 0, data)


async def refused(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    with pytest.raises(aiostage.InvalidCopy):
        await ring.write_buffer(gpu.buffer(16), 0, data)


async def destroyed_meanwhile(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    target = gpu.buffer(4096)
    task = asyncio.ensure_future(ring.write_buffer(target, 0, data))
    await turns(1)
    target.destroy()
    gpu.free_running = True
    await asyncio.wait([task])
    assert isinstance(task.exception(), aiostage.InvalidCopy)


async def abandoned(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    gpu.free_running = True
    with pytest.raises(ZeroDivisionError):
        async with ring.batch() as batch:
            await batch.write_buffer(gpu.buffer(4096), 0, data)
            raise ZeroDivisionError


async def lost(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    gpu.lose()
    with pytest.raises(aiostage.DeviceLost):
        await ring.write_buffer(gpu.buffer(4096), 0, data)
    with pytest.raises(aiostage.DeviceLost):
        await ring.write_buffer(gpu.buffer(4096), 0, data)


async def closed(ring: StagingRing, gpu: SimulatedGpu, data: Any) -> None:
    gpu.free_running = True
    await ring.aclose()
    with pytest.raises(aiostage.RingClosed):
        await ring.write_buffer(gpu.buffer(4096), 0, data)


@pytest.fixture(params=["mmap", "SharedMemory", "bytearray"])
def data_and_release(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Callable[[], object]]]:
    """4096 bytes, and a function that raises BufferError while anybody still has a view of them."""
    if request.param == "mmap":
        mapped = mmap.mmap(-1, 4096)
        yield mapped, mapped.close
    elif request.param == "SharedMemory":
        shared = SharedMemory(create=True, size=4096)
        yield shared.buf, shared.close
        shared.unlink()
    else:
        array = bytearray(4096)
        yield array, lambda: array.extend(b"1")


@pytest.mark.parametrize("inline_size", [16, 1 << 20])
@pytest.mark.parametrize("mishap", [cancelled, timed_out, refused, destroyed_meanwhile, abandoned, lost, closed])
async def test_data_is_free_again_after_an_upload_that_went_wrong(
    mishap: Any,
    inline_size: int,
    gpu: SimulatedGpu,
    simulated_ring: OpenRing,
    data_and_release: tuple[Any, Callable[[], object]],
) -> None:
    data, release = data_and_release
    ring = await simulated_ring(ring_count=2, buffer_size=1024, inline_size=inline_size)
    with without_gc():
        await mishap(ring, gpu, data)
        del data
        gpu.free_running = True

        def is_free() -> bool:  # soon: a thread may be about to let go of its last piece
            try:
                release()
            except BufferError:
                return False
            return True

        await until(is_free)


@pytest.mark.blocks_loop("that is what it is about")
async def test_latency_is_what_the_gpu_took_not_what_the_loop_did_meanwhile() -> None:
    gpu = SimulatedGpu()
    async with aiostage.FenceTracker(gpu) as tracker:
        fence = tracker.insert()
        now = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < now + 0.2:  # the loop is busy with something else
            pass
        held = time.perf_counter() - 0.1
        await fence
        assert fence.completed_at <= held
        assert tracker.latency(1.0) == fence.elapsed


@pytest.mark.parametrize("closing", ["afterwards", "meanwhile"])
def test_rows_that_threads_take_from_an_array_are_all_read_only_afterwards(closing: str) -> None:
    memory = np.zeros((256, 256), np.uint8)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(10):
            views = Views(memory.ctypes.data, memory.nbytes, lambda _: None)
            array, kept, begin = views.array(np.uint8, memory.shape), [], threading.Barrier(5)

            def take(array: Any = array, kept: list[Any] = kept, begin: threading.Barrier = begin) -> None:
                begin.wait()
                for row in range(250):
                    kept.append(array[row])
                    array[row]  # dropped: from time to time those that are gone are forgotten

            threads = [threading.Thread(target=take) for _ in range(4)]
            for thread in threads:
                thread.start()
            begin.wait()
            if closing == "meanwhile":
                views.close(strict=False)
            for thread in threads:
                thread.join()
            if closing == "afterwards":
                views.close(strict=False)
            assert len(kept) == 1000
            assert not any(row.flags.writeable for row in kept)
    finally:
        sys.setswitchinterval(interval)
