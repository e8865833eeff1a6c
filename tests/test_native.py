"""What the library does to a real device, and leaves as it was."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest
import wgpu
from readback import read_buffer, read_texture
from simulated import SimulatedGpu, turns, until
from wgpu.backends.wgpu_native import lib_path

import aiostage
from aiostage import BufferState, FenceTracker, KiB, MiB, StagingRing
from aiostage.data.copies import BufferCopy
from aiostage.gpu import device as native_module
from aiostage.gpu.device import check_version, connect
from aiostage.gpu.functions import Functions
from aiostage.gpu.ledger import ledger
from aiostage.gpu.protocol import map_first

OpenRing = Callable[..., Awaitable[StagingRing]]
Target = Callable[[int], wgpu.GPUBuffer]


# -- connecting --


def test_a_device_has_one_native(device: wgpu.GPUDevice) -> None:
    assert connect(device) is connect(device)


def test_what_is_no_device_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"device must be a wgpu\.GPUDevice, not str"):
        connect("cuda:0")


def test_an_unsupported_version_names_the_installed_and_the_supported_ones() -> None:
    check_version()
    check_version("0.32.7")
    for version in ("0.30.0", "0.33.0", "1.32.0", "0.3"):
        with pytest.raises(aiostage.UnsupportedVersion) as caught:
            check_version(version)
        assert f"wgpu {version} is installed" in str(caught.value)
        assert "0.32" in str(caught.value)


def test_the_version_is_checked_when_a_device_is_first_used(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wgpu, "__version__", "0.99.0")
    with pytest.raises(aiostage.UnsupportedVersion, match=r"0\.99\.0"):
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

    library = native._releasing
    for name in ("_releasing", "_holding"):
        monkeypatch.setattr(native, name, Library())
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
        await until(lambda: ring._tracker._polling._parked)
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
    ring = StagingRing(own_device, 1, 1024)
    await ring.open()
    native = connect(own_device)
    native.poll = lambda: None  # type: ignore[method-assign]  # a GPU that is busy: nothing is ever done
    fence = await ring.write_buffer(buffer, 0, bytes(1024))
    waiters = [asyncio.ensure_future(make) for make in (ring.allocate(4), ring.write_buffer(buffer, 0, bytes(8)))]
    await until(lambda: ring.stats_nowait().waiters == 2)
    await turns()
    assert not any(waiter.done() for waiter in waiters)
    del native.poll
    own_device.destroy()
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


# -- calls that keep the interpreter's lock --


@pytest.fixture
def as_on_a_gpu(own_device: wgpu.GPUDevice) -> wgpu.GPUDevice:
    """The software adapter, driven as a GPU is: submits from the loop, by calls that keep the interpreter's lock."""
    native = connect(own_device)
    native.submit_blocks = False
    native._holding = Functions(lib_path, holding=True)
    return own_device


async def test_calls_that_keep_the_interpreters_lock_move_the_same_bytes(as_on_a_gpu: wgpu.GPUDevice) -> None:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = as_on_a_gpu.create_buffer(size=8 * MiB, usage=usage)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    texture = as_on_a_gpu.create_texture(size=(128, 64, 8), format="rgba8unorm", usage=usage)
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 8 * MiB, np.uint8)
    layers = rng.integers(0, 256, (8, 64, 128, 4), np.uint8)
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


async def test_where_a_mapping_tells_that_a_submit_is_done_the_queue_is_not_asked(
    as_on_a_gpu: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = as_on_a_gpu.create_buffer(size=MiB, usage=wgpu.BufferUsage.COPY_DST)
    asked = []
    async with aiostage.StagingRing(as_on_a_gpu, 3, MiB) as ring:
        on_work_done = ring._tracker.native.on_work_done
        monkeypatch.setattr(ring._tracker.native, "on_work_done", lambda done: (asked.append(1), on_work_done(done)))
        for _ in range(10):
            await (await ring.write_buffer(target, 0, bytes(MiB)))
        assert not asked
        await (await ring.submit())  # without a copy no staging buffer goes along
        assert asked == [1]


async def test_a_destroyed_device_and_destination_are_told_of_by_such_calls_too(as_on_a_gpu: wgpu.GPUDevice) -> None:
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


class Source(NamedTuple):
    """A staging buffer, as copies see it."""

    handle: Any


@pytest.mark.parametrize("where", ["a map's callback", "a fence's callback", "the report of an error"])
def test_no_call_that_keeps_the_lock_waits_for_a_thread_that_wgpu_calls_back(
    own_device: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    native, target = connect(own_device), own_device.create_buffer(size=256, usage=wgpu.BufferUsage.COPY_DST)
    sources = [Source(native.create_staging_buffer(256, native.is_host_cached(None))) for _ in range(2)]
    map_first(native, [source.handle for source in sources])
    inside, leave, through = threading.Event(), threading.Event(), threading.Event()

    def stay(*args: Any) -> None:
        inside.set()
        leave.wait(60)

    def get_called_back() -> None:
        if where == "the report of an error":
            monkeypatch.setattr(native._errors, "handle_error", stay)
            native._captured(native._releasing.wgpuBufferUnmap, native._pointer(target))  # which is not mapped
        elif where == "a map's callback":
            native.unmap(sources[1].handle)
            native.map(sources[1].handle, stay)
        else:
            native.on_work_done(stay)
        while not inside.is_set():
            native.poll()

    def call_everything() -> None:
        native.address(sources[0].handle)
        native.unmap(sources[0].handle)
        native.submit([BufferCopy(sources[0], 0, target, 0, 256)], [])
        native.on_work_done(lambda ok: None)
        native.map(sources[0].handle, lambda ok: None)
        through.set()

    native.attach()
    ledger.note(target, destroyed=False)  # or it would be found out by a call that fails
    threads = [threading.Thread(target=get_called_back), threading.Thread(target=call_everything)]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    reached = through.wait(30)
    leave.set()
    for thread in threads:
        thread.join()
    assert reached
    native.detach()


def test_the_lock_is_given_away_where_wgpu_may_log_inside_its_own(
    as_on_a_gpu: wgpu.GPUDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    native, logger = connect(as_on_a_gpu), logging.getLogger("wgpu")
    level = logger.level
    assert native._functions is native._holding
    try:
        logger.setLevel(logging.INFO)
        assert native._functions is native._releasing
    finally:
        logger.setLevel(level)
    for name, value, found in (("VK_INSTANCE_LAYERS", "VK_LAYER_KHRONOS_validation", True), ("OTHER", "1", False)):
        for variable in ("VK_INSTANCE_LAYERS", "VK_LOADER_LAYERS_ENABLE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(name, value)
        assert native_module._has_layers() is found


def test_a_software_adapter_may_wait_in_any_call_and_gives_the_lock_away(own_device: wgpu.GPUDevice) -> None:
    native = connect(own_device)
    assert native.submit_blocks is (own_device.adapter.info["adapter_type"] == "CPU")
    assert (native._functions is native._releasing) is native.submit_blocks


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
    map_range = native._map

    def note(buffer: Any, offset: int, size: int, done: Any) -> None:
        new = {(buffer, offset + start) for start in range(0, size, 4 * KiB)} - known
        known.update(new)
        mapped.append((len(new) * 4 * KiB, threading.current_thread() is threading.main_thread()))
        map_range(buffer, offset, size, done)

    monkeypatch.setattr(native, "_map", note)
    await open_ring(ring_count=2, buffer_size=3 * MiB + 4 * KiB, host_cached=host_cached)
    assert max(new for new, _ in mapped) <= MiB
    assert not any(on_loop for _, on_loop in mapped)


def _refuse_every_map(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_map", lambda buffer, offset, size, done: done(False))


def _lose_before_the_map(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    map_range = native._map
    monkeypatch.setattr(native, "_map", lambda *rest: (native.device.destroy(), map_range(*rest)))


def _lose_before_the_poll(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = native._releasing.wgpuDevicePoll
    monkeypatch.setattr(native._releasing, "wgpuDevicePoll", lambda *rest: (native.device.destroy(), poll(*rest)))


def _lose_and_deliver_nothing(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native._releasing, "wgpuDevicePoll", lambda *rest: native.device.destroy())


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


def _lose_after_the_maps(native: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiostage.ring.map_first", lambda *rest: (map_first(*rest), native.device.destroy()))


@pytest.mark.parametrize(
    ("happens", "error"),
    [
        (_refuse_every_map, aiostage.OutOfMemory),
        (_lose_before_the_map, aiostage.DeviceLost),
        (_lose_before_the_poll, aiostage.DeviceLost),
        (_lose_and_deliver_nothing, aiostage.DeviceLost),
        (_lose_between_two_buffers, aiostage.DeviceLost),
        (_lose_after_the_last_buffer, aiostage.DeviceLost),
        (_lose_after_the_maps, aiostage.DeviceLost),
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
    if error is aiostage.OutOfMemory:
        assert len(made) == 1
        assert ledger.is_destroyed(made[0]) or made[0]._internal is None
        assert own_device._poller._poll_func == poll_function
    with pytest.raises(aiostage.RingClosed):
        await ring.allocate(4)
    if error is aiostage.OutOfMemory:
        monkeypatch.undo()
        async with StagingRing(own_device, 3, MiB, budget=budget):
            pass


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
