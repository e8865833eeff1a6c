"""Texels that WebGPU has no format for arrive as those that they stand for, and blocks where they belong.

Each expected texel is computed here from what the format's specification says of its bits.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from containers import arrive, dds_by_fields, ktx2, same, texels
from PIL import Image
from test_textures import DrivenGpu

import aiostage
from aiostage import UnsupportedTexture, textures

pytestmark = pytest.mark.blocks_loop("it reads textures back, and computes them")

Levels = list[np.ndarray]


class Kind(NamedTuple):
    nbytes: int  # of a texel in the file
    format: str
    expected: Callable[[np.ndarray], np.ndarray]  # texels (…, nbytes) to those of WebGPU
    write: Callable[..., bytes]  # (size, levels, images=, depth=, cube=)


# -- what the bits say --


def of_fields(**fields: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
    """rgba8unorm of channels that are (lowest bit, bits): the nearest of 255 to value / max."""

    def expected(level: np.ndarray) -> np.ndarray:
        whole = sum(level[..., byte].astype(np.int64) << 8 * byte for byte in range(level.shape[-1]))
        out = np.zeros((*level.shape[:-1], 4))
        out[..., 3] = 255
        for channel, (low, bits) in fields.items():
            most = 2**bits - 1
            out[..., "rgba".index(channel)] = np.rint((whole >> low & most) / most * 255)
        return out.astype(np.uint8)

    return expected


def of_masks(red: int, green: int, blue: int, alpha: int) -> Callable[[np.ndarray], np.ndarray]:
    fields = dict(zip("rgba", (red, green, blue, alpha), strict=True))
    return of_fields(
        **{name: ((mask & -mask).bit_length() - 1, mask.bit_count()) for name, mask in fields.items() if mask}
    )


def from_the_top(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Of Vulkan's packed names, as "r5 g6 b5": the first channel has the highest bits."""
    parts = [(part[0], int(part[1:])) for part in name.split()]
    return of_fields(
        **{channel: (sum(bits for _, bits in parts[n + 1 :]), bits) for n, (channel, bits) in enumerate(parts)}
    )


def with_one(dtype: str, one: float, order: tuple[int, ...] = (0, 1, 2)) -> Callable[[np.ndarray], np.ndarray]:
    """Three channels in this order, and an alpha of 1."""

    def expected(level: np.ndarray) -> np.ndarray:
        channels = np.ascontiguousarray(level).view(dtype)
        alpha = np.full((*channels.shape[:-1], 1), one, dtype)
        return np.ascontiguousarray(np.concatenate([channels[..., order], alpha], -1)).view(np.uint8)

    return expected


def red_and_more(level: np.ndarray) -> np.ndarray:
    """One or two channels, the others 0, alpha 1."""
    out = np.zeros((*level.shape[:-1], 4), np.uint8)
    out[..., : level.shape[-1]] = level
    out[..., 3] = 255
    return out


def grey(level: np.ndarray) -> np.ndarray:
    return np.concatenate([level, level, level, np.full_like(level, 255)], -1)


def ten_bits_swapped(level: np.ndarray) -> np.ndarray:
    whole = np.ascontiguousarray(level).view("<u4")
    red, green, blue, alpha = whole >> 20 & 0x3FF, whole >> 10 & 0x3FF, whole & 0x3FF, whole >> 30
    return (red | green << 10 | blue << 20 | alpha << 30).astype("<u4").view(np.uint8)


# -- writers --


def vk(number: int, nbytes: int) -> Callable[..., bytes]:
    def write(size: tuple[int, int], levels: Levels, images: int = 1, depth: int = 0, cube: bool = False) -> bytes:
        layers = images // (6 if cube else 1)
        return ktx2(
            number,
            size,
            [level.tobytes() for level in levels],
            depth=depth,
            layers=layers if layers > 1 else 0,
            faces=6 if cube else 1,
            alignment=int(np.lcm(nbytes, 4)),
        )

    return write


def dxgi(number: int) -> Callable[..., bytes]:
    def write(size: tuple[int, int], levels: Levels, images: int = 1, depth: int = 0, cube: bool = False) -> bytes:
        content = [level.tobytes() for level in levels]
        header = (number, 4 if depth else 3, 4 if cube else 0, images // (6 if cube else 1), 0)
        return dds_by_fields(size, content, parts=images, depth=depth, dx10=header)

    return write


def legacy(flags: int, bits: int, *masks: int) -> Callable[..., bytes]:
    def write(size: tuple[int, int], levels: Levels, images: int = 1, depth: int = 0, cube: bool = False) -> bytes:
        return dds_by_fields(
            size,
            [level.tobytes() for level in levels],
            parts=images,
            depth=depth,
            caps2=0x200000 if depth else 0xFE00 if cube else 0,
            format_flags=flags,
            fourcc=bytes(4),
            bits=bits,
            masks=masks,
        )

    return write


def _kinds() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    # VkFormat: three channels of so many bytes, in two orders.
    to = {"UNORM": "unorm", "SNORM": "snorm", "UINT": "uint", "SINT": "sint", "SRGB": "unorm-srgb", "SFLOAT": "float"}
    for first, name, width, one in (
        (23, "UNORM", 1, 255), (24, "SNORM", 1, 127), (27, "UINT", 1, 1), (28, "SINT", 1, 1), (29, "SRGB", 1, 255),
        (84, "UNORM", 2, 65535), (85, "SNORM", 2, 32767), (88, "UINT", 2, 1), (89, "SINT", 2, 1),
        (90, "SFLOAT", 2, 0x3C00), (104, "UINT", 4, 1), (105, "SINT", 4, 1), (106, "SFLOAT", 4, 0x3F800000),
    ):  # fmt: skip
        made = f"rgba{8 * width}{to[name]}"
        kinds[f"vk {first} RGB{8 * width}_{name}"] = Kind(
            3 * width, made, with_one(f"<u{width}", one), vk(first, 3 * width)
        )
        if width == 1:  # B8G8R8 is seven further
            kinds[f"vk {first + 7} BGR8_{name}"] = Kind(3, made, with_one("u1", one, (2, 1, 0)), vk(first + 7, 3))
    kinds["vk 15 R8_SRGB"] = Kind(1, "rgba8unorm-srgb", red_and_more, vk(15, 1))
    kinds["vk 22 RG8_SRGB"] = Kind(2, "rgba8unorm-srgb", red_and_more, vk(22, 2))
    for number, name in (
        (1, "r4 g4"), (2, "r4 g4 b4 a4"), (3, "b4 g4 r4 a4"), (4, "r5 g6 b5"), (5, "b5 g6 r5"), (6, "r5 g5 b5 a1"),
        (7, "b5 g5 r5 a1"), (8, "a1 r5 g5 b5"), (1000340000, "a4 r4 g4 b4"), (1000340001, "a4 b4 g4 r4"),
        (1000470000, "a1 b5 g5 r5"),
    ):  # fmt: skip
        nbytes = 1 if number == 1 else 2
        kinds[f"vk {number} {name}"] = Kind(nbytes, "rgba8unorm", from_the_top(name), vk(number, nbytes))
    kinds["vk 58 A2R10G10B10_UNORM"] = Kind(4, "rgb10a2unorm", ten_bits_swapped, vk(58, 4))
    kinds["vk 62 A2R10G10B10_UINT"] = Kind(4, "rgb10a2uint", ten_bits_swapped, vk(62, 4))
    # DXGI_FORMAT, which names the lowest bits first
    kinds["dxgi 85 B5G6R5"] = Kind(2, "rgba8unorm", from_the_top("r5 g6 b5"), dxgi(85))
    kinds["dxgi 86 B5G5R5A1"] = Kind(2, "rgba8unorm", from_the_top("a1 r5 g5 b5"), dxgi(86))
    kinds["dxgi 115 B4G4R4A4"] = Kind(2, "rgba8unorm", from_the_top("a4 r4 g4 b4"), dxgi(115))
    for number, format in ((88, "bgra8unorm"), (93, "bgra8unorm-srgb")):
        kinds[f"dxgi {number} B8G8R8X8"] = Kind(4, format, lambda of: with_one("u1", 255)(of[..., :3]), dxgi(number))
    for number, format, one in ((6, "rgba32float", 0x3F800000), (7, "rgba32uint", 1), (8, "rgba32sint", 1)):
        kinds[f"dxgi {number} R32G32B32"] = Kind(12, format, with_one("<u4", one), dxgi(number))
    # Older DDS
    for name, flags, bits, masks in (
        ("R8G8B8", 0x40, 24, (0xFF0000, 0xFF00, 0xFF, 0)), ("B8G8R8", 0x40, 24, (0xFF, 0xFF00, 0xFF0000, 0)),
        ("X8R8G8B8", 0x40, 32, (0xFF0000, 0xFF00, 0xFF, 0)), ("X8B8G8R8", 0x40, 32, (0xFF, 0xFF00, 0xFF0000, 0)),
        ("R5G6B5", 0x40, 16, (0xF800, 0x7E0, 0x1F, 0)), ("A1R5G5B5", 0x41, 16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
        ("R5G5B5A1", 0x41, 16, (0xF800, 0x7C0, 0x3E, 0x1)), ("A4R4G4B4", 0x41, 16, (0xF00, 0xF0, 0xF, 0xF000)),
        ("X1R5G5B5", 0x40, 16, (0x7C00, 0x3E0, 0x1F, 0)), ("X4R4G4B4", 0x40, 16, (0xF00, 0xF0, 0xF, 0)),
        ("R3G3B2", 0x40, 8, (0xE0, 0x1C, 0x3, 0)), ("A8R3G3B2", 0x41, 16, (0xE0, 0x1C, 0x3, 0xFF00)),
        ("A8R8G8B8 in odd places", 0x41, 32, (0xFF00, 0xFF000000, 0xFF, 0xFF0000)),
    ):  # fmt: skip
        kinds[f"dds {name}"] = Kind(bits // 8, "rgba8unorm", of_masks(*masks), legacy(flags, bits, *masks))
    kinds["dds X1R5G5B5 with a mask of alpha that it does not have"] = Kind(
        2, "rgba8unorm", of_masks(0x7C00, 0x3E0, 0x1F, 0), legacy(0x40, 16, 0x7C00, 0x3E0, 0x1F, 0x8000)
    )
    kinds["dds L8"] = Kind(1, "rgba8unorm", grey, legacy(0x20000, 8, 0xFF, 0, 0, 0))
    kinds["dds L8 of Pillow"] = Kind(1, "rgba8unorm", grey, legacy(0x20000, 8, *[0xFF000000] * 3, 0))
    kinds["dds A4L4"] = Kind(1, "rgba8unorm", of_masks(0xF, 0xF, 0xF, 0xF0), legacy(0x20001, 8, 0xF, 0, 0, 0xF0))
    ten = (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)
    kinds["dds A2R10G10B10"] = Kind(4, "rgb10a2unorm", ten_bits_swapped, legacy(0x41, 32, *ten))
    return kinds


KINDS = _kinds()


@pytest.mark.parametrize("kind", KINDS)
async def test_texels_arrive_as_what_they_stand_for(open_ring: Any, kind: str) -> None:
    nbytes, format, expected, write = KINDS[kind]
    levels = texels(nbytes, (75, 38), 7)  # level 0 is many times the staging buffer
    file = write((75, 38), levels)
    stream, found = await arrive(await open_ring(ring_count=2, buffer_size=1024), file)
    assert stream.texture.format == format
    assert stream.info.expanded_from == stream.info.file_format != ""
    assert [(level.width, level.height) for level in stream.info.levels][-3:] == [(4, 2), (2, 1), (1, 1)]
    assert same(found, [expected(level) for level in levels])
    if not kind.startswith("dds L8"):
        with pytest.raises(UnsupportedTexture, match=f"expand=True it becomes {format}"):
            textures.inspect(file, expand=False)
        with pytest.raises(UnsupportedTexture, match=f"expand=True it becomes {format}"):
            await textures.load(await open_ring(), file, expand=False)


SHAPES: dict[str, tuple[tuple[int, int], dict[str, Any], int, str]] = {
    # (size, options of texels and of the writer, levels, dimension)
    "array": ((13, 7), {"images": 3}, 4, "2d-array"),
    "cube": ((9, 9), {"images": 6, "cube": True}, 4, "cube"),
    "cubes": ((5, 5), {"images": 12, "cube": True}, 3, "cube-array"),
    "3D": ((11, 6), {"depth": 9}, 4, "3d"),
}
SOME = [
    "vk 23 RGB8_UNORM", "vk 90 RGB16_SFLOAT", "vk 106 RGB32_SFLOAT", "vk 4 r5 g6 b5", "vk 1 r4 g4", "vk 22 RG8_SRGB",
    "vk 58 A2R10G10B10_UNORM", "dxgi 85 B5G6R5", "dxgi 88 B8G8R8X8", "dxgi 8 R32G32B32",
    "dds R8G8B8", "dds X1R5G5B5", "dds L8", "dds A4L4",
]  # fmt: skip


@pytest.mark.parametrize("band", [1, 100, 1 << 20], ids=["rows", "some rows or images", "whole levels"])
@pytest.mark.parametrize(
    ("kind", "shape"),
    # Older DDS files have no arrays
    [(kind, shape) for kind in SOME for shape in SHAPES if kind[:3] != "dds" or shape in ("cube", "3D")],
)
async def test_arrays_cubes_and_volumes_of_such_texels(
    open_ring: Any, kind: str, shape: str, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostage.textures.expand._BAND", band)
    size, options, count, dimension = SHAPES[shape]
    nbytes, format, expected, write = KINDS[kind]
    levels = texels(nbytes, size, count, images=options.get("images", 1), depth=options.get("depth", 0))
    stream, found = await arrive(await open_ring(ring_count=2, buffer_size=1024), write(size, levels, **options))
    assert (stream.info.dimension, stream.texture.format) == (dimension, format)
    assert same(found, [expected(level) for level in levels])


PACKED_16 = [kind for kind, (nbytes, *_) in KINDS.items() if nbytes == 2 and "SRGB" not in kind]


@pytest.mark.parametrize("kind", PACKED_16)
async def test_every_value_of_16_bits_becomes_the_nearest(open_ring: Any, kind: str) -> None:
    _, _, expected, write = KINDS[kind]
    level = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(1, 256, 256, 2)
    _, found = await arrive(await open_ring(buffer_size=1 << 15), write((256, 256), [level]))
    assert same(found, [expected(level)])


async def test_a_level_of_many_bands(open_ring: Any) -> None:
    """Of 3.7 MB; a band is 1 MiB."""
    _, _, expected, write = KINDS["vk 23 RGB8_UNORM"]
    levels = texels(3, (1201, 1033))
    _, found = await arrive(await open_ring(buffer_size=1 << 16), write((1201, 1033), levels))
    assert same(found, [expected(level) for level in levels])


@pytest.mark.parametrize("scheme", [2, 3])
async def test_packed_files_are_expanded_too(open_ring: Any, scheme: int) -> None:
    levels = texels(3, (17, 9), 5)
    file = ktx2(23, (17, 9), [level.tobytes() for level in levels], scheme=scheme, alignment=1)
    _, found = await arrive(await open_ring(buffer_size=1024), file)
    assert same(found, [with_one("u1", 255)(level) for level in levels])


@pytest.mark.parametrize(
    ("flags", "bits", "masks"),
    [
        (0x40, 24, (0xFF0000, 0xFF00, 0xFF, 0)), (0x40, 24, (0xFF, 0xFF00, 0xFF0000, 0)),
        (0x40, 32, (0xFF0000, 0xFF00, 0xFF, 0)), (0x41, 32, (0xFF00, 0xFF000000, 0xFF, 0xFF0000)),
    ],
)  # fmt: skip
async def test_whole_bytes_are_what_pillow_reads(open_ring: Any, flags: int, bits: int, masks: Any) -> None:
    """It rounds those of other sizes down."""
    levels = texels(bits // 8, (9, 5))
    file = legacy(flags, bits, *masks)((9, 5), levels)
    read = np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))
    _, found = await arrive(await open_ring(), file)
    assert found[0].tobytes() == read.tobytes()


async def test_grey_that_is_not_expanded_is_red_with_a_swizzle(open_ring: Any) -> None:
    levels = texels(1, (9, 5), 3)
    file = KINDS["dds L8"].write((9, 5), levels)
    stream, found = await arrive(await open_ring(), file, expand=False)
    assert (stream.texture.format, stream.info.swizzle, stream.info.expanded_from) == ("r8unorm", "rrr1", None)
    assert same(found, levels)


async def test_alpha_of_what_has_none_is_told(open_ring: Any) -> None:
    for kind, (nbytes, _, _, write) in KINDS.items():
        has_alpha = any(name in kind for name in ("a4", "a1", "A4", "A1", "A8", "A2", "alpha"))
        if "does not have" in kind:
            has_alpha = False
        alpha = textures.inspect(write((2, 2), texels(nbytes, (2, 2)))).alpha
        assert (alpha == "opaque") != has_alpha, kind


# -- blocks --

# Numbers of VkFormat and DXGI_FORMAT, bytes of a block.
BC = {"bc1": (133, 71, 8), "bc3": (137, 77, 16), "bc4": (139, 80, 8), "bc5": (141, 83, 16), "bc7": (145, 98, 16)}


def padded(levels: Levels, size: tuple[int, int], block: tuple[int, int]) -> Levels:
    """The levels of a texture whose level 0 is whole blocks: those of the file, and their last ones again."""
    whole = [-(-extent // edge) * edge for extent, edge in zip(size, block, strict=True)]
    made = []
    for number, level in enumerate(levels):
        columns, rows = (-(-max(1, extent >> number) // edge) for extent, edge in zip(whole, block, strict=True))
        y, x = np.minimum(np.arange(rows), level.shape[1] - 1), np.minimum(np.arange(columns), level.shape[2] - 1)
        made.append(level[:, y][:, :, x])
    return made


@pytest.mark.parametrize("size", [(129, 66), (5, 3), (1, 1), (2, 7), (13, 16), (31, 33), (63, 9)])
@pytest.mark.parametrize("format", BC)
async def test_every_block_of_a_size_that_is_not_whole_is_where_it_belongs(
    open_ring: Any, format: str, size: tuple[int, int]
) -> None:
    vk_number, dxgi_number, nbytes = BC[format]
    levels = texels(nbytes, size, max(size).bit_length(), block=(4, 4))
    whole = tuple(-(-extent // 4) * 4 for extent in size)
    for file in (vk(vk_number, nbytes)(size, levels), dxgi(dxgi_number)(size, levels)):
        stream, found = await arrive(await open_ring(ring_count=2, buffer_size=1024), file)
        assert stream.texture.size == stream.info.size == (*whole, 1)
        assert f"{size[0]} × {size[1]} texels" in str(stream.info.expanded_from)
        assert (stream.info.levels[0].width, stream.info.levels[0].height) == size
        assert same(found, padded(levels, size, (4, 4)))
        for level, original in zip(found, levels, strict=True):
            rows, columns = original.shape[1:3]
            assert level[:, :rows, : columns * nbytes].tobytes() == original.tobytes()
        with pytest.raises(UnsupportedTexture, match=f"whole blocks of 4 × 4.*{size[0]} × {size[1]}"):
            textures.inspect(file, expand=False)


@pytest.mark.parametrize(("images", "cube"), [(2, False), (6, True), (12, True)])
async def test_arrays_and_cubes_of_sizes_that_are_not_whole(open_ring: Any, images: int, cube: bool) -> None:
    levels = texels(8, (13, 13), 4, images=images, block=(4, 4))
    for write in (vk(133, 8), dxgi(71)):
        stream, found = await arrive(await open_ring(buffer_size=1024), write((13, 13), levels, images, 0, cube))
        assert stream.info.dimension == ("cube" if cube else "2d") + ("-array" if images in (2, 12) else "")
        assert same(found, padded(levels, (13, 13), (4, 4)))


async def test_whole_blocks_are_left_as_they_are(open_ring: Any) -> None:
    levels = texels(16, (20, 12), 5, block=(4, 4))
    file = vk(145, 16)((20, 12), levels)
    stream, found = await arrive(await open_ring(buffer_size=1024), file, expand=False)
    assert (stream.info.expanded_from, stream.info.size) == (None, (20, 12, 1))
    assert same(found, levels)


@pytest.mark.parametrize("packed", [0, 2, 3])
@pytest.mark.parametrize(
    ("number", "format", "block", "nbytes"),
    [
        (147, "etc2-rgb8unorm", (4, 4), 8), (151, "etc2-rgba8unorm", (4, 4), 16), (153, "eac-r11unorm", (4, 4), 8),
        (157, "astc-4x4-unorm", (4, 4), 16), (159, "astc-5x4-unorm", (5, 4), 16), (167, "astc-8x5-unorm", (8, 5), 16),
        (183, "astc-12x12-unorm", (12, 12), 16),
    ],
)  # fmt: skip
async def test_etc2_and_astc_of_sizes_that_are_not_whole(
    number: int, format: str, block: tuple[int, int], nbytes: int, packed: int
) -> None:
    gpu = DrivenGpu(free_running=True)
    for size in ((1, 1), (13, 9), (37, 26), (60, 61)):
        levels = texels(nbytes, size, max(size).bit_length(), images=2, block=block)
        file = ktx2(number, size, [level.tobytes() for level in levels], layers=2, scheme=packed)
        expected = padded(levels, size, block)
        async with aiostage.StagingRing(gpu, 3, 1024) as ring:
            stream = await textures.load(ring, file)
            await stream.fence
            assert stream.info.format == format
            assert stream.info.size[0] % block[0] == stream.info.size[1] % block[1] == 0
            for number_of_level, level in enumerate(expected):
                assert stream.texture.level(number_of_level).tobytes() == level.tobytes()
    assert gpu.violations == []
