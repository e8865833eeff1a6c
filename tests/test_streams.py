"""Feeds and upload queues: against a plain model, under cancellation at every point, on all three loops."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import StagingRing
from aiostage.streams import Progress, Upload, UploadQueue, feed, show
from aiostage.streams.line import Line, Waiting, next_of, take_of

Run = Callable[[Callable[[], Awaitable[None]]], None]  # conftest.py's fixture


@pytest.fixture
def free() -> Iterator[SimulatedGpu]:
    """A GPU that does by itself what it is given."""
    gpu = SimulatedGpu(free_running=True)
    yield gpu
    assert gpu.violations == []


async def is_usable(ring: StagingRing, gpu: SimulatedGpu) -> None:
    """A ring goes on, with all of its buffers."""
    target = gpu.buffer(ring.memory)
    await (await ring.write_buffer(target, 0, b"\7" * ring.memory))
    assert target.bytes.tobytes() == b"\7" * ring.memory
    await until(lambda: ring.stats_nowait().buffer_states.count(aiostage.BufferState.AVAILABLE) == ring.ring_count)


def item(number: int, size: int = 16) -> bytes:
    return bytes([number + 1]) * size


# -- the line, against a plain model --


class Model:
    """A list of (priority, number, size), and a count."""

    def __init__(self, aging: int | None) -> None:
        self.aging, self.passed = aging, 0
        self.waiting: dict[int, tuple[float, int]] = {}

    def next(self) -> int | None:
        if not self.waiting:
            return None
        if self.aging is not None and self.passed >= self.aging:
            return min(self.waiting)
        return min(self.waiting, key=lambda number: (-self.waiting[number][0], number))

    def take(self, number: int) -> None:
        self.passed = 0 if number == min(self.waiting) else self.passed + 1
        del self.waiting[number]


class One(Waiting):
    __slots__ = ()

    def __init__(self, number: int, nbytes: int, priority: float) -> None:
        self.number, self.nbytes, self.urgency, self.line = number, nbytes, -priority, None


PRIORITIES = st.integers(-2, 3) | st.floats(allow_nan=False)
STEPS = st.lists(st.tuples(st.sampled_from("aaattrrc"), PRIORITIES, st.integers(0, 1 << 30)), max_size=200)


@given(st.none() | st.integers(1, 4), STEPS)
def test_a_line_is_what_a_plain_list_says(aging: int | None, steps: list[Any]) -> None:
    line, model, all_of_them = Line[One](aging), Model(aging), dict[int, One]()
    for number, (step, priority, choice) in enumerate(steps):
        chosen = sorted(model.waiting)[choice % len(model.waiting)] if model.waiting else None
        if step == "a":
            all_of_them[number] = One(number, choice, priority)
            line.add(all_of_them[number])
            model.waiting[number] = priority, choice
        elif step == "t" and chosen is not None:
            taken = line.next()
            assert taken is not None
            assert taken.number == model.next()
            line.take(taken)
            model.take(taken.number)
        elif step == "r" and chosen is not None:
            all_of_them[chosen].urgency = -priority
            line.rank(all_of_them[chosen])
            model.waiting[chosen] = priority, model.waiting[chosen][1]
        elif step == "c" and chosen is not None:
            line.remove(all_of_them[chosen])
            assert all_of_them[chosen].line is None
            del model.waiting[chosen]
        assert (line.count, line.nbytes) == (len(model.waiting), sum(size for _, size in model.waiting.values()))
        following = line.next()
        assert (following and following.number) == model.next()
    assert {upload.number for upload in line.clear()} == set(model.waiting)
    assert (line.count, line.nbytes, line.next()) == (0, 0, None)


def test_a_line_holds_few_entries_in_vain() -> None:
    line = Line[One](None)
    some = [One(number, 1, 0) for number in range(100)]
    for one in some:
        line.add(one)
    for step in range(10_000):
        some[step % 100].urgency = -float(step)
        line.rank(some[step % 100])
        assert len(line._urgent) <= 2 * line.count + 65
    for one in some:
        line.remove(one)
        assert len(line._aged) <= 2 * line.count + 65
    assert len(line._urgent) <= 65


def test_lines_that_are_served_as_one_pass_nobody_over_for_ever() -> None:
    lines = Line[One](3), Line[One](3)
    old = One(0, 1, -5)
    lines[1].add(old)
    for number in range(1, 20):
        lines[0].add(One(number, 1, number))
        following = next_of(lines)
        assert following is not None
        take_of(lines, following)
        if following is old:
            break
    assert number == 4


# -- a queue and frames, against the same model --


QUEUE_STEPS = st.lists(
    st.tuples(st.sampled_from("qqqqqrrcff"), st.integers(-2, 3), st.integers(0, 29)), min_size=1, max_size=60
)
ROOM = 30
"""Words that each upload may take."""


@settings(max_examples=60, deadline=None)
@given(st.none() | st.integers(1, 3), st.integers(1, 60), QUEUE_STEPS)
def test_frames_admit_what_the_model_says(aging: int | None, budget: int, steps: list[Any]) -> None:
    gpu = SimulatedGpu(free_running=True)
    target = gpu.buffer(4 * ROOM * len(steps))
    expected_words = np.zeros(ROOM * len(steps), np.uint32)

    async def scenario() -> None:
        model, uploads = Model(aging), dict[int, Upload]()
        async with StagingRing(gpu, 3, 1024) as ring:
            async with UploadQueue(ring, bytes_per_frame=4 * budget, aging=aging, idle_after=None) as queue:
                for number, (step, priority, choice) in enumerate(steps):
                    chosen = sorted(model.waiting)[choice % len(model.waiting)] if model.waiting else None
                    if step == "q":
                        data = np.full(choice + 1, number + 1, np.uint32)
                        uploads[number] = queue.write_buffer(
                            target, 4 * ROOM * number, data, priority=priority, tag=choice % 4
                        )
                        model.waiting[number] = priority, choice + 1
                    elif step == "r" and chosen is not None:
                        uploads[chosen].priority = priority
                        model.waiting[chosen] = priority, model.waiting[chosen][1]
                    elif step == "c":
                        doomed = [one for one in model.waiting if uploads[one].tag == choice % 4]
                        assert queue.cancel(choice % 4) == len(doomed)
                        for one in doomed:
                            del model.waiting[one]
                            assert uploads[one].cancelled()
                    elif step == "f":
                        admitted, used = list[int](), 0
                        while (following := model.next()) is not None:
                            size = model.waiting[following][1]
                            if admitted and used + size > budget:
                                break
                            admitted.append(following)
                            used += size
                            model.take(following)
                            expected_words[ROOM * following :][:size] = following + 1
                        async with ring.frame(uploads=queue) as frame:
                            assert queue._frames[frame] == [uploads[one] for one in admitted]
                        for one in admitted:
                            assert await uploads[one] is frame.fence
                    assert [one for one in uploads if uploads[one].is_waiting] == sorted(model.waiting)
                    assert queue.statistics().bytes_queued == 4 * sum(size for _, size in model.waiting.values())
                queue.clear()
            await ring.fence()

    asyncio.run(scenario())
    assert target.bytes.view(np.uint32).tolist() == expected_words.tolist()
    assert gpu.violations == []


async def test_a_frame_has_its_uploads_on_a_real_device(
    device: wgpu.GPUDevice, open_ring: Any, target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    buffer, copy = target(1 << 20), target(1 << 20)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    texture = device.create_texture(size=(64, 64, 1), format="rgba8unorm", usage=usage)
    texels = np.arange(64 * 64 * 4, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 4)
    words = np.arange(1 << 18, dtype=np.uint32)
    ring = await open_ring(ring_count=2, buffer_size=1 << 16)  # which is smaller than one of them
    async with UploadQueue(ring, bytes_per_frame=1 << 20) as queue:
        large = queue.write_buffer(buffer, 0, words, priority=2)
        small = queue.write_texture({"texture": texture}, lambda: texels, priority=1)
        async with ring.frame(uploads=queue) as frame:
            frame.encoder.copy_buffer_to_buffer(buffer, 0, copy, 0, 1 << 20)  # it sees them
        assert await large is frame.fence
        assert not small.done()
        await until(lambda: small.nbytes == texels.nbytes)
        async with ring.frame(uploads=queue) as frame:
            pass
        assert await small is frame.fence
    await frame.fence
    assert bytes(device.queue.read_buffer(copy)) == words.tobytes()
    read = device.queue.read_texture({"texture": texture}, {"bytes_per_row": 256}, (64, 64, 1))
    assert bytes(read) == texels.tobytes()


def test_an_upload_larger_than_a_frames_budget_gets_through(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(1024)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, 64) as queue:
            first = queue.write_buffer(target, 0, item(0, 32))
            large = queue.write_buffer(target, 0, item(1, 1024))
            last = queue.write_buffer(target, 0, item(2, 32))
            for admitted in (first, large, last):
                before = queue.statistics().done
                async with ring.frame(uploads=queue) as frame:
                    pass
                assert queue.statistics().done == before + 1
                assert await admitted is frame.fence
            await frame.fence
        assert target.bytes.tobytes() == item(2, 32) + item(1, 1024 - 32)

    run(scenario)


def test_an_abandoned_frame_gives_its_uploads_back(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(64)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, 32) as queue:
            upload = queue.write_buffer(target, 0, item(0), tag="t")
            with pytest.raises(KeyError):
                async with ring.frame(uploads=queue):
                    assert queue.statistics().running == 1
                    assert queue.cancel("t") == 0
                    raise KeyError
            assert upload.is_waiting
            assert not target.bytes.any()
            async with ring.frame(uploads=queue) as frame:
                pass
            assert await upload is frame.fence
            with pytest.raises(KeyError):
                other = queue.write_buffer(target, 0, item(0), tag="t")
                async with ring.frame(uploads=queue):
                    raise KeyError
            assert queue.cancel("t") == 1
            assert other.cancelled()
            assert queue.statistics().done == 1

    run(scenario)


def test_entering_a_frame_can_be_cancelled(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = gpu.buffer(4096)
        async with StagingRing(gpu, 1, 1024) as ring, UploadQueue(ring, 8192) as queue:
            await ring.write_buffer(target, 0, item(0, 1024))  # no buffer is left
            upload = queue.write_buffer(target, 0, item(1, 4096))
            with anyio.move_on_after(0.02) as scope:
                async with ring.frame(uploads=queue):
                    raise AssertionError
            assert scope.cancelled_caught
            assert upload.is_waiting
            gpu.free_running = True
            async with ring.frame(uploads=queue) as frame:
                assert not queue.statistics().queued
            await (await upload)
            assert frame.fence.done()
            await is_usable(ring, gpu)
        assert target.bytes.tobytes() == item(1, 4096)

    run(scenario)


def test_a_wrong_upload_fails_alone(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(64)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, 1024) as queue:
            wrong = queue.write_buffer(target, 2, item(0), priority=1)
            none = queue.write_buffer(target, 0, [1, 2])
            right = queue.write_buffer(target, 16, item(1))
            async with ring.frame(uploads=queue) as frame:
                await frame.write_buffer(target, 32, item(2))
            for _ in range(2):
                with pytest.raises(aiostage.InvalidCopy, match="multiple of 4"):
                    await wrong
            with pytest.raises(TypeError, match="list"):
                await none
            assert await right is await right is frame.fence
            assert (queue.statistics().failed, queue.statistics().done) == (2, 1)
            await frame.fence
        assert target.bytes.tobytes() == bytes(16) + item(1) + item(2) + bytes(16)

    run(scenario)


@pytest.mark.parametrize("size", [16, 800])
def test_what_is_destroyed_meanwhile_fails_whose_it_is(run: Run, free: SimulatedGpu, size: int) -> None:
    async def scenario() -> None:
        target = free.buffer(1024)
        async with StagingRing(free, 3, 1024, inline_size=64) as ring, UploadQueue(ring, 4096) as queue:
            for own in (False, True):
                gone = free.buffer(1024)
                await is_usable(ring, free)  # all of its buffers are free: nothing departs before the frame
                lost = queue.write_buffer(gone, 0, item(0, size))
                kept = queue.write_buffer(target, 0, item(1, size))
                try:
                    async with ring.frame(uploads=queue) as frame:
                        if own:
                            await frame.write_buffer(gone, 0, item(2))
                        gone.destroy()
                except aiostage.InvalidCopy:
                    assert own
                else:
                    assert not own
                with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
                    await lost
                assert await kept is frame.fence
            await frame.fence
        assert target.bytes.tobytes()[:size] == item(1, size)

    run(scenario)


def test_another_rings_queue_is_refused(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        async with StagingRing(free, 1, 1024) as ring, StagingRing(free, 1, 1024) as other:
            queue = UploadQueue(ring)
            with pytest.raises(ValueError, match="another ring"):
                other.frame(uploads=queue)
            with pytest.raises(aiostage.QueueClosed):
                async with ring.frame(uploads=queue):
                    pass
            with pytest.raises(aiostage.QueueClosed):
                queue.write_buffer(free.buffer(4), 0, b"1234")
            async with queue:
                for wrong in (float("nan"), "1"):
                    with pytest.raises(ValueError, match="priority"):
                        queue.write_buffer(free.buffer(4), 0, b"1234", priority=wrong)  # type: ignore[arg-type]
                with pytest.raises(ValueError, match="no tag"):
                    queue.cancel(None)
            with pytest.raises(aiostage.QueueClosed):
                queue.write_buffer(free.buffer(4), 0, b"1234")
            with pytest.raises(aiostage.QueueClosed):
                await queue.__aenter__()
            for options in ({"bytes_per_frame": 0}, {"concurrency": True}, {"aging": 1.5}):
                with pytest.raises(ValueError, match="positive"):
                    UploadQueue(ring, **options)  # type: ignore[arg-type]
            assert ring.frames_in_flight == 1
            async with ring.frame():  # the one that could not be entered is not in flight
                pass

    run(scenario)


# -- loaders --


class AsyncCallable:
    async def __call__(self) -> bytes:
        await checkpoint()
        return item(0)


def test_loaders_of_every_kind(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        threads = set[str]()

        async def coroutine_function() -> bytes:
            threads.add(threading.current_thread().name)
            return item(0)

        def function() -> bytes:
            threads.add(threading.current_thread().name)
            return item(0)

        here = threading.current_thread().name
        async with StagingRing(free, 3, 1024) as ring:
            for bytes_per_frame in (None, 1024):
                async with UploadQueue(ring, bytes_per_frame) as queue:
                    for loader, where in {
                        coroutine_function: here,
                        function: "aiostage thread",
                        lambda: coroutine_function(): here,
                        AsyncCallable(): None,
                    }.items():
                        threads.clear()
                        target = free.buffer(16)
                        upload = queue.write_buffer(target, 0, loader)
                        while not upload.done():
                            async with ring.frame(uploads=queue):
                                await checkpoint()
                        await (await upload)
                        assert target.bytes.tobytes() == item(0)
                        assert threads == ({where} if where else set())

    run(scenario)


def test_loaders_run_when_their_turn_comes_and_no_more_is_loaded_than_a_frame_takes(
    run: Run, free: SimulatedGpu
) -> None:
    async def scenario() -> None:
        target, begun = free.buffer(64), list[int]()

        def loader(number: int) -> Callable[[], Any]:
            async def load() -> bytes:
                begun.append(number)
                await checkpoint()
                return item(number, 32)

            return load

        async with StagingRing(free, 3, 1024) as ring:
            async with UploadQueue(ring, 64, concurrency=1, idle_after=None) as queue:
                uploads = [queue.write_buffer(target, 0, loader(number), priority=number) for number in range(6)]
                uploads[0].priority = 10
                await turns(50)
                assert begun == [0, 5]  # 64 bytes
                assert queue.statistics().bytes_queued == 64
                waits = queue.write_buffer(target, 32, item(8, 32), priority=4.5)
                async with ring.frame(uploads=queue) as frame:
                    assert queue._frames[frame] == [uploads[0], uploads[5]]
                await turns(50)
                assert begun == [0, 5, 4, 3]
                assert uploads[4].cancel()  # it waits, loaded, and makes room
                assert not uploads[4].cancel()
                await turns(50)
                assert begun == [0, 5, 4, 3, 2]
                async with ring.frame(uploads=queue) as frame:
                    assert queue._frames[frame] == [waits, uploads[3]]
                assert uploads[2].is_waiting

    run(scenario)


def test_a_loader_that_was_begun_is_not_cancelled(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        may, target = anyio.Event(), free.buffer(16)

        async def load() -> bytes:
            await may.wait()
            return item(0)

        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring) as queue:
            upload = queue.write_buffer(target, 0, load, tag=1)
            await turns()
            assert not upload.is_waiting
            assert queue.cancel(1) == queue.clear() == 0
            assert not upload.cancel()
            assert queue.statistics().running == 1
            may.set()
            await (await upload)
        assert target.bytes.tobytes() == item(0)

    run(scenario)


def test_a_loader_that_waits_for_something_cancelled_fails_alone(free: SimulatedGpu) -> None:
    async def scenario() -> None:
        async def load() -> bytes:
            task = asyncio.ensure_future(asyncio.sleep(10))
            task.cancel()
            await task
            return b""

        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, concurrency=1) as queue:
            lost = queue.write_buffer(free.buffer(16), 0, load)
            await (await queue.write_buffer(free.buffer(16), 0, item(0)))
            with pytest.raises(aiostage.UploadCancelled):
                await lost

    asyncio.run(scenario())


# -- without frames --


def test_a_queue_without_frames_uploads_the_most_urgent_so_many_at_a_time(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        running = most = 0
        order = list[int]()
        target = free.buffer(64)

        def loader(number: int) -> Callable[[], Any]:
            async def load() -> bytes:
                nonlocal running, most
                running += 1
                most = max(most, running)
                order.append(number)
                await turns(3)
                running -= 1
                return item(number)

            return load

        async with StagingRing(free, 3, 1024) as ring:
            for concurrency in (1, 3):
                most = 0
                order.clear()
                async with UploadQueue(ring, concurrency=concurrency) as queue:
                    for number in range(20):
                        queue.write_buffer(target, 0, loader(number), priority=number % 5)
                assert most == concurrency
                assert len(order) == 20
                if concurrency == 1:
                    assert order == sorted(range(20), key=lambda number: -(number % 5))
                assert queue.statistics().done == 20

    run(scenario)


def test_a_steady_stream_of_urgent_ones_passes_the_oldest_over_so_often_and_no_more(
    run: Run, free: SimulatedGpu
) -> None:
    async def scenario() -> None:
        target = free.buffer(16)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, 16, aging=5) as queue:
            old = queue.write_buffer(target, 0, item(0), priority=-1)
            frames = 0
            while not old.done():
                queue.write_buffer(target, 0, item(1), priority=frames)
                queue.write_buffer(target, 0, item(1), priority=frames)
                async with ring.frame(uploads=queue):
                    pass
                await turns(2)
                frames += 1
            assert frames == 6

    run(scenario)


def test_a_queue_that_gets_no_frames_uploads_by_itself_until_it_gets_some(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(16)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring, 16, idle_after=0.1) as queue:
            for _ in range(2):
                first = queue.write_buffer(target, 0, item(0))
                await anyio.sleep(0.03)
                assert first.is_waiting
                await first
                second = queue.write_buffer(target, 0, item(0))
                await turns(3)
                assert not second.is_waiting
                await second
                async with ring.frame(uploads=queue):
                    third = queue.write_buffer(target, 0, item(0))
                    await anyio.sleep(0.2)
                assert third.is_waiting
                await third
                async with ring.frame(uploads=queue):
                    pass

    run(scenario)


# -- the end of a queue --


def test_leaving_waits_for_what_is_queued(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(16 * 50)
        async with StagingRing(free, 3, 1024) as ring:
            for bytes_per_frame in (None, 16):
                target.bytes[:] = 0
                async with UploadQueue(ring, bytes_per_frame) as queue:
                    for number in range(50):
                        data: Any = item(number)
                        queue.write_buffer(target, 16 * number, (lambda d=data: d) if number % 2 else data)
                assert queue.statistics().done == 50
                await ring.fence()
                assert target.bytes.tobytes() == b"".join(map(item, range(50)))
            await is_usable(ring, free)

    run(scenario)


@pytest.mark.parametrize("how", ["exception", "cancelled", "cancelled while it is left"])
def test_leaving_otherwise_cancels(run: Run, free: SimulatedGpu, how: str) -> None:
    async def scenario() -> None:
        uploads, ended = list[Upload](), list[str]()

        async def load() -> bytes:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("loader")
            return b""

        async with StagingRing(free, 3, 1024) as ring:
            with anyio.CancelScope() as scope:
                try:
                    async with UploadQueue(ring, concurrency=1) as queue:
                        uploads += [queue.write_buffer(free.buffer(16), 0, load) for _ in range(3)]
                        await turns()
                        if how == "exception":
                            raise KeyError
                        if how == "cancelled":
                            scope.cancel()
                            await checkpoint()
                        else:
                            scope.deadline = anyio.current_time() + 0.02
                except KeyError:
                    assert how == "exception"
            assert scope.cancelled_caught == (how != "exception")
            assert ended == ["loader"]
            for upload in uploads:
                with pytest.raises(aiostage.UploadCancelled):
                    await upload
            assert queue.statistics().cancelled == 3
            assert queue.statistics().running == 0
            await is_usable(ring, free)

    run(scenario)


@pytest.mark.parametrize("end", ["closed", "lost"])
def test_the_end_of_the_ring_fails_all_that_waits(run: Run, gpu: SimulatedGpu, end: str) -> None:
    async def scenario() -> None:
        target, told = gpu.buffer(4096), list[type]()
        async with StagingRing(gpu, 1, 1024) as ring, UploadQueue(ring, None if end == "lost" else 64) as queue:
            await ring.write_buffer(target, 0, item(0, 1024))
            uploads = [queue.write_buffer(target, 0, item(1, 64), priority=n) for n in range(100)]

            async def wait(upload: Upload) -> None:
                try:
                    await upload
                except aiostage.StagingError as error:
                    told.append(type(error))

            async with anyio.create_task_group() as group:
                for upload in uploads:
                    group.start_soon(wait, upload)
                await turns()
                if end == "lost":
                    gpu.lose()
                else:
                    gpu.free_running = True
                    await ring.aclose()
            expected = {"closed": aiostage.RingClosed, "lost": aiostage.DeviceLost}[end]
            assert told == [expected] * 100
            with pytest.raises(expected):
                queue.write_buffer(target, 0, item(0))
            assert queue.statistics().failed == 100

    run(scenario)


async def test_an_error_that_nobody_awaited_is_told_of_once(free: SimulatedGpu) -> None:
    reports = list[dict[str, Any]]()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))

    def fail() -> bytes:
        raise KeyError("no such tile")

    async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring) as queue:
        awaited = queue.write_buffer(free.buffer(4), 0, fail)
        queue.write_buffer(free.buffer(4), 0, fail, tag="forgotten")
        queue.write_buffer(free.buffer(4), 0, b"123", tag="wrong")
        for _ in range(2):
            with pytest.raises(KeyError, match="no such tile") as caught:
                await awaited
        names = [frame.name for frame in caught.traceback]
        assert names.count("fail") == 1
        assert names[-1] == "fail"
        del awaited, caught
        kept = [queue.write_buffer(free.buffer(4), 0, b"1234") for _ in range(100)]
        queue.clear()
        del kept
        await until(lambda: queue.statistics().running == 0)
        gc.collect()
        await turns()
        told = sorted((report["message"], type(report["exception"])) for report in reports)
        message = "an upload that nobody awaited has failed (tag {!r})".format
        assert told == [(message("forgotten"), KeyError), (message("wrong"), aiostage.InvalidCopy)]
        reports.clear()
        for _ in range(20):
            queue.write_buffer(free.buffer(4), 0, lambda: b"1234")
        await ring.aclose()
    await turns()
    assert [type(report["exception"]) for report in reports] == [aiostage.RingClosed]


# -- feeds --


class Source:
    """An async generator of items that knows how far ahead of the writes it was asked."""

    def __init__(self, count: int, fails_at: int | None = None, fails_closing: bool = False) -> None:
        self.count, self.fails_at, self.fails_closing = count, fails_at, fails_closing
        self.asked = self.written = self.lead = self.closed = 0
        self.writing = self.most = 0
        self.inside = False  # it waits for something itself

    async def items(self) -> AsyncIterator[int]:
        try:
            for number in range(self.count):
                self.asked += 1
                self.lead = max(self.lead, self.asked - self.written)
                if number == self.fails_at:
                    raise KeyError(number)
                self.inside = True
                await turns(number % 3)
                self.inside = False
                yield number
            self.inside = True
        finally:
            if not self.inside:
                await checkpoint()  # is shielded from what ends the feed
            self.closed += 1
            if self.fails_closing:
                raise OSError("closing")

    def plain(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                self.asked += 1
                self.lead = max(self.lead, self.asked - self.written)
                if number == self.fails_at:
                    raise KeyError(number)
                yield number
        finally:
            self.closed += 1

    def writes(self, ring: StagingRing, target: Any) -> Callable[[int], Awaitable[Any]]:
        async def write(number: int) -> Any:
            self.writing += 1
            self.most = max(self.most, self.writing)
            try:
                await turns(7 * number % 5)
                return await ring.write_buffer(target, 16 * number, item(number))
            finally:
                self.writing -= 1
                self.written += 1

        return write


@pytest.mark.parametrize("kind", ["items", "plain", "list"])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_feed_writes_all_and_keeps_its_limit(run: Run, free: SimulatedGpu, ordered: bool, kind: str) -> None:
    async def scenario() -> None:
        target, source, seen = free.buffer(16 * 40), Source(40), list[Progress]()
        async with StagingRing(free, 3, 1024) as ring:
            given: Any = list(range(40)) if kind == "list" else getattr(source, kind)()
            progress = await feed(ring, given, source.writes(ring, target), 4, ordered, seen.append)
            assert target.bytes.tobytes() == b"".join(map(item, range(40)))  # without waiting for anything
            await is_usable(ring, free)
        assert source.most == 1 if ordered else source.most == 4 or (kind == "plain" and 1 < source.most < 4)
        if kind != "list":
            assert source.lead == 4 or (kind == "plain" and 1 < source.lead < 4)  # threads may be slow
            assert source.closed == 1
        assert [one.items for one in seen] == list(range(1, 41))
        assert progress.items == 40
        assert progress.total == (40 if kind == "list" else None)
        assert 0 < seen[0].seconds <= seen[-1].seconds <= progress.seconds

    run(scenario)


@pytest.mark.parametrize("ordered", [False, True])
def test_in_order_nothing_is_visible_before_what_comes_before_it(run: Run, gpu: SimulatedGpu, ordered: bool) -> None:
    async def scenario() -> None:
        target, out_of_order = gpu.buffer(16 * 12), False

        async def write(number: int) -> Any:
            await turns(40 - 3 * number)  # the later, the faster
            return await ring.write_buffer(target, 16 * number, item(number))

        async def watch() -> None:
            nonlocal out_of_order
            while True:
                await checkpoint()
                if gpu.in_flight:
                    gpu.complete()
                    there = target.bytes[::16] > 0
                    out_of_order |= bool((there[1:] & ~there[:-1]).any())

        async with StagingRing(gpu, 3, 1024) as ring:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                await feed(ring, range(12), write, 4, ordered)
                group.cancel_scope.cancel()
            gpu.free_running = True
        assert target.bytes.all()
        assert out_of_order != ordered

    run(scenario)


def test_a_feed_returns_when_the_gpu_has_it(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = gpu.buffer(64)
        async with StagingRing(gpu, 3, 1024) as ring:

            async def forget(number: int) -> None:
                await ring.write_buffer(target, 0, item(number))

            for write in (lambda number: ring.write_buffer(target, 0, item(number)), forget):
                with anyio.move_on_after(0.05) as scope:
                    await feed(ring, range(3), write)
                assert scope.cancelled_caught
                gpu.complete_all()
            gpu.free_running = True

    run(scenario)


@pytest.mark.parametrize("kind", ["items", "plain"])
@pytest.mark.parametrize("where", ["source", "write", "on_progress", "on_progress, async"])
def test_the_first_error_ends_a_feed(run: Run, free: SimulatedGpu, where: str, kind: str) -> None:
    async def scenario() -> None:
        target, source = free.buffer(16 * 40), Source(40, fails_at=9 if where == "source" else None)
        async with StagingRing(free, 3, 1024) as ring:
            writes = source.writes(ring, target)

            async def write(number: int) -> Any:
                fence = await writes(number)
                if where == "write" and number == 9:
                    raise KeyError(9)
                return fence

            async def told_async(progress: Progress) -> None:
                await checkpoint()
                told(progress)

            def told(progress: Progress) -> None:
                if where.startswith("on_progress") and progress.items == 10:
                    raise KeyError(9)

            with pytest.raises(KeyError) as caught:
                await feed(
                    ring, getattr(source, kind)(), write, 3, on_progress=told_async if "async" in where else told
                )
            assert caught.value.args == (9,)
            first = caught.value.__notes__[0]
            assert "item 9" in first or where.startswith("on_progress")
            assert {"source": "the source raised", "write": "writing item", "on_pro": "on_progress after item"}[
                where[:6].rstrip(",")
            ] in first
            assert source.closed == 1
            assert source.writing == 0
            assert source.asked <= 14
            await is_usable(ring, free)

    run(scenario)


def test_errors_after_the_first_are_noted(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        source = Source(10, fails_closing=True)

        async def write(number: int) -> None:
            try:
                await turns(5 if number == 2 else 1000)
                raise KeyError(number)
            except BaseException:
                if number == 1:
                    raise OSError("the other") from None
                raise

        async with StagingRing(free, 3, 1024) as ring:
            with pytest.raises(KeyError) as caught:
                await feed(ring, source.items(), write, 3)
            assert caught.value.args == (2,)
            notes = caught.value.__notes__
            assert len(notes) == 3
            assert "item 2" in notes[0]
            assert "item 1" in notes[1]
            assert "the other" in notes[1]
            assert "closing" in notes[2]
            with pytest.raises(OSError, match="closing"):
                await feed(ring, Source(3, fails_closing=True).items(), source.writes(ring, free.buffer(64)))

    run(scenario)


@pytest.mark.parametrize("kind", ["items", "plain"])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_feed_may_be_cancelled_at_every_point(run: Run, free: SimulatedGpu, ordered: bool, kind: str) -> None:
    async def scenario() -> None:
        async with StagingRing(free, 2, 64) as ring:
            ended = False
            after = cancelled = 0
            while not ended:
                after += 1 + after // 8
                target, source = free.buffer(16 * 6), Source(6)
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as group:

                        async def cancel(after: int = after, scope: anyio.CancelScope = scope) -> None:
                            await turns(after)
                            scope.cancel()

                        group.start_soon(cancel)
                        progress = await feed(ring, getattr(source, kind)(), source.writes(ring, target), 2, ordered)
                        ended = True
                        group.cancel_scope.cancel()
                cancelled += scope.cancelled_caught
                assert source.writing == 0
                assert source.closed == (1 if source.asked else 0)
                if ended:
                    assert progress.items == 6
                    assert target.bytes.all()
            assert cancelled > 5
            await is_usable(ring, free)

    run(scenario)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_feed_may_be_cancelled_by_asyncios_own_means(free: SimulatedGpu, ordered: bool) -> None:
    async def scenario() -> None:
        async with StagingRing(free, 2, 64) as ring:
            cancelled, after = 0, 0
            while True:
                after += 1 + after // 8
                target, source = free.buffer(16 * 6), Source(6)
                task = asyncio.ensure_future(feed(ring, source.items(), source.writes(ring, target), 2, ordered))
                await turns(after)
                task.cancel()
                try:
                    await task
                except asyncio.CancelledError:
                    cancelled += 1
                else:
                    break
                assert source.writing == 0
                assert source.closed == (1 if source.asked else 0)
                assert asyncio.all_tasks() == {asyncio.current_task()}
            assert cancelled > 5
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await feed(ring, range(5), lambda number: asyncio.sleep(10))
            await is_usable(ring, free)

    asyncio.run(scenario())


def test_plain_iterators_are_asked_in_threads_one_call_at_a_time(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        where, asking = set[str](), threading.Lock()

        def source() -> Iterator[int]:
            for number in range(10):
                assert asking.acquire(blocking=False)
                where.add(threading.current_thread().name)
                asking.release()
                yield number

        class Asked:
            def __getitem__(self, number: int) -> int:
                where.add(threading.current_thread().name)
                return range(3)[number]

        async with StagingRing(free, 3, 1024) as ring:
            target = free.buffer(16)
            assert (await feed(ring, source(), lambda n: ring.write_buffer(target, 0, item(n)))).items == 10
            assert where == {"aiostage thread"}
            where.clear()
            progress = await feed(ring, Asked(), lambda n: ring.write_buffer(target, 0, item(n)))  # type: ignore[arg-type]
            assert progress.items == 3
            assert where == {"aiostage thread"}
            with pytest.raises(TypeError, match="iterator"):
                await feed(ring, 3, lambda n: ring.write_buffer(target, 0, item(n)))  # type: ignore[arg-type]
            for limit in (0, True, 1.0):
                with pytest.raises(ValueError, match="limit"):
                    await feed(ring, [], inspect.iscoroutine, limit)  # type: ignore[arg-type]
        with pytest.raises(aiostage.RingClosed):
            await feed(ring, [1], lambda n: ring.write_buffer(target, 0, item(n)))

    run(scenario)


def test_the_bytes_of_a_feed(run: Run, free: SimulatedGpu) -> None:
    async def scenario() -> None:
        target = free.buffer(64)
        async with StagingRing(free, 3, 1024) as ring, UploadQueue(ring) as queue:

            async def count(number: int) -> int:
                await ring.write_buffer(target, 0, item(number))
                return 16

            async def write(data: Any) -> None:
                await ring.write_buffer(target, 0, data)

            async def queued(number: int) -> Upload:
                return queue.write_buffer(target, 0, lambda: item(number))

            arrays = [np.zeros(4, np.float32), bytes(16), memoryview(bytes(16))]
            assert (await feed(ring, arrays, write)).bytes == 48
            assert (await feed(ring, range(3), count)).bytes == 48
            assert (await feed(ring, range(3), queued)).bytes == 48
            assert (await feed(ring, range(3), lambda n: queue.write_buffer(target, 0, item(n)))).bytes == 48
            assert queue.statistics().done == 6

    run(scenario)


class Bar:
    """As much of tqdm's as `show` uses."""

    def __init__(self) -> None:
        self.n, self.total = 0, None

    def update(self, n: int) -> None:
        self.n += n


def test_bars_show_a_feed(run: Run, free: SimulatedGpu) -> None:
    from rich.progress import Progress as Bars

    async def scenario() -> None:
        target, bar, bars = free.buffer(16), Bar(), Bars(disable=True)
        task = bars.add_task("tiles", total=None)
        async with StagingRing(free, 3, 1024) as ring:
            for shown in (show(bar), show(bars, task)):
                await feed(ring, list(range(9)), lambda n: ring.write_buffer(target, 0, item(n)), on_progress=shown)
        assert (bar.n, bar.total) == (9, 9)
        assert (bars.tasks[0].completed, bars.tasks[0].total) == (9, 9)

    run(scenario)


def test_a_lost_device_ends_a_feed(run: Run, gpu: SimulatedGpu) -> None:
    async def scenario() -> None:
        source = Source(100)
        async with StagingRing(gpu, 1, 64) as ring:
            async with anyio.create_task_group() as group:

                async def lose() -> None:
                    await until(lambda: source.written >= 1)
                    gpu.lose()

                group.start_soon(lose)
                with pytest.raises(aiostage.DeviceLost):
                    await feed(ring, source.items(), source.writes(ring, gpu.buffer(1600)))
        assert source.closed == 1

    run(scenario)
