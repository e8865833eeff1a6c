"""Reading a level's content, and undoing its supercompression without trusting it. Blocking: for worker threads.

A level unpacks to the size that its format and extents give, or is refused: output stops one byte past that, and memory
grows with what has really come out, so that a small file cannot ask for much.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import InvalidTexture, UnsupportedTexture
from .layout import Level, TextureInfo
from .source import Source

_CHUNK = 1 << 20  # bytes taken from a decompressor at a time


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


def read_level(source: Source, info: TextureInfo, number: int) -> bytes | bytearray | memoryview:
    """The `info.levels[number].nbytes` bytes of one mip level.

    :raises InvalidTexture: the file has been cut off since, or the level does not unpack to its size.
    :raises UnsupportedTexture: the package that unpacks it is not installed.
    """
    level, what = info.levels[number], f"mip level {number}"
    stored = _join(source, level, what)
    if info.supercompression == "none":
        return stored
    return UNPACK[info.supercompression](stored, level.nbytes, what)


def check_unpackable(info: TextureInfo) -> None:
    """:raises UnsupportedTexture: the package that unpacks this file is not installed."""
    if info.supercompression == "zstd":
        _zstd_reader(b"")


def _join(source: Source, level: Level, what: str) -> bytes | bytearray | memoryview:
    if level.count == 1:
        return source.read(level.offset, level.stored, what)
    joined = bytearray()
    for extent in level.extents:
        joined += source.read(*extent, what)
    return joined


def _inflate(stored: bytes, nbytes: int, what: str) -> bytes:
    try:
        inflater = zlib.decompressobj()
        unpacked = inflater.decompress(stored, nbytes + 1)
        whole = inflater.eof
    except zlib.error as error:
        raise InvalidTexture(f"the zlib stream of {what} is damaged: {error}") from None
    _check_size(len(unpacked), nbytes, what)
    if not whole:
        raise InvalidTexture(f"the zlib stream of {what} is cut off before its checksum")
    return unpacked


def _unzstd(stored: bytes, nbytes: int, what: str) -> bytearray:
    reader, damaged = _zstd_reader(stored)
    unpacked = bytearray()
    try:
        while len(unpacked) <= nbytes and (chunk := reader.read(min(_CHUNK, nbytes + 1 - len(unpacked)))):
            unpacked += chunk
    except (damaged, EOFError, MemoryError) as error:  # a frame may ask for a window larger than is allowed
        raise InvalidTexture(f"the zstd frame of {what} is damaged: {error}") from None
    _check_size(len(unpacked), nbytes, what)
    return unpacked


def _zstd_reader(stored: bytes) -> tuple[_Reader, Any]:
    """(file of the unpacked bytes, class of the errors that reading it raises)."""
    try:
        from compression import zstd  # Python 3.14

        return zstd.ZstdFile(io.BytesIO(stored)), zstd.ZstdError
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise UnsupportedTexture(
            "the file is packed with zstd, which needs the package zstandard: pip install 'aiostage[textures]'"
        ) from None
    return zstandard.ZstdDecompressor().stream_reader(stored), zstandard.ZstdError


def _check_size(found: int, expected: int, what: str) -> None:
    if found != expected:
        more = "more than " if found > expected else ""
        raise InvalidTexture(f"{what} unpacks to {more}{min(found, expected)} bytes; it has {expected}")


UNPACK: dict[str, Callable[[Any, int, str], bytes | bytearray]] = {"zlib": _inflate, "zstd": _unzstd}
