"""3D textures: every byte arrives in levels that nothing has written before, and nothing shows before its time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import wgpu
from interpose import count_calls, interpose
from readback import fill_texture, read_texture
from wgpu.backends.wgpu_native import _api

import aiostage
from aiostage import KiB, StagingRing
from aiostage import native as compiled
from aiostage.data.copies import mip_extent
from aiostage.data.formats import texel_block
from aiostage.gpu.device import connect

OpenRing = Callable[..., Awaitable[StagingRing]]
Usage = wgpu.TextureUsage

pytestmark = pytest.mark.blocks_loop("they make shaders, and read back")

SIZE, PLACE, PIECE = (20, 10, 4), (3, 2, 1), (7, 5, 2)  # (width, height, depth)
FORMAT = "r32uint"  # which all usages can have
USAGES = {
    "copied from": Usage.COPY_SRC,
    "sampled": Usage.TEXTURE_BINDING,
    "stored to": Usage.STORAGE_BINDING,
    "copied from, sampled and stored to": Usage.COPY_SRC | Usage.TEXTURE_BINDING | Usage.STORAGE_BINDING,
    "copied from and drawn to": Usage.COPY_SRC | Usage.RENDER_ATTACHMENT,
    "sampled and drawn to": Usage.TEXTURE_BINDING | Usage.RENDER_ATTACHMENT,
}
VISIBLE = Usage.COPY_SRC | Usage.TEXTURE_BINDING


def volume(
    device: wgpu.GPUDevice, usage: int = VISIBLE, size: Any = SIZE, mip_level_count: int = 1, format: str = FORMAT
) -> wgpu.GPUTexture:
    return device.create_texture(
        size=size, dimension="3d", mip_level_count=mip_level_count, format=format, usage=usage | Usage.COPY_DST
    )


def words(seed: int, size: Any = PIECE) -> np.ndarray:
    """Random texels, none of them 0: (depth, rows, columns)."""
    return np.random.default_rng(seed).integers(1, 2**32, size[::-1], np.uint32)


def with_piece(piece: np.ndarray, place: Any = PLACE, content: np.ndarray | None = None) -> np.ndarray:
    """All texels of a level where `piece` lies in `content`, by default zeros."""
    content = np.zeros(SIZE[::-1], np.uint32) if content is None else content.copy()
    window = tuple(slice(start, start + n) for start, n in zip(place[::-1], piece.shape, strict=True))
    content[window] = piece
    return content


SHADER = """
@group(0) @binding(0) var volume: TYPE;
@group(0) @binding(1) var<storage, read_write> texels: array<u32>;

@compute @workgroup_size(1) fn read(@builtin(global_invocation_id) at: vec3u) {
    let size = textureDimensions(volume);
    texels[(at.z * size.y + at.y) * size.x + at.x] = LOAD.x;
}
"""


def shader_reads(encoder: wgpu.GPUCommandEncoder, texture: wgpu.GPUTexture) -> wgpu.GPUBuffer:
    """Record a pass in which a shader reads all of the first level into the buffer returned."""
    device = texture._device
    code = (
        SHADER.replace("TYPE", "texture_3d<u32>").replace("LOAD", "textureLoad(volume, at, 0)")
        if texture.usage & Usage.TEXTURE_BINDING
        else SHADER.replace("TYPE", f"texture_storage_3d<{FORMAT}, read_write>").replace(
            "LOAD", "textureLoad(volume, at)"
        )
    )
    module = device.create_shader_module(code=code)
    pipeline = device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": "read"})
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
    texels = device.create_buffer(size=int(np.prod(texture.size)) * 4, usage=usage)
    resources = [texture.create_view(mip_level_count=1), {"buffer": texels}]
    group = device.create_bind_group(
        layout=pipeline.get_bind_group_layout(0),
        entries=[{"binding": i, "resource": resource} for i, resource in enumerate(resources)],
    )
    compute = encoder.begin_compute_pass()
    compute.set_pipeline(pipeline)
    compute.set_bind_group(0, group)
    compute.dispatch_workgroups(*texture.size)
    compute.end()
    return texels


def texels_in(buffer: wgpu.GPUBuffer, size: Any = SIZE) -> np.ndarray:
    return np.frombuffer(buffer._device.queue.read_buffer(buffer), np.uint32).reshape(size[::-1])


def read(texture: wgpu.GPUTexture) -> np.ndarray:
    """All texels of the first level, by whichever way the usage of the texture allows."""
    if texture.usage & Usage.COPY_SRC:
        return read_texture(texture)[0].copy().view(np.uint32)
    encoder = texture._device.create_command_encoder()
    texels = shader_reads(encoder, texture)
    texture._device.queue.submit([encoder.finish()])
    return texels_in(texels, texture.size)


async def stage(
    ring: StagingRing, destination: Any, data: np.ndarray, encoder: wgpu.GPUCommandEncoder | None = None
) -> None:
    slot = await ring.allocate_texture(data.shape[::-1], FORMAT)
    with slot:
        slot.array()[:] = data
        slot.copy_to_texture(destination, encoder=encoder)


async def by_ring(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    await ring.write_texture(destination, data)


async def by_scratch(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    await ring.write_texture(destination, data, atomic=True)


async def by_batch(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    async with ring.batch() as batch:
        await batch.write_texture(destination, data)


async def by_frame(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    async with ring.frame() as frame:
        await frame.write_texture(destination, data)


async def by_slot(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    await stage(ring, destination, data)
    await ring.submit()


async def by_encoder(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    encoder = ring.device.create_command_encoder()
    await stage(ring, destination, data, encoder)
    await ring.submit([encoder.finish()])


async def by_closing(ring: StagingRing, destination: Any, data: np.ndarray) -> None:
    """What is committed beside an open slot is submitted when the ring is closed."""
    other = StagingRing(ring.device, 1, 64 * KiB)
    await other.open()
    await stage(other, destination, data)
    slot = await other.allocate(16)
    await other.aclose()
    slot.abandon()


WAYS = {
    way.__name__.removeprefix("by_"): way
    for way in (by_ring, by_scratch, by_batch, by_frame, by_slot, by_encoder, by_closing)
}


@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_piece_in_the_midst_of_a_fresh_volume_arrives(
    device: wgpu.GPUDevice, open_ring: OpenRing, way: str, usage: str
) -> None:
    ring, piece = await open_ring(ring_count=2, buffer_size=16 * KiB), words(0)
    texture = volume(device, USAGES[usage])
    await WAYS[way](ring, {"texture": texture, "origin": PLACE}, piece)
    np.testing.assert_array_equal(read(texture), with_piece(piece))


FORMATS = ["r8unorm", "rg8snorm", "rgba8unorm", "r16float", "rgba16uint", "r32sint", "rgba32float", "rgb10a2unorm"]


@pytest.mark.parametrize("format", [*FORMATS, "bc1-rgba-unorm", "bc7-rgba-unorm"])
@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_levels_of_any_format_down_to_one_texel(adapter: wgpu.GPUAdapter, format: str, usage: str) -> None:
    """Pieces one block wide at the far corner of each level, where it is deeper than one slice."""
    features = {"texture-compression-bc", "texture-compression-bc-sliced-3d"} if format.startswith("bc") else set()
    if not features <= set(adapter.features):
        pytest.skip("this wgpu has no compressed 3D textures")
    device, block, pieces = adapter.request_device_sync(required_features=sorted(features)), texel_block(format), {}
    texture = volume(device, USAGES[usage], (12, 20, 32), 6, format)
    async with StagingRing(device, 2, 16 * KiB) as ring:
        for level in range(5):
            extent = mip_extent(texture, level)
            corner = [-(-n // b) * b - b for n, b in zip(extent, (block.width, block.height, 1), strict=True)]
            destination = {"texture": texture, "mip_level": level, "origin": tuple(corner)}
            pieces[level] = np.random.default_rng(level).integers(1, 256, block.nbytes, np.uint8)
            layout, size = {"bytes_per_row": block.nbytes, "rows_per_image": 1}, (block.width, block.height, 1)
            await ring.write_texture(destination, pieces[level], layout, size)
    if not texture.usage & Usage.COPY_SRC:
        return  # that the device takes each format is all that can be told without a shader for each
    for level, content in enumerate(read_texture(texture)):
        expected = np.zeros_like(content)
        if level in pieces:
            expected[-1, -1, -block.nbytes :] = pieces[level]
        np.testing.assert_array_equal(content, expected)


async def test_a_whole_volume_with_mips_through_a_ring_that_is_much_smaller(
    device: wgpu.GPUDevice, open_ring: OpenRing
) -> None:
    ring = await open_ring(ring_count=3, buffer_size=64 * KiB, inline_size=0)
    for _ in range(4):  # which of the pieces departs first is a matter of timing
        texture = volume(device, VISIBLE, (96, 64, 80), 7)
        levels = [words(level, mip_extent(texture, level)) for level in range(7)]
        async with asyncio.TaskGroup() as tasks:
            for level in reversed(range(7)):
                tasks.create_task(ring.write_texture({"texture": texture, "mip_level": level}, levels[level]))
        for content, expected in zip(read_texture(texture), levels, strict=True):
            assert content.tobytes() == expected.tobytes()


async def test_concurrent_bricks_in_random_order_by_every_way_and_several_rings(
    device: wgpu.GPUDevice, open_ring: OpenRing
) -> None:
    rings = [await open_ring(ring_count=3, buffer_size=32 * KiB, inline_size=size) for size in (0, 1 << 20)]
    rng = np.random.default_rng(0)
    for usage in (Usage.COPY_SRC, Usage.TEXTURE_BINDING, Usage.STORAGE_BINDING):
        texture, side = volume(device, usage, (64, 48, 40), 3), 16
        expected = [words(level, mip_extent(texture, level)) for level in range(3)]
        bricks = [
            (level, (x, y, z))
            for level in range(3)
            for z in range(0, 40 >> level, side // 2)
            for y in range(0, 48 >> level, side)
            for x in range(0, 64 >> level, side)
        ]
        rng.shuffle(bricks)  # type: ignore[arg-type]
        async with asyncio.TaskGroup() as tasks:
            for n, (level, (x, y, z)) in enumerate(bricks):
                data = expected[level][z : z + side // 2, y : y + side, x : x + side]
                way = list(WAYS.values())[n % 5]
                destination = {"texture": texture, "mip_level": int(level), "origin": (int(x), int(y), int(z))}
                tasks.create_task(way(rings[n % 2], destination, data))
        np.testing.assert_array_equal(read(texture), expected[0])
        if usage == Usage.COPY_SRC:
            for content, whole in zip(read_texture(texture), expected, strict=True):
                assert content.tobytes() == whole.tobytes()


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_of_overlapping_copies_in_one_submit_the_last_one_stays(
    device: wgpu.GPUDevice, open_ring: OpenRing, order: tuple[int, ...], usage: str
) -> None:
    ring, texture = await open_ring(ring_count=1, buffer_size=32 * KiB), volume(device, USAGES[usage])
    expected = np.zeros(SIZE[::-1], np.uint32)
    for z in order:
        piece, place = words(z), (3, 2, z)
        await stage(ring, {"texture": texture, "origin": place}, piece)
        expected = with_piece(piece, place, expected)
    await ring.submit()
    np.testing.assert_array_equal(read(texture), expected)


async def test_what_was_in_a_volume_stays_around_the_piece(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring = await open_ring(ring_count=1, buffer_size=16 * KiB)
    for usage in USAGES.values():
        texture, piece = volume(device, usage), words(1)
        before = fill_texture(texture, np.random.default_rng(2))[0].view(np.uint32)
        await ring.write_texture({"texture": texture, "origin": PLACE}, piece)
        np.testing.assert_array_equal(read(texture), with_piece(piece, content=before))


# -- a caller's encoder --


@pytest.mark.parametrize("usage", [name for name in USAGES if name not in ("drawn to",)])
async def test_an_encoder_that_is_submitted_later_changes_nothing_until_then(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    texture, first, second = volume(device, USAGES[usage]), words(1), words(2)
    encoder = device.create_command_encoder()
    await stage(ring, {"texture": texture, "origin": PLACE}, first, encoder)
    recorded = encoder.finish()
    np.testing.assert_array_equal(read(texture), np.zeros(SIZE[::-1], np.uint32))
    await ring.write_texture({"texture": texture, "origin": (0, 0, 3)}, second[:1])
    between = with_piece(second[:1], (0, 0, 3))
    np.testing.assert_array_equal(read(texture), between)
    await ring.submit([recorded])
    np.testing.assert_array_equal(read(texture), with_piece(first, content=between))


@pytest.mark.parametrize("usage", USAGES)
@pytest.mark.parametrize("known", [False, True])
async def test_an_encoder_that_is_never_submitted_changes_nothing(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str, known: bool
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    texture, expected = volume(device, USAGES[usage]), np.zeros(SIZE[::-1], np.uint32)
    if known:
        expected = fill_texture(texture, np.random.default_rng(2))[0].view(np.uint32)
    encoder = device.create_command_encoder()
    await stage(ring, {"texture": texture, "origin": PLACE}, words(1), encoder)
    encoder.finish()
    # Nor does it make believe that the level is initialized.
    piece = words(3)
    await ring.write_texture({"texture": texture, "origin": (1, 1, 2)}, piece)
    np.testing.assert_array_equal(read(texture), with_piece(piece, (1, 1, 2), expected))


@pytest.mark.parametrize("usage", ["sampled", "stored to", "copied from, sampled and stored to"])
async def test_a_pass_that_comes_before_the_copy_in_an_encoder_reads_what_was_there(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    texture, first, second = volume(device, USAGES[usage]), words(1), words(2)
    encoder = device.create_command_encoder()
    zeros = shader_reads(encoder, texture)
    await stage(ring, {"texture": texture, "origin": PLACE}, first, encoder)
    one = shader_reads(encoder, texture)
    await stage(ring, {"texture": texture, "origin": (0, 0, 2)}, second, encoder)
    both = shader_reads(encoder, texture)
    await ring.submit([encoder.finish()])
    expected = np.zeros(SIZE[::-1], np.uint32)
    np.testing.assert_array_equal(texels_in(zeros), expected)
    expected = with_piece(first)
    np.testing.assert_array_equal(texels_in(one), expected)
    expected = with_piece(second, (0, 0, 2), expected)
    np.testing.assert_array_equal(texels_in(both), expected)
    np.testing.assert_array_equal(read(texture), expected)


async def test_two_encoders_that_are_submitted_in_the_other_order(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    for usage in USAGES.values():
        texture, pieces, recorded = volume(device, usage), [words(1), words(2)], []
        for piece, z in zip(pieces, (1, 2), strict=True):
            encoder = device.create_command_encoder()
            await stage(ring, {"texture": texture, "origin": (3, 2, z)}, piece, encoder)
            recorded.append(encoder.finish())
        await ring.submit(reversed(recorded))
        expected = with_piece(pieces[0], (3, 2, 1), with_piece(pieces[1], (3, 2, 2)))
        np.testing.assert_array_equal(read(texture), expected)


@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_an_encoder_with_an_open_pass_spoils_nothing_but_itself(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str
) -> None:
    ring, texture = await open_ring(ring_count=2, buffer_size=16 * KiB), volume(device, USAGES[usage])
    encoder = device.create_command_encoder()
    compute = encoder.begin_compute_pass()
    with contextlib.suppress(aiostage.InvalidCopy):  # now, or by `finish`, which is the caller's
        await stage(ring, {"texture": texture, "origin": PLACE}, words(1), encoder)
    compute.end()
    with pytest.raises(wgpu.GPUValidationError):
        encoder.finish()
    piece = words(2)
    await ring.write_texture({"texture": texture, "origin": PLACE}, piece)
    np.testing.assert_array_equal(read(texture), with_piece(piece))


# -- what can go wrong beside it --


@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_a_destroyed_volume_spoils_only_its_own_copies(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    doomed, texture, piece = volume(device, USAGES[usage]), volume(device, USAGES[usage]), words(1)
    await stage(ring, {"texture": doomed, "origin": PLACE}, piece)
    await stage(ring, {"texture": texture, "origin": PLACE}, piece)
    doomed.destroy()
    with pytest.raises(aiostage.InvalidCopy, match="destroyed"):
        await ring.submit()
    np.testing.assert_array_equal(read(texture), with_piece(piece))


@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_a_volume_that_cannot_be_read_spoils_only_its_own_copies(
    device: wgpu.GPUDevice, open_ring: OpenRing, usage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, texture, piece = volume(device, USAGES[usage]), volume(device, USAGES[usage]), words(1)
    native, spoils = connect(device), [True]
    monkeypatch.setattr(native, "functions", native.functions)

    def spoil(copy: Any) -> Any:
        def call(encoder: int, source: Any, target: Any, extent: int) -> None:
            if spoils and target[0].texture == native.handle(bad):
                compiled.note_error("none left")
            else:
                copy(encoder, source, target, extent)

        return call

    interpose(native, "wgpuCommandEncoderCopyBufferToTexture", spoil)
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)
    await stage(ring, {"texture": bad, "origin": PLACE}, piece)
    await stage(ring, {"texture": texture, "origin": PLACE}, piece)
    with pytest.raises(aiostage.InvalidCopy, match="none left"):
        await ring.submit()
    np.testing.assert_array_equal(read(texture), with_piece(piece))
    spoils.clear()  # and it is not taken for written
    await ring.write_texture({"texture": bad, "origin": PLACE}, piece)
    np.testing.assert_array_equal(read(bad), with_piece(piece))


@pytest.mark.parametrize("usage", ["copied from", "sampled"])
async def test_a_lost_device_is_told_of(own_device: wgpu.GPUDevice, usage: str) -> None:
    texture = volume(own_device, USAGES[usage])
    async with StagingRing(own_device, 2, 16 * KiB) as ring:
        own_device.destroy()
        with pytest.raises(aiostage.DeviceLost):
            await ring.write_texture({"texture": texture, "origin": PLACE}, words(1))


# -- what it costs --


async def test_it_costs_one_write_for_each_level_that_is_not_known_to_be_initialized(
    device: wgpu.GPUDevice, open_ring: OpenRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = connect(device)
    monkeypatch.setattr(native, "functions", native.functions)
    calls = count_calls(native, "wgpuQueueWriteTexture")
    ring = await open_ring(ring_count=2, buffer_size=16 * KiB)

    async def write(texture: wgpu.GPUTexture, *pieces: tuple[int, int]) -> int:
        calls.clear()
        async with ring.batch() as batch:
            for level, z in pieces:
                destination = {"texture": texture, "mip_level": level, "origin": (0, 0, z)}
                await batch.write_texture(destination, words(0, (2, 2, 1)))
        return calls["wgpuQueueWriteTexture"]

    layers = device.create_texture(size=(20, 10, 4), format=FORMAT, usage=VISIBLE | Usage.COPY_DST)
    assert await write(layers, (0, 1), (0, 2), (0, 0)) == 0

    texture = volume(device, Usage.COPY_SRC, mip_level_count=2)
    assert await write(texture, (0, 1), (0, 2), (1, 1)) == 2
    assert await write(texture, (0, 3), (0, 2), (1, 1)) == 0

    texture = volume(device, Usage.TEXTURE_BINDING, mip_level_count=2)
    assert await write(texture, (0, 1), (0, 2), (1, 1)) == 2
    assert await write(texture, (0, 3), (0, 2), (1, 1)) == 0

    texture = volume(device, mip_level_count=2)
    assert await write(texture, (0, 0), (0, 1), (1, 1)) == 1  # a first copy to z = 0 needs no other
    assert await write(texture, (0, 1)) == 0

    texture = volume(device, Usage.RENDER_ATTACHMENT)  # of which a pass may have discarded the level
    assert await write(texture, (0, 1)) == await write(texture, (0, 1)) == 1


async def test_in_a_callers_encoder_it_costs_one_command_for_each_such_level(
    device: wgpu.GPUDevice, open_ring: OpenRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, volumes, calls = await open_ring(ring_count=2, buffer_size=16 * KiB), connect(device)._volumes, Counter[str]()

    class Counted:
        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(lib, name)

    lib = volumes._lib
    monkeypatch.setattr(volumes, "_lib", Counted())

    async def record(texture: wgpu.GPUTexture, level: int, z: int, submits: bool = True) -> tuple[int, int]:
        encoder = device.create_command_encoder()
        calls.clear()
        await stage(ring, {"texture": texture, "mip_level": level, "origin": (0, 0, z)}, words(0, (2, 2, 1)), encoder)
        if submits:
            await ring.submit([encoder.finish()])
        return calls["wgpuCommandEncoderCopyTextureToBuffer"], calls["wgpuCommandEncoderBeginComputePass"]

    layers = device.create_texture(size=(20, 10, 4), format=FORMAT, usage=VISIBLE | Usage.COPY_DST)
    assert await record(layers, 0, 1) == (0, 0)

    for usage, first in ((Usage.COPY_SRC, (1, 0)), (Usage.TEXTURE_BINDING, (0, 1)), (VISIBLE, (1, 0))):
        texture = volume(device, usage, mip_level_count=2)
        assert await record(texture, 0, 1, submits=False) == first
        assert await record(texture, 0, 2) == first  # nothing is known of what was recorded and not submitted
        assert await record(texture, 1, 0) == (0, 0)  # a first copy to z = 0 needs no other

    texture = volume(device, Usage.RENDER_ATTACHMENT)  # nobody can see what is in it
    assert await record(texture, 0, 1) == (0, 0)


async def test_opening_a_ring_has_made_in_a_thread_the_pipeline_that_sampled_volumes_need(
    own_device: wgpu.GPUDevice,
) -> None:
    """A driver's first pipeline was seen to take 0.4 s."""
    make, makers = own_device.create_compute_pipeline, list[threading.Thread]()

    def noted(**description: Any) -> Any:
        makers.append(threading.current_thread())
        return make(**description)

    with mock.patch.object(own_device, "create_compute_pipeline", noted):
        async with StagingRing(own_device, 2, 16 * KiB) as ring:
            texture = volume(own_device, Usage.TEXTURE_BINDING, format="rgba8unorm")
            await ring.write_texture({"texture": texture, "origin": PLACE}, words(1).view(np.uint8), {}, PIECE)
    assert len(makers) == 1
    assert makers[0] is not threading.current_thread()


def _in_slice(z: int, fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"depthSlice": z} if "depthSlice" in fields else fields


async def test_a_level_that_a_render_pass_has_discarded_is_uninitialized_again(
    device: wgpu.GPUDevice, open_ring: OpenRing
) -> None:
    ring, piece = await open_ring(ring_count=2, buffer_size=16 * KiB), words(1)
    texture = volume(device, Usage.COPY_SRC | Usage.RENDER_ATTACHMENT)
    await ring.write_texture({"texture": texture}, words(2, SIZE))
    encoder = device.create_command_encoder()
    attachment = {"view": texture.create_view(), "load_op": "clear", "store_op": "discard"}
    new_struct = _api.new_struct  # wgpu-py does not pass on the slice yet
    with mock.patch.object(_api, "new_struct", lambda *args, **fields: new_struct(*args, **_in_slice(1, fields))):
        encoder.begin_render_pass(color_attachments=[attachment]).end()
    await ring.submit([encoder.finish()])
    await ring.write_texture({"texture": texture, "origin": PLACE}, piece)
    z, y, x = (slice(start, start + n) for start, n in zip(PLACE[::-1], piece.shape, strict=True))
    np.testing.assert_array_equal(read(texture)[z, y, x], piece)
