"""Reading the header of a KTX 2.0 file.

Source: "KTX File Format Specification" 2.0, Khronos Group, <https://registry.khronos.org/KTX/specs/2.0/ktxspec.v2.html>:
"File Structure" (header, index, level index), "Data Format Descriptor", the table of supercompression schemes. Within
a level the order is layer, face, slice, row, texel block. The colour models are those of the "Khronos Data Format
Specification" 1.3. Keys and values are not read: nothing in them changes where a texel lies.
"""

from __future__ import annotations

import struct

from ..errors import InvalidTexture, UnsupportedTexture
from .layout import Level, Shape, TextureInfo, check_bounds, dimension_name, unsupported
from .names import VK_FORMATS
from .source import Source

IDENTIFIER = b"\xabKTX 20\xbb\r\n\x1a\n"

# vkFormat, typeSize, pixelWidth, pixelHeight, pixelDepth, layerCount, faceCount, levelCount, supercompressionScheme,
# then (offset, length) of the data format descriptor, the key/value data and the supercompression global data.
_HEADER = struct.Struct("<12x9I4I2Q")
_LEVEL = struct.Struct("<3Q")  # byteOffset, byteLength, uncompressedByteLength
_SCHEMES = {0: "none", 2: "zstd", 3: "zlib"}
_BASIS_LZ = 1
_MOST_LEVELS = 32  # of extents that are 32-bit numbers

_COLOR_MODELS = {163: "ETC1S", 166: "UASTC", 167: "UASTC HDR 4x4", 168: "UASTC HDR 6x6"}
_COLOR_MODEL_AT = 12  # after dfdTotalSize and the first 8 bytes of the basic descriptor block


class BasisPayload(UnsupportedTexture):
    """A Basis Universal payload: `textures.open` has it transcoded if `pyktx` is installed."""


def read(source: Source) -> TextureInfo:
    """What the header says, checked against itself and the file's length.

    :raises InvalidTexture: damage. :raises UnsupportedTexture: a texture that WebGPU has no form of.
    """
    fields = _HEADER.unpack(source.read(0, _HEADER.size, "the KTX2 header"))
    vk_format, _, width, height, depth, layers, faces, levels, scheme = fields[:9]
    for name, offset, length in (
        ("data format descriptor", *fields[9:11]),
        ("key/value data", *fields[11:13]),
        ("supercompression global data", *fields[13:15]),
    ):
        if offset + length > source.size:
            raise InvalidTexture(
                f"the {name} is declared at bytes {offset} to {offset + length}, but the file ends at {source.size}"
            )
    if vk_format == 0 or scheme == _BASIS_LZ:
        raise _why_undefined(source, scheme, *fields[9:11])
    if scheme not in _SCHEMES:
        raise UnsupportedTexture(f"supercompression scheme {scheme} is none of none, BasisLZ, zstd and zlib")
    if vk_format not in VK_FORMATS:
        raise unsupported("VkFormat", vk_format)
    if faces not in (1, 6) or (faces == 6 and depth):
        raise InvalidTexture(f"a file has 1 face, or 6 of a cube map without depth, not {faces} with depth {depth}")
    if width and not height:
        raise UnsupportedTexture("a 1D texture: WebGPU has these without mip levels and compression only")
    if depth and layers:
        raise UnsupportedTexture("an array of 3D textures, which WebGPU does not have")
    shape = Shape(
        VK_FORMATS[vk_format],
        width,
        height,
        depth or 1,
        (layers or 1) * faces,
        levels or 1,  # 0 asks the loader to make the others
        dimension_name(faces == 6, bool(layers), bool(depth)),
    )
    shape.check()
    return _with_levels(source, shape, _SCHEMES[scheme])


def _with_levels(source: Source, shape: Shape, supercompression: str) -> TextureInfo:
    assert shape.levels <= _MOST_LEVELS
    index = source.read(_HEADER.size, _LEVEL.size * shape.levels, "the level index")
    found = []
    for number, (offset, stored, unpacked) in enumerate(_LEVEL.iter_unpack(index)):
        expected = shape.level_bytes(number)
        declared = stored if supercompression == "none" else unpacked
        if declared != expected:
            raise InvalidTexture(
                f"mip level {number} is declared to have {declared} bytes; "
                f"{' × '.join(map(str, shape.level_size(number)))} of {shape.format} have {expected}"
            )
        if offset < _HEADER.size + len(index):
            raise InvalidTexture(f"mip level {number} is declared at byte {offset}, inside the header")
        found.append(Level(*shape.level_size(number), expected, offset, stored))
    levels = tuple(found)
    check_bounds(levels, source.size)
    return TextureInfo("KTX2", shape.format, shape.dimension, shape.size, levels, supercompression)


def _why_undefined(source: Source, scheme: int, offset: int, length: int) -> Exception:
    """What the data format descriptor says of a texture without a VkFormat."""
    if length <= _COLOR_MODEL_AT:
        return InvalidTexture(f"the data format descriptor has {length} bytes, too few to say what the texels are")
    (model,) = source.read(offset + _COLOR_MODEL_AT, 1, "the data format descriptor")
    if scheme == _BASIS_LZ or model in _COLOR_MODELS:
        packed = "BasisLZ" if scheme == _BASIS_LZ else "plain" if scheme == 0 else f"scheme {scheme}"
        name = _COLOR_MODELS.get(model, f"colour model {model}")
        return BasisPayload(
            f"a Basis Universal payload ({name}, {packed}), which the package pyktx transcodes; it is not installed"
        )
    return UnsupportedTexture(f"no VkFormat is given, and the data format descriptor has colour model {model}")
