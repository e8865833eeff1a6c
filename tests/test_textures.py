"""Compressed textures: what a KTX2 or DDS file holds arrives on the GPU, and damage arrives nowhere."""

from __future__ import annotations

import asyncio
import gzip
import random
import struct
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import etcpak
import numpy as np
import pytest
import texture2ddecoder
import wgpu
from containers import dds, ktx2
from misuse_cases import LOOPS
from readback import read_texture
from simulated import SimulatedGpu, SimulatedTexture, turns, until

import aiostage
from aiostage import InvalidTexture, UnsupportedTexture, textures
from aiostage.data.formats import required_feature, texel_block
from aiostage.textures.names import FORMATS
from aiostage.textures.source import Source
from aiostage.textures.unpack import read_level

REFUSALS = (InvalidTexture, UnsupportedTexture)


def chain(format: str, size: tuple[int, int], levels: int, images: int = 1, depth: int = 0) -> list[bytes]:
    """Random bytes for each mip level."""
    rng, block, found = np.random.default_rng(7), texel_block(format), []
    for level in range(levels):
        width, height = (max(1, extent >> level) for extent in size)
        count = max(1, depth >> level) if depth else images
        blocks = count * -(-width // block.width) * -(-height // block.height)
        found.append(rng.integers(0, 256, blocks * block.nbytes, np.uint8).tobytes())
    return found


def unpacked(file: bytes) -> list[bytes]:
    info, source = textures.inspect(file), Source(file)
    return [bytes(read_level(source, info, number)) for number in range(len(info.levels))]


def picture(side: int) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] * (255 / side)
    return np.stack([x, y, 255 - x, np.full_like(x, 255)], -1).astype(np.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read_from_ktx2_byte_for_byte(format: str) -> None:
    block = texel_block(format)
    size = (block.width * 4, block.height * 4)
    levels = chain(format, size, 3)
    file = ktx2(format, size, levels)
    info = textures.inspect(file)
    assert (info.format, info.size, len(info.levels), info.dimension) == (format, (*size, 1), 3, "2d")
    assert unpacked(file) == levels


@pytest.mark.parametrize("scheme", [0, 2, 3])
@pytest.mark.parametrize(
    ("options", "images", "dimension", "depth"),
    [
        ({}, 1, "2d", 1),
        ({"layers": 3}, 3, "2d-array", 3),
        ({"faces": 6}, 6, "cube", 6),
        ({"faces": 6, "layers": 2}, 12, "cube-array", 12),
    ],
)
async def test_ktx2_arrives_on_the_gpu(
    open_ring: Any, scheme: int, options: dict[str, int], images: int, dimension: str, depth: int, tmp_path: Path
) -> None:
    levels = chain("bc7-rgba-unorm", (32, 32), 6, images)
    path = tmp_path / "texture.ktx2"
    path.write_bytes(ktx2("bc7-rgba-unorm", (32, 32), levels, scheme=scheme, **options))
    ring = await open_ring(buffer_size=4096)
    stream = await textures.load(ring, path, usage=wgpu.TextureUsage.TEXTURE_BINDING | wgpu.TextureUsage.COPY_SRC)
    await stream.fence
    assert stream.info.dimension == dimension
    assert stream.texture.size == (32, 32, depth)
    assert [level.tobytes() for level in read_texture(stream.texture)] == levels
    assert stream.view().texture is stream.texture


@pytest.mark.parametrize("cube", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
async def test_dds_arrives_on_the_gpu(open_ring: Any, cube: bool, layers: int) -> None:
    levels = chain("bc5-rg-unorm", (16, 16), 5, layers * (6 if cube else 1))
    file = dds("bc5-rg-unorm", (16, 16), levels, layers=layers, cube=cube)
    stream = await textures.load(await open_ring(buffer_size=4096), file, usage=wgpu.TextureUsage.COPY_SRC)
    await stream.fence
    assert stream.info.dimension == ("cube" if cube else "2d") + ("-array" if layers > 1 else "")
    assert [level.tobytes() for level in read_texture(stream.texture)] == levels


@pytest.mark.parametrize("write", [ktx2, dds])
async def test_a_3d_texture_arrives_on_the_gpu(open_ring: Any, write: Any) -> None:
    levels = chain("rgba8unorm", (8, 8), 4, depth=4)
    file = write("rgba8unorm", (8, 8), levels, depth=4)
    stream = await textures.load(await open_ring(buffer_size=4096), file, usage=wgpu.TextureUsage.COPY_SRC)
    await stream.fence
    assert stream.texture.dimension == "3d"
    assert [level.tobytes() for level in read_texture(stream.texture)] == levels


@pytest.mark.parametrize(
    ("code", "format"),
    [
        (b"DXT1", "bc1-rgba-unorm"),
        (b"DXT3", "bc2-rgba-unorm"),
        (b"DXT5", "bc3-rgba-unorm"),
        (b"ATI1", "bc4-r-unorm"),
        (b"BC4S", "bc4-r-snorm"),
        (b"ATI2", "bc5-rg-unorm"),
        (b"\x71\0\0\0", "rgba16float"),
    ],
)
def test_older_dds_files_are_read_by_their_fourcc(code: bytes, format: str) -> None:
    levels = chain(format, (16, 8), 5)
    file = dds(code, (16, 8), levels)
    assert textures.inspect(file).format == format
    assert unpacked(file) == levels


SHADER = """
@group(0) @binding(0) var source: texture_2d<f32>;
@group(0) @binding(1) var<storage, read_write> result: array<u32>;
@compute @workgroup_size(8, 8) fn main(@builtin(global_invocation_id) at: vec3u) {
    result[at.y * 64 + at.x] = pack4x8unorm(textureLoad(source, at.xy, 0));
}
"""


@pytest.mark.blocks_loop("it encodes, decodes and makes shaders")
@pytest.mark.parametrize(
    ("format", "encode", "decode"),
    [
        ("bc1-rgba-unorm", etcpak.compress_bc1, texture2ddecoder.decode_bc1),
        ("bc3-rgba-unorm", etcpak.compress_bc3, texture2ddecoder.decode_bc3),
        ("bc7-rgba-unorm", etcpak.compress_bc7, texture2ddecoder.decode_bc7),
    ],
)
async def test_a_shader_samples_what_a_decoder_decodes(open_ring: Any, format: str, encode: Any, decode: Any) -> None:
    blocks = encode(picture(64).tobytes(), 64, 64)
    expected = np.frombuffer(decode(blocks, 64, 64), np.uint8).reshape(64, 64, 4)[..., [2, 1, 0, 3]].astype(int)
    ring = await open_ring()
    stream = await textures.load(ring, ktx2(format, (64, 64), [blocks]))
    device = ring.device
    result = device.create_buffer(size=64 * 64 * 4, usage=wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC)
    pipeline = device.create_compute_pipeline(
        layout="auto", compute={"module": device.create_shader_module(code=SHADER), "entry_point": "main"}
    )
    group = device.create_bind_group(
        layout=pipeline.get_bind_group_layout(0),
        entries=[
            {"binding": 0, "resource": stream.view()},
            {"binding": 1, "resource": {"buffer": result, "offset": 0, "size": result.size}},
        ],
    )
    encoder = device.create_command_encoder()
    compute = encoder.begin_compute_pass()
    compute.set_pipeline(pipeline)
    compute.set_bind_group(0, group)
    compute.dispatch_workgroups(8, 8)
    compute.end()
    await ring.submit([encoder.finish()])
    sampled = np.frombuffer(device.queue.read_buffer(result), np.uint8).reshape(64, 64, 4).astype(int)
    assert np.abs(sampled - expected).max() <= 3  # BC1 and BC3 leave their interpolation's rounding open
    assert np.abs(sampled - picture(64)).mean() < 8


async def test_a_texture_is_drawable_after_its_first_and_coarsest_level(open_ring: Any) -> None:
    levels, seen = chain("bc1-rgba-unorm", (32, 32), 6), []
    async with textures.open(await open_ring(), ktx2("bc1-rgba-unorm", (32, 32), levels)) as stream:
        with pytest.raises(anyio.WouldBlock):
            stream.view()
        async for level in stream:
            view = stream.view()
            seen.append((level, stream.base_level, view.texture is stream.texture))
    assert seen == [(level, level, True) for level in (5, 4, 3, 2, 1, 0)]


async def test_other_tasks_wait_for_a_level(open_ring: Any) -> None:
    levels, order = chain("bc1-rgba-unorm", (32, 32), 6), []
    async with textures.open(await open_ring(), ktx2("bc1-rgba-unorm", (32, 32), levels)) as stream:

        async def wait(level: int) -> None:
            await stream.wait_level(level)
            assert stream.base_level <= level
            order.append(level)

        async with anyio.create_task_group() as group:
            for level in (0, 5, 2):
                group.start_soon(wait, level)
            async for _ in stream:
                await anyio.sleep(0.01)
        with pytest.raises(IndexError):
            await stream.wait_level(6)
    assert order == [5, 2, 0]


async def test_who_waits_for_a_level_that_never_comes_is_told_why(open_ring: Any) -> None:
    levels = chain("bc1-rgba-unorm", (32, 32), 6)
    file = bytearray(ktx2("bc1-rgba-unorm", (32, 32), levels, scheme=3))
    file[textures.inspect(file).levels[1].offset + 40] ^= 0xFF
    async with textures.open(await open_ring(), file) as damaged:
        with pytest.raises(InvalidTexture, match="mip level 1"):
            async for _ in damaged:
                pass
        with pytest.raises(InvalidTexture, match="mip level 1"):
            await damaged.wait_level(0)
        await damaged.wait_level(2)  # what had come stays
        assert damaged.view() is not None
    async with textures.open(await open_ring(), ktx2("bc1-rgba-unorm", (32, 32), levels)) as closed:
        pass
    with pytest.raises(anyio.ClosedResourceError):
        await closed.wait_level(0)


async def test_each_who_waits_is_raised_an_exception_of_its_own(open_ring: Any) -> None:
    """One for all would gather the frames of everybody, and keep their data alive."""
    levels = chain("bc1-rgba-unorm", (32, 32), 6)
    file = bytearray(ktx2("bc1-rgba-unorm", (32, 32), levels, scheme=3))
    file[textures.inspect(file).levels[5].offset + 8] ^= 0xFF
    async with textures.open(await open_ring(), file) as damaged:
        with pytest.raises(InvalidTexture) as first:
            await anext(damaged)
        raised = [first.value]
        for use in (damaged.__anext__, lambda: damaged.wait_level(0), lambda: damaged.wait_level(0)):
            with pytest.raises(InvalidTexture) as later:
                await use()
            raised.append(later.value)
    assert len({id(error) for error in raised}) == 4
    assert len({str(error) for error in raised}) == 1


class DrivenGpu(SimulatedGpu):
    """A simulated GPU that is also the device: it takes the formats that the test names."""

    features = frozenset({"texture-compression-etc2", "texture-compression-astc"})
    limits = {"max-texture-dimension-2d": 8192, "max-texture-dimension-3d": 2048, "max-texture-array-layers": 256}  # noqa: RUF012
    created = 0

    def create_texture(self, *, size: Any, format: str, mip_level_count: int, **rest: Any) -> SimulatedTexture:
        self.created += 1
        return self.texture(format, size, mip_level_count)


@pytest.mark.parametrize(
    "format", [f for f in FORMATS if required_feature(f) in DrivenGpu.features and "srgb" not in f]
)
async def test_etc2_and_astc_arrive_block_for_block(format: str) -> None:
    block = texel_block(format)
    size = (block.width * 8, block.height * 4)
    levels = chain(format, size, 3, images=2)
    gpu = DrivenGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 3, 1024) as ring:
        stream = await textures.load(ring, ktx2(format, size, levels, layers=2))
        await stream.fence
        assert [stream.texture.level(n).tobytes() for n in range(3)] == levels
    assert gpu.violations == []


def bc7(**changes: Any) -> bytes:
    return ktx2(
        **({"format": "bc7-rgba-unorm", "size": (16, 16), "levels": chain("bc7-rgba-unorm", (16, 16), 3)} | changes)
    )


REFUSED = {
    "unknown file": (b"\x89PNG\r\n\x1a\n" + bytes(200), InvalidTexture, "neither a KTX2 nor a DDS"),
    "empty file": (b"", InvalidTexture, "neither"),
    "KTX 1": (b"\xabKTX 11\xbb\r\n\x1a\n" + bytes(100), UnsupportedTexture, "ktx2ktx2"),
    "unknown VkFormat": (bc7(format=999), UnsupportedTexture, "VkFormat 999"),
    "Basis Universal": (bc7(format=0, color_model=166), UnsupportedTexture, "UASTC.*pyktx"),
    "BasisLZ": (bc7(format=0, color_model=163, scheme=1), UnsupportedTexture, "ETC1S, BasisLZ.*pyktx"),
    "unknown scheme": (bc7(scheme=9), UnsupportedTexture, "scheme 9"),
    "wrong size": (bc7(levels=[bytes(17)]), InvalidTexture, "17 bytes.*256"),
    "too many levels": (bc7(levels=[bytes(16)] * 9), InvalidTexture, "9 mip levels"),
    "faces": (bc7(faces=5), InvalidTexture, "not 5"),
    "oblong cube": (bc7(size=(16, 8), faces=6), InvalidTexture, "square"),
    "array of volumes": (bc7(depth=4, layers=2), UnsupportedTexture, "array of 3D"),
    "1D": (bc7(size=(16, 0)), UnsupportedTexture, "1D"),
    "without the feature": (
        ktx2("astc-4x4-unorm", (4, 4), [bytes(16)]),
        UnsupportedTexture,
        "texture-compression-astc",
    ),
    "too large": (ktx2("r8unorm", (32768, 1), [bytes(32768)]), UnsupportedTexture, "max-texture-dimension-2d"),
    "cut off": (bc7()[:-1], InvalidTexture, "the file ends at"),
    "partial cube": (
        dds(b"DXT1", (4, 4), [bytes(48)], cube=True).replace(b"\0\xfe\0\0", b"\0\x06\0\0"),
        UnsupportedTexture,
        "six faces",
    ),
    "unknown FourCC": (dds(b"PVR4", (4, 4), [bytes(8)]), UnsupportedTexture, "PVR4"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refusal_says_why_and_leaves_the_ring_untouched(
    case: str, open_ring: Any, own_device: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, error, message = REFUSED[case]
    on = wgpu_device_with_bc(own_device)
    created: list[Any] = []
    monkeypatch.setattr(type(on), "create_texture", lambda *a, **k: created.append(k))
    ring = await open_ring(on)
    before = ring.stats_nowait()
    with pytest.raises(error, match=message):
        await textures.load(ring, file)
    assert ring.stats_nowait() == before
    assert created == []


def wgpu_device_with_bc(device: Any) -> Any:
    return device.adapter.request_device_sync(required_features=["texture-compression-bc"])


async def test_zstd_without_a_package_for_it_is_refused_by_name(
    open_ring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bc7(scheme=2)
    ring = await open_ring()
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    before = ring.stats_nowait()
    with pytest.raises(UnsupportedTexture, match="zstandard"):
        await textures.load(ring, file)
    assert ring.stats_nowait() == before


def test_support_lists_what_the_device_has_features_for(device: Any) -> None:
    found = textures.support(device)
    assert "rgba8unorm" in found
    assert ("bc7-rgba-unorm" in found) == ("texture-compression-bc" in device.features)
    assert ("astc-4x4-unorm" in found) == ("texture-compression-astc" in device.features)


@pytest.mark.parametrize("write", [bc7, lambda: dds("bc7-rgba-unorm", (16, 16), chain("bc7-rgba-unorm", (16, 16), 3))])
def test_a_file_cut_off_anywhere_is_refused(write: Any) -> None:
    file = write()
    for length in range(len(file)):
        with pytest.raises(InvalidTexture):
            textures.inspect(file[:length])


@pytest.mark.parametrize("scheme", [2, 3])
def test_a_bomb_is_not_unpacked(scheme: int) -> None:
    """A level that unpacks to 64 MiB where its extents give 256 bytes."""
    file = bytearray(ktx2("bc7-rgba-unorm", (16, 16), [bytes(64 << 20)], scheme=scheme))
    struct.pack_into("<Q", file, 80 + 16, 256)
    info = textures.inspect(file)
    tracemalloc.start()
    with pytest.raises(InvalidTexture, match="more than 256"):
        read_level(Source(file), info, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_10000_mutated_files_are_read_or_refused() -> None:
    """Flipped, overwritten, cut and stretched bytes, most in the headers: no other exception, no large memory."""
    rng, started = random.Random(20), time.monotonic()
    seeds = [bc7(scheme=scheme) for scheme in (0, 2, 3)]
    seeds += [ktx2("bc1-rgba-unorm", (8, 8), chain("bc1-rgba-unorm", (8, 8), 4, 12), faces=6, layers=2)]
    seeds += [dds("bc7-rgba-unorm", (16, 16), chain("bc7-rgba-unorm", (16, 16), 3, 6), cube=True)]
    seeds += [dds(b"DXT5", (16, 16), chain("bc3-rgba-unorm", (16, 16), 5)), bc7(format=0, color_model=166)]
    outcomes = {"read": 0, "refused": 0}
    tracemalloc.start()
    for number in range(10_000):
        try:
            unpacked(mutated(rng, seeds[number % len(seeds)]))
            outcomes["read"] += 1
        except REFUSALS:
            outcomes["refused"] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(outcomes.values()) > 500, outcomes
    assert peak < 16 << 20
    assert time.monotonic() - started < 60


def mutated(rng: random.Random, seed: bytes) -> bytes:
    file = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(file), rng.choice([160, len(file)])))
        match rng.randrange(5):
            case 0:
                file[at] ^= 1 << rng.randrange(8)
            case 1:
                file[at] = rng.choice([0, 1, 6, 0x7F, 0x80, 0xFF])
            case 2:
                word = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF])
                file[at & ~3 : (at & ~3) + 4] = word.to_bytes(4, "little")
            case 3 if len(file) > 200 and rng.random() < 0.3:
                del file[rng.randrange(100, len(file)) :]
            case _:
                file[at:at] = rng.randbytes(rng.randint(1, 3)) if rng.random() < 0.2 else b""
    return bytes(file)


# -- cancelled while a thread reads --


class HeldReads:
    """The reads of files; after `hold()` each waits in its thread for `may_read`. Notes what must not be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_read, self.waiting = threading.Event(), threading.Event()
        self.may_read.set()
        self.files: list[Any] = []
        self.mistakes: list[str] = []
        reading: Counter[Source] = Counter()
        read, init = Source.read, Source.__init__

        def opened(source: Source, of: Any) -> None:
            init(source, of)
            self.files.append(source._file)

        def held(source: Source, offset: int, nbytes: int, what: str) -> Any:
            reading[source] += 1
            if reading[source] > 1:
                self.mistakes.append(f"{what}: two threads read one file")
            if not self.may_read.is_set():
                self.waiting.set()
                assert self.may_read.wait(30)
            if source._file is not None and source._file.closed:
                self.mistakes.append(f"{what}: the file was closed under its reader")
            reading[source] -= 1
            return read(source, offset, nbytes, what)

        monkeypatch.setattr(Source, "__init__", opened)
        monkeypatch.setattr(Source, "read", held)

    def hold(self) -> None:
        self.waiting.clear()
        self.may_read.clear()


@pytest.fixture
def held_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldReads]:
    held = HeldReads(monkeypatch)
    yield held
    assert held.mistakes == []
    assert held.files
    assert all(file.closed for file in held.files)


class Victim:
    """A task that can be cancelled: by asyncio's own means, which no shield of anyio's holds off, or by trio's."""

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._function = function
        self.over = False

    async def run(self) -> None:
        with anyio.CancelScope() as scope:
            self.cancel: Callable[[], object] = scope.cancel
            try:
                task = asyncio.current_task()
            except RuntimeError:  # on trio
                task = None
            if task is not None:
                self.cancel = task.cancel
            try:
                await self._function()
            except asyncio.CancelledError:
                while task is not None and task.uncancel():
                    pass
            finally:
                self.over = True

    async def cancel_twice(self) -> bool:
        """Whether that ended it."""
        for _ in range(2):
            self.cancel()
            await turns()
        return self.over


def play(loop: str, scene: Callable[[aiostage.StagingRing], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        gpu = DrivenGpu(free_running=True)
        async with aiostage.StagingRing(gpu, 3, 1024) as ring:
            with anyio.fail_after(30):
                await scene(ring)
        assert gpu.violations == []

    anyio.run(main, **LOOPS[loop])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "texture.ktx2"
    path.write_bytes(ktx2("rgba8unorm", (32, 32), FILE_LEVELS))
    return path


FILE_LEVELS = chain("rgba8unorm", (32, 32), 4)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_task_that_is_cancelled_in_its_read_leaves_the_others_right(
    loop: str, held_reads: HeldReads, file: Path
) -> None:
    async def scene(ring: aiostage.StagingRing) -> None:
        async with textures.open(ring, file) as stream, anyio.create_task_group() as group:

            async def iterate() -> None:
                async for _ in stream:
                    pass

            held_reads.hold()
            victim = Victim(iterate)
            group.start_soon(victim.run)
            await until(held_reads.waiting.is_set)
            group.start_soon(iterate)
            ended_early = await victim.cancel_twice()
            held_reads.may_read.set()
        await stream.fence
        assert [stream.texture.level(n).tobytes() for n in range(4)] == FILE_LEVELS
        assert not ended_early

    play(loop, scene)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_stream_that_is_left_while_another_task_reads_closes_its_file_after_that(
    loop: str, held_reads: HeldReads, file: Path
) -> None:
    async def scene(ring: aiostage.StagingRing) -> None:
        stream, entered = textures.open(ring, file), anyio.Event()

        async def leave() -> None:
            async with stream:
                held_reads.hold()
                entered.set()
                await until(held_reads.waiting.is_set)

        async with anyio.create_task_group() as group:
            victim = Victim(leave)
            group.start_soon(victim.run)
            await entered.wait()
            group.start_soon(stream.__anext__)
            await until(lambda: stream._error is not None)
            ended_early = await victim.cancel_twice()
            held_reads.may_read.set()
        await stream.fence
        assert stream.texture.level(3).tobytes() == FILE_LEVELS[3]
        assert not ended_early

    play(loop, scene)


@pytest.mark.parametrize("loop", LOOPS)
def test_entering_that_is_cancelled_leaves_no_file_open(loop: str, held_reads: HeldReads, file: Path) -> None:
    async def scene(ring: aiostage.StagingRing) -> None:
        held_reads.hold()
        victim = Victim(lambda: textures.load(ring, file))
        async with anyio.create_task_group() as group:
            group.start_soon(victim.run)
            await until(held_reads.waiting.is_set)
            ended_early = await victim.cancel_twice()
            held_reads.may_read.set()
        assert victim.over
        assert not ended_early

    play(loop, scene)


# -- straight from the file --


@pytest.mark.parametrize("kind", ["2d", "array", "cube", "3d"])
async def test_large_levels_are_read_by_threads_straight_into_staging_memory(
    open_ring: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    images, depth = {"2d": 1, "array": 3, "cube": 6, "3d": 1}[kind], 4 if kind == "3d" else 0
    levels = chain("rgba8unorm", (200, 200), 3, images, depth)  # rows that are padded in staging memory
    path, read = tmp_path / "texture.dds", []
    layers = images if kind == "array" else 1
    path.write_bytes(dds("rgba8unorm", (200, 200), levels, depth=depth, layers=layers, cube=kind == "cube"))
    read_before = Source.read

    def noted(source: Source, offset: int, nbytes: int, what: str) -> Any:
        read.append(nbytes)
        return read_before(source, offset, nbytes, what)

    monkeypatch.setattr(Source, "read", noted)
    ring = await open_ring(ring_count=2, buffer_size=64 * 1024)
    for source in (path, path.open("rb"), path.open("rb", buffering=0)):
        read.clear()
        stream = await textures.load(ring, source, usage=wgpu.TextureUsage.COPY_SRC)
        await stream.fence
        assert b"".join(level.tobytes() for level in read_texture(stream.texture)) == b"".join(levels)
        assert max(read) < 64 * 1024
        if not isinstance(source, Path):
            source.close()


async def test_a_file_that_is_cut_off_while_it_streams_is_damaged(open_ring: Any, tmp_path: Path) -> None:
    path = tmp_path / "texture.ktx2"
    path.write_bytes(ktx2("rgba8unorm", (256, 256), chain("rgba8unorm", (256, 256), 2)))
    ring = await open_ring(buffer_size=64 * 1024)
    async with textures.open(
        ring, path, usage=wgpu.TextureUsage.COPY_SRC | wgpu.TextureUsage.TEXTURE_BINDING
    ) as stream:
        assert await anext(stream) == 1
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 1000)
        with pytest.raises(InvalidTexture, match="cut off"):
            await anext(stream)
        assert stream.view() is not None
    await ring.write_buffer(ring.device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST), 0, b"1234")


async def test_a_file_that_unpacks_another_is_read_through_it(open_ring: Any, tmp_path: Path) -> None:
    levels = chain("rgba8unorm", (256, 256), 1)
    path = tmp_path / "texture.ktx2.gz"
    path.write_bytes(gzip.compress(ktx2("rgba8unorm", (256, 256), levels)))
    with gzip.open(path) as file:
        stream = await textures.load(await open_ring(), file, usage=wgpu.TextureUsage.COPY_SRC)
    await stream.fence
    assert read_texture(stream.texture)[0].tobytes() == levels[0]
