"""Ranges of files, which threads read straight into staging memory."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wgpu
from readback import level_shape, read_buffer, read_texture

import aiostage
from aiostage import DeviceLost, InvalidCopy
from aiostage.data.files import FileRange
from aiostage.data.formats import required_feature

Target = Callable[[int], wgpu.GPUBuffer]
OpenRing = Callable[..., Any]
KiB, MiB = 1024, 1024 * 1024
ALL = np.random.default_rng(0).integers(0, 256, 3 * MiB, np.uint8)

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "some bytes"
    ALL.tofile(path)
    return path


@pytest.fixture(params=[0, 256 * KiB], ids=["all by threads", "small ones inline"])
def inline_size(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


def open_descriptors(path: Path) -> int:
    """How many this process has on a file."""
    gc.collect()
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == str(path)
        except OSError:  # the listing's own
            pass
    return found


@pytest.fixture(autouse=sys.platform == "linux")
def every_descriptor_is_closed(path: Path) -> Iterator[None]:
    yield
    assert open_descriptors(path) == 0


# -- what a range is --


def test_a_range_is_the_rest_of_the_file_by_default(path: Path) -> None:
    with FileRange(path) as whole, FileRange(str(path), 1000) as rest, FileRange(os.fsencode(path), 8, 16) as some:
        assert (whole.nbytes, rest.nbytes, some.nbytes) == (len(ALL), len(ALL) - 1000, 16)
        assert (whole.shape, some.shape, some.dtype) == ((len(ALL),), (16,), np.uint8)
        assert "some bytes" in repr(whole)
    assert "closed" in repr(whole)


def test_a_range_takes_as_many_bytes_as_its_shape(path: Path) -> None:
    with FileRange(path, 4, shape=(3, 5), dtype=np.float32) as some:
        assert (some.nbytes, some.shape) == (60, (3, 5))
    with FileRange(path, nbytes=64, dtype="V16") as some:
        assert some.shape == (4,)
    with FileRange(path, len(ALL)) as nothing:
        assert nothing.nbytes == 0


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((len(ALL) + 1,), {}),
        ((0, len(ALL) + 1), {}),
        ((len(ALL) - 3, 4), {}),
        ((-1,), {}),
        ((0, -1), {}),
        ((0,), {"shape": (-1, 4)}),
        ((0,), {"shape": (len(ALL), 2)}),
        ((0, 8), {"shape": 9}),
        ((0, 7), {"dtype": np.uint16}),
    ],
)
def test_what_is_not_in_the_file_is_refused(path: Path, arguments: Any, options: Any) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        FileRange(path, *arguments, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: FileRange(None),
        lambda path: FileRange(3),
        lambda path: FileRange([path]),
        lambda path: FileRange(path, 1.5),
        lambda path: FileRange(path, nbytes="1"),
        lambda path: FileRange(path, shape=2.5),
        lambda path: FileRange(path, dtype=object),
        lambda path: FileRange(path, dtype="S0"),
    ],
)
def test_what_is_no_range_is_a_type_error(path: Path, make: Callable[[Path], Any]) -> None:
    with pytest.raises(TypeError):
        make(path)


def test_a_file_that_cannot_be_opened_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileRange(path.with_name("none"))
    with pytest.raises(io.UnsupportedOperation):
        FileRange(io.BytesIO(b"abcd"))
    with open(path, "rb") as file:
        pass
    with pytest.raises(ValueError, match="closed"):
        FileRange(file)


def test_what_is_no_regular_file_has_to_be_told_its_size() -> None:
    with open(os.devnull, "rb") as nothing:
        with pytest.raises(ValueError, match="nbytes"):
            FileRange(nothing)
        assert FileRange(nothing, nbytes=4).nbytes == 4


# -- buffers --


@pytest.mark.parametrize("nbytes", [4, 1000, 100 * KiB, MiB + 4])
async def test_bytes_of_a_file_arrive_in_a_buffer(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int, nbytes: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size), target(nbytes + 8)
    with FileRange(path, 1001, nbytes) as some:
        fence = await ring.write_buffer(buffer, 8, some)
    await fence
    np.testing.assert_array_equal(read_buffer(buffer)[8:], ALL[1001 : 1001 + nbytes])


async def test_a_range_larger_than_the_ring_goes_through_it(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=100_000), target(len(ALL))
    with FileRange(path) as file:
        await ring.write_buffer(buffer, 0, file)
    np.testing.assert_array_equal(read_buffer(buffer), ALL)
    assert (await ring.stats()).bytes_total == len(ALL)


async def test_data_offset_and_size_choose_bytes_of_the_range(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size), target(64)
    with FileRange(path, 10, 100, dtype=np.uint16) as some:
        await ring.write_buffer(buffer, 0, some, 3, 4)
        await ring.write_buffer(buffer, 4, some, data_offset=40)
        with pytest.raises(InvalidCopy):
            await ring.write_buffer(buffer, 0, some, 3, 100)
    np.testing.assert_array_equal(read_buffer(buffer), np.r_[ALL[13:17], ALL[50:110]])


async def test_an_empty_range_is_nothing(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffer = await open_ring(), target(4)
    await ring.write_buffer(buffer, 0, FileRange(path, nbytes=0))
    assert not read_buffer(buffer).any()


async def test_a_file_object_may_be_closed_and_keeps_its_position(
    open_ring: OpenRing, target: Target, path: Path
) -> None:
    ring, buffer = await open_ring(), target(1000)
    with open(path, "rb") as file:
        file.seek(7)
        some = FileRange(file, 500, 1000)
        await ring.write_buffer(buffer, 0, some)
        if sys.platform != "win32":
            assert file.tell() == 7
    await ring.write_buffer(buffer, 0, some)
    np.testing.assert_array_equal(read_buffer(buffer), ALL[500:1500])
    some.close()


async def test_writes_to_one_place_arrive_in_the_order_of_the_calls(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size, buffer_size=256 * KiB), target(MiB)
    with FileRange(path, 0, MiB) as large, FileRange(path, 9, 64) as small:
        for first, second in ((large, small), (small, large), (large, b"x" * 64), (small, b"x" * 64)):
            await asyncio.gather(ring.write_buffer(buffer, 0, first), ring.write_buffer(buffer, 0, second))
            expected = b"x" * 64 if isinstance(second, bytes) else ALL[second.offset : second.offset + 64].tobytes()
            assert read_buffer(buffer)[:64].tobytes() == expected


async def test_many_coroutines_read_at_once(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    buffers = [target(150_000) for _ in range(16)]

    async def stream(index: int) -> None:
        for turn in range(3):
            start = index * 999 + turn
            with FileRange(path, start, 150_000) as some:
                await ring.write_buffer(buffers[index], 0, some)
            assert (read_buffer(buffers[index]) == ALL[start : start + 150_000]).all()

    await asyncio.gather(*map(stream, range(16)))


async def test_one_range_is_written_many_times_at_once(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffers = await open_ring(ring_count=2, buffer_size=64 * KiB), [target(100_000) for _ in range(8)]
    with FileRange(path, 3, 100_000) as some:
        writes = [asyncio.ensure_future(ring.write_buffer(buffer, 0, some)) for buffer in buffers]
        await asyncio.sleep(0)
    await asyncio.gather(*writes)  # it was closed meanwhile
    for buffer in buffers:
        np.testing.assert_array_equal(read_buffer(buffer), ALL[3:100_003])


@ON_LINUX
async def test_the_loops_thread_reads_none_of_it(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size), target(len(ALL))

    def read_so_far() -> int:
        counts = Path(f"/proc/self/task/{threading.get_native_id()}/io").read_text()
        return int(counts.split()[1])

    try:
        before = read_so_far()
    except OSError:
        pytest.skip("the system does not count it")
    with FileRange(path) as file, FileRange(path, nbytes=64 * KiB) as some:
        await ring.write_buffer(buffer, 0, file)
        for _ in range(20):
            await ring.write_buffer(buffer, 0, some)
        async with ring.batch() as batch:
            for _ in range(20):
                await batch.write_buffer(buffer, 0, some)
    assert read_so_far() - before < 8 * KiB  # what woke the loop


# -- textures --


def new_texture(device: wgpu.GPUDevice, format: str, size: Any, dimension: str = "2d", levels: int = 1) -> Any:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=size, format=format, dimension=dimension, mip_level_count=levels, usage=usage)


@pytest.mark.parametrize("buffer_size", [8 * MiB, 5000, 1024], ids=["one piece", "rows", "parts of rows"])
@pytest.mark.parametrize(
    ("format", "size", "dimension"),
    [
        ("rgba8unorm", (64, 30, 1), "2d"),  # rows that need no padding
        ("rgba8unorm", (100, 70, 3), "2d"),
        ("r8unorm", (301, 200, 2), "2d"),
        ("rgba16float", (33, 17, 9), "3d"),
        ("r32float", (77, 1, 1), "1d"),
        ("bc1-rgba-unorm", (100, 52, 2), "2d"),
        ("bc7-rgba-unorm", (260, 16, 1), "2d"),
    ],
)
async def test_texels_of_a_file_arrive_in_a_texture(
    open_ring: OpenRing,
    device: wgpu.GPUDevice,
    path: Path,
    inline_size: int,
    format: str,
    size: Any,
    dimension: str,
    buffer_size: int,
) -> None:
    if (feature := required_feature(format)) is not None and feature not in device.features:
        pytest.skip(f"the device has no {feature}")
    ring = await open_ring(inline_size=inline_size, buffer_size=buffer_size)
    texture = new_texture(device, format, size, dimension)
    layers, rows, row_bytes = level_shape(texture, 0)
    nbytes = layers * rows * row_bytes
    expected = ALL[13 : 13 + nbytes].reshape(layers, rows, row_bytes)
    itemsize = 8 if format.startswith("bc1") else 16 if format.startswith("bc7") else 4 if format != "r8unorm" else 1
    shape = {"1d": (row_bytes // itemsize, itemsize)}.get(dimension, (layers, rows, row_bytes // itemsize, itemsize))
    if format == "rgba16float":
        shape = (layers, rows, row_bytes // 8, 8)
    with FileRange(path, 13, shape=shape) as texels:
        await ring.write_texture({"texture": texture}, texels)
    np.testing.assert_array_equal(read_texture(texture)[0], expected)
    texture = new_texture(device, format, size, dimension)
    with FileRange(path, 13, nbytes) as flat:  # exactly a level
        async with ring.batch() as batch:
            await batch.write_texture({"texture": texture}, flat)
    np.testing.assert_array_equal(read_texture(texture)[0], expected)


async def test_a_range_goes_to_a_region(open_ring: OpenRing, device: wgpu.GPUDevice, path: Path) -> None:
    ring, texture = await open_ring(), new_texture(device, "rg8unorm", (64, 64, 4), levels=2)
    with FileRange(path, 6, shape=(2, 9, 11, 2)) as some:
        await ring.write_texture({"texture": texture, "mip_level": 1, "origin": (5, 7, 1)}, some)
    level = read_texture(texture)[1].reshape(4, 32, 32, 2)
    np.testing.assert_array_equal(level[1:3, 7:16, 5:16], ALL[6 : 6 + 2 * 9 * 11 * 2].reshape(2, 9, 11, 2))
    assert not level[0].any()
    assert not level[:, :7].any()


async def test_items_may_be_texels(open_ring: OpenRing, device: wgpu.GPUDevice, path: Path) -> None:
    ring, texture = await open_ring(), new_texture(device, "rg16uint", (50, 20, 1))
    with (
        FileRange(path, 2, shape=(20, 50, 2), dtype=np.uint16) as values,
        FileRange(path, 4, shape=(20, 50), dtype="V4") as raw,
    ):
        await ring.write_texture({"texture": texture}, values)
        np.testing.assert_array_equal(read_texture(texture)[0].reshape(-1), ALL[2:4002])
        await ring.write_texture({"texture": texture}, raw)
        np.testing.assert_array_equal(read_texture(texture)[0].reshape(-1), ALL[4:4004])


async def test_a_data_layout_says_where_rows_lie(
    open_ring: OpenRing, device: wgpu.GPUDevice, path: Path, inline_size: int
) -> None:
    ring, texture = await open_ring(inline_size=inline_size), new_texture(device, "rgba8unorm", (30, 20, 2))
    layout = {"offset": 5, "bytes_per_row": 131, "rows_per_image": 23}
    with FileRange(path, 100, 10_000) as some:
        await ring.write_texture({"texture": texture}, some, layout, (30, 20, 2))
    expected = ALL[105 : 105 + 131 * 46].reshape(2, 23, 131)[:, :20, :120]
    np.testing.assert_array_equal(read_texture(texture)[0], expected)


async def test_what_does_not_fit_a_texture_is_refused(open_ring: OpenRing, device: wgpu.GPUDevice, path: Path) -> None:
    ring, texture = await open_ring(), new_texture(device, "rgba8unorm", (16, 16, 1))
    for wrong in (
        FileRange(path, shape=(16, 16, 3)),
        FileRange(path, shape=(17, 16, 4)),
        FileRange(path, shape=(16, 16), dtype=">u4"),
        FileRange(path, shape=(16, 16), dtype=np.float32),
        FileRange(path, nbytes=1000),
    ):
        with pytest.raises(InvalidCopy):
            await ring.write_texture({"texture": texture}, wrong)
    with pytest.raises(InvalidCopy), FileRange(path, nbytes=1000) as some:
        await ring.write_texture({"texture": texture}, some, {"bytes_per_row": 64}, (16, 16, 1))


# -- batches and frames --


async def test_writes_of_a_batch_arrive_together_and_in_order(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size, buffer_size=128 * KiB), target(MiB)
    expected = np.zeros(MiB, np.uint8)
    async with ring.batch() as batch:
        for index in range(60):
            start, nbytes = index * 8000, 4 * (index * index + 1)
            with FileRange(path, index, nbytes) as some:
                await batch.write_buffer(buffer, start, some)
            await batch.write_buffer(buffer, start + nbytes - 4, b"last")
            expected[start : start + nbytes] = ALL[index : index + nbytes]
            expected[start + nbytes - 4 : start + nbytes] = np.frombuffer(b"last", np.uint8)
    np.testing.assert_array_equal(read_buffer(buffer), expected)


async def test_a_frame_takes_ranges(open_ring: OpenRing, device: wgpu.GPUDevice, path: Path) -> None:
    ring, texture = await open_ring(), new_texture(device, "r8unorm", (100, 100, 1))
    async with ring.frame() as frame:
        with FileRange(path, shape=(100, 100, 1)) as some:
            await frame.write_texture({"texture": texture}, some)
    np.testing.assert_array_equal(read_texture(texture)[0].reshape(-1), ALL[:10_000])


# -- what goes wrong --


def check_pieces(content: Any, buffer_size: int, there: int) -> None:
    """Each piece arrived, if it could be read, or none of it did: then its bytes are 7."""
    for start in range(0, len(content), buffer_size):
        piece = content[start : start + buffer_size]
        assert (piece == 7).all() or (start + len(piece) <= there and (piece == ALL[start : start + len(piece)]).all())


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut there")
@pytest.mark.parametrize("left", [0, 10, 1_000_000, len(ALL) - 1])
async def test_a_file_that_got_shorter_ends_its_upload(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int, left: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size, ring_count=2, buffer_size=100_000), target(len(ALL))
    await ring.write_buffer(buffer, 0, np.full(len(ALL), 7, np.uint8))
    file = FileRange(path)
    os.truncate(path, left)
    with pytest.raises(EOFError, match="some bytes"):
        await ring.write_buffer(buffer, 0, file)
    check_pieces(read_buffer(buffer), 100_000, left)
    with pytest.raises(EOFError):
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, file)
    check_pieces(read_buffer(buffer), 100_000, left)
    file.close()
    await ring.write_buffer(buffer, 0, ALL)  # the ring is whole
    np.testing.assert_array_equal(read_buffer(buffer), ALL)


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut there")
async def test_a_short_upload_leaves_others_alone(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffers = await open_ring(ring_count=2, buffer_size=64 * KiB), [target(200_000) for _ in range(6)]
    good, bad = FileRange(path, 0, 200_000), FileRange(path, 2_000_000, 200_000)
    os.truncate(path, 2_100_000)
    ends = await asyncio.gather(
        *(ring.write_buffer(buffer, 0, (good, bad)[i % 2]) for i, buffer in enumerate(buffers)), return_exceptions=True
    )
    assert [isinstance(end, EOFError) for end in ends] == [False, True] * 3
    for buffer in buffers[::2]:
        np.testing.assert_array_equal(read_buffer(buffer), ALL[:200_000])


@pytest.mark.skipif(sys.platform == "win32", reason="which has other numbers")
async def test_a_file_that_cannot_be_read_is_an_os_error(
    open_ring: OpenRing, device: wgpu.GPUDevice, target: Target, path: Path, inline_size: int
) -> None:
    ring, buffer = await open_ring(inline_size=inline_size), target(MiB)
    texture = new_texture(device, "rgba8unorm", (100, 100, 1))
    with open(path, "r+b") as readable, open(path.with_name("written"), "wb") as file:
        file.write(readable.read(MiB))
        file.flush()
        for nbytes in (4, MiB):
            with FileRange(file, 0, nbytes) as some, pytest.raises(OSError, match="written") as caught:
                await ring.write_buffer(buffer, 0, some)
            assert (caught.value.errno, caught.value.filename) == (errno.EBADF, file.name)
        with FileRange(file, shape=(100, 100, 4)) as texels, pytest.raises(OSError, match="written"):
            await ring.write_texture({"texture": texture}, texels)
        with FileRange(file, 0, 4) as some, pytest.raises(OSError, match="written"):
            async with ring.batch() as batch:
                await batch.write_buffer(buffer, 0, some)
    assert not read_buffer(buffer).any()
    assert not read_texture(texture)[0].any()
    await ring.write_buffer(buffer, 0, b"1234")
    assert read_buffer(buffer)[:4].tobytes() == b"1234"


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be cut there")
async def test_a_batch_whose_error_was_caught_says_at_its_end_what_is_missing(
    open_ring: OpenRing, target: Target, path: Path
) -> None:
    ring, buffer = await open_ring(), target(64)
    file = FileRange(path, 0, 32)
    os.truncate(path, 16)
    with pytest.raises(InvalidCopy, match="could not be read"):
        async with ring.batch() as batch:
            with pytest.raises(EOFError):
                await batch.write_buffer(buffer, 0, file)
            await batch.write_buffer(buffer, 32, b"more")
    assert read_buffer(buffer)[32:36].tobytes() == b"more"
    assert not read_buffer(buffer)[:32].any()


async def test_a_range_that_was_closed_is_refused(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffer, file = await open_ring(), target(len(ALL)), FileRange(path)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        await ring.write_buffer(buffer, 0, file)


async def test_a_destination_that_was_destroyed_is_refused(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffer = await open_ring(), target(len(ALL))
    buffer.destroy()
    with pytest.raises(InvalidCopy), FileRange(path) as file:
        await ring.write_buffer(buffer, 0, file)


# -- how long a file stays open --


async def test_an_upload_may_be_cancelled_at_any_point(
    open_ring: OpenRing, target: Target, path: Path, inline_size: int
) -> None:
    ring = await open_ring(inline_size=inline_size, ring_count=2, buffer_size=64 * KiB)
    buffer, texture_bytes = target(len(ALL)), FileRange(path, 0, len(ALL))
    for point in range(40):
        task = asyncio.ensure_future(ring.write_buffer(buffer, 0, texture_bytes))
        if point < 5:
            for _ in range(point):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(point * 1e-4)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        some = ALL[point : point + 40_000]
        await ring.write_buffer(buffer, 0, some)  # which nothing of the other overwrites
        np.testing.assert_array_equal(read_buffer(buffer)[:40_000], some)
    texture_bytes.close()


@ON_LINUX
async def test_an_upload_keeps_the_file_open_until_it_has_ended(
    open_ring: OpenRing, target: Target, path: Path
) -> None:
    ring, buffer = await open_ring(ring_count=1, buffer_size=64 * KiB), target(len(ALL))
    file = FileRange(path)
    slot = ring.allocate_nowait(4)  # nothing can go
    task = asyncio.ensure_future(ring.write_buffer(buffer, 0, file))
    await asyncio.sleep(0.01)
    file.close()
    assert open_descriptors(path) == 1
    slot.abandon()
    await task
    assert open_descriptors(path) == 0
    np.testing.assert_array_equal(read_buffer(buffer), ALL)


@ON_LINUX
async def test_a_cancelled_upload_lets_go_of_the_file(open_ring: OpenRing, target: Target, path: Path) -> None:
    ring, buffer = await open_ring(ring_count=1, buffer_size=64 * KiB), target(len(ALL))
    with FileRange(path) as file:
        task = asyncio.ensure_future(ring.write_buffer(buffer, 0, file))
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert open_descriptors(path) == 0


@ON_LINUX
async def test_a_ring_that_is_closed_lets_go_of_the_file(device: wgpu.GPUDevice, target: Target, path: Path) -> None:
    buffer = target(len(ALL))
    async with aiostage.StagingRing(device, 1, 64 * KiB) as ring:
        with FileRange(path) as file:
            task = asyncio.ensure_future(ring.write_buffer(buffer, 0, file))
            await asyncio.sleep(0)
    with pytest.raises(aiostage.RingClosed):
        await task
    del task
    assert open_descriptors(path) == 0


@ON_LINUX
async def test_a_lost_device_lets_go_of_the_file(own_device: wgpu.GPUDevice, path: Path) -> None:
    buffer = own_device.create_buffer(size=len(ALL), usage=wgpu.BufferUsage.COPY_DST)
    ring = aiostage.StagingRing(own_device, 2, 64 * KiB)
    await ring.open()
    with FileRange(path) as file:
        tasks = [asyncio.ensure_future(ring.write_buffer(buffer, 0, file)) for _ in range(4)]
        await asyncio.sleep(0.001)
    own_device.destroy()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(end, DeviceLost)
    del tasks, end
    await ring.aclose()
    assert open_descriptors(path) == 0


EXITS = """
import asyncio, sys, wgpu, aiostage
from aiostage.data.files import FileRange

async def main():
    adapters = wgpu.gpu.enumerate_adapters_sync()
    device = next(a for a in adapters if a.info["backend_type"] == "Vulkan").request_device_sync()
    buffer = device.create_buffer(size=3 << 20, usage=wgpu.BufferUsage.COPY_DST)
    ring = aiostage.StagingRing(device, 2, 65536)
    await ring.open()
    for _ in range(8):
        asyncio.ensure_future(ring.write_buffer(buffer, 0, FileRange(sys.argv[1])))
    await asyncio.sleep(float(sys.argv[2]))
    print("about to leave", flush=True)
    sys.exit(3)

asyncio.run(main())
"""


@pytest.mark.parametrize("seconds", [0, 0.003])
def test_a_program_may_end_while_files_are_read(path: Path, seconds: float) -> None:
    command = [sys.executable, "-W", "ignore", "-c", EXITS, str(path), str(seconds)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (3, "about to leave\n"), result.stderr
