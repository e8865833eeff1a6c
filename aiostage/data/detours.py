"""Uploads by way of other memory: all of one goes there in pieces, and from there, when it is whole, in one copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from .copies import BufferCopy, Copy, TextureCopy, TextureRegion
from .formats import padded_row
from .pieces import Content, Cut, Part, Piece, Texels, Unread, Whole, cut_content, cut_texels, split_texels


class Detour(NamedTuple):
    """An upload, or a part of one."""

    copy: Copy
    """From the other memory, at 0, to where it is to go; without a source yet. It reads `copy.nbytes`."""
    cut: Callable[[Any], Cut]
    """What goes to a buffer that is this other memory."""


def of_content(content: Content, most: int, limit: int) -> Iterator[Detour]:
    """Bytes, in pieces of `most`, by buffers of `limit` bytes."""
    array, first, goal = content
    for start in range(0, goal.size, limit):
        length = min(limit, goal.size - start)
        copy = BufferCopy(None, 0, goal.destination, goal.destination_offset + start, length, goal.pin)

        def cut(memory: Any, start: int = start, length: int = length) -> Cut:
            return cut_content(Content(array, first + start, BufferCopy(None, 0, memory, 0, length)), most)

        yield Detour(copy, cut)


def of_texels(texels: Texels, most: int, limit: int) -> Iterator[Detour]:
    """Texels. In the other memory they lie in padded rows, one image behind the other.

    :raises AllocationTooLarge: a part that has to be copied at once takes more than `limit` bytes.
    """
    for part in split_texels(texels, limit):
        stride = padded_row(part.region.row_bytes)
        yield Detour(TextureCopy(None, 0, part.region, stride, part.region.block_rows), partial(_cut, part, most))


def _cut(texels: Texels, most: int, memory: Any) -> Cut:
    cut = cut_texels(texels, most, splits_images=True)
    assert not isinstance(cut.pieces, Unread)

    def whole() -> Whole | None:
        found = cut.whole()
        return found and Whole(found.array, [_part(texels.region, memory, part) for part in found.parts])

    return Cut(memory, cut.nbytes, (_piece(texels.region, memory, piece) for piece in cut.pieces), whole)


def _piece(region: TextureRegion, memory: Any, piece: Piece) -> Piece:
    def copy(source: Any, offset: int) -> Copy:
        return _redirected(region, memory, piece.copy(source, offset))

    return piece._replace(nbytes=_words(piece.nbytes), copy=copy)


def _part(region: TextureRegion, memory: Any, part: Part) -> Part:
    return part._replace(copy=_redirected(region, memory, part.copy))


def _redirected(region: TextureRegion, memory: Any, copy: Copy) -> BufferCopy:
    """The same texels to where they lie in `memory`. Rows are whole there, or a piece has but one, so that its bytes
    lie there as they do in staging memory."""
    assert isinstance(copy, TextureCopy)
    x, y, z = (at - start for at, start in zip(copy.origin, region.origin, strict=True))
    row, column = y // region.block.height, x // region.block.width
    at = (z * region.block_rows + row) * padded_row(region.row_bytes) + column * region.block.nbytes
    return BufferCopy(copy.source, copy.offset, memory, at, _words(copy.nbytes))


def _words(nbytes: int) -> int:
    """So many bytes can be copied between buffers: what follows a piece is padding, or comes with a later one."""
    return -(-nbytes // 4) * 4
