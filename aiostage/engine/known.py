"""What was found out about a large write of texels, for the next that is like it: to the same region of the same
texture, from an array of the same layout. Such a write is not checked and cut again, as with the frames of a video."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..carrier.departure import pack_pieces
from ..data.copies import TextureCopy
from ..data.pieces import Part, Whole
from ..gpu.protocol import Native

_MOST = 64
"""Writes that are known of a texture. Whoever makes more different ones has them checked."""

_PLAIN = (tuple, int, str, type(None))


class Known(NamedTuple):
    """What was found out. It is kept with the texture, and so does not have it."""

    nbytes: int
    first: Part
    records: bytes

    def whole(self, texture: Any, data: Any) -> Whole:
        """The upload of other data."""
        copy: Any = self.first.copy
        return Whole(data, [self.first._replace(copy=copy.to(texture))], self.records)


def look_up(native: Native, buffer_size: int, destination: Any, data: Any, size: Any) -> Known | None:
    """What is known about a write that is given so."""
    key = _key(buffer_size, destination, data, size)
    notes = native.notes(destination["texture"]) if key is not None else None
    try:
        found: Known | None = notes[key] if notes else None
    except (KeyError, TypeError):  # not hashable: wrong, or at least rare
        return None
    return found


def note(native: Native, buffer_size: int, destination: Any, data: Any, size: Any, nbytes: int, whole: Whole) -> None:
    """Note what was found out about it."""
    key, first = _key(buffer_size, destination, data, size), whole.parts[0]
    copy = first.copy
    assert isinstance(copy, TextureCopy)
    if key is None or whole.array.dtype != data.dtype or _address(whole.array) != _address(data):
        return
    notes = native.notes(copy.destination)
    if notes is None or copy.destination.dimension == "3d":  # whose levels' first uses differ
        return
    if len(notes) >= _MOST:
        notes.clear()
    try:
        notes[key] = Known(nbytes, first._replace(copy=copy.to(None)), pack_pieces(native, whole.parts))
    except TypeError:
        return


def _key(buffer_size: int, destination: Any, data: Any, size: Any) -> tuple[Any, ...] | None:
    if type(data) is not np.ndarray or type(destination) is not dict or "texture" not in destination:
        return None
    given = destination.get("mip_level"), destination.get("origin"), destination.get("aspect"), size
    if not all([type(value) in _PLAIN for value in given]):
        return None
    return buffer_size, *given, len(destination), data.shape, data.strides, data.dtype


def _address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])
