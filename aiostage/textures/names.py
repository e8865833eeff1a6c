"""The texture formats of KTX2, DDS and KTX files by number, code and name, and what WebGPU has for them.

Sources: `VkFormat` of the Vulkan specification, section "Formats"; `DXGI_FORMAT` of dxgiformat.h; for the FourCC codes
and masks of older DDS files "Programming Guide for DDS" and "DDS_PIXELFORMAT",
<https://learn.microsoft.com/windows/win32/direct3ddds>, and what writers make of them: DirectXTex,
<https://github.com/microsoft/DirectXTex>.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple


class FileFormat(NamedTuple):
    """What one format of a file is on the GPU."""

    name: str
    """As the file's specification has it."""
    format: str
    """WebGPU's."""
    expansion: str = ""
    """What makes texels of that format of the file's: a key of `expand.EXPANSIONS`; nothing: they are the same."""
    alpha: str | None = None
    """"opaque", "premultiplied" or "custom", where the format says so."""
    swizzle: str = ""
    """Which channels to read for red, green, blue and alpha, if not those; "1" and "0" are constants."""
    warning: str = ""


# -- Vulkan's numbers --

_8 = "UNORM SNORM USCALED SSCALED UINT SINT SRGB"
_10 = "UNORM SNORM USCALED SSCALED UINT SINT"
_16 = "UNORM SNORM USCALED SSCALED UINT SINT SFLOAT"
_32 = "UINT SINT SFLOAT"
_VK_FAMILIES = (
    # Consecutive from 1 on: (name, its kinds)
    ("R4G4_*_PACK8", "UNORM"), ("R4G4B4A4_*_PACK16", "UNORM"), ("B4G4R4A4_*_PACK16", "UNORM"),
    ("R5G6B5_*_PACK16", "UNORM"), ("B5G6R5_*_PACK16", "UNORM"), ("R5G5B5A1_*_PACK16", "UNORM"),
    ("B5G5R5A1_*_PACK16", "UNORM"), ("A1R5G5B5_*_PACK16", "UNORM"),
    ("R8_*", _8), ("R8G8_*", _8), ("R8G8B8_*", _8), ("B8G8R8_*", _8), ("R8G8B8A8_*", _8), ("B8G8R8A8_*", _8),
    ("A8B8G8R8_*_PACK32", _8), ("A2R10G10B10_*_PACK32", _10), ("A2B10G10R10_*_PACK32", _10),
    ("R16_*", _16), ("R16G16_*", _16), ("R16G16B16_*", _16), ("R16G16B16A16_*", _16),
    ("R32_*", _32), ("R32G32_*", _32), ("R32G32B32_*", _32), ("R32G32B32A32_*", _32),
    ("R64_*", _32), ("R64G64_*", _32), ("R64G64B64_*", _32), ("R64G64B64A64_*", _32),
    ("B10G11R11_*_PACK32", "UFLOAT"), ("E5B9G9R9_*_PACK32", "UFLOAT"),
    ("D16_*", "UNORM"), ("X8_D24_*_PACK32", "UNORM"), ("D32_*", "SFLOAT"), ("S8_*", "UINT"),
    ("D16_UNORM_S8_*", "UINT"), ("D24_UNORM_S8_*", "UINT"), ("D32_SFLOAT_S8_*", "UINT"),
    ("BC1_RGB_*_BLOCK", "UNORM SRGB"), ("BC1_RGBA_*_BLOCK", "UNORM SRGB"), ("BC2_*_BLOCK", "UNORM SRGB"),
    ("BC3_*_BLOCK", "UNORM SRGB"), ("BC4_*_BLOCK", "UNORM SNORM"), ("BC5_*_BLOCK", "UNORM SNORM"),
    ("BC6H_*_BLOCK", "UFLOAT SFLOAT"), ("BC7_*_BLOCK", "UNORM SRGB"),
    ("ETC2_R8G8B8_*_BLOCK", "UNORM SRGB"), ("ETC2_R8G8B8A1_*_BLOCK", "UNORM SRGB"),
    ("ETC2_R8G8B8A8_*_BLOCK", "UNORM SRGB"), ("EAC_R11_*_BLOCK", "UNORM SNORM"), ("EAC_R11G11_*_BLOCK", "UNORM SNORM"),
    *((f"ASTC_{size}_*_BLOCK", "UNORM SRGB") for size in
      ["4x4", "5x4", "5x5", "6x5", "6x6", "8x5", "8x6", "8x8", "10x5", "10x6", "10x8", "10x10", "12x10", "12x12"]),
)  # fmt: skip
_VK_OTHERS = {
    1000340000: "A4R4G4B4_UNORM_PACK16", 1000340001: "A4B4G4R4_UNORM_PACK16",
    1000470000: "A1B5G5R5_UNORM_PACK16", 1000470001: "A8_UNORM",
    **{1000066000 + number: f"ASTC_{size}_SFLOAT_BLOCK" for number, size in enumerate(
        ["4x4", "5x4", "5x5", "6x5", "6x6", "8x5", "8x6", "8x8", "10x5", "10x6", "10x8", "10x10", "12x10", "12x12"])},
    **{1000054000 + number: f"PVRTC{version}_{bits}BPP_{kind}_BLOCK_IMG" for number, (kind, version, bits) in enumerate(
        (kind, version, bits) for kind in ("UNORM", "SRGB") for version in (1, 2) for bits in (2, 4))},
}  # fmt: skip


def _vk_names() -> Iterator[tuple[int, str]]:
    number = 1
    for family, kinds in _VK_FAMILIES:
        for kind in kinds.split():
            yield number, "VK_FORMAT_" + family.replace("*", kind)
            number += 1
    for number, name in _VK_OTHERS.items():
        yield number, "VK_FORMAT_" + name


VK_NAMES = dict(_vk_names())
"""By number, whether anything here can make use of them or not."""

# Channels in this order in memory are WebGPU's; the kinds that it has of each.
_TWINS = {
    "R8": "r8", "R8G8": "rg8", "R8G8B8A8": "rgba8", "B8G8R8A8": "bgra8", "A8B8G8R8_PACK32": "rgba8",
    "A2B10G10R10_PACK32": "rgb10a2", "R16": "r16", "R16G16": "rg16", "R16G16B16A16": "rgba16",
    "R32": "r32", "R32G32": "rg32", "R32G32B32A32": "rgba32",
}  # fmt: skip
_KINDS = {"UNORM": "unorm", "SNORM": "snorm", "UINT": "uint", "SINT": "sint", "SFLOAT": "float", "SRGB": "unorm-srgb"}
_NO_TWIN = {"r8unorm-srgb", "rg8unorm-srgb", "bgra8snorm", "bgra8uint", "bgra8sint", "rgb10a2snorm", "rgb10a2sint"}
_PACKED = {"B10G11R11_UFLOAT_PACK32": "rg11b10ufloat", "E5B9G9R9_UFLOAT_PACK32": "rgb9e5ufloat"}
_BLOCKS = {
    "BC1": "bc1-rgba", "BC1_RGB": "bc1-rgba", "BC1_RGBA": "bc1-rgba", "BC2": "bc2-rgba", "BC3": "bc3-rgba",
    "BC4": "bc4-r", "BC5": "bc5-rg", "BC6H": "bc6h-rgb", "BC7": "bc7-rgba",
    "ETC2_R8G8B8": "etc2-rgb8", "ETC2_R8G8B8A1": "etc2-rgb8a1", "ETC2_R8G8B8A8": "etc2-rgba8",
    "EAC_R11": "eac-r11", "EAC_R11G11": "eac-rg11",
}  # fmt: skip
_PUNCHED = (
    "BC1 without alpha: WebGPU has BC1 with it, so texels that are black by index 3 get alpha 0. A shader that takes "
    "alpha for 1 shows what the file means"
)


def _vk_format(name: str) -> FileFormat | None:
    full, name = name, name.removeprefix("VK_FORMAT_")
    if name in _PACKED:
        return FileFormat(full, _PACKED[name])
    if name == "A8_UNORM":
        return FileFormat(full, "r8unorm", swizzle="000r")
    if name.endswith("_BLOCK") and "SFLOAT" not in name.replace("BC6H_SFLOAT", ""):
        family, _, kind = name.removesuffix("_BLOCK").rpartition("_")
        between = "" if family.startswith(("ETC2", "EAC")) else "-"
        if family.startswith("ASTC"):
            return FileFormat(full, f"{family.lower().replace('_', '-')}-{_KINDS[kind]}")
        opaque = family == "BC1_RGB"
        kind = {"UFLOAT": "ufloat", **_KINDS}[kind]
        made = FileFormat(full, _BLOCKS[family] + between + kind)
        return made._replace(alpha="opaque", warning=_PUNCHED) if opaque else made
    channels, _, kind = name.removesuffix("_PACK32").removesuffix("_PACK16").removesuffix("_PACK8").rpartition("_")
    packed = next((pack for pack in ("_PACK32", "_PACK16", "_PACK8") if name.endswith(pack)), "")
    if kind in _KINDS and (twin := _TWINS.get(channels + packed)) and twin + _KINDS[kind] not in _NO_TWIN:
        return FileFormat(full, twin + _KINDS[kind])
    found = _VK_EXPANDED.get((channels + packed, kind))
    return found and FileFormat(full, found[0], found[1], "opaque" if found[2] else None)


def _vk_expanded() -> Iterator[tuple[tuple[str, str], tuple[str, str, bool]]]:
    """((channels, kind), (format, expansion, whether there is no alpha))."""
    for channels, order in (("R8G8B8", "rgb"), ("B8G8R8", "bgr")):
        for kind in ("UNORM", "SNORM", "UINT", "SINT", "SRGB"):
            to = _KINDS[kind]
            yield (channels, kind), ("rgba8" + to, f"{order}8{to.removesuffix('-srgb')}", True)
    for kind in ("UNORM", "SNORM", "UINT", "SINT", "SFLOAT"):
        yield ("R16G16B16", kind), ("rgba16" + _KINDS[kind], "rgb16" + _KINDS[kind], True)
    for kind in ("UINT", "SINT", "SFLOAT"):
        yield ("R32G32B32", kind), ("rgba32" + _KINDS[kind], "rgb32" + _KINDS[kind], True)
    yield ("R8", "SRGB"), ("rgba8unorm-srgb", "r8unorm", True)
    yield ("R8G8", "SRGB"), ("rgba8unorm-srgb", "rg8unorm", True)
    yield ("A2R10G10B10_PACK32", "UNORM"), ("rgb10a2unorm", "bgr10a2", False)
    yield ("A2R10G10B10_PACK32", "UINT"), ("rgb10a2uint", "bgr10a2", False)
    for channels in ("R4G4B4A4", "B4G4R4A4", "R5G6B5", "B5G6R5", "R5G5B5A1", "B5G5R5A1", "A1R5G5B5", "A4R4G4B4",
                     "A4B4G4R4", "A1B5G5R5"):  # fmt: skip
        yield (channels + "_PACK16", "UNORM"), ("rgba8unorm", channels.lower(), "A" not in channels)
    yield ("R4G4_PACK8", "UNORM"), ("rgba8unorm", "r4g4", True)


_VK_EXPANDED = dict(_vk_expanded())
VK_FORMATS = {number: found for number, name in VK_NAMES.items() if (found := _vk_format(name))}
"""What can be read of them."""

# -- DXGI's numbers --

# From 1 on; with the kinds of each in their order.
_DXGI = """
R32G32B32A32_TYPELESS R32G32B32A32_FLOAT R32G32B32A32_UINT R32G32B32A32_SINT
R32G32B32_TYPELESS R32G32B32_FLOAT R32G32B32_UINT R32G32B32_SINT
R16G16B16A16_TYPELESS R16G16B16A16_FLOAT R16G16B16A16_UNORM R16G16B16A16_UINT R16G16B16A16_SNORM R16G16B16A16_SINT
R32G32_TYPELESS R32G32_FLOAT R32G32_UINT R32G32_SINT
R32G8X24_TYPELESS D32_FLOAT_S8X24_UINT R32_FLOAT_X8X24_TYPELESS X32_TYPELESS_G8X24_UINT
R10G10B10A2_TYPELESS R10G10B10A2_UNORM R10G10B10A2_UINT R11G11B10_FLOAT
R8G8B8A8_TYPELESS R8G8B8A8_UNORM R8G8B8A8_UNORM_SRGB R8G8B8A8_UINT R8G8B8A8_SNORM R8G8B8A8_SINT
R16G16_TYPELESS R16G16_FLOAT R16G16_UNORM R16G16_UINT R16G16_SNORM R16G16_SINT
R32_TYPELESS D32_FLOAT R32_FLOAT R32_UINT R32_SINT
R24G8_TYPELESS D24_UNORM_S8_UINT R24_UNORM_X8_TYPELESS X24_TYPELESS_G8_UINT
R8G8_TYPELESS R8G8_UNORM R8G8_UINT R8G8_SNORM R8G8_SINT
R16_TYPELESS R16_FLOAT D16_UNORM R16_UNORM R16_UINT R16_SNORM R16_SINT
R8_TYPELESS R8_UNORM R8_UINT R8_SNORM R8_SINT A8_UNORM R1_UNORM R9G9B9E5_SHAREDEXP R8G8_B8G8_UNORM G8R8_G8B8_UNORM
BC1_TYPELESS BC1_UNORM BC1_UNORM_SRGB BC2_TYPELESS BC2_UNORM BC2_UNORM_SRGB BC3_TYPELESS BC3_UNORM BC3_UNORM_SRGB
BC4_TYPELESS BC4_UNORM BC4_SNORM BC5_TYPELESS BC5_UNORM BC5_SNORM
B5G6R5_UNORM B5G5R5A1_UNORM B8G8R8A8_UNORM B8G8R8X8_UNORM R10G10B10_XR_BIAS_A2_UNORM
B8G8R8A8_TYPELESS B8G8R8A8_UNORM_SRGB B8G8R8X8_TYPELESS B8G8R8X8_UNORM_SRGB
BC6H_TYPELESS BC6H_UF16 BC6H_SF16 BC7_TYPELESS BC7_UNORM BC7_UNORM_SRGB
AYUV Y410 Y416 NV12 P010 P016 420_OPAQUE YUY2 Y210 Y216 NV11 AI44 IA44 P8 A8P8 B4G4R4A4_UNORM
"""
DXGI_NAMES = {number: "DXGI_FORMAT_" + name for number, name in enumerate(_DXGI.split(), 1)}
"""By number, whether anything here can make use of them or not."""

_DXGI_OTHERS = {
    # (format, expansion); those of 16 bits are named from the highest bit on, which DXGI names last.
    "R11G11B10_FLOAT": ("rg11b10ufloat", ""), "R9G9B9E5_SHAREDEXP": ("rgb9e5ufloat", ""),
    "BC6H_UF16": ("bc6h-rgb-ufloat", ""), "BC6H_SF16": ("bc6h-rgb-float", ""),
    "R32G32B32_FLOAT": ("rgba32float", "rgb32float"), "R32G32B32_UINT": ("rgba32uint", "rgb32uint"),
    "R32G32B32_SINT": ("rgba32sint", "rgb32sint"),
    "B8G8R8X8_UNORM": ("bgra8unorm", "rgbx8"), "B8G8R8X8_UNORM_SRGB": ("bgra8unorm-srgb", "rgbx8"),
    "B5G6R5_UNORM": ("rgba8unorm", "r5g6b5"), "B5G5R5A1_UNORM": ("rgba8unorm", "a1r5g5b5"),
    "B4G4R4A4_UNORM": ("rgba8unorm", "a4r4g4b4"),
}  # fmt: skip
# What a typeless format is mostly used for.
_TYPELESS = {"R32G32B32A32": "FLOAT", "R32G32B32": "FLOAT", "R32G32": "FLOAT", "R32": "FLOAT", "BC6H": "UF16"}


def _dxgi_format(name: str) -> FileFormat | None:
    full, name = name, name.removeprefix("DXGI_FORMAT_")
    if name == "A8_UNORM":
        return FileFormat(full, "r8unorm", swizzle="000r")
    channels, _, kind = name.partition("_")
    if kind == "TYPELESS" and channels not in ("R32G8X24", "R24G8"):
        meant = _dxgi_format(f"DXGI_FORMAT_{channels}_{_TYPELESS.get(channels, 'UNORM')}")
        return meant and meant._replace(name=full)
    if name in _DXGI_OTHERS:
        format, expansion = _DXGI_OTHERS[name]
        opaque = channels in ("R32G32B32", "B8G8R8X8", "B5G6R5", "R11G11B10", "R9G9B9E5", "BC6H")
        return FileFormat(full, format, expansion, "opaque" if opaque else None)
    kind = {"FLOAT": "float", "UNORM_SRGB": "unorm-srgb"}.get(kind) or _KINDS.get(kind, "")
    if channels in _BLOCKS and kind:
        return FileFormat(full, f"{_BLOCKS[channels]}-{kind}")
    twin = _TWINS.get(channels) or {"R10G10B10A2": "rgb10a2"}.get(channels)
    return FileFormat(full, twin + kind) if twin and kind and twin + kind not in _NO_TWIN else None


DXGI_FORMATS = {number: found for number, name in DXGI_NAMES.items() if (found := _dxgi_format(name))}
"""What can be read of them."""

# -- DDS without these --

_PREMULTIPLIED = "premultiplied"
FOURCC_FORMATS = {
    int.from_bytes(code, "little"): FileFormat(f"FourCC {code.rstrip(bytes(1)).decode()}", format, alpha=alpha)
    for code, format, alpha in (
        (b"DXT1", "bc1-rgba-unorm", None),
        (b"DXT2", "bc2-rgba-unorm", _PREMULTIPLIED), (b"DXT3", "bc2-rgba-unorm", None),
        (b"DXT4", "bc3-rgba-unorm", _PREMULTIPLIED), (b"DXT5", "bc3-rgba-unorm", None),
        (b"ATI1", "bc4-r-unorm", None), (b"BC4U", "bc4-r-unorm", None), (b"BC4S", "bc4-r-snorm", None),
        (b"ATI2", "bc5-rg-unorm", None), (b"BC5U", "bc5-rg-unorm", None), (b"BC5S", "bc5-rg-snorm", None),
        (b"A2XY", "bc5-rg-unorm", None), (b"BC6H", "bc6h-rgb-ufloat", "opaque"),
        (b"BC7\0", "bc7-rgba-unorm", None), (b"BC7L", "bc7-rgba-unorm", None),
    )
} | {
    # Numbers of D3DFORMAT, where a FourCC would be.
    number: FileFormat(f"D3DFMT_{name}", format)
    for number, name, format in (
        (36, "A16B16G16R16", "rgba16unorm"), (110, "Q16W16V16U16", "rgba16snorm"), (111, "R16F", "r16float"),
        (112, "G16R16F", "rg16float"), (113, "A16B16G16R16F", "rgba16float"), (114, "R32F", "r32float"),
        (115, "G32R32F", "rg32float"), (116, "A32B32G32R32F", "rgba32float"),
    )
}  # fmt: skip

FORMATS = tuple(dict.fromkeys(found.format for table in (VK_FORMATS, DXGI_FORMATS) for found in table.values()))
"""Every format that a file may become, by WebGPU's name."""


def advice(name: str, tool: str) -> str:
    """What would make a format load that WebGPU has nothing for."""
    kind = name.partition("FORMAT_")[2] or name
    for pattern, hint in (
        ("PVRTC", "encode the image as ETC2, ASTC or BC7"),
        ("ASTC", "the HDR profile of ASTC; encode the image as BC6H, or store it as R16G16B16A16"),
        ("D16|D24|D32|S8|X8_|R24|R32G8|X24|X32", "depth and stencil, which a copy from a file cannot write in WebGPU"),
        ("64", "store its channels in 32 bits"),
        ("SCALED", "store it as UINT or SINT"),
        ("YUV|YUY|Y2|Y4|NV1|P01|420|UYVY|R8G8_B8|G8R8_G8|AI44|IA44", "convert it to RGB"),
        ("XR_BIAS", "store it as R16G16B16A16_FLOAT"),
    ):
        if re.search(pattern, kind):
            return f": {hint}"
    return f": convert the file, for instance by {tool}"
