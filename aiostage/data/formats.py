"""What WebGPU's texture formats say about a copy from a buffer to a texture.

A copy moves whole *texel blocks*: one texel of an uncompressed format, a rectangle of texels of a compressed
one. What a block takes in the buffer is its *copy footprint*. Depth and stencil are separate *aspects* of a
format; a copy writes one of them, and some of them no copy from a buffer may write.

Source: WebGPU, section 26.1 "Texture Format Capabilities", <https://www.w3.org/TR/webgpu/#texture-format-caps>:
its tables of plain colour formats (26.1.1), depth-stencil formats (26.1.2, columns "Valid texel copy
destination" and "Texel block copy footprint") and packed formats (26.1.3). `tests/test_formats.py` compares
all of it with wgpu.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

COPY_BYTES_PER_ROW_ALIGNMENT = 256
"""Bytes. `bytes_per_row` of a copy from a buffer is a multiple of it; `GPUQueue.write_texture` takes any."""


class TexelBlock(NamedTuple):
    """The unit that a copy moves."""

    width: int  # texels
    height: int  # texels
    nbytes: int  # in the buffer: the texel block copy footprint


def texel_block(format: str, aspect: str = "all") -> TexelBlock:
    """The texel block that a copy from a buffer writes to this aspect: "all", "depth-only" or "stencil-only".

    "all" stands for the only aspect of a format that has one; of a combined depth-stencil format, choose.

    :raises ValueError: unknown format or aspect; the format lacks that aspect, or has two and none was
        chosen; a copy from a buffer may not write it
    """
    try:
        return _FORMATS[format].blocks[aspect]
    except KeyError:
        raise ValueError(_why_no_block(format, aspect)) from None


def bytes_per_row(format: str, width: int, aspect: str = "all") -> int:
    """Bytes of one row of blocks, without padding. `width` is in texels; a block that it cuts counts whole.

    :raises ValueError: as for `texel_block`
    """
    block = texel_block(format, aspect)
    return -(-width // block.width) * block.nbytes


def aligned_bytes_per_row(format: str, width: int, aspect: str = "all") -> int:
    """`bytes_per_row`, padded to the next multiple of `COPY_BYTES_PER_ROW_ALIGNMENT`.

    :raises ValueError: as for `texel_block`
    """
    return padded_row(bytes_per_row(format, width, aspect))


def padded_row(row_bytes: int) -> int:
    """`row_bytes` rounded up to the 256 bytes that a copy from a buffer to a texture demands."""
    return -(-row_bytes // COPY_BYTES_PER_ROW_ALIGNMENT) * COPY_BYTES_PER_ROW_ALIGNMENT


def is_depth_stencil(format: str) -> bool:
    """Whether the format has a depth or a stencil aspect.

    A copy to it covers the full width and height of the mip level and, other than `GPUQueue.write_texture`,
    starts at a multiple of 4 bytes in the buffer (WebGPU, "validating GPUTexelCopyTextureInfo" and
    "validating texture buffer copy").

    :raises ValueError: unknown format
    """
    _known(format)
    return format in _DEPTH_STENCIL


def required_feature(format: str) -> str | None:
    """The feature that a device must have been requested with for a texture of this format, if any.

    For 16-bit unorm and snorm that is wgpu-native's name; the specification has them in
    "texture-formats-tier1", which wgpu-py 0.32 does not offer.

    :raises ValueError: unknown format
    """
    return _known(format).feature


def numpy_layout(format: str) -> tuple[np.dtype[Any], int] | None:
    """The natural dtype of one texel in the buffer, and how many elements of it (channels) a texel has.

    Packed formats are one uint32 for a texel. A combined depth-stencil format gives its stencil, all that a
    copy may write. None where no array is natural: block-compressed formats and depth that no copy may write.

    :raises ValueError: unknown format
    """
    return _known(format).layout


# -- The tables --

# Each of these channel types exists as r, rg and rgba.
_PLAIN_CHANNELS = (
    "8unorm", "8snorm", "8uint", "8sint",
    "16unorm", "16snorm", "16uint", "16sint", "16float",
    "32uint", "32sint", "32float",
)  # fmt: skip
_PLAIN_OTHERS = ("rgba8unorm-srgb", "bgra8unorm", "bgra8unorm-srgb")
_16BIT_NORM_FEATURE = "texture-format16bit-norm"
_DTYPE_KINDS = {"unorm": "uint", "uint": "uint", "snorm": "int", "sint": "int", "float": "float"}

_PACKED = ("rgb9e5ufloat", "rgb10a2uint", "rgb10a2unorm", "rg11b10ufloat")  # 4 bytes

# Blocks of 4x4 texels: feature, bytes of a block, formats. A star says that the format exists as -srgb, too.
_COMPRESSED = (
    ("texture-compression-bc", 8, "bc1-rgba-unorm* bc4-r-unorm bc4-r-snorm"),
    ("texture-compression-bc", 16, "bc2-rgba-unorm* bc3-rgba-unorm* bc5-rg-unorm bc5-rg-snorm"),
    ("texture-compression-bc", 16, "bc6h-rgb-ufloat bc6h-rgb-float bc7-rgba-unorm*"),
    ("texture-compression-etc2", 8, "etc2-rgb8unorm* etc2-rgb8a1unorm* eac-r11unorm eac-r11snorm"),
    ("texture-compression-etc2", 16, "etc2-rgba8unorm* eac-rg11unorm eac-rg11snorm"),
)
_ASTC_BLOCKS = "4x4 5x4 5x5 6x5 6x6 8x5 8x6 8x8 10x5 10x6 10x8 10x10 12x10 12x12"  # texels; all of 16 bytes

# format: {aspect: bytes of a texel, 0 where no copy from a buffer may write it}. Only depth is ever 0.
_DEPTH_STENCIL = {
    "stencil8": {"stencil-only": 1},
    "depth16unorm": {"depth-only": 2},
    "depth24plus": {"depth-only": 0},
    "depth24plus-stencil8": {"depth-only": 0, "stencil-only": 1},
    "depth32float": {"depth-only": 0},
    "depth32float-stencil8": {"depth-only": 0, "stencil-only": 1},
}
_ASPECTS = ("all", "depth-only", "stencil-only")


class _Format(NamedTuple):
    blocks: Mapping[str, TexelBlock]  # by aspect, only what a copy may write
    feature: str | None = None
    layout: tuple[np.dtype[Any], int] | None = None


def _plain(channels: str, channel: str) -> _Format:
    kind = channel.lstrip("0123456789")
    bits = int(channel.removesuffix(kind))
    feature = _16BIT_NORM_FEATURE if bits == 16 and kind.endswith("norm") else None
    dtype = np.dtype(f"{_DTYPE_KINDS[kind]}{bits}")
    return _Format({"all": TexelBlock(1, 1, len(channels) * bits // 8)}, feature, (dtype, len(channels)))


def _depth_stencil(format: str, aspects: Mapping[str, int]) -> _Format:
    feature = format if format == "depth32float-stencil8" else None
    for aspect, nbytes in aspects.items():
        if nbytes:  # never two of them
            names = (aspect, "all") if len(aspects) == 1 else (aspect,)
            block = TexelBlock(1, 1, nbytes)
            return _Format(dict.fromkeys(names, block), feature, (np.dtype(f"uint{8 * nbytes}"), 1))
    return _Format({}, feature)


def _all_formats() -> Iterator[tuple[str, _Format]]:
    for channels in ("r", "rg", "rgba"):
        for channel in _PLAIN_CHANNELS:
            yield channels + channel, _plain(channels, channel)
    for name in _PLAIN_OTHERS:
        yield name, _plain("rgba", "8unorm")
    for name in _PACKED:
        yield name, _Format({"all": TexelBlock(1, 1, 4)}, layout=(np.dtype("uint32"), 1))
    for name, aspects in _DEPTH_STENCIL.items():
        yield name, _depth_stencil(name, aspects)
    for feature, nbytes, names in _COMPRESSED:
        compressed = _Format({"all": TexelBlock(4, 4, nbytes)}, feature)
        for name in names.split():
            yield name.removesuffix("*"), compressed
            if name.endswith("*"):
                yield name.removesuffix("*") + "-srgb", compressed
    for size in _ASTC_BLOCKS.split():
        width, height = map(int, size.split("x"))
        astc = _Format({"all": TexelBlock(width, height, 16)}, "texture-compression-astc")
        yield f"astc-{size}-unorm", astc
        yield f"astc-{size}-unorm-srgb", astc


_FORMATS = dict(_all_formats())


def _known(format: str) -> _Format:
    try:
        return _FORMATS[format]
    except KeyError:
        raise ValueError(f"unknown texture format {format!r}") from None


def _why_no_block(format: str, aspect: str) -> str:
    if format not in _FORMATS:
        return f"unknown texture format {format!r}"
    if aspect not in _ASPECTS:
        return f"unknown texture aspect {aspect!r}: it must be one of {', '.join(map(repr, _ASPECTS))}"
    if format not in _DEPTH_STENCIL:
        return f"{format!r} is a colour format: it has no aspect {aspect!r}, only 'all'"
    aspects = _DEPTH_STENCIL[format]
    if aspect == "all" and len(aspects) > 1:
        writable = " or ".join(repr(name) for name, nbytes in aspects.items() if nbytes)
        return f"{format!r} has two aspects and a copy writes one: choose {writable}"
    if aspect != "all" and aspect not in aspects:
        return f"{format!r} has no aspect {aspect!r}, only {', '.join(map(repr, aspects))}"
    return (
        f"a copy from a buffer may not write the depth of {format!r}: "
        "render to it, or copy it from another texture of the same format"
    )
