"""Every kind of KTX2 and DDS file that writers make is read for what it means, or refused by name.

Numbers of formats, bit fields and sizes are written down here after the specifications, not taken from the library.
"""

from __future__ import annotations

import array
import gc
import io
import mmap
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import anyio
import etcpak
import numpy as np
import pytest
import texture2ddecoder
from containers import arrive, dds, dds_by_fields, key_value, ktx2, same, texels
from PIL import Image
from simulated import SimulatedGpu
from test_textures import DrivenGpu

from aiostage import InvalidTexture, UnsupportedTexture, textures

RGBA8 = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
BGRA8 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
CUBE, VOLUME, DEPTH = 0xFE00, 0x200000, 0x1007 | 0x800000
NAMED = {"rgba8unorm": 28, "bc1-rgba-unorm": 71}  # of DXGI_FORMAT


def rgba8(size: tuple[int, int], levels: list[np.ndarray], **fields: Any) -> bytes:
    """A legacy DDS file."""
    options = {"format_flags": 0x41, "fourcc": bytes(4), "bits": 32, "masks": RGBA8} | fields
    return dds_by_fields(size, [level.tobytes() for level in levels], **options)


def dx10(size: tuple[int, int], levels: list[np.ndarray], *, layers: int = 1, misc: int = 0, **fields: Any) -> bytes:
    options: dict[str, Any] = {"dx10": (28, 3, misc, layers, 0)} | fields
    return dds_by_fields(size, [level.tobytes() for level in levels], **options)


# -- volumes --


@pytest.mark.parametrize(
    "fields",
    [{"flags": DEPTH}, {"caps2": VOLUME}, {"flags": DEPTH, "caps2": VOLUME}],
    ids=["DDSD_DEPTH", "DDSCAPS2_VOLUME", "both"],
)
@pytest.mark.parametrize(("size", "depth", "count"), [((8, 8), 4, 4), ((5, 3), 7, 3), ((16, 4), 2, 5)])
async def test_an_older_volume_is_one_by_either_flag(
    open_ring: Any, fields: dict[str, int], size: tuple[int, int], depth: int, count: int
) -> None:
    levels = texels(4, size, count, depth=depth)
    assert [len(level) for level in levels[:2]] == [depth, max(1, depth // 2)]
    file = rgba8(size, levels, depth=depth, **fields)
    stream, found = await arrive(await open_ring(buffer_size=1024), file)
    assert (stream.info.dimension, stream.info.size) == ("3d", (*size, depth))
    assert same(found, levels)


async def test_a_volume_with_the_newer_header(open_ring: Any) -> None:
    levels = texels(4, (6, 5), 3, depth=5)
    for dimension, fields in ((4, {}), (0, {"caps2": VOLUME}), (0, {"flags": DEPTH})):
        file = dx10((6, 5), levels, depth=5, dx10=(28, dimension, 0, 1, 0), **fields)
        stream, found = await arrive(await open_ring(buffer_size=1024), file)
        assert stream.info.dimension == "3d"
        assert same(found, levels)
        assert any("resource dimension is 0" in warning for warning in stream.info.warnings) == (dimension == 0)


# -- cubes --


@pytest.mark.parametrize("cubes", [1, 2])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_cube_that_only_the_older_header_tells_of(open_ring: Any, cubes: int, count: int) -> None:
    levels = texels(4, (4, 4), count, images=6 * cubes)
    file = dx10((4, 4), levels, parts=6 * cubes, layers=cubes, caps2=CUBE)
    stream, found = await arrive(await open_ring(), file)
    assert stream.info.dimension == ("cube" if cubes == 1 else "cube-array")
    assert stream.info.size == (4, 4, 6 * cubes)
    assert [w for w in stream.info.warnings if "cube map" in w]
    assert same(found, levels)


@pytest.mark.parametrize("layers", [1, 2])
async def test_flat_content_that_the_older_header_calls_a_cube_is_flat(open_ring: Any, layers: int) -> None:
    levels = texels(4, (4, 4), 2, images=layers)
    file = dx10((4, 4), levels, parts=layers, layers=layers, caps2=CUBE)
    stream, found = await arrive(await open_ring(), file)
    assert stream.info.dimension == ("2d" if layers == 1 else "2d-array")
    assert [w for w in stream.info.warnings if "cube map" in w]
    assert same(found, levels)


async def test_a_cube_that_only_the_older_header_tells_of_with_too_many_levels(open_ring: Any) -> None:
    levels = texels(4, (4, 4), 3, images=6)
    for mips in (4, 0xFFFFFFFF):
        stream, found = await arrive(await open_ring(), dx10((4, 4), levels, parts=6, caps2=CUBE, mips=mips))
        assert stream.info.dimension == "cube"
        assert len(stream.info.warnings) == 2
        assert same(found, levels)


@pytest.mark.parametrize("nbytes", [*range(64), 65, 128, 192, 320, 383, 385, 384 + 64, 768])
@pytest.mark.parametrize("mips", [1, 0xFFFFFFFF])
def test_content_that_is_neither_flat_nor_a_cube_is_refused(nbytes: int, mips: int) -> None:
    with pytest.raises(InvalidTexture):
        textures.inspect(dx10((4, 4), [np.zeros(nbytes, np.uint8)], caps2=CUBE, mips=mips))


def test_an_oblong_cube_is_refused() -> None:
    for size in ((8, 4), (0, 4)):
        levels = [np.zeros(6 * 8 * 4 * 4, np.uint8)]
        with pytest.raises(InvalidTexture):
            textures.inspect(dx10(size, levels, caps2=CUBE))
        with pytest.raises(InvalidTexture):
            textures.inspect(dx10(size, levels, misc=4))


# -- nothing is lost --


@pytest.mark.parametrize("left", [1, 7, 16, 4096])
def test_content_that_is_left_over_is_refused_with_its_size(left: int) -> None:
    levels = texels(4, (8, 8), 4)
    for file in (
        rgba8((8, 8), levels),
        dx10((8, 8), levels),
        rgba8((8, 8), texels(4, (8, 8), 2, depth=3), flags=DEPTH, depth=3),
        rgba8((8, 8), texels(4, (8, 8), 2, images=6), parts=6, caps2=CUBE),
        ktx2(37, (8, 8), [level.tobytes() for level in levels]),
    ):
        textures.inspect(file)
        with pytest.raises(InvalidTexture, match=rf"\b{left} bytes"):
            textures.inspect(file + bytes(left))


def test_a_dds_file_has_the_length_of_its_levels_or_is_refused() -> None:
    """Random headers and contents that are close to what these say."""
    rng = random.Random(3)
    refused = 0
    for _ in range(1000):
        size, layers = (rng.randint(1, 9), rng.randint(1, 9)), rng.randint(1, 3)
        most = max(size).bit_length()
        levels = rng.randint(1, most)
        name, block, nbytes = rng.choice([("rgba8unorm", 1, 4), ("bc1-rgba-unorm", 4, 8)])
        right = layers * sum(
            -(-max(1, size[0] >> n) // block) * -(-max(1, size[1] >> n) // block) * nbytes for n in range(levels)
        )
        length = max(0, right + rng.choice([0, 0, -1, 1, -nbytes, nbytes, right, rng.randint(-right, right)]))
        file = dds_by_fields(size, [bytes(length)], mips=levels, dx10=(NAMED[name], 3, 0, layers, 0))
        if length == right:
            assert sum(level.nbytes for level in textures.inspect(file).levels) == right
        else:
            refused += 1
            with pytest.raises(InvalidTexture):
                textures.inspect(file)
    assert refused > 300


def test_bytes_between_the_parts_of_a_ktx2_file_are_told_of() -> None:
    """As there are if its header counts fewer levels than it has."""
    levels = [level.tobytes() for level in texels(4, (8, 8), 4)]
    assert textures.inspect(ktx2(37, (8, 8), levels)).warnings == ()
    info = textures.inspect(ktx2(37, (8, 8), levels, level_count=3))
    assert len(info.levels) == 3
    assert len(info.warnings) > 0
    assert all("no part of the file has its bytes" in warning for warning in info.warnings)


# -- the content of BC1_RGB, and Vulkan's packed names --


@pytest.mark.parametrize(("number", "name", "format"), [(131, "UNORM", "bc1-rgba-unorm"), (132, "SRGB", None)])
async def test_bc1_without_alpha_is_opaque_and_warns(open_ring: Any, number: int, name: str, format: str) -> None:
    levels = texels(8, (8, 8), 4, block=(4, 4))
    stream, found = await arrive(await open_ring(), ktx2(number, (8, 8), [level.tobytes() for level in levels]))
    assert stream.info.format == (format or "bc1-rgba-unorm-srgb")
    assert stream.info.file_format == f"VK_FORMAT_BC1_RGB_{name}_BLOCK"
    assert stream.info.alpha == "opaque"
    assert any("alpha" in warning for warning in stream.info.warnings)
    assert same(found, levels)
    with_alpha = textures.inspect(ktx2(number + 2, (8, 8), [level.tobytes() for level in levels]))
    assert (with_alpha.alpha, with_alpha.warnings) == ("straight", ())


async def test_alpha_alone_is_red_with_a_swizzle(open_ring: Any) -> None:
    levels = texels(1, (7, 5), 3)
    content = [level.tobytes() for level in levels]
    for file in (ktx2(1000470001, (7, 5), content), dds_by_fields((7, 5), content, dx10=(65, 3, 0, 1, 0))):
        stream, found = await arrive(await open_ring(), file)
        assert (stream.info.format, stream.info.swizzle, stream.info.expanded_from) == ("r8unorm", "000r", None)
        assert same(found, levels)


@pytest.mark.parametrize(
    ("number", "format"),
    [(51, "rgba8unorm"), (52, "rgba8snorm"), (55, "rgba8uint"), (56, "rgba8sint"), (57, "rgba8unorm-srgb")],
)
async def test_a8b8g8r8_in_32_bits_is_rgba8(open_ring: Any, number: int, format: str) -> None:
    levels = texels(4, (7, 5), 3)
    stream, found = await arrive(await open_ring(), ktx2(number, (7, 5), [level.tobytes() for level in levels]))
    assert (stream.info.format, stream.info.expanded_from) == (format, None)
    assert stream.info.file_format.startswith("VK_FORMAT_A8B8G8R8_")
    assert same(found, levels)


# -- fields that writers get wrong --

FLAWS = {
    "array size": ({"dx10": (28, 3, 0, 0, 0)}, "array size is 0"),
    "resource dimension": ({"dx10": (28, 0, 0, 1, 0)}, "resource dimension is 0"),
    "pixel format": ({"format_size": 24, "dx10": (28, 3, 0, 1, 0)}, "24 bytes"),
    "one level too many": ({"mips": 5, "dx10": (28, 3, 0, 1, 0)}, "5 mip levels"),
    "levels that cannot be": ({"mips": 0xFFFFFFFF, "dx10": (28, 3, 0, 1, 0)}, "4294967295 mip levels"),
}


@pytest.mark.parametrize("flaw", FLAWS)
async def test_a_flaw_is_read_over_and_named(open_ring: Any, flaw: str) -> None:
    fields, warning = FLAWS[flaw]
    levels = texels(4, (8, 8), 4)
    stream, found = await arrive(await open_ring(), dx10((8, 8), levels, **fields))
    assert (stream.info.dimension, stream.info.size) == ("2d", (8, 8, 1))
    assert len(stream.info.warnings) == 1
    assert warning in stream.info.warnings[0]
    assert same(found, levels)
    assert textures.inspect(dx10((8, 8), levels)).warnings == ()


@pytest.mark.parametrize("mips", [5, 20, 0xFFFFFFFF])
@pytest.mark.parametrize("legacy", [False, True])
async def test_with_too_many_levels_declared_the_content_tells_how_many_there_are(
    open_ring: Any, mips: int, legacy: bool
) -> None:
    write: Any = rgba8 if legacy else dx10
    for count in (1, 4):
        levels = texels(4, (8, 8), count)
        stream, found = await arrive(await open_ring(), write((8, 8), levels, mips=mips))
        assert f"{mips} mip levels are declared; there is content for {count}" in stream.info.warnings
        assert same(found, levels)
    for count in (2, 3):  # neither all nor one
        with pytest.raises(InvalidTexture, match=f"{mips} mip levels"):
            textures.inspect(write((8, 8), texels(4, (8, 8), count), mips=mips))


async def test_all_flaws_at_once(open_ring: Any) -> None:
    levels = texels(4, (8, 8), 4)
    file = dx10((8, 8), levels, format_size=24, mips=77, dx10=(28, 0, 0, 0, 0))
    stream, found = await arrive(await open_ring(), file)
    assert len(stream.info.warnings) == 4
    assert same(found, levels)


def test_a_cube_without_a_resource_dimension_is_one() -> None:
    levels = texels(4, (4, 4), 1, images=6)
    info = textures.inspect(dx10((4, 4), levels, parts=6, dx10=(28, 0, 4, 1, 0)))
    assert info.dimension == "cube"
    assert len(info.warnings) == 1


# -- older formats that WebGPU has --

TWINS: dict[str, tuple[dict[str, Any], int, str, str | None]] = {
    # (fields, bytes of a texel, format, swizzle)
    "A8L8": ({"format_flags": 0x20001, "bits": 16, "masks": (0xFF, 0, 0, 0xFF00)}, 2, "rg8unorm", "rrrg"),
    "A8L8 with three masks": (
        {"format_flags": 0x20001, "bits": 16, "masks": (0xFF, 0xFF, 0xFF, 0xFF00)}, 2, "rg8unorm", "rrrg"),
    "A8L8 of Pillow": (
        {"format_flags": 0x20001, "bits": 16, "masks": (0xFF, 0xFF, 0xFF, 0xFF000000)}, 2, "rg8unorm", "rrrg"),
    "L16": ({"format_flags": 0x20000, "bits": 16, "masks": (0xFFFF, 0, 0, 0)}, 2, "r16unorm", "rrr1"),
    "A8": ({"format_flags": 0x2, "bits": 8, "masks": (0, 0, 0, 0xFF)}, 1, "r8unorm", "000r"),
    "V8U8": ({"format_flags": 0x80000, "bits": 16, "masks": (0xFF, 0xFF00, 0, 0)}, 2, "rg8snorm", None),
    "Q8W8V8U8": ({"format_flags": 0x80000, "bits": 32, "masks": RGBA8}, 4, "rgba8snorm", None),
    "V16U16": ({"format_flags": 0x80000, "bits": 32, "masks": (0xFFFF, 0xFFFF0000, 0, 0)}, 4, "rg16snorm", None),
    "A8B8G8R8": ({"format_flags": 0x41, "bits": 32, "masks": RGBA8}, 4, "rgba8unorm", None),
    "A8R8G8B8": ({"format_flags": 0x41, "bits": 32, "masks": BGRA8}, 4, "bgra8unorm", None),
    "G16R16": ({"format_flags": 0x40, "bits": 32, "masks": (0xFFFF, 0xFFFF0000, 0, 0)}, 4, "rg16unorm", None),
    "A2B10G10R10": (
        {"format_flags": 0x41, "bits": 32, "masks": (0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000)}, 4, "rgb10a2unorm", None),
    "R16F": ({"fourcc": struct.pack("<I", 111)}, 2, "r16float", None),
    "A32B32G32R32F": ({"fourcc": struct.pack("<I", 116)}, 16, "rgba32float", None),
    "A16B16G16R16": ({"fourcc": struct.pack("<I", 36)}, 8, "rgba16unorm", None),
    "Q16W16V16U16": ({"fourcc": struct.pack("<I", 110)}, 8, "rgba16snorm", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", TWINS)
async def test_an_older_format_arrives_as_its_twin(open_ring: Any, kind: str) -> None:
    fields, nbytes, format, swizzle = TWINS[kind]
    levels = texels(nbytes, (9, 6), 4)
    file = dds_by_fields((9, 6), [level.tobytes() for level in levels], **{"fourcc": bytes(4)} | fields)
    stream, found = await arrive(await open_ring(), file)
    assert (stream.info.format, stream.info.swizzle, stream.info.expanded_from) == (format, swizzle, None)
    assert same(found, levels)


def test_ten_bits_are_taken_by_their_masks_and_warned_of() -> None:
    for masks in ((0x3FF, 0xFFC00, 0x3FF00000, 0xC0000000), (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)):
        info = textures.inspect(rgba8((2, 2), texels(4, (2, 2)), masks=masks))
        assert any("red and blue" in warning for warning in info.warnings)


@pytest.mark.parametrize(
    ("code", "format", "nbytes"),
    [
        (b"BC6H", "bc6h-rgb-ufloat", 16), (b"BC7\0", "bc7-rgba-unorm", 16), (b"BC7L", "bc7-rgba-unorm", 16),
        (b"A2XY", "bc5-rg-unorm", 16), (b"ATI2", "bc5-rg-unorm", 16), (b"BC5S", "bc5-rg-snorm", 16),
        (b"BC4U", "bc4-r-unorm", 8), (b"DXT2", "bc2-rgba-unorm", 16), (b"DXT4", "bc3-rgba-unorm", 16),
    ],
)  # fmt: skip
async def test_a_fourcc_arrives_as_its_twin(open_ring: Any, code: bytes, format: str, nbytes: int) -> None:
    levels = texels(nbytes, (16, 8), 5, block=(4, 4))
    stream, found = await arrive(await open_ring(), dds(code, (16, 8), [level.tobytes() for level in levels]))
    assert stream.info.format == format
    assert same(found, levels)


PICTURES = {
    "RGB": lambda image: np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
    "RGBA": lambda image: image[..., [2, 1, 0, 3]],  # Pillow writes blue first, and WebGPU has that
    "L": lambda image: np.dstack([image] * 3 + [np.full(image.shape[:2], 255, np.uint8)]),
    "LA": lambda image: image,
}


@pytest.mark.parametrize("mode", PICTURES)
async def test_what_pillow_writes_arrives(open_ring: Any, mode: str) -> None:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    image = np.random.default_rng(1).integers(0, 256, (13, 21, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if channels == 1 else image, mode).save(file, "DDS")
    expected = PICTURES[mode](image[..., 0] if channels == 1 else image)
    stream, found = await arrive(await open_ring(buffer_size=1024), file)
    assert stream.info.format == {"RGBA": "bgra8unorm", "LA": "rg8unorm"}.get(mode, "rgba8unorm")
    assert found[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("pixel_format", ["DXT1", "DXT3", "DXT5", "BC2", "BC3"])
async def test_blocks_that_pillow_writes_arrive_and_decode_to_what_it_reads(open_ring: Any, pixel_format: str) -> None:
    ramp = np.add.outer(np.arange(16) * 5, np.arange(24) * 4).astype(np.uint8)
    image = np.dstack([ramp, 255 - ramp, ramp // 2, np.full_like(ramp, 255)])
    file = io.BytesIO()
    Image.fromarray(image, "RGBA").save(file, "DDS", pixel_format=pixel_format)
    _, found = await arrive(await open_ring(), file)
    blocks = found[0].tobytes()
    kind = {"DXT1": 1, "DXT3": 2, "BC2": 2}.get(pixel_format, 3)
    decoded = Image.frombytes("RGBA", (24, 16), blocks, "bcn", (kind, f"BC{kind}"))
    assert np.array_equal(np.asarray(decoded), np.asarray(Image.open(file)))
    assert np.abs(np.asarray(decoded).astype(int) - image).mean() < 8


async def test_etcpak_blocks_decode_from_the_gpu(open_ring: Any) -> None:
    ramp = np.add.outer(np.arange(32) * 3, np.arange(32) * 4).astype(np.uint8)
    image = np.ascontiguousarray(np.dstack([ramp, 255 - ramp, ramp // 2, np.full_like(ramp, 255)]))
    blocks = etcpak.compress_bc7(image.tobytes(), 32, 32)
    _, found = await arrive(await open_ring(), dds(b"BC7\0", (32, 32), [blocks]))
    bgra = np.frombuffer(texture2ddecoder.decode_bc7(found[0].tobytes(), 32, 32), np.uint8).reshape(32, 32, 4)
    assert np.abs(bgra[..., [2, 1, 0, 3]].astype(int) - image).mean() < 3


# -- typeless --

TYPELESS = {
    # number of DXGI_FORMAT: (name, format, bytes of a texel or block, whether there is an sRGB form)
    1: ("R32G32B32A32", "rgba32float", 16, False),
    9: ("R16G16B16A16", "rgba16unorm", 8, False),
    23: ("R10G10B10A2", "rgb10a2unorm", 4, False),
    27: ("R8G8B8A8", "rgba8unorm", 4, True),
    39: ("R32", "r32float", 4, False),
    48: ("R8G8", "rg8unorm", 2, False),
    60: ("R8", "r8unorm", 1, False),
    70: ("BC1", "bc1-rgba-unorm", 8, True),
    73: ("BC2", "bc2-rgba-unorm", 16, True),
    76: ("BC3", "bc3-rgba-unorm", 16, True),
    79: ("BC4", "bc4-r-unorm", 8, False),
    82: ("BC5", "bc5-rg-unorm", 16, False),
    90: ("B8G8R8A8", "bgra8unorm", 4, True),
    92: ("B8G8R8X8", "bgra8unorm", 4, True),
    94: ("BC6H", "bc6h-rgb-ufloat", 16, False),
    97: ("BC7", "bc7-rgba-unorm", 16, True),
}


@pytest.mark.parametrize("number", TYPELESS)
async def test_a_typeless_format_is_what_it_is_mostly_used_for_and_srgb_where_that_is_said(
    open_ring: Any, number: int
) -> None:
    name, format, nbytes, has_srgb = TYPELESS[number]
    block = (4, 4) if name.startswith("BC") else (1, 1)
    levels = texels(nbytes, (8, 4), 2, block=block)
    file = dds_by_fields((8, 4), [level.tobytes() for level in levels], dx10=(number, 3, 0, 1, 0))
    expected = levels
    if name == "B8G8R8X8":
        expected = [np.dstack([level[0, ..., :3], np.full(level.shape[1:3], 255, np.uint8)])[None] for level in levels]
    for srgb, wanted in ((None, format), (False, format), (True, format + "-srgb")):
        assert textures.inspect(file).file_format == f"DXGI_FORMAT_{name}_TYPELESS"
        if srgb and not has_srgb:
            with pytest.raises(UnsupportedTexture, match=f"sRGB form of {format}"):
                textures.inspect(file, srgb=True)
            with pytest.raises(UnsupportedTexture, match=f"sRGB form of {format}"):
                await textures.load(await open_ring(), file, srgb=True)
            continue
        stream, found = await arrive(await open_ring(), file, srgb=srgb)
        assert stream.info.format == stream.texture.format == wanted == textures.inspect(file, srgb=srgb).format
        assert same(found, expected)


# -- what the caller asks for --


@pytest.mark.parametrize(("number", "linear"), [(43, "rgba8unorm"), (50, "bgra8unorm"), (57, "rgba8unorm")])
async def test_srgb_false_makes_a_linear_texture_of_the_same_bytes(open_ring: Any, number: int, linear: str) -> None:
    levels = texels(4, (8, 8), 2)
    file = ktx2(number, (8, 8), [level.tobytes() for level in levels])
    assert textures.inspect(file).format == linear + "-srgb"
    for srgb, format in ((None, linear + "-srgb"), (True, linear + "-srgb"), (False, linear)):
        stream, found = await arrive(await open_ring(), file, srgb=srgb)
        assert stream.texture.format == format
        assert same(found, levels)
        async with textures.open(await open_ring(), file, srgb=srgb) as opened:
            assert opened.texture.format == format


async def test_srgb_of_older_files(open_ring: Any) -> None:
    """These never say it themselves."""
    blocks = texels(8, (8, 8), block=(4, 4))
    file = dds(b"DXT1", (8, 8), [blocks[0].tobytes()])
    stream, found = await arrive(await open_ring(), file, srgb=True)
    assert stream.texture.format == "bc1-rgba-unorm-srgb"
    assert same(found, blocks)
    grey = dds_by_fields((4, 4), [bytes(16)], format_flags=0x20000, fourcc=bytes(4), bits=8, masks=(0xFF, 0, 0, 0))
    assert textures.inspect(grey, srgb=True).format == "rgba8unorm-srgb"
    with pytest.raises(UnsupportedTexture, match="sRGB form of r8unorm"):
        textures.inspect(grey, srgb=True, expand=False)


@pytest.mark.parametrize("number", [9, 76, 97, 100, 139, 141])  # r8, r16float, rgba16float, r32float, bc4, bc5
async def test_srgb_where_there_is_none_is_refused_and_nothing_created(
    open_ring: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes, block = {9: (1, 1), 76: (2, 1), 97: (8, 1), 100: (4, 1), 139: (8, 4), 141: (16, 4)}[number]
    file = ktx2(number, (4, 4), [level.tobytes() for level in texels(nbytes, (4, 4), block=(block, block))])
    ring, created = await open_ring(), []
    monkeypatch.setattr(type(ring.device), "create_texture", lambda *_, **k: created.append(k))
    for use in (textures.inspect, lambda file, srgb: textures.open(ring, file, srgb=srgb).__aenter__()):
        with pytest.raises(UnsupportedTexture, match="no sRGB form"):
            if (entering := use(file, srgb=True)) is not None:
                await entering
    assert created == []


async def test_views_may_have_the_formats_that_were_named(gpu: SimulatedGpu, simulated_ring: Any) -> None:
    file = ktx2(37, (4, 4), [bytes(64)])
    descriptors: list[dict[str, Any]] = []
    create = gpu.create_texture

    def create_texture(**descriptor: Any) -> Any:
        descriptors.append(descriptor)
        return create(**descriptor)

    gpu.create_texture = create_texture  # type: ignore[method-assign]
    gpu.features, gpu.limits, gpu.free_running = frozenset(), DrivenGpu.limits, True  # type: ignore[attr-defined]
    ring = await simulated_ring()
    await textures.load(ring, file, view_formats=["rgba8unorm-srgb"])
    async with textures.open(ring, file, view_formats=("rgba8unorm-srgb",), label="rock"):
        pass
    await textures.load(ring, file)
    assert [made["view_formats"] for made in descriptors] == [["rgba8unorm-srgb"], ["rgba8unorm-srgb"], []]
    assert [made["label"] for made in descriptors] == ["", "rock", ""]


async def test_views_of_other_formats_work_or_are_refused_where_wgpu_has_none(open_ring: Any) -> None:
    file = ktx2(37, (4, 4), [bytes(64)])
    ring = await open_ring()
    before = ring.stats_nowait()
    try:
        stream = await textures.load(ring, file, view_formats=["rgba8unorm-srgb"])
    except UnsupportedTexture as error:
        assert "view_formats" in str(error)  # noqa: PT017
        assert ring.stats_nowait() == before
    else:
        assert stream.texture.create_view(format="rgba8unorm-srgb") is not None


async def test_views_of_formats_that_do_not_fit_are_refused(open_ring: Any) -> None:
    file, ring = ktx2(37, (4, 4), [bytes(64)]), await open_ring()
    assert textures.inspect(file, view_formats=["rgba8unorm-srgb", "rgba8unorm"]).format == "rgba8unorm"
    with pytest.raises(UnsupportedTexture, match="not of bgra8unorm"):
        textures.inspect(file, view_formats=["bgra8unorm"])
    with pytest.raises(UnsupportedTexture, match="not of bgra8unorm"):
        await textures.load(ring, file, view_formats=["bgra8unorm"])


# -- what a file tells beside --


@pytest.mark.parametrize("misc2", range(8))
def test_alpha_of_the_newer_header(misc2: int) -> None:
    names = [None, "straight", "premultiplied", "opaque", "custom", None, None, None]
    for high in (0, 0xFFFFFFF8):
        info = textures.inspect(dx10((2, 2), texels(4, (2, 2)), dx10=(28, 3, 0, 1, misc2 | high)))
        assert info.alpha == names[misc2]


def test_alpha_of_older_formats() -> None:
    found = {code: textures.inspect(dds(code, (4, 4), [bytes(16)])).alpha for code in (b"DXT2", b"DXT3", b"DXT4")}
    assert found == {b"DXT2": "premultiplied", b"DXT3": None, b"DXT4": "premultiplied"}
    assert textures.inspect(rgba8((1, 1), texels(4, (1, 1)))).alpha is None
    without = {"format_flags": 0x40, "masks": (*RGBA8[:3], 0)}
    assert textures.inspect(rgba8((1, 1), texels(4, (1, 1)), **without)).alpha == "opaque"


def test_what_ktx2_tells_beside() -> None:
    levels = [bytes(64)]
    plain = textures.inspect(ktx2(37, (4, 4), levels))
    assert (plain.alpha, plain.transfer, plain.orientation, plain.swizzle) == ("straight", "linear", None, None)
    assert (plain.generate_mips, plain.warnings, plain.expanded_from) == (False, (), None)
    assert textures.inspect(ktx2(37, (4, 4), levels, flags=1)).alpha == "premultiplied"
    assert textures.inspect(ktx2(43, (4, 4), levels, transfer=2)).transfer == "srgb"
    assert textures.inspect(ktx2(37, (4, 4), levels, transfer=11)).transfer == "pq-oetf"
    assert textures.inspect(ktx2(37, (4, 4), levels, transfer=200)).transfer is None
    keys = key_value("KTXwriter", "somebody") + key_value("KTXorientation", "ru") + key_value("KTXswizzle", "rrr1")
    told = textures.inspect(ktx2(37, (4, 4), levels, keys=keys))
    assert (told.orientation, told.swizzle) == ("ru", "rrr1")


async def test_level_count_0_asks_for_the_other_levels_and_has_one(open_ring: Any) -> None:
    levels = texels(4, (4, 4))
    file = ktx2(37, (4, 4), [levels[0].tobytes()], level_count=0)
    stream, found = await arrive(await open_ring(), file)
    assert stream.info.generate_mips
    assert same(found, levels)


@pytest.mark.parametrize("keys", [b"\xff\xff\xff\xff" * 3, b"\2\0\0\0\xff\xff\0\0", bytes(1 << 16), b"\1"])
def test_key_value_data_that_make_no_sense_are_passed_over(keys: bytes) -> None:
    file = ktx2(37, (4, 4), [bytes(64)], keys=key_value("KTXswizzle", "rrr1") + keys)
    assert textures.inspect(file).swizzle == "rrr1"


def test_many_empty_keys_take_time_in_proportion() -> None:
    def seconds(nbytes: int) -> float:
        file, taken = ktx2(37, (4, 4), [bytes(64)], keys=bytes(nbytes)), []
        for _ in range(3):
            started = time.thread_time()
            textures.inspect(file)
            taken.append(time.thread_time() - started)
        return min(taken)

    assert seconds(1 << 20) < 9 * seconds(1 << 18)  # 4 times; 16, were each a copy of what follows


# -- sources --


@pytest.mark.parametrize("container", ["KTX2", "DDS"])
async def test_every_kind_of_source(open_ring: Any, tmp_path: Path, container: str) -> None:
    levels = texels(4, (8, 8), 3)
    content = [level.tobytes() for level in levels]
    file = ktx2(37, (8, 8), content) if container == "KTX2" else rgba8((8, 8), levels)
    path, ring = tmp_path / "texture", await open_ring()
    path.write_bytes(file)
    spaced = np.zeros((len(file), 3), np.uint8)
    spaced[:, 1] = np.frombuffer(file, np.uint8)
    items = np.frombuffer(file, np.uint8)
    sources: list[Any] = [str(path), path, anyio.Path(path), file, bytearray(file), memoryview(file)]
    sources += [memoryview(spaced[:, 1]), spaced[:, 1], array.array("B", file), io.BytesIO(file)]
    for dtype in (
        "u1",
        "i1",
        "<u2",
        ">u2",
        "<f4",
        ">f8",
        "c16",
        "?",
        "S4",
        "M8[s]",
        "f2",
        [("On", "<u2"), ("b", "f2")],
    ):
        sources += [items.view(dtype), np.repeat(items.view(dtype), 2)[::2]]
    for source in sources:
        _, found = await arrive(ring, source)
        assert same(found, levels), type(source)
        assert textures.inspect(source).container == container
    for buffering in (-1, 0):
        with path.open("rb", buffering=buffering) as opened:
            _, found = await arrive(ring, opened)
            assert same(found, levels)
            assert not opened.closed
            assert textures.inspect(opened).size == (8, 8, 1)
            assert not opened.closed
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        _, found = await arrive(ring, mapped)
        assert same(found, levels)


async def test_what_is_no_source_is_named(open_ring: Any, tmp_path: Path) -> None:
    path = tmp_path / "texture.ktx2"
    path.write_bytes(ktx2(37, (4, 4), [bytes(64)]))
    with path.open("r", encoding="latin-1") as text:
        with pytest.raises(TypeError, match="opened for bytes"):
            textures.inspect(text)
        with pytest.raises(TypeError, match="opened for bytes"):
            await textures.load(await open_ring(), text)
        assert not text.closed
    with pytest.raises(TypeError, match="opened for bytes"):
        textures.inspect(io.StringIO("text"))
    async with await anyio.open_file(path, "rb") as awaited:
        with pytest.raises(TypeError, match="opened for bytes"):
            textures.inspect(awaited)
    for what in (None, 7, [1, 2], np.array([None]), {"a": 1}):
        with pytest.raises(TypeError, match=f"not from {type(what).__name__}"):
            textures.inspect(what)
    with pytest.raises(FileNotFoundError):
        textures.inspect(tmp_path / "missing.dds")


def test_a_pipe_is_refused_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    ours = os.open(path, os.O_RDWR)
    with pytest.raises(OSError, match=r"seek|Illegal"):
        textures.inspect(path)
    gc.collect()  # an open file would warn
    os.close(ours)


async def test_the_bytes_are_free_again_afterwards(open_ring: Any) -> None:
    """A bytearray cannot grow while anything looks at it."""
    data = bytearray(ktx2(37, (4, 4), [bytes(64)]))
    stream, _ = await arrive(await open_ring(), data)
    data += b"more"
    assert stream.base_level == 0


# -- refusals by name --

UNKNOWN = {
    "KTX 1": (b"\xabKTX 11\xbb\r\n\x1a\n" + bytes(64), "KTX 1.*ktx2ktx2"),
    "USCALED": (ktx2(39, (4, 4), [bytes(64)]), "VK_FORMAT_R8G8B8A8_USCALED.*UINT"),
    "64 bits": (ktx2(112, (4, 4), [bytes(128)]), "VK_FORMAT_R64_SFLOAT.*32 bits"),
    "depth": (ktx2(126, (4, 4), [bytes(64)]), "VK_FORMAT_D32_SFLOAT.*depth"),
    "ASTC HDR": (ktx2(1000066000, (4, 4), [bytes(16)]), "VK_FORMAT_ASTC_4x4_SFLOAT_BLOCK.*HDR"),
    "PVRTC": (ktx2(1000054000, (8, 8), [bytes(32)]), "VK_FORMAT_PVRTC1_2BPP_UNORM_BLOCK_IMG.*encode"),
    "B8G8R8A8_SNORM": (ktx2(45, (4, 4), [bytes(64)]), "VK_FORMAT_B8G8R8A8_SNORM.*convert"),
    "beyond all": (ktx2(123456, (4, 4), [bytes(64)]), "VkFormat 123456"),
    "XR": (dx10((1, 1), [np.zeros(4, np.uint8)], dx10=(89, 3, 0, 1, 0)), "DXGI_FORMAT_R10G10B10_XR_BIAS_A2_UNORM"),
    "video": (dx10((2, 2), [np.zeros(6, np.uint8)], dx10=(103, 3, 0, 1, 0)), "DXGI_FORMAT_NV12.*RGB"),
    "depth of DXGI": (dx10((1, 1), [np.zeros(4, np.uint8)], dx10=(45, 3, 0, 1, 0)), "DXGI_FORMAT_D24_UNORM_S8_UINT"),
    "of DXGI": (dx10((1, 1), [np.zeros(4, np.uint8)], dx10=(250, 3, 0, 1, 0)), "DXGI_FORMAT 250.*texconv"),
    "1D": (dx10((4, 1), [np.zeros(16, np.uint8)], dx10=(28, 2, 0, 1, 0)), "1D"),
    "FourCC": (dds(b"UYVY", (2, 2), [bytes(8)]), "FourCC UYVY.*RGB"),
    "D3DFORMAT": (dds(struct.pack("<I", 117), (2, 2), [bytes(8)]), "D3DFORMAT 117.*texconv"),
    "masks": (rgba8((1, 1), texels(4, (1, 1)), masks=(0x7FF, 0x3FF800, 0xFFC00000, 0)), "0x7ff, 0x3ff800.*texconv"),
    "masks with gaps": (rgba8((1, 1), texels(4, (1, 1)), masks=(0xF0F, 0xF0, 0, 0)), "0xf0f"),
    "L6V5U5": (
        rgba8((1, 1), texels(2, (1, 1)), format_flags=0x40000, bits=16, masks=(0x1F, 0x3E0, 0xFC00, 0)),
        "flags 0x40000.*texconv",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNKNOWN)
async def test_what_cannot_be_read_is_refused_by_name_with_advice(open_ring: Any, kind: str) -> None:
    file, message = UNKNOWN[kind]
    with pytest.raises(UnsupportedTexture, match=message):
        textures.inspect(file)
    with pytest.raises(UnsupportedTexture, match=message):
        await textures.load(await open_ring(), file)


def test_names_of_formats_are_those_of_the_specifications() -> None:
    """A few numbers from all over the enumerations, as the specifications have them."""
    expected = {9: "R8_UNORM", 23: "R8G8B8_UNORM", 37: "R8G8B8A8_UNORM", 58: "A2R10G10B10_UNORM_PACK32",
                84: "R16G16B16_UNORM", 106: "R32G32B32_SFLOAT", 109: "R32G32B32A32_SFLOAT",
                122: "B10G11R11_UFLOAT_PACK32", 131: "BC1_RGB_UNORM_BLOCK", 145: "BC7_UNORM_BLOCK",
                157: "ASTC_4x4_UNORM_BLOCK", 184: "ASTC_12x12_SRGB_BLOCK"}  # fmt: skip
    from aiostage.textures.names import DXGI_NAMES, VK_NAMES

    assert {number: VK_NAMES[number].removeprefix("VK_FORMAT_") for number in expected} == expected
    assert max(number for number in VK_NAMES if number < 1000) == 184
    expected = {2: "R32G32B32A32_FLOAT", 28: "R8G8B8A8_UNORM", 65: "A8_UNORM", 71: "BC1_UNORM", 85: "B5G6R5_UNORM",
                87: "B8G8R8A8_UNORM", 98: "BC7_UNORM", 115: "B4G4R4A4_UNORM"}  # fmt: skip
    assert {number: DXGI_NAMES[number].removeprefix("DXGI_FORMAT_") for number in expected} == expected
    assert max(DXGI_NAMES) == 115
