"""Small writes of batches: what was found right once is known to native/writes.c, which does the like in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import native
from .data.arrays import WHOLE, as_array, as_items, is_shaped
from .data.copies import BufferSlice, TextureCopy, check_buffer_copy, mip_extent
from .data.files import FileRun
from .data.formats import is_depth_stencil
from .data.pieces import Piece
from .engine.engine import Engine
from .errors import InvalidCopy
from .typing import TextureDestination

MOST_AT_ONCE = 1024 * 1024
"""Bytes that are copied on the loop before others have their turn: some 0.1 ms."""

MOST_RECORDED = 256
"""Writes that are recorded before others have their turn: likewise some 0.1 ms."""

_forms: dict[str, native.Forms] = {}  # by format


NO_WRITES = native.Writes(None, (), 0, 0)
"""Of a batch that is not open: Python decides."""


def writes_of(engine: Engine) -> native.Writes:
    """For a batch or frame."""
    most = min(engine.inline_size, engine.buffer_size)
    return native.Writes(engine.port, tuple(WHOLE), engine.native.handles[0], most)


def know_buffer(engine: Engine, buffer: Any, data: Any) -> None:
    """A write of such data to `buffer` was found right."""
    if type(data) in WHOLE and not isinstance(buffer, BufferSlice):
        native.know_buffer(buffer, engine.native.handles[0], engine.native.handle(buffer), buffer.size)


def know_texels(engine: Engine, data: Any, data_layout: Any, size: Any, piece: Piece) -> None:
    """A write of such data was found right, and this is all of it."""
    if type(data) not in WHOLE or piece.nbytes > engine.inline_size:
        return
    copy = piece.copy(None, 0)
    assert isinstance(copy, TextureCopy)
    texture, block = copy.destination, copy.block
    if texture.dimension != "2d" or is_depth_stencil(texture.format) or copy.aspect != "all":
        return
    if size is None and not is_shaped(as_array(data), block):  # then it may be another one at another origin
        return
    runs = piece.runs()
    if runs is None or len(runs) != 1 or isinstance(runs[0], FileRun):
        return
    forms = _forms.setdefault(texture.format, native.Forms(*block))
    width, height, layers = mip_extent(texture, copy.mip_level)
    extent = -(-width // block.width) * block.width, -(-height // block.height) * block.height, layers
    device, handle = engine.native.handles[0], engine.native.handle(texture)
    native.know_texture(texture, device, handle, forms, copy.mip_level, extent)
    array, _, steps, swap = runs[0]
    layout = copy.bytes_per_row, copy.rows_per_image, copy.nbytes
    forms.know(data, data_layout, size, array, steps, swap, copy.size, layout)


# -- many at once --


def check_many(owner: Any, buffer: Any, offsets: Any, data: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Pieces along the first axis of an array, and where they go in `buffer`. :raises InvalidCopy: nothing may."""
    array = as_items(as_array(data))
    check_buffer_copy(buffer, 0, 0, owner)
    if not array.ndim:
        raise InvalidCopy("data must have an axis of pieces")
    count = len(array)
    given = np.asarray(offsets)
    if given.shape != (count,):
        raise InvalidCopy(f"offsets must be {count} numbers, one for each piece of data, not of shape {given.shape}")
    if count and given.dtype.kind not in "ui":
        raise InvalidCopy(f"offsets must be whole numbers, not {given.dtype}")
    nbytes = array.nbytes // count if count else 0
    bad = (given < 0) | (given % 4 != 0) | (given > buffer.size - nbytes) | (nbytes % 4 != 0)
    if count and bad.any():
        index = int(bad.argmax())
        try:
            check_buffer_copy(buffer, int(given[index]), nbytes, owner)
        except InvalidCopy as error:
            raise at_index(error, index) from None
    return array, given.astype(np.int64)  # a copy: the caller may change his meanwhile


def at_index(error: InvalidCopy | TypeError, index: int) -> InvalidCopy | TypeError:
    """Of one write of many."""
    return type(error)(f"write {index}: {error}")


def as_pieces(destinations: Any, data: Any) -> tuple[list[TextureDestination], Any]:
    """Destinations, and as many data: a list of them, or an array that is C-contiguous. :raises InvalidCopy:"""
    places = list(destinations)
    pieces: Any
    if isinstance(data, Sequence) and type(data) not in WHOLE:
        pieces = list(data)
    else:
        array = as_array(data)
        if not array.ndim:
            raise InvalidCopy("data must have an axis of pieces, or be a sequence of them")
        pieces = array if array.flags.c_contiguous else list(array)
    if len(pieces) != len(places):
        raise InvalidCopy(f"{len(places)} destinations for {len(pieces)} pieces of data")
    return places, pieces
