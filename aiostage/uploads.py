"""Whole uploads: data of any size and shape, cut into pieces that fit staging buffers, and written off the loop.

A `Piece` is what goes into one staging buffer. `from_buffer` and `from_texels` check the arguments, then yield pieces;
`write` takes a place for each, has it filled, inline or by a worker thread, and stages its copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import numpy as np
import numpy.typing as npt

from .carrier.threads import wait_out
from .data.arrays import (
    WHOLE,
    Blocks,
    Scattered,
    as_array,
    as_blocks,
    as_items,
    check_texels,
    copy_blocks,
    copy_bytes,
    is_lazy,
    is_masked,
    is_raw,
    missing,
)
from .data.copies import (
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
from .data.formats import TexelBlock, is_depth_stencil, padded_row
from .engine.lanes import Lane, StagingBuffer, Trip
from .errors import AllocationClosed, AllocationTooLarge, InvalidCopy, afresh
from .fences import Fence

if TYPE_CHECKING:
    from .ring import StagingRing

Bytes = npt.NDArray[np.uint8]

_ALIGNMENT = 16
"""Of every piece, in bytes: the largest texel block, so that any copy may start there."""


class Piece(NamedTuple):
    """A part of an upload that fits in a staging buffer."""

    nbytes: int
    fill: Callable[[Bytes], object]
    """Write the piece to these bytes of staging memory."""
    copy: Callable[[StagingBuffer, int], Copy]
    """The copy command for the piece at an offset of a staging buffer."""


class Batch:
    """Uploads that are submitted together; made by `StagingRing.batch`.

    If the batch is larger than the ring, or others need its space, parts of it are submitted before it ends. An
    exception inside abandons what was not.
    """

    def __init__(self, ring: StagingRing) -> None:
        self._ring = ring
        self._lane = Lane(ends=True)
        self._open = False
        self._fence: Fence | None = None

    @property
    def fence(self) -> Fence:
        """Completes when the GPU is done with all of it; there is one once the block has ended.

        :raises AllocationClosed: it has not ended, or was abandoned.
        """
        if self._fence is None:
            raise AllocationClosed("a batch or frame has a fence once its block has ended without an exception")
        return self._fence

    async def write_buffer(
        self, buffer: Any, buffer_offset: int, data: Any, data_offset: int = 0, size: int | None = None
    ) -> None:
        """Like `StagingRing.write_buffer`, submitted with the batch. On return `data` may be reused."""
        self._check()
        if data_offset == 0 and size is None and put(self._ring, self._lane, buffer, buffer_offset, data):
            return
        data = await load(self._ring, buffer, data)
        pieces = from_buffer(self._ring, buffer, buffer_offset, data, data_offset, size)
        await write(self._ring, self._lane, pieces)

    async def write_texture(
        self,
        destination: Mapping[str, Any],
        data: Any,
        data_layout: Mapping[str, int] | None = None,
        size: Any = None,
    ) -> None:
        """Like `StagingRing.write_texture`, submitted with the batch. On return `data` may be reused."""
        self._check()
        data = await load_texels(self._ring, destination, data)
        await write(self._ring, self._lane, from_texels(self._ring, destination, data, data_layout, size))

    async def __aenter__(self) -> Batch:
        self._enter()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        await self._leave(exc_type is not None, list)

    def _enter(self) -> None:
        if self._fence is not None or self._open:
            raise AllocationClosed("a batch or frame is entered once")
        self._ring._check_task()
        self._ring._lanes[self._lane] = None
        self._open = True

    async def _leave(self, abandon: bool, command_buffers: Callable[[], list[Any]]) -> None:
        """Submit what was written, then the command buffers; or nothing, on any exception."""
        ring, lane = self._ring, self._lane
        self._open = False
        submission = None
        try:
            if abandon:
                return
            ring._check()
            finished = command_buffers()
            while any(buffer.is_held for buffer in lane.buffers):
                await ring._changed()
                ring._check()
            submission = ring._depart(lane, list(lane.buffers), finished)
        finally:
            if submission is None:
                ring._discard(lane)
            else:
                ring._retire(lane)
        self._fence = submission.fence
        await submission.made.wait()
        failures = [why for trip in lane.trips or () for _, why in (await trip.wait()).failures]
        if failures:
            raise afresh(failures[0])

    def _check(self) -> None:
        self._ring._check()
        if not self._open:
            raise AllocationClosed("the batch or frame is not open; write inside its 'async with' block")


class Frame(Batch):
    """One frame of a loop; made by `StagingRing.frame`. Its uploads run before what `encoder` records."""

    _encoder: Any = None

    @property
    def encoder(self) -> Any:
        """A GPUCommandEncoder for the frame's passes. Leave its `finish` and submission to the frame."""
        self._check()
        if self._encoder is None:
            self._encoder = self._ring._native.create_encoder()
        return self._encoder

    async def __aenter__(self) -> Frame:
        ring = self._ring
        ring._check_task()
        while len(ring._frames) >= ring.frames_in_flight:
            with anyio.move_on_after(ring._patience) as scope:
                await ring._changed()
            if scope.cancelled_caught:
                ring._check_device()
                ring._check_fences()
            ring._check()
        self._enter()
        ring._frames.add(self)
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        try:
            await self._leave(exc_type is not None, self._finish)
        finally:
            if self._fence is None:  # abandoned
                self._over()
            else:
                self._fence.add_done_callback(self._over)

    def _over(self, *_: object) -> None:
        """It is in flight no more: the next may be entered."""
        self._ring._frames.discard(self)
        self._ring._notify()

    def _finish(self) -> list[Any]:
        return [] if self._encoder is None else [self._ring._native.finish_encoder(self._encoder)]


async def write_now(ring: StagingRing, pieces: Iterator[Piece]) -> Fence:
    """Write with the ring's next submit of uploads, and wait until that is made."""
    filling = await write(ring, ring._uploads, pieces)
    return filling.fence or ring._tracker.insert()


async def write(ring: StagingRing, lane: Lane, pieces: Iterator[Piece]) -> _Filling:
    """Fill and stage every piece; returns when the data may be reused, in the lane of uploads when it was submitted."""
    filling = _Filling(ring)
    count = nbytes = 0
    try:
        try:
            for piece in pieces:
                count += 1
                nbytes += piece.nbytes
                place = ring._reserve_now(lane, piece.nbytes, _ALIGNMENT)
                filling.start(piece, *(place or await ring._wait(lane, piece.nbytes, _ALIGNMENT)))
        finally:
            await filling.finish()
        if filling.error is not None:
            raise filling.error
    finally:
        filling.error = None  # its traceback has this frame: they would keep each other, and the data, alive
    if count > 1:
        ring._demand.cut(count, nbytes)
    return filling


class _Filling:
    """The pieces of one upload that are being written to staging memory, and then submitted."""

    def __init__(self, ring: StagingRing) -> None:
        self._ring = ring
        self._pending = 0
        self._idle: Any = None
        self._copies: set[Copy] = set()  # staged and not submitted, of an upload that waits for its submit
        self.error: BaseException | None = None
        self.fence: Fence | None = None  # of the last submit

    def start(self, piece: Piece, buffer: StagingBuffer, offset: int) -> None:
        """Fill a place and stage its copy, now or in a worker thread."""
        assert buffer.memory is not None
        memory = buffer.memory[offset : offset + piece.nbytes]
        self._pending += 1
        if piece.nbytes > self._ring._inline_size:
            done = partial(self._done, piece, buffer, offset)
            self._ring._workers.start(partial(piece.fill, memory), done, piece.nbytes)
            return
        try:
            piece.fill(memory)
        except BaseException as error:
            self._done(piece, buffer, offset, error)
            raise
        self._done(piece, buffer, offset, None)

    async def finish(self) -> None:
        """Wait until nothing is pending, also when cancelled: threads read the caller's data and write into a shared
        buffer."""
        if self._pending:
            await wait_out(self._is_idle, self._until_idle)

    def _is_idle(self) -> bool:
        return self._pending == 0

    async def _until_idle(self) -> None:
        self._idle = self._ring._port.event()
        await self._idle.wait()

    def _done(self, piece: Piece, buffer: StagingBuffer, offset: int, error: BaseException | None) -> None:
        assert buffer.lane is not None
        if error is None and buffer.lane.ended:
            error = AllocationClosed("the batch or frame was abandoned, and this write with it")
        copy = piece.copy(buffer, offset) if error is None else None
        if copy is not None and buffer.lane is self._ring._uploads:
            self._copies.add(copy)
            buffer.trip.then(self._landed)
            self._ring._filled(buffer, piece.nbytes, copy)
        else:
            self._ring._filled(buffer, piece.nbytes, copy)
            self._end(error)

    def _landed(self, trip: Trip) -> None:
        """The submit that took a piece was made, or failed."""
        submission, error = trip.submission, trip.error
        if submission is not None and error is None:
            error = next((why for copy, why in submission.failures if copy in self._copies), None)
            if self.fence is None or submission.fence.value > self.fence.value:
                self.fence = submission.fence
        self._end(error and afresh(error))

    def _end(self, error: BaseException | None) -> None:
        self.error = self.error or error
        self._pending -= 1
        if self._pending == 0 and self._idle is not None:
            self._idle.set()


async def load(ring: StagingRing, buffer: Any, data: Any) -> Any:
    """`data`, or the array that a thread makes of them if they are computed or read when they are asked for.

    :raises TypeError:
    :raises InvalidCopy: nothing may be copied to `buffer`: they are not asked.
    """
    if not is_lazy(data):
        return data
    check_buffer_copy(buffer, 0, 0, ring._native)
    return await _in_thread(ring, as_array, data)


async def load_texels(ring: StagingRing, destination: Mapping[str, Any], data: Any) -> Any:
    """Like `load`, for a texture."""
    if not is_lazy(data):
        return data
    resolve_destination(destination, ring._native)
    return await _in_thread(ring, as_array, data)


async def _in_thread(ring: StagingRing, make: Callable[[Any], Any], data: Any) -> Any:
    made: list[Any] = []
    await ring._workers.run(lambda: made.append(make(data)))
    return made[0]


# -- bytes --


def put(ring: StagingRing, lane: Lane, buffer: Any, buffer_offset: Any, data: Any) -> bool:
    """The most common small write at once: contiguous bytes, and a place that is free.

    False, with nothing done, for anything else; `from_buffer` finds out what it is. :raises InvalidCopy:
    """
    if type(data) not in WHOLE and (is_masked(data) or missing(data)):
        return False
    try:
        source = memoryview(data)
        if source.format == "O":  # which it would cast as well: the addresses of Python objects
            return False
        source = source.cast("B")
    except (TypeError, ValueError, NotImplementedError):  # no buffer, not contiguous, or of a format of numpy's own
        return False
    nbytes = source.nbytes
    if not 0 < nbytes <= min(ring._inline_size, ring.buffer_size) or type(buffer_offset) is not int:
        return False
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, ring._native)
    place = ring._find_now(lane, nbytes, 4) if pin is None else None  # a pin lives as long as a copy of its own
    if place is None:
        return False
    staging, offset = place
    assert staging.bytes is not None
    staging.bytes[offset : offset + nbytes] = source
    lane.stage_bytes(staging, offset, buffer, buffer_offset, nbytes)
    return True


def from_buffer(
    ring: StagingRing, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None
) -> Iterator[Piece]:
    """Pieces of `data`'s bytes, in C order. :raises InvalidCopy:"""
    array = as_items(as_array(data))
    buffer_offset, data_offset = whole(buffer_offset, "buffer_offset"), whole(data_offset, "data_offset")
    if not 0 <= data_offset <= array.nbytes:
        raise InvalidCopy(f"data_offset {data_offset} lies outside the data's {array.nbytes} bytes")
    nbytes = array.nbytes - data_offset if size is None else whole(size, "size")
    if nbytes > array.nbytes - data_offset:
        raise InvalidCopy(f"size {nbytes} exceeds the {array.nbytes - data_offset} bytes behind data_offset")
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, ring._native)

    def pieces() -> Iterator[Piece]:
        for start in range(0, nbytes, ring.buffer_size):
            length = min(ring.buffer_size, nbytes - start)
            yield Piece(
                length,
                partial(copy_bytes, array=array, start=data_offset + start),
                partial(_buffer_copy, buffer=buffer, target=buffer_offset + start, nbytes=length, pin=pin),
            )

    return pieces()


def _buffer_copy(source: StagingBuffer, offset: int, buffer: Any, target: int, nbytes: int, pin: Any) -> BufferCopy:
    return BufferCopy(source, offset, buffer, target, nbytes, pin)


# -- texels --


def from_texels(
    ring: StagingRing,
    destination: Mapping[str, Any],
    data: Any,
    data_layout: Mapping[str, int] | None,
    size: Any,
) -> Iterator[Piece]:
    """Pieces of texel rows, padded as they are copied. :raises InvalidCopy:"""
    resolved = resolve_destination(destination, ring._native)
    array = as_array(data)
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
    if region.is_empty:
        return iter(())
    portion = layers, rows, columns = _portion(region, ring.buffer_size)
    if layers >= blocks.shape[0] and portion[1:] == blocks.shape[1:3]:
        return iter((_texel_piece(region, blocks),))
    return _texel_pieces(region, blocks, layers, rows, columns)


def _texel_pieces(region: TextureRegion, blocks: Blocks, layers: int, rows: int, columns: int) -> Iterator[Piece]:
    for z in range(0, region.size[2], layers):
        for y in range(0, region.block_rows, rows):
            for x in range(0, region.block_columns, columns):
                source = blocks[z : z + layers, y : y + rows, x : x + columns]
                part = region.part(z, source.shape[0], y, source.shape[1], x, source.shape[2])
                yield _texel_piece(part, source)


def _texel_piece(part: TextureRegion, source: Blocks) -> Piece:
    stride = padded_row(part.row_bytes)
    return Piece(
        footprint(part, stride, part.block_rows),
        partial(copy_blocks, source=source, stride=stride),
        partial(_texture_copy, part=part, stride=stride),
    )


def _texture_copy(source: StagingBuffer, offset: int, part: TextureRegion, stride: int) -> TextureCopy:
    return TextureCopy(source, offset, part, stride, part.block_rows)


def _portion(region: TextureRegion, buffer_size: int) -> Triple:
    """(layers, block rows, block columns) of the largest pieces that fit: by layers, else by rows, else by columns."""
    row_bytes, stride = region.row_bytes, padded_row(region.row_bytes)
    if row_bytes <= buffer_size:
        rows = (buffer_size - row_bytes) // stride + 1  # the last row needs no padding
        if rows >= region.block_rows:
            return rows // region.block_rows, region.block_rows, region.block_columns
        columns = region.block_columns
    else:
        rows, columns = 1, buffer_size // region.block.nbytes
    if is_depth_stencil(region.texture.format):
        raise AllocationTooLarge(
            f"{region.texture.format} is copied whole images at a time, and one of {stride * region.block_rows} bytes "
            f"does not fit in a staging buffer of {buffer_size}"
        )
    if columns == 0:
        raise AllocationTooLarge(
            f"a texel block of {region.block.nbytes} bytes does not fit in a staging buffer of {buffer_size}"
        )
    return 1, rows, columns


def _lay_out(array: npt.NDArray[Any], data_layout: Mapping[str, int], region: TextureRegion) -> Blocks:
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
    if not data_layout and (shaped := _shaped(array, region)) is not None:
        return shaped
    if not array.dtype.isnative:
        raise InvalidCopy("data in another byte order: give data.astype(data.dtype.newbyteorder('<')), or its bytes")
    shape = (region.size[2], region.block_rows, region.block_columns, region.block.nbytes)
    strides = (bytes_per_row * rows_per_image, bytes_per_row, region.block.nbytes, 1)
    if not needed:
        return np.empty(shape, np.uint8)
    if not array.flags.c_contiguous:
        return Scattered(array, offset, shape, strides)
    return np.ndarray(shape, np.uint8, array.reshape(-1).view(np.uint8), offset, strides)


def _shaped(array: npt.NDArray[Any], region: TextureRegion) -> npt.NDArray[Any] | None:
    """The texel blocks of `array` if its own shape is the region's, or None."""
    room = (region.size[2], region.block_rows, region.block_columns)
    shaped = as_blocks(array, region.block, region.texture.dimension, room)
    return shaped if shaped is not None and shaped.shape[:3] == room else None


def _infer(
    array: npt.NDArray[Any], texture: Any, mip_level: int, origin: Triple, block: TexelBlock
) -> tuple[npt.NDArray[Any], Triple]:
    """The texel blocks of `array`, and the size in texels that its shape tells."""
    level = mip_extent(texture, mip_level)
    room = (
        level[2] - origin[2],
        -(-(level[1] - origin[1]) // block.height),
        -(-(level[0] - origin[0]) // block.width),
    )
    blocks = as_blocks(array, block, texture.dimension, room)
    if blocks is None and is_raw(array) and origin == (0, 0, 0):
        blocks = _as_level(array, (*room, block.nbytes))
    if blocks is None:
        raise InvalidCopy(
            f"the size cannot be told from data of shape {array.shape} and {array.itemsize} bytes an item, for a "
            f"{texture.dimension} texture of {texture.format} with {block.nbytes} bytes a texel block: shape it "
            "(layers, rows, columns, channels), as with np.moveaxis where the channels come first, or give size and "
            "data_layout"
        )
    layers, rows, columns = blocks.shape[:3]
    return blocks, (columns * block.width, rows * block.height, layers)


def _as_level(array: npt.NDArray[Any], shape: tuple[int, int, int, int]) -> npt.NDArray[Any] | None:
    """Contiguous bytes, exactly those of a whole mip level, flat or row by row, as blocks of this shape; or None."""
    layers, rows, columns, nbytes = shape
    by_rows = ((layers, rows, columns * nbytes), (rows, columns * nbytes)[: 2 * (layers == 1)])
    fits = array.nbytes == math.prod(shape) and (array.ndim == 1 or array.shape in by_rows)
    return array.reshape(-1).view(np.uint8).reshape(shape) if fits and array.flags.c_contiguous else None
