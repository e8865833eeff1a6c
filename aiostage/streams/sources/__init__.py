"""Where streams come from: ranges of files, the planes of video frames, and the chunks of OME-Zarr pyramids.

await ring.write_buffer(buffer, 0, sources.file("positions.bin", offset=4096, size=1 << 20))

await ring.write_texture({"texture": luma}, sources.plane(frame, 0))

async for chunk in sources.zarr_pyramid("volume.zarr", lambda: camera.position):
    await chunk.upload(ring, {"texture": textures[chunk.level]})
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from ...data.files import FileRange
from ...typing import SupportsFileno
from .ome import Level
from .pyramid import Chunk, Pyramid, zarr_pyramid
from .video import plane

__all__ = ["Chunk", "FileRange", "Level", "Pyramid", "file", "plane", "zarr_pyramid"]


def file(
    path: str | os.PathLike[str] | SupportsFileno,
    offset: int = 0,
    size: int | None = None,
    *,
    shape: int | tuple[int, ...] | None = None,
    dtype: npt.DTypeLike = np.uint8,
) -> FileRange:
    """`size` bytes of a file from `offset` on (default: the rest), for `write_buffer` and `write_texture`: the ring's
    threads read them straight into staging memory, and nothing is read on the event loop.

    :param path: a path, or an open file with a `fileno()`, which may be closed afterwards.
    :param shape: of an array that the bytes stand for, in C order: `write_texture` goes by it as by an array's.
    :raises OSError: the file cannot be opened.
    :raises ValueError: the range is not in the file, or not of that shape.
    """
    return FileRange(path, offset, size, shape=shape, dtype=dtype)
