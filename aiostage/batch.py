"""Uploads that are submitted together: batches, and the frames of a loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from . import waiting
from .engine.engine import Engine
from .engine.lanes import Lane
from .errors import AllocationClosed, afresh
from .fences import Fence
from .uploads import cut_bytes, cut_texels, put, write


class Batch:
    """Uploads that are submitted together; made by `StagingRing.batch`.

    If the batch is larger than the ring, or others need its space, parts of it are submitted before it ends. An
    exception inside abandons what was not.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lane = Lane(ends=True)
        self._open = False
        self._fence: Fence | None = None

    @property
    def fence(self) -> Fence:
        """Completes when the GPU is done with all of it; there is one once the block has ended.

        :raises AllocationClosed: it has not ended, or was abandoned.
        """
        if self._fence is None:
            raise AllocationClosed("a batch or frame has a fence once its block has ended without an exception")
        return self._fence

    async def write_buffer(
        self, buffer: Any, buffer_offset: int, data: Any, data_offset: int = 0, size: int | None = None
    ) -> None:
        """Like `StagingRing.write_buffer`, submitted with the batch. On return `data` may be reused."""
        self._check()
        if data_offset == 0 and size is None and put(self._engine, self._lane, buffer, buffer_offset, data):
            return
        cut = await cut_bytes(self._engine, buffer, buffer_offset, data, data_offset, size)
        await write(self._engine, self._lane, cut.pieces)

    async def write_texture(
        self,
        destination: Mapping[str, Any],
        data: Any,
        data_layout: Mapping[str, int] | None = None,
        size: Any = None,
    ) -> None:
        """Like `StagingRing.write_texture`, submitted with the batch. On return `data` may be reused."""
        self._check()
        cut = await cut_texels(self._engine, destination, data, data_layout, size)
        await write(self._engine, self._lane, cut.pieces)

    async def __aenter__(self) -> Batch:
        self._enter()
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        await self._leave(exc_type is not None, list)

    def _enter(self) -> None:
        if self._fence is not None or self._open:
            raise AllocationClosed("a batch or frame is entered once")
        self._engine.check_task()
        self._engine.lanes[self._lane] = None
        self._open = True

    async def _leave(self, abandon: bool, command_buffers: Callable[[], list[Any]]) -> None:
        """Submit what was written, then the command buffers; or nothing, on any exception."""
        engine, lane = self._engine, self._lane
        self._open = False
        submission = None
        try:
            if abandon:
                return
            engine.check()
            finished = command_buffers()
            await waiting.until(engine, lambda: None if lane.is_busy else True)
            submission = engine.depart(lane, list(lane.buffers), finished)
        finally:
            if submission is None:
                engine.discard(lane)
            else:
                engine.retire(lane)
            loads, lane.loads = lane.loads or [], None  # which have the lane: they would keep each other alive
        self._fence = submission.fence
        await waiting.outcome(submission.made)
        failures = [why for load in loads for _, why in (await waiting.outcome(load.gone)).failures]
        if failures:
            raise afresh(failures[0])

    def _check(self) -> None:
        self._engine.check()
        if not self._open:
            raise AllocationClosed("the batch or frame is not open; write inside its 'async with' block")


class Frame(Batch):
    """One frame of a loop; made by `StagingRing.frame`. Its uploads run before what `encoder` records."""

    def __init__(self, engine: Engine, in_flight: set[Frame], most: int) -> None:
        super().__init__(engine)
        self._in_flight = in_flight  # the ring's frames that are open, or have a fence that is pending
        self._most = most
        self._encoder: Any = None

    @property
    def encoder(self) -> Any:
        """A GPUCommandEncoder for the frame's passes. Leave its `finish` and submission to the frame."""
        self._check()
        if self._encoder is None:
            self._encoder = self._engine.native.create_encoder()
        return self._encoder

    async def __aenter__(self) -> Frame:
        self._engine.check_task()
        await waiting.until(self._engine, lambda: len(self._in_flight) < self._most or None, self._explain)
        self._enter()
        self._in_flight.add(self)
        return self

    def _explain(self) -> None:
        self._engine.check_device()
        self._engine.check_fences()

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        try:
            await self._leave(exc_type is not None, self._finish)
        finally:
            if self._fence is None:  # abandoned
                self._over()
            else:
                self._fence.add_done_callback(self._over)

    def _over(self, *_: object) -> None:
        """It is in flight no more: the next may be entered."""
        self._in_flight.discard(self)
        self._engine.changed()

    def _finish(self) -> list[Any]:
        return [] if self._encoder is None else [self._engine.native.finish_encoder(self._encoder)]
