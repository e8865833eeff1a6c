"""aiostage.data.formats against the specification's tables, and against what wgpu accepts.

Formats that no adapter of this machine offers are compared with the tables only. Mesa's software renderers
have all of them together: lavapipe (Vulkan) BC and 16-bit unorm and snorm, llvmpipe (OpenGL) ETC2, EAC, ASTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import wgpu
from readback import CREATABLE
from wgpu.backends.wgpu_native import _api

from aiostage.data import formats
from aiostage.data.formats import TexelBlock

FORMATS = sorted(wgpu.TextureFormat)
ASPECTS = sorted(wgpu.TextureAspect)

# WebGPU 26.1 "Texture Format Capabilities", row by row: block in texels, copy footprint in bytes, formats.
SPECIFICATION = """
1x1  1  r8unorm r8snorm r8uint r8sint
1x1  2  rg8unorm rg8snorm rg8uint rg8sint
1x1  4  rgba8unorm rgba8unorm-srgb rgba8snorm rgba8uint rgba8sint bgra8unorm bgra8unorm-srgb
1x1  2  r16unorm r16snorm r16uint r16sint r16float
1x1  4  rg16unorm rg16snorm rg16uint rg16sint rg16float
1x1  8  rgba16unorm rgba16snorm rgba16uint rgba16sint rgba16float
1x1  4  r32uint r32sint r32float
1x1  8  rg32uint rg32sint rg32float
1x1 16  rgba32uint rgba32sint rgba32float
1x1  4  rgb10a2uint rgb10a2unorm rg11b10ufloat rgb9e5ufloat
4x4  8  bc1-rgba-unorm bc1-rgba-unorm-srgb bc4-r-unorm bc4-r-snorm
4x4 16  bc2-rgba-unorm bc2-rgba-unorm-srgb bc3-rgba-unorm bc3-rgba-unorm-srgb bc5-rg-unorm bc5-rg-snorm
4x4 16  bc6h-rgb-ufloat bc6h-rgb-float bc7-rgba-unorm bc7-rgba-unorm-srgb
4x4  8  etc2-rgb8unorm etc2-rgb8unorm-srgb etc2-rgb8a1unorm etc2-rgb8a1unorm-srgb eac-r11unorm eac-r11snorm
4x4 16  etc2-rgba8unorm etc2-rgba8unorm-srgb eac-rg11unorm eac-rg11snorm
4x4 16  astc-4x4-unorm astc-4x4-unorm-srgb
5x4 16  astc-5x4-unorm astc-5x4-unorm-srgb
5x5 16  astc-5x5-unorm astc-5x5-unorm-srgb
6x5 16  astc-6x5-unorm astc-6x5-unorm-srgb
6x6 16  astc-6x6-unorm astc-6x6-unorm-srgb
8x5 16  astc-8x5-unorm astc-8x5-unorm-srgb
8x6 16  astc-8x6-unorm astc-8x6-unorm-srgb
8x8 16  astc-8x8-unorm astc-8x8-unorm-srgb
10x5 16  astc-10x5-unorm astc-10x5-unorm-srgb
10x6 16  astc-10x6-unorm astc-10x6-unorm-srgb
10x8 16  astc-10x8-unorm astc-10x8-unorm-srgb
10x10 16  astc-10x10-unorm astc-10x10-unorm-srgb
12x10 16  astc-12x10-unorm astc-12x10-unorm-srgb
12x12 16  astc-12x12-unorm astc-12x12-unorm-srgb
"""
# The aspects of depth-stencil formats that are valid destinations of a texel copy, and their copy footprints.
SPECIFICATION_DEPTH_STENCIL = {
    "stencil8": {"all": 1, "stencil-only": 1},
    "depth16unorm": {"all": 2, "depth-only": 2},
    "depth24plus": {},
    "depth24plus-stencil8": {"stencil-only": 1},
    "depth32float": {},
    "depth32float-stencil8": {"stencil-only": 1},
}


def _specification() -> dict[tuple[str, str], TexelBlock]:
    table: dict[tuple[str, str], TexelBlock] = {}
    for size, nbytes, *names in map(str.split, SPECIFICATION.strip().splitlines()):
        width, height = map(int, size.split("x"))
        table |= {(name, "all"): TexelBlock(width, height, int(nbytes)) for name in names}
    for name, aspects in SPECIFICATION_DEPTH_STENCIL.items():
        table |= {(name, aspect): TexelBlock(1, 1, nbytes) for aspect, nbytes in aspects.items()}
    return table


SPECIFIED = _specification()
REFUSED = [(format, aspect) for format in FORMATS for aspect in ASPECTS if (format, aspect) not in SPECIFIED]


# -- Against the specification --


def test_the_specification_table_here_has_every_format_of_wgpu_once() -> None:
    names = [name for line in SPECIFICATION.strip().splitlines() for name in line.split()[2:]]
    assert sorted([*names, *SPECIFICATION_DEPTH_STENCIL]) == FORMATS


def test_only_formats_of_wgpu_have_an_entry_and_each_has() -> None:
    assert sorted(formats._FORMATS) == FORMATS


@pytest.mark.parametrize(("format", "aspect"), SPECIFIED)
def test_a_block_is_the_specifications(format: str, aspect: str) -> None:
    assert formats.texel_block(format, aspect) == SPECIFIED[format, aspect]


@pytest.mark.parametrize(("format", "aspect"), REFUSED)
def test_what_the_specification_does_not_let_a_copy_write_has_no_block(format: str, aspect: str) -> None:
    with pytest.raises(ValueError, match=f"'{format}'"):
        formats.texel_block(format, aspect)


@pytest.mark.parametrize("format", FORMATS)
def test_depth_stencil_formats_are_known_as_such(format: str) -> None:
    assert formats.is_depth_stencil(format) == (format in SPECIFICATION_DEPTH_STENCIL)


# -- Against wgpu --

DeviceFor = Callable[[str], wgpu.GPUDevice | None]


def _adapters() -> list[wgpu.GPUAdapter]:
    """The software adapters first, and of OpenGL only those, last."""

    def order(adapter: wgpu.GPUAdapter) -> tuple[bool, bool]:
        return adapter.info["backend_type"] == "OpenGL", adapter.info["adapter_type"] != "CPU"

    adapters = sorted(wgpu.gpu.enumerate_adapters_sync(), key=order)
    return [adapter for adapter in adapters if order(adapter) != (True, True)]


@pytest.fixture(scope="module")
def device_for() -> Iterator[DeviceFor]:
    """Gives a device that has the format, of the first adapter that offers it; None where no adapter does."""
    adapters = _adapters()
    wanted = {formats.required_feature(format) for format in FORMATS} - {None}
    devices: dict[int, wgpu.GPUDevice] = {}

    def device_for(format: str) -> wgpu.GPUDevice | None:
        for i, adapter in enumerate(adapters):
            if format in CREATABLE and formats.required_feature(format) in adapter.features | {None}:
                if i not in devices:
                    features = sorted(wanted & adapter.features)
                    devices[i] = adapter.request_device_sync(required_features=features)
                return devices[i]
        return None

    yield device_for
    for device in devices.values():
        device.destroy()


@pytest.fixture(scope="module")
def bare_device() -> Iterator[wgpu.GPUDevice]:
    device = _adapters()[0].request_device_sync()
    yield device
    device.destroy()


@pytest.fixture
def aspect_honoured(monkeypatch: pytest.MonkeyPatch, aspect: str) -> None:
    """wgpu-py 0.32 copies to "all", whatever aspect the destination names: put that right at the C struct."""
    new_struct_p = _api.new_struct_p

    def with_aspect(ctype: str, **fields: object) -> object:
        return new_struct_p(ctype, **(fields | {"aspect": aspect} if "aspect" in fields else fields))

    monkeypatch.setattr(_api, "new_struct_p", with_aspect)


def new_texture(device: wgpu.GPUDevice, format: str, size: tuple[int, int, int]) -> wgpu.GPUTexture:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC | wgpu.TextureUsage.TEXTURE_BINDING
    return device.create_texture(size=size, format=format, usage=usage)


def write_texture(texture: wgpu.GPUTexture, block: TexelBlock, *, missing: int = 0) -> None:
    """Write a texture of 2x3 blocks from data that is `missing` bytes too short."""
    device, layout = texture._device, {"bytes_per_row": 2 * block.nbytes, "rows_per_image": 3}
    device.queue.write_texture({"texture": texture}, bytes(6 * block.nbytes - missing), layout, texture.size)
    device.queue.submit([])


def copy_buffer_to_texture(texture: wgpu.GPUTexture, block: TexelBlock, *, missing: int = 0) -> None:
    """Copy to a texture of 2x3 blocks from a buffer that is `missing` bytes too small."""
    device = texture._device
    nbytes = 2 * formats.COPY_BYTES_PER_ROW_ALIGNMENT + 2 * block.nbytes - missing
    buffer = device.create_buffer(size=nbytes, usage=wgpu.BufferUsage.COPY_SRC)
    source = {
        "buffer": buffer,
        "bytes_per_row": formats.COPY_BYTES_PER_ROW_ALIGNMENT,
        "rows_per_image": 3,
    }
    encoder = device.create_command_encoder()
    encoder.copy_buffer_to_texture(source, {"texture": texture}, texture.size)
    device.queue.submit([encoder.finish()])


@pytest.mark.usefixtures("aspect_honoured")
@pytest.mark.parametrize("copy", [write_texture, copy_buffer_to_texture])
@pytest.mark.parametrize(("format", "aspect"), SPECIFIED)
def test_wgpu_takes_a_copy_of_exactly_the_blocks_bytes_and_none_of_one_byte_less(
    device_for: DeviceFor, format: str, aspect: str, copy: Callable[..., None]
) -> None:
    block = formats.texel_block(format, aspect)
    device = device_for(format)
    if device is None:
        assert block == SPECIFIED[format, aspect]
        return
    texture = new_texture(device, format, (2 * block.width, 3 * block.height, 1))
    copy(texture, block)
    with pytest.raises(wgpu.GPUValidationError, match="overrunning"):
        copy(texture, block, missing=1)


@pytest.mark.usefixtures("aspect_honoured")
@pytest.mark.parametrize("copy", [write_texture, copy_buffer_to_texture])
@pytest.mark.parametrize(("format", "aspect"), REFUSED)
def test_wgpu_takes_no_copy_to_an_aspect_that_has_no_block(
    device_for: DeviceFor, format: str, aspect: str, copy: Callable[..., None]
) -> None:
    device = device_for(format)
    if device is None:
        assert not formats.is_depth_stencil(format)  # a colour format, with no other aspect than "all"
        return
    block = SPECIFIED.get((format, "all"), TexelBlock(1, 1, 4))
    texture = new_texture(device, format, (2 * block.width, 3 * block.height, 1))
    with pytest.raises(wgpu.GPUValidationError, match=r"aspect|format"):
        copy(texture, block)


@pytest.mark.parametrize("format", CREATABLE)
def test_a_device_without_features_has_the_formats_that_require_none_and_no_other(
    bare_device: wgpu.GPUDevice, format: str
) -> None:
    size = (120, 120, 1)  # texels, whole blocks of every format
    feature = formats.required_feature(format)
    if feature is None:
        new_texture(bare_device, format, size)
    else:
        with pytest.raises(wgpu.GPUValidationError, match=r"[Ff]eature"):
            new_texture(bare_device, format, size)


# -- Rows --


def test_a_row_is_as_long_as_its_blocks_and_a_cut_block_counts_whole() -> None:
    assert formats.bytes_per_row("rgba8unorm", 100) == 400
    assert formats.bytes_per_row("bc1-rgba-unorm", 8) == 16
    assert formats.bytes_per_row("bc1-rgba-unorm", 9) == 24
    assert formats.bytes_per_row("astc-12x10-unorm", 1) == 16
    assert formats.bytes_per_row("depth24plus-stencil8", 100, "stencil-only") == 100
    assert formats.bytes_per_row("r8unorm", 0) == 0


def test_an_aligned_row_is_the_next_multiple_of_256_bytes() -> None:
    widths = (0, 1, 64, 65, 128)
    assert [formats.aligned_bytes_per_row("rgba8unorm", width) for width in widths] == [0, 256, 256, 512, 512]


# -- numpy --


@pytest.mark.parametrize(
    ("format", "dtype", "channels"),
    [
        ("r8unorm", np.uint8, 1),
        ("rg8sint", np.int8, 2),
        ("rgba8unorm", np.uint8, 4),
        ("rgba8unorm-srgb", np.uint8, 4),
        ("rgba8snorm", np.int8, 4),
        ("bgra8unorm", np.uint8, 4),
        ("rg16snorm", np.int16, 2),
        ("rgba16unorm", np.uint16, 4),
        ("rgba16float", np.float16, 4),
        ("r32float", np.float32, 1),
        ("rgba32uint", np.uint32, 4),
        ("rg32sint", np.int32, 2),
        ("rgb10a2unorm", np.uint32, 1),
        ("rgb10a2uint", np.uint32, 1),
        ("rg11b10ufloat", np.uint32, 1),
        ("rgb9e5ufloat", np.uint32, 1),
        ("stencil8", np.uint8, 1),
        ("depth16unorm", np.uint16, 1),
        ("depth24plus-stencil8", np.uint8, 1),
        ("depth32float-stencil8", np.uint8, 1),
    ],
)
def test_numpy_layout_is_the_natural_one(format: str, dtype: type, channels: int) -> None:
    assert formats.numpy_layout(format) == (np.dtype(dtype), channels)


@pytest.mark.parametrize(("format", "aspect"), SPECIFIED)
def test_numpy_layout_fills_a_texel_and_there_is_none_of_compressed_blocks(format: str, aspect: str) -> None:
    layout = formats.numpy_layout(format)
    if format.startswith(("bc", "etc2", "eac", "astc")):
        assert layout is None
    else:
        assert layout is not None
        dtype, channels = layout
        assert dtype.itemsize * channels == formats.texel_block(format, aspect).nbytes


@pytest.mark.parametrize("format", ["depth24plus", "depth32float"])
def test_depth_that_no_copy_may_write_has_no_numpy_layout(format: str) -> None:
    assert formats.numpy_layout(format) is None


# -- Errors --


@pytest.mark.parametrize(
    ("format", "aspect", "message"),
    [
        ("rgba8-unorm", "all", "unknown texture format 'rgba8-unorm'"),
        ("rgba8unorm", "stencil", "'stencil': it must be one of 'all', 'depth-only', 'stencil-only'"),
        ("rgba8unorm", "depth-only", "is a colour format: it has no aspect 'depth-only', only 'all'"),
        ("stencil8", "depth-only", "'stencil8' has no aspect 'depth-only', only 'stencil-only'"),
        ("depth32float", "stencil-only", "'depth32float' has no aspect 'stencil-only', only 'depth-only'"),
        ("depth24plus-stencil8", "all", "has two aspects and a copy writes one: choose 'stencil-only'"),
        ("depth24plus-stencil8", "depth-only", "may not write the depth of 'depth24plus-stencil8'"),
        ("depth32float", "all", "may not write the depth of 'depth32float'"),
        ("depth24plus", "depth-only", "may not write the depth of 'depth24plus'"),
    ],
)
def test_the_error_says_why_there_is_no_block(format: str, aspect: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        formats.texel_block(format, aspect)
    with pytest.raises(ValueError, match=re.escape(message)):
        formats.aligned_bytes_per_row(format, 1, aspect)


def test_an_unknown_format_is_an_error_everywhere() -> None:
    for function in (formats.is_depth_stencil, formats.required_feature, formats.numpy_layout):
        with pytest.raises(ValueError, match="unknown texture format 'rgb8unorm'"):
            function("rgb8unorm")
