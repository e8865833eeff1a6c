"""What calls take, for annotations: `def tile() -> aiostage.typing.Data`. Nothing here does anything at run time.

wgpu-py has no marker of typed packages (py.typed): to mypy its classes are Any, pyright reads them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol, Required, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
import wgpu

from .data.copies import BufferSlice
from .data.files import FileRange

if sys.version_info >= (3, 12):
    from collections.abc import Buffer
elif TYPE_CHECKING:
    from typing_extensions import Buffer
else:
    Buffer = bytes | bytearray | memoryview

__all__ = [
    "BufferDestination",
    "Data",
    "DataLayout",
    "Extent",
    "Extent3D",
    "LazyArray",
    "Loader",
    "Origin",
    "Origin3D",
    "SupportsArray",
    "SupportsArrayInterface",
    "SupportsDLPack",
    "SupportsFileno",
    "TextureDestination",
    "TextureFile",
]


class SupportsArray(Protocol):
    """An array of NumPy, or what makes one of itself."""

    def __array__(self) -> npt.NDArray[Any]:
        """All of it, in main memory."""


class SupportsArrayInterface(Protocol):
    """An array in main memory, of any library."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Version 3 of NumPy's protocol."""


class SupportsDLPack(Protocol):
    """A tensor in main memory, of any library."""

    def __dlpack__(self) -> Any:
        """A capsule, of the Python array API standard."""


class SupportsFileno(Protocol):
    """An open file."""

    def fileno(self) -> int:
        """Its descriptor."""


class LazyArray(Protocol):
    """An array that is read or computed part by part: of zarr, dask, h5py, xarray and the like."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Items along each axis."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an item."""

    def __getitem__(self, index: Any, /) -> Any:
        """A part of it, for a tuple of slices."""


Data: TypeAlias = Buffer | SupportsArray | SupportsArrayInterface | SupportsDLPack | LazyArray | FileRange
"""What can be uploaded: bytes, arrays, tensors, lazy arrays, ranges of files. docs/sources.md has them all."""

Loader: TypeAlias = Callable[[], Any]
"""A function, or coroutine function, without parameters that returns `Data`, when it is asked."""

BufferDestination: TypeAlias = wgpu.GPUBuffer | BufferSlice
"""Where bytes go: a GPUBuffer, or a pool's `BufferRange` or `Pin`."""


class Origin3D(TypedDict, total=False):
    """WebGPU's GPUOrigin3DDict: what is missing is 0."""

    x: int
    y: int
    z: int


class Extent3D(TypedDict, total=False):
    """WebGPU's GPUExtent3DDict: what is missing is 1."""

    width: Required[int]
    height: int
    depth_or_array_layers: int


Origin: TypeAlias = Sequence[int] | Origin3D
"""Texels, one to three numbers: (x, y, z)."""

Extent: TypeAlias = Sequence[int] | Extent3D
"""Texels, one to three numbers: (width, height, depth or array layers)."""


class TextureDestination(TypedDict, total=False):
    """WebGPU's GPUTexelCopyTextureInfo: a place in a texture. Without an origin it is (0, 0, 0)."""

    texture: Required[wgpu.GPUTexture]
    mip_level: int
    origin: Origin
    aspect: str


class DataLayout(TypedDict, total=False):
    """WebGPU's GPUTexelCopyBufferLayout: where texels lie in data."""

    offset: int
    """Bytes."""
    bytes_per_row: int
    """From one row of blocks to the next."""
    rows_per_image: int
    """Rows of blocks from one layer to the next."""


TextureFile: TypeAlias = str | os.PathLike[str] | IO[bytes] | Buffer | FileRange
"""A KTX2 or DDS file: its path, open for reading, its bytes, or a range of another file."""
