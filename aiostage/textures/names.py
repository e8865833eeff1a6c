"""WebGPU's texture formats by the numbers that KTX2 and DDS files have for them.

Sources: `VkFormat` of the Vulkan specification, section "Formats"; `DXGI_FORMAT` of dxgiformat.h; for the FourCC codes
of older DDS files "Programming Guide for DDS" and
"DDS_PIXELFORMAT", <https://learn.microsoft.com/windows/win32/direct3ddds>.
"""

from __future__ import annotations

from collections.abc import Iterator

# (WebGPU, VkFormat, DXGI_FORMAT); 0 where there is none.
_PLAIN = (
    ("r8unorm", 9, 61), ("r8snorm", 10, 63), ("r8uint", 13, 62), ("r8sint", 14, 64),
    ("rg8unorm", 16, 49), ("rg8snorm", 17, 51), ("rg8uint", 20, 50), ("rg8sint", 21, 52),
    ("rgba8unorm", 37, 28), ("rgba8snorm", 38, 31), ("rgba8uint", 41, 30), ("rgba8sint", 42, 32),
    ("rgba8unorm-srgb", 43, 29), ("bgra8unorm", 44, 87), ("bgra8unorm-srgb", 50, 91),
    ("rgb10a2unorm", 64, 24), ("rgb10a2uint", 68, 25),
    ("r16unorm", 70, 56), ("r16snorm", 71, 58), ("r16uint", 74, 57), ("r16sint", 75, 59), ("r16float", 76, 54),
    ("rg16unorm", 77, 35), ("rg16snorm", 78, 37), ("rg16uint", 81, 36), ("rg16sint", 82, 38), ("rg16float", 83, 34),
    ("rgba16unorm", 91, 11), ("rgba16snorm", 92, 13), ("rgba16uint", 95, 12), ("rgba16sint", 96, 14),
    ("rgba16float", 97, 10),
    ("r32uint", 98, 42), ("r32sint", 99, 43), ("r32float", 100, 41),
    ("rg32uint", 101, 17), ("rg32sint", 102, 18), ("rg32float", 103, 16),
    ("rgba32uint", 107, 3), ("rgba32sint", 108, 4), ("rgba32float", 109, 2),
    ("rg11b10ufloat", 122, 26), ("rgb9e5ufloat", 123, 67),
)  # fmt: skip
_BC = (
    # Vulkan also has BC1 without alpha, 131 and 132. WebGPU samples its blocks as with alpha: 1 but for "black" texels.
    ("bc1-rgba-unorm", 131, 0), ("bc1-rgba-unorm-srgb", 132, 0),
    ("bc1-rgba-unorm", 133, 71), ("bc1-rgba-unorm-srgb", 134, 72),
    ("bc2-rgba-unorm", 135, 74), ("bc2-rgba-unorm-srgb", 136, 75),
    ("bc3-rgba-unorm", 137, 77), ("bc3-rgba-unorm-srgb", 138, 78),
    ("bc4-r-unorm", 139, 80), ("bc4-r-snorm", 140, 81),
    ("bc5-rg-unorm", 141, 83), ("bc5-rg-snorm", 142, 84),
    ("bc6h-rgb-ufloat", 143, 95), ("bc6h-rgb-float", 144, 96),
    ("bc7-rgba-unorm", 145, 98), ("bc7-rgba-unorm-srgb", 146, 99),
)  # fmt: skip
_ETC2 = (
    "etc2-rgb8unorm", "etc2-rgb8unorm-srgb", "etc2-rgb8a1unorm", "etc2-rgb8a1unorm-srgb",
    "etc2-rgba8unorm", "etc2-rgba8unorm-srgb",
    "eac-r11unorm", "eac-r11snorm", "eac-rg11unorm", "eac-rg11snorm",
)  # fmt: skip
_FIRST_ETC2, _FIRST_ASTC = 147, 157  # VkFormat: consecutive from there
_ASTC = "4x4 5x4 5x5 6x5 6x6 8x5 8x6 8x8 10x5 10x6 10x8 10x10 12x10 12x12"


def _all() -> Iterator[tuple[str, int, int]]:
    yield from _PLAIN
    yield from _BC
    for number, name in enumerate(_ETC2, _FIRST_ETC2):
        yield name, number, 0
    for number, size in enumerate(_ASTC.split()):
        yield f"astc-{size}-unorm", _FIRST_ASTC + 2 * number, 0
        yield f"astc-{size}-unorm-srgb", _FIRST_ASTC + 2 * number + 1, 0


FORMATS = tuple(dict.fromkeys(name for name, _, _ in _all()))
"""Every format that can be read, by WebGPU's name."""

VK_FORMATS = {vk: name for name, vk, _ in _all()}
DXGI_FORMATS = {dxgi: name for name, _, dxgi in _all() if dxgi}

FOURCC_FORMATS = {
    int.from_bytes(code, "little"): name
    for name, codes in {
        "bc1-rgba-unorm": (b"DXT1",),
        "bc2-rgba-unorm": (b"DXT2", b"DXT3"),  # DXT2 and DXT4: the colour is premultiplied by alpha
        "bc3-rgba-unorm": (b"DXT4", b"DXT5"),
        "bc4-r-unorm": (b"ATI1", b"BC4U"),
        "bc4-r-snorm": (b"BC4S",),
        "bc5-rg-unorm": (b"ATI2", b"BC5U"),
        "bc5-rg-snorm": (b"BC5S",),
    }.items()
    for code in codes
} | {
    # Numbers of D3DFORMAT, where a FourCC would be.
    36: "rgba16unorm", 110: "rgba16snorm", 111: "r16float", 112: "rg16float", 113: "rgba16float",
    114: "r32float", 115: "rg32float", 116: "rgba32float",
}  # fmt: skip

MASK_FORMATS = {
    # (bits of a texel, masks of red, green, blue, alpha)
    (32, 0x000000FF, 0x0000FF00, 0x00FF0000, 0xFF000000): "rgba8unorm",
    (32, 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000): "bgra8unorm",
    (8, 0x000000FF, 0, 0, 0): "r8unorm",
    (16, 0x0000FFFF, 0, 0, 0): "r16unorm",
    (32, 0x0000FFFF, 0xFFFF0000, 0, 0): "rg16unorm",
    (32, 0xFFFFFFFF, 0, 0, 0): "r32float",
}
