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
_ZLIB_RATIO = 1032  # RFC 1951: 258 bytes by two bits at best
_SMALLEST_BLOCK, _LARGEST_BLOCK = 4, 1 << 17  # RFC 8878: a block of one byte, repeated, with its header


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


def check_unpackable(source: Source, info: TextureInfo) -> None:
    """Whether what is stored can become as much as is declared, before anything is made that large.

    :raises InvalidTexture: it cannot.
    :raises UnsupportedTexture: the package that unpacks this file is not installed.
    """
    if info.supercompression == "zstd":
        _zstd_reader(b"")
    for number, level in enumerate(info.levels):
        most = level.nbytes
        if info.supercompression == "zlib":
            most = level.stored * _ZLIB_RATIO
        elif info.supercompression == "zstd":
            most = (level.stored // _SMALLEST_BLOCK + 1) * _LARGEST_BLOCK
        if level.nbytes > most:
            raise InvalidTexture(
                f"mip level {number} is declared to unpack to {level.nbytes} bytes, and the {level.stored} that are "
                f"stored make {most} at most"
            )


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
        whole, left = inflater.eof, len(inflater.unused_data)
    except zlib.error as error:
        raise InvalidTexture(f"the zlib stream of {what} is damaged: {error}") from None
    _check_size(len(unpacked), nbytes, what)
    if not whole:
        raise InvalidTexture(f"the zlib stream of {what} is cut off before its checksum")
    if left:
        raise InvalidTexture(f"{left} bytes follow the zlib stream of {what}")
    return unpacked


def _unzstd(stored: bytes, nbytes: int, what: str) -> bytearray:
    _check_frame(stored, what)
    reader, damaged = _zstd_reader(stored)
    unpacked = bytearray()
    try:
        while len(unpacked) <= nbytes and (chunk := reader.read(min(_CHUNK, nbytes + 1 - len(unpacked)))):
            unpacked += chunk
    except (damaged, EOFError, MemoryError) as error:  # a frame may ask for a window larger than is allowed
        raise InvalidTexture(f"the zstd frame of {what} is damaged: {error}") from None
    _check_size(len(unpacked), nbytes, what)
    return unpacked


def _check_frame(stored: bytes, what: str) -> None:
    """Whether it is one whole frame and no more (RFC 8878, 3.1.1), which reading as much as is wanted does not tell."""
    try:
        end = _frame_length(stored)
    except IndexError:
        end = len(stored) + 1
    if end > len(stored):
        raise InvalidTexture(f"the zstd frame of {what} is cut off")
    if end < len(stored):
        raise InvalidTexture(f"{len(stored) - end} bytes follow the zstd frame of {what}")


def _frame_length(stored: bytes) -> int:
    if bytes(stored[:4]) != b"\x28\xb5\x2f\xfd":
        return len(stored)  # the decompressor says what is wrong with it
    flags = stored[4]
    has_single_segment, has_checksum = flags >> 5 & 1, flags >> 2 & 1
    content_size = (has_single_segment, 2, 4, 8)[flags >> 6]
    at = 5 + (1 - has_single_segment) + (0, 1, 2, 4)[flags & 3] + content_size
    is_last = 0
    while not is_last:
        header = stored[at] | stored[at + 1] << 8 | stored[at + 2] << 16
        is_last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == 1 else size)
    return at + 4 * has_checksum


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
