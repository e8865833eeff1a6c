"""Every public coroutine, struck at each of its suspensions, on a GPU that the test drives.

A *scene* is one call of the library, or one block. A *strike* is what happens to it: a cancellation of each kind,
Ctrl-C, the end of its device, its ring or its destination. For n = 0, 1, 2, … the scene is played, on a new ring, and
struck as it suspends for the nth time, until it gets by without suspending that often. Beside it other tasks upload:
one was there before, one comes while it waits, one holds a slot open all the time. What they uploaded must arrive, and
the ring must be whole afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import wgpu
from containers import ktx2
from held import HeldCopies
from misuse_cases import LOOPS
from simulated import SimulatedBuffer, SimulatedGpu, SimulatedTexture, until

import aiostage
import aiostage.textures
from aiostage import BufferState, KiB, MemoryBudget, MiB, StagingRing
from aiostage.data import pieces
from aiostage.data.files import FileRange
from aiostage.pools import BufferPool

BUFFER = 1024  # bytes in each of the ring's three staging buffers
ATOMIC = 5 * BUFFER  # bytes of an upload that arrives whole or not at all
RAW = 5  # what every byte of the scene's own uploads is
FILE = tempfile.TemporaryFile()  # noqa: SIM115 - it is needed as long as there are tests
FILE.write(bytes([RAW]) * 5 * BUFFER)
FILE.flush()
BC1 = ktx2("bc1-rgba-unorm", (16, 16), [bytes([RAW]) * 8 * n for n in (16, 4, 1)])


class Gpu(SimulatedGpu):
    """With what `aiostage.textures` asks of a device."""

    features = ("texture-compression-bc",)
    limits = {"max-texture-dimension-2d": 64, "max-texture-array-layers": 1}  # noqa: RUF012 - never changed

    def create_texture(self, *, format: str, size: Any, mip_level_count: int, **rest: Any) -> SimulatedTexture:
        return self.texture(format, size, mip_level_count)


class Stage:
    """What a scene is played on."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.ring = StagingRing(gpu, 3, BUFFER, inline_size=64)
        self.budget = MemoryBudget(4 * BUFFER)  # of a second ring, in the scenes that have one
        self.target = gpu.buffer(8 * BUFFER)
        self.texture = gpu.texture("rgba8unorm", (64, 64, 1))
        self.others = {name: gpu.buffer(3 * BUFFER) for name in ("before", "after", "holder")}
        self.pool: BufferPool | None = None  # in the scene that has one
        self.ready = anyio.Event()  # everything is in place for the scene
        self.over = anyio.Event()

    def destroy_destinations(self) -> None:
        self.target.destroy()
        self.texture.destroy()


OpenRing = Callable[..., Awaitable[StagingRing]]
Scene = Callable[[Stage], Coroutine[Any, Any, Any]]


async def nothing(stage: Stage) -> None:
    pass


async def full(stage: Stage) -> None:
    """The GPU has every buffer but the one that the holder's slot is in."""
    while True:
        try:
            slot = stage.ring.allocate_nowait(BUFFER)
        except anyio.WouldBlock:
            return
        with slot:
            slot.copy_to_buffer(stage.others["before"])
        await stage.ring.submit()


async def crowded(stage: Stage) -> None:
    """The scene's own copies lie beside the holder's open slot."""
    with stage.ring.allocate_nowait(64) as slot:
        slot.view[:] = bytes([RAW]) * 64
        slot.copy_to_buffer(stage.target)


async def cornered(stage: Stage) -> None:
    """The same, and there is no buffer to move them to."""
    await full(stage)
    await crowded(stage)


async def fragmented(stage: Stage) -> None:
    """A range with content lies alone in a pool's block, and would fit in another."""
    stage.pool = BufferPool(stage.gpu, wgpu.BufferUsage.VERTEX, block_size=8 * MiB)
    stage.kept, between, stage.moved = (stage.pool.allocate(size) for size in (4 * MiB, 4 * MiB, 64 * KiB))
    between.release()
    content(stage.moved)[:] = RAW


def content(place: Any) -> Any:
    return place.buffer.bytes[place.offset : place.offset + place.size]


# -- the scenes --


async def allocate(stage: Stage) -> None:
    with await stage.ring.allocate(512) as slot:
        slot.view[:] = bytes([RAW]) * 512
        await anyio.lowlevel.checkpoint()
        slot.copy_to_buffer(stage.target)
    await stage.ring.submit()


async def allocate_texture(stage: Stage) -> None:
    with await stage.ring.allocate_texture((4, 4), "rgba8unorm") as slot:
        slot.array()[:] = RAW
        slot.copy_to_texture({"texture": stage.texture})
    await stage.ring.submit()


async def submit(stage: Stage) -> None:
    await stage.ring.submit()


async def write_small(stage: Stage) -> None:
    await stage.ring.write_buffer(stage.target, 0, bytes([RAW]) * 16)


async def write_in_a_thread(stage: Stage) -> None:
    await stage.ring.write_buffer(stage.target, 0, bytes([RAW]) * 800)


async def write_more_than_the_ring(stage: Stage) -> None:
    await stage.ring.write_buffer(stage.target, 0, bytes([RAW]) * 5 * BUFFER)


async def write_file(stage: Stage) -> None:
    with FileRange(FILE, 0, 5 * BUFFER) as file:
        await stage.ring.write_buffer(stage.target, 0, file)


async def batch_of_files(stage: Stage) -> None:
    with FileRange(FILE, 0, 4 * BUFFER) as file, FileRange(FILE, shape=(16, 16, 4)) as texels:
        async with stage.ring.batch() as batch:
            await batch.write_buffer(stage.target, 16, file)
            await batch.write_texture({"texture": stage.texture}, texels)
        await batch.fence


async def write_texture(stage: Stage) -> None:
    await stage.ring.write_texture({"texture": stage.texture}, bytes([RAW]) * 64 * 64 * 4)


async def write_atomically(stage: Stage) -> None:
    await stage.ring.write_buffer(stage.target, 0, bytes([RAW]) * ATOMIC, atomic=True)


async def write_texture_atomically(stage: Stage) -> None:
    await stage.ring.write_texture({"texture": stage.texture}, bytes([RAW]) * 64 * 64 * 4, atomic=True)
    await write_small(stage)


async def batch(stage: Stage) -> None:
    async with stage.ring.batch() as batch:
        await batch.write_buffer(stage.target, 0, bytes([RAW]) * 16)
        await batch.write_buffer(stage.target, 16, bytes([RAW]) * 4 * BUFFER)
        await batch.write_texture({"texture": stage.texture}, bytes([RAW]) * 1024, size=(16, 16))
    await batch.fence


async def frames(stage: Stage) -> None:
    for _ in range(5):  # more than may be in flight
        async with stage.ring.frame() as frame:
            await frame.write_buffer(stage.target, 0, bytes([RAW]) * 100)
            frame.encoder.run(lambda: None)


async def stats(stage: Stage) -> None:
    await stage.ring.stats()


async def watch(stage: Stage) -> None:
    seen = 0
    async for _ in stage.ring.watch(0.0001):
        seen += 1
        if seen == 3:
            break


async def await_fence(stage: Stage) -> None:
    await stage.ring._tracker.insert()


async def wait_for_fence(stage: Stage) -> None:
    await stage.ring._tracker.insert().wait(30)


async def wait_all(stage: Stage) -> None:
    stage.ring._tracker.insert()
    await stage.ring._tracker.wait_all()


async def tracker(stage: Stage) -> None:
    async with aiostage.FenceTracker(stage.gpu) as tracker:
        tracker.insert()


async def open_and_close(stage: Stage) -> None:
    """A second ring on the same device."""
    ring = StagingRing(stage.gpu, 4, BUFFER, budget=stage.budget, inline_size=64)
    async with ring:
        await ring.write_buffer(stage.target, 0, bytes([RAW]) * 100)
        with await ring.allocate(64) as slot:
            slot.view[:] = bytes([RAW]) * 64
            slot.copy_to_buffer(stage.target, 128)
        open_slot = await ring.allocate(64)
        stage.gpu.free_running = False  # closing has something to wait for
        with await ring.allocate(64) as slot:
            slot.view[:] = bytes([RAW]) * 64
            slot.copy_to_buffer(stage.target, 256)
        # leaving moves that copy away from the open slot, submits it, and waits for the GPU
    open_slot.abandon()


async def load_texture(stage: Stage) -> None:
    await aiostage.textures.load(stage.ring, BC1)


async def wait_for_level(stage: Stage) -> None:
    async with aiostage.textures.open(stage.ring, BC1) as stream, anyio.create_task_group() as group:
        group.start_soon(stream.wait_level, 0)
        async for _ in stream:
            pass


async def defragment(stage: Stage) -> None:
    assert stage.pool is not None
    await stage.pool.defragment(30)
    assert stage.pool.statistics().blocks == 1


class Entry(NamedTuple):
    scene: Scene
    least: int  # suspensions, or the test would have struck nothing
    prepare: Scene = nothing


SCENES = {
    "allocate": Entry(allocate, 2, full),
    "allocate_texture": Entry(allocate_texture, 1, full),
    "submit, copies to be moved": Entry(submit, 1, crowded),
    "submit, copies that wait": Entry(submit, 1, cornered),
    "write_buffer, small": Entry(write_small, 1),
    "write_buffer, copied by a thread": Entry(write_in_a_thread, 1),
    "write_buffer, that waits": Entry(write_small, 1, full),
    "write_buffer, larger than the ring": Entry(write_more_than_the_ring, 1),
    "write_texture, larger than the ring": Entry(write_texture, 1),
    "write_buffer, from a file": Entry(write_file, 1),
    "batch, from files": Entry(batch_of_files, 3),
    "write_buffer, atomic": Entry(write_atomically, 3),
    "write_texture, atomic": Entry(write_texture_atomically, 4),
    "batch, larger than the ring": Entry(batch, 3),
    "frame": Entry(frames, 3),
    "stats": Entry(stats, 1),
    "watch": Entry(watch, 4),
    "await fence": Entry(await_fence, 1, full),
    "Fence.wait": Entry(wait_for_fence, 1, full),
    "FenceTracker.wait_all": Entry(wait_all, 1, full),
    "FenceTracker, leaving": Entry(tracker, 1, full),
    "BufferPool.defragment": Entry(defragment, 2, fragmented),
    "open, aclose": Entry(open_and_close, 4),
    "textures.load": Entry(load_texture, 4),
    "TextureStream.wait_level": Entry(wait_for_level, 4),
}


# -- striking --


class Struck:
    """Awaits a coroutine, and says when it suspends, before the loop hears of that, and when it is to resume.

    `resumes(n)` may return an exception, which the coroutine gets in place of what it waited for.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        suspends: Callable[[int], None],
        resumes: Callable[[int], BaseException | None],
    ) -> None:
        self._coroutine = coroutine
        self._suspends = suspends
        self._resumes = resumes

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Callable[[], Any] = partial(self._coroutine.send, None)
        for n in itertools.count():
            try:
                trap = resume()
            except StopIteration as end:
                return end.value
            self._suspends(n)
            try:
                resume = partial(self._coroutine.send, (yield trap))
                error = self._resumes(n)
            except BaseException as thrown:
                error = thrown
            if error is not None:
                resume = partial(self._coroutine.throw, error)


class Strike(NamedTuple):
    """What happens to the scene, and what may come out of it then; out of the others' tasks nothing, by default."""

    by: Callable[[Stage, anyio.CancelScope, Any], BaseException | None]
    errors: tuple[type[BaseException], ...] = ()
    others: tuple[type[BaseException], ...] = ()
    late: bool = False  # as it resumes: it has what it waited for, and will never know


def cancel_task(stage: Stage, scope: anyio.CancelScope, group: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def interrupt(stage: Stage, scope: anyio.CancelScope, group: Any) -> None:
    """As Ctrl-C is delivered: the signal comes while trio's main task is suspended."""
    import trio

    trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)


STRIKES = {
    "cancelled by its scope": Strike(lambda stage, scope, group: scope.cancel()),
    "cancelled by asyncio": Strike(cancel_task, (asyncio.CancelledError,)),
    # which is what asyncio throws if `task.cancel()` came after what wakes the task
    "cancelled in the turn in which it resumes": Strike(
        lambda stage, scope, group: asyncio.CancelledError(), (asyncio.CancelledError,), late=True
    ),
    "interrupted": Strike(interrupt, (KeyboardInterrupt,)),
    "its device lost": Strike(
        lambda stage, scope, group: stage.gpu.lose(), (aiostage.DeviceLost,), (aiostage.DeviceLost,)
    ),
    "its ring closed": Strike(
        lambda stage, scope, group: group.start_soon(stage.ring.aclose),
        (aiostage.RingClosed, aiostage.AllocationClosed),
        (aiostage.RingClosed,),
    ),
    "its destination destroyed": Strike(
        lambda stage, scope, group: stage.destroy_destinations(), (aiostage.InvalidCopy,)
    ),
}


async def play(entry: Entry, strike: Strike, n: int, submit_blocks: bool) -> bool:
    """Whether the scene was struck: it may end before its nth suspension."""
    gpu = Gpu(submit_blocks=submit_blocks)
    stage = Stage(gpu)
    struck = False
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            await stage.ring.open()
            group.start_soon(partial(hold, stage, strike))
            await stage.ready.wait()
            await entry.prepare(stage)
            group.start_soon(partial(upload, stage, strike, "before"))
            await anyio.lowlevel.checkpoint()

            def suspends(index: int) -> None:
                if index == 0:
                    group.start_soon(partial(upload, stage, strike, "after"))
                if not strike.late:
                    strike_at(index)
                gpu.free_running = True

            def resumes(index: int) -> BaseException | None:
                return strike_at(index) if strike.late else None

            def strike_at(index: int) -> BaseException | None:
                nonlocal struck
                if index != n:
                    return None
                struck = True
                return strike.by(stage, scope, group)

            with anyio.CancelScope() as scope:
                try:
                    await Struck(entry.scene(stage), suspends, resumes)
                    if struck and strike.by is interrupt:  # which may take trio some turns longer than the scene
                        await anyio.sleep_forever()
                except strike.errors as error:
                    if isinstance(error, asyncio.CancelledError):
                        asyncio.current_task().uncancel()  # type: ignore[union-attr]
                except BaseExceptionGroup as errors:
                    assert errors.split(strike.errors)[1] is None  # noqa: PT017
            gpu.free_running = True
            stage.over.set()
        assert set(stage.target.bytes.tolist()) <= {0, RAW}
        if not strike.others:
            await assert_whole(stage)
        if stage.pool is not None:
            assert strike.others or (content(stage.moved) == RAW).all()
            stage.pool.__exit__(EOFError)  # as an exception ends it: with its ranges
        await stage.ring.aclose()
        assert stage.ring.stats_nowait().scratch_bytes == 0
    if entry.scene is write_atomically:
        assert len(set(stage.target.bytes[:ATOMIC].tolist())) == 1
    assert len(set(stage.texture.level().reshape(-1).tolist())) == 1 or entry.scene is not write_texture_atomically
    if not strike.others:  # otherwise the holder's slot may keep its memory
        assert all(buffer.destroyed for buffer in gpu.staging[:3])
    assert stage.budget.used == 0
    assert stage.ring._budget.used == 0
    assert gpu.attached == 0
    assert gpu.violations == []
    return struck


async def upload(stage: Stage, strike: Strike, name: str) -> None:
    """Somebody else's upload, larger than a buffer; it fails only if device or ring are gone."""
    target = stage.others[name]
    try:
        await (await stage.ring.write_buffer(target, 0, name.encode() * 300))
    except strike.others:
        return
    if not strike.others:
        assert target.bytes.tobytes().startswith(name.encode() * 300)


async def hold(stage: Stage, strike: Strike) -> None:
    """Somebody else's slot, which is open until the scene is over."""
    slot = await stage.ring.allocate(64)
    stage.ready.set()
    await stage.over.wait()
    try:
        with slot:
            slot.view[:6] = b"holder"
            slot.copy_to_buffer(stage.others["holder"], size=8)
        await (await stage.ring.submit())
    except strike.others:
        return
    if not strike.others:
        assert stage.others["holder"].bytes[:6].tobytes() == b"holder"


async def assert_whole(stage: Stage) -> None:
    """Nothing of the ring is lost: every buffer can be had, and carries an upload to the GPU."""
    ring = stage.ring
    await ring.submit()  # of copies whose own submit was struck
    await assert_idle(ring)
    target = SimulatedBuffer(stage.gpu, 6 * BUFFER, stage.target.usage)
    await (await ring.write_buffer(target, 0, bytes([7]) * 6 * BUFFER))
    assert set(target.bytes.tolist()) == {7}
    assert not ring._engine.lanes.keys() - {ring._engine.slots, ring._engine.uploads}


async def assert_idle(ring: StagingRing) -> None:
    """Every buffer comes back and can be had."""
    await until(lambda: set(ring.stats_nowait().buffer_states) == {BufferState.AVAILABLE})
    stats = ring.stats_nowait()
    assert (stats.bytes_in_flight, stats.waiters) == (0, 0)
    for slot in [ring.allocate_nowait(BUFFER) for _ in range(ring.ring_count)]:
        slot.abandon()


WAYS = [
    *(
        ("asyncio", strike, submit_blocks)
        for strike in STRIKES
        if strike != "interrupted"  # asyncio cancels the main task then
        for submit_blocks in (False, True)
    ),
    ("uvloop", "cancelled by asyncio", True),
    ("trio", "cancelled by its scope", True),
    ("trio", "interrupted", False),
]


@pytest.mark.parametrize(
    ("loop", "strike", "submit_blocks"),
    WAYS,
    ids=(f"{strike}, on {loop}{', submits in a thread' * blocks}" for loop, strike, blocks in WAYS),
)
@pytest.mark.parametrize("scene", SCENES)
def test_struck_at_any_suspension(scene: str, loop: str, strike: str, submit_blocks: bool) -> None:
    struck, more = 0, True
    while more:
        try:
            more = anyio.run(play, SCENES[scene], STRIKES[strike], struck, submit_blocks, **LOOPS[loop])
        except BaseException as error:
            error.add_note(f"struck at suspension {struck}")
            raise
        struck += more
    assert struck >= SCENES[scene].least


# -- threads that raise --


class Spoilt(Exception):
    """What a producer raises."""


async def test_an_upload_that_cannot_be_copied_fails_alone(
    gpu: SimulatedGpu, simulated_ring: OpenRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the loop: the threads only move bytes."""
    ring, gpu.free_running, size = await simulated_ring(inline_size=64), True, 16
    copy_bytes = pieces.copy_bytes

    def spoil(memory: Any, array: Any, start: int) -> None:
        copy_bytes(memory, array, start)
        if array[-1] == 99:
            raise Spoilt

    monkeypatch.setattr(pieces, "copy_bytes", spoil)
    good, bad = gpu.buffer(3 * BUFFER), gpu.buffer(6 * BUFFER)
    async with anyio.create_task_group() as group:
        for start in range(0, 3 * BUFFER, 256):
            group.start_soon(ring.write_buffer, good, start, bytes([RAW]) * 256)
        for _ in range(3):
            with pytest.raises(Spoilt):
                await ring.write_buffer(bad, 0, bytes(size - 1) + b"\x63")
        with pytest.raises(Spoilt):
            async with ring.batch() as batch:
                await batch.write_buffer(good, 0, bytes([RAW]) * 256)
                await batch.write_buffer(bad, 0, bytes(size - 1) + b"\x63", size=size)
    await ring._tracker.wait_all()
    assert set(good.bytes.tolist()) == {RAW}
    assert 99 not in bad.bytes
    await assert_idle(ring)


async def test_a_thread_that_raises_abandons_its_slot_and_can_write_to_it_no_more(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, gpu.free_running = await simulated_ring(), True
    target, kept = gpu.buffer(BUFFER), []

    def produce(array: Any) -> None:
        kept.append(array)
        array[: BUFFER // 2] = 99
        raise Spoilt

    with pytest.raises(Spoilt):
        with await ring.allocate(BUFFER) as slot:
            slot.copy_to_buffer(target)
            await anyio.to_thread.run_sync(produce, slot.array())
    with pytest.raises(ValueError):
        await anyio.to_thread.run_sync(kept[0].fill, 98)
    await (await ring.write_buffer(target, 0, bytes([RAW]) * BUFFER))
    assert set(target.bytes.tolist()) == {RAW}
    await assert_idle(ring)


async def test_a_ring_that_is_closed_leaves_another_on_the_device_alone(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    one, two, gpu.free_running = await simulated_ring(), await simulated_ring(), True
    target = gpu.buffer(8 * BUFFER)
    async with anyio.create_task_group() as group:
        group.start_soon(two.write_buffer, target, 0, bytes([RAW]) * 8 * BUFFER)
        slot = await one.allocate(16)
        await one.aclose()
    with pytest.raises(aiostage.RingClosed):
        slot.commit()
    await two._tracker.wait_all()
    assert set(target.bytes.tolist()) == {RAW}
    await assert_idle(two)


async def test_a_device_that_is_lost_as_buffers_are_created_ends_the_opening(
    gpu: SimulatedGpu, simulated_ring: OpenRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The carrier, which the first ring shares, has told of it before it gets the new buffers to map."""
    first, heard = await simulated_ring(), threading.Event()
    create = StagingRing._create_buffers

    def create_slowly(ring: StagingRing) -> None:
        create(ring)
        gpu.lose()
        assert heard.wait(20)

    monkeypatch.setattr(StagingRing, "_create_buffers", create_slowly)
    opening = asyncio.create_task(StagingRing(gpu, 3, 1024).open())
    copying = asyncio.create_task(first.write_buffer(gpu.buffer(64), 0, bytes(64)))
    with anyio.fail_after(20):
        while not first.is_closed:
            await anyio.sleep(0.001)
        heard.set()
        with pytest.raises(aiostage.DeviceLost):
            await opening
        await asyncio.wait([copying])
    assert copying.exception() is None or isinstance(copying.exception(), aiostage.DeviceLost)


async def test_a_lost_device_ends_every_ring_on_it(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    rings = [await simulated_ring(ring_count=1) for _ in range(2)]
    uploads = [asyncio.ensure_future(ring.write_buffer(gpu.buffer(4096), 0, bytes(4096))) for ring in rings]
    await until(lambda: all(ring.stats_nowait().waiters for ring in rings))
    gpu.lose()
    for upload in uploads:
        with pytest.raises(aiostage.DeviceLost):
            await upload
    for ring in rings:
        with pytest.raises(aiostage.DeviceLost):
            await ring.allocate(4)


async def test_a_write_whose_thread_is_still_copying_when_the_device_is_lost_ends_after_it(
    held: HeldCopies, held_ring: OpenRing
) -> None:
    ring = await held_ring(inline_size=64)

    async def write() -> None:
        async with ring.batch() as batch:
            await batch.write_buffer(held.buffer(BUFFER), 0, bytes(BUFFER))

    upload = asyncio.ensure_future(write())
    await until(lambda: ring._tracker.carrier.counts["unfinished"])
    held.lose()
    await anyio.sleep(0.02)
    assert not upload.done()
    held.may_copy.set()
    with anyio.fail_after(30), pytest.raises(aiostage.DeviceLost):
        await upload
    with anyio.fail_after(30):
        await until(lambda: ring.is_closed)


async def test_an_upload_that_no_thread_has_begun_when_the_device_is_lost_ends_at_once(
    held: HeldCopies, held_ring: OpenRing
) -> None:
    ring = await held_ring(inline_size=64)
    upload = asyncio.ensure_future(ring.write_buffer(held.buffer(BUFFER), 0, bytes(BUFFER)))
    await until(lambda: ring._tracker.carrier.counts["unfinished"])
    held.destroy_device()
    with anyio.fail_after(30), pytest.raises(aiostage.DeviceLost):
        await upload
    assert ring.is_closed
