"""Small writes of batches: natively where the like was found right before, and in no way different from the others."""

from __future__ import annotations

import array
import asyncio
import gc
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wgpu
from readback import read_buffer, read_texture
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage.carrier.departure import copy_at
from aiostage.data.copies import BufferCopy, SmallCopies

KiB = 1024
MiB = 1024 * KiB
OpenRing = Callable[..., Any]
Target = Callable[[int], Any]


def texture_of(device: Any, size: tuple[int, ...] = (64, 64, 1), format: str = "rgba8unorm", **more: Any) -> Any:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=size, format=format, usage=usage, **more)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python was asked to write."""
    asked: list[str] = []

    def noted(name: str) -> None:
        function = getattr(aiostage.batch, name)

        def ask(*args: Any) -> Any:
            asked.append(name)
            return function(*args)

        monkeypatch.setattr(aiostage.batch, name, ask)

    for name in ("put", "cut_bytes", "cut_texels"):
        noted(name)
    return asked


# -- what is native, and what Python decides --


async def test_python_checks_the_first_write_to_a_buffer_alone(
    open_ring: OpenRing, target: Target, python: list[str]
) -> None:
    ring, buffer = await open_ring(buffer_size=4 * KiB), target(64 * KiB)
    expected = np.zeros(64 * KiB, np.uint8)
    for turn in range(2):
        async with ring.batch() as batch:
            for index in range(256):  # four staging buffers full
                data = np.full(16, index + turn, np.float32)
                await batch.write_buffer(buffer, 256 * index, data)
                expected[256 * index : 256 * index + 64] = data.view(np.uint8)
            for data in (bytes(range(8)), bytearray(8), memoryview(b"12345678")):
                await batch.write_buffer(buffer, 1024, data)
            expected[1024:1032] = list(b"12345678")
        assert (read_buffer(buffer) == expected).all()
    assert python.count("put") <= 1 + 8  # and those that had to wait for room


async def test_python_checks_the_first_write_of_each_form_to_a_texture_alone(
    device: wgpu.GPUDevice, open_ring: OpenRing, python: list[str], rng: np.random.Generator
) -> None:
    ring, texture = await open_ring(buffer_size=64 * KiB), texture_of(device, (64, 64, 2), mip_level_count=2)
    layers = [np.zeros((2, 64, 64, 4), np.uint8), np.zeros((2, 32, 32, 4), np.uint8)]
    forms = [
        (rng.integers(0, 256, (8, 8, 4), np.uint8), None, None),
        (rng.integers(0, 256, (2, 8, 8, 4), np.uint8), None, (8, 8, 2)),
        (rng.integers(0, 256, (8, 8), np.uint32), None, None),
        (rng.integers(0, 256, 8 * 8 * 4, np.uint8), {"bytes_per_row": 32, "rows_per_image": 8}, (8, 8)),
        (rng.integers(0, 256, 2048, np.uint8).tobytes(), {"offset": 4, "bytes_per_row": 40}, [8, 8, 1]),
    ]
    async with ring.batch() as batch:
        for step in range(12):
            for data, layout, size in forms:
                level = step % 2
                x, y, z = 8 * (step % 4), 8 * (step // 4), step % 2 if np.ndim(data) < 4 else 0
                place = {"texture": texture, "mip_level": level, "origin": (x, y, z)}
                await batch.write_texture(place, data, layout, size)
                if isinstance(data, bytes):
                    texels = np.ndarray((1, 8, 8, 4), np.uint8, data, 4, (2048, 40, 4, 1))
                else:
                    texels = data.view(np.uint8).reshape(-1, 8, 8, 4)
                layers[level][z : z + len(texels), y : y + 8, x : x + 8] = texels
    for read, expected in zip(read_texture(texture), layers, strict=True):
        assert (read.reshape(expected.shape) == expected).all()
    assert python.count("cut_texels") <= len(forms) + 1  # and for the second level


async def test_what_is_not_simple_is_as_it_was(device: wgpu.GPUDevice, open_ring: OpenRing, target: Target) -> None:
    ring, buffer, texture = await open_ring(buffer_size=16 * KiB), target(64), texture_of(device, format="r32float")
    values = np.arange(16, dtype=np.float32)
    async with ring.batch() as batch:
        await batch.write_buffer(buffer, 0, bytes(64))
        await batch.write_texture({"texture": texture}, np.zeros((8, 8), np.float32))
        for data in (np.ma.masked_array(values), np.array([None] * 8), [1, 2], np.array([(None,)], [("a", "O")])):
            with pytest.raises(TypeError):
                await batch.write_buffer(buffer, 0, data)
            with pytest.raises(TypeError):
                await batch.write_texture({"texture": texture}, data)
        for offset, data in (
            (2, b"1234"),
            (0, b"12345"),
            (64, b"1234"),
            (-4, b"1234"),
            (1 << 70, b"1234"),
            (60, bytes(8)),
        ):
            with pytest.raises(aiostage.InvalidCopy):
                await batch.write_buffer(buffer, offset, data)
        for origin in ((57, 0, 0), (0, 60, 0), (0, 0, 1), (-1, 0, 0), (1 << 40, 0, 0)):
            with pytest.raises(aiostage.InvalidCopy):
                await batch.write_texture({"texture": texture, "origin": origin}, np.zeros((8, 8), np.float32))
        for place in ({"texture": buffer}, {"texture": texture, "mip_level": 1}, {"texture": texture, "x": 1}):
            with pytest.raises(aiostage.InvalidCopy):
                await batch.write_texture(place, np.zeros((8, 8), np.float32))
        with pytest.raises(aiostage.InvalidCopy):
            await batch.write_texture({"texture": texture}, np.zeros((8, 8), np.float64))
        with pytest.raises(aiostage.InvalidCopy):
            await batch.write_buffer(texture, 0, b"1234")
        await batch.write_buffer(buffer, 0, values[::-1])  # no row of bytes
        big = np.arange(64, dtype=">f4").reshape(8, 8)
        await batch.write_texture({"texture": texture}, big)
        await batch.write_texture({"texture": texture, "origin": (8, 0, 0)}, big)
        await batch.write_texture({"texture": texture, "origin": (16, 0, 0)}, big.astype(np.float32).T)
    assert (read_buffer(buffer).view(np.float32) == values[::-1]).all()
    read = read_texture(texture)[0].view(np.float32)[0]
    assert (read[:8, :8] == big).all()
    assert (read[:8, 8:16] == big).all()
    assert (read[:8, 16:24] == big.T).all()


async def test_an_image_that_may_be_layers_is_looked_at_each_time(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(), texture_of(device, (16, 16, 16), "r8unorm")
    data = np.ones((16, 8, 1), np.uint8)
    async with ring.batch() as batch:
        await batch.write_texture({"texture": texture, "origin": (0, 0, 1)}, data)  # too many layers: an image
        with pytest.raises(aiostage.InvalidCopy, match="may be one image"):
            await batch.write_texture({"texture": texture, "origin": (0, 0, 0)}, data)


async def test_the_destinations_of_another_device_are_refused(
    device: wgpu.GPUDevice, own_device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    one, other, buffer = await open_ring(), await open_ring(own_device), target(64)
    async with one.batch() as batch, other.batch() as foreign:
        await batch.write_buffer(buffer, 0, b"1234")
        await batch.write_buffer(buffer, 4, b"5678")
        with pytest.raises(aiostage.InvalidCopy, match="another device"):
            await foreign.write_buffer(buffer, 0, b"abcd")
    assert bytes(read_buffer(buffer)[:8]) == b"12345678"


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_writes_arrives_in_order(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, seed: int
) -> None:
    """Native writes and others, one by one and many at once, to few destinations through a ring that is too small."""
    rng, pick = np.random.default_rng(seed), random.Random(seed)
    ring = await open_ring(
        ring_count=pick.choice((1, 3)), buffer_size=4 * KiB, inline_size=pick.choice((512, 2 * KiB, 256 * KiB))
    )
    buffers = [target(2 * KiB) for _ in range(3)]
    expected = [np.zeros(2 * KiB, np.uint8) for _ in buffers]
    texture, texels = texture_of(device, (32, 32, 1)), np.zeros((32, 32, 4), np.uint8)
    for _ in range(4):
        async with pick.choice((ring.batch, ring.frame))() as batch:
            for _ in range(pick.randrange(1, 120)):
                which, kind = pick.randrange(3), pick.randrange(8)
                length = 4 * pick.randrange(1, 64)
                start = 4 * pick.randrange((2 * KiB - length) // 4 + 1)
                data = rng.integers(0, 256, length, np.uint8)
                if kind == 0:
                    await batch.write_buffer(buffers[which], start, array.array("B", data))
                elif kind == 1:
                    await batch.write_buffer(buffers[which], np.int64(start), np.repeat(data, 2)[::2])
                elif kind == 2:
                    starts = 4 * rng.integers(0, 500, 7)
                    many = rng.integers(0, 256, (7, 3, 4), np.uint8)
                    await batch.write_buffers(buffers[which], starts, many)
                    for at, piece in zip(starts, many, strict=True):
                        expected[which][at : at + 12] = piece.reshape(-1)
                    continue
                elif kind in (3, 4):
                    n = 1 if kind == 3 else 3
                    tiles = rng.integers(0, 256, (n, 8, 8, 4), np.uint8)
                    places = [(8 * pick.randrange(4), 8 * pick.randrange(4), 0) for _ in range(n)]
                    dicts = [{"texture": texture, "origin": place} for place in places]
                    if n == 1:
                        await batch.write_texture(dicts[0], tiles[0])
                    else:
                        await batch.write_textures(dicts, pick.choice((list, np.array))(tiles))
                    for (x, y, _), tile in zip(places, tiles, strict=True):
                        texels[y : y + 8, x : x + 8] = tile
                    continue
                else:
                    await batch.write_buffer(buffers[which], start, data)
                expected[which][start : start + length] = data
                if pick.random() < 0.05:
                    ring.stats_nowait()
                if pick.random() < 0.05:
                    await ring.submit()
    for buffer, content in zip(buffers, expected, strict=True):
        assert (read_buffer(buffer) == content).all()
    assert (read_texture(texture)[0].reshape(texels.shape) == texels).all()


# -- beside what else happens --


async def test_statistics_count_them(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(buffer_size=4 * KiB), target(4 * KiB)
    async with ring.batch() as batch:
        for index in range(10):
            await batch.write_buffer(buffer, 64 * index, bytes(32))
        stats = ring.stats_nowait()
        assert (stats.bytes_in_flight, stats.bytes_total, stats.allocations_total) == (320, 320, 10)
        await batch.write_buffer(buffer, 0, bytes(32))
    stats = await ring.stats()
    assert (stats.bytes_total, stats.allocations_total, stats.sealed_bytes) == (352, 11, 352)


async def test_who_waits_for_room_gets_it_before_the_next_write(simulated_ring: OpenRing, gpu: SimulatedGpu) -> None:
    gpu.free_running = True
    ring, buffer = await simulated_ring(ring_count=2, buffer_size=1024), gpu.buffer(4096)
    async with ring.batch() as batch:
        for index in range(12):
            await batch.write_buffer(buffer, 64 * index, bytes([index + 1]) * 64)
        slot = ring.allocate_nowait(1024)
        waiting = asyncio.create_task(ring.allocate(1024))
        await turns()
        slot.abandon()
        (await waiting).abandon()
        await batch.write_buffer(buffer, 0, b"last" * 16)
    await batch.fence
    assert bytes(buffer.bytes[:64]) == b"last" * 16
    assert [buffer.bytes[64 * index] for index in range(1, 12)] == list(range(2, 13))


async def test_an_abandoned_batch_leaves_nothing(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(buffer_size=4 * KiB), target(64)
    with pytest.raises(KeyError):
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, b"1234")
            await batch.write_buffer(buffer, 4, b"1234")
            raise KeyError
    with pytest.raises(aiostage.AllocationClosed):
        await batch.write_buffer(buffer, 0, b"1234")
    with pytest.raises(aiostage.AllocationClosed):
        await batch.write_buffers(buffer, [0], np.zeros((1, 4), np.uint8))
    stats = ring.stats_nowait()
    assert stats.bytes_in_flight == 0
    assert set(stats.buffer_states) == {"available"}
    await ring.submit()
    assert not read_buffer(buffer).any()


async def test_writes_before_and_after_the_block_are_refused(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(64)
    batch = ring.batch()
    with pytest.raises(aiostage.AllocationClosed):
        await batch.write_buffer(buffer, 0, b"1234")
    async with batch:
        await batch.write_buffer(buffer, 0, b"1234")
        await batch.write_buffer(buffer, 4, b"1234")
    with pytest.raises(aiostage.AllocationClosed):
        await batch.write_buffer(buffer, 0, b"1234")
    with pytest.raises(aiostage.AllocationClosed):
        await batch.write_textures([], [])


async def test_a_destroyed_destination_is_left_out_and_nothing_else(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, lost, kept, texture = await open_ring(), target(64), target(64), texture_of(device)
    with pytest.raises(aiostage.InvalidCopy, match=r"copy of 4 bytes to offset 0 .* destroyed"):
        async with ring.batch() as batch:
            for index in range(4):
                await batch.write_buffer(lost, 16 * index, b"1234")
                await batch.write_buffer(kept, 4 * index, b"5678")
                await batch.write_texture({"texture": texture}, np.full((8, 8, 4), index, np.uint8))
            lost.destroy()
    assert bytes(read_buffer(kept)[:16]) == b"5678" * 4
    assert (read_texture(texture)[0][0, :8, :32] == 3).all()


class Door(threading.Event):
    """Tells who stands before it."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.reached.set()
        return super().wait(timeout)


async def test_what_is_destroyed_on_the_way_is_left_out() -> None:
    gpu = SimulatedGpu(submit_blocks=True, free_running=True)
    lost, kept = gpu.buffer(64), gpu.buffer(64)
    async with aiostage.StagingRing(gpu, 3, 1024) as ring:

        async def write() -> None:
            async with ring.batch() as batch:
                for index in range(4):
                    await batch.write_buffer(kept, 16 * index, b"5678")
                    await batch.write_buffer(lost, 16 * index, b"1234")

        await write()
        await ring.fence()
        kept.bytes[:] = lost.bytes[:] = 0
        gpu.may_submit = door = Door()
        first = asyncio.create_task(ring.submit())
        await until(door.reached.is_set)
        second = asyncio.create_task(write())
        await turns()
        lost.destroy()
        door.set()
        await first
        with pytest.raises(aiostage.InvalidCopy, match=r"copy of 4 bytes to offset 0 .* destroyed"):
            await second
        await ring.fence()
    assert [bytes(kept.bytes[16 * index :][:4]) for index in range(4)] == [b"5678"] * 4
    assert not lost.bytes.any()
    assert gpu.violations == []


def test_a_record_is_found_by_its_index() -> None:
    gpu = SimulatedGpu()
    buffer = gpu.buffer(64)
    writes = aiostage.native.Writes(None, (), 0, 0)
    assert writes.take() == (0, 0, 0, [])
    one = BufferCopy(None, 0, buffer, 0, 4)
    records = b"".join(
        aiostage.data.copies.RECORD.pack(0, 0, 0, 0, 0, 0, 1, n, 2, 4 * n, 4, *[0] * 8) for n in range(3)
    )
    copies = [one, SmallCopies(None, buffer, records), one]
    assert copy_at(copies, 0) is copy_at(copies, 4) is one
    assert [copy_at(copies, index).destination_offset for index in (1, 2, 3)] == [0, 4, 8]


async def test_another_thread_is_refused(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(64)
    errors: list[BaseException] = []

    async with ring.batch() as batch:
        await batch.write_buffer(buffer, 0, b"1234")
        await batch.write_buffer(buffer, 4, b"1234")

        def elsewhere() -> None:
            for write in (
                batch.write_buffer(buffer, 0, b"abcd"),
                batch.write_buffers(buffer, [0], np.zeros((1, 4), "u1")),
            ):
                try:
                    write.send(None)
                except BaseException as error:
                    errors.append(error)
                try:
                    asyncio.run(batch.write_buffer(buffer, 0, b"abcd"))
                except BaseException as error:
                    errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert [type(error) for error in errors] == [aiostage.WrongLoop] * 4
    assert bytes(read_buffer(buffer)[:8]) == b"12341234"


def test_another_loop_is_refused(device: wgpu.GPUDevice, target: Target) -> None:
    buffer, loop = target(64), asyncio.new_event_loop()
    ring = aiostage.StagingRing(device, 1, 1024)
    batch = None

    async def begin() -> None:
        nonlocal batch
        await ring.open()
        batch = ring.batch()
        await batch.__aenter__()
        await batch.write_buffer(buffer, 0, b"1234")
        await batch.write_buffer(buffer, 4, b"1234")

    async def elsewhere() -> None:
        with pytest.raises(aiostage.WrongLoop):
            await batch.write_buffer(buffer, 0, b"abcd")

    async def end() -> None:
        await batch.__aexit__(None, None, None)
        await ring.aclose()

    loop.run_until_complete(begin())
    asyncio.run(elsewhere())
    loop.run_until_complete(end())
    loop.close()
    assert bytes(read_buffer(buffer)[:8]) == b"12341234"


async def test_each_step_is_told_of_where_somebody_listens(
    open_ring: OpenRing, target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiostage")
    ring, buffer = await open_ring(), target(64)
    async with ring.batch() as batch:
        for index in range(4):
            await batch.write_buffer(buffer, 4 * index, b"1234")
    assert sum(record.message.startswith("allocated") for record in caplog.records) == 4


async def test_nothing_is_kept(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    usage = wgpu.BufferUsage.COPY_DST
    ring, buffer = await open_ring(), device.create_buffer(size=4096, usage=usage)
    texture, data = texture_of(device), np.ones((8, 8, 4), np.uint8)
    place, offsets = {"texture": texture, "origin": (0, 0, 0)}, np.arange(8) * 256

    things = [buffer, texture, data, place, offsets]

    async def write() -> None:
        buffer, _, data, place, offsets = things
        async with ring.batch() as batch:
            for _ in range(4):
                await batch.write_buffer(buffer, 0, data)
                await batch.write_texture(place, data)
                await batch.write_buffers(buffer, offsets, np.ones((8, 4), np.uint8))
                await batch.write_textures([place] * 2, [data, data])
        await batch.fence

    await write()
    before = [sys.getrefcount(thing) for thing in things]
    blocks = 0
    for turn in range(60):
        await write()
        if turn == 20:
            gc.collect()
            blocks = sys.getallocatedblocks()
    gc.collect()
    assert [sys.getrefcount(thing) for thing in things] == before
    assert sys.getallocatedblocks() - blocks < 500
    gone = [weakref.ref(thing) for thing in (buffer, texture, data)]
    things.clear()
    del buffer, texture, data, place
    gc.collect()
    await ring.submit()
    assert [ref() for ref in gone] == [None] * 3


# -- many in one call --


async def test_many_pieces_go_to_their_offsets_in_order(open_ring: OpenRing, target: Target, python: list[str]) -> None:
    ring, buffer = await open_ring(buffer_size=4 * KiB), target(64 * KiB)
    rng = np.random.default_rng(0)
    offsets = 4 * rng.integers(0, 16 * KiB - 4, 3000)
    data = rng.integers(0, 256, (3000, 2, 2), np.uint32)
    expected = np.zeros(16 * KiB, np.uint32)
    for at, piece in zip(offsets // 4, data, strict=True):
        expected[at : at + 4] = piece.reshape(-1)
    async with ring.batch() as batch:
        await batch.write_buffers(buffer, offsets, data)
    assert (read_buffer(buffer).view(np.uint32) == expected).all()
    assert len(python) < 40  # those that had to wait for room


@pytest.mark.parametrize(
    "data",
    [
        np.arange(24, dtype=np.float32).reshape(6, 4),
        np.arange(24, dtype=">f4").reshape(6, 4),
        np.arange(48, dtype=np.float32).reshape(6, 8)[:, ::2],
        np.arange(48, dtype=np.float32).reshape(12, 4)[::2],
        np.arange(6).astype("M8[s]"),
        np.zeros(6, [("a", "f4"), ("b", "u1", 4)]),
        array.array("i", range(6)),
    ],
    ids=["plain", "big-endian", "columns", "rows", "dates", "structured", "array.array"],
)
@pytest.mark.parametrize(
    "offsets", [[0, 64, 128, 192, 256, 320], np.arange(6, dtype=np.uint16) * 64, range(0, 384, 64)]
)
async def test_pieces_of_any_array(open_ring: OpenRing, target: Target, data: Any, offsets: Any) -> None:
    ring, buffer = await open_ring(buffer_size=1024), target(512)
    async with ring.batch() as batch:
        await batch.write_buffers(buffer, offsets, data)
    read = read_buffer(buffer)
    for offset, piece in zip(offsets, np.asarray(data), strict=True):
        content = piece.tobytes()
        assert bytes(read[offset : offset + len(content)]) == content


async def test_one_bad_offset_leaves_nothing_of_many(open_ring: OpenRing, target: Target) -> None:
    ring, buffer, data = await open_ring(), target(64), np.ones((3, 2), np.uint32)
    with pytest.raises(ValueError, match="stop"):
        async with ring.batch() as batch:
            for offsets, why in (
                ([0, 8, 60], r"write 2: 8 bytes at offset 60 do not fit"),
                ([0, 2, 8], r"write 1: buffer_offset must be a multiple of 4"),
                ([-4, 2, 8], r"write 0: buffer_offset must be a multiple of 4 and not negative"),
                (np.array([0, 0, 2**64 - 4], np.uint64), r"write 2: .* do not fit"),
                ([0, 4], "offsets must be 3 numbers"),
                ([[0, 4, 8]], "offsets must be 3 numbers"),
                ([0.0, 4.0, 8.0], "offsets must be whole numbers"),
            ):
                with pytest.raises(aiostage.InvalidCopy, match=why):
                    await batch.write_buffers(buffer, offsets, data)
            with pytest.raises(aiostage.InvalidCopy, match=r"write 0: the number of bytes copied"):
                await batch.write_buffers(buffer, [0, 4, 8], np.ones((3, 5), np.uint8))
            with pytest.raises(aiostage.InvalidCopy, match="GPUBuffer"):
                await batch.write_buffers(data, [0, 4, 8], data)
            for bad in (np.array([None]), [1, 2], np.ma.masked_array(data)):
                with pytest.raises(TypeError):
                    await batch.write_buffers(buffer, [0, 4, 8], bad)
            await batch.write_buffers(buffer, [], np.ones((0, 2), np.uint32))
            assert ring.stats_nowait().allocations_total == 0
            raise ValueError("stop")


async def test_many_go_to_a_range_of_a_pool(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    from aiostage.pools import BufferPool

    ring = await open_ring()
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    with BufferPool(device, usage) as pool:
        part = pool.allocate(256)
        async with ring.batch() as batch:
            await batch.write_buffers(part, [0, 128], np.array([[1, 2], [3, 4]], np.uint32))
        pin = part.pin()
        content = device.queue.read_buffer(pin.buffer, pin.offset, 256).cast("I")
        del pin
        assert (content[0], content[1], content[32], content[33]) == (1, 2, 3, 4)
        part.release()


async def test_many_textures_in_one_call(device: wgpu.GPUDevice, open_ring: OpenRing, python: list[str]) -> None:
    ring = await open_ring(buffer_size=64 * KiB)
    textures = [texture_of(device), texture_of(device), texture_of(device, format="r32float")]
    rng = np.random.default_rng(0)
    bytes_, floats = rng.integers(0, 256, (300, 8, 8, 4), np.uint8), rng.random((300, 8, 8), np.float32)
    places = [{"texture": textures[i % 3], "origin": (8 * (i // 3 % 8), 8 * (i // 24 % 8), 0)} for i in range(300)]
    data = [floats[i] if i % 3 == 2 else bytes_[i] for i in range(300)]
    expected = [np.zeros((64, 64, 4), np.uint8) for _ in textures]
    for i, (place, piece) in enumerate(zip(places, data, strict=True)):
        x, y, _ = place["origin"]
        expected[i % 3][y : y + 8, x : x + 8] = piece.view(np.uint8).reshape(8, 8, 4)
    async with ring.batch() as batch:
        await batch.write_textures(places, data)
    for texture, content in zip(textures, expected, strict=True):
        assert (read_texture(texture)[0].reshape(64, 64, 4) == content).all()
    assert len(python) < 60
    async with ring.frame() as frame:  # an array, in any order in memory
        await frame.write_textures(tuple(places[:2]), np.asfortranarray(bytes_[:2]))
        await frame.write_textures([], [])
    for texture, content in zip(textures[:2], bytes_[:2], strict=True):
        assert (read_texture(texture)[0].reshape(64, 64, 4)[:8, :8] == content).all()


async def test_one_bad_texture_leaves_nothing_of_many(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(), texture_of(device)
    good, tile = {"texture": texture}, np.ones((8, 8, 4), np.uint8)
    async with ring.batch() as batch:
        for places, data, why in (
            ([good, {"texture": texture, "origin": (60, 0, 0)}], [tile, tile], "write 1: 8 texels from x=60 exceed"),
            ([good, good], [tile, tile.astype(np.float32)], "write 1: "),
            ([good, {}], [tile, tile], "write 1: destination has"),
            ([good, good], [tile], "2 destinations for 1 pieces of data"),
            ([good, good], np.ones((3, 8, 8, 4), np.uint8), "2 destinations for 3"),
        ):
            with pytest.raises(aiostage.InvalidCopy, match=why):
                await batch.write_textures(places, data)
        with pytest.raises(TypeError, match="write 1: "):
            await batch.write_textures([good, good], [tile, [1, 2]])
        assert ring.stats_nowait().allocations_total == 0


def tiles_of(texture: Any, rng: np.random.Generator) -> tuple[list[dict[str, Any]], Any, Any]:
    """256 places in a texture of 256 × 256 texels, their content, and what all of it looks like."""
    places = [{"texture": texture, "origin": (16 * (i % 16), 16 * (i // 16), 0)} for i in range(256)]
    tiles = rng.integers(0, 256, (256, 16, 16, 4), np.uint8)
    return places, tiles, tiles.reshape(16, 16, 16, 16, 4).swapaxes(1, 2).reshape(256, 256, 4).copy()


@pytest.mark.parametrize("as_list", [True, False])
async def test_threads_copy_many_textures_through_a_ring_that_is_too_small(
    device: wgpu.GPUDevice, open_ring: OpenRing, rng: np.random.Generator, as_list: bool
) -> None:
    ring, texture = await open_ring(ring_count=2, buffer_size=64 * KiB), texture_of(device, (256, 256, 1))
    for _ in range(3):
        places, tiles, expected = tiles_of(texture, rng)
        async with ring.batch() as batch:
            await batch.write_textures(places, list(tiles) if as_list else tiles)
            tiles[:] = 7  # they may be reused now
        assert (read_texture(texture)[0].reshape(256, 256, 4) == expected).all()
    assert ring.stats_nowait().allocations_total == 3 * 256


async def test_who_is_cancelled_waits_for_the_threads_that_read_his_data(
    device: wgpu.GPUDevice, open_ring: OpenRing, rng: np.random.Generator
) -> None:
    ring, texture = await open_ring(buffer_size=2 * MiB), texture_of(device, (256, 256, 1))
    places, tiles, _ = tiles_of(texture, rng)
    begun: list[Any] = []
    alive = weakref.ref(tiles)
    task: Any = None
    carry_out = ring._engine.carry_out

    def noted(*args: Any) -> None:
        begun.append(args)
        carry_out(*args)
        task.cancel()

    async def write(tiles: Any) -> None:
        async with ring.batch() as batch:
            await batch.write_textures(places, tiles)
            begun.clear()
            ring._engine.carry_out = noted
            await batch.write_textures(places, tiles)

    task = asyncio.create_task(write(tiles))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(begun) == 1
    assert not any(buffer.load.jobs for buffer in ring._engine.shelf.all if buffer.load is not None)
    await ring.write_buffer(device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST), 0, b"1234")
    begun.clear()
    tiles = task = None
    gc.collect()
    assert alive() is None
