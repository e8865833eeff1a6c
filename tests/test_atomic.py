"""`atomic=True`: an upload that is much larger than its ring is seen whole, or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import wgpu
from held import HeldCopies
from readback import CREATABLE, fill_texture, level_shape, read_buffer, read_texture
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import KiB, MiB, StagingRing
from aiostage.data.copies import mip_extent
from aiostage.data.formats import required_feature, texel_block
from aiostage.engine import scratch
from aiostage.gpu.device import connect
from aiostage.pools import BufferPool

OpenRing = Callable[..., Awaitable[StagingRing]]
Target = Callable[[int], wgpu.GPUBuffer]
Usage = wgpu.TextureUsage

pytestmark = pytest.mark.blocks_loop("they read back, and look")

RNG = np.random.default_rng(5)
SIDE = 256  # of the texture that is looked at, in texels of 4 bytes
NBYTES = SIDE * SIDE * 4
SMALL: dict[str, Any] = {"ring_count": 3, "buffer_size": 16 * KiB, "inline_size": 4 * KiB}  # a fifth of it
LOOKS = 1000


def new_texture(device: Any, format: str, size: Any, usage: int = Usage.COPY_SRC, **options: Any) -> wgpu.GPUTexture:
    return device.create_texture(size=size, format=format, usage=usage | Usage.COPY_DST, **options)


@pytest.fixture
def created(device: wgpu.GPUDevice) -> Any:
    """Calls of what makes scratch buffers."""
    native = connect(device)
    with mock.patch.object(native, "create_relay", side_effect=native.create_relay) as calls:
        yield calls


# -- looks --


class Looks:
    """Submits of a user's own that copy all of something to a buffer, to see whether it is of one piece."""

    def __init__(self, device: wgpu.GPUDevice, seen: Any) -> None:
        self.device, self.seen = device, seen
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
        self.buffer = device.create_buffer(size=NBYTES, usage=usage)
        self.count = self.torn = 0
        self.values = set[int]()

    def begin(self) -> None:
        encoder = self.device.create_command_encoder()
        if isinstance(self.seen, wgpu.GPUTexture):
            layout = {"buffer": self.buffer, "bytes_per_row": SIDE * 4, "rows_per_image": SIDE}
            encoder.copy_texture_to_buffer({"texture": self.seen}, layout, (SIDE, SIDE, 1))
        else:
            encoder.copy_buffer_to_buffer(self.seen, 0, self.buffer, 0, NBYTES)
        self.device.queue.submit([encoder.finish()])

    def end(self) -> None:
        words = np.frombuffer(self.buffer.read_mapped(), np.uint32)
        self.buffer.unmap()
        self.count += 1
        self.torn += bool((words != words[0]).any())
        self.values.add(int(words[0]))

    def in_a_thread(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.begin()
            self.buffer.map_sync(wgpu.MapMode.READ)
            self.end()

    async def in_a_task(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.begin()
            await self.buffer.map_async(wgpu.MapMode.READ)
            self.end()


async def look_at(device: wgpu.GPUDevice, seen: Any, count: int, write: Callable[[], Awaitable[Any]]) -> list[Looks]:
    """Looks by a task and by a thread, so many together, while it is written to again and again."""
    looks, stop = [Looks(device, seen), Looks(device, seen)], threading.Event()
    thread = threading.Thread(target=looks[0].in_a_thread, args=(stop,))
    thread.start()
    task = asyncio.create_task(looks[1].in_a_task(stop))
    try:
        while looks[0].count + looks[1].count < count:
            await write()
    finally:
        stop.set()
        await task
        thread.join()
    assert min(each.count for each in looks) > 0
    return looks


class Writer:
    """Writes the next number all over something."""

    def __init__(self, ring: StagingRing, seen: Any, atomic: bool, first: int = 1, step: int = 1) -> None:
        self.ring, self.seen, self.atomic, self.number, self.step = ring, seen, atomic, first, step

    async def __call__(self) -> None:
        words = np.full((SIDE, SIDE), self.number, np.uint32)
        self.number += self.step
        if isinstance(self.seen, wgpu.GPUTexture):
            await self.ring.write_texture({"texture": self.seen}, words, atomic=self.atomic)
        else:
            await self.ring.write_buffer(self.seen, 0, words, atomic=self.atomic)


@pytest.fixture(params=["texture", "buffer"])
def seen(request: pytest.FixtureRequest, device: wgpu.GPUDevice, target: Target) -> Any:
    return target(NBYTES) if request.param == "buffer" else new_texture(device, "rgba8unorm", (SIDE, SIDE, 1))


async def test_no_look_sees_a_part_of_an_atomic_upload(device: wgpu.GPUDevice, open_ring: OpenRing, seen: Any) -> None:
    write = Writer(await open_ring(**SMALL), seen, atomic=True)
    looks = await look_at(device, seen, LOOKS, write)
    assert sum(each.torn for each in looks) == 0
    assert all(len(each.values) > 3 for each in looks)


async def test_without_it_looks_do(device: wgpu.GPUDevice, open_ring: OpenRing, seen: Any) -> None:
    write = Writer(await open_ring(**SMALL), seen, atomic=False)
    looks = await look_at(device, seen, LOOKS // 5, write)
    assert sum(each.torn for each in looks) > LOOKS // 100


async def test_two_writers_at_once_are_seen_one_at_a_time(
    device: wgpu.GPUDevice, open_ring: OpenRing, seen: Any, created: Any
) -> None:
    ring = await open_ring(**SMALL)
    writers = [Writer(ring, seen, True, 1, 2), Writer(ring, seen, True, 2, 2)]

    async def both() -> None:
        await asyncio.gather(*(write() for write in writers))

    looks = await look_at(device, seen, LOOKS // 4, both)
    assert sum(each.torn for each in looks) == 0
    assert created.call_count == 2
    assert ring.stats_nowait().scratch_bytes == 2 * MiB


# -- contents --


@pytest.mark.parametrize("buffer_size", [4, 20, 1000, 16 * KiB, 64 * KiB])
async def test_bytes_arrive_where_they_belong(open_ring: OpenRing, target: Target, buffer_size: int) -> None:
    ring, buffer = await open_ring(buffer_size=buffer_size, inline_size=256), target(40 * KiB)
    expected = np.zeros(40 * KiB, np.uint8)
    nbytes = min(30_000, 300 * buffer_size)
    data = RNG.integers(0, 256, nbytes, np.uint8)
    for offset, given, start, size in (
        (0, data, 0, None),
        (1028, data, 13, nbytes // 2 // 4 * 4),
        (4096, data.repeat(2)[::2], 0, None),  # not contiguous
        (8, bytes(data), 0, nbytes - nbytes % 4),
    ):
        await ring.write_buffer(buffer, offset, given, start, size, atomic=True)
        length = nbytes - start if size is None else size
        expected[offset : offset + length] = data[start : start + length]
        np.testing.assert_array_equal(read_buffer(buffer), expected)


async def test_a_pools_range_is_a_destination(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, pool = await open_ring(buffer_size=4 * KiB), BufferPool(device, wgpu.BufferUsage.COPY_SRC, block_size=8 * MiB)
    with pool:
        first, second = pool.allocate(64 * KiB), pool.allocate(64 * KiB)
        data = RNG.integers(0, 256, 60 * KiB, np.uint8)
        await ring.write_buffer(second, 256, data, atomic=True)
        content = read_buffer(second.buffer)
        np.testing.assert_array_equal(content[second.offset + 256 :][: len(data)], data)
        assert not content[first.offset : first.offset + first.size].any()
        first.release()
        second.release()


REGIONS = {
    "rows": ((201, 33, 1), {}, 0, (3, 2, 0), (150, 30, 1)),
    "layers": ((61, 15, 7), {}, 0, (8, 4, 2), (53, 10, 4)),
    "a mip level": ((128, 64, 3), {"mip_level_count": 3}, 1, (1, 0, 1), (63, 32, 2)),
    "a volume's midst": ((41, 20, 12), {"dimension": "3d"}, 0, (3, 1, 5), (31, 17, 6)),
    "a volume's mip level": ((40, 40, 12), {"dimension": "3d", "mip_level_count": 2}, 1, (0, 0, 1), (20, 20, 5)),
    "a line": ((2000, 1, 1), {"dimension": "1d"}, 0, (7, 0, 0), (1501, 1, 1)),
}


@pytest.mark.parametrize("format", ["r8unorm", "rg8unorm", "rgba8unorm", "rgba32float"])
@pytest.mark.parametrize("buffer_size", [256, 1000, 8 * KiB, MiB])
@pytest.mark.parametrize("region", REGIONS)
async def test_texels_arrive_where_they_belong(
    device: wgpu.GPUDevice, open_ring: OpenRing, region: str, buffer_size: int, format: str
) -> None:
    size, options, level, origin, extent = REGIONS[region]
    ring, texture = (
        await open_ring(buffer_size=buffer_size, inline_size=512),
        new_texture(device, format, size, **options),
    )
    nbytes = texel_block(format).nbytes
    for fill in (False, True):  # as it is at first, and with content
        expected = fill_texture(texture, RNG)[level] if fill else np.zeros(level_shape(texture, level), np.uint8)
        given = RNG.integers(0, 256, (extent[2], extent[1], extent[0] * nbytes), np.uint8)
        (x, y, z), (width, height, depth) = origin, extent
        expected[z : z + depth, y : y + height, x * nbytes : (x + width) * nbytes] = given
        destination = {"texture": texture, "mip_level": level, "origin": origin}
        layout = {"bytes_per_row": width * nbytes, "rows_per_image": height}
        scattered = np.repeat(given, 2, -1)[..., ::2] if fill else given
        await ring.write_texture(destination, scattered, layout, extent, atomic=True)
        np.testing.assert_array_equal(read_texture(texture)[level], expected)


def _writable(device: wgpu.GPUDevice) -> list[tuple[str, str]]:
    found = []
    for format in CREATABLE:
        for aspect in ("all", "depth-only", "stencil-only"):
            try:
                texel_block(format, aspect)
            except ValueError:
                continue
            if required_feature(format) in {None, *device.features}:
                found.append((format, aspect))
    return found


async def test_every_format_and_aspect(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    """Also depth images larger than a staging buffer, which are refused otherwise."""
    ring = await open_ring(buffer_size=1024, inline_size=256)
    tried = _writable(device)
    assert len(tried) > 40
    for format, aspect in tried:
        block = texel_block(format, aspect)
        texture = new_texture(device, format, (9 * block.width, 7 * block.height, 2))
        expected = fill_texture(texture, RNG, aspect)[0]
        expected[1] = RNG.integers(0, 256, expected[1].shape, np.uint8)
        size = (*mip_extent(texture, 0)[:2], 1)
        layout = {"bytes_per_row": expected.shape[2], "rows_per_image": expected.shape[1]}
        destination = {"texture": texture, "aspect": aspect, "origin": (0, 0, 1)}
        await ring.write_texture(destination, expected[1].tobytes(), layout, size, atomic=True)
        np.testing.assert_array_equal(read_texture(texture, aspect)[0], expected, err_msg=f"{format} {aspect}")


async def test_big_endian_texels_are_converted(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(buffer_size=1024, inline_size=256), new_texture(device, "r32uint", (33, 20, 1))
    texels = RNG.integers(0, 2**32, (20, 33), np.uint32)
    await ring.write_texture({"texture": texture}, texels.astype(">u4"), atomic=True)
    np.testing.assert_array_equal(read_texture(texture)[0].view(np.uint32)[0], texels)


async def test_more_than_a_buffer_can_hold_goes_by_several(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, created: Any
) -> None:
    ring, native = await open_ring(buffer_size=4 * KiB, inline_size=256), connect(device)
    buffer, texture = target(100 * KiB), new_texture(device, "r8unorm", (701, 50, 3))
    data, texels = RNG.integers(0, 256, 100 * KiB, np.uint8), RNG.integers(0, 256, (3, 50, 701), np.uint8)
    with mock.patch.object(native, "max_buffer_size", 20_003):
        await ring.write_buffer(buffer, 0, data, atomic=True)
        assert created.call_count == 6
        await ring.write_texture({"texture": texture}, texels, atomic=True)
    np.testing.assert_array_equal(read_buffer(buffer), data)
    np.testing.assert_array_equal(read_texture(texture)[0], texels)


async def test_what_fits_in_a_staging_buffer_takes_no_scratch_memory(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, created: Any
) -> None:
    ring, buffer = await open_ring(buffer_size=4 * KiB, inline_size=256), target(4 * KiB)
    texture = new_texture(device, "rgba8unorm", (16, 16, 1))
    data, texels = RNG.integers(0, 256, 4 * KiB, np.uint8), RNG.integers(0, 256, (16, 16, 4), np.uint8)
    await ring.write_buffer(buffer, 0, data, atomic=True)
    await ring.write_texture({"texture": texture}, texels, atomic=True)
    await ring.write_buffer(buffer, 0, b"", atomic=True)
    await ring.write_texture({"texture": texture}, b"", size=(0, 0, 0), atomic=True)
    np.testing.assert_array_equal(read_buffer(buffer), data)
    np.testing.assert_array_equal(read_texture(texture)[0].reshape(texels.shape), texels)
    stats = ring.stats_nowait()
    assert (created.call_count, stats.submits, stats.scratch_bytes) == (0, 2, 0)


async def test_the_fence_completes_when_the_destination_has_it(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, buffer = await simulated_ring(buffer_size=1024, inline_size=64), gpu.buffer(8 * KiB)
    write = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x07" * 8 * KiB, atomic=True))
    while not write.done():
        await turns(3)
        if gpu.in_flight and not write.done():
            gpu.complete()
    fence = await write
    assert not fence.done() or (buffer.bytes == 7).all()
    gpu.free_running = True
    await fence
    assert (buffer.bytes == 7).all()


# -- cancelled --


async def test_cancelled_at_any_moment_it_is_seen_whole_or_not_at_all(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    content, kept, arrived = 0, 0, 0
    for number in range(1, 120):
        task = asyncio.create_task(Writer(ring, buffer, True, number)())
        for _ in range(number // 3):
            await asyncio.sleep(0 if number % 3 else 0.0002)
        task.cancel()
        await asyncio.wait([task])
        values = set(read_buffer(buffer).view(np.uint32).tolist())
        assert values in ({content}, {number})
        if values == {number}:
            content, arrived = number, arrived + 1
        else:
            assert task.cancelled()
            kept += 1
    assert kept > 10
    await Writer(ring, buffer, True, 1000)()
    assert set(read_buffer(buffer).view(np.uint32).tolist()) == {1000}
    assert ring.stats_nowait().scratch_bytes == MiB


@pytest.mark.parametrize("done", range(6))
async def test_cancelled_while_pieces_wait_nothing_is_seen(held: HeldCopies, held_ring: OpenRing, done: int) -> None:
    ring, buffer = await held_ring(inline_size=64), held.buffer(5 * KiB)
    task = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x01" * 5 * KiB, atomic=True))
    await until(lambda: ring.stats_nowait().scratch_bytes)
    held.free_running = True
    while ring.stats_nowait().allocations_total < done and not task.done():
        held.may_copy.set()
        await asyncio.sleep(0)
    held.may_copy.clear()
    task.cancel()
    held.may_copy.set()
    await asyncio.wait([task])
    await ring.submit()
    assert set(buffer.bytes.tolist()) in ({0}, {1})
    assert done > 3 or task.cancelled()


# -- order --


async def test_writes_to_one_destination_arrive_in_the_order_in_which_they_were_called(
    open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    expected = np.zeros(NBYTES // 4, np.uint32)
    kinds = np.random.default_rng(9)
    for round_ in range(60):
        writes = []
        for value in range(1, kinds.integers(3, 9)):
            value += 100 * round_
            start = int(kinds.integers(0, NBYTES // 8))
            count = int(kinds.choice([1, 16, 5000, 20_000, NBYTES // 8]))
            atomic, strided = bool(kinds.integers(0, 2)), bool(kinds.integers(0, 2))
            data = np.full(count, value, np.uint32)
            if strided and atomic:  # takes Python, and then plain ones have no order among themselves
                data = np.full(2 * count, value, np.uint32)[::2]
            writes.append(ring.write_buffer(buffer, 4 * start, data, atomic=atomic))
            expected[start : start + count] = value
        await asyncio.gather(*writes)
        np.testing.assert_array_equal(read_buffer(buffer).view(np.uint32), expected)


async def test_a_later_small_write_waits_for_an_atomic_one_to_the_same_destination_alone(
    held: HeldCopies, held_ring: OpenRing
) -> None:
    ring, buffer, other = await held_ring(inline_size=64), held.buffer(5 * KiB), held.buffer(64)
    held.free_running = True
    texture = held.texture("rgba8unorm", (4, 1, 1))
    first = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x01" * 5 * KiB, atomic=True))
    await turns()
    small = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x02" * 8))
    elsewhere = asyncio.create_task(ring.write_buffer(other, 0, b"\x02" * 8))
    texels = asyncio.create_task(ring.write_texture({"texture": texture}, b"\x02" * 16))
    last = asyncio.create_task(ring.write_buffer(buffer, 4, b"\x03" * 4 * KiB, atomic=True))
    await asyncio.wait([elsewhere, texels])
    await turns()
    assert not any(task.done() for task in (first, small, last))
    assert not buffer.bytes.any()
    held.may_copy.set()
    await (await last)
    assert first.done()
    assert small.done()
    expected = b"\x02" * 4 + b"\x03" * 4 * KiB + b"\x01" * (KiB - 4)
    assert buffer.bytes.tobytes() == expected


@pytest.mark.parametrize("strided", [False, True], ids=["by the carrier", "by Python"])
@pytest.mark.parametrize("count", [2, 6 * 1024], ids=["one piece", "two pieces"])
async def test_it_does_not_overtake_a_much_larger_plain_one(
    open_ring: OpenRing, target: Target, strided: bool, count: int
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    for value in range(1, 12):
        large = np.full((1 + strided) * NBYTES // 4, value, np.uint32)[:: 1 + strided]
        small = np.full(count, 100 + value, np.uint32)
        first = ring.write_buffer(buffer, 0, large)
        await asyncio.gather(first, ring.write_buffer(buffer, NBYTES - 4 * count, small, atomic=True))
        content = read_buffer(buffer).view(np.uint32)
        assert set(content[:-count].tolist()) == {value}
        assert set(content[-count:].tolist()) == {100 + value}


async def test_one_that_fails_or_is_cancelled_holds_nobody_up(held: HeldCopies, held_ring: OpenRing) -> None:
    ring, buffer = await held_ring(inline_size=64), held.buffer(5 * KiB)
    held.free_running = True
    first = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x01" * 5 * KiB, atomic=True))
    await turns()
    small = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x02" * 8))
    gone = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x03" * 8))
    await turns()
    gone.cancel()
    first.cancel()
    held.may_copy.set()
    await (await small)
    assert buffer.bytes.tobytes() == b"\x02" * 8 + bytes(5 * KiB - 8)
    assert gone.cancelled()
    assert first.cancelled()
    assert ring._engine.turns.atomic == 0
    assert not ring._engine.turns._of


# -- scratch memory --


async def test_scratch_memory_is_used_again_and_freed_at_the_close(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, created: Any
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    texture = new_texture(device, "rgba8unorm", (SIDE, SIDE, 1))
    for number in range(1, 6):
        await Writer(ring, buffer, True, number)()
        await Writer(ring, texture, True, number)()
    assert created.call_count == 1
    assert ring.stats_nowait().scratch_bytes == MiB
    assert ring.stats_nowait().memory == 3 * 16 * KiB  # the budget has no part in it
    with mock.patch.object(connect(device), "destroy", side_effect=connect(device).destroy) as destroyed:
        await ring.aclose()
    assert ring.stats_nowait().scratch_bytes == 0
    assert [call.args[0].size for call in destroyed.call_args_list].count(MiB) == 1


async def test_no_more_idle_scratch_memory_is_kept_than_the_limit(
    open_ring: OpenRing, target: Target, created: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch, "MOST_IDLE", 3 * MiB)
    ring = await open_ring(buffer_size=64 * KiB)
    buffers = [target(2 * MiB) for _ in range(4)]
    data = bytes(2 * MiB)
    await asyncio.gather(*(ring.write_buffer(buffer, 0, data, atomic=True) for buffer in buffers))
    assert created.call_count == 4
    await (await ring.submit())
    assert ring.stats_nowait().scratch_bytes == 2 * MiB


# -- what goes wrong --


async def test_wrong_data_change_nothing_and_take_no_memory(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, created: Any
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    texture = new_texture(device, "rgba8unorm", (SIDE, SIDE, 1))
    for data in (bytes(NBYTES + 4), bytes(NBYTES - 1)):
        with pytest.raises(aiostage.InvalidCopy):
            await ring.write_buffer(buffer, 0, data, atomic=True)
    with pytest.raises(aiostage.InvalidCopy):
        await ring.write_texture({"texture": texture}, np.zeros((SIDE, SIDE), np.float32), atomic=True)
    with pytest.raises(TypeError):
        await ring.write_texture({"texture": texture}, [1, 2], atomic=True)
    assert created.call_count == 0


async def test_a_destination_that_was_destroyed_is_refused_at_once(
    open_ring: OpenRing, target: Target, created: Any
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    buffer.destroy()
    with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
        await ring.write_buffer(buffer, 0, bytes(NBYTES), atomic=True)
    assert created.call_count == 0


async def test_a_destination_that_is_destroyed_meanwhile_fails_alone(open_ring: OpenRing, target: Target) -> None:
    ring, other = await open_ring(**SMALL), target(NBYTES)
    failed = 0
    for wait in range(40):
        buffer = target(NBYTES)
        beside = asyncio.create_task(Writer(ring, other, True, wait)())
        task = asyncio.create_task(Writer(ring, buffer, True)())
        for _ in range(wait):
            await asyncio.sleep(0 if wait % 2 else 0.0001)
        buffer.destroy()
        try:
            await task
        except aiostage.InvalidCopy as error:
            assert "destroyed" in str(error)  # noqa: PT017
            failed += 1
        await beside
        assert set(read_buffer(other).view(np.uint32).tolist()) == {wait}
    assert failed > 5


@pytest.mark.parametrize("wait", range(8))
async def test_a_lost_device_raises(own_device: wgpu.GPUDevice, open_ring: OpenRing, wait: int) -> None:
    ring = await open_ring(own_device, **SMALL)
    buffer = own_device.create_buffer(size=NBYTES, usage=wgpu.BufferUsage.COPY_DST)
    task = asyncio.create_task(Writer(ring, buffer, True)())
    for _ in range(wait):
        await asyncio.sleep(0)
    own_device.destroy()
    with pytest.raises(aiostage.DeviceLost):
        await task
        await Writer(ring, buffer, True)()
    await ring.aclose()
    assert ring.stats_nowait().scratch_bytes == 0


@pytest.mark.parametrize("wait", range(8))
async def test_a_ring_that_is_closed_meanwhile_shows_nothing_and_frees_all(
    held: HeldCopies, held_ring: OpenRing, wait: int
) -> None:
    ring, buffer = await held_ring(inline_size=64), held.buffer(5 * KiB)
    held.free_running = True
    task = asyncio.create_task(ring.write_buffer(buffer, 0, b"\x01" * 5 * KiB, atomic=True))
    await turns(wait)
    closing = asyncio.create_task(ring.aclose())
    await turns(wait)
    held.may_copy.set()
    await closing
    with pytest.raises(aiostage.RingClosed):
        await task
    assert not buffer.bytes.any()
    assert ring.stats_nowait().scratch_bytes == 0


async def test_a_ring_that_is_closed_while_one_waits_for_its_turn_shows_nothing(
    open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    with ring._engine.turns.take(buffer):
        tasks = [asyncio.create_task(Writer(ring, buffer, True)()), asyncio.create_task(Writer(ring, buffer, False)())]
        await until(lambda: ring.stats_nowait().allocations_total == NBYTES // (16 * KiB))
        await until(lambda: not ring._engine.lending.uploads)
        await turns()
        assert not any(task.done() for task in tasks)
        await ring.aclose()
    for task in tasks:
        with pytest.raises(aiostage.RingClosed):
            await task
    assert not read_buffer(buffer).any()
    assert ring.stats_nowait().scratch_bytes == 0


async def test_no_memory_for_it(device: wgpu.GPUDevice, open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(**SMALL), target(NBYTES)
    with mock.patch.object(connect(device), "create_relay", side_effect=aiostage.OutOfMemory("none left")):
        with pytest.raises(aiostage.OutOfMemory):
            await Writer(ring, buffer, True)()
    assert not read_buffer(buffer).any()
    await Writer(ring, buffer, True, 4)()
    assert set(read_buffer(buffer).view(np.uint32).tolist()) == {4}
