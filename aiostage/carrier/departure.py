"""What departs together, packed as the carrier's C sources have it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..data.copies import RECORD, TO_BUFFER, TO_TEXTURE, UNREAD, BufferCopy, Copy, SmallCopies, Staged, TextureCopy
from ..data.files import FileRun
from ..data.pieces import Part
from ..errors import InvalidCopy, StagingError
from ..gpu.protocol import Native

_PIECE = struct.Struct("<qQQII5Q5q5q")  # the start of a carrier_piece
_ASPECTS = {"all": 1, "stencil-only": 2, "depth-only": 3}


class Source(Protocol):
    """A staging buffer, as far as a carrier needs to know it."""

    index: int
    number: int
    """What the carrier calls it."""
    handle: Any


class Departure:
    """Staging buffers that are sealed, the copies out of them, and the command buffers that run after those.

    It ends once, on the loop: by `made`, or by `lost`.

    :param lane: those of one lane go in order; with 0 only those to the same destination do.
    :param jobs: that fill the buffers.
    :param is_urgent: nobody's own submit on the device overtakes it.
    """

    __slots__ = (
        "buffers",
        "command_buffers",
        "copies",
        "failures",
        "fence",
        "is_urgent",
        "jobs",
        "lane",
        "lost",
        "made",
    )

    def __init__(
        self,
        buffers: Sequence[Source],
        copies: Sequence[Staged],
        command_buffers: Sequence[Any],
        fence: Any,
        *,
        lane: int,
        jobs: Sequence[int],
        is_urgent: bool = False,
        made: Callable[[list[tuple[Copy, InvalidCopy]]], object],
        lost: Callable[[StagingError], object],
    ) -> None:
        self.buffers = buffers
        self.copies = copies
        self.command_buffers = command_buffers
        self.fence = fence
        """A serial; it has its value when this has departed."""
        self.lane = lane
        self.jobs = jobs
        self.is_urgent = is_urgent
        self.made = made
        """It was submitted; with the copies that were left out, and why."""
        self.lost = lost
        """It was not."""
        self.failures: list[tuple[Copy, InvalidCopy]] = []

    def sift(self, native: Native) -> list[Staged]:
        """The copies whose destination is fit for a submit now; the others are noted as failures."""
        reasons: dict[int, str | None] = {}
        good = []
        self.failures.clear()
        for copy in self.copies:
            key = id(copy.destination)
            if key not in reasons:
                reasons[key] = native.unusable(copy)
            reason = reasons[key]
            if not isinstance(copy, SmallCopies) and copy.job == UNREAD:
                self.fail(copy, "its data could not be read")
            elif reason is None:
                good.append(copy)
            else:
                for each in copy if isinstance(copy, SmallCopies) else (copy,):
                    self.fail(each, reason)
        return good

    def fail(self, copy: Copy, reason: str) -> None:
        """It is left out."""
        self.failures.append((copy, InvalidCopy(f"{copy!r}: {reason}")))


def copy_at(copies: Sequence[Staged], index: int) -> Copy:
    """The copy that has this record."""
    for copy in copies:
        if not isinstance(copy, SmallCopies):
            if index == 0:
                return copy
            index -= 1
        elif index < len(copy):
            return copy[index]
        else:
            index -= len(copy)
    raise IndexError


def pack(native: Native, copies: Sequence[Staged]) -> bytes:
    """The records of some copies."""
    used: set[tuple[int, int]] = set()
    return b"".join([_pack(native, copy, used) for copy in copies])


def pack_pieces(native: Native, parts: Sequence[Part]) -> bytes:
    """The records of an upload's pieces. Any of them may be the first to be submitted."""
    return b"".join([_pack_piece(part) + _pack(native, part.copy, set()) for part in parts])


def pack_run(run: FileRun) -> bytes:
    """The record of a block of a file."""
    return _pack_block(0, 0, run, 0)


def _pack_piece(part: Part) -> bytes:
    return _pack_block(part.start, part.copy.nbytes, part, part.swap)


def _pack_block(start: int, nbytes: int, block: Part | FileRun, swap: int) -> bytes:
    axes = len(block.shape)
    rest = (0,) * (5 - axes)
    steps = (*block.shape, *rest, *block.steps, *rest, *block.strides, *rest)
    return _PIECE.pack(start, nbytes, block.run, swap, axes, *steps)


def _pack(native: Native, copy: Staged, used: set[tuple[int, int]]) -> bytes:
    if type(copy) is SmallCopies:
        return copy.records
    handle = native.handle
    source = 0 if copy.source is None else handle(copy.source.handle)  # None: the carrier finds one
    target = handle(copy.destination)
    if type(copy) is BufferCopy:
        at = (source, copy.offset, target, copy.destination_offset, copy.size)
        return RECORD.pack(TO_BUFFER, 0, 0, 0, 0, copy.job, *at, 0, 0, 0, 0, 0, 0, 0, 0)
    assert isinstance(copy, TextureCopy)
    block, is_first = copy.block, native.is_first_use(copy, used)
    at = (source, copy.offset, target, block.nbytes, block.width | block.height << 32)
    region = (*copy.origin, *copy.size, copy.bytes_per_row, copy.rows_per_image)
    return RECORD.pack(TO_TEXTURE, _ASPECTS[copy.aspect], is_first, 0, copy.mip_level, copy.job, *at, *region)
