"""Planes of decoded video frames as arrays, without a copy."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt


def plane(frame: Any, index: int) -> npt.NDArray[Any]:
    """One plane of a PyAV VideoFrame as it lies in memory: an array (rows, columns[, channels]) whose rows are as far
    apart as the decoder has put them. It keeps the frame's memory alive.

    Of `yuv420p`, plane 0 is (height, width), planes 1 and 2 are half of that; plane 1 of `nv12` has two channels, and
    `rgb24` has three in its only plane. Components of more than eight bits are uint16, or floats where the format has
    them; pixels whose components share bytes (`rgb565le`, `x2rgb10le`) are whole numbers of a pixel's size.

    :raises IndexError: the format has no such plane.
    :raises ValueError: its pixels are no whole bytes, its rows run upwards, or the frame is a decoder's own on a GPU.
    """
    planes = frame.planes
    if not 0 <= index < len(planes):
        raise IndexError(f"plane {index} of {frame.format.name}, which has {len(planes)}")
    found = planes[index]
    parts = [part for part in frame.format.components if part.plane == index]
    if not parts:
        raise ValueError(f"plane {index} of {frame.format.name} is a palette: give frame.reformat(format='rgba')")
    if found.line_size <= 0:
        name = frame.format.name
        raise ValueError(f"rows of {name} that run upwards: give frame.reformat(format={name!r})")
    try:
        memory = memoryview(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the frame of {frame.format.name} is not in main memory: {error}") from error
    dtype, channels = _pixel(frame.format, parts, found.width)
    shape = (found.height, found.width, channels)
    steps = (found.line_size, dtype.itemsize * channels, dtype.itemsize)
    axes = 3 if channels > 1 else 2
    return np.ndarray(shape[:axes], dtype, memory, 0, steps[:axes])


def _pixel(format: Any, parts: list[Any], width: int) -> tuple[np.dtype[Any], int]:
    """The type of a component, and how many of them there are for each column of the plane."""
    bits = max(part.bits for part in parts)
    size = 1 if bits <= 8 else 2 if bits <= 16 else 4
    count = sum(part.width for part in parts) // width
    pixel, rest = count * size, 0
    if not format.is_planar:  # which may have bytes of no component, or components that share bytes
        pixel, rest = divmod(format.padded_bits_per_pixel, 8)
    if rest or not pixel or format.is_bit_stream:
        raise ValueError(f"pixels of {format.name} are no whole bytes: give frame.reformat(format='gray')")
    kind = "f" if re.search(r"f(16|32)(le|be)?$", format.name) else "u"
    if pixel % size or pixel < count * size:
        if pixel not in (1, 2, 4, 8):
            raise ValueError(f"components of {format.name} share bytes: give frame.reformat(format='rgba')")
        size, kind = pixel, "u"
    return np.dtype(f"{'>' if format.is_big_endian else '<'}{kind}{size}"), pixel // size
