"""Uploads that are submitted together: batches, and the frames of a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import wgpu
from anyio.lowlevel import checkpoint

from . import waiting
from .data.arrays import as_array, is_lazy
from .data.copies import Copy
from .data.pieces import Piece, Unread
from .engine.buffer import Load
from .engine.engine import Engine
from .engine.lanes import Lane
from .engine.submission import Submission
from .errors import AllocationClosed, InvalidCopy, afresh
from .fences import Fence
from .guests import Guests, Uploads
from .native import Plan
from .threads import run_sync
from .typing import BufferDestination, Data, DataLayout, Extent, TextureDestination
from .uploads import Filling, cut_bytes, cut_texels, put, write
from .writes import (
    MOST_AT_ONCE,
    MOST_RECORDED,
    NO_WRITES,
    as_pieces,
    at_index,
    check_many,
    know_buffer,
    know_texels,
    writes_of,
)


class Batch:
    """Uploads that are submitted together; made by `StagingRing.batch`.

    If the batch is larger than the ring, or others need its space, parts of it are submitted before it ends. An
    exception inside abandons what was not.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lane = Lane(ends=True)
        self._writes = NO_WRITES
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
        self, buffer: BufferDestination, buffer_offset: int, data: Data, data_offset: int = 0, size: int | None = None
    ) -> None:
        """Like `StagingRing.write_buffer`, submitted with the batch. On return `data` may be reused."""
        lacking = self._writes.buffer(buffer, buffer_offset, data, data_offset, size)
        if not lacking:
            return
        self._check()
        if lacking > 0 and self._engine.attach(self._lane, self._writes, lacking):
            lacking = self._writes.buffer(buffer, buffer_offset, data, data_offset, size)
        if not lacking:
            return
        if data_offset != 0 or size is not None or not put(self._engine, self._lane, buffer, buffer_offset, data):
            cut = await cut_bytes(self._engine, buffer, buffer_offset, data, data_offset, size)
            await write(self._engine, self._lane, cut.pieces)
        know_buffer(self._engine, buffer, data)

    async def write_buffers(self, buffer: BufferDestination, offsets: npt.ArrayLike, data: Data) -> None:
        """Write `data[i]` to `offsets[i]` of a GPUBuffer or pool's range, for every i in order: as `write_buffer` does,
        at a fraction of the cost. On return `data` may be reused.

        :param offsets: bytes, of shape (n,), each a multiple of 4.
        :param data: any array of shape (n, …). The bytes of a piece are taken in C order, in the byte order that they
            have; their number is a multiple of 4.
        :raises InvalidCopy: WebGPU would refuse one of them, the message says which; nothing was copied.
        :raises TypeError: `data` is no array, or has masked or missing values.
        """
        self._check()
        if is_lazy(data):
            data = await run_sync(as_array, data)
        array, starts = check_many(self._engine.native, buffer, offsets, data)
        nbytes = array.nbytes // len(array) if len(array) else 0
        at_once = MOST_AT_ONCE // nbytes + 1 if nbytes else 1
        for first in range(0, len(array) if nbytes else 0, at_once):
            some, here = np.ascontiguousarray(array[first : first + at_once]), starts[first : first + at_once]
            flat, done = some.reshape(-1).view(np.uint8), 0
            while (done := self._writes.buffers(buffer, here, flat, done, len(here))) < len(here):
                await self.write_buffer(buffer, int(here[done]), some[done : done + 1])
                done += 1
            if first + at_once < len(array):
                await checkpoint()

    async def write_texture(
        self,
        destination: TextureDestination,
        data: Data,
        data_layout: DataLayout | None = None,
        size: Extent | None = None,
    ) -> None:
        """Like `StagingRing.write_texture`, submitted with the batch. On return `data` may be reused."""
        lacking = self._writes.texture(destination, data, data_layout, size)
        if not lacking:
            return
        self._check()
        if lacking > 0 and self._engine.attach(self._lane, self._writes, lacking):
            lacking = self._writes.texture(destination, data, data_layout, size)
        if lacking:
            await write(self._engine, self._lane, await self._cut_texels(destination, data, data_layout, size))

    async def write_textures(self, destinations: Sequence[TextureDestination], data: Sequence[Data] | Data) -> None:
        """Write `data[i]` to `destinations[i]`, for every i in order: as `write_texture` does, at a
        fraction of the cost. On return `data` may be reused.

        :param destinations: n of wgpu's dicts, such as {"texture": texture, "origin": (x, y, z)}, of any textures.
        :param data: a sequence of n arrays, or an array whose first axis is n. The size of each write follows from its
            shape and the format of the texture.
        :raises InvalidCopy: WebGPU would refuse one of them, or its data are of another kind; the message says which.
            Nothing was copied.
        :raises TypeError: `data`, or one of them, is no array and no bytes, or has masked or missing values.
        """
        self._check()
        if is_lazy(data):
            data = await run_sync(as_array, data)
        places, pieces = as_pieces(destinations, data)
        plan = await self._plan(places, pieces)
        now = plan.nbytes <= self._engine.inline_size
        done = 0
        async with Filling(self._engine) as filling:
            while done < len(plan):
                self._check()
                reached = self._writes.record(plan, done, done + MOST_RECORDED, now)
                if reached > done and not now:
                    filling.carry_out(self._lane, plan, done, reached)
                if reached == done:  # it needs another staging buffer, or is not as simple
                    await self.write_texture(places[done], pieces[done])
                    reached += 1
                elif reached < len(plan):
                    await checkpoint()
                done = reached

    async def _plan(self, places: list[Any], pieces: Any) -> Plan:
        """The writes, in order. :raises InvalidCopy, TypeError: one of them is wrong."""
        plan, writes = Plan(), self._writes
        while (begun := len(plan)) < len(places):
            if writes.plan(plan, places, pieces, begun + MOST_RECORDED) == begun:
                try:  # Python knows more, and lets be known what it finds
                    await self._cut_texels(places[begun], pieces[begun], None, None)
                except (InvalidCopy, TypeError) as error:
                    raise at_index(error, begun) from None
                if writes.plan(plan, places, pieces, begun + 1) == begun:
                    plan.add_unknown()
            if len(plan) < len(places):
                await checkpoint()
        return plan

    async def _cut_texels(self, destination: Any, data: Any, data_layout: Any, size: Any) -> Iterator[Piece] | Unread:
        cut = await cut_texels(self._engine, destination, data, data_layout, size)
        if isinstance(cut.pieces, Unread):
            return cut.pieces
        some = list(islice(cut.pieces, 2))
        if len(some) == 1:
            know_texels(self._engine, data, data_layout, size, some[0])
        return chain(some, cut.pieces)

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
        self._writes = writes_of(self._engine)
        self._open = True

    async def _leave(self, abandon: bool, command_buffers: Callable[[], list[Any]]) -> None:
        """Submit what was written, then the command buffers; or nothing, on any exception."""
        engine, lane = self._engine, self._lane
        self._open = False
        engine.collect(lane)  # and nothing is lent any more
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
        self._departed(submission, loads)
        await waiting.outcome(submission.made)
        gone = [await waiting.outcome(load.gone) for load in loads]
        failures = [why for each in gone for copy, why in each.failures if self._is_own(copy)]
        if failures:
            raise afresh(failures[0])

    def _departed(self, submission: Submission, loads: list[Load]) -> None:
        """Its last submit is on its way."""

    def _is_own(self, copy: Copy) -> bool:
        """Whether it was written by who has the batch."""
        return True

    def _check(self) -> None:
        self._engine.check()
        if not self._open:
            raise AllocationClosed("the batch or frame is not open; write inside its 'async with' block")


class Frame(Batch):
    """One frame of a loop; made by `StagingRing.frame`. Its uploads run before what `encoder` records."""

    def __init__(self, engine: Engine, in_flight: set[Frame], most: int, uploads: Uploads | None = None) -> None:
        super().__init__(engine)
        self._guests = None if uploads is None else Guests(uploads)
        self._in_flight = in_flight  # the ring's frames that are open, or have a fence that is pending
        self._most = most
        self._encoder: Any = None

    @property
    def encoder(self) -> wgpu.GPUCommandEncoder:
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
        if self._guests is not None:
            try:
                await self._guests.admit(self, self._engine, self._lane)
                self._check()
            except BaseException as error:  # and nobody leaves what he has not entered
                await self.__aexit__(type(error))
                raise
        return self

    def _departed(self, submission: Submission, loads: list[Load]) -> None:
        if self._guests is not None:
            self._guests.follow(submission, loads)

    def _is_own(self, copy: Copy) -> bool:
        return self._guests is None or copy not in self._guests.refused

    def _explain(self) -> None:
        self._engine.check_device()
        self._engine.check_fences()

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        try:
            await self._leave(exc_type is not None, self._finish)
        finally:
            if self._fence is None:  # abandoned
                self._over()
                if self._guests is not None:
                    self._guests.turned_away()
            else:
                self._fence.add_done_callback(self._over)

    def _over(self, *_: object) -> None:
        """It is in flight no more: the next may be entered."""
        self._in_flight.discard(self)
        self._engine.changed()

    def _finish(self) -> list[Any]:
        return [] if self._encoder is None else [self._engine.native.finish_encoder(self._encoder)]
