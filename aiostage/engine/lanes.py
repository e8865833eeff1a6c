"""Lanes: staging buffers whose copies depart together, and in which order they may."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ..data.copies import BufferCopy, Staged
from ..native import Writes
from .buffer import Load, StagingBuffer

_numbers = itertools.count(1)


class Lane:
    """Staging buffers whose copies depart together, in the order in which they were staged.

    The slots that users hold are one, the uploads of a turn of the loop another, and each batch and frame is one.
    """

    __slots__ = ("buffers", "copies", "ended", "is_abandoned", "loads", "number", "writes")

    def __init__(self, ends: bool = False, keeps_order: bool = True) -> None:
        self.number = next(_numbers) if keeps_order else 0  # for the carrier; 0: only to each destination
        self.buffers: list[StagingBuffer] = []  # FILLING or CLOSED, oldest first; the last takes places
        self.copies: list[Staged] = []
        self.writes: tuple[Writes, StagingBuffer] | None = None  # small ones, and the buffer lent for them
        self.ended = False  # as a batch or frame does: nothing may be added any more
        self.is_abandoned = False  # and what was added is forgotten
        self.loads: list[Load] | None = [] if ends else None  # all that a batch or frame ever had

    # -- buffers --

    def begin(self, buffer: StagingBuffer) -> None:
        """Use a FREE buffer."""
        buffer.begin(self)
        self.buffers.append(buffer)
        if self.loads is not None:
            self.loads.append(buffer.load)

    def empty(self, buffer: StagingBuffer) -> None:
        """All that was in one of its buffers was given up: it needs no trip to be empty again."""
        self.buffers.remove(buffer)
        if self.loads is not None:
            self.loads.remove(buffer.load)
        buffer.empty()

    # -- copies --

    def stage(self, copy: Staged) -> None:
        copy.source.load.copies += 1
        self.copies.append(copy)

    def stage_bytes(
        self, source: StagingBuffer, offset: int, destination: Any, destination_offset: int, size: int
    ) -> None:
        """Stage bytes that nobody hears of one by one: as part of the copy before, if they continue it at both ends."""
        last = self.copies[-1] if self.copies else None
        if (
            type(last) is BufferCopy
            and not last.job  # which may fail
            and last.source is source
            and last.destination is destination
            and last.offset + last.size == offset
            and last.destination_offset + last.size == destination_offset
        ):
            last.size += size
        else:
            self.stage(BufferCopy(source, offset, destination, destination_offset, size))

    def take(self, buffers: Sequence[StagingBuffer]) -> list[Staged]:
        """Remove `buffers` and what need not stay with the others: those copies are returned in order."""
        going = set(buffers)
        self.buffers = [buffer for buffer in self.buffers if buffer not in going]
        staying = set(self.buffers)
        copies = [copy for copy in self.copies if copy.source not in staying]
        self.copies = [copy for copy in self.copies if copy.source in staying]
        return copies

    def discard(self) -> list[StagingBuffer]:
        """It is abandoned: its copies are forgotten. Returns the buffers that nobody writes to, to be emptied."""
        self.ended = self.is_abandoned = True
        self.copies.clear()
        for buffer in self.buffers:
            buffer.load.copies = buffer.load.used = 0
        return [buffer for buffer in self.sealable() if not buffer.load.jobs]

    # -- what may depart --

    @property
    def is_busy(self) -> bool:
        """Whether somebody writes to one of its buffers."""
        return any(buffer.load.is_busy for buffer in self.buffers)

    def sealable(self) -> list[StagingBuffer]:
        """Buffers that nobody writes to."""
        return [buffer for buffer in self.buffers if not buffer.load.is_busy]

    def blocked(self) -> list[StagingBuffer]:
        """Buffers with copies that cannot go, because somebody writes beside them."""
        return [buffer for buffer in self.buffers if buffer.load.copies and buffer.load.is_busy]

    def ready(self) -> list[StagingBuffer]:
        """Buffers that may depart by themselves: nobody writes to them, and no earlier copy to a destination of theirs
        stays behind in a buffer that somebody does write to."""
        return self.may_go({b for b in self.buffers if b.load.is_busy or b.is_wanted or not b.load.used})

    def may_go(self, staying: set[StagingBuffer]) -> list[StagingBuffer]:
        """Buffers that overtake no copy to a destination of theirs if they depart and `staying` do not."""
        if not staying:
            return list(self.buffers)
        while True:
            targets: set[int] = set()
            kept = len(staying)
            for copy in self.copies:
                if copy.source in staying or id(copy.destination) in targets:
                    targets.add(id(copy.destination))
                    staying.add(copy.source)
            if len(staying) == kept:
                return [b for b in self.buffers if b not in staying]
