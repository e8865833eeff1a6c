"""Ranges of files, which threads read into staging memory: what a range is, and where texel blocks lie in it."""

from __future__ import annotations

import math
import operator
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Descriptor:
    """A file's descriptor, closed when nobody has this any more: uploads keep it while threads read.

    :param name: what errors call the file.
    """

    __slots__ = ("fd", "name")

    def __init__(self, fd: int, name: Any) -> None:
        self.fd = fd
        self.name = name

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.fd)


class FileRun(NamedTuple):
    """Bytes of a file that go to a place, as a `Run` of an array does: from `position` on, `run` of them in a row."""

    source: Descriptor
    position: int
    offset: int
    run: int
    shape: tuple[int, ...]
    """How many of those there are along each axis; `strides` bytes apart in the file, `steps` in staging memory."""
    strides: tuple[int, ...]
    steps: tuple[int, ...]


class Stored:
    """What stands for an array whose bytes are in a file: as much of an array as it takes to cut it into pieces."""

    __slots__ = ("dtype", "offset", "shape", "source", "strides")

    def __init__(
        self, source: Descriptor, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> None:
        self.source = source
        self.offset = offset
        self.dtype = dtype
        self.shape = shape
        self.strides = strides

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def as_bytes(self) -> Stored:
        """The same, packed as it is before anybody cut it, as bytes."""
        return Stored(self.source, self.offset, np.dtype(np.uint8), (self.nbytes,), (1,))

    def reshape(self, shape: tuple[int, ...]) -> Stored:
        """The same, packed as it is before anybody cut it, in another shape."""
        return Stored(self.source, self.offset, self.dtype, shape, packed(shape, self.dtype.itemsize))

    def __getitem__(self, window: tuple[slice, ...]) -> Stored:
        offset, shape = place_of(window, self.shape, self.strides)
        return Stored(self.source, self.offset + offset, self.dtype, shape, self.strides)

    def run(self, steps: tuple[int, ...]) -> FileRun:
        """All of it, to items that are so far apart in a place."""
        return FileRun(self.source, self.offset, 0, self.itemsize, self.shape, self.strides, steps)

    def bytes_run(self, start: int, nbytes: int) -> FileRun:
        """So many of its bytes, as they lie in the file."""
        return FileRun(self.source, self.offset + start, 0, nbytes, (), (), ())


def packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """The strides of a C-contiguous array."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def place_of(
    window: tuple[slice, ...], shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """How many bytes in a window of the first axes of an array begins, and its shape."""
    ranges = [range(n)[part] for n, part in zip(shape, window, strict=False)]
    offset = sum(r.start * step for r, step in zip(ranges, strides, strict=False))
    return offset, (*map(len, ranges), *shape[len(ranges) :])


class FileRange:
    """Bytes of a file, for an upload that threads read straight into staging memory: nothing of it passes through
    Python, and nothing is read on the event loop.

    It may be written any number of times, also at once, and closed while uploads of it are under way: those keep the
    file open until they end. A context manager.

    :param file: a path, or an object with a `fileno()`, which may be closed afterwards. Its own position does not
        count, nor does it move (but on Windows); what was written to it is there if it was flushed.
    :param offset: of the first byte in the file.
    :param nbytes: how many there are; by default what `shape` takes, or else the rest of the file.
    :param shape: of an array that the bytes stand for, in C order: `write_texture` goes by it as by an array's.
        By default they are a row of items.
    :param dtype: of its items.
    :raises OSError: the file cannot be opened.
    :raises ValueError: the range is not in the file, or not of that shape.
    :raises TypeError: what is given is no file, no number, or a dtype that is no plain memory.
    """

    __slots__ = ("_source", "dtype", "nbytes", "offset", "shape")

    def __init__(
        self,
        file: Any,
        offset: int = 0,
        nbytes: int | None = None,
        *,
        shape: int | tuple[int, ...] | None = None,
        dtype: npt.DTypeLike = np.uint8,
    ) -> None:
        self._source: Descriptor | None = None
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        if self.dtype.hasobject or not self.dtype.itemsize:
            raise TypeError(f"a file has bytes or numbers, not {self.dtype}")
        self.offset = _count(offset, "offset")
        if shape is not None:
            shape = tuple(_count(n, "shape") for n in (shape if isinstance(shape, tuple | list) else (shape,)))
            needed = math.prod(shape) * self.dtype.itemsize
            if nbytes is not None and needed != nbytes:
                raise ValueError(f"nbytes is {nbytes}, and {self.dtype} of shape {shape} takes {needed}")
            nbytes = needed
        source = _open(file)
        self.nbytes = _within(source, self.offset, None if nbytes is None else _count(nbytes, "nbytes"))
        if shape is None:
            if self.nbytes % self.dtype.itemsize:
                raise ValueError(f"{self.nbytes} bytes are no whole number of {self.dtype}")
            shape = (self.nbytes // self.dtype.itemsize,)
        self.shape: tuple[int, ...] = shape
        self._source = source

    def part(self, offset: int, nbytes: int) -> FileRange:
        """So many of its bytes, from `offset` bytes behind its start, of the same open file: cheaper than a new one.

        :raises ValueError: they are not all in it, or it was closed.
        """
        if self._source is None:
            raise ValueError("the range of a file was closed")
        if not 0 <= offset <= offset + nbytes <= self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a range that has {self.nbytes}")
        found = FileRange.__new__(FileRange)
        found._source, found.dtype, found.shape = self._source, np.dtype(np.uint8), (nbytes,)
        found.offset, found.nbytes = self.offset + offset, nbytes
        return found

    @property
    def stored(self) -> Stored:
        """What is uploaded. :raises ValueError: it was closed."""
        if self._source is None:
            raise ValueError("the range of a file was closed")
        return Stored(self._source, self.offset, self.dtype, self.shape, packed(self.shape, self.dtype.itemsize))

    def close(self) -> None:
        """Let go of the file; uploads that are under way go on."""
        self._source = None

    def __enter__(self) -> FileRange:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name = "closed" if self._source is None else repr(self._source.name)
        return f"<FileRange of {self.nbytes} bytes from {self.offset}, {name}>"


def _count(value: Any, name: str) -> int:
    number = operator.index(value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, as {number} is")
    return number


def _open(file: Any) -> Descriptor:
    if isinstance(file, str | bytes | os.PathLike):
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        return Descriptor(os.open(file, flags), os.fspath(file))
    if not hasattr(file, "fileno"):
        raise TypeError(f"a path or an open file is needed, not {type(file).__name__}")
    return Descriptor(os.dup(file.fileno()), getattr(file, "name", "a file"))


def _within(source: Descriptor, offset: int, nbytes: int | None) -> int:
    """The bytes of a range. :raises ValueError: they are not all there."""
    status = os.fstat(source.fd)
    if not stat.S_ISREG(status.st_mode):  # whose size nobody knows
        if nbytes is None:
            raise ValueError(f"{source.name!r} is no regular file: give nbytes")
        return nbytes
    if nbytes is None:
        nbytes = max(status.st_size - offset, 0)
    if offset + nbytes > status.st_size:
        raise ValueError(
            f"bytes {offset} to {offset + nbytes} are not all in {source.name!r}, which has {status.st_size}"
        )
    return nbytes
