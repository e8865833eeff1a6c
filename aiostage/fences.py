"""Fences: awaitables that complete when the GPU has finished what was submitted before them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from typing import Any

import anyio

from .carrier.departure import Departure
from .carrier.timeline import Serial, Timeline
from .data.copies import Copy
from .engine.outcome import Outcome
from .errors import FenceTimeout, InvalidCopy, afresh
from .waiting import outcome, wait_out


class Fence(Serial):
    """Completes when the GPU has finished all that was submitted before the fence was inserted.

    Any number of tasks may await it, before or after; a cancelled one does not disturb the others. Awaiting raises
    DeviceLost if the device went away first. Fences complete in the order of their `value`.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, None]:
        if self.completed_at is None:
            yield from self._wait().__await__()
        if self.error is not None:
            raise afresh(self.error)

    async def wait(self, timeout: float | None = None) -> None:
        """Wait at most `timeout` seconds.

        :raises FenceTimeout: the GPU was not done by then. The fence stays pending.
        :raises DeviceLost: it never will be.
        """
        self.timeline.port.check_task()
        with anyio.move_on_after(timeout):
            await self
            return
        if self.done():  # in the very turn of the timeout
            await self
            return
        raise FenceTimeout(f"fence {self.value} is not done after {self.elapsed:.3f} s; {self.timeline.describe()}")

    def _repr_mimebundle_(self, **asked: object) -> dict[str, str]:
        """For a notebook: a table."""
        from . import reprs  # most programs never ask

        return reprs.bundle(repr(self), lambda: reprs.fence(self.value, self.state, self.elapsed, self.error))

    async def _wait(self) -> None:
        self.timeline.port.check_task()
        if self.event is None:
            self.event = anyio.Event()
        await self.event.wait()


class FenceTracker(Timeline[Fence]):
    """The fences of one device, and the thread that polls for them while some are pending.

    :param device: a wgpu.GPUDevice.
    :raises CannotStartThread: the thread that polls cannot be started.

    Make it on an event loop; fences complete on that loop. `close` (or leaving `async with`) ends the polling and
    gives wgpu-py's own poll thread back; rings on the same device share one tracker, see `shared`.
    """

    def make(self) -> Fence:
        """One without a value yet."""
        return Fence(self)

    async def submit(self, copies: Sequence[Copy]) -> Fence:
        """Submit copies between buffers. Returns their fence when that was made; a cancellation waits for that.

        :raises InvalidCopy, DeviceLost:
        """
        made = Outcome[Fence]()

        def end(failures: list[tuple[Copy, InvalidCopy]]) -> None:
            made.end(fence, failures[0][1] if failures else None)

        fence, lost = self.make(), partial(made.end, None)
        self.depart(Departure((), copies, (), fence, lane=0, jobs=(), made=end, lost=lost))
        await wait_out(lambda: made.is_over, lambda: outcome(made))
        return await outcome(made)

    async def wait_all(self) -> None:
        """Wait for every fence inserted so far. :raises DeviceLost:"""
        if (newest := self.newest_pending) is not None:
            await newest

    async def __aenter__(self) -> FenceTracker:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.wait_all()
        finally:
            self.close()
