"""One upload of a queue: what is to be written, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from typing import Any, Protocol

import anyio

from ..errors import StagingError, UploadCancelled, afresh
from ..fences import Fence
from .checks import ordered, size_of
from .line import Waiting


class Queue(Protocol):
    """What an upload needs of its queue."""

    def cancel_upload(self, upload: Upload) -> bool:
        """Take it out. Whether it was in."""

    def complain(self, message: str, error: BaseException) -> None:
        """Tell of an error that nobody was told of, from any thread."""

    def check_loop(self) -> None:
        """:raises WrongLoop: this is another one."""

    def check_task(self) -> None:
        """Likewise, or no task."""


class Upload(Waiting):
    """One upload of an `UploadQueue`, made by its `write_buffer` and `write_texture`.

    Awaiting it gives the fence that completes when the GPU has it, as soon as it was submitted. Any number of tasks may
    await it, before and after. It raises what the loader raised, InvalidCopy or TypeError as `StagingRing`'s calls do,
    UploadCancelled, RingClosed or DeviceLost. An error that nobody was told of goes to the loop's exception handler
    when the upload is forgotten.
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_destination",
        "_error",
        "_event",
        "_fence",
        "_is_told",
        "_layout",
        "_offset",
        "_queue",
        "_size",
        "_traceback",
        "ahead",
        "loader",
        "queued_at",
        "tag",
    )

    def __init__(
        self,
        queue: Queue,
        number: int,
        destination: Any,
        offset: int | None,
        layout: Mapping[str, Any] | None,
        size: Any,
        data: Any,
        priority: float,
        tag: Any,
        nbytes: int,
    ) -> None:
        if callable(data):
            self.loader, self._data = data, None
        else:
            self.loader, self._data = None, data
            nbytes = size_of(data, nbytes)
        self.number = number  # without a call: many are made
        self.nbytes = nbytes
        self.urgency = -(priority if type(priority) is int else ordered(priority))
        self.line = None
        self._queue = queue
        self._destination = destination
        self._offset = offset  # None: it is a texture
        self._layout = layout
        self._size = size
        self.tag = tag
        self.ahead = 0  # bytes that count as loaded before a frame had room for them
        self.queued_at = time.perf_counter()
        self._fence: Fence | None = None
        self._error: BaseException | None = None
        self._traceback: Any = None
        self._event: anyio.Event | None = None
        self._is_told = False

    # -- while it waits --

    @property
    def priority(self) -> float:
        """How urgent it is: the highest is uploaded first. It may be set; that matters while it waits."""
        return -self.urgency

    @priority.setter
    def priority(self, priority: float) -> None:
        self._queue.check_loop()
        self.urgency = -ordered(priority)
        if self.line is not None:
            self.line.rank(self)

    @property
    def is_waiting(self) -> bool:
        """Whether it has not begun: its loader was not called; or it was, and a frame has yet to have room for it."""
        return self.line is not None

    def cancel(self) -> bool:
        """Take it out of the queue. False, with nothing done, if it has begun or is done."""
        return self._queue.cancel_upload(self)

    # -- its end --

    def done(self) -> bool:
        """Whether it was submitted, cancelled, or has failed."""
        return self._fence is not None or self._error is not None

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return isinstance(self._error, UploadCancelled)

    def __await__(self) -> Generator[Any, Any, Fence]:
        if not self.done():
            yield from self._wait().__await__()
        if self._error is not None:
            self._is_told = True
            raise self._anew(self._error)
        assert self._fence is not None
        return self._fence

    async def _wait(self) -> None:
        self._queue.check_task()
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def _anew(self, error: BaseException) -> BaseException:
        """The library's own each time as a new one; others' as they were, without whom they were raised for before."""
        return afresh(error) if isinstance(error, StagingError) else error.with_traceback(self._traceback)

    def end(self, fence: Fence | None = None, error: BaseException | None = None) -> None:
        """It is over, and whoever awaits it hears of it."""
        self._fence, self._error = fence, error
        if error is not None and not isinstance(error, StagingError):
            here = error.__traceback__
            self._traceback = here and here.tb_next  # the frame that has caught it has this upload
            error.__traceback__ = self._traceback
        self.loader = self._data = self._destination = self._size = None
        if self._event is not None:
            self._event.set()

    def __del__(self) -> None:
        error = getattr(self, "_error", None)
        if error is not None and not self._is_told and not isinstance(error, UploadCancelled):
            self._queue.complain(f"an upload that nobody awaited has failed{self._named()}", error)

    def _named(self) -> str:
        return "" if self.tag is None else f" (tag {self.tag!r})"

    # -- writing it --

    def load(self, data: Any) -> None:
        """What its loader has made."""
        self.loader = None
        self._data = data
        self.nbytes = size_of(data, self.nbytes)

    async def write_to(self, target: Any) -> Any:
        """Write it to a ring or frame."""
        if self._offset is None:
            return await target.write_texture(self._destination, self._data, self._layout, self._size)
        return await target.write_buffer(self._destination, self._offset, self._data)

    def goes_to(self, resource: Any) -> bool:
        """Whether this GPUBuffer or GPUTexture is its destination."""
        if self._offset is None:
            return self._destination["texture"] is resource
        return resource in (self._destination, getattr(self._destination, "buffer", None))

    def __repr__(self) -> str:
        state = "waiting" if self.is_waiting else "done" if self._fence else "running"
        if self._error is not None:
            state = "cancelled" if self.cancelled() else f"failed: {self._error!r}"
        return f"<Upload {self.number}{self._named()}, priority {self.priority}, {state}>"
