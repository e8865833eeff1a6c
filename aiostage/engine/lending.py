"""Whole uploads, which the carrier carries out by itself, and the buffers that it has for them.

An upload is posted, and its end is heard of; what is in between needs no turn of the loop. The carrier has all buffers
that are free when one is posted, and keeps them. Who else needs one takes it back, if no upload uses it; if all are in
use, the next that comes back is his. Where the carrier has none, its uploads stand in the ring's line as one waiter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakMethod

from .. import native
from ..carrier.carrier import Carrier, RingCounts
from ..carrier.timeline import Timeline
from ..data.pieces import Whole
from .buffer import BufferState, Shelf, StagingBuffer
from .lanes import Lane
from .line import Line, Waiter
from .outcome import Outcome

_STATES = {
    native.LENT_IDLE: BufferState.AVAILABLE,
    native.LENT_FILLING: BufferState.IN_USE,
    native.LENT_AWAY: BufferState.FENCED,
}


def _call(weak: WeakMethod[Callable[[], None]]) -> None:
    if (method := weak()) is not None:
        method()


UploadEnded = Callable[["Upload", Any, "Exception | None"], object]
"""Called with a fence, an error, or both."""


class Upload(Outcome[Any]):
    """A whole upload: over when all of it was submitted, with a fence; or when no more of it will be."""

    __slots__ = ("destination", "ended", "number", "since", "task")

    def __init__(self, destination: Any, ended: UploadEnded) -> None:
        super().__init__()
        self.destination = destination
        self.ended = ended  # is to end it, when the carrier has
        self.number = 0  # what the carrier calls it
        self.task: Any = None  # that waits for it, as long as it does: a task keeps its exception, and that would this
        self.since = time.perf_counter()

    def look_again(self) -> None:
        """Have whoever waits for it be patient from now on, and no longer."""
        if self.event is not None:
            self.event.set()


class Lending:
    """The uploads of one ring that are under way, and the buffers that they have."""

    def __init__(self, shelf: Shelf, line: Line, carrier: Carrier, timeline: Timeline[Any]) -> None:
        self._shelf, self._line, self._carrier, self._timeline = shelf, line, carrier, timeline
        self._ring = carrier.add_ring()
        self._borrower = Lane()
        shelf.take_back = partial(_call, WeakMethod(self.take_back))
        self._asked = 0  # for how many buffers, at most
        self._waiter: Waiter | None = None  # of them all, while they have no buffer
        self.uploads: dict[Upload, None] = {}
        self.last: Any = None  # the newest fence of one

    @property
    def counts(self) -> RingCounts:
        """What was done so far."""
        return self._carrier.ring_counts(self._ring)

    @property
    def is_starved(self) -> bool:
        """Whether uploads wait, and have no buffer."""
        return self._waiter is not None

    # -- uploads --

    def post(self, whole: Whole, most: int, ended: UploadEnded) -> Upload:
        """Begin one. :raises InvalidCopy: its destination was destroyed."""
        self._lend_free()  # before somebody looks for one
        upload = Upload(whole.parts[0].copy.destination, ended)
        upload.number = self._carrier.upload(self._ring, whole, most, upload, self._end)
        self.uploads[upload] = None
        return upload

    def post_known(
        self, buffer: Any, offset: int, data: Any, least: int, most: int, ended: UploadEnded
    ) -> Upload | None:
        """The same with more than `least` bytes for a buffer that was written to before. None: it takes `post`."""
        upload = Upload(buffer, ended)
        upload.number = self._carrier.upload_known(self._ring, buffer, offset, data, least, most, upload, self._end)
        if not upload.number:
            return None
        self.uploads[upload] = None
        return upload

    def goes_to(self, destination: Any) -> bool:
        """Whether one is on its way there, which later ones must not overtake."""
        return any(upload.destination is destination for upload in self.uploads)

    def going_to(self, destination: Any) -> list[Upload]:
        """Those of this ring that are."""
        return [upload for upload in self.uploads if upload.destination is destination]

    def cancel(self, upload: Upload) -> None:
        """Begin no more of it; it ends when what was begun is submitted."""
        self._carrier.cancel_upload(upload.number)

    def _end(self, upload: Upload, serial: int, ago: float, error: Exception | None) -> None:
        del self.uploads[upload]
        fence = self._timeline.submitted(serial, ago) if serial else None
        if fence is not None and (self.last is None or fence.value > self.last.value):
            self.last = fence
        if self._waiter is not None and not self.uploads:
            self._line.leave(self._waiter)
            self._waiter = None
        upload.ended(upload, fence, error)

    # -- buffers --

    def see_to_buffers(self) -> bool:
        """An upload was posted, the line has changed, or a buffer is free: lend, or stand in line.

        :returns: whether it has begun to stand there.
        """
        if not self.uploads:
            return False
        self._lend_free()
        if not self._shelf.lent and self._waiter is None:
            self._waiter = Waiter(self._borrower, self._shelf.all[0].size, 4)
            self._line.join(self._waiter)
            for upload in self.uploads:
                upload.look_again()
            return True
        return False

    def _lend_free(self) -> None:
        if self._shelf.free and not self._line.waiters:
            self.lend(list(self._shelf.free))

    def is_for(self, waiter: Waiter) -> bool:
        """Whether what this one is handed is to be lent."""
        return waiter is self._waiter

    def lend(self, buffers: list[StagingBuffer]) -> None:
        """Have uploads use buffers that are FREE."""
        self._waiter = None
        for buffer in buffers:
            buffer.lend()
        self._carrier.lend(self._ring, buffers)

    def take_back(self) -> None:
        """Have a buffer FREE that no upload uses."""
        found = self._carrier.take_back(self._ring)
        if found is None:
            return
        number, address = found
        next(buffer for buffer in self._shelf.lent if buffer.number == number).come_back(address)

    def ask_back(self, count: int) -> None:
        """Have so many come back, when they are mapped."""
        if count or self._asked:
            self._asked = count
            self._carrier.want(self._ring, count)

    def state_of(self, buffer: StagingBuffer) -> BufferState:
        """Of one that is lent."""
        return _STATES[self._carrier.lent_state(buffer)]

    def close(self) -> RingCounts:
        """Its buffers were forgotten. Returns what was done, all in all."""
        counts = self.counts
        self._carrier.drop_ring(self._ring)
        return counts._replace(in_flight=0, waiting=0)
