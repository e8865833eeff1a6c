"""Which part of a texture or buffer an array is for, and what the GPU gets of it. Pure functions on numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidCopy

Array = np.ndarray[Any, Any]
Triple = tuple[int, int, int]


class Region(NamedTuple):
    """A part of a texture, in texels."""

    offset: Triple
    size: Triple

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The same of an array (depth, height, width, …)."""
        z, y, x = (slice(start, start + count) for start, count in zip(self.offset[::-1], self.size[::-1], strict=True))
        return z, y, x


class Layout(NamedTuple):
    """What there is of an array that nobody has: of a texture without data on the CPU."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def triple(given: Any, name: str, rest: int) -> Triple:
    """(x, y, z) of as many numbers as are given. :raises ValueError: they are none, or negative."""
    numbers = tuple(given) if isinstance(given, Sequence | np.ndarray) else (given,)
    if not 1 <= len(numbers) <= 3:
        raise ValueError(f"{name} must be one to three numbers (x, y, z), not {given!r}")
    x, y, z = (*(count(number, name) for number in numbers), *(rest,) * (3 - len(numbers)))
    return x, y, z


def count(given: Any, name: str) -> int:
    """:raises ValueError: it is no whole number, or negative."""
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given < 0:
        raise ValueError(f"{name} must be whole numbers from 0 on, not {given!r}")
    return int(given)


def texels(array: Array, texture: Layout | Array, offset: Triple, size: Any) -> tuple[Region, Array]:
    """The region of a texture (depth, height, width[, channels]) that `array` is for, and `array` in that's shape.

    :raises InvalidCopy: it does not fit there, or has items of another type.
    """
    check_dtype(array, texture.dtype)
    channels = texture.shape[3:]
    if size is None:
        size = _size_of(array, channels)
    else:
        size = triple(size, "size", 1)
    room = texture.shape[2::-1]
    if any(start + count > most for start, count, most in zip(offset, size, room, strict=True)):
        raise InvalidCopy(f"{size} texels at {offset} do not fit in a texture of {room}")
    shape = (*size[::-1], *channels)
    if array.size != math.prod(shape):
        raise InvalidCopy(
            f"an array of shape {array.shape} does not have the {size} texels of {channels or 1} channels"
        )
    return Region(offset, size), array.reshape(shape)


def _size_of(array: Array, channels: tuple[int, ...]) -> Triple:
    """(width, height, depth) of an array (…, width[, channels])."""
    shape = array.shape
    if channels and shape[len(shape) - len(channels) :] == channels:
        shape = shape[: len(shape) - len(channels)]
    elif channels not in ((), (1,)):
        raise InvalidCopy(f"the last axis of an array of shape {shape} is not the {channels[0]} channels of a texel")
    if not 1 <= len(shape) <= 3:
        raise InvalidCopy(f"the size cannot be told from an array of shape {array.shape}: give size")
    return triple(shape[::-1], "size", 1)


def with_alpha(array: Array, alpha: float) -> Array:
    """RGBA of RGB, which no GPU has textures of."""
    padded = np.empty((*array.shape[:-1], 4), array.dtype.newbyteorder("="))
    padded[..., :3] = array
    padded[..., 3] = alpha
    return padded


def items(array: Array, kept: Array, offset: int, size: int | None) -> tuple[slice, Array]:
    """The items of `kept` that `array` is for, and `array` in their shape. :raises InvalidCopy: as `texels`."""
    check_dtype(array, kept.dtype)
    per_item = math.prod(kept.shape[1:])
    number = array.size // per_item if size is None else size
    if array.size != number * per_item:
        raise InvalidCopy(f"an array of shape {array.shape} is not {number} items of {per_item} numbers")
    if offset + number > len(kept):
        raise InvalidCopy(f"{number} items at {offset} do not fit in a buffer of {len(kept)}")
    return slice(offset, offset + number), array.reshape(number, *kept.shape[1:])


def aligned(array: Array, kept: Array, part: slice) -> tuple[int, Array]:
    """Where the bytes of `array` go, and they, with as many of its neighbours' as make them begin and end at multiples
    of four, which copies do."""
    itemsize = array.itemsize * math.prod(array.shape[1:])
    step = 4 // math.gcd(4, itemsize)
    start, stop = part.start // step * step, min(-(-part.stop // step) * step, len(kept))
    if (start, stop) != (part.start, part.stop):
        both = kept[start:stop].copy()
        both[part.start - start : part.stop - start] = array
        array = both
    return start * itemsize, array


def is_little(array: Array) -> bool:
    """Whether its items are in the byte order of GPUs."""
    return bool(array.dtype == array.dtype.newbyteorder("<"))


def little(array: Array) -> Array:
    return array.astype(array.dtype.newbyteorder("<"))


def check_dtype(array: Array, wanted: Any) -> None:
    """In either byte order. :raises InvalidCopy:"""
    if array.dtype.newbyteorder("<") != wanted.newbyteorder("<"):
        raise InvalidCopy(f"an array of {array.dtype} for data of {wanted}: convert it with astype")
