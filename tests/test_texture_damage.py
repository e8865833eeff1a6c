"""Damaged texture files, and files that ask for much, end in the library's errors and leave nothing behind."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
import zstandard
from containers import arrive, dds, dds_by_fields, ktx2, same, texels
from simulated import SimulatedGpu, SimulatedTexture
from test_textures import mutated, unpacked

import aiostage
from aiostage import InvalidTexture, OutOfMemory, UnsupportedTexture, textures
from aiostage.data.formats import texel_block

REFUSALS = (InvalidTexture, UnsupportedTexture)
SIZE = (16, 8)  # of rgba8unorm: 512 bytes
LEVELS = texels(4, SIZE, 3)
CONTENT = [level.tobytes() for level in LEVELS]


async def refused(ring: Any, file: bytes, message: str = "") -> None:
    """A file whose damage shows when its levels are read, or before."""
    with pytest.raises(InvalidTexture, match=message):
        await textures.load(ring, file)


# -- the level index --


@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_a_level_that_breaks_the_alignment_rule_is_refused(shift: int) -> None:
    for number, size, nbytes in ((37, (8, 8), 256), (145, (8, 8), 64), (23, (8, 8), 192), (106, (4, 4), 192)):
        alignment = {37: 4, 145: 16, 23: 12, 106: 12}[number]
        right = ktx2(number, size, [bytes(nbytes)], alignment=alignment)
        textures.inspect(right)
        (offset,) = struct.unpack_from("<Q", right, 80)
        file = bytearray(right[:offset] + bytes(shift) + right[offset:])
        struct.pack_into("<Q", file, 80, offset + shift)
        with pytest.raises(InvalidTexture, match=f"no multiple of {alignment}"):
            textures.inspect(file)


@pytest.mark.parametrize("scheme", [0, 2, 3])
def test_levels_that_share_bytes_are_refused(scheme: int) -> None:
    """With each other, or with what stands before them."""
    right = ktx2(37, SIZE, CONTENT, scheme=scheme)
    offsets = [level.offset for level in textures.inspect(right).levels]
    for number, offset in ((2, offsets[1]), (1, offsets[2]), (2, 80 + 3 * 24)):
        file = bytearray(right)
        struct.pack_into("<Q", file, 80 + 24 * number, offset)
        with pytest.raises(InvalidTexture, match="share its bytes"):
            textures.inspect(file)


def test_a_level_of_the_wrong_length_is_told_by_the_name_of_the_format_in_the_file() -> None:
    with pytest.raises(InvalidTexture, match="47 bytes; 4 × 4 × 1 of VK_FORMAT_R8G8B8_UNORM have 48"):
        textures.inspect(ktx2(23, (4, 4), [bytes(47)], alignment=12))


@pytest.mark.parametrize("scheme", [2, 3])
async def test_levels_that_are_packed_may_be_anywhere(open_ring: Any, scheme: int) -> None:
    file = ktx2(37, SIZE, CONTENT, scheme=scheme, alignment=1)
    assert any(level.offset % 4 for level in textures.inspect(file).levels)
    _, found = await arrive(await open_ring(), file)
    assert same(found, LEVELS)


@pytest.mark.parametrize("declared", [0, 1, 511, 513, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("scheme", [0, 2, 3])
def test_a_wrong_uncompressed_length_is_refused(declared: int, scheme: int) -> None:
    file = bytearray(ktx2(37, SIZE, CONTENT, scheme=scheme))
    struct.pack_into("<Q", file, 80 + 16, declared)
    with pytest.raises(InvalidTexture, match=rf"{declared} unpacked bytes|{declared} bytes"):
        textures.inspect(file)


# -- zstd and zlib --


def checksum(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)[-4:]


def block(content: bytes, is_last: bool, *, repeats: int = 0) -> bytes:
    """RFC 8878, 3.1.1.2: raw, or one byte that is repeated."""
    kind, size = (1, repeats) if repeats else (0, len(content))
    return (is_last | kind << 1 | size << 3).to_bytes(3, "little") + content


def frame(
    content: bytes, blocks: bytes, *, size_bytes: int, window: int | None = 0, has_checksum: bool = False
) -> bytes:
    """RFC 8878, 3.1.1: with a content size of so many bytes, and a window descriptor if it is no single segment."""
    is_single = window is None
    flag = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[size_bytes]
    assert is_single == (size_bytes == 1) or size_bytes > 1
    size = len(content) - (256 if size_bytes == 2 else 0)
    head = b"\x28\xb5\x2f\xfd" + bytes([flag << 6 | is_single << 5 | has_checksum << 2])
    head += b"" if window is None else bytes([window])
    head += size.to_bytes(size_bytes, "little") if size_bytes else b""
    return head + blocks + (checksum(content) if has_checksum else b"")


def one_level(content: bytes, packed: bytes, scheme: int = 2) -> bytes:
    return ktx2(9, (len(content), 1), [content], scheme=scheme, packed=[packed])


@pytest.mark.parametrize("has_checksum", [False, True])
@pytest.mark.parametrize(
    ("size_bytes", "window"),  # one byte of content size is what a single segment has in place of none
    [(0, 0), (0, 0x53), (1, None), *((size, window) for size in (2, 4, 8) for window in (None, 0, 0x53))],
)
@pytest.mark.parametrize("blocks", ["raw", "RLE", "raw, RLE and an empty one"])
async def test_every_header_of_a_zstd_frame(
    open_ring: Any, size_bytes: int, window: int | None, has_checksum: bool, blocks: str
) -> None:
    length = 200 if size_bytes == 1 else 900
    half = np.random.default_rng(2).integers(0, 256, length // 2, np.uint8).tobytes()
    if blocks == "raw":
        content = half + half
        packed = block(content, True)
    elif blocks == "RLE":
        content = b"\x5a" * length
        packed = block(b"\x5a", True, repeats=length)
    else:
        content = half + b"\x5a" * (length // 2)
        packed = block(half, False) + block(b"\x5a", False, repeats=length // 2) + block(b"", True)
    made = frame(content, packed, size_bytes=size_bytes, window=window, has_checksum=has_checksum)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(made) == content
    _, found = await arrive(await open_ring(), one_level(content, made))
    assert found[0].tobytes() == content
    ring = await open_ring()
    for cut in (1, 4, len(made) // 2):
        await refused(ring, one_level(content, made[:-cut]), "mip level 0")
    for junk in (b"\0", b"1234", made, struct.pack("<II", 0x184D2A50, 4) + b"skip"):
        await refused(ring, one_level(content, made + junk), f"{len(junk)} bytes follow the zstd frame of mip level 0")


@pytest.mark.blocks_loop("zstandard makes its tables")
@pytest.mark.parametrize(
    "options",
    [{}, {"write_checksum": True}, {"write_content_size": False}, {"level": 22}, {"level": -5}, {"threads": 2}],
    ids=str,
)
async def test_frames_that_zstandard_writes(open_ring: Any, options: dict[str, Any]) -> None:
    compressor = zstandard.ZstdCompressor(**options)
    for length in (1, 200, 256, 257, 5000, 8000):
        content = (b"some content " * 1000)[:length]
        at_once = compressor.compress(content)
        streaming = compressor.compressobj()
        in_parts = streaming.compress(content[:100]) + streaming.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        in_parts += streaming.compress(content[100:]) + streaming.flush()
        for packed in (at_once, in_parts):
            _, found = await arrive(await open_ring(), one_level(content, packed))
            assert found[0].tobytes() == content


async def test_a_checksum_of_zstd_is_checked(open_ring: Any) -> None:
    content = bytes(range(200)) * 2
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(content))
    ring = await open_ring()
    await arrive(ring, one_level(content, packed))
    for lost in (1, 2, 3, 4):
        await refused(ring, one_level(content, packed[:-lost]), "cut off")
    packed[-1] ^= 1
    await refused(ring, one_level(content, packed), "damaged")


@pytest.mark.parametrize("window", [0x89, 0x90, 0xFF], ids=hex)  # 144 MiB, 256 MiB and 3.75 TiB
async def test_a_window_that_is_too_large_is_refused(open_ring: Any, window: int) -> None:
    content = bytes(900)
    file = one_level(content, frame(content, block(content, True), size_bytes=0, window=window))
    await refused(await open_ring(), file, "zstd frame of mip level 0 is damaged")


@pytest.mark.parametrize("window", [0x89, 0xFF], ids=hex)
def test_a_window_that_is_too_large_is_not_allocated(window: int) -> None:
    """Measured without a ring: tracemalloc of Python 3.11 may crash if it stops while threads come and go."""
    content = bytes(900)
    file = one_level(content, frame(content, block(content, True), size_bytes=0, window=window))
    tracemalloc.start()
    with pytest.raises(InvalidTexture):
        unpacked(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


async def test_zlib_streams_are_whole_and_alone(open_ring: Any) -> None:
    content = bytes(range(200)) * 2
    ring = await open_ring()
    for level in range(10):
        packed = zlib.compress(content, level)
        _, found = await arrive(ring, one_level(content, packed, 3))
        assert found[0].tobytes() == content
        for lost in (1, 2, 3, 4, 5):
            await refused(
                ring, one_level(content, packed[:-lost], 3), "zlib stream of mip level 0 is cut off|unpacks to"
            )
        for junk in (b"\0", packed):
            await refused(ring, one_level(content, packed + junk, 3), f"{len(junk)} bytes follow the zlib stream")
        await refused(ring, one_level(content, packed[:-1] + bytes([packed[-1] ^ 1]), 3), "damaged")


@pytest.mark.parametrize("scheme", [2, 3])
@pytest.mark.parametrize("length", [0, 1, 399, 401, 100_000])
async def test_a_level_that_unpacks_to_another_size_is_refused(open_ring: Any, scheme: int, length: int) -> None:
    packer = zstandard.ZstdCompressor().compress if scheme == 2 else zlib.compress
    await refused(await open_ring(), one_level(bytes(400), packer(bytes(length)), scheme), "unpacks to .*it has 400")


# -- much for little --


class AnyGpu(SimulatedGpu):
    """A simulated GPU that is also the device: with every feature, and with a note of what it made."""

    features = frozenset(
        f"texture-compression-{name}" for name in ("bc", "etc2", "astc", "bc-sliced-3d", "astc-sliced-3d")
    ) | {"texture-format16bit-norm"}
    limits = {"max-texture-dimension-2d": 8192, "max-texture-dimension-3d": 2048, "max-texture-array-layers": 256}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made: list[SimulatedTexture] = []

    def create_texture(self, **descriptor: Any) -> SimulatedTexture:
        *_, depth = descriptor["size"]
        made = self.texture(descriptor["format"], descriptor["size"], descriptor["mip_level_count"])
        if descriptor["dimension"] == "3d":
            made.dimension = "3d"
            made.levels = [level[: max(1, depth >> mip)] for mip, level in enumerate(made.levels)]
        self.made.append(made)
        return made


def declares(size: tuple[int, int], depth: int, scheme: int) -> bytes:
    """159 bytes that declare so many texels of 16 bytes."""
    nbytes = size[0] * size[1] * max(1, depth) * 16
    descriptor = struct.pack("<IIHHBBBB16x", 28, 0, 2, 24, 1, 1, 1, 0) + bytes(12)
    header = struct.pack("<9I4I2Q", 109, 4, *size, depth, 0, 1, 1, scheme, 104, 44, 0, 0, 0, 0)
    index = struct.pack("<3Q", 148, 11, nbytes)
    return b"\xabKTX 20\xbb\r\n\x1a\n" + header + index + descriptor + bytes(11)


@pytest.mark.parametrize("scheme", [0, 2, 3])
@pytest.mark.parametrize(("size", "depth", "nbytes"), [((8192, 8192), 0, 1 << 30), ((1024, 1024), 512, 8 << 30)])
async def test_a_small_file_that_declares_a_large_texture_creates_nothing(
    size: tuple[int, int], depth: int, nbytes: int, scheme: int
) -> None:
    file = declares(size, depth, scheme)
    assert len(file) == 159
    gpu = AnyGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 3, 1024) as ring:
        before = ring.stats_nowait()
        with pytest.raises(InvalidTexture, match=str(nbytes)):
            textures.inspect(file)
        with pytest.raises(InvalidTexture, match=str(nbytes)):
            await textures.load(ring, file)
        with pytest.raises(InvalidTexture, match=str(nbytes)):
            async with textures.open(ring, file):
                pass
        assert ring.stats_nowait() == before
    assert gpu.made == []


@pytest.mark.parametrize("scheme", [0, 2, 3])
def test_a_small_file_that_declares_a_large_texture_takes_no_memory(scheme: int) -> None:
    tracemalloc.start()
    for size, depth in (((8192, 8192), 0), ((1024, 1024), 512)):
        with pytest.raises(InvalidTexture):
            textures.inspect(declares(size, depth, scheme))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize("kind", [2, 3])
async def test_what_packs_as_well_as_it_can_is_not_refused_for_that(kind: int) -> None:
    """Zeros: zstd makes 128 KiB of 4 bytes, zlib 1032 bytes of one."""
    side = 2048
    content = bytes(side * side)
    packed = zlib.compress(content, 9)
    if kind == 2:
        count = len(content) >> 17
        blocks = b"".join(block(b"\0", n == count - 1, repeats=1 << 17) for n in range(count))
        packed = frame(content, blocks, size_bytes=8, window=0x68)
    file = ktx2(9, (side, side), [content], scheme=kind, packed=[packed])
    assert len(packed) < len(content) // 1000
    assert unpacked(file) == [content]


@pytest.mark.parametrize("error", [wgpu.GPUOutOfMemoryError, wgpu.GPUValidationError])
async def test_a_device_without_memory_for_the_texture(
    own_device: Any, open_ring: Any, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    """wgpu-native tells of it as the one or as the other."""
    ring = await open_ring(own_device)
    before = ring.stats_nowait()

    def create_texture(*_: Any, **__: Any) -> Any:
        raise error("Not enough memory left.")

    with monkeypatch.context() as patch:
        patch.setattr(type(own_device), "create_texture", create_texture)
        for use in (textures.load, lambda ring, file: textures.open(ring, file).__aenter__()):
            with pytest.raises(OutOfMemory) as raised:
                await use(ring, ktx2(37, SIZE, CONTENT))
            assert isinstance(raised.value, MemoryError)
    assert ring.stats_nowait() == before
    _, found = await arrive(ring, ktx2(37, SIZE, CONTENT))
    assert same(found, LEVELS)


# -- a texture whose content fails --


def damaged(number: int) -> bytes:
    """The zlib stream of this level does not end as it should."""
    packed = [zlib.compress(level) for level in CONTENT]
    packed[number] = packed[number][:-1] + bytes([packed[number][-1] ^ 1])
    return ktx2(37, SIZE, CONTENT, scheme=3, packed=packed)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_load_destroys_a_texture_whose_content_fails(number: int) -> None:
    gpu = AnyGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 3, 1024) as ring:
        with pytest.raises(InvalidTexture, match=f"mip level {number}"):
            await textures.load(ring, damaged(number))
        (made,) = gpu.made
        assert made.destroyed
        whole = await textures.load(ring, ktx2(37, SIZE, CONTENT))
        await whole.fence
        assert [whole.texture.level(n).tobytes() for n in range(3)] == CONTENT
        assert not whole.texture.destroyed
    assert gpu.violations == []


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_open_destroys_a_texture_when_no_level_has_arrived_and_keeps_coarser_ones(number: int) -> None:
    gpu = AnyGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 3, 1024) as ring:
        async with textures.open(ring, damaged(number)) as stream:
            with pytest.raises(InvalidTexture, match=f"mip level {number}"):
                async for _ in stream:
                    pass
            assert stream.base_level == number + 1
            assert stream.texture.destroyed == (number == 2)
            if number < 2:
                await stream.fence
            for level in range(number + 1, 3):
                assert stream.texture.level(level).tobytes() == CONTENT[level]
    assert gpu.violations == []


async def test_coarser_levels_stay_usable_on_a_device(open_ring: Any) -> None:
    usage = wgpu.TextureUsage.TEXTURE_BINDING | wgpu.TextureUsage.COPY_SRC
    async with textures.open(await open_ring(), damaged(0), usage=usage) as stream:
        with pytest.raises(InvalidTexture, match="mip level 0"):
            async for _ in stream:
                pass
        await stream.fence
        assert stream.view() is not None
        size = {"bytes_per_row": 8 * 4, "rows_per_image": 4}
        device = stream.texture._device
        found = device.queue.read_texture({"texture": stream.texture, "mip_level": 1}, size, (8, 4, 1))
        assert bytes(found) == CONTENT[1]


# -- any damage --

RGB = [level.tobytes() for level in texels(3, (9, 7), 4)]
CUBES = [level.tobytes() for level in texels(4, (8, 8), 3, images=6)]
SEEDS: dict[str, list[bytes]] = {
    "KTX2": [
        ktx2(37, SIZE, CONTENT),
        ktx2(23, (9, 7), RGB, alignment=12, keys=b"\x0f\0\0\0KTXswizzle\0rrr1\0"),
        ktx2(145, (13, 9), [level.tobytes() for level in texels(16, (13, 9), 4, block=(4, 4))]),
    ],
    "KTX2, zlib": [
        ktx2(37, SIZE, CONTENT, scheme=3),
        ktx2(23, (9, 7), RGB, scheme=3),
        ktx2(37, (64, 64), [bytes(64 * 64 * 4)], scheme=3),
    ],
    "KTX2, zstd": [
        ktx2(37, SIZE, CONTENT, scheme=2),
        ktx2(37, (64, 64), [bytes(64 * 64 * 4)], scheme=2),
        ktx2(37, (8, 8), CUBES, faces=6, scheme=2),
        one_level(bytes(900), frame(bytes(900), block(b"\0", True, repeats=900), size_bytes=4, has_checksum=True)),
    ],
    "DDS": [
        dds(b"DXT5", (16, 16), [level.tobytes() for level in texels(16, (16, 16), 5, block=(4, 4))]),
        dds_by_fields((9, 7), RGB, format_flags=0x40, fourcc=bytes(4), bits=24, masks=(0xFF0000, 0xFF00, 0xFF, 0)),
        dds_by_fields((8, 8), CUBES, parts=6, caps2=0xFE00, format_flags=0x41, fourcc=bytes(4), bits=32,
                      masks=(0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    ],
    "DDS, DX10": [
        dds_by_fields((8, 8), CUBES, parts=6, dx10=(28, 3, 4, 1, 0)),
        dds_by_fields((8, 8), CUBES, parts=6, caps2=0xFE00, dx10=(28, 3, 0, 1, 0)),
        dds_by_fields(SIZE, CONTENT, dx10=(28, 3, 0, 1, 0)),
        dds_by_fields((6, 5), [level.tobytes() for level in texels(4, (6, 5), 3, depth=5)], depth=5,
                      dx10=(28, 4, 0, 1, 0)),
    ],
}  # fmt: skip


@pytest.mark.blocks_loop("it reads thousands of files")
@pytest.mark.parametrize("container", SEEDS)
async def test_10000_mutations_of_each_container(container: str) -> None:
    """Each is read, some are loaded: nothing but the library's errors comes out, and the ring works on."""
    rng, seeds, started = random.Random(container), SEEDS[container], time.monotonic()
    outcomes, read = {"read": 0, "loaded": 0, "refused": 0}, []
    tracemalloc.start()
    for number in range(10_000):
        file = mutated(rng, seeds[number % len(seeds)])
        try:
            unpacked(file)
            outcomes["read"] += 1
            read.append(file)
        except REFUSALS:
            outcomes["refused"] += 1
            if number % 100 == 0:
                read.append(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    gpu = AnyGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 3, 4096) as ring:
        with anyio.fail_after(60):
            for file in [*rng.sample(read, 200), damaged(0)]:
                gpu.made.clear()
                try:
                    stream = await textures.load(ring, file)
                    outcomes["loaded"] += 1
                    check_what_arrived(textures.inspect(file), stream)
                except REFUSALS:
                    assert all(made.destroyed for made in gpu.made)
        whole = await textures.load(ring, ktx2(37, SIZE, CONTENT))
        await whole.fence
        assert [whole.texture.level(n).tobytes() for n in range(3)] == CONTENT
    assert gpu.violations == []
    assert min(outcomes["read"], outcomes["refused"]) > 500, outcomes
    assert 100 < outcomes["loaded"] <= 200, outcomes
    assert peak < 64 << 20
    assert time.monotonic() - started < 60


def check_what_arrived(info: textures.TextureInfo, stream: textures.TextureStream) -> None:
    assert stream.texture.format == info.format
    assert stream.texture.mip_level_count == len(info.levels)
    block = texel_block(info.format)
    assert stream.texture.size[0] % block.width == stream.texture.size[1] % block.height == 0


def test_the_seeds_are_right() -> None:
    """Or their mutations would all be refused for the same reason."""
    for files in SEEDS.values():
        for file in files:
            assert unpacked(file)


def test_random_bytes_behind_an_identifier() -> None:
    rng: random.Random = random.Random(8)
    started = time.monotonic()
    inspect: Callable[[bytes], Any] = textures.inspect
    for _ in range(3000):
        start = rng.choice(
            [b"\xabKTX 20\xbb\r\n\x1a\n", b"DDS " + struct.pack("<I", 124), b"\xabKTX 11\xbb\r\n\x1a\n", b""]
        )
        with pytest.raises(REFUSALS):
            inspect(start + rng.randbytes(rng.randrange(300)))
    assert time.monotonic() - started < 20
