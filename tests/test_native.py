"""What the library does to a real device, and leaves as it was."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from interpose import count_calls, interpose
from readback import read_buffer, read_texture
from simulated import SimulatedGpu, turns, until
from simulated_table import _tell as tell
from wgpu.backends.wgpu_native import _api

import aiostage
from aiostage import BufferState, FenceTracker, KiB, MiB, StagingRing
from aiostage import native as compiled
from aiostage.engine.engine import Engine
from aiostage.gpu import layout
from aiostage.gpu.device import connect
from aiostage.gpu.ledger import ledger

OpenRing = Callable[..., Awaitable[StagingRing]]
Target = Callable[[int], wgpu.GPUBuffer]


# -- connecting --


def test_a_device_has_one_native(device: wgpu.GPUDevice) -> None:
    assert connect(device) is connect(device)


def test_what_is_no_device_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"device must be a wgpu\.GPUDevice, not str"):
        connect("cuda:0")


class Other:
    """Like something of wgpu-py's, but for some attributes."""

    def __init__(self, original: Any, **changed: Any) -> None:
        self._original, self._changed = original, changed

    def __getattr__(self, name: str) -> Any:
        return self._changed[name] if name in self._changed else getattr(self._original, name)


def header(lib: dict[str, Any] | None = None, **ffi: Any) -> Any:
    """wgpu-py's module, with something else in its header."""
    return SimpleNamespace(lib=Other(_api.lib, **(lib or {})), ffi=Other(_api.ffi, **ffi))


def header_with(struct: str, **fields: str | None) -> Any:
    """With fields where others are, or without them."""

    def typeof(of: Any) -> Any:
        kind = _api.ffi.typeof(of)
        if kind is not _api.ffi.typeof(struct):
            return kind
        known = dict(kind.fields)
        changed = known | {name: known[place] if place else None for name, place in fields.items()}
        return Other(kind, fields=[(name, field) for name, field in changed.items() if field])

    return header(typeof=typeof, sizeof=lambda of: _api.ffi.sizeof(of._original if isinstance(of, Other) else of))


def larger(of: Any) -> int:
    size = int(_api.ffi.sizeof(of))
    return size + 8 if of is _api.ffi.typeof("WGPUTexelCopyTextureInfo") else size


def without_extents(of: Any) -> Any:
    return _api.ffi.typeof("WGPUNothing" if of == "WGPUExtent3D" else of)


def other_poll(of: Any) -> Any:
    is_poll = not isinstance(of, str) and of == _api.lib.wgpuDevicePoll
    return SimpleNamespace(cname="void(*)(int)") if is_poll else _api.ffi.typeof(of)


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (header({"wgpuQueueSubmit": None}), "wgpuQueueSubmit is missing"),
        (header({"WGPUMapMode_Write": 3}), "WGPUMapMode_Write is 3, not 2"),
        (header({"WGPUMapMode_Read": None}), "WGPUMapMode_Read is missing, not 1"),
        (header(sizeof=larger), "WGPUTexelCopyTextureInfo is 40, not 32"),
        (header(typeof=other_poll), r"wgpuDevicePoll is void\(int\), not uint32_t"),
        (
            header_with("WGPUExtent3D", height="depthOrArrayLayers"),
            r"WGPUExtent3D\.height is \(8, 4\), not \(4, 4\)",
        ),
        (header_with("WGPUTexelCopyTextureInfo", aspect=None), r"WGPUTexelCopyTextureInfo\.aspect is missing, not"),
        (header(typeof=without_extents), "WGPUExtent3D is missing, not 12"),
    ],
    ids=[
        "a function is missing",
        "a constant",
        "a constant is missing",
        "a struct",
        "a function's type",
        "an offset",
        "a field is missing",
        "a struct is missing",
    ],
)
def test_a_header_that_differs_is_told_of(changed: Any, difference: str) -> None:
    assert layout.find_difference(_api) is None
    assert re.match(difference, layout.find_difference(changed) or "")


def test_the_header_is_compared_when_a_device_is_first_used(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wgpu, "__version__", "0.99.0")
    monkeypatch.setattr(layout, "find_difference", lambda api: "WGPUExtent3D is 16, not 12")
    with pytest.raises(aiostage.UnsupportedVersion, match=r"0\.99\.0.*WGPUExtent3D.*pip install 'wgpu==0\.32"):
        connect(own_device)


# -- wgpu-py's own poll thread --


async def test_wgpus_poll_thread_does_not_block_while_a_tracker_is_active_and_is_given_back(
    own_device: wgpu.GPUDevice,
) -> None:
    poller = own_device._poller
    original = poller._poll_func
    one, two = FenceTracker(own_device), FenceTracker(own_device)
    assert poller._poll_func is not original
    gentle = poller._poll_func
    one.close()
    assert poller._poll_func == gentle
    two.close()
    assert poller._poll_func == original
    async with StagingRing(own_device, 1, 1024):
        assert poller._poll_func == gentle
    assert poller._poll_func == original


async def test_a_poll_of_wgpus_thread_calls_no_blocking_poll(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, waits = connect(own_device), []

    class Library:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def wgpuDevicePoll(self, device: Any, wait: bool, index: Any) -> Any:
            waits.append(bool(wait))
            return library.wgpuDevicePoll(device, wait, index)

    library = native._lib
    monkeypatch.setattr(native, "_lib", Library())
    interpose(
        native,
        "wgpuDevicePoll",
        lambda poll: lambda of, wait, last: (waits.append(bool(wait)), poll(of, wait, last))[1],
    )
    async with FenceTracker(own_device) as tracker:
        buffer = own_device.create_buffer(size=4, usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
        promise = buffer.map_async("READ")
        own_device._poller._poll_func(True)
        await tracker.insert()
        with anyio.fail_after(30):
            await promise
    assert waits
    assert not any(waits)


async def test_promises_of_wgpu_resolve_while_a_ring_is_busy(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=4096), target(1024)
    readable = device.create_buffer(size=1024, usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
    with anyio.fail_after(60):
        for turn in range(20):
            await ring.write_buffer(buffer, 0, bytes([turn] * 1024))
            encoder = device.create_command_encoder()
            encoder.copy_buffer_to_buffer(buffer, 0, readable, 0, 1024)
            await ring.submit([encoder.finish()])
            await readable.map_async("READ")
            assert bytes(readable.read_mapped()) == bytes([turn] * 1024)
            readable.unmap()
            assert bytes(device.queue.read_buffer(buffer)) == bytes([turn] * 1024)


async def test_promises_of_wgpu_resolve_while_a_ring_is_idle_and_after_it_is_closed(
    device: wgpu.GPUDevice, target: Target
) -> None:
    buffer = target(16)
    async with StagingRing(device, 1, 1024) as ring:
        await (await ring.write_buffer(buffer, 0, bytes(range(16))))
        await until(lambda: ring._tracker.carrier.counts["is_idle"])
        with anyio.fail_after(30):
            assert bytes(await _read(device, buffer)) == bytes(range(16))
    with anyio.fail_after(30):
        assert bytes(await _read(device, buffer)) == bytes(range(16))


async def _read(device: wgpu.GPUDevice, buffer: wgpu.GPUBuffer) -> bytes:
    readable = device.create_buffer(size=buffer.size, usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
    encoder = device.create_command_encoder()
    encoder.copy_buffer_to_buffer(buffer, 0, readable, 0, buffer.size)
    device.queue.submit([encoder.finish()])
    await readable.map_async("READ")
    return bytes(readable.read_mapped())


# -- bytes --


async def test_slots_uploads_batches_and_frames_arrive_on_a_real_device(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, buffer, copied = await open_ring(ring_count=2, buffer_size=4096), target(64), target(64)
    with await ring.allocate(16) as slot:
        slot.array(np.uint32, 4)[:] = [1, 2, 3, 4]
        slot.copy_to_buffer(buffer, 0)
    await ring.submit()
    await ring.write_buffer(buffer, 16, np.array([5, 6, 7, 8], np.uint32))
    async with ring.batch() as batch:
        await batch.write_buffer(buffer, 32, np.array([9, 10, 11, 12], np.uint32))
    async with ring.frame() as frame:
        await frame.write_buffer(buffer, 48, np.array([13, 14, 15, 16], np.uint32))
        frame.encoder.copy_buffer_to_buffer(buffer, 0, copied, 0, 64)
    await frame.fence
    assert batch.fence.done()
    for result in (buffer, copied):
        assert np.frombuffer(device.queue.read_buffer(result), np.uint32).tolist() == list(range(1, 17))


async def test_texels_arrive_on_a_real_device(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring = await open_ring(ring_count=2, buffer_size=8192)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    texture = device.create_texture(size=(8, 4, 2), format="rgba8unorm", usage=usage)
    pixels = np.arange(2 * 2 * 3 * 4, dtype=np.uint8).reshape(2, 2, 3, 4)
    with await ring.allocate_texture((3, 2, 2), "rgba8unorm") as slot:
        slot.array()[:] = pixels
        slot.copy_to_texture({"texture": texture, "origin": (4, 1, 0)})
    await (await ring.submit())
    source, layout = {"texture": texture, "origin": (4, 1, 0)}, {"bytes_per_row": 12, "rows_per_image": 2}
    read = device.queue.read_texture(source, layout, (3, 2, 2))
    assert (np.frombuffer(read, np.uint8).reshape(pixels.shape) == pixels).all()


async def test_a_copy_recorded_into_a_real_encoder_runs_where_it_was_recorded(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, buffer, before, after = await open_ring(ring_count=1, buffer_size=1024), target(4), target(4), target(4)
    encoder = device.create_command_encoder()
    encoder.copy_buffer_to_buffer(buffer, 0, before, 0, 4)
    with await ring.allocate(4) as slot:
        slot.view[:] = b"data"
        slot.copy_to_buffer(buffer, encoder=encoder)
    encoder.copy_buffer_to_buffer(buffer, 0, after, 0, 4)
    await ring.submit([encoder.finish()])
    assert bytes(device.queue.read_buffer(before)) == bytes(4)
    assert bytes(device.queue.read_buffer(after)) == b"data"


async def test_a_destroyed_destination_spoils_only_its_own_copy(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, doomed, buffer = await open_ring(ring_count=2, buffer_size=1024), target(4), target(4)

    async def careless() -> None:
        writing = asyncio.ensure_future(ring.write_buffer(doomed, 0, b"1111"))
        await asyncio.sleep(0)
        doomed.destroy()
        await writing

    outcomes = await asyncio.gather(careless(), ring.write_buffer(buffer, 0, b"2222"), return_exceptions=True)
    assert outcomes[0] is None or isinstance(outcomes[0], aiostage.InvalidCopy)
    await outcomes[1]
    assert bytes(device.queue.read_buffer(buffer)) == b"2222"


# -- a device that is lost --


async def test_a_destroyed_device_wakes_everybody_who_waits(own_device: wgpu.GPUDevice) -> None:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = own_device.create_buffer(size=1024, usage=usage)
    busy: list[bool] = []  # a GPU that is: nothing is ever done
    poll = lambda poll: lambda *args: 0 if busy else poll(*args)  # noqa: E731
    interpose(connect(own_device), "wgpuDevicePoll", poll)
    ring = StagingRing(own_device, 1, 1024)
    await ring.open()
    busy.append(True)
    fence = await ring.write_buffer(buffer, 0, bytes(1024))
    waiters = [asyncio.ensure_future(make) for make in (ring.allocate(4), ring.write_buffer(buffer, 0, bytes(8)))]
    await until(lambda: ring.stats_nowait().waiters == 2)
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    own_device.destroy()
    busy.clear()
    with anyio.fail_after(30):
        for waiter in waiters:
            with pytest.raises(aiostage.DeviceLost):
                await waiter
        with pytest.raises(aiostage.DeviceLost):
            await fence
        with pytest.raises(aiostage.DeviceLost):
            await ring.submit()
        with pytest.raises(aiostage.DeviceLost):
            await ring.write_buffer(buffer, 0, bytes(8))
        await ring.aclose()


async def test_a_device_destroyed_while_slots_are_open_ends_with_device_lost(own_device: wgpu.GPUDevice) -> None:
    buffer = own_device.create_buffer(size=16, usage=wgpu.BufferUsage.COPY_DST)
    async with StagingRing(own_device, 2, 1024) as ring:
        slot = await ring.allocate(16)
        view = slot.array()
        own_device.destroy()
        view[:] = 1
        del view
        with anyio.fail_after(30), pytest.raises(aiostage.DeviceLost):
            with slot:
                slot.copy_to_buffer(buffer)
            await ring.submit()
        with pytest.raises(aiostage.DeviceLost):
            await ring.allocate(4)


async def test_stats_poll_the_device(device: wgpu.GPUDevice, open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=1024), target(4)
    await (await ring.write_buffer(buffer, 0, b"data"))
    with anyio.fail_after(30):
        while (await ring.stats()).buffer_states != (BufferState.AVAILABLE,) * 2:
            pass
    assert (await ring.stats()).submits == 1


# -- a GPU thread that is beside the loop --


def test_a_software_adapter_is_known_to_work_in_submits(own_device: wgpu.GPUDevice) -> None:
    assert connect(own_device).submit_blocks is (own_device.adapter.info["adapter_type"] == "CPU")


@pytest.fixture
def as_on_a_gpu(own_device: wgpu.GPUDevice) -> wgpu.GPUDevice:
    """The software adapter, taken for a GPU, whose submits do not wait."""
    connect(own_device).submit_blocks = False
    return own_device


@pytest.fixture(params=[None, logging.DEBUG], ids=["silent", "wgpu logs"])
def log_level(request: pytest.FixtureRequest) -> Iterator[None]:
    """wgpu logs inside its own locks, in whichever thread, and wgpu-py takes the interpreter's lock for that."""
    logger = logging.getLogger("wgpu")
    level, handlers, propagate = logger.level, logger.handlers[:], logger.propagate
    if request.param is not None:
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(request.param)
    yield
    logger.setLevel(level)
    logger.handlers, logger.propagate = handlers, propagate


async def test_threads_and_the_loop_at_the_same_time_move_the_right_bytes(
    as_on_a_gpu: wgpu.GPUDevice, log_level: None
) -> None:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = as_on_a_gpu.create_buffer(size=8 * MiB, usage=usage)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    texture = as_on_a_gpu.create_texture(size=(128, 64, 8), format="rgba8unorm", usage=usage)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 8 * MiB, np.uint8)
    layers = rng.integers(0, 256, (8, 64, 128, 4), np.uint8)
    with anyio.fail_after(60):
        async with aiostage.StagingRing(as_on_a_gpu, 3, MiB) as ring:
            async with anyio.create_task_group() as group:
                for start in range(0, 7 * MiB, MiB // 2):  # some in threads, some on the loop, all at the same time
                    group.start_soon(ring.write_buffer, buffer, start, data[start : start + MiB // 2])
                for layer in range(8):
                    destination = {"texture": texture, "origin": (0, 0, layer)}
                    group.start_soon(ring.write_texture, destination, layers[layer])
            async with ring.batch() as batch:
                for start in range(7 * MiB, 8 * MiB, 64 * KiB):
                    await batch.write_buffer(buffer, start, data[start : start + 64 * KiB])
            await batch.fence
            assert ring.stats_nowait().pending_fences == 0
    assert read_buffer(buffer).tobytes() == data.tobytes()
    assert read_texture(texture)[0].reshape(layers.shape).tobytes() == layers.tobytes()


async def test_a_destroyed_device_and_destination_are_told_of_where_submits_do_not_wait(
    as_on_a_gpu: wgpu.GPUDevice,
) -> None:
    good, bad = (as_on_a_gpu.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_DST) for _ in range(2))
    async with aiostage.StagingRing(as_on_a_gpu, 3, MiB) as ring:
        bad.destroy()
        with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
            await ring.write_buffer(bad, 0, bytes(64))
        await (await ring.write_buffer(good, 0, bytes(64)))
        pending = await ring.write_buffer(good, 0, bytes(64))
        as_on_a_gpu.destroy()
        for _ in range(3):
            with pytest.raises(aiostage.DeviceLost):
                await ring.write_buffer(good, 0, bytes(64))
        with anyio.fail_after(30):
            try:
                await pending
            except aiostage.DeviceLost:
                pass


async def test_a_submit_costs_one_call_of_each_kind(as_on_a_gpu: wgpu.GPUDevice) -> None:
    target = as_on_a_gpu.create_buffer(size=MiB, usage=wgpu.BufferUsage.COPY_DST)
    asked, mapped = "wgpuQueueOnSubmittedWorkDone", "wgpuBufferMapAsync"
    calls = count_calls(connect(as_on_a_gpu), "wgpuQueueSubmit", asked, mapped)
    async with aiostage.StagingRing(as_on_a_gpu, 3, MiB) as ring:
        calls.clear()
        for _ in range(10):
            await (await ring.write_buffer(target, 0, bytes(MiB)))
        assert calls == {"wgpuQueueSubmit": 10, asked: 10, mapped: 10}
        calls.clear()
        await ring._tracker.insert()  # behind nothing that is new
        assert calls == {asked: 1}


PLACES = {
    "a submit": "wgpuQueueSubmit",
    "a poll": "wgpuDevicePoll",
    "a map": "wgpuBufferMapAsync",
    "an unmap": "wgpuBufferUnmap",
    "a look at memory": "wgpuBufferGetMappedRange",
    "a question to the queue": "wgpuQueueOnSubmittedWorkDone",
    "encoding": "wgpuCommandEncoderCopyBufferToBuffer",
    "the report of an error": "wgpuCommandEncoderCopyBufferToBuffer",
}


@pytest.mark.parametrize("where", PLACES)
async def test_nothing_on_the_loop_waits_for_a_thread_that_is_inside_wgpu_and_needs_the_interpreter(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    native, usage = connect(own_device), wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    target, other, doomed = (own_device.create_buffer(size=4 * KiB, usage=usage) for _ in range(3))
    for buffer in (target, other, doomed):  # or it would be found out by a call that fails, and wgpu reports one by one
        ledger.note(buffer, destroyed=False)
    armed, inside, leave, late = threading.Event(), threading.Event(), threading.Event(), list[str]()
    data = np.random.default_rng(0).integers(0, 256, 4 * KiB, np.uint8)

    def stay() -> None:
        inside.set()
        if not leave.wait(10):
            late.append(where)

    def stay_once(function: Any) -> Any:
        def call(*args: Any) -> Any:
            if armed.is_set() and threading.current_thread() is not threading.main_thread():
                armed.clear()
                if where == "the report of an error":
                    return function(*args[:-1], args[-1] + 1)  # of a size that no copy can have
                stay()
            return function(*args)

        return call

    def report(handle: Any, *args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            stay()
        handle(*args)

    interpose(native, PLACES[where], stay_once)
    async with StagingRing(own_device, 4, 4 * KiB, inline_size=512) as ring, FenceTracker(own_device) as another:
        if where == "the report of an error":
            handle = _api.error_handler.handle_error
            monkeypatch.setattr(_api.error_handler, "handle_error", partial(report, handle))
        armed.set()
        first = asyncio.ensure_future(ring.write_buffer(other, 0, bytes(256)))
        with anyio.fail_after(30):
            await until(inside.is_set)
        slot = ring.allocate_nowait(512)
        slot.view[:] = data[:512].tobytes()
        slot.copy_to_buffer(target)
        slot.commit()
        fences = [ring.submit_nowait(), ring._tracker.insert(), another.insert()]
        rest = asyncio.ensure_future(ring.write_buffer(target, 512, data[512:]))  # in a thread
        with ring.allocate_nowait(4) as slot:
            slot.copy_to_buffer(doomed)
        doomed.destroy()
        ring.allocate_nowait(4).abandon()
        ring.stats_nowait()
        await turns()
        assert ring._tracker.carrier.counts["queued"] >= 2
        leave.set()
        assert not late, "somebody waited for the thread"
        with anyio.fail_after(30):
            for fence in fences:
                await fence
            await (await rest)
            await first  # also where there was an error: the second attempt has none
    assert read_buffer(target).tobytes() == data.tobytes()


# -- new staging memory --


@pytest.fixture(params=[False, True], ids=["mapped for writing", "mapped for reading"])
def host_cached(device: wgpu.GPUDevice, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and "mappable-primary-buffers" not in device.features:
        pytest.skip("the device has no memory that is mapped for reading and copied from")
    monkeypatch.setattr(connect(device), "is_host_cached", lambda wanted: wanted)
    return bool(request.param)


async def test_new_memory_is_zeroed_piece_by_piece_and_off_the_loop(
    device: wgpu.GPUDevice, open_ring: OpenRing, monkeypatch: pytest.MonkeyPatch, host_cached: bool
) -> None:
    """A poll that maps new memory fills it with zeros, and holds off the submits of other rings meanwhile."""
    native, mapped, known = connect(device), [], set()
    monkeypatch.setattr(native, "functions", native.functions)

    def note(map_range: Any) -> Any:
        def call(buffer: int, mode: int, offset: int, size: int, info: Any) -> int:
            new = {(buffer, offset + start) for start in range(0, size, 4 * KiB)} - known
            known.update(new)
            mapped.append((len(new) * 4 * KiB, threading.current_thread() is threading.main_thread()))
            return map_range(buffer, mode, offset, size, info)

        return call

    interpose(native, "wgpuBufferMapAsync", note)
    await open_ring(ring_count=2, buffer_size=3 * MiB + 4 * KiB, host_cached=host_cached)
    assert max(new for new, _ in mapped) <= MiB
    assert not any(on_loop for _, on_loop in mapped)


def _refuse_every_map(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> int:
        compiled.note_error("Buffer cannot be mapped")
        return 0

    interpose(native, "wgpuBufferMapAsync", lambda map_range: refuse)


def _fail_every_map(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wgpu does where it has nothing to report as an error."""

    def fail(buffer: int, mode: int, offset: int, size: int, info: Any) -> int:
        tell(info, False)
        return 0

    interpose(native, "wgpuBufferMapAsync", lambda map_range: fail)


def _lose_before_the_map(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interpose(
        native, "wgpuBufferMapAsync", lambda map_range: lambda *args: (native.device.destroy(), map_range(*args))[1]
    )


def _lose_before_the_poll(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interpose(native, "wgpuDevicePoll", lambda poll: lambda *args: (native.device.destroy(), poll(*args))[1])


def _lose_and_deliver_nothing(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    interpose(native, "wgpuDevicePoll", lambda poll: lambda *args: (native.device.destroy(), 0)[1])


def _lose_between_two_buffers(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create = native.create_staging_buffer

    def create_and_lose(size: int, host_cached: bool) -> Any:
        buffer = create(size, host_cached)
        native.device.destroy()
        return buffer

    monkeypatch.setattr(native, "create_staging_buffer", create_and_lose)


def _lose_after_the_last_buffer(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create, made = native.create_staging_buffer, []

    def create_and_lose(size: int, host_cached: bool) -> Any:
        made.append(create(size, host_cached))
        if len(made) == 3:
            native.device.destroy()
        return made[-1]

    monkeypatch.setattr(native, "create_staging_buffer", create_and_lose)


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (_refuse_every_map, aiostage.OutOfMemory),
        (_fail_every_map, aiostage.OutOfMemory),
        (_lose_before_the_map, aiostage.DeviceLost),
        (_lose_before_the_poll, aiostage.DeviceLost),
        (_lose_and_deliver_nothing, aiostage.DeviceLost),
        (_lose_between_two_buffers, aiostage.DeviceLost),
        (_lose_after_the_last_buffer, aiostage.DeviceLost),
    ],
    ids=lambda value: value.__name__.replace("_", " ").strip(),
)
async def test_a_ring_that_cannot_be_opened_says_why_and_keeps_nothing(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch, happens: Any, error: type[Exception]
) -> None:
    native, budget, made = connect(own_device), aiostage.MemoryBudget(8 * MiB), []
    create_buffer = own_device.create_buffer
    monkeypatch.setattr(own_device, "create_buffer", lambda **how: made.append(create_buffer(**how)) or made[-1])
    poll_function = own_device._poller._poll_func
    happens(native, monkeypatch)
    ring = StagingRing(own_device, 3, MiB, budget=budget)
    with anyio.fail_after(30), pytest.raises(error):
        await ring.open()
    assert budget.used == 0
    assert not ring._engine.shelf.all
    assert ring.stats_nowait().budget_used == 0
    assert all(ledger.is_destroyed(each) or each._internal is None for each in made)
    if error is aiostage.OutOfMemory:
        await until(lambda: own_device._poller._poll_func == poll_function)
    with pytest.raises(aiostage.RingClosed):
        await ring.allocate(4)
    if error is aiostage.OutOfMemory:
        native.functions, _ = layout.functions_of(_api)
        async with StagingRing(own_device, 3, MiB, budget=budget):
            pass


async def test_a_device_that_is_lost_when_all_buffers_are_mapped_is_told_of_all_the_same(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, map_first, lost = aiostage.MemoryBudget(8 * MiB), Engine._map_first, []
    buffer = own_device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST)

    def map_and_lose(engine: Engine, *args: Any) -> None:
        map_first(engine, *args)
        if engine.mapped.is_over:  # and the ring is about to hear of it
            lost.append(own_device.destroy())

    monkeypatch.setattr(Engine, "_map_first", map_and_lose)
    ring = StagingRing(own_device, 3, MiB, budget=budget)
    with anyio.fail_after(30), pytest.raises(aiostage.DeviceLost):
        async with ring:
            await ring.write_buffer(buffer, 0, bytes(4))
    assert lost
    assert budget.used == 0
    assert not ring._engine.shelf.all


# -- staging memory in its first life --


@pytest.mark.parametrize("host_cached", [True, None])
async def test_staging_memory_is_its_own_from_the_first_mapping_on(
    adapter: wgpu.GPUAdapter, target: Callable[[int], wgpu.GPUBuffer], host_cached: bool | None
) -> None:
    # What the array shows after the submit is what the staging buffer holds: no memory that was lent until then.
    size, feature = 1 << 16, "mappable-primary-buffers"
    device = adapter.request_device_sync(required_features=[feature] if host_cached else [])
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    async with StagingRing(device, 2, size, host_cached=host_cached) as ring:
        kept, buffers = [], []
        for index in range(2):
            content = np.full(size, index + 1, np.uint8)
            buffers.append(device.create_buffer(size=size, usage=usage))
            with await ring.allocate(size) as slot:
                kept.append(slot.array())
                kept[-1][:] = content
                slot.copy_to_buffer(buffers[-1])
        await (await ring.submit())
        noise = [np.full(size, 255, np.uint8) for _ in range(20)]  # takes memory that would have been freed
        for index, array in enumerate(kept):
            assert set(array.tolist()) == {index + 1}
            assert set(device.queue.read_buffer(buffers[index])) == {index + 1}
        addresses = {buffer.address for buffer in ring._engine.shelf.all}
        await (await ring.write_buffer(buffers[0], 0, noise[0]))
        await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
        assert {buffer.address for buffer in ring._engine.shelf.all} == addresses


async def test_a_ring_on_a_device_that_is_lost_is_not_opened(own_device: wgpu.GPUDevice) -> None:
    budget = aiostage.MemoryBudget(1 << 20)
    own_device.destroy()
    with pytest.raises(aiostage.DeviceLost):
        await StagingRing(own_device, 2, 1024, budget=budget).open()
    assert budget.used == 0


async def test_a_device_that_is_lost_while_a_ring_maps_its_buffers_fails_the_opening() -> None:
    gpu, budget = SimulatedGpu(), aiostage.MemoryBudget(1 << 20)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(aiostage.DeviceLost):
        patch.setattr(gpu, "map", lambda buffer, done: gpu.lose())
        await StagingRing(gpu, 2, 1024, budget=budget).open()
    assert budget.used == 0
