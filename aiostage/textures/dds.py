"""Reading the header of a DDS file.

Source: "DDS_HEADER", "DDS_HEADER_DXT10", "DDS_PIXELFORMAT" and "Programming Guide for DDS", Microsoft,
<https://learn.microsoft.com/windows/win32/direct3ddds/dx-graphics-dds-pguide>. Content follows the header: each layer,
or face of a cube, with all its mip levels, largest first; a 3D texture has each level with all its slices.

Many writers leave flags and fields out, or get them wrong. What they mean is taken, with a warning, where nothing else
can be meant: the content has to have the length that follows from it, to the byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..errors import InvalidTexture, UnsupportedTexture
from .expand import EXPANSIONS, Expansion, of_masks
from .layout import (
    Level,
    Notes,
    Shape,
    TextureInfo,
    check_bounds,
    check_nothing_is_left,
    dimension_name,
    make_info,
)
from .names import DXGI_FORMATS, DXGI_NAMES, FOURCC_FORMATS, FileFormat, advice
from .source import Source

IDENTIFIER = b"DDS "


class _Header(NamedTuple):
    size: int
    flags: int
    height: int
    width: int
    pitch: int
    depth: int
    levels: int
    format_size: int
    format_flags: int
    fourcc: int
    bits: int
    red: int
    green: int
    blue: int
    alpha: int
    caps: int
    caps2: int
    caps3: int
    caps4: int


_HEADER = struct.Struct("<4x7I44x8I4I4x")
_DX10 = struct.Struct("<5I")  # dxgiFormat, resourceDimension, miscFlag, arraySize, miscFlags2
_HEADER_SIZE, _FORMAT_SIZES = 124, (32, 24)

_DEPTH = 0x800000  # of dwFlags
_HAS_ALPHA, _ALPHA_ONLY, _IS_FOURCC, _RGB, _LUMINANCE, _SIGNED = 0x1, 0x2, 0x4, 0x40, 0x20000, 0x80000  # of the format
_CUBE, _ALL_FACES, _VOLUME = 0x200, 0xFC00, 0x200000  # of dwCaps2
_DX10_CUBE = 0x4  # of miscFlag
_1D, _2D, _3D = 2, 3, 4  # of resourceDimension
_ALPHAS = (None, "straight", "premultiplied", "opaque", "custom")  # of miscFlags2, its lowest three bits


class _Kind(NamedTuple):
    """What the header says the texture is."""

    format: FileFormat
    expansion: Expansion | None
    dimension: str
    layers: int
    start: int  # of the content
    alpha: str | None = None
    or_cube: bool = False  # or each layer is six faces: only the length of the content tells


def read(source: Source) -> TextureInfo:
    """What the header says, checked against itself and the file's length.

    :raises InvalidTexture: damage. :raises UnsupportedTexture: a texture that WebGPU has no form of.
    """
    header = _Header(*_HEADER.unpack(source.read(0, _HEADER.size, "the DDS header")))
    if header.size != _HEADER_SIZE or header.format_size not in _FORMAT_SIZES:
        raise InvalidTexture(
            f"a DDS header declares itself to have {_HEADER_SIZE} and its pixel format {_FORMAT_SIZES[0]} bytes, "
            f"not {header.size} and {header.format_size}"
        )
    warnings = [] if header.format_size == _FORMAT_SIZES[0] else [f"its pixel format has {header.format_size} bytes"]
    if header.format_flags & _IS_FOURCC and header.fourcc == int.from_bytes(b"DX10", "little"):
        kind = _read_dx10(source, header, warnings)
    else:
        format, expansion = _legacy_format(header)
        kind = _Kind(format, expansion, *_legacy_dimension(header), _HEADER.size)
    shape = _shape(source, header, kind, warnings)
    levels = _levels(shape, kind.start)
    check_bounds(levels, source.size)
    check_nothing_is_left(_end(levels), source.size, "the texture that the header describes")
    notes = Notes(kind.alpha, "srgb" if kind.format.format.endswith("-srgb") else None, warnings=tuple(warnings))
    return make_info("DDS", kind.format, shape, levels, notes, kind.expansion)


# -- what the header says --


def _read_dx10(source: Source, header: _Header, warnings: list[str]) -> _Kind:
    """Of a file with the newer header."""
    dxgi, dimension, flags, array, flags2 = _DX10.unpack(source.read(_HEADER.size, _DX10.size, "the DX10 header"))
    if dxgi not in DXGI_FORMATS:
        name = DXGI_NAMES.get(dxgi, f"DXGI_FORMAT {dxgi}")
        raise UnsupportedTexture(f"{name} has no counterpart in WebGPU{advice(name, 'texconv -f R8G8B8A8_UNORM')}")
    if dimension == 0:
        dimension = _3D if header.caps2 & _VOLUME or header.flags & _DEPTH else _2D
        warnings.append(f"its resource dimension is 0; it is taken for {dimension - 1}D")
    if dimension == _1D:
        raise UnsupportedTexture("a 1D texture: WebGPU has these without mip levels and compression only")
    if dimension not in (_2D, _3D):
        raise InvalidTexture(f"resource dimension {dimension} is none of 1D (2), 2D (3) and 3D (4)")
    if array == 0:
        warnings.append("its array size is 0; it is taken for 1")
        array = 1
    cube = bool(flags & _DX10_CUBE)
    if dimension == _3D and (cube or array > 1):
        raise InvalidTexture(f"a 3D texture is one layer and no cube map, not {array} layers with flags {flags:#x}")
    start, alpha = _HEADER.size + _DX10.size, flags2 & 7
    format = DXGI_FORMATS[dxgi]
    return _Kind(
        format,
        EXPANSIONS.get(format.expansion),
        dimension_name(cube, array > 1, dimension == _3D),
        array * (6 if cube else 1),
        start,
        alpha=_ALPHAS[alpha] if alpha < len(_ALPHAS) else None,
        or_cube=not cube and dimension == _2D and header.caps2 & (_CUBE | _ALL_FACES) == _CUBE | _ALL_FACES,
    )


_MASK_FORMATS = {
    # (flags, bits of a texel, masks of red, green, blue, alpha)
    (_RGB, 32, 0x000000FF, 0x0000FF00, 0x00FF0000, 0xFF000000): ("rgba8unorm", ""),
    (_RGB, 32, 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000): ("bgra8unorm", ""),
    (_RGB, 8, 0x000000FF, 0, 0, 0): ("r8unorm", ""),
    (_RGB, 16, 0x0000FFFF, 0, 0, 0): ("r16unorm", ""),
    (_RGB, 32, 0x000003FF, 0x000FFC00, 0x3FF00000, 0xC0000000): ("rgb10a2unorm", ""),
    (_RGB, 32, 0x0000FFFF, 0xFFFF0000, 0, 0): ("rg16unorm", ""),
    (_RGB, 32, 0xFFFFFFFF, 0, 0, 0): ("r32float", ""),
    (_LUMINANCE, 16, 0xFF, 0, 0, 0xFF00): ("rg8unorm", "rrrg"),
    (_LUMINANCE, 16, 0xFF, 0, 0, 0xFF000000): ("rg8unorm", "rrrg"),  # as Pillow writes it
    (_LUMINANCE, 16, 0xFFFF, 0, 0, 0): ("r16unorm", "rrr1"),
    (_SIGNED, 16, 0xFF, 0xFF00, 0, 0): ("rg8snorm", ""),
    (_SIGNED, 32, 0xFF, 0xFF00, 0xFF0000, 0xFF000000): ("rgba8snorm", ""),
    (_SIGNED, 32, 0xFFFF, 0xFFFF0000, 0, 0): ("rg16snorm", ""),
    (_ALPHA_ONLY, 8, 0, 0, 0, 0xFF): ("r8unorm", "000r"),
}


_TEN_BITS_WARNING = (
    "ten bits a channel: its masks are taken for what they say, which some writers (D3DX) mix up for red and blue"
)


def _legacy_format(header: _Header) -> tuple[FileFormat, Expansion | None]:
    """The format that a DDS_PIXELFORMAT describes by its FourCC or its masks."""
    if header.format_flags & _IS_FOURCC:
        if header.fourcc in FOURCC_FORMATS:
            return FOURCC_FORMATS[header.fourcc], None
        code = header.fourcc.to_bytes(4, "little")
        name = f"D3DFORMAT {header.fourcc}" if header.fourcc < 1000 else f"FourCC {code.decode('ascii', 'replace')}"
        raise UnsupportedTexture(f"{name} has no counterpart in WebGPU{advice(name, 'texconv -f R8G8B8A8_UNORM')}")
    flags, bits = header.format_flags, header.bits
    alpha = header.alpha if flags & (_HAS_ALPHA | _ALPHA_ONLY | _SIGNED) else 0
    kind = next((kind for kind in (_RGB, _LUMINANCE, _SIGNED, _ALPHA_ONLY) if flags & kind), 0)
    red, green, blue = header.red, header.green, header.blue
    if kind == _LUMINANCE:  # its red mask is the only one that counts
        green = blue = 0
        if bits == 8 and not alpha:  # whatever that says
            return FileFormat("L8", "rgba8unorm", "l8", "opaque"), EXPANSIONS["l8"]
    elif kind == _ALPHA_ONLY:
        red = green = blue = 0
    masks = red, green, blue, alpha
    name = f"{bits} bits with masks {red:#x}, {green:#x}, {blue:#x}, {alpha:#x}"
    if (kind, bits, *masks) in _MASK_FORMATS:
        format, swizzle = _MASK_FORMATS[kind, bits, *masks]
        warning = _TEN_BITS_WARNING if format == "rgb10a2unorm" else ""
        return FileFormat(name, format, swizzle=swizzle, warning=warning), None
    if (kind, bits, *masks) == (_RGB, 32, 0x3FF00000, 0x000FFC00, 0x000003FF, 0xC0000000):
        return FileFormat(name, "rgb10a2unorm", "bgr10a2", warning=_TEN_BITS_WARNING), EXPANSIONS["bgr10a2"]
    expansion = None
    if kind == _RGB:
        expansion = of_masks(bits, *masks)
    elif kind == _LUMINANCE:
        expansion = of_masks(bits, red, red, red, alpha)
    if expansion is None:
        raise UnsupportedTexture(
            f"texels of {name} (flags {flags:#x}) have no counterpart in WebGPU: convert the file, for instance by "
            "texconv -f R8G8B8A8_UNORM"
        )
    return FileFormat(name, "rgba8unorm", alpha=None if alpha else "opaque"), expansion


def _legacy_dimension(header: _Header) -> tuple[str, int]:
    """(dimension, layers) of a file without the newer header."""
    if header.caps2 & _CUBE and not header.caps2 & _VOLUME:
        if header.caps2 & _ALL_FACES != _ALL_FACES:
            raise UnsupportedTexture("a cube map without all its six faces, which WebGPU does not have")
        return "cube", 6
    return ("3d", 1) if header.caps2 & _VOLUME or header.flags & _DEPTH else ("2d", 1)


# -- where its content is --


def _shape(source: Source, header: _Header, kind: _Kind, warnings: list[str]) -> Shape:
    """With the mip levels, and the faces, that the file has content for."""
    depth = max(1, header.depth) if kind.dimension == "3d" else 1
    texel = kind.expansion and kind.expansion.block
    size, levels = (header.width, header.height, depth, kind.layers), max(1, header.levels)
    shape = Shape(kind.format.format, *size, levels, kind.dimension, texel)
    cube = replace(shape, layers=6 * shape.layers, dimension=dimension_name(True, shape.layers > 1, False))
    has_too_many = shape.levels > max(1, shape.most_levels)
    if not (kind.or_cube or has_too_many) or min(shape.size) < 1:
        shape.check()
        return shape
    # All levels that there can be, or one, or the faces that only the older header tells of: what has just this length.
    for some in (cube, shape) if kind.or_cube else (shape,):
        for levels in (shape.most_levels, 1) if has_too_many else (shape.levels,):
            found = replace(some, levels=levels)
            if _end(_levels(found, kind.start)) == source.size:
                if has_too_many:
                    warnings.append(f"{shape.levels} mip levels are declared; there is content for {levels}")
                if some is cube:
                    warnings.append("only its older header says that it is a cube map")
                elif kind.or_cube:
                    warnings.append("its older header says that it is a cube map, which it has no content for")
                found.check()
                return found
    if has_too_many:
        shape.check()  # which refuses it
    raise InvalidTexture(
        f"whether it is a cube map is not clear: one of its headers says so, and {source.size - kind.start} bytes of "
        f"content are neither {shape.layers} nor {cube.layers} images"
    )


def _levels(shape: Shape, start: int) -> tuple[Level, ...]:
    """The levels of one layer follow each other, and so do the layers."""
    parts = 1 if shape.dimension == "3d" else shape.layers
    sizes = [shape.level_bytes(number) for number in range(shape.levels)]
    chain = sum(sizes) // parts
    found, offset = [], start
    for number, nbytes in enumerate(sizes):
        stored = nbytes // parts
        found.append(Level(*shape.level_size(number), nbytes, offset, stored, parts, chain))
        offset += stored
    return tuple(found)


def _end(levels: Sequence[Level]) -> int:
    return max(level.end for level in levels)
