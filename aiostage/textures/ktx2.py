"""Reading the header of a KTX 2.0 file.

Source: "KTX File Format Specification" 2.0, Khronos Group, <https://registry.khronos.org/KTX/specs/2.0/ktxspec.v2.html>:
"File Structure" (header, index, level index), "Data Format Descriptor", "Key/Value Data", the table of supercompression
schemes. Within a level the order is layer, face, slice, row, texel block. Colour models, transfer functions and flags
are those of the "Khronos Data Format Specification" 1.3.
"""

from __future__ import annotations

import math
import struct

from ..errors import InvalidTexture, UnsupportedTexture
from .expand import EXPANSIONS
from .layout import Level, Notes, Shape, TextureInfo, check_bounds, check_nothing_is_left, dimension_name, make_info
from .names import VK_FORMATS, VK_NAMES, advice
from .source import Source

IDENTIFIER = b"\xabKTX 20\xbb\r\n\x1a\n"

# vkFormat, typeSize, pixelWidth, pixelHeight, pixelDepth, layerCount, faceCount, levelCount, supercompressionScheme,
# then (offset, length) of the data format descriptor, the key/value data and the supercompression global data.
_HEADER = struct.Struct("<12x9I4I2Q")
_LEVEL = struct.Struct("<3Q")  # byteOffset, byteLength, uncompressedByteLength
_SCHEMES = {0: "none", 2: "zstd", 3: "zlib"}
_BASIS_LZ = 1
_ASTC_4X4_HDR = 1000066000  # the VkFormat of UASTC HDR 4x4, which is a part of it
_MOST_LEVELS = 32  # of extents that are 32-bit numbers
_MOST_KEY_VALUES = 1 << 20  # bytes that are looked through
_MOST_PADDING = 16  # bytes: what the largest alignment may leave is less

_COLOR_MODELS = {163: "ETC1S", 166: "UASTC", 167: "UASTC HDR 4x4", 168: "UASTC HDR 6x6"}
_TRANSFERS = (
    None, "linear", "srgb", "itu", "ntsc", "slog", "slog2", "bt1886", "hlg-oetf", "hlg-eotf", "pq-eotf", "pq-oetf",
    "dcip3", "pal-oetf", "pal625-eotf", "st240", "acescc", "acescct", "adobergb",
)  # fmt: skip
_COLOR_MODEL_AT = 12  # after dfdTotalSize and the first 8 bytes of the basic descriptor block
_DESCRIPTOR = struct.Struct("<4B")  # from there: model, primaries, transfer, flags
_PREMULTIPLIED = 0x1  # of the flags


class BasisPayload(UnsupportedTexture):
    """A Basis Universal payload: `textures.open` has it transcoded if `pyktx` is installed."""

    payload = ""
    """Its kind, and how it is packed."""


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
    model = _color_model(source, *fields[9:11])
    if vk_format == 0 or scheme == _BASIS_LZ or (vk_format == _ASTC_4X4_HDR and model in _COLOR_MODELS):
        raise _why_undefined(model, scheme)
    if scheme not in _SCHEMES:
        raise UnsupportedTexture(f"supercompression scheme {scheme} is none of none, BasisLZ, zstd and zlib")
    if vk_format not in VK_FORMATS:
        name = VK_NAMES.get(vk_format, f"VkFormat {vk_format}")
        hint = advice(name, "ktx create --format R8G8B8A8_UNORM")
        raise UnsupportedTexture(f"{name} has no counterpart in WebGPU{hint}")
    if faces not in (1, 6) or (faces == 6 and depth):
        raise InvalidTexture(f"a file has 1 face, or 6 of a cube map without depth, not {faces} with depth {depth}")
    if width and not height:
        raise UnsupportedTexture("a 1D texture: WebGPU has these without mip levels and compression only")
    if depth and layers:
        raise UnsupportedTexture("an array of 3D textures, which WebGPU does not have")
    format = VK_FORMATS[vk_format]
    expansion = EXPANSIONS.get(format.expansion)
    shape = Shape(
        format.format,
        width,
        height,
        depth or 1,
        (layers or 1) * faces,
        levels or 1,  # 0 asks the loader to make the others
        dimension_name(faces == 6, bool(layers), bool(depth)),
        expansion and expansion.block,
    )
    shape.check()
    found = _levels(source, shape, _SCHEMES[scheme], format.name)
    notes = _notes(source, fields[9:13], has_srgb=format.format.endswith("-srgb"))._replace(
        generate_mips=levels == 0, warnings=_gaps(found, fields[9:15])
    )
    return make_info("KTX2", format, shape, found, notes, expansion, _SCHEMES[scheme])


def _levels(source: Source, shape: Shape, supercompression: str, format: str) -> tuple[Level, ...]:
    assert shape.levels <= _MOST_LEVELS
    index = source.read(_HEADER.size, _LEVEL.size * shape.levels, "the level index")
    alignment = math.lcm(shape.block.nbytes, 4) if supercompression == "none" else 1
    found = []
    for number, (offset, stored, unpacked) in enumerate(_LEVEL.iter_unpack(index)):
        expected = shape.level_bytes(number)
        for what, declared in (("", stored if supercompression == "none" else unpacked), ("unpacked ", unpacked)):
            if declared != expected:
                raise InvalidTexture(
                    f"mip level {number} is declared to have {declared} {what}bytes; "
                    f"{' × '.join(map(str, shape.level_size(number)))} of {format} have {expected}"
                )
        if offset < _HEADER.size + len(index):
            raise InvalidTexture(f"mip level {number} is declared at byte {offset}, inside the header")
        if offset % alignment:
            raise InvalidTexture(f"mip level {number} is declared at byte {offset}, no multiple of {alignment}")
        found.append(Level(*shape.level_size(number), expected, offset, stored))
    check_bounds(tuple(found), source.size)
    check_nothing_is_left(max(level.end for level in found), source.size, "the last mip level")
    return tuple(found)


def _gaps(levels: tuple[Level, ...], others: tuple[int, ...]) -> tuple[str, ...]:
    """A warning for each run of bytes that no part of the file has, and that is longer than any alignment asks for.

    :raises InvalidTexture: a level shares bytes with another part.
    """
    end, was_level, found = _HEADER.size + _LEVEL.size * len(levels), False, []
    parts = [(level.offset, level.stored, True) for level in levels]
    parts += [(offset, nbytes, False) for offset, nbytes in zip(others[::2], others[1::2], strict=True)]
    for offset, nbytes, is_level in sorted(part for part in parts if part[1]):
        if offset < end and (is_level or was_level):
            raise InvalidTexture(f"two parts of the file share its bytes {offset} to {min(end, offset + nbytes)}")
        if offset - end >= _MOST_PADDING:
            found.append(f"no part of the file has its bytes {end} to {offset}")
        if offset + nbytes > end:
            end, was_level = offset + nbytes, is_level
    return tuple(found)


# -- what is told beside --


def _notes(source: Source, where: tuple[int, int, int, int], has_srgb: bool) -> Notes:
    """Of a descriptor and key/value data at these (offset, length)."""
    at, length, keys_at, keys_length = where
    alpha = transfer = None
    if length >= _COLOR_MODEL_AT + _DESCRIPTOR.size:
        descriptor = bytes(source.read(at + _COLOR_MODEL_AT, _DESCRIPTOR.size, "the data format descriptor"))
        _, _, number, flags = _DESCRIPTOR.unpack(descriptor)
        transfer = _TRANSFERS[number] if number < len(_TRANSFERS) else None
        alpha = "premultiplied" if flags & _PREMULTIPLIED else "straight"
    if has_srgb and transfer is None:
        transfer = "srgb"
    keys = bytes(source.read(keys_at, min(keys_length, _MOST_KEY_VALUES), "the key/value data")) if keys_length else b""
    values = _key_values(keys)
    return Notes(alpha, transfer, values.get("KTXorientation"), values.get("KTXswizzle"))


def _key_values(data: bytes) -> dict[str, str]:
    """Those that are text."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        key, _, value = data[at + 4 : at + 4 + length].partition(b"\0")
        try:
            found[key.decode()] = value.rstrip(b"\0").decode()
        except UnicodeDecodeError:
            pass
        at += 4 + length + -length % 4
    return found


def _color_model(source: Source, offset: int, length: int) -> int | None:
    """What the data format descriptor says; None: it is too short to."""
    return None if length <= _COLOR_MODEL_AT else source.read(offset + _COLOR_MODEL_AT, 1, "the color model")[0]


def _why_undefined(model: int | None, scheme: int) -> Exception:
    """What a texture is that has no VkFormat of WebGPU's."""
    if model is None:
        return InvalidTexture("the data format descriptor has too few bytes to say what the texels are")
    if scheme == _BASIS_LZ or model in _COLOR_MODELS:
        packed = "BasisLZ" if scheme == _BASIS_LZ else "plain" if scheme == 0 else f"scheme {scheme}"
        name = _COLOR_MODELS.get(model, f"colour model {model}")
        found = BasisPayload(
            f"a Basis Universal payload ({name}, {packed}), which the package pyktx transcodes: pip install pyktx"
        )
        found.payload = f"{name}, {packed}"
        return found
    return UnsupportedTexture(f"no VkFormat is given, and the data format descriptor has colour model {model}")
