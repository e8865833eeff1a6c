"""What is destroyed and submitted through wgpu-py is known, whoever has a hand in it; and nobody waits to know it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from interpose import interpose
from readback import read_texture
from simulated import turns, until
from wgpu.backends.wgpu_native import _api

import aiostage
from aiostage import FenceTracker, KiB, MiB, StagingRing
from aiostage.budget import default_budget
from aiostage.data.copies import TextureCopy, resolve_region
from aiostage.gpu import device as native_module
from aiostage.gpu.device import connect
from aiostage.gpu.ledger import ledger
from aiostage.pools import BufferPool

METHODS = [
    (_api.GPUBuffer, "destroy"),
    (_api.GPUTexture, "destroy"),
    (_api.GPUDevice, "destroy"),
    (_api.GPUBuffer, "map_async"),
    (_api.GPUQueue, "submit"),
]
USAGE = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC


def recorded(device: wgpu.GPUDevice) -> wgpu.GPUCommandBuffer:
    return device.create_command_encoder().finish()


def is_destroyed(buffer: wgpu.GPUBuffer) -> bool:
    """Whether wgpu itself says so."""
    native = connect(buffer._device)
    error, _ = native._captured(_api.lib.wgpuBufferUnmap, buffer._internal)
    return "destroyed" in (error or "")


def has_lost_its_device(buffer: wgpu.GPUBuffer) -> bool:
    """Whether wgpu itself says so."""
    try:
        buffer._device.create_buffer(size=4, usage=USAGE)
    except wgpu.GPUError:
        return True
    return False


class Wrapper:
    """Somebody else's, around one of wgpu-py's methods."""

    def __init__(self, owner: type, name: str) -> None:
        self.owner, self.name, self.calls = owner, name, 0
        self.inner = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.inner(*args, **kwargs)

        self.outer = wrapper
        setattr(owner, name, wrapper)

    def take_off(self) -> None:
        setattr(self.owner, self.name, self.inner)


@pytest.fixture(autouse=True)
def methods_as_they_were() -> Iterator[None]:
    before = [getattr(owner, name) for owner, name in METHODS]
    yield
    for (owner, name), method in zip(METHODS, before, strict=True):
        setattr(owner, name, method)


# -- whoever has a hand in it --


async def test_what_others_put_around_wgpus_methods_stays_when_a_ring_comes_and_goes(device: wgpu.GPUDevice) -> None:
    wrappers = [[Wrapper(owner, name) for owner, name in METHODS]]
    for _ in range(2):
        async with StagingRing(device, 1, 1024):
            wrappers.append([Wrapper(owner, name) for owner, name in METHODS])
        assert [getattr(owner, name) for owner, name in METHODS] == [wrapper.outer for wrapper in wrappers[-1]]
    before = [[wrapper.calls for wrapper in layer] for layer in wrappers]
    device.create_buffer(size=4, usage=USAGE).destroy()
    device.queue.submit([recorded(device)])
    calls = [[wrapper.calls for wrapper in layer] for layer in wrappers]
    assert calls == [[buffer + 1, texture, lost, maps, submits + 1] for buffer, texture, lost, maps, submits in before]


@pytest.mark.parametrize(("owner", "name"), METHODS)
async def test_what_is_taken_off_at_any_time_leaves_nothing_behind(
    device: wgpu.GPUDevice, owner: type, name: str
) -> None:
    async def use(ring: StagingRing) -> None:
        await ring.submit([recorded(device)])
        device.queue.submit([recorded(device)])
        submitted = recorded(device)
        device.queue.submit([submitted])
        with pytest.raises(aiostage.InvalidSubmit):
            await ring.submit([submitted])
        buffer = device.create_buffer(size=4, usage=USAGE)
        await ring.write_buffer(buffer, 0, b"data")
        buffer.destroy()
        with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
            await ring.write_buffer(buffer, 0, b"data")
        texture = device.create_texture(size=(1, 1, 1), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST)
        await ring.write_texture({"texture": texture}, np.zeros((1, 1, 4), np.uint8))
        texture.destroy()
        with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
            await ring.write_texture({"texture": texture}, np.zeros((1, 1, 4), np.uint8))

    before = Wrapper(owner, name)
    async with StagingRing(device, 1, 1024) as ring:
        during = Wrapper(owner, name)
        before.take_off()
        await use(ring)
        setattr(owner, name, before.outer)
        await use(ring)
        during = Wrapper(owner, name)
        await use(ring)
    during.take_off()
    device.queue.submit([recorded(device)])
    async with StagingRing(device, 1, 1024) as ring:
        await use(ring)
        setattr(owner, name, during.outer)
        await use(ring)


async def test_a_command_buffer_whose_submit_raised_before_wgpu_had_it_can_be_submitted(
    device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise RuntimeError("not today")

    one, two = recorded(device), recorded(device)
    with monkeypatch.context() as patch:
        patch.setattr(_api.GPUQueue, "submit", refuse)
        async with StagingRing(device, 1, 1024) as ring:
            with pytest.raises(RuntimeError, match="not today"):
                device.queue.submit([one])
    async with StagingRing(device, 1, 1024) as ring:
        for garbage in (None, "text", object()):
            with pytest.raises((AttributeError, TypeError)):
                device.queue.submit([two, garbage])
        await (await ring.submit([one, two]))


async def test_a_command_buffer_whose_submit_raised_after_wgpu_had_it_cannot(device: wgpu.GPUDevice) -> None:
    submit = _api.GPUQueue.submit

    def submit_and_complain(queue: Any, command_buffers: Any) -> None:
        submit(queue, command_buffers)
        raise KeyboardInterrupt

    _api.GPUQueue.submit = submit_and_complain
    async with StagingRing(device, 1, 1024) as ring:
        taken = recorded(device)
        with pytest.raises(KeyboardInterrupt):
            device.queue.submit([taken])
        with pytest.raises(aiostage.InvalidSubmit):
            await ring.submit([taken])


async def test_a_wrapper_may_submit_one_by_one_or_something_else_or_nothing(device: wgpu.GPUDevice) -> None:
    submit, other = _api.GPUQueue.submit, recorded(device)

    def submit_singly(queue: Any, command_buffers: Any) -> None:
        for command_buffer in command_buffers[:2]:
            submit(queue, [command_buffer])
        submit(queue, [other])

    command_buffers = [recorded(device) for _ in range(3)]
    _api.GPUQueue.submit = submit_singly
    async with StagingRing(device, 1, 1024) as ring:
        device.queue.submit(command_buffers)
        _api.GPUQueue.submit = submit
        await ring.submit(command_buffers[2:])
        for submitted in (*command_buffers, other):
            with pytest.raises(aiostage.InvalidSubmit):
                await ring.submit([submitted])


async def test_wgpus_own_submit_of_what_was_submitted_is_invalid_too(device: wgpu.GPUDevice) -> None:
    async with StagingRing(device, 1, 1024) as ring:
        command_buffer, fresh = recorded(device), recorded(device)
        with pytest.raises(aiostage.InvalidSubmit):
            device.queue.submit([command_buffer, command_buffer])
        await ring.submit([command_buffer])
        with pytest.raises(aiostage.InvalidSubmit):
            device.queue.submit([fresh, command_buffer])
        device.queue.submit(iter([fresh]))
        device.queue.submit(command_buffers=())


async def test_a_command_buffer_that_the_ring_could_not_submit_is_its_owners_again(
    device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, command_buffer = connect(device), recorded(device)
    ring = StagingRing(device, 1, 1024)
    await ring.open()
    with await ring.allocate(4) as slot:
        slot.copy_to_buffer(device.create_buffer(size=4, usage=USAGE))
    with monkeypatch.context() as patch:
        patch.setattr(native, "unusable", lambda copy: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await ring.submit([command_buffer])
    with contextlib.suppress(aiostage.DeviceLost):
        await ring.aclose()
    device.queue.submit([command_buffer])
    with pytest.raises(aiostage.InvalidSubmit):
        native.claim_command_buffers([command_buffer])


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer gives no address twice")
async def test_a_fresh_command_buffer_at_the_address_of_a_submitted_one_is_fresh(device: wgpu.GPUDevice) -> None:
    addresses = []
    async with StagingRing(device, 1, 1024) as ring:
        for turn in range(200):
            command_buffer = recorded(device)
            addresses.append(int(_api.ffi.cast("uintptr_t", command_buffer._internal)))
            if turn % 2:
                await ring.submit([command_buffer])
            else:
                device.queue.submit([command_buffer])
            del command_buffer
            gc.collect(0)
    assert len(set(addresses)) < 200


# -- at the same time --


async def test_threads_that_record_at_the_same_time_do_not_mix_up_their_copies(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, usage = connect(own_device), wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    textures = [own_device.create_texture(size=(2, 2, 1), format="rgba8unorm", usage=usage) for _ in range(2)]
    encoders = [own_device.create_command_encoder() for _ in range(2)]
    for texture in textures:
        ledger.note(texture, destroyed=False)  # or it would be found out by a call of its own
    describe, first = native._describe_target, [True]

    def meanwhile(copy: Any) -> Any:
        described = describe(copy)
        if first:
            first.clear()
            in_threads([lambda: record(1)])
        return described

    def record(index: int) -> None:
        data = bytes([index + 1]) * 4
        relay = native.create_relay(4, data)
        region = resolve_region({"texture": textures[index], "origin": (index, index, 0)}, (1, 1, 1), native)
        native.record(encoders[index], [TextureCopy(SimpleNamespace(handle=relay), 0, region, 256, 1)])

    monkeypatch.setattr(native, "_describe_target", meanwhile)
    record(0)
    own_device.queue.submit([encoder.finish() for encoder in encoders])
    for index, texture in enumerate(textures):
        texels = np.zeros((2, 2, 4), np.uint8)
        texels[index, index] = index + 1
        assert (read_texture(texture)[0].reshape(texels.shape) == texels).all()


def in_threads(acts: list[Callable[[], Any]]) -> list[Any]:
    """What they return, begun in this order at the same time."""
    results: list[Any] = [None] * len(acts)

    def run(index: int) -> None:
        results[index] = acts[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def meet() -> Callable[..., None]:
    """Wait until two threads are here, or it turns out that only one can be."""
    barrier = threading.Barrier(2)

    def wait(*args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(1)

    return wait


def test_threads_that_connect_to_a_device_at_the_same_time_get_one_native(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch, meet: Callable[..., None]
) -> None:
    class Slow(native_module.WgpuNative):
        def __init__(self, device: wgpu.GPUDevice) -> None:
            super().__init__(device)
            meet()

    monkeypatch.setattr(native_module, "WgpuNative", Slow)
    one, two = in_threads([lambda: connect(own_device)] * 2)
    assert one is two is connect(own_device)


def test_threads_that_open_a_devices_first_rings_share_its_budget_and_poll_guard(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch, meet: Callable[..., None]
) -> None:
    class Slow(native_module.WgpuNative):
        def __init__(self, device: wgpu.GPUDevice) -> None:
            super().__init__(device)
            meet()

    class Budget(aiostage.MemoryBudget):
        def __init__(self) -> None:
            super().__init__(MiB)
            meet()

    monkeypatch.setattr(native_module, "WgpuNative", Slow)
    monkeypatch.setattr("aiostage.budget.MemoryBudget", Budget)
    original = own_device._poller._poll_func

    async def use() -> tuple[Any, int]:
        async with StagingRing(own_device, 1, 256 * KiB) as ring:
            await anyio.to_thread.run_sync(meet)
            used = ring._budget.used
            await anyio.to_thread.run_sync(meet)
            return ring._budget, used

    (one, used_by_one), (two, used_by_two) = in_threads([lambda: asyncio.run(use())] * 2)
    assert one is two is default_budget(connect(own_device))
    assert used_by_one == used_by_two == 512 * KiB
    assert one.used == 0
    assert own_device._poller._poll_func is original


@pytest.fixture(params=["wgpuCommandEncoderFinish", "wgpuQueueSubmit"])
def before_the_submit(own_device: wgpu.GPUDevice, request: pytest.FixtureRequest) -> list[Callable[[], object]]:
    """What threads do between the checks of a submit and the submit, which may not wait for it."""
    acts: list[Callable[[], object]] = []

    def meanwhile(original: Any) -> Any:
        def call(*args: Any) -> Any:
            in_threads(acts)
            acts.clear()
            return original(*args)

        return call

    interpose(connect(own_device), request.param, meanwhile)
    return acts


async def test_a_destination_destroyed_between_the_check_and_the_submit_is_destroyed_after_it(
    own_device: wgpu.GPUDevice, before_the_submit: list[Callable[[], object]]
) -> None:
    buffer = own_device.create_buffer(size=4, usage=USAGE)
    texture = own_device.create_texture(size=(1, 1, 1), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST)
    async with StagingRing(own_device, 1, 1024) as ring:
        before_the_submit.append(buffer.destroy)
        await ring.write_buffer(buffer, 0, b"data")
        before_the_submit.append(texture.destroy)
        await ring.write_texture({"texture": texture}, np.zeros((1, 1, 4), np.uint8))
        assert not before_the_submit
        await until(lambda: is_destroyed(buffer))
        for write in (ring.write_buffer(buffer, 0, b"data"), ring.write_texture({"texture": texture}, bytes(4))):
            with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
                await write


async def test_a_device_destroyed_between_the_check_and_the_submit_is_destroyed_after_it(
    own_device: wgpu.GPUDevice, before_the_submit: list[Callable[[], object]]
) -> None:
    buffer = own_device.create_buffer(size=4, usage=USAGE)
    async with StagingRing(own_device, 1, 1024) as ring:
        before_the_submit.append(own_device.destroy)
        with contextlib.suppress(aiostage.DeviceLost):  # as soon as it was made
            await ring.write_buffer(buffer, 0, b"data")
        await until(lambda: not before_the_submit)
        with pytest.raises(aiostage.DeviceLost):
            await ring.write_buffer(buffer, 0, b"data")
    await until(lambda: has_lost_its_device(buffer))


async def test_an_error_in_another_thread_between_the_check_and_the_submit_is_that_threads(
    own_device: wgpu.GPUDevice, before_the_submit: list[Callable[[], object]]
) -> None:
    buffer, errors = own_device.create_buffer(size=4, usage=USAGE), []

    def err() -> None:
        try:
            own_device.create_buffer(size=4, usage=USAGE | wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.MAP_WRITE)
        except wgpu.GPUError as error:
            errors.append(error)

    async with StagingRing(own_device, 1, 1024) as ring:
        before_the_submit.append(err)
        await ring.write_buffer(buffer, 0, b"data")
    assert len(errors) == 1
    assert bytes(own_device.queue.read_buffer(buffer)) == b"data"


@pytest.mark.parametrize("when", ["a ring is opened", "a buffer comes back"])
async def test_a_device_destroyed_between_the_check_and_a_look_at_memory_is_destroyed_after_it(
    own_device: wgpu.GPUDevice, when: str
) -> None:
    native, looks, first = connect(own_device), [], int(when == "a buffer comes back")
    target = own_device.create_buffer(size=4, usage=USAGE)

    def meanwhile(address: Any) -> Any:
        def look(*args: Any) -> Any:
            if len(looks) == first:
                in_threads([lambda: (own_device.destroy(), native._poll())])
            looks.append(address(*args))
            return looks[-1]

        return look

    for name in ("wgpuBufferGetMappedRange", "wgpuBufferGetConstMappedRange"):
        interpose(native, name, meanwhile)
    ring = StagingRing(own_device, 1, 1024)
    with anyio.fail_after(30), pytest.raises(aiostage.DeviceLost):
        await ring.open()
        while True:
            await ring.write_buffer(target, 0, b"data")
    await until(lambda: has_lost_its_device(target))
    assert len(looks) == first + 1
    assert all(looks)
    await ring.aclose()


def test_a_device_destroyed_between_the_check_and_a_relays_memory_is_destroyed_after_it(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = connect(own_device)
    buffer = own_device.create_buffer(size=4, usage=USAGE)
    is_lost = native.is_lost

    def destroy_after(probe: bool = True) -> bool:
        lost = is_lost(probe)
        in_threads([lambda: (own_device.destroy(), native._poll())])
        return lost

    with monkeypatch.context() as patch:
        patch.setattr(native, "is_lost", destroy_after)
        assert native.create_relay(1024, bytes(1020))
    assert has_lost_its_device(buffer)
    with pytest.raises(aiostage.DeviceLost):
        native.create_relay(1024, bytes(1020))


@pytest.mark.parametrize(("kind", "error"), [("buffer", aiostage.InvalidCopy), ("device", aiostage.DeviceLost)])
async def test_what_another_thread_is_about_to_destroy_counts_as_destroyed(
    own_device: wgpu.GPUDevice, kind: str, error: type[Exception]
) -> None:
    buffer = own_device.create_buffer(size=4, usage=USAGE)
    begun, go_on = threading.Event(), threading.Event()

    def linger(pointer: Any) -> None:
        begun.set()
        go_on.wait(30)

    async with StagingRing(own_device, 1, 1024) as ring:
        resource = {"buffer": buffer, "device": own_device}[kind]
        name = f"wgpu{kind.capitalize()}Destroy"
        follower = getattr(_api.libf, name)
        lingering = partial(follower.func, follower.args[0], linger, *follower.args[2:])
        thread = threading.Thread(target=lingering, args=(resource._internal,))
        thread.start()
        assert begun.wait(30)
        with pytest.raises(error):
            await ring.write_buffer(buffer, 0, b"data")
        go_on.set()
        thread.join()


# -- without waiting for a submit --


class BlockedSubmit:
    """A software adapter whose submits, by the library, take until `end`."""

    def __init__(self, device: wgpu.GPUDevice) -> None:
        native = connect(device)
        native.submit_blocks = True
        self.begun, self._may_end, self.ended = threading.Event(), threading.Event(), False

        def waiting(submit: Any) -> Any:
            def wait(*args: Any) -> None:
                self.begun.set()
                self._may_end.wait(20)  # who waits for it on the loop is found out then
                self.ended = True
                submit(*args)

            return wait

        interpose(native, "wgpuQueueSubmit", waiting)

    def end(self) -> None:
        assert not self.ended, "somebody waited for the submit"
        self._may_end.set()


@pytest.fixture
async def blocked(own_device: wgpu.GPUDevice) -> AsyncIterator[BlockedSubmit]:
    blocked = BlockedSubmit(own_device)
    yield blocked
    blocked._may_end.set()


async def test_what_runs_on_the_loop_does_not_wait_for_a_submit(
    own_device: wgpu.GPUDevice, blocked: BlockedSubmit
) -> None:
    device, command_buffer = own_device, recorded(own_device)
    target, other = (device.create_buffer(size=64, usage=USAGE) for _ in range(2))
    texture = device.create_texture(size=(4, 4, 1), format="rgba8unorm", usage=wgpu.TextureUsage.COPY_DST)
    readable = device.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ)
    another = StagingRing(device, 2, 1024)
    await another.open()  # which waits for mappings, and these for a submit
    pool = BufferPool(device, USAGE)
    async with StagingRing(device, 3, 1024) as ring:
        writing = asyncio.ensure_future(ring.write_buffer(target, 0, bytes(64)))
        await until(blocked.begun.is_set)

        submitting = asyncio.ensure_future(ring.submit([command_buffer]))
        await turns()
        with pytest.raises(aiostage.InvalidSubmit):
            await ring.submit([command_buffer])
        encoder = device.create_command_encoder()
        with await ring.allocate(70) as slot:
            slot.view[:] = bytes(range(70))
            slot.copy_to_buffer(other, size=64, encoder=encoder)
        with await ring.allocate_texture((4, 4), "rgba8unorm") as slot:
            slot.copy_to_texture({"texture": texture}, encoder=encoder)
        encoder = encoder.finish()
        with await ring.allocate(16) as slot, pool.allocate(16) as pinned:
            slot.copy_to_buffer(pinned)
        pool.allocate(16 * MiB).release()  # a block of its own, made and given back
        frame = ring.frame()
        await frame.__aenter__()
        await frame.write_buffer(other, 0, bytes(64))
        leaving = asyncio.ensure_future(frame.__aexit__(None, None, None))
        with another.allocate_nowait(16) as slot:
            slot.copy_to_buffer(other)
        closing = asyncio.ensure_future(another.aclose())
        tracker = FenceTracker(device)
        tracker.insert()
        tracker.close()
        ring.stats_nowait()
        asking = asyncio.ensure_future(ring.stats())  # which has the GPU thread poll, and so takes as long
        for resource in (target, other, texture):
            resource.destroy()
        mapping = readable.map_async("READ")
        await turns()
        assert not any(task.done() for task in (writing, submitting, leaving, closing, asking))

        blocked.end()
        with anyio.fail_after(30):
            await writing  # it was made before the destination was destroyed
            await submitting
            with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
                await leaving
            await closing
            await asking
            await mapping
            with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
                await ring.write_buffer(target, 0, bytes(64))
    await until(lambda: is_destroyed(target) and is_destroyed(other))


async def test_what_is_destroyed_during_a_submit_is_destroyed_after_it(
    own_device: wgpu.GPUDevice, blocked: BlockedSubmit
) -> None:
    buffers = [own_device.create_buffer(size=64, usage=USAGE) for _ in range(5)]
    async with StagingRing(own_device, 3, 1024) as ring:
        writing = asyncio.ensure_future(ring.write_buffer(buffers[0], 0, bytes(64)))
        await until(blocked.begun.is_set)
        for buffer in buffers:
            buffer.destroy()
            buffer.destroy()
        await anyio.to_thread.run_sync(buffers[1].destroy)
        assert not any(map(is_destroyed, buffers))
        del buffers[3:], buffer
        gc.collect()
        blocked.end()
        with anyio.fail_after(30):
            await writing
        await until(lambda: all(map(is_destroyed, buffers)))


async def test_a_device_destroyed_during_a_submit_is_lost_at_once_and_destroyed_after_it(
    own_device: wgpu.GPUDevice, blocked: BlockedSubmit
) -> None:
    buffer = own_device.create_buffer(size=64, usage=USAGE)
    async with StagingRing(own_device, 3, 1024) as ring:
        writing = asyncio.ensure_future(ring.write_buffer(buffer, 0, bytes(64)))
        await until(blocked.begun.is_set)
        own_device.destroy()
        own_device.create_buffer(size=64, usage=USAGE)  # it lives as long as the submit
        with pytest.raises(aiostage.DeviceLost), contextlib.suppress(aiostage.InvalidCopy):
            ring._engine.check_device()
        blocked.end()
        with anyio.fail_after(30), contextlib.suppress(aiostage.DeviceLost):
            await (await writing)
    with pytest.raises(wgpu.GPUError):
        own_device.create_buffer(size=64, usage=USAGE)


async def test_a_map_of_what_a_submit_copies_to_waits_for_that_and_no_other_does(
    own_device: wgpu.GPUDevice, blocked: BlockedSubmit
) -> None:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
    target, other = (own_device.create_buffer(size=64, usage=usage) for _ in range(2))
    mapped = threading.Event()

    def map_target() -> None:
        target.map_sync("READ")
        mapped.set()

    async with StagingRing(own_device, 3, 1024) as ring:
        writing = asyncio.ensure_future(ring.write_buffer(target, 0, bytes(range(64))))
        await until(blocked.begun.is_set)
        thread = threading.Thread(target=map_target)
        thread.start()
        other.map_async("READ")
        await until(lambda: target.map_state == "pending")
        await anyio.sleep(0.3)
        assert not mapped.is_set()
        refused = asyncio.ensure_future(ring.write_buffer(target, 0, bytes(64)))
        await turns()
        blocked.end()
        with anyio.fail_after(30):
            await (await writing)
            with pytest.raises(aiostage.InvalidCopy, match="mapped"):
                await refused
        await until(mapped.is_set)
    assert bytes(target.read_mapped()) == bytes(range(64))


async def test_a_poll_of_wgpus_thread_does_not_wait_for_a_submit_either(
    own_device: wgpu.GPUDevice, blocked: BlockedSubmit, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, polls = connect(own_device), []
    target = own_device.create_buffer(size=64, usage=USAGE)
    async with StagingRing(own_device, 1, 1024) as ring:
        poll = own_device._poller._poll_func  # by which wgpu-py's thread polls
        monkeypatch.setattr(native, "_lib", SimpleNamespace(wgpuDevicePoll=lambda *args: polls.append(args)))
        with ledger.visit(native.handles[1]):  # somebody else's submit
            poll(False)
        assert not polls
        with ledger.visit():  # a look at memory, which takes no time
            poll(False)
        assert polls
        polls.clear()
        writing = asyncio.ensure_future(ring.write_buffer(target, 0, bytes(64)))
        await until(blocked.begun.is_set)
        poll(False)
        assert not polls
        blocked.end()
        await (await writing)
        poll(False)
        assert polls
        monkeypatch.undo()


def test_a_destructor_may_destroy_anywhere(own_device: wgpu.GPUDevice) -> None:
    connect(own_device)
    buffer = own_device.create_buffer(size=64, usage=USAGE)
    with ledger.lock:  # where a garbage collection may begin
        buffer.destroy()
    with ledger.visit():
        buffer.destroy()
    assert is_destroyed(buffer)


def long_work(device: wgpu.GPUDevice, groups: int = 4000) -> wgpu.GPUCommandBuffer:
    """Commands that take a software adapter about a second."""
    code = """
        @group(0) @binding(0) var<storage, read_write> out: array<u32>;
        @compute @workgroup_size(1) fn main() {
            var x = out[0];
            for (var i = 0u; i < 10000u; i++) {
                x = x * 1664525u + 1013904223u;
                x = x ^ out[x & 15u];
                out[(x >> 7u) & 15u] = x;
            }
        }"""
    module = device.create_shader_module(code=code)
    pipeline = device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "main"})
    resource = {"buffer": device.create_buffer(size=64, usage=wgpu.BufferUsage.STORAGE), "offset": 0, "size": 64}
    group = device.create_bind_group(
        layout=pipeline.get_bind_group_layout(0), entries=[{"binding": 0, "resource": resource}]
    )
    encoder = device.create_command_encoder()
    shader = encoder.begin_compute_pass()
    shader.set_pipeline(pipeline)
    shader.set_bind_group(0, group)
    shader.dispatch_workgroups(groups)
    shader.end()
    return encoder.finish()


@pytest.mark.blocks_loop
async def test_the_loop_turns_while_a_software_adapter_works_in_a_submit(own_device: wgpu.GPUDevice) -> None:
    if not connect(own_device).submit_blocks:
        pytest.skip("for a software adapter")
    device, ticks = own_device, 0
    target = device.create_buffer(size=1024, usage=USAGE)

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    async with StagingRing(device, 4, 4096) as ring:
        await ring.write_buffer(target, 0, bytes(16))  # what is slow once
        async with ring.frame() as frame:
            frame.encoder.clear_buffer(target)
        await frame.fence
        work = [long_work(device) for _ in range(3)]
        ticking = asyncio.ensure_future(tick())
        for commands in work[:2]:
            submitting = asyncio.ensure_future(ring.submit([commands]))  # the second waits for the first
            await turns()
            await until(lambda: not ring._engine.carrier.counts["queued"])  # or they would go together
        await until(lambda: len(ring._engine.under_way) == 1)
        before = ticks
        encoder = device.create_command_encoder()
        with await ring.allocate(16) as slot:
            slot.view[:] = bytes(range(16))
            slot.copy_to_buffer(target, 64, encoder=encoder)
        encoder = encoder.finish()
        others = [asyncio.ensure_future(ring.submit([encoder]))]
        others.append(asyncio.ensure_future(ring.write_buffer(target, 128, bytes(range(16)))))
        frame = ring.frame()
        await frame.__aenter__()
        others.append(asyncio.ensure_future(frame.__aexit__(None, None, None)))
        device.create_buffer(size=64, usage=USAGE).destroy()
        await until(lambda: ticks > before + 20)
        assert not submitting.done()
        assert len(ring._engine.under_way) == 4, "something on the loop took as long as the submit"
        for task in (submitting, *others):
            await task
        await (await ring.submit())
        ticking.cancel()
    content = bytes(device.queue.read_buffer(target))
    assert content[64:80] == content[128:144] == bytes(range(16))
