"""The way of an upload: places are taken for its pieces, threads fill them, and their copies are staged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import anyio
import numpy as np

from . import waiting
from .data import lazy, pieces
from .data.arrays import WHOLE, Run, as_array, is_indexed, is_lazy, is_masked, missing
from .data.copies import BufferCopy, Copy, check_buffer_copy, resolve_destination
from .data.files import FileRange, FileRun
from .data.pieces import ALIGNMENT, Content, Cut, Part, Piece, Texels, Unread, Whole, cut_content
from .engine import known
from .engine.buffer import Place
from .engine.engine import Engine, Staging
from .engine.lanes import Lane
from .engine.lending import Upload
from .engine.outcome import Outcome
from .engine.submission import Submission
from .errors import AllocationClosed, afresh
from .native import Plan
from .threads import Ahead, run_sync
from .writes import know_buffer


async def cut_bytes(
    engine: Engine, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None
) -> Cut:
    """The pieces of `data`'s bytes. Data that are computed or read when they are asked for are so in threads, a part at
    a time where they can be indexed.

    :raises TypeError:
    :raises InvalidCopy: if nothing may be copied to `buffer` at all, lazy data are not asked.
    """
    if is_lazy(data) and is_indexed(data):
        check_buffer_copy(buffer, 0, 0, engine.native)
        return lazy.from_buffer(engine.native, engine.buffer_size, buffer, buffer_offset, data, data_offset, size)
    content = await content_of(engine, buffer, buffer_offset, data, data_offset, size)
    return cut_content(content, engine.buffer_size)


async def content_of(
    engine: Engine, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None
) -> Content:
    """The same in one."""
    if is_lazy(data):
        check_buffer_copy(buffer, 0, 0, engine.native)
        data = await run_sync(as_array, data)
    return pieces.content_of(engine.native, buffer, buffer_offset, data, data_offset, size)


async def cut_texels(
    engine: Engine, destination: Mapping[str, Any], data: Any, data_layout: Mapping[str, Any] | None, size: Any
) -> Cut:
    """Likewise the pieces of texels."""
    if data_layout is None and is_lazy(data) and is_indexed(data):
        resolve_destination(destination, engine.native)
        cut = lazy.from_texels(engine.native, engine.buffer_size, destination, data, size)
        if cut is not None:
            return cut
    texels = await texels_of(engine, destination, data, data_layout, size)
    return pieces.cut_texels(texels, engine.buffer_size)


async def texels_of(
    engine: Engine, destination: Mapping[str, Any], data: Any, data_layout: Mapping[str, Any] | None, size: Any
) -> Texels:
    """The same in one."""
    if is_lazy(data):
        resolve_destination(destination, engine.native)
        data = await run_sync(as_array, data)
    return pieces.texels_of(engine.native, destination, data, data_layout, size)


def _gathered(piece: Piece) -> list[Run]:
    """What only Python can bring into order, as it would be in staging memory."""
    memory = np.empty(piece.nbytes, np.uint8)
    assert piece.fill is not None
    piece.fill(memory)
    return [Run(memory, 0, (1,), 0)]


def put(engine: Engine, lane: Lane, buffer: Any, buffer_offset: Any, data: Any) -> bool:
    """The most common small write at once: contiguous bytes, and a place that is free.

    False, with nothing done, for anything else; `data.pieces` finds out what it is. :raises InvalidCopy:
    """
    if type(data) not in WHOLE and (is_masked(data) or missing(data)):
        return False
    try:
        source = memoryview(data)
        if "O" in source.format:  # which it would cast as well: the addresses of Python objects
            return False
        source = source.cast("B")
    except (TypeError, ValueError, NotImplementedError):  # no buffer, not contiguous, or of a format of numpy's own
        return False
    nbytes = source.nbytes
    if not 0 < nbytes <= min(engine.inline_size, engine.buffer_size) or type(buffer_offset) is not int:
        return False
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, engine.native)
    found = engine.reserve(lane, nbytes, 4) if pin is None else None  # a pin lives as long as a copy of its own
    if found is None:
        return False
    staging, offset = found
    assert staging.bytes is not None
    staging.bytes[offset : offset + nbytes] = source
    lane.stage_bytes(staging, offset, buffer, buffer_offset, nbytes)
    return True


def begin_bytes(engine: Engine, buffer: Any, buffer_offset: Any, data: Any) -> Upload | None:
    """The most common large write: all of some contiguous bytes. None, with nothing done, for anything else.

    :raises InvalidCopy:
    """
    if (upload := engine.upload_known(buffer, buffer_offset, data)) is not None:
        return upload
    if type(data) is FileRange:
        return _begin_range(engine, buffer, buffer_offset, data)
    if type(data) is np.ndarray:
        nbytes = data.nbytes if data.flags.c_contiguous and data.dtype.kind in "uifc" else 0
    else:
        nbytes = len(data) if type(data) in (bytes, bytearray) else 0
    if nbytes <= engine.inline_size or type(buffer_offset) is not int:
        return None
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, engine.native)
    if engine.goes_by_places(buffer):
        return None
    copy = BufferCopy(None, 0, buffer, buffer_offset, nbytes, pin)
    if pin is None:
        know_buffer(engine, buffer, data)
    return engine.upload(Whole(data, [Part(copy, 0, nbytes, (), (), (), 0)]))


def _begin_range(engine: Engine, buffer: Any, buffer_offset: Any, data: FileRange) -> Upload | None:
    """Likewise all of a range of a file."""
    nbytes = data.nbytes
    if not nbytes or type(buffer_offset) is not int:
        return None
    buffer, buffer_offset, pin = check_buffer_copy(buffer, buffer_offset, nbytes, engine.native)
    if engine.goes_by_places(buffer):
        return None
    copy = BufferCopy(None, 0, buffer, buffer_offset, nbytes, pin)
    return engine.upload(Whole(data.stored.as_bytes(), [Part(copy, 0, nbytes, (), (), (), 0)]))


def begin_texels(engine: Engine, destination: Any, data: Any, data_layout: Any, size: Any) -> Upload | None:
    """A large write of texels like one before. None, with nothing done, for anything else.

    :raises InvalidCopy: its destination was destroyed.
    """
    if data_layout is not None:
        return None
    found = known.look_up(engine.native, engine.buffer_size, destination, data, size)
    if found is None or found.nbytes <= engine.inline_size or engine.goes_by_places(destination["texture"]):
        return None
    return engine.upload(found.whole(destination["texture"], data))


async def write_now(engine: Engine, cut: Cut) -> Any:
    """Write, and wait until all of it was submitted. Returns the fence of the last submit."""
    goes_alone = cut.nbytes > engine.inline_size or (
        cut.nbytes > 0 and (cut.is_stored or engine.lending.goes_to(cut.destination))
    )
    if goes_alone and not engine.goes_by_places(cut.destination) and (whole := cut.whole()) is not None:
        upload = engine.upload(whole)
        del cut, whole  # which an exception would keep, and they a file
        return await carried(engine, upload)
    with (
        engine.shown(cut.nbytes) as shown,
        engine.by_places(cut.destination) as staging,
        engine.turns.take(cut.destination),
    ):
        if cut.nbytes and not staging.may_begin():
            await waiting.until(engine, staging.may_begin)
        is_small = cut.nbytes <= min(engine.inline_size, engine.buffer_size)
        if is_small and not cut.is_stored and not isinstance(cut.pieces, Unread):
            engine.staged(staging)  # in one breath: who comes later stands behind it in line
        filling = await write(engine, engine.uploads, cut.pieces, staging)
        shown.submitted(filling.fence)
    return filling.fence or engine.timeline.insert()


async def write_texels_now(engine: Engine, destination: Any, data: Any, data_layout: Any, size: Any) -> Any:
    """The same with texels, noting what was found out about them for the next write of that kind."""
    cut = await cut_texels(engine, destination, data, data_layout, size)
    is_small = cut.nbytes <= engine.inline_size and not cut.is_stored
    if is_small or engine.goes_by_places(cut.destination) or (whole := cut.whole()) is None:
        return await write_now(engine, cut)
    if data_layout is None:
        known.note(engine.native, engine.buffer_size, destination, data, size, cut.nbytes, whole)
    upload = engine.upload(whole)
    del cut, whole
    return await carried(engine, upload)


async def carried(engine: Engine, upload: Upload) -> Any:
    """The fence of a whole upload, when all was submitted. Cancelled, it ends when what was begun is submitted."""
    upload.task = engine.port.current_task()
    try:
        while upload.value is None and upload.error is None:  # as `is_over`, without a call
            upload.event = engine.port.signal()
            if engine.may_stall:
                await _wait_patiently(engine, upload)
            else:
                await upload.event.wait()
    finally:
        upload.task = None
        if upload.value is None and upload.error is None:
            engine.cancel(upload)
            await waiting.wait_out(lambda: upload.is_over, partial(_ended, engine, upload))
    if upload.error is not None:
        raise afresh(upload.error)
    return upload.value


async def _wait_patiently(engine: Engine, upload: Upload) -> None:
    with anyio.move_on_after(engine.patience) as scope:
        await upload.event.wait()
    if scope.cancelled_caught and not upload.is_over and engine.may_stall:
        engine.explain()


async def _ended(engine: Engine, upload: Upload) -> None:
    upload.event = engine.port.signal()
    await upload.event.wait()


async def write(engine: Engine, lane: Lane, some: Iterator[Piece] | Unread, staging: Staging | None = None) -> Filling:
    """Fill and stage every piece; returns when the data may be reused, in the lane of uploads when it was submitted."""
    async with Filling(engine) as filling:
        if isinstance(some, Unread):
            async with Ahead(some.loads, some.at_once) as parts:
                async for part in parts:
                    await _stage(engine, lane, filling, iter(part))
                    del part  # or one more of them would be in memory
        else:
            await _stage(engine, lane, filling, some)
        if staging is not None:
            engine.staged(staging)
    return filling


async def _stage(engine: Engine, lane: Lane, filling: Filling, some: Iterator[Piece]) -> None:
    count = nbytes = 0
    for piece in some:
        count += 1
        nbytes += piece.nbytes
        engine.check_lane(lane)
        runs: list[Run] | list[FileRun] | None = None
        if piece.nbytes > engine.inline_size or piece.fill is None:
            runs = piece.runs()
            if runs is None:
                runs = await run_sync(_gathered, piece)
                engine.check_lane(lane)
        place = engine.take(lane, piece.nbytes, ALIGNMENT)
        filling.start(piece, runs, place or await waiting.place_for(engine, lane, piece.nbytes, ALIGNMENT))
    if count > 1:
        engine.demand.cut(count, nbytes)


class Filling:
    """The pieces of one upload that are being written to staging memory, and then submitted. Left when that is over,
    also by who is cancelled: threads read the caller's data and write into a shared buffer."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pending = 0
        self._idle: Any = None
        self._copies: set[Copy] = set()  # staged and not submitted, of an upload that waits for its submit
        self._error: BaseException | None = None
        self.fence: Any = None  # of the last submit

    def start(self, piece: Piece, runs: list[Run] | list[FileRun] | None, place: Place) -> None:
        """Fill a place and stage its copy, now or, given `runs`, in threads."""
        engine, lane = self._engine, place.load.lane
        if lane.ended:
            engine.give_up(place)
            raise AllocationClosed("the batch or frame was abandoned, and this write with it")
        if runs is None:
            assert piece.fill is not None
            try:
                piece.fill(place.memory)
            except BaseException:
                engine.give_up(place)
                raise
        copy = piece.copy(place.buffer, place.offset)
        waits_for_submit = lane is engine.uploads
        if waits_for_submit:
            self._pending += 1
            self._copies.add(copy)
            place.load.gone.then(self._landed)
        if runs is None:
            engine.stage(place, copy)
        elif waits_for_submit:
            self._pending += len(runs)
            engine.fill(place, copy, runs, self._end, rings=False)
        else:
            self._pending += len(runs)
            engine.fill(place, copy, runs, partial(self._written, lane), rings=True)

    def carry_out(self, lane: Lane, plan: Plan, first: int, last: int) -> None:
        """Have threads copy the texels of writes that were just recorded."""
        self._pending += 1
        self._engine.carry_out(lane, plan, first, last, partial(self._written, lane))

    def _written(self, lane: Lane, error: BaseException | None) -> None:
        """A thread is through with a part of the caller's data."""
        if lane.is_abandoned:
            error = AllocationClosed("the batch or frame was abandoned, and this write with it")
        self._end(error)

    async def __aenter__(self) -> Filling:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if self._pending:
            await waiting.wait_out(self._is_idle, self._until_idle)
        error, self._error = self._error, None  # its traceback has this frame: they would keep each other alive
        try:
            if error is not None and exc_type is None:
                raise error
        finally:
            del error

    def _is_idle(self) -> bool:
        return self._pending == 0

    async def _until_idle(self) -> None:
        self._idle = self._engine.port.event()
        await self._idle.wait()

    def _landed(self, gone: Outcome[Submission]) -> None:
        """The submit that took a piece was made, or failed."""
        submission, error = gone.value, gone.error
        if submission is not None and error is None:
            error = next((why for copy, why in submission.failures if copy in self._copies), None)
            if self.fence is None or submission.fence.value > self.fence.value:
                self.fence = submission.fence
        self._end(error and afresh(error))

    def _end(self, error: BaseException | None) -> None:
        self._error = self._error or error
        self._pending -= 1
        if self._pending == 0 and self._idle is not None:
            self._idle.set()
