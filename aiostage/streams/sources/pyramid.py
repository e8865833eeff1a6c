"""The chunks of an OME-Zarr image, in the order in which somebody wants to see them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import anyio
import numpy as np
import numpy.typing as npt
from anyio.lowlevel import checkpoint

from ...data.formats import numpy_layout, padded_row
from ...errors import InvalidSource
from ...fences import Fence
from ...ring import StagingRing
from ...threads import run_sync
from ...typing import TextureDestination
from .ome import Image, Level, read

_MANY = 20_000
"""Chunks that are sorted in some ms; more are sorted in a thread."""

View = Sequence[float] | Callable[[], Sequence[float]]


class Chunk:
    """A chunk of one level, which is read when it is asked for: by `upload`, `load`, or whoever takes it as an array.

    It is one itself, of `shape` and `dtype`, for `ring.write_texture({"texture": texture, "origin": chunk.origin},
    chunk)`.
    """

    def __init__(self, image: Image, level: Level, index: tuple[int, ...], missing: str) -> None:
        self._image, self._level, self._missing = image, level, missing
        self.level: int = level.number
        """0 is the finest."""
        self.index = index
        """Its place in the level's grid of chunks; like all here but `origin` and `size` in the order of the metadata,
        usually (z, y, x)."""
        self.start = tuple(i * chunk for i, chunk in zip(index, level.chunks, strict=True))
        """Its first voxel."""
        ends = (start + chunk for start, chunk in zip(self.start, level.chunks, strict=True))
        self.shape = tuple(min(end, n) - start for end, n, start in zip(ends, level.shape, self.start, strict=True))
        """In voxels."""
        self.chunks = self.shape
        self.dtype: np.dtype[Any] = np.dtype(level.array.dtype)

    @property
    def origin(self) -> tuple[int, ...]:
        """(x, y, z) of its first voxel in a texture of the whole level."""
        return (*reversed(self.start), 0)[:3]

    @property
    def size(self) -> tuple[int, ...]:
        """(width, height, depth) in voxels."""
        return (*reversed(self.shape), 1)[:3]

    def __repr__(self) -> str:
        return f"<Chunk {self.index} of level {self.level} ({self._level.path!r})>"

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = self.read()[index]
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.read(), dtype)

    def read(self, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Read and decode it, for a thread of yours. zarr decodes to memory of its own; what it is copied to is `out`
        where it is given, of its shape and any strides, and a new array otherwise.

        :raises InvalidSource: it is damaged, of another shape than it should be, or missing where that is an error.
        """
        spaces = iter(slice(start, start + n) for start, n in zip(self.start, self.shape, strict=True))
        selection = tuple(next(spaces) if fixed is None else fixed for fixed in self._level.fixed)
        try:
            if self._missing == "error" and not self._is_stored():
                raise FileNotFoundError("it is missing in the store")
            found = np.asarray(_read(self._level.array, selection, out))
            if found.shape != self.shape:
                raise ValueError(f"it has shape {found.shape}, not {self.shape}")
        except Exception as error:  # of whatever zarr, its codecs and its stores raise
            level = self._level
            raise InvalidSource(
                f"{self._image.where}: level {level.number} ({level.path!r}), chunk {self.index}: {error}"
            ) from error
        return found

    def _is_stored(self) -> bool:
        from zarr.core.sync import sync

        array = self._level.array
        sizes = getattr(array, "shards", None) or array.chunks
        spaces = iter(self.start)
        starts = [next(spaces) if fixed is None else fixed for fixed in self._level.fixed]
        key = array.metadata.encode_chunk_key(tuple(n // size for n, size in zip(starts, sizes, strict=True)))
        return bool(sync((array.store_path / key).exists()))

    async def load(self) -> npt.NDArray[Any]:
        """Its voxels, decoded in a thread. :raises InvalidSource:"""
        return await run_sync(self.read)

    async def upload(self, ring: StagingRing, destination: TextureDestination) -> Fence:
        """Upload it to a 3D texture (2D for two axes) of its level, at `origin` unless the destination has another.

        A thread has zarr copy what it has decoded to the rows of staging memory. Only what does not fit in a staging
        buffer, or is of another type than the texels, goes through memory of its own.

        :raises InvalidSource: nothing was uploaded. :raises InvalidCopy: it does not fit the texture.
        """
        place: TextureDestination = {"origin": self.origin, **destination}
        layout = numpy_layout(destination["texture"].format)
        is_alike = layout is not None and layout[1] == 1 and layout[0] == self.dtype.newbyteorder("=")
        row = padded_row(self.size[0] * self.dtype.itemsize)
        if not is_alike or row * math.prod(self.size[1:]) > ring.buffer_size:
            return await ring.write_texture(place, await self.load())
        with await ring.allocate_texture(self.size, destination["texture"].format) as slot:
            slot.copy_to_texture(place)  # which may be refused, before anything is read
            await run_sync(self.read, slot.array().reshape(self.shape))
        return await ring.submit()


def _read(array: Any, selection: tuple[Any, ...], out: Any) -> Any:
    if out is None:
        return array[selection]
    from zarr.buffer import default_buffer_prototype

    staged = default_buffer_prototype().nd_buffer.from_ndarray_like(out)
    array.get_basic_selection(selection, out=staged)
    return out


class Pyramid:
    """Iterates over the chunks of an image; made by `zarr_pyramid`. Several tasks may iterate: each gets others."""

    def __init__(
        self, group: Any, view: View, levels: Iterable[int] | None, select: Mapping[str, int], missing: str
    ) -> None:
        self._group, self._view, self._select, self._missing = group, view, select, missing
        self._wanted = None if levels is None else set(levels)
        self._turn = anyio.Lock()
        self._image: Image | None = None
        self._left: list[Level] = []  # the coarsest last
        self._indices: npt.NDArray[np.intp] = np.empty((0, 0), np.intp)  # of what is left of a level, the nearest last
        self._point: tuple[float, ...] | None = None  # that they are sorted by

    async def open(self) -> Pyramid:
        """Read the metadata, unless that was done. Iterating does it too.

        :raises InvalidSource: they are none that can be read, or lie about the arrays.
        :raises ValueError: `levels`, `select` or `view` are of another image.
        """
        async with self._turn:
            if self._image is None:
                image = await run_sync(self._read)
                chosen = [level for level in image.levels if self._wanted is None or level.number in self._wanted]
                if self._wanted is not None and len(chosen) < len(self._wanted):
                    raise ValueError(f"levels {sorted(self._wanted)} of an image that has {len(image.levels)}")
                _point_of(self._view, image)
                self._left, self._image = chosen, image
        return self

    def _read(self) -> Image:
        group = self._group
        if not hasattr(group, "attrs"):
            import zarr

            try:
                group = zarr.open_group(group, mode="r")
            except Exception as error:  # of whatever zarr and its stores raise
                raise InvalidSource(f"{group}: there is no zarr group: {error}") from error
        return read(group, self._select)

    @property
    def levels(self) -> tuple[Level, ...]:
        """All of the image's, the finest first. :raises RuntimeError: it is not open yet."""
        return self._opened().levels

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the space axes. :raises RuntimeError: it is not open yet."""
        return self._opened().axes

    def _opened(self) -> Image:
        if self._image is None:
            raise RuntimeError("its metadata were not read yet: await pyramid.open()")
        return self._image

    def __aiter__(self) -> Pyramid:
        return self

    async def __anext__(self) -> Chunk:
        await checkpoint()
        if self._image is None:
            await self.open()
        async with self._turn:
            image = self._opened()
            while not len(self._indices):
                if not self._left:
                    raise StopAsyncIteration
                self._indices, self._point = np.argwhere(np.ones(self._left[-1].grid, bool)), None
            point, level = _point_of(self._view, image), self._left[-1]
            if point != self._point:
                if len(self._indices) > _MANY:
                    await run_sync(self._sort, level, point)
                else:
                    self._sort(level, point)
            index = tuple(self._indices[-1].tolist())
            self._indices = self._indices[:-1]
            if not len(self._indices):
                self._left.pop()
            return Chunk(image, level, index, self._missing)

    def _sort(self, level: Level, point: tuple[float, ...]) -> None:
        first = self._indices * np.array(level.chunks)
        last = np.minimum(first + level.chunks, level.shape) - 1
        centers = (first + last) / 2 * np.array(level.scale) + np.array(level.translation)
        distances = np.sum((centers - np.array(point)) ** 2, axis=1)
        self._indices = self._indices[np.argsort(-distances, kind="stable")]
        self._point = point


def _point_of(view: View, image: Image) -> tuple[float, ...]:
    point = tuple(float(value) for value in (view() if callable(view) else view))
    if len(point) != len(image.axes) or not all(map(math.isfinite, point)):
        raise ValueError(f"view must be {', '.join(image.axes)} in the world, finite numbers, not {point}")
    return point


def zarr_pyramid(
    group: Any,
    view: View,
    *,
    levels: Iterable[int] | None = None,
    select: Mapping[str, int] | None = None,
    missing: str = "fill",
) -> Pyramid:
    """The chunks of an OME-Zarr image: the coarsest level first, and of each level the one nearest to a point of view
    first. Nothing is read before it is iterated, and a chunk when it is asked for.

    :param group: a zarr group (zarr 3.0 or newer, of a v2 or v3 store, OME-Zarr 0.4 or 0.5), or what
        `zarr.open_group` takes: a path, an address, a store.
    :param view: a point in world coordinates, one number for each space axis in the order of the metadata; or a
        function that returns one, and is asked before each chunk.
    :param levels: the numbers of those to stream, 0 is the finest; default: all.
    :param select: the index of each other axis by its name, such as {"t": 5, "c": 1}; 0 where there is none.
    :param missing: what a chunk is that the store has not: "fill", as zarr means it, the array's fill value; or
        "error". Of a shard only the whole is missed.
    """
    if missing not in ("fill", "error"):
        raise ValueError(f"missing must be 'fill' or 'error', not {missing!r}")
    return Pyramid(group, view, levels, select or {}, missing)
