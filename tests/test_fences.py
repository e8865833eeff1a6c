"""Fences complete in order, for everybody who waits, and cost nothing while none is pending."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import wgpu
from simulated import SimulatedGpu, turns, until
from simulated_table import number_of

import aiostage
from aiostage import Fence, FenceTracker, native


@pytest.fixture
async def tracker(gpu: SimulatedGpu) -> AsyncIterator[FenceTracker]:
    tracker = FenceTracker(gpu)
    yield tracker
    tracker.close()


def work(gpu: SimulatedGpu, tracker: FenceTracker) -> Fence:
    """A fence behind a submission of its own."""
    native.settle(number_of(gpu))  # as wgpu-py's submit does, so that no earlier fence is behind this
    gpu.submit([], [])
    return tracker.insert()


async def test_a_fence_completes_with_the_work_before_it_and_not_earlier(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    fence = work(gpu, tracker)
    assert not fence.done()
    assert tracker.pending == 1
    await until(lambda: gpu.polls > 5)
    assert not fence.done()
    gpu.complete()
    await fence
    assert fence.done()
    assert tracker.pending == 0
    assert fence.elapsed > 0


async def test_a_fence_behind_nothing_completes_by_itself(tracker: FenceTracker) -> None:
    await tracker.insert()


async def test_values_increase_and_fences_complete_in_their_order(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    assert tracker.value == 0
    fences = [work(gpu, tracker) for _ in range(5)]
    assert [fence.value for fence in fences] == [1, 2, 3, 4, 5]
    assert tracker.value == 5
    order: list[int] = []
    for fence in reversed(fences):
        fence.add_done_callback(lambda fence: order.append(fence.value))
    gpu.complete(2)
    await fences[1]
    assert [fence.done() for fence in fences] == [True, True, False, False, False]
    gpu.complete(3)
    await tracker.wait_all()
    await until(lambda: len(order) == 5)
    assert order == [1, 2, 3, 4, 5]


async def test_a_fence_is_found_by_its_value_while_pending_and_done(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    fences = [work(gpu, tracker) for _ in range(3)]
    assert [tracker.fence(value) for value in (1, 2, 3)] == fences
    gpu.complete(2)
    await tracker.fence(2)
    assert tracker.completed == 2
    assert tracker.fence(3) is fences[2]
    for value in (1, 2):
        late = tracker.fence(value)
        assert late.done()
        assert late.value == value
        await late.wait(0)
    for value in (0, -1, 4):
        with pytest.raises(ValueError, match=f"no fence has the value {value}; the newest has 3"):
            tracker.fence(value)
    gpu.complete()
    await fences[2]


async def test_a_value_that_the_lost_device_reached_is_done_and_others_are_lost(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    first, second = work(gpu, tracker), work(gpu, tracker)
    gpu.complete()
    await first
    gpu.lose()
    with pytest.raises(aiostage.DeviceLost):
        await second
    await tracker.fence(1)
    with pytest.raises(aiostage.DeviceLost, match="before fence 2"):
        await tracker.fence(2)


async def test_work_that_the_queue_says_has_failed_is_not_done(
    gpu: SimulatedGpu, tracker: FenceTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that is lost by itself, before anybody has asked whether it is."""
    told: list[Any] = []
    monkeypatch.setattr(gpu, "on_work_done", told.append)
    fence = tracker.insert()
    await until(lambda: told)
    monkeypatch.setattr(gpu, "poll", lambda: told and told.pop()(False))
    with pytest.raises(aiostage.DeviceLost):
        await fence.wait(10)


async def test_any_number_of_tasks_may_wait_and_a_cancelled_one_disturbs_nobody(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    fence = work(gpu, tracker)

    async def wait() -> None:
        await fence

    tasks = [asyncio.ensure_future(wait()) for _ in range(10)]
    await turns()
    tasks[3].cancel()
    await turns()
    assert [task.done() for task in tasks] == [i == 3 for i in range(10)]
    assert not fence.done()
    gpu.complete()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        asyncio.CancelledError if i == 3 else type(None) for i in range(10)
    ]


async def test_awaiting_a_completed_fence_does_not_suspend(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    fence = work(gpu, tracker)
    gpu.complete()
    await fence

    async def wait() -> str:
        await fence
        await fence.wait(0)
        return "at once"

    with pytest.raises(StopIteration, match="at once"):
        wait().send(None)


async def test_wait_times_out_with_what_is_pending_and_the_fence_stays(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    work(gpu, tracker)
    fence = work(gpu, tracker)
    message = r"fence 2 is not done after \d+\.\d+ s; 2 pending, the oldest is fence 1 for \d+\.\d+ s"
    for timeout in (0, 0.01):
        with pytest.raises(aiostage.FenceTimeout, match=message):
            await fence.wait(timeout)
    with pytest.raises(TimeoutError):
        await fence.wait(0)
    assert not fence.done()
    gpu.complete_all()
    await fence.wait()


async def test_a_cancelled_wait_is_a_cancellation_and_no_timeout(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    fence = work(gpu, tracker)
    with anyio.move_on_after(0.01) as scope:
        await fence.wait(60)
    assert scope.cancelled_caught
    gpu.complete()
    await fence


async def test_done_callbacks_run_on_the_loop_once_also_when_added_late(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    fence = work(gpu, tracker)
    calls: list[tuple[Fence, int]] = []

    def callback(fence: Fence) -> None:
        calls.append((fence, threading.get_ident()))

    fence.add_done_callback(callback)
    gpu.complete()
    await fence
    await turns()
    fence.add_done_callback(callback)
    assert len(calls) == 1  # soon, but not in the caller's stack
    await turns()
    assert calls == [(fence, threading.get_ident())] * 2


async def test_insertion_and_completion_are_logged_with_value_and_elapsed_time(
    gpu: SimulatedGpu, tracker: FenceTracker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="aiostage")
    fence = work(gpu, tracker)
    gpu.complete()
    await fence
    inserted, done = [record for record in caplog.records if record.name == "aiostage"]
    assert inserted.levelno == done.levelno == logging.DEBUG
    assert (inserted.event, inserted.getMessage()) == ("fence_inserted", "fence_inserted fence=1")
    assert (inserted.fence, done.fence, done.elapsed) == (1, 1, fence.elapsed)
    assert (done.event, done.getMessage()) == ("fence_done", f"fence_done fence=1 elapsed={fence.elapsed}")


async def test_a_lost_device_fails_every_pending_fence_and_those_that_come_later(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    fences = [work(gpu, tracker) for _ in range(3)]
    gpu.complete()
    await fences[0]
    gpu.lose()
    with anyio.fail_after(30):
        for fence in fences[1:]:
            with pytest.raises(aiostage.DeviceLost):
                await fence
            assert fence.done()
        for _ in range(50):  # whatever the polling thread is at
            with pytest.raises(aiostage.DeviceLost):
                await tracker.insert()
    assert tracker.pending == 0
    await fences[0]


async def test_a_fence_of_another_loop_is_wrong_loop(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    fence = work(gpu, tracker)

    async def wait() -> None:
        await fence

    with pytest.raises(aiostage.WrongLoop):
        await asyncio.to_thread(asyncio.run, wait())
    gpu.complete()
    await fence


async def test_leaving_a_tracker_waits_for_its_fences(gpu: SimulatedGpu) -> None:
    async def use() -> Fence:
        async with FenceTracker(gpu) as tracker:
            return work(gpu, tracker)

    using = asyncio.ensure_future(use())
    await turns()
    assert not using.done()
    gpu.complete()
    assert (await using).done()
    assert gpu.attached == 0


async def test_rings_share_one_tracker_per_device_and_a_closed_one_is_not_reused(gpu: SimulatedGpu) -> None:
    one, two = FenceTracker.shared(gpu), FenceTracker.shared(gpu)
    assert one is two
    assert FenceTracker.shared(SimulatedGpu()) is not one
    one.close()
    assert gpu.attached == 1
    two.close()
    assert gpu.attached == 0
    three = FenceTracker.shared(gpu)
    assert three is not one
    three.close()


async def test_a_fence_that_is_pending_when_its_tracker_closes_completes_all_the_same(gpu: SimulatedGpu) -> None:
    tracker = FenceTracker(gpu)
    fence = work(gpu, tracker)
    tracker.close()
    gpu.complete()
    with anyio.fail_after(30):
        await fence
    assert gpu.attached == 0
    await until(lambda: tracker.carrier.counts["threads"] == 0)


# -- polling --


async def test_nothing_is_polled_while_nothing_is_pending(gpu: SimulatedGpu, tracker: FenceTracker) -> None:
    await anyio.sleep(0.05)
    assert gpu.polls == 0  # before the first fence
    fence = work(gpu, tracker)
    gpu.complete()
    await fence
    await until(lambda: tracker.carrier.counts["is_idle"])
    polls = gpu.polls
    await anyio.sleep(0.3)
    assert gpu.polls == polls
    fence = work(gpu, tracker)  # and it wakes up again
    gpu.complete()
    await fence
    tracker.close()
    await until(lambda: tracker.carrier.counts["threads"] == 0)
    tracker.native.attach()
    tracker._users += 1  # for the fixture to close


async def test_nothing_is_polled_while_nothing_is_pending_on_a_real_device(device: wgpu.GPUDevice) -> None:
    async with FenceTracker(device) as tracker:
        await tracker.insert()
        await until(lambda: tracker.carrier.counts["is_idle"])
        polls = tracker.carrier.counts["polls"]
        assert polls
        await anyio.sleep(0.3)
        assert tracker.carrier.counts["polls"] == polls
        await tracker.insert()
        assert tracker.carrier.counts["polls"] > polls


async def test_many_fences_from_many_threads_complete_in_order(device: wgpu.GPUDevice) -> None:
    order: list[int] = []
    async with FenceTracker(device) as tracker:
        fences: list[Fence] = []

        def insert() -> None:
            fences.extend(tracker.insert() for _ in range(200))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(anyio.to_thread.run_sync, insert)
            await tracker.wait_all()
        assert sorted(fence.value for fence in fences) == list(range(1, 801))
        assert all(fence.done() for fence in fences)
        fences.sort(key=lambda fence: fence.value)
        order = [fence.completed_at for fence in fences]
    assert order == sorted(order)


async def test_a_destroyed_device_fails_its_fences(own_device: wgpu.GPUDevice) -> None:
    tracker = FenceTracker(own_device)
    fence = tracker.insert()
    own_device.destroy()
    with anyio.fail_after(30):
        with pytest.raises(aiostage.DeviceLost):
            await fence
        with pytest.raises(aiostage.DeviceLost):
            await tracker.insert()
    tracker.close()


async def test_a_fence_that_completes_in_the_turn_of_its_timeout_is_no_timeout(
    gpu: SimulatedGpu, tracker: FenceTracker
) -> None:
    fence, lost = work(gpu, tracker), work(gpu, tracker)
    waits = [asyncio.ensure_future(one.wait(0.01)) for one in (fence, lost)]
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    loop.call_later(0.015, fence._complete, None)
    loop.call_later(0.015, lost._complete, aiostage.DeviceLost("gone"))
    time.sleep(0.02)  # all of it becomes due in one turn, the timeouts first
    await waits[0]
    with pytest.raises(aiostage.DeviceLost):
        await waits[1]


async def test_a_tracker_whose_thread_cannot_be_started_is_not_made(
    gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(aiostage.CannotStartThread, match="could not be started"):
        patch.setattr(native.Carrier, "start", lambda carrier: False)
        FenceTracker(gpu)
    assert gpu.attached == 0
