"""Where a container's bytes come from. Blocking: for worker threads."""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.files import FileRange
from ..errors import InvalidTexture
from .layout import Extent


class Source:
    """A file, or bytes in memory, that is read at any offset; `size` in bytes.

    :param source: a path (a string, or any os.PathLike), a file that was opened for bytes and can seek, or bytes: any
        object with the buffer protocol, a NumPy array too.
    :raises OSError: the file cannot be opened. :raises TypeError: none of these.
    """

    def __init__(self, source: object) -> None:
        self._file: BinaryIO | None = None
        self._is_ours = False
        if isinstance(source, str | os.PathLike):
            self._file = Path(source).open("rb")  # noqa: SIM115 - until close()
            self._is_ours = True
            try:
                self.size = self._file.seek(0, os.SEEK_END)
            except OSError:  # a pipe
                self.close()
                raise
        elif hasattr(source, "read") and hasattr(source, "seek") and not isinstance(source, mmap.mmap):
            self._file = _binary(source)
            self.size = self._file.seek(0, os.SEEK_END)
        else:
            self._bytes = _bytes_of(source)
            self.size = self._bytes.nbytes

    def read(self, offset: int, nbytes: int, what: str) -> bytes | memoryview:
        """Exactly these bytes, never more.

        :raises InvalidTexture: the file ends before; `what` names them.
        """
        if offset + nbytes > self.size:
            raise InvalidTexture(
                f"{what} needs bytes {offset} to {offset + nbytes}, but the file ends at {self.size}: it is cut off"
            )
        if self._file is None:
            return self._bytes[offset : offset + nbytes]
        self._file.seek(offset)
        found = b""
        while len(found) < nbytes and (more := self._file.read(nbytes - len(found))):
            found = found + more if found else more  # a file without a buffer may give less
        if len(found) != nbytes:  # somebody truncated it since
            raise InvalidTexture(f"{what} was to be read at byte {offset}, but the file has been cut off there")
        return found

    def range(self, extent: Extent, shape: tuple[int, ...]) -> FileRange | None:
        """These bytes, for threads that read them straight into staging memory. None: they are in no plain file.

        :raises InvalidTexture: the file ends before.
        """
        file = self._file
        raw = file.raw if type(file) is io.BufferedReader else file
        if type(raw) is not io.FileIO:  # something that unpacks, say, may give away the descriptor of what it reads
            return None
        try:
            return FileRange(raw, extent.offset, extent.nbytes, shape=shape)
        except ValueError as error:  # somebody truncated it since
            raise InvalidTexture(f"the file has been cut off: {error}") from None

    def close(self) -> None:
        """Of a file that somebody else opened, nothing."""
        if self._file is not None and self._is_ours:
            self._file.close()


def _binary(file: Any) -> BinaryIO:
    nothing = file.read(0)
    if not isinstance(nothing, bytes):
        if hasattr(nothing, "close"):
            nothing.close()  # a coroutine, of a file that is read by awaiting it
        raise TypeError("a texture is read from a file that was opened for bytes, as by open(path, 'rb')")
    binary: BinaryIO = file
    return binary


def _bytes_of(source: Any) -> memoryview:
    try:
        if isinstance(source, np.ndarray) and source.dtype.kind in "mM":  # which no buffer may have
            source = source.view(np.int64)
        if isinstance(source, np.ndarray) and source.dtype.hasobject:
            raise TypeError
        view = memoryview(source)
        return view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
    except (TypeError, ValueError):
        raise TypeError(f"a texture is read from a path, a file or bytes, not from {type(source).__name__}") from None
