"""Writers of KTX2 and DDS files, after the specifications that aiostage/textures names, and a BC7 or BC1 mip chain.

`levels` is a list of bytes, level 0 first; each has its images in the order layer, face, slice.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

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
) -> bytes:
    """A KTX2 file; its smallest level comes first in the file, as the specification wants."""
    packed = [pack(level, scheme) for level in levels]
    descriptor = struct.pack("<IIHHBBBB16x", 28, 0, 2, 24, color_model, 1, 1, 0)
    start = 80 + 24 * len(levels)
    offset, body, index = start + len(descriptor), b"", []
    for level, content in reversed(list(zip(levels, packed, strict=True))):
        body += bytes(-(offset + len(body)) % 16)
        index.insert(0, struct.pack("<3Q", offset + len(body), len(content), len(level)))
        body += content
    number = format if isinstance(format, int) else NUMBER_OF[format]
    header = struct.pack("<9I", number, 1, *size, depth, layers, faces, len(levels), scheme)
    header += struct.pack("<4I2Q", start, len(descriptor), 0, 0, 0, 0)
    return b"\xabKTX 20\xbb\r\n\x1a\n" + header + b"".join(index) + descriptor + body


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
