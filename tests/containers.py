"""Writers of KTX2 and DDS files, after the specifications that aiostage/textures names, and a BC7 or BC1 mip chain.

`levels` is a list of bytes, level 0 first; each has its images in the order layer, face, slice.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import wgpu
from readback import read_texture

from aiostage import textures
from aiostage.textures.names import DXGI_FORMATS, VK_FORMATS, FileFormat


def _numbers(formats: dict[int, FileFormat], unusual: str) -> dict[str, int]:
    """Of the formats that are on the GPU as they are in the file; the usual one of two."""
    same = {number: of for number, of in formats.items() if not of.expansion and not of.swizzle}
    usual = {of.format: number for number, of in same.items() if unusual not in of.name}
    return {of.format: number for number, of in same.items()} | usual


NUMBER_OF = _numbers(VK_FORMATS, "A8B8G8R8")
DXGI_NUMBER_OF = _numbers(DXGI_FORMATS, "TYPELESS")


def ktx2(
    format: str | int,
    size: tuple[int, int],
    levels: Sequence[bytes],
    *,
    depth: int = 0,
    layers: int = 0,
    faces: int = 1,
    scheme: int = 0,
    color_model: int = 1,
    transfer: int = 1,
    flags: int = 0,
    keys: bytes = b"",
    packed: Sequence[bytes] = (),
    alignment: int = 16,
    level_count: int | None = None,
) -> bytes:
    """A KTX2 file; its smallest level comes first in the file, as the specification wants.

    `packed` are the levels as they are stored, if not as `pack` does it; `alignment` is of levels, and no multiple of
    16 for texels of 3, 6 or 12 bytes.
    """
    packed = packed or [pack(level, scheme) for level in levels]
    descriptor = struct.pack("<IIHHBBBB16x", 28, 0, 2, 24, color_model, 1, transfer, flags)
    start = 80 + 24 * len(levels)
    offset, body, index = start + len(descriptor) + len(keys), b"", []
    for level, content in reversed(list(zip(levels, packed, strict=True))):
        body += bytes(-(offset + len(body)) % alignment)
        index.insert(0, struct.pack("<3Q", offset + len(body), len(content), len(level)))
        body += content
    number = format if isinstance(format, int) else NUMBER_OF[format]
    count = len(levels) if level_count is None else level_count
    header = struct.pack("<9I", number, 1, *size, depth, layers, faces, count, scheme)
    header += struct.pack("<4I2Q", start, len(descriptor), start + len(descriptor) if keys else 0, len(keys), 0, 0)
    return b"\xabKTX 20\xbb\r\n\x1a\n" + header + b"".join(index) + descriptor + keys + body


def key_value(key: str, value: str) -> bytes:
    """For `keys`."""
    both = key.encode() + b"\0" + value.encode() + b"\0"
    return struct.pack("<I", len(both)) + both + bytes(-len(both) % 4)


def pack(content: bytes, scheme: int) -> bytes:
    if scheme == 2:
        import zstandard

        return zstandard.ZstdCompressor(3).compress(content)
    return zlib.compress(content) if scheme == 3 else content


def dds(
    format: str | bytes,
    size: tuple[int, int],
    levels: Sequence[bytes],
    *,
    depth: int = 0,
    layers: int = 1,
    cube: bool = False,
) -> bytes:
    """A DDS file with the newer header, or with a FourCC where `format` is bytes; `layers` counts whole cubes."""
    fourcc = format if isinstance(format, bytes) else b"DX10"
    caps2 = (0xFE00 if cube else 0) | (0x200000 if depth else 0)
    header = struct.pack("<7I44x", 124, 0x1007, size[1], size[0], 0, depth, len(levels))
    header += struct.pack("<2I4s5I4I4x", 32, 4, fourcc, 0, 0, 0, 0, 0, 0x1000, caps2, 0, 0)
    if not isinstance(format, bytes):
        header += struct.pack("<5I", DXGI_NUMBER_OF[format], 4 if depth else 3, 4 if cube else 0, layers, 0)
    parts = layers * (6 if cube else 1)
    body = b""
    for part in range(parts):
        for level in levels:
            nbytes = len(level) // parts
            body += level[part * nbytes : (part + 1) * nbytes]
    return b"DDS " + header + body


def dds_by_fields(
    size: tuple[int, int],
    levels: Sequence[bytes],
    *,
    parts: int = 1,
    flags: int = 0x1007,
    depth: int = 0,
    mips: int | None = None,
    caps2: int = 0,
    format_size: int = 32,
    format_flags: int = 4,
    fourcc: bytes = b"DX10",
    bits: int = 0,
    masks: tuple[int, int, int, int] = (0, 0, 0, 0),
    dx10: tuple[int, int, int, int, int] | None = None,
) -> bytes:
    """A DDS file with any fields. `parts` are layers and faces, each with its own chain of levels; `dx10` is the newer
    header: format, dimension, flags, layers, more flags."""
    count = len(levels) if mips is None else mips
    header = struct.pack("<7I44x", 124, flags, size[1], size[0], 0, depth, count)
    header += struct.pack("<2I4s5I4I4x", format_size, format_flags, fourcc, bits, *masks, 0x1000, caps2, 0, 0)
    header += b"" if dx10 is None else struct.pack("<5I", *dx10)
    chains = (level[n * len(level) // parts : (n + 1) * len(level) // parts] for n in range(parts) for level in levels)
    return b"DDS " + header + b"".join(chains)


def texels(
    nbytes: int,
    size: tuple[int, int],
    levels: int = 1,
    *,
    images: int = 1,
    depth: int = 0,
    block: tuple[int, int] = (1, 1),
    seed: int = 5,
) -> list[np.ndarray]:
    """Random ones for each mip level, (images or slices, rows, columns, nbytes); `block` is in texels."""
    rng, found = np.random.default_rng(seed), []
    for level in range(levels):
        width, height = (max(1, extent >> level) for extent in size)
        count = max(1, depth >> level) if depth else images
        shape = (count, -(-height // block[1]), -(-width // block[0]), nbytes)
        found.append(rng.integers(0, 256, shape, np.uint8))
    return found


async def arrive(ring: Any, file: Any, **options: Any) -> tuple[textures.TextureStream, list[np.ndarray]]:
    """The texture that was loaded, and its bytes as they are on the GPU, by mip level."""
    usage = wgpu.TextureUsage.TEXTURE_BINDING | wgpu.TextureUsage.COPY_SRC
    stream = await textures.load(ring, file, usage=usage, **options)
    assert stream.fence is not None
    await stream.fence
    found = read_texture(stream.texture)
    assert stream.info.nbytes == sum(level.size for level in found)
    return stream, found


def same(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Whether levels that were read back are these, of shape (images, rows, columns, nbytes)."""
    return len(found) == len(expected) and all(
        level.shape == (*of.shape[:2], of.shape[2] * of.shape[3]) and level.tobytes() == of.tobytes()
        for level, of in zip(found, expected, strict=True)
    )
