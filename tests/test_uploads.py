"""Uploads, as a user asks for them: whole, in batches, in frames, and through slots."""

from __future__ import annotations

import array
import asyncio
import ctypes
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wgpu
from readback import fill_texture, read_buffer, read_texture

import aiostage
from aiostage import InvalidCopy, KiB, MiB
from aiostage.data.formats import required_feature

Target = Callable[[int], wgpu.GPUBuffer]
OpenRing = Callable[..., Any]
RNG = np.random.default_rng(0)


def new_texture(device: wgpu.GPUDevice, format: str, size: tuple[int, int, int]) -> wgpu.GPUTexture:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=size, format=format, usage=usage)


def content(buffer: wgpu.GPUBuffer) -> bytes:
    return read_buffer(buffer).tobytes()


def mapped_file() -> mmap.mmap:
    memory = mmap.mmap(-1, 8)
    memory[:] = b"uploaded"
    return memory


# -- Whole buffers --


@pytest.mark.parametrize(
    "data",
    [
        b"uploaded",
        bytearray(b"uploaded"),
        memoryview(b"uploaded"),
        memoryview(b"u-p-l-o-a-d-e-d-")[::2],
        memoryview(b"uploaded").cast("I"),
        array.array("H", b"uploaded"),
        (ctypes.c_uint8 * 8)(*b"uploaded"),
        mapped_file(),
        np.frombuffer(b"uploaded", np.float64),
        np.frombuffer(b"uploaded", np.float64).reshape(()),
        np.asfortranarray(np.frombuffer(b"uploaded", np.uint8).reshape(2, 4)),
    ],
    ids=lambda data: type(data).__name__,
)
async def test_any_object_with_the_buffer_protocol_is_taken(open_ring: OpenRing, target: Target, data: Any) -> None:
    ring, buffer = await open_ring(buffer_size=1024), target(8)
    await ring.write_buffer(buffer, 0, data)
    assert content(buffer) == b"uploaded"


async def test_data_larger_than_the_ring_goes_through_it(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=1000), target(100_000)
    data = RNG.integers(0, 256, 100_000, np.uint8)
    fence = await ring.write_buffer(buffer, 0, data)
    await fence
    np.testing.assert_array_equal(read_buffer(buffer), data)
    stats = await ring.stats()
    assert stats.bytes_total == 100_000
    assert stats.allocations_total == 100


async def test_the_data_may_be_reused_on_return(open_ring: OpenRing, target: Target) -> None:
    ring, buffers = await open_ring(), [target(1 << 20) for _ in range(4)]
    data = bytearray(1 << 20)
    for value, buffer in enumerate(buffers):
        data[:] = bytes([value]) * len(data)
        await ring.write_buffer(buffer, 0, data)
    data[:] = b"x" * len(data)
    for value, buffer in enumerate(buffers):
        assert content(buffer) == bytes([value]) * len(data)


async def test_data_offset_and_size_choose_bytes_of_the_data(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(16)
    data = np.arange(10, dtype=np.uint16)
    await ring.write_buffer(buffer, 0, data, 3, 4)
    await ring.write_buffer(buffer, 8, data, data_offset=12)
    assert content(buffer) == data.tobytes()[3:7] + bytes(4) + data.tobytes()[12:]


async def test_a_slice_of_the_destination_leaves_the_rest_alone(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(32)
    await ring.write_buffer(buffer, 0, b"." * 32)
    await ring.write_buffer(buffer, 12, b"uploaded")
    assert content(buffer) == b"." * 12 + b"uploaded" + b"." * 12


async def test_work_submitted_afterwards_sees_the_upload(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, first, second = await open_ring(), target(8), target(8)
    await ring.write_buffer(first, 0, b"uploaded")
    encoder = device.create_command_encoder()
    encoder.copy_buffer_to_buffer(first, 0, second, 0, 8)
    device.queue.submit([encoder.finish()])
    assert content(second) == b"uploaded"


async def test_writes_of_one_turn_of_the_loop_share_a_submit(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(400)
    before = ring.stats_nowait().submits
    await asyncio.gather(*(ring.write_buffer(buffer, 4 * i, bytes([i] * 4)) for i in range(100)))
    assert ring.stats_nowait().submits == before + 1
    assert content(buffer) == bytes(i for i in range(100) for _ in range(4))


# -- Batches --


async def test_a_batch_is_one_submit(device: wgpu.GPUDevice, open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(buffer_size=4096), target(200)
    texture = new_texture(device, "r8uint", (8, 8, 2))
    before = ring.stats_nowait().submits
    async with ring.batch() as batch:
        for i in range(50):
            await batch.write_buffer(buffer, 4 * i, bytes([i] * 4))
        for layer in range(2):
            await batch.write_texture({"texture": texture, "origin": (0, 0, layer)}, np.full((8, 8), layer, np.uint8))
        assert ring.stats_nowait().submits == before
    await batch.fence
    assert ring.stats_nowait().submits == before + 1
    assert content(buffer) == bytes(i for i in range(50) for _ in range(4))
    assert [np.unique(layer).tolist() for layer in read_texture(texture)[0]] == [[0], [1]]


async def test_a_batch_larger_than_the_ring_departs_in_parts(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=1024), target(50_000)
    data = RNG.integers(0, 256, 50_000, np.uint8)
    async with ring.batch() as batch:
        for start in range(0, 50_000, 1000):
            await batch.write_buffer(buffer, start, data[start : start + 1000])
    await batch.fence
    np.testing.assert_array_equal(read_buffer(buffer), data)


async def test_later_writes_of_a_batch_win(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=1024), target(4)
    async with ring.batch() as batch:
        for i in range(1000):
            await batch.write_buffer(buffer, 0, i.to_bytes(4, "little"))
    assert content(buffer) == (999).to_bytes(4, "little")


async def test_a_batch_of_concurrent_tasks(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=4096, inline_size=0), target(64_000)
    data = RNG.integers(0, 256, 64_000, np.uint8)
    async with ring.batch() as batch, asyncio.TaskGroup() as tasks:
        for start in range(0, 64_000, 640):
            tasks.create_task(batch.write_buffer(buffer, start, data[start : start + 640]))
    np.testing.assert_array_equal(read_buffer(buffer), data)


# -- Frames --


async def test_a_frames_uploads_run_before_its_passes_whatever_was_called_first(
    open_ring: OpenRing, target: Target
) -> None:
    ring, uploaded, seen = await open_ring(), target(8), target(8)
    before = ring.stats_nowait().submits
    async with ring.frame() as frame:
        frame.encoder.copy_buffer_to_buffer(uploaded, 0, seen, 0, 8)
        await frame.write_buffer(uploaded, 0, b"uploaded")
    await frame.fence
    assert ring.stats_nowait().submits == before + 1
    assert content(seen) == b"uploaded"


async def test_frames_run_in_order(open_ring: OpenRing, target: Target) -> None:
    ring, uniform, log = await open_ring(ring_count=2, buffer_size=1024), target(4), target(400)
    for i in range(100):
        async with ring.frame() as frame:
            await frame.write_buffer(uniform, 0, i.to_bytes(4, "little"))
            frame.encoder.copy_buffer_to_buffer(uniform, 0, log, 4 * i, 4)
    assert read_buffer(log).view(np.uint32).tolist() == list(range(100))


# -- Slots --


async def test_a_slot_may_be_copied_to_several_destinations(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, first, second = await open_ring(), target(8), target(16)
    texture = new_texture(device, "r8uint", (8, 1, 1))
    with await ring.allocate(12) as slot:
        slot.view[:] = b"uploadedtail"
        slot.copy_to_buffer(first, size=8)
        slot.copy_to_buffer(second, 4, data_offset=4)
        slot.copy_to_texture({"texture": texture}, size=(8, 1))
    await ring.submit()
    assert content(first) == b"uploaded"
    assert content(second) == bytes(4) + b"adedtail" + bytes(4)
    assert read_texture(texture)[0].tobytes() == b"uploaded"


async def test_nothing_is_copied_from_a_slot_whose_block_raised(open_ring: OpenRing, target: Target) -> None:
    ring, buffer = await open_ring(), target(8)
    with pytest.raises(ZeroDivisionError):
        with await ring.allocate(8) as slot:
            slot.view[:] = b"uploaded"
            slot.copy_to_buffer(buffer)
            raise ZeroDivisionError
    await ring.submit()
    assert content(buffer) == bytes(8)


@pytest.mark.parametrize("size", [(5, 3), (70, 3, 2), (1, 1), (64, 4, 1)])
@pytest.mark.parametrize(
    ("format", "dtype", "channels"),
    [
        ("r8unorm", np.uint8, 1),
        ("rgba8unorm", np.uint8, 4),
        ("rg16sint", np.int16, 2),
        ("rgba16float", np.float16, 4),
        ("rgb10a2unorm", np.uint32, 1),
        ("r32float", np.float32, 1),
        ("rgba32float", np.float32, 4),
        ("stencil8", np.uint8, 1),
        ("depth16unorm", np.uint16, 1),
    ],
)
async def test_the_array_of_a_texture_slot_has_the_padded_stride(
    device: wgpu.GPUDevice, open_ring: OpenRing, format: str, dtype: type, channels: int, size: tuple[int, ...]
) -> None:
    ring = await open_ring(ring_count=1)
    width, height, layers = (*size, 1)[:3]
    texture = new_texture(device, format, (width, height, layers))
    slot = await ring.allocate_texture(size, format)
    with slot:
        texels = slot.array()
        assert texels.dtype == dtype
        assert texels.shape == (layers,) * (layers > 1) + (height, width) + (channels,) * (channels > 1)
        assert texels.strides[int(layers > 1)] % 256 == 0
        expected = RNG.integers(0, 256, (layers, height, width * channels * texels.itemsize), np.uint8)
        texels[:] = expected.view(dtype).reshape(texels.shape)
        slot.copy_to_texture({"texture": texture})
    await ring.submit()
    got = read_texture(texture, "depth-only" if "depth" in format else "all")[0]
    np.testing.assert_array_equal(got, expected)


async def test_the_array_of_a_compressed_texture_slot_is_of_blocks(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    format = next(f for f in ("bc1-rgba-unorm", "etc2-rgb8unorm") if required_feature(f) in device.features)
    ring, texture = await open_ring(), new_texture(device, format, (16, 8, 1))
    slot = await ring.allocate_texture((16, 8), format)
    with slot:
        blocks = slot.array()
        assert blocks.shape == (2, 32)  # rows of four blocks of 8 bytes
        assert blocks.strides == (256, 1)
        expected = RNG.integers(0, 256, blocks.shape, np.uint8)
        blocks[:] = expected
        slot.copy_to_texture({"texture": texture})
    await ring.submit()
    np.testing.assert_array_equal(read_texture(texture)[0][0], expected)


# -- encoder= --


@pytest.mark.parametrize("through_the_ring", [False, True])
async def test_a_copy_with_an_encoder_runs_where_it_was_recorded(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, through_the_ring: bool
) -> None:
    ring, buffer, seen = await open_ring(), target(8), target(16)
    encoder = device.create_command_encoder()
    for i, word in enumerate((b"earlier!", b"uploaded")):
        with await ring.allocate(8) as slot:
            slot.view[:] = word
            slot.copy_to_buffer(buffer, encoder=encoder)
        encoder.copy_buffer_to_buffer(buffer, 0, seen, 8 * i, 8)
    assert content(buffer) == bytes(8)  # not before it is submitted
    if through_the_ring:
        await ring.submit([encoder.finish()])
    else:
        device.queue.submit([encoder.finish()])
    assert content(seen) == b"earlier!uploaded"


async def test_an_encoder_that_is_never_submitted_copies_nothing_and_holds_nothing_back(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=1024), target(1024)
    encoders = []
    for _ in range(6):
        encoders.append(device.create_command_encoder())
        with await ring.allocate(1024) as slot:
            slot.view[:] = b"x" * 1024
            slot.copy_to_buffer(buffer, encoder=encoders[-1])
    await (await ring.submit())
    assert content(buffer) == bytes(1024)


async def test_a_slot_may_go_to_an_encoder_and_to_textures_in_it(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(), new_texture(device, "rgba8unorm", (20, 10, 2))
    expected = RNG.integers(0, 256, (10, 20, 4), np.uint8)
    encoder = device.create_command_encoder()
    slot = await ring.allocate_texture((20, 10), "rgba8unorm")
    with slot:
        slot.array()[:] = expected
        for layer in range(2):
            slot.copy_to_texture({"texture": texture, "origin": (0, 0, layer)}, encoder=encoder)
    device.queue.submit([encoder.finish()])
    for layer in read_texture(texture)[0]:
        np.testing.assert_array_equal(layer.reshape(10, 20, 4), expected)


# -- Textures --


async def test_texels_that_do_not_fit_are_split_by_layers_rows_and_columns(
    device: wgpu.GPUDevice, open_ring: OpenRing
) -> None:
    expected = RNG.integers(0, 256, (3, 5, 200, 4), np.uint8)  # rows of 800 bytes, padded to 1024
    for buffer_size, pieces in ((16 * 1024, 1), (8 * 1024, 3), (2 * 1024, 9), (400, 30)):
        ring, texture = await open_ring(buffer_size=buffer_size), new_texture(device, "rgba8unorm", (200, 5, 3))
        await ring.write_texture({"texture": texture}, expected)
        assert ring.stats_nowait().allocations_total == pieces
        np.testing.assert_array_equal(read_texture(texture)[0].reshape(expected.shape), expected)


@pytest.mark.parametrize("through_a_slot", [False, True])
async def test_the_stencil_of_a_combined_format_is_written_by_its_aspect(
    device: wgpu.GPUDevice, open_ring: OpenRing, through_a_slot: bool
) -> None:
    ring, texture = await open_ring(), new_texture(device, "depth24plus-stencil8", (33, 7, 2))
    expected = fill_texture(texture, RNG, "stencil-only")[0]
    expected[1] = RNG.integers(0, 256, (7, 33), np.uint8)
    destination = {"texture": texture, "aspect": "stencil-only", "origin": (0, 0, 1)}
    if through_a_slot:
        slot = await ring.allocate_texture((33, 7), "depth24plus-stencil8", aspect="stencil-only")
        with slot:
            slot.array()[:] = expected[1]
            slot.copy_to_texture(destination)
        await ring.submit()
    else:
        await ring.write_texture(destination, expected[1])
    np.testing.assert_array_equal(read_texture(texture, "stencil-only")[0], expected)


async def test_a_depth_image_larger_than_a_staging_buffer_says_so(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(buffer_size=1024), new_texture(device, "depth16unorm", (16, 16, 1))
    with pytest.raises(aiostage.AllocationTooLarge, match=r"4096 bytes .* 1024"):
        await ring.write_texture({"texture": texture}, np.zeros((16, 16), np.uint16))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 6, 4), "u1"), ((1, 4, 6, 4), "u1"), ((4, 6), "u4"), ((96,), "u1"), ((1, 4, 24), "u1"), ((4, 24), "u1")],
)
async def test_the_size_follows_from_the_shape_or_from_a_whole_level(
    device: wgpu.GPUDevice, open_ring: OpenRing, shape: tuple[int, ...], dtype: str
) -> None:
    ring, texture = await open_ring(), new_texture(device, "rgba8unorm", (6, 4, 1))
    expected = RNG.integers(0, 256, 96, np.uint8)
    await ring.write_texture({"texture": texture}, expected.view(dtype).reshape(shape))
    assert read_texture(texture)[0].tobytes() == expected.tobytes()


# -- Isolation --


async def test_a_bad_copy_in_a_batch_raises_with_numbers_and_the_good_ones_arrive(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(), target(16)
    texture = new_texture(device, "r8uint", (4, 4, 1))
    async with ring.batch() as batch:
        await batch.write_buffer(buffer, 0, b"good")
        with pytest.raises(InvalidCopy, match="8 bytes at offset 12 do not fit in a buffer of 16 bytes"):
            await batch.write_buffer(buffer, 12, bytes(8))
        with pytest.raises(InvalidCopy, match="5 texels from x=0 exceed mip level 0, which has 4"):
            await batch.write_texture({"texture": texture}, np.zeros((4, 5), np.uint8))
        await batch.write_buffer(buffer, 4, b"fine")
        await batch.write_texture({"texture": texture}, np.full((4, 4), 7, np.uint8))
    await batch.fence
    assert content(buffer) == b"goodfine" + bytes(8)
    assert read_texture(texture)[0].tobytes() == b"\7" * 16


async def test_a_destination_destroyed_before_the_submit_fails_alone(open_ring: OpenRing, target: Target) -> None:
    ring, doomed, buffer = await open_ring(), target(16), target(16)
    writes = [
        asyncio.ensure_future(ring.write_buffer(destination, 0, b"uploaded"))
        for destination in (doomed, buffer, doomed)
    ]
    doomed.destroy()
    bad, good, worse = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(bad, InvalidCopy)
    assert isinstance(worse, InvalidCopy)
    assert "destroyed" in str(bad)
    await good
    assert content(buffer) == b"uploaded" + bytes(8)


async def test_only_the_task_that_staged_a_copy_hears_of_its_failure(open_ring: OpenRing, target: Target) -> None:
    ring, doomed, buffer = await open_ring(), target(8), target(8)
    staged, submitted = asyncio.Event(), asyncio.Event()

    async def careless() -> None:
        with await ring.allocate(8) as slot:
            slot.copy_to_buffer(doomed)
        doomed.destroy()
        staged.set()
        await submitted.wait()
        with pytest.raises(InvalidCopy, match="destroyed"):
            await ring.submit()

    async def other() -> None:
        await staged.wait()
        with await ring.allocate(8) as slot:
            slot.view[:] = b"uploaded"
            slot.copy_to_buffer(buffer)
        await ring.submit()
        submitted.set()

    await asyncio.gather(careless(), other())
    assert content(buffer) == b"uploaded"


async def test_a_batch_splits_what_would_be_copied_inline_but_exceeds_a_staging_buffer(
    open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=1024), target(4096)
    data = bytes(range(256)) * 16
    async with ring.batch() as batch:
        await batch.write_buffer(buffer, 0, data)
    assert content(buffer) == data


async def test_a_copy_that_only_the_encoder_refuses_fails_alone(
    open_ring: OpenRing, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, buffer = await open_ring(), target(16)
    monkeypatch.setattr("aiostage.allocation.check_buffer_copy", lambda buffer, offset, *_: (buffer, offset, None))
    with await ring.allocate(8) as slot:
        slot.view[:] = b"uploaded"
        slot.copy_to_buffer(buffer, 0)
        slot.copy_to_buffer(buffer, 12)  # ends at 20
        slot.copy_to_buffer(buffer, 8)
    with pytest.raises(InvalidCopy, match="copy of 8 bytes to offset 12"):
        await ring.submit()
    assert content(buffer) == b"uploaded" * 2


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ((2, bytes(8)), "multiple of 4.* not 2"),
        ((0, bytes(7)), "multiple of 4.* not 7"),
        ((0, bytes(8), 1), "multiple of 4.* not 7"),
        ((0, bytes(8), 0, 6), "multiple of 4.* not 6"),
        ((-4, bytes(8)), "not -4"),
        ((12, bytes(8)), "8 bytes at offset 12 .* 16 bytes"),
        ((0, bytes(8), 9), "data_offset 9 .* 8 bytes"),
        ((0, bytes(8), 4, 8), "size 8 .* 4 bytes"),
    ],
)
async def test_what_write_buffer_refuses_is_said_with_the_numbers(
    open_ring: OpenRing, target: Target, arguments: tuple[Any, ...], numbers: str
) -> None:
    ring, buffer = await open_ring(), target(16)
    with pytest.raises(InvalidCopy, match=numbers):
        await ring.write_buffer(buffer, *arguments)
    assert content(buffer) == bytes(16)


@pytest.mark.parametrize(
    ("layout", "numbers"),
    [
        ({"bytes_per_row": 31}, r"31.* 8 texels .* 32"),
        ({"rows_per_image": 3}, "3, .* 4 rows"),
        ({"offset": 1}, "128 bytes; bytes 1 to 129"),
        ({"bytes_per_row": 33}, "128 bytes; bytes 0 to 131"),
        ({"stride": 32}, "stride"),
    ],
)
async def test_what_write_texture_refuses_is_said_with_the_numbers(
    device: wgpu.GPUDevice, open_ring: OpenRing, layout: dict[str, int], numbers: str
) -> None:
    ring, texture = await open_ring(), new_texture(device, "rgba8unorm", (8, 4, 1))
    with pytest.raises(InvalidCopy, match=numbers):
        await ring.write_texture({"texture": texture}, bytes(128), layout, (8, 4))


# -- Memory that can be read --


@pytest.mark.blocks_loop("it reads back, and waits for that")
@pytest.mark.parametrize("host_cached", [None, True])
async def test_staging_memory_can_be_read_fast_where_the_device_has_such_memory(
    open_ring: OpenRing, target: Target, host_cached: bool | None
) -> None:
    ring, buffer = await open_ring(host_cached=host_cached), target(8)
    assert ring.host_cached is True
    for step in range(4):
        with await ring.allocate(8) as slot:
            slot.array()[:] = step
            slot.array()[:] += 1  # reads
            slot.copy_to_buffer(buffer)
        await ring.submit()
        assert content(buffer) == bytes([step + 1]) * 8


async def test_without_the_feature_a_software_adapter_has_it_all_the_same_and_a_gpu_says_why_not(
    own_device: wgpu.GPUDevice, open_ring: OpenRing
) -> None:
    if own_device.adapter.info["adapter_type"] == "CPU":
        assert (await open_ring(own_device, host_cached=True)).host_cached
    else:
        with pytest.raises(ValueError, match="mappable-primary-buffers"):
            await open_ring(own_device, host_cached=True)


async def test_a_small_upload_that_waits_in_line_is_not_overtaken_by_a_large_one(
    open_ring: OpenRing, target: Target
) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=256 * KiB, inline_size=64 * KiB), target(8 * MiB)
    filler, large = np.ones(8 * MiB, np.uint8), np.full(MiB, 3, np.uint8)
    for round in range(30):
        other = target(8 * MiB)
        await asyncio.gather(
            ring.write_buffer(other, 0, filler),
            ring.write_buffer(buffer, 0, bytes([2]) * 64),
            ring.write_buffer(buffer, 0, large),
            ring.write_buffer(buffer, 32, bytes([4]) * 64),
        )
        content = read_buffer(buffer)
        assert (content[:32] == 3).all(), round
        assert (content[32:96] == 4).all(), round
        assert (content[96:MiB] == 3).all(), round


@pytest.mark.parametrize("seed", range(4))
async def test_uploads_of_every_kind_to_one_place_keep_their_order(
    open_ring: OpenRing, target: Target, seed: int
) -> None:
    """Large and small, contiguous and such that take Python, all at once."""
    rng = np.random.default_rng(seed)
    ring, buffer = await open_ring(ring_count=2, buffer_size=64 * KiB, inline_size=4 * KiB), target(MiB)
    for _ in range(10):
        expected, writes = read_buffer(buffer), []
        for value in range(8):
            size = 4 * int(rng.choice((16, 1 * KiB, 40 * KiB, 200 * KiB)))
            start = 4 * int(rng.integers(0, (MiB - size) // 4 + 1))
            data = np.full(size, value, np.uint8)
            if rng.integers(3) == 0:
                data = np.full(2 * size, value, np.uint8)[::2]
            expected[start : start + size] = value
            writes.append(ring.write_buffer(buffer, start, data))
        await asyncio.gather(*writes)
        assert (read_buffer(buffer) == expected).all()
