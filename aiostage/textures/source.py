"""Where a container's bytes come from. Blocking: for worker threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from ..errors import InvalidTexture


class Source:
    """A file, or bytes in memory, that is read at any offset; `size` in bytes.

    :raises OSError: the file cannot be opened. :raises TypeError: neither a path nor bytes.
    """

    def __init__(self, source: object) -> None:
        self._file: BinaryIO | None = None
        if isinstance(source, str | os.PathLike):
            self._file = Path(source).open("rb")  # noqa: SIM115 - until close()
            self.size = self._file.seek(0, os.SEEK_END)
        elif isinstance(source, bytes | bytearray | memoryview):
            self._bytes = memoryview(source).cast("B")
            self.size = self._bytes.nbytes
        else:
            raise TypeError(f"a texture is read from a path or from bytes, not from {type(source).__name__}")

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
        found = self._file.read(nbytes)
        if len(found) != nbytes:  # somebody truncated it since
            raise InvalidTexture(f"{what} was to be read at byte {offset}, but the file has been cut off there")
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
