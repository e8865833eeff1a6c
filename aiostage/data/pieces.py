"""Whole uploads cut into pieces that fit in staging buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..errors import AllocationTooLarge, InvalidCopy
from .arrays import (
    Array,
    Blocks,
    Bytes,
    Run,
    Scattered,
    as_array,
    as_items,
    byte_runs,
    check_texels,
    copy_blocks,
    copy_bytes,
    is_raw,
    row_steps,
    shape_of_blocks,
    texel_runs,
)
from .copies import (
    BufferCopy,
    Copy,
    TextureCopy,
    TextureRegion,
    Triple,
    check_buffer_copy,
    footprint,
    mip_extent,
    pop_layout,
    region_of,
    resolve_destination,
    whole,
)
from .files import FileRange, FileRun, Stored
from .formats import TexelBlock, is_depth_stencil, padded_row

ALIGNMENT = 16
"""Of every piece, in bytes: the largest texel block, so that any copy may start there."""


class Piece(NamedTuple):
    """A part of an upload that fits in a staging buffer."""

    nbytes: int
    fill: Callable[[Bytes], object] | None
    """Write the piece to these bytes of staging memory. None: it is to be read from a file, which threads do."""
    copy: Callable[[Any, int], Copy]
    """The copy command for the piece at an offset of a staging buffer."""
    runs: Callable[[], list[Run] | list[FileRun] | None]
    """The same as `fill`, for threads that know nothing of Python; None: it takes Python."""


class Unread(NamedTuple):
    """Pieces of data that have to be read first, a part at a time."""

    loads: Iterator[Callable[[], list[Piece]]]
    """Each reads a part, which takes a thread, and returns its pieces."""
    at_once: int
    """How many of them may be called at a time."""


class Part(NamedTuple):
    """A window of an array, and where it goes: as far as the carrier needs no Python to copy and submit it."""

    copy: Copy
    """Without a source, from its offset 0."""
    start: int
    """Bytes from the start of the array to the first of `run` bytes, which lie in a row at both ends."""
    run: int
    shape: tuple[int, ...]
    """How many of those there are along each axis; `strides` bytes apart in the array, `steps` in staging memory."""
    strides: tuple[int, ...]
    steps: tuple[int, ...]
    swap: int
    """As in a `Run`."""


class Whole(NamedTuple):
    """A whole upload that the carrier can cut, copy and submit by itself."""

    array: Array | Stored
    parts: list[Part]
    """Texels cut to fit in staging buffers; bytes are one, of whatever length."""
    records: bytes | None = None
    """All of them as the carrier has them, if that is known; then the first is enough."""


class Cut(NamedTuple):
    """An upload: its pieces, or the same for the carrier."""

    destination: Any
    nbytes: int
    """Of staging memory."""
    pieces: Iterator[Piece] | Unread
    whole: Callable[[], Whole | None]
    """None: it takes Python."""
    is_stored: bool = False
    """In a file, and so nothing for the loop, however small it is."""


class Content(NamedTuple):
    """Bytes of an array, and the one copy that would bring them where they go."""

    array: Array | Stored
    start: int
    copy: BufferCopy
    """Without a source."""


def content_of(owner: Any, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None) -> Content:
    """`data`'s bytes, in C order, and where they go. `owner` is the device. :raises InvalidCopy:"""
    array = data.stored.as_bytes() if isinstance(data, FileRange) else as_items(as_array(data))
    copy, data_offset = checked(owner, array.nbytes, buffer, buffer_offset, data_offset, size)
    return Content(array, data_offset, copy)


def cut_content(content: Content, most: int) -> Cut:
    """In pieces of `most` bytes."""
    array, first, goal = content
    buffer, nbytes = goal.destination, goal.size

    def pieces() -> Iterator[Piece]:
        for start in range(0, nbytes, most):
            length, target = min(most, nbytes - start), goal.destination_offset + start
            copy = partial(buffer_copy, buffer=buffer, target=target, nbytes=length, pin=goal.pin)
            yield _bytes_piece(array, first + start, length, copy)

    def whole_bytes() -> Whole | None:
        if isinstance(array, Stored):
            flat: Array | Stored = array
        elif array.flags.c_contiguous:
            flat = array.reshape(-1).view(np.uint8)
        else:
            return None
        return Whole(flat, [Part(goal, first, nbytes, (), (), (), 0)])

    return Cut(buffer, nbytes, pieces(), whole_bytes, isinstance(array, Stored))


def _bytes_piece(array: Array | Stored, start: int, nbytes: int, copy: Callable[[Any, int], Copy]) -> Piece:
    if isinstance(array, Stored):
        run = array.bytes_run(start, nbytes)
        return Piece(nbytes, None, copy, lambda: [run])
    fill = partial(copy_bytes, array=array, start=start)
    return Piece(nbytes, fill, copy, partial(byte_runs, array, start, nbytes))


def checked(
    owner: Any, total: int, buffer: Any, buffer_offset: int, data_offset: int, size: int | None
) -> tuple[BufferCopy, int]:
    """The copy of these of `total` bytes, without a source, and its `data_offset`. :raises InvalidCopy:"""
    buffer_offset, data_offset = whole(buffer_offset, "buffer_offset"), whole(data_offset, "data_offset")
    if not 0 <= data_offset <= total:
        raise InvalidCopy(f"data_offset {data_offset} lies outside the data's {total} bytes")
    nbytes = total - data_offset if size is None else whole(size, "size")
    if nbytes > total - data_offset:
        raise InvalidCopy(f"size {nbytes} exceeds the {total - data_offset} bytes behind data_offset")
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, owner)
    return BufferCopy(None, 0, buffer, buffer_offset, nbytes, pin), data_offset


def buffer_copy(source: Any, offset: int, buffer: Any, target: int, nbytes: int, pin: Any) -> BufferCopy:
    """The command for some of it."""
    return BufferCopy(source, offset, buffer, target, nbytes, pin)


# -- texels --


class Texels(NamedTuple):
    """Texel blocks, and the region that they go to."""

    region: TextureRegion
    blocks: Blocks

    @property
    def nbytes(self) -> int:
        """Of staging memory, if all were in one piece."""
        return footprint(self.region, padded_row(self.region.row_bytes), self.region.block_rows)


def texels_of(
    owner: Any, destination: Mapping[str, Any], data: Any, data_layout: Mapping[str, Any] | None, size: Any
) -> Texels:
    """The texel blocks of `data`, and where they go. :raises InvalidCopy:"""
    resolved = resolve_destination(destination, owner)
    array = _little(data.stored) if isinstance(data, FileRange) else as_array(data)
    blocks: Blocks
    check_texels(array, resolved[0].format, resolved[4])
    if size is None:
        if data_layout is not None:
            raise InvalidCopy("size is needed with a data_layout; without either, both follow from the data's shape")
        texture, mip_level, origin, _, block = resolved
        blocks, size = _infer(array, texture, mip_level, origin, block)
        region = region_of(resolved, size)
    else:
        region = region_of(resolved, size)
        blocks = _lay_out(array, data_layout or {}, region)
    return Texels(region, blocks)


def cut_texels(texels: Texels, most: int, splits_images: bool = False) -> Cut:
    """Rows, padded as they are copied, in pieces of `most` bytes at most.

    :param splits_images: also those that WebGPU copies whole images at a time.
    """
    region, blocks = texels
    if region.is_empty:
        return Cut(region.texture, 0, iter(()), lambda: None)
    portion = _portion(region, most, splits_images)
    pieces = (_texel_piece(part, blocks[window]) for part, window in _windows(region, portion))
    whole_texels = partial(_whole_texels, region, blocks, portion)
    return Cut(region.texture, texels.nbytes, pieces, whole_texels, isinstance(blocks, Stored))


def split_texels(texels: Texels, most: int) -> Iterator[Texels]:
    """The same in parts that take `most` bytes of staging memory at most."""
    region, blocks = texels
    for part, window in _windows(region, _portion(region, most)):
        yield Texels(part, blocks[window])


def _little(stored: Stored) -> Stored:
    if stored.dtype.newbyteorder("<") != stored.dtype:
        raise InvalidCopy(
            f"a file of {stored.dtype} for texels: its bytes are not turned round; give np.memmap's array"
        )
    return stored


def texel_pieces(region: TextureRegion, blocks: Blocks, most: int) -> Iterator[Piece]:
    """The region's blocks in pieces of `most` bytes at most. :raises AllocationTooLarge: they cannot be."""
    return (_texel_piece(part, blocks[window]) for part, window in _windows(region, _portion(region, most)))


Window = tuple[slice, slice, slice]


def _windows(region: TextureRegion, portion: Triple) -> Iterator[tuple[TextureRegion, Window]]:
    """Where the region is cut: (part, its layers, block rows and block columns)."""
    ends = region.size[2], region.block_rows, region.block_columns
    layers, rows, columns = portion
    for z in range(0, ends[0], layers):
        for y in range(0, ends[1], rows):
            for x in range(0, ends[2], columns):
                window = (
                    slice(z, min(z + layers, ends[0])),
                    slice(y, min(y + rows, ends[1])),
                    slice(x, min(x + columns, ends[2])),
                )
                z_count, y_count, x_count = (part.stop - part.start for part in window)
                yield region.part(z, z_count, y, y_count, x, x_count), window


def _whole_texels(region: TextureRegion, blocks: Blocks, portion: Triple) -> Whole | None:
    swap, array = 0, blocks
    if not isinstance(blocks, Stored):
        runs = texel_runs(blocks, 0)
        if runs is None:
            return None
        array, _, _, swap = runs[0]
    assert not isinstance(array, Scattered)
    parts = []
    for part, window in _windows(region, portion):
        stride = padded_row(part.row_bytes)
        shape = part.size[2], part.block_rows, part.block_columns, array.shape[3]
        start = sum(axis.start * step for axis, step in zip(window, array.strides, strict=False))
        copy, steps = _texture_copy(None, 0, part, stride), row_steps(shape, array.itemsize, stride)
        parts.append(Part(copy, start, array.itemsize, shape, array.strides, steps, swap))
    return Whole(array, parts)


def _texel_piece(part: TextureRegion, source: Blocks) -> Piece:
    stride = padded_row(part.row_bytes)
    nbytes, copy = footprint(part, stride, part.block_rows), partial(_texture_copy, part=part, stride=stride)
    if isinstance(source, Stored):
        run = source.run(row_steps(source.shape, source.itemsize, stride))
        return Piece(nbytes, None, copy, lambda: [run])
    return Piece(nbytes, partial(copy_blocks, source=source, stride=stride), copy, partial(texel_runs, source, stride))


def _texture_copy(source: Any, offset: int, part: TextureRegion, stride: int) -> TextureCopy:
    return TextureCopy(source, offset, part, stride, part.block_rows)


def _portion(region: TextureRegion, buffer_size: int, splits_images: bool = False) -> Triple:
    """(layers, block rows, block columns) of the largest pieces that fit: by layers, else by rows, else by columns."""
    row_bytes, stride = region.row_bytes, padded_row(region.row_bytes)
    if row_bytes <= buffer_size:
        rows = (buffer_size - row_bytes) // stride + 1  # the last row needs no padding
        if rows >= region.block_rows:
            return rows // region.block_rows, region.block_rows, region.block_columns
        columns = region.block_columns
    else:
        rows, columns = 1, buffer_size // region.block.nbytes
    if is_depth_stencil(region.texture.format) and not splits_images:
        raise AllocationTooLarge(
            f"{region.texture.format} is copied whole images at a time, and one of {stride * region.block_rows} bytes "
            f"does not fit in a staging buffer of {buffer_size}"
        )
    if columns == 0:
        raise AllocationTooLarge(
            f"a texel block of {region.block.nbytes} bytes does not fit in a staging buffer of {buffer_size}"
        )
    return 1, rows, columns


def _lay_out(array: Array | Stored, data_layout: Mapping[str, int], region: TextureRegion) -> Blocks:
    """The texel blocks of `array` where `data_layout` says they are: (layers, block rows, block columns, items)."""
    offset, bytes_per_row, rows_per_image = pop_layout(dict(data_layout), region.row_bytes, region.block_rows)
    if bytes_per_row < region.row_bytes:
        raise InvalidCopy(
            f"bytes_per_row is {bytes_per_row}, but a row of {region.size[0]} texels has {region.row_bytes}"
        )
    if rows_per_image < region.block_rows:
        raise InvalidCopy(f"rows_per_image is {rows_per_image}, but an image has {region.block_rows} rows of blocks")
    needed = footprint(region, bytes_per_row, rows_per_image)
    if offset < 0 or offset + needed > array.nbytes:
        raise InvalidCopy(f"the data has {array.nbytes} bytes; bytes {offset} to {offset + needed} are needed")
    if not data_layout and (found := shaped(array, region)) is not None:
        return found
    if not array.dtype.isnative:
        raise InvalidCopy("data in another byte order: give data.astype(data.dtype.newbyteorder('<')), or its bytes")
    shape = (region.size[2], region.block_rows, region.block_columns, region.block.nbytes)
    strides = (bytes_per_row * rows_per_image, bytes_per_row, region.block.nbytes, 1)
    if not needed:
        return np.empty(shape, np.uint8)
    if isinstance(array, Stored):
        return Stored(array.source, array.offset + offset, np.dtype(np.uint8), shape, strides)
    if not array.flags.c_contiguous:
        return Scattered(array, offset, shape, strides)
    return np.ndarray(shape, np.uint8, array.reshape(-1).view(np.uint8), offset, strides)


def shaped(array: Array | Stored, region: TextureRegion) -> Array | Stored | None:
    """The texel blocks of `array` if its own shape is the region's, or None."""
    room = (region.size[2], region.block_rows, region.block_columns)
    shape = shape_of_blocks(array, region.block, region.texture.dimension, room)
    return array.reshape(shape) if shape is not None and shape[:3] == room else None


def _infer(
    array: Array | Stored, texture: Any, mip_level: int, origin: Triple, block: TexelBlock
) -> tuple[Array | Stored, Triple]:
    """The texel blocks of `array`, and the size in texels that its shape tells."""
    room = room_of(texture, mip_level, origin, block)
    shape = shape_of_blocks(array, block, texture.dimension, room)
    blocks = None if shape is None else array.reshape(shape)
    if blocks is None and is_raw(array) and origin == (0, 0, 0):
        blocks = _as_level(array, (*room, block.nbytes))
    if blocks is None:
        raise InvalidCopy(
            f"the size cannot be told from data of shape {array.shape} and {array.itemsize} bytes an item, for a "
            f"{texture.dimension} texture of {texture.format} with {block.nbytes} bytes a texel block: shape it "
            "(layers, rows, columns, channels), as with np.moveaxis where the channels come first, or give size and "
            "data_layout"
        )
    return blocks, extent_of(blocks, block)


def room_of(texture: Any, mip_level: int, origin: Triple, block: TexelBlock) -> Triple:
    """(layers, block rows, block columns) of a level from `origin` on."""
    width, height, layers = mip_extent(texture, mip_level)
    return layers - origin[2], -(-(height - origin[1]) // block.height), -(-(width - origin[0]) // block.width)


def extent_of(blocks: Array | Stored, block: TexelBlock) -> Triple:
    """(width, height, layers) of some blocks, in texels."""
    layers, rows, columns = blocks.shape[:3]
    return columns * block.width, rows * block.height, layers


def _as_level(array: Array | Stored, shape: tuple[int, int, int, int]) -> Array | Stored | None:
    """Contiguous bytes, exactly those of a whole mip level, flat or row by row, as blocks of this shape; or None."""
    layers, rows, columns, nbytes = shape
    by_rows = ((layers, rows, columns * nbytes), (rows, columns * nbytes)[: 2 * (layers == 1)])
    fits = array.nbytes == math.prod(shape) and (array.ndim == 1 or array.shape in by_rows)
    if isinstance(array, Stored):
        return array.as_bytes().reshape(shape) if fits else None
    return array.reshape(-1).view(np.uint8).reshape(shape) if fits and array.flags.c_contiguous else None
