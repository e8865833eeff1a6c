"""Reading the header of a DDS file.

Source: "DDS_HEADER", "DDS_HEADER_DXT10", "DDS_PIXELFORMAT" and "Programming Guide for DDS", Microsoft,
<https://learn.microsoft.com/windows/win32/direct3ddds/dx-graphics-dds-pguide>. Content follows the header: each layer,
or face of a cube, with all its mip levels, largest first; a 3D texture has each level with all its slices. Flags that
say which fields are set are ignored, as that guide advises, since many writers leave them out.
"""

from __future__ import annotations

import struct

from ..errors import InvalidTexture, UnsupportedTexture
from .layout import Level, Shape, TextureInfo, check_bounds, dimension_name, unsupported
from .names import DXGI_FORMATS, FOURCC_FORMATS, MASK_FORMATS
from .source import Source

IDENTIFIER = b"DDS "

# dwSize, dwFlags, dwHeight, dwWidth, dwPitchOrLinearSize, dwDepth, dwMipMapCount, 11 reserved; then the pixel format:
# dwSize, dwFlags, dwFourCC, dwRGBBitCount, four masks; then dwCaps, dwCaps2, dwCaps3, dwCaps4, 1 reserved.
_HEADER = struct.Struct("<4x7I44x8I4I4x")
_HEADER_SIZE, _PIXEL_FORMAT_SIZE = 124, 32
_DX10 = struct.Struct("<5I")  # dxgiFormat, resourceDimension, miscFlag, arraySize, miscFlags2

_HAS_ALPHA, _IS_FOURCC, _HAS_MASKS = 0x1, 0x4, 0x20040  # DDPF_ALPHAPIXELS, _FOURCC, _RGB | _LUMINANCE
_CUBE, _ALL_FACES, _VOLUME = 0x200, 0xFC00, 0x200000  # of dwCaps2
_DX10_CUBE = 0x4  # of miscFlag
_2D, _3D = 3, 4  # of resourceDimension


def read(source: Source) -> TextureInfo:
    """What the header says, checked against itself and the file's length.

    :raises InvalidTexture: damage. :raises UnsupportedTexture: a texture that WebGPU has no form of.
    """
    fields = _HEADER.unpack(source.read(0, _HEADER.size, "the DDS header"))
    header_size, _, height, width, _, depth, levels = fields[:7]
    caps2 = fields[16]
    if header_size != _HEADER_SIZE or fields[7] != _PIXEL_FORMAT_SIZE:
        raise InvalidTexture(
            f"a DDS header declares itself to have {_HEADER_SIZE} and its pixel format {_PIXEL_FORMAT_SIZE} bytes, "
            f"not {header_size} and {fields[7]}"
        )
    if fields[8] & _IS_FOURCC and fields[9] == int.from_bytes(b"DX10", "little"):
        format, dimension, layers = _read_dx10(source)
        start = _HEADER.size + _DX10.size
    else:
        format = _legacy_format(*fields[8:15])
        dimension, layers = _legacy_dimension(caps2)
        start = _HEADER.size
    shape = Shape(format, width, height, depth if dimension == "3d" else 1, layers, levels or 1, dimension)
    shape.check()
    return _with_levels(source, shape, start)


def _read_dx10(source: Source) -> tuple[str, str, int]:
    """(format, dimension, layers) of a file with the newer header."""
    dxgi, dimension, flags, array, _ = _DX10.unpack(source.read(_HEADER.size, _DX10.size, "the DX10 header"))
    if dimension not in (_2D, _3D):
        raise UnsupportedTexture(f"resource dimension {dimension}: only 2D (3) and 3D (4) textures can be read")
    if dxgi not in DXGI_FORMATS:
        raise unsupported("DXGI_FORMAT", dxgi)
    cube = bool(flags & _DX10_CUBE)
    if dimension == _3D and (cube or array > 1):
        raise InvalidTexture(f"a 3D texture is one layer and no cube map, not {array} layers with flags {flags:#x}")
    return DXGI_FORMATS[dxgi], dimension_name(cube, array > 1, dimension == _3D), array * (6 if cube else 1)


def _legacy_format(flags: int, fourcc: int, bits: int, red: int, green: int, blue: int, alpha: int) -> str:
    """The format that a DDS_PIXELFORMAT describes by its FourCC or its masks."""
    if flags & _IS_FOURCC:
        if fourcc in FOURCC_FORMATS:
            return FOURCC_FORMATS[fourcc]
        raise unsupported("FourCC", fourcc.to_bytes(4, "little"))
    masks = (bits, red, green, blue, alpha if flags & _HAS_ALPHA else 0)
    if flags & _HAS_MASKS and masks in MASK_FORMATS:
        return MASK_FORMATS[masks]
    raise unsupported("a texel", f"of {bits} bits with masks {red:#x}, {green:#x}, {blue:#x}, {alpha:#x}")


def _legacy_dimension(caps2: int) -> tuple[str, int]:
    """(dimension, layers) of a file without the newer header."""
    if caps2 & _VOLUME:
        return "3d", 1
    if not caps2 & _CUBE:
        return "2d", 1
    if caps2 & _ALL_FACES != _ALL_FACES:
        raise UnsupportedTexture("a cube map without all its six faces, which WebGPU does not have")
    return "cube", 6


def _with_levels(source: Source, shape: Shape, start: int) -> TextureInfo:
    """The levels of one layer follow each other, and so do the layers."""
    parts = 1 if shape.dimension == "3d" else shape.layers
    sizes = [shape.level_bytes(number) for number in range(shape.levels)]
    chain = sum(sizes) // parts
    found, offset = [], start
    for number, nbytes in enumerate(sizes):
        stored = nbytes // parts
        found.append(Level(*shape.level_size(number), nbytes, offset, stored, parts, chain))
        offset += stored
    levels = tuple(found)
    check_bounds(levels, source.size)
    return TextureInfo("DDS", shape.format, shape.dimension, shape.size, levels, "none")
