"""Staging buffers, and the lanes and trips in which they go to the GPU."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio
import numpy as np
import numpy.typing as npt

from ..data.copies import BufferCopy, Copy
from ..errors import InvalidCopy, StagingError, afresh
from ..fences import Fence
from ..stats import BufferState
from .views import Views

_PATIENCE = 0.005
"""Seconds that an open allocation may be old before others prefer a free buffer to sharing one with it."""


NO_TASK = "no task"
"""Who has what was made outside of any task, or by one that is gone."""


class Hold(NamedTuple):
    """Who has an open allocation; for sharing decisions and for the report of a ring that cannot move."""

    holder: weakref.ref[Any] | None  # the task; weakly, because a task keeps its result, which may be the allocation
    name: str
    size: int
    since: float

    @property
    def task(self) -> Any:
        return (self.holder and self.holder()) or NO_TASK

    def __str__(self) -> str:
        return f"{self.name} holds {self.size} bytes for {time.perf_counter() - self.since:.1f} s"


class Trip:
    """One way of a staging buffer to the GPU. Writers wait on it to learn what became of their copies."""

    __slots__ = ("_callbacks", "_event", "error", "submission")

    def __init__(self) -> None:
        self.submission: Submission | None = None
        self.error: StagingError | None = None
        self._event: anyio.Event | None = None
        self._callbacks: list[Callable[[Trip], object]] = []

    @property
    def is_over(self) -> bool:
        return self.submission is not None or self.error is not None

    async def wait(self) -> Submission:
        """The submission that took the buffer, once it was made. :raises DeviceLost, RingClosed:"""
        if not self.is_over:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        if self.error is not None:
            raise afresh(self.error)
        assert self.submission is not None
        return self.submission

    def then(self, callback: Callable[[Trip], object]) -> None:
        """Call `callback` with the trip when it is over; at once if it is."""
        if self.is_over:
            callback(self)
        else:
            self._callbacks.append(callback)

    def end(self, submission: Submission) -> None:
        """`submission` was made, or failed."""
        self.submission = submission
        self.fail(submission.error)

    def fail(self, error: StagingError | None) -> None:
        """It is over, if it was not before; `error` is why there will be no submission."""
        self.error = self.error or error
        if self._event is not None:
            self._event.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)


class StagingBuffer:
    """One host-visible buffer of the ring, and what is in it."""

    __slots__ = (
        "address",
        "bytes",
        "closed",
        "copies",
        "copying",
        "exports",
        "handle",
        "head",
        "index",
        "keep_alive",
        "lane",
        "lent",
        "memory",
        "open",
        "quarantine",
        "size",
        "state",
        "trip",
        "unstaged",
        "used",
    )

    def __init__(self, index: int, handle: Any, size: int) -> None:
        self.index = index
        self.handle = handle  # wgpu's own GPUBuffer
        self.size = size
        self.keep_alive = lambda _, handle=handle: None  # held by whatever points at the memory
        self.exports: list[Any] = []  # weak references to what exported memory of it and was alive at commit
        self.quarantine: list[Views] = []  # abandoned, with views alive that could not be made read-only
        self.state = BufferState.FENCED
        self.memory: npt.NDArray[np.uint8] | None = None  # its bytes while mapped
        self.bytes: memoryview | None = None  # the same, quicker for small writes
        self.address = 0
        self.clear()

    def clear(self) -> None:
        """Forget a round of use."""
        self.lane: Lane | None = None
        self.trip = Trip()
        self.head = 0  # first byte that no allocation has taken
        self.used = 0  # bytes allocated and not abandoned
        self.closed = False  # takes no more allocations
        self.open: dict[int, Hold] = {}  # allocations that users hold, by offset
        self.copying = 0  # places that the library itself holds
        self.copies = 0  # copies staged and not submitted
        self.unstaged: list[weakref.ref[Any]] = []  # allocations committed without a copy
        self.lent = False  # its user has asked for the buffer, and with its handle may copy out of these himself

    @property
    def is_held(self) -> bool:
        """Whether somebody may still write to it."""
        return bool(self.open) or self.copying > 0

    @property
    def is_wanted(self) -> bool:
        """Whether a copy of somebody's own may yet be made out of it: then it waits for the submit that follows."""
        return bool(self.unstaged) and (self.lent or any(slot() is not None for slot in self.unstaged))

    def held_by(self) -> str:
        """What keeps it from coming back that only users can end, once all that can go is gone; empty if nothing."""
        reasons = [str(hold) for hold in self.open.values()]
        if any(views.is_foreign() for views in self.quarantine):
            reasons.append("a view of an abandoned allocation")
        if self.is_wanted:
            reasons.append(
                f"{len(self.unstaged)} allocations committed without a copy, which go with the next ring.submit()"
            )
        if not reasons and self.copies and not self.copying:
            reasons.append("copies that must not overtake earlier ones")
        return ", ".join(reasons)

    def place(self, size: int, alignment: int) -> int | None:
        """Offset where `size` bytes fit, or None."""
        offset = -(-self.head // alignment) * alignment
        return None if self.closed or offset + size > self.size else offset

    def is_held_long(self) -> bool:
        """Whether its oldest open allocation has been open for long, as a slow producer's."""
        for hold in self.open.values():
            return time.perf_counter() - hold.since > _PATIENCE
        return False


class Lane:
    """Staging buffers whose copies depart together, in the order in which they were staged."""

    __slots__ = ("buffers", "copies", "ended", "trips")

    def __init__(self, ends: bool = False) -> None:
        self.buffers: list[StagingBuffer] = []  # IN_USE, oldest first; the last takes allocations
        self.copies: list[Copy] = []
        self.ended = False  # as a batch or frame does: nothing may be added any more
        self.trips: list[Trip] | None = [] if ends else None  # where the copies of a batch or frame went

    def stage(self, copy: Copy) -> None:
        copy.source.copies += 1
        self.copies.append(copy)

    def stage_bytes(
        self, source: StagingBuffer, offset: int, destination: Any, destination_offset: int, size: int
    ) -> None:
        """Stage bytes that nobody hears of one by one: as part of the copy before, if they continue it at both ends."""
        last = self.copies[-1] if self.copies else None
        if (
            type(last) is BufferCopy
            and last.source is source
            and last.destination is destination
            and last.offset + last.size == offset
            and last.destination_offset + last.size == destination_offset
        ):
            last.size += size
        else:
            self.stage(BufferCopy(source, offset, destination, destination_offset, size))

    def take(self, buffers: Sequence[StagingBuffer]) -> list[Copy]:
        """Remove `buffers` and what need not stay with the others: those copies are returned in order."""
        going = set(buffers)
        self.buffers = [buffer for buffer in self.buffers if buffer not in going]
        staying = set(self.buffers)
        copies = [copy for copy in self.copies if copy.source not in staying]
        self.copies = [copy for copy in self.copies if copy.source in staying]
        return copies

    def sealable(self) -> list[StagingBuffer]:
        """Buffers that nobody writes to."""
        return [buffer for buffer in self.buffers if not buffer.is_held]

    def blocked(self) -> list[StagingBuffer]:
        """Buffers with copies that cannot go, because somebody writes beside them."""
        return [buffer for buffer in self.buffers if buffer.copies and buffer.is_held]

    def ready(self) -> list[StagingBuffer]:
        """Buffers that may depart by themselves: nobody writes to them, and no earlier copy to a destination of theirs
        stays behind in a buffer that somebody does write to."""
        return self.may_go({b for b in self.buffers if b.is_held or b.is_wanted or not b.used})

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


class Submission:
    """One queue submit: what goes, and how it went."""

    __slots__ = ("buffers", "command_buffers", "copies", "error", "failures", "fence", "made", "trips")

    def __init__(
        self,
        buffers: Sequence[StagingBuffer],
        copies: list[Copy],
        command_buffers: Sequence[Any],
        fence: Fence,
    ) -> None:
        self.buffers = buffers
        self.copies = copies
        self.command_buffers = command_buffers
        self.fence = fence
        self.failures: list[tuple[Copy, InvalidCopy]] = []
        self.error: StagingError | None = None
        self.made = Trip()  # ends when the submit was made
        # A submitting thread may be overtaken by the buffers' coming back, with trips of their own ahead of them.
        self.trips = [buffer.trip for buffer in buffers]
