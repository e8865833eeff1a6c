"""What a coroutine gets from the ring: a writable slice of a staging buffer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import wgpu

from .data.copies import (
    BufferCopy,
    BufferSlice,
    Copy,
    TextureCopy,
    as_extent,
    check_buffer_copy,
    check_source,
    footprint,
    pop_layout,
    resolve_region,
    whole,
)
from .data.formats import numpy_layout, padded_row, texel_block
from .engine.buffer import Place, StagingBuffer
from .engine.engine import Engine
from .engine.relays import record
from .engine.views import StagedArray, Views
from .errors import AllocationClosed, InvalidCopy, ViewStillAlive
from .typing import BufferDestination, DataLayout, Extent, TextureDestination


class TexelLayout(NamedTuple):
    """How the texels of a slot from `allocate_texture` lie in it."""

    size: tuple[int, int, int]
    bytes_per_row: int
    rows_per_image: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Allocation:
    """A writable slice of a staging buffer, from `StagingRing.allocate`.

    Write to it, say where the bytes go, and commit: by leaving `with slot:`, which abandons it on an exception, or by
    `commit`. Write only, front to back: on a discrete GPU reading staging memory can be 300 times slower than writing.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_copies",
        "_engine",
        "_place",
        "_recorded",
        "_strict_views",
        "_texels",
        "_views",
        "offset",
        "size",
    )

    def __init__(self, engine: Engine, place: Place, strict_views: bool, texels: TexelLayout | None = None) -> None:
        self._engine = engine
        self._place = place
        self._strict_views = strict_views
        self.offset = place.offset
        """Where it starts in the buffer, in bytes."""
        self.size = place.size
        """Its length in bytes."""
        self._closed = False
        self._copies: list[Copy] = []
        self._recorded: list[tuple[Any, Copy]] = []  # (caller's encoder, copy)
        self._views: Views | None = None
        self._texels = texels

    @property
    def buffer(self) -> StagingBuffer:
        """The staging buffer that it lies in; `buffer.handle` is wgpu's GPUBuffer.

        Whoever commits without a copy may copy out of the handle by a command buffer of his own, which he gives to the
        next `StagingRing.submit`: until then the buffer stays as it is.
        """
        self._place.buffer.lent = True
        return self._place.buffer

    # -- writing --

    @property
    def view(self) -> memoryview:
        """Its bytes, writable. Released at commit; what was made from it must be gone by then."""
        return self._open_views().view

    def array(self, dtype: npt.DTypeLike | None = None, shape: int | Sequence[int] | None = None) -> StagedArray:
        """A writable array over its bytes; read-only from commit on, with every slice of it.

        By default of uint8 and all bytes; for `allocate_texture`, of the format's type and shaped (layers, rows,
        columns, channels) without the axes that are 1, with the padded row stride in its strides.

        :raises ValueError: it does not fit.
        """
        texels = self._texels
        if texels is not None and dtype is None and shape is None:
            return self._open_views().array(texels.dtype, texels.shape, texels.strides)
        element = np.dtype(np.uint8 if dtype is None else dtype)
        if element.hasobject or not element.itemsize:
            raise TypeError(f"staging memory holds bytes and numbers, not {element}")
        if shape is None:
            shape = (self.size // element.itemsize,)
        extents = (int(shape),) if isinstance(shape, int | np.integer) else tuple(int(n) for n in shape)
        if min(extents, default=0) < 0 or math.prod(extents) * element.itemsize > self.size:
            raise ValueError(f"{extents} of {element} do not fit in an allocation of {self.size} bytes")
        return self._open_views().array(element, extents)

    # -- saying where it goes --

    def copy_to_buffer(
        self,
        buffer: BufferDestination,
        buffer_offset: int = 0,
        *,
        data_offset: int = 0,
        size: int | None = None,
        encoder: wgpu.GPUCommandEncoder | None = None,
    ) -> None:
        """Copy `size` bytes (default: the rest) from `data_offset` on to `buffer_offset` of a GPUBuffer or a pool's
        range.

        It runs with the ring's next submit or, with `encoder`, where it is recorded: into that encoder, at commit.

        :raises InvalidCopy: WebGPU would refuse it; nothing was staged.
        """
        self._check_open()
        buffer_offset, data_offset = whole(buffer_offset, "buffer_offset"), whole(data_offset, "data_offset")
        nbytes = self.size - data_offset if size is None else whole(size, "size")
        if encoder is not None and isinstance(buffer, BufferSlice) and not buffer.stays:
            raise InvalidCopy("the range may be moved before the encoder is submitted: copy to a pin of it")
        buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, self._engine.native)
        check_source(data_offset, nbytes, self.size, 4)
        if nbytes:
            source, start = self._place.buffer, self.offset + data_offset
            self._keep(BufferCopy(source, start, buffer, buffer_offset, nbytes, pin), encoder)

    def copy_to_texture(
        self,
        destination: TextureDestination,
        data_layout: DataLayout | None = None,
        size: Extent | None = None,
        *,
        encoder: wgpu.GPUCommandEncoder | None = None,
    ) -> None:
        """Copy texels to a region of a texture; the arguments are those of wgpu's `copy_buffer_to_texture`.

        `data_layout` (offset, bytes_per_row, rows_per_image) and `size` default to those of `allocate_texture`.

        :raises InvalidCopy: WebGPU would refuse it; nothing was staged.
        """
        self._check_open()
        texels = self._texels
        if size is None:
            if texels is None:
                raise InvalidCopy("size is needed for an allocation that allocate_texture did not make")
            size = texels.size
        region = resolve_region(destination, size, self._engine.native)
        row = texels.bytes_per_row if texels else padded_row(region.row_bytes)
        images = texels.rows_per_image if texels else region.block_rows
        offset, bytes_per_row, rows_per_image = pop_layout(dict(data_layout or {}), row, images)
        if bytes_per_row % 256 or bytes_per_row < region.row_bytes:
            raise InvalidCopy(
                f"bytes_per_row must be a multiple of 256 and at least {region.row_bytes}, not {bytes_per_row}"
            )
        if rows_per_image < region.block_rows:
            raise InvalidCopy(f"rows_per_image must be at least {region.block_rows}, not {rows_per_image}")
        check_source(offset, footprint(region, bytes_per_row, rows_per_image), self.size, 1)
        start = self.offset + offset
        if start % max(4, region.block.nbytes):
            raise InvalidCopy(
                f"texels start at byte {start} of the staging buffer, which must be a multiple of "
                f"{max(4, region.block.nbytes)}: allocate with that alignment"
            )
        if not region.is_empty:
            self._keep(TextureCopy(self._place.buffer, start, region, bytes_per_row, rows_per_image), encoder)

    # -- ending --

    def commit(self) -> None:
        """Nobody writes any more; the copies may be submitted.

        :raises ViewStillAlive: something still can write, see `docs/views.md`. The allocation stays open.
        :raises AllocationClosed: it was committed or abandoned before.
        """
        engine, place, copies, recorded = self._engine, self._place, self._copies, self._recorded
        self._check_open()
        exports: Sequence[Any] = ()
        if self._views is not None:
            self._views.close(self._strict_views)
            exports = self._views.alive()
        self._closed = True
        engine.commit(place, self, copies, exports, len(recorded))
        try:
            if recorded:
                record(engine, place, recorded, stays=bool(copies))
        finally:
            engine.let_go(place.buffer)
        if copies or recorded:
            self._forget_copies()

    def abandon(self) -> None:
        """Give the place up; nothing is copied. Does nothing when the allocation is closed already."""
        if self._closed:
            return
        self._engine.port.check()
        self._closed = True
        self._forget_copies()
        if self._views is not None:
            self._views.give_up()
        self._engine.abandon(self._place, self._views)

    def __enter__(self) -> Allocation:
        self._check_open()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if self._closed:
            return
        if exc_type is not None:
            self.abandon()
            return
        try:
            self.commit()
        except ViewStillAlive:
            self.abandon()  # nobody else will; the place is not given out again while the view lives
            raise

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._engine.error is None:  # its end abandons what is open
            warnings.warn(f"{self!r} was neither committed nor abandoned", ResourceWarning, stacklevel=1)
            self._closed = True
            self._engine.port.post(partial(self._engine.abandon, self._place, self._views))

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"<Allocation of {self.size} bytes at {self.offset} of staging buffer {self._place.buffer.index}, {state}>"
        )

    def _keep(self, copy: Copy, encoder: Any) -> None:
        if encoder is None:
            self._copies.append(copy)
        else:
            self._recorded.append((encoder, copy))

    def _forget_copies(self) -> None:
        """A slot that is still in scope must not keep the pins of ranges that it was copied to."""
        self._copies, self._recorded = [], []

    def _open_views(self) -> Views:
        self._check_open()
        if self._views is None:
            self._views = Views(self._place.buffer.address + self.offset, self.size, self._place.buffer.keep_alive)
        return self._views

    def _check_open(self) -> None:
        if self._closed:
            raise AllocationClosed("the allocation was committed or abandoned before")
        self._engine.check()


def texel_layout(size: Extent, format: str, aspect: str = "all") -> TexelLayout:
    """The layout of `size` texels of a format in staging memory, rows padded to 256 bytes.

    :raises ValueError: the format or aspect cannot be written by a copy, or the size is not positive.
    """
    block = texel_block(format, aspect)
    try:
        width, height, layers = as_extent(size)
    except InvalidCopy as error:
        raise ValueError(str(error)) from None  # nothing is copied yet
    if not (width and height and layers):
        raise ValueError(f"size must be one to three positive numbers, not {size!r}")
    columns, rows = -(-width // block.width), -(-height // block.height)
    stride = padded_row(columns * block.nbytes)
    plain = numpy_layout(format)
    if plain is None:  # whole blocks, as bytes
        dtype, channels = np.dtype(np.uint8), 1
        columns *= block.nbytes
        step = 1
    else:
        dtype, channels = np.dtype(plain[0]), plain[1]
        step = block.nbytes
    axes = slice(int(layers == 1), 3 + int(channels > 1))  # without those that are 1
    shape: tuple[int, ...] = (layers, rows, columns, channels)
    strides: tuple[int, ...] = (stride * rows, stride, step, dtype.itemsize)
    return TexelLayout((width, height, layers), stride, rows, dtype, shape[axes], strides[axes])
