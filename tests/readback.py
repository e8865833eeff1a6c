"""Filling and reading whole textures and buffers with wgpu alone, for comparison with what went through a ring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import _api
from wgpu.backends.wgpu_native._mappings import enummap

from aiostage.data.copies import mip_extent
from aiostage.data.formats import padded_row, texel_block

CREATABLE = [format for format in sorted(wgpu.TextureFormat) if f"TextureFormat.{format}" in enummap]
"""What this release of wgpu-py can make textures of: all, but in 0.31 none of r16unorm and its kind."""


@contextmanager
def aspect_honoured(aspect: str) -> Iterator[None]:
    """wgpu-py 0.32 copies to and from "all", whatever aspect is named: put that right at the C struct."""
    new_struct_p = _api.new_struct_p

    def with_aspect(ctype: str, **fields: Any) -> Any:
        return new_struct_p(ctype, **(fields | {"aspect": aspect} if "aspect" in fields else fields))

    with mock.patch.object(_api, "new_struct_p", with_aspect):
        yield


def level_shape(texture: Any, mip_level: int, aspect: str = "all") -> tuple[int, int, int]:
    """(layers, rows of blocks, bytes in a row) of one mip level."""
    block = texel_block(texture.format, aspect)
    width, height, layers = mip_extent(texture, mip_level)
    return layers, -(-height // block.height), -(-width // block.width) * block.nbytes


def _level_size(texture: Any, mip_level: int, aspect: str) -> tuple[int, int, int]:
    """In texels, rounded up to whole blocks."""
    block = texel_block(texture.format, aspect)
    layers, rows, row_bytes = level_shape(texture, mip_level, aspect)
    return row_bytes // block.nbytes * block.width, rows * block.height, layers


def fill_texture(texture: Any, rng: np.random.Generator, aspect: str = "all") -> list[np.ndarray]:
    """Random bytes in every mip level and layer; returns them, by mip level."""
    levels = []
    with aspect_honoured(aspect):
        for mip_level in range(texture.mip_level_count):
            shape = level_shape(texture, mip_level, aspect)
            levels.append(rng.integers(0, 256, shape, np.uint8))
            texture._device.queue.write_texture(
                {"texture": texture, "mip_level": mip_level},
                levels[-1],
                {"bytes_per_row": shape[2], "rows_per_image": shape[1]},
                _level_size(texture, mip_level, aspect),
            )
    # Validation layer 1.3.239 takes two writes in one command buffer, wgpu's own, for a hazard in the mip levels of
    # compressed textures that are no multiple of a block.
    texture._device.queue.submit([])
    return levels


def read_texture(texture: Any, aspect: str = "all") -> list[np.ndarray]:
    """The bytes of every mip level and layer: arrays (layers, rows of blocks, bytes in a row)."""
    device, shapes, offsets, end = texture._device, [], [], 0
    for mip_level in range(texture.mip_level_count):
        layers, rows, row_bytes = level_shape(texture, mip_level, aspect)
        shapes.append((layers, rows, row_bytes))
        offsets.append(end)
        end += layers * rows * padded_row(row_bytes)
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
    buffer = device.create_buffer(size=end, usage=usage)
    encoder = device.create_command_encoder()
    with aspect_honoured(aspect):
        for mip_level, ((_, rows, row_bytes), offset) in enumerate(zip(shapes, offsets, strict=True)):
            encoder.copy_texture_to_buffer(
                {"texture": texture, "mip_level": mip_level},
                {
                    "buffer": buffer,
                    "offset": offset,
                    "bytes_per_row": padded_row(row_bytes),
                    "rows_per_image": rows,
                },
                _level_size(texture, mip_level, aspect),
            )
    device.queue.submit([encoder.finish()])
    buffer.map_sync(wgpu.MapMode.READ)
    content = np.frombuffer(buffer.read_mapped(), np.uint8)
    buffer.destroy()
    levels = []
    for (layers, rows, row_bytes), offset in zip(shapes, offsets, strict=True):
        padded = padded_row(row_bytes)
        level = content[offset : offset + layers * rows * padded].reshape(layers, rows, padded)
        levels.append(level[:, :, :row_bytes])
    return levels


def read_buffer(buffer: Any) -> np.ndarray:
    """The bytes of a buffer with COPY_SRC."""
    return np.frombuffer(buffer._device.queue.read_buffer(buffer), np.uint8)
