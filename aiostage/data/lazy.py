"""Uploads of arrays that are read or computed part by part, so that few of the parts are in memory at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidCopy
from .arrays import Array, as_array, as_items, byte_runs, check_texels, copy_bytes, shape_of_blocks
from .copies import Triple, region_of, resolve_destination
from .formats import is_depth_stencil
from .pieces import ALIGNMENT, Cut, Piece, Unread, buffer_copy, checked, extent_of, room_of, texel_pieces

LARGEST = 64 * 1024 * 1024
"""Bytes that a part may have so that no chunk of a stored array is decoded twice."""

_THREAD_SAFE = {"dask", "tensorstore", "zarr"}
_AT_ONCE = 4
_AHEAD = 32 * 1024 * 1024
"""Bytes that are read ahead, unless one part has more."""

Index = tuple[slice, ...]


def _at_once(data: Any, nbytes: int) -> int:
    """How many threads may read parts of `nbytes`: several where that is known to work. HDF5 has a lock of its own."""
    library = type(data).__module__.split(".")[0]
    is_computed = library == "xarray" and getattr(data, "chunks", None) is not None  # by dask
    is_safe = is_computed or library in _THREAD_SAFE
    return max(1, min(_AT_ONCE, _AHEAD // nbytes)) if is_safe else 1


def _chunks(data: Any) -> tuple[int, ...]:
    """Items along each axis that are stored or computed together; the most, where they differ."""
    found, shape = getattr(data, "chunks", None), data.shape
    if not isinstance(found, tuple) or len(found) != len(shape):
        return (1,) * len(shape)
    most = (max(each, default=1) if isinstance(each, tuple) else each for each in found)
    return tuple(max(1, min(int(chunk), int(n))) for chunk, n in zip(most, shape, strict=True))


def _stand_in(data: Any) -> Array:
    """An array of that shape and dtype with nothing in it, to be checked and laid out. An axis is told by its stride.

    :raises TypeError: the items are Python objects.
    """
    shape = tuple(map(int, data.shape))
    strides = tuple(range(1, len(shape) + 1))
    item: Array = np.zeros((), as_array(np.empty((), data.dtype)).dtype)
    return np.lib.stride_tricks.as_strided(item, shape, strides, writeable=False)


def _read(data: Any, index: Index) -> Array:
    """:raises InvalidCopy: what came is of another shape or type than was asked for."""
    array = as_array(data[index])
    expected = tuple(part.stop - part.start for part in index)
    if (
        array.shape == expected
        and array.dtype != data.dtype
        and array.dtype.newbyteorder("=") == data.dtype.newbyteorder("=")
    ):
        array = array.astype(data.dtype)
    if array.shape != expected or array.dtype != data.dtype:
        where = ", ".join(f"{part.start}:{part.stop}" for part in index)
        raise InvalidCopy(
            f"data[{where}] gave {array.dtype} of shape {array.shape}, not {data.dtype} of shape {expected}"
        )
    return array


# -- bytes --


class _Span(NamedTuple):
    """Some of the bytes of a part: `nbytes` behind the first `skip`."""

    part: Index
    skip: int
    nbytes: int


def from_buffer(
    owner: Any, most: int, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None
) -> Cut:
    """Like that of `pieces`, for what `arrays.is_indexed`: parts along the first axes, each read when its turn comes.

    :raises InvalidCopy:
    """
    whole = _stand_in(data)
    shape, itemsize = whole.shape, whole.itemsize
    copy, data_offset = checked(owner, whole.size * itemsize, buffer, buffer_offset, data_offset, size)
    buffer, buffer_offset, nbytes, pin = copy.destination, copy.destination_offset, copy.nbytes, copy.pin

    def pieces(start: int, length: int) -> list[Piece]:
        """In a thread."""
        spans = _spans(shape, itemsize, data_offset + start, length)
        flat = _flat([(as_items(_read(data, span.part)), span) for span in spans], length)
        return [_piece(flat, first, min(most, length - first), start) for first in range(0, length, most)]

    def _piece(flat: Array, first: int, length: int, start: int) -> Piece:
        return Piece(
            length,
            partial(copy_bytes, array=flat, start=first),
            partial(buffer_copy, buffer=buffer, target=buffer_offset + start + first, nbytes=length, pin=pin),
            partial(byte_runs, flat, first, length),
        )

    step, period = _bytes_at_a_time(shape, itemsize, _chunks(data), most)
    loads = (partial(pieces, *bounds) for bounds in _bounds(nbytes, step, period, data_offset))
    return Cut(buffer, nbytes, Unread(loads, _at_once(data, step)), lambda: None)


def _bounds(nbytes: int, step: int, period: int, skipped: int) -> Iterator[tuple[int, int]]:
    """(first, length) of parts that end where layers of chunks do, as far as the copies' alignment lets them."""
    first = 0
    while first < nbytes:
        within = (skipped + first) % period
        end = first + min(step - within % step, period - within)
        end = min(max(end - end % ALIGNMENT, first + ALIGNMENT), nbytes)
        yield first, end - first
        first = end


def _flat(parts: list[tuple[Array, _Span]], nbytes: int) -> Array:
    """Their bytes in a row: those of one part that has them so already, without a copy."""
    array, span = parts[0]
    if len(parts) == 1 and span.skip == 0 and span.nbytes == array.nbytes:
        return array
    flat, done = np.empty(nbytes, np.uint8), 0
    for array, span in parts:
        copy_bytes(flat[done : done + span.nbytes], array, span.skip)
        done += span.nbytes
    return flat


def _bytes_at_a_time(shape: tuple[int, ...], itemsize: int, chunks: tuple[int, ...], most: int) -> tuple[int, int]:
    """Bytes to read at a time, from each multiple of a period on: rows along the first axes, as many as fit in `most`,
    or whole layers of chunks where these are not too large."""
    for axis, chunk in enumerate(chunks):
        row = itemsize * math.prod(shape[axis + 1 :])
        layer, limit = row * chunk, max(most, LARGEST) if chunk > 1 else most
        if 0 < layer <= limit:
            count, even = max(1, most // layer), ALIGNMENT // math.gcd(layer, ALIGNMENT)
            if layer * even <= limit:  # copies start at such addresses, and parts would share rows
                count = max(even, count - count % even)
            return layer * count, row * shape[axis]
    return most, max(1, itemsize * math.prod(shape))


def _spans(shape: tuple[int, ...], itemsize: int, start: int, nbytes: int) -> list[_Span]:
    """The parts that have these bytes of the array in C order: a whole block, and what is left before and behind it."""
    if not shape:
        return [_Span((), start, nbytes)]
    row = itemsize * math.prod(shape[1:])
    if len(shape) == 1:
        first, end = start // row, -(-(start + nbytes) // row)
        return [_Span((slice(first, end),), start - first * row, nbytes)]
    spans, (first, skip) = list[_Span](), divmod(start, row)
    if skip or nbytes < row:
        length = min(row - skip, nbytes)
        spans += _within(first, shape, itemsize, skip, length)
        first, nbytes = first + 1, nbytes - length
    if count := nbytes // row:
        block = (slice(first, first + count), *(slice(0, n) for n in shape[1:]))
        spans.append(_Span(block, 0, count * row))
    if rest := nbytes - count * row:
        spans += _within(first + count, shape, itemsize, 0, rest)
    return spans


def _within(row: int, shape: tuple[int, ...], itemsize: int, start: int, nbytes: int) -> Iterator[_Span]:
    for part, skip, length in _spans(shape[1:], itemsize, start, nbytes):
        yield _Span((slice(row, row + 1), *part), skip, length)


# -- texels --


def from_texels(owner: Any, most: int, destination: Mapping[str, Any], data: Any, size: Any) -> Cut | None:
    """Like that of `pieces`: boxes of whole chunks, each read when its turn comes. None: the shape of the data does not
    tell which texel is where, so that all of them are needed.

    :raises InvalidCopy:
    """
    resolved = resolve_destination(destination, owner)
    texture, mip_level, origin, _, block = resolved
    whole = _stand_in(data)
    check_texels(whole, texture.format, block)
    if size is None:
        room = room_of(texture, mip_level, origin, block)
        blocks = _as_blocks(whole, shape_of_blocks(whole, block, texture.dimension, room))
        region = region_of(resolved, extent_of(blocks, block)) if blocks is not None else None
    else:
        region = region_of(resolved, size)
        room = region.size[2], region.block_rows, region.block_columns
        shape = shape_of_blocks(whole, block, texture.dimension, room)
        blocks = _as_blocks(whole, shape) if shape is not None and shape[:3] == room else None
    if blocks is None or region is None:
        return None
    if region.is_empty:
        return Cut(texture, 0, iter(()), lambda: None)
    axes = [step - 1 if step else None for step in blocks.strides[:3]]
    chunks, items = _chunks(data), blocks.shape[3]
    portion = _box(blocks, [1 if axis is None else chunks[axis] for axis in axes], most)
    if is_depth_stencil(texture.format):
        portion = portion[0], blocks.shape[1], blocks.shape[2]

    def pieces(window: Index) -> list[Piece]:
        """In a thread."""
        index = [slice(0, n) for n in whole.shape]
        for axis, part in zip(axes, window, strict=True):
            if axis is not None:
                index[axis] = part
        counts = tuple(part.stop - part.start for part in window)
        array = _read(data, tuple(index)).reshape((*counts, items))
        (z, layers), (y, rows), (x, columns) = zip((part.start for part in window), counts, strict=True)
        return list(texel_pieces(region.part(z, layers, y, rows, x, columns), array, most))

    windows = product(*(_cuts(n, step) for n, step in zip(blocks.shape, portion, strict=False)))
    nbytes = math.prod(blocks.shape) * blocks.itemsize
    loads = (partial(pieces, window) for window in windows)
    part = math.prod(portion) * items * blocks.itemsize
    return Cut(texture, nbytes, Unread(loads, _at_once(data, part)), lambda: None)


def _as_blocks(stand_in: Array, shape: tuple[int, ...] | None) -> Array | None:
    """In this shape of blocks, which differs by axes of length 1: without a stride, they are none of the data's."""
    if shape is None:
        return None
    with_items = shape == (*(1,) * (3 - stand_in.ndim), *stand_in.shape, 1)
    array = stand_in[..., np.newaxis] if with_items else stand_in
    return array[(np.newaxis,) * (4 - array.ndim)]


def _cuts(length: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, length)) for first in range(0, length, step)]


def _box(blocks: Array, chunks: list[int], most: int) -> Triple:
    """(layers, block rows, block columns) to read at a time: a chunk, and then as many along the last axis, the one
    before and the first as fit in `most`."""
    box = list(chunks)
    for axis in (2, 1, 0):
        nbytes = blocks.itemsize * blocks.shape[3] * math.prod(box)
        box[axis] = min(blocks.shape[axis], box[axis] * max(1, most // nbytes))
    return box[0], box[1], box[2]
