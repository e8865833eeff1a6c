"""A queue of uploads, the most urgent first: into frames, as much as one has room for, or by itself."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from ..errors import DeviceLost, InvalidCopy, QueueClosed, RingClosed, StagingError, UploadCancelled
from ..fences import Fence
from ..loop import LoopPort
from ..threads import run_sync
from ..typing import BufferDestination, Data, DataLayout, Extent, Loader, TextureDestination
from .checks import positive
from .line import Line, next_of, take_of
from .upload import Upload

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from ..batch import Frame
    from ..ring import StagingRing

_LONG = 3600.0


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """A snapshot of an `UploadQueue`."""

    queued: int
    """Uploads that wait."""
    bytes_queued: int
    """Their bytes, as far as is known: of a loader that has not run, what `nbytes` said."""
    running: int
    """Uploads that have begun: loading, being written, or in a frame that is open."""
    done: int
    """Uploads that were submitted."""
    cancelled: int
    """Uploads that were cancelled, one by one, by tag, or with the queue."""
    failed: int
    """Uploads that failed."""
    oldest_age: float
    """Seconds since the oldest of those that wait was queued; 0 if none waits."""


class UploadQueue:
    """Uploads that wait for their turn, the most urgent first. Priorities may change meanwhile.

    :param ring: whose uploads they are.
    :param bytes_per_frame: how much `ring.frame(uploads=queue)` admits, in bytes; one upload gets through in any case.
        None: the queue uploads by itself, without frames, and a frame admits whatever waits.
    :param concurrency: how many loaders, or uploads without frames, run at a time.
    :param aging: how often in a row the upload that was queued first is passed over by more urgent ones; then it is its
        turn. None: for ever.
    :param idle_after: seconds without such a frame after which a queue with `bytes_per_frame` uploads by itself, until
        there is one again. None: never.

    Used by `async with`, on the ring's loop. Leaving the block waits until all is submitted, what frames have not
    admitted too; on an exception, or cancelled, what waits is cancelled. `write_buffer` and `write_texture` return at
    once. The data must not change before the upload is done.
    """

    def __init__(
        self,
        ring: StagingRing,
        bytes_per_frame: int | None = None,
        *,
        concurrency: int = 8,
        aging: int | None = 32,
        idle_after: float | None = 0.5,
    ) -> None:
        self._ring = ring
        self.bytes_per_frame = None if bytes_per_frame is None else positive(bytes_per_frame, "bytes_per_frame")
        self.concurrency = positive(concurrency, "concurrency")
        aging = None if aging is None else positive(aging, "aging")
        self._idle_after = _LONG if idle_after is None else idle_after
        self._lazy = Line[Upload](aging)  # loaders that have yet to run
        self._ready = Line[Upload](aging)  # data
        self._tags: dict[Hashable, dict[Upload, None]] = {}  # of what waits
        self._numbers = 0
        self._running = self._done = self._cancelled = self._failed = 0
        self._frames: dict[Frame, list[Upload]] = {}  # that are open, and what they have admitted
        self._framed_at = -math.inf  # when one was entered or left
        self._is_idle = False  # there have been no frames for long
        self._watch: anyio.CancelScope | None = None  # of the task that finds out
        self._ahead = 0  # bytes that were loaded before a frame had room for them
        self._workers = 0
        self._loaded = 0
        self._is_open = self._is_leaving = self._reported = False
        self._group: TaskGroup
        self._port: LoopPort | None = None  # of the loop that it was entered on
        self._forget: Callable[[], object]

    @property
    def ring(self) -> StagingRing:
        """Whose uploads they are."""
        return self._ring

    async def __aenter__(self) -> UploadQueue:
        if self._is_leaving or self._is_open:
            raise QueueClosed("an upload queue is entered once")
        self._ring.check()
        self._port = LoopPort()
        self.check_task()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._forget = self._ring.when_ended(self._ring_ended)
        self._is_open = True
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        self._is_leaving = True
        try:
            if exc_type is None:
                if self._watch is not None:
                    self._watch.cancel()
                self._set_to_work()
            else:
                self._end_all(UploadCancelled("the block of the upload queue was left by an exception"))
                self._group.cancel_scope.cancel()
            await self._group.__aexit__(None, None, None)
        finally:
            self._is_open = False
            self._end_all(UploadCancelled("the upload queue was cancelled"))
            self._forget()

    # -- queueing --

    def write_buffer(
        self,
        buffer: BufferDestination,
        offset: int,
        data: Data | Loader,
        *,
        priority: float = 0,
        tag: Hashable = None,
        nbytes: int = 0,
    ) -> Upload:
        """Queue what `StagingRing.write_buffer` would write: `data` to `offset`, bytes, of a GPUBuffer or pool's range.

        :param data: anything with the buffer protocol; or a loader, a function without parameters, that returns it. A
            coroutine function runs on the loop, another one in a thread, when its turn comes.
        :param priority: the highest is uploaded first, and of those the one that was queued first.
        :param tag: for `cancel`.
        :param nbytes: the bytes that a loader will return, if that is known: how much is loaded ahead goes by it.
        :raises QueueClosed, RingClosed, DeviceLost, WrongLoop: what is wrong with the rest, the upload raises.
        """
        self._check()
        self._numbers = number = self._numbers + 1
        return self._add(Upload(self, number, buffer, offset, None, None, data, priority, tag, nbytes))

    def write_texture(
        self,
        destination: TextureDestination,
        data: Data | Loader,
        *,
        priority: float = 0,
        tag: Hashable = None,
        nbytes: int = 0,
        data_layout: DataLayout | None = None,
        size: Extent | None = None,
    ) -> Upload:
        """Queue what `StagingRing.write_texture` would write: texels, an array whose shape says which, or bytes with
        `data_layout` and `size`; or a loader. Otherwise like `write_buffer`."""
        self._check()
        self._numbers = number = self._numbers + 1
        return self._add(Upload(self, number, destination, None, data_layout, size, data, priority, tag, nbytes))

    def _add(self, upload: Upload) -> Upload:
        self._wait(upload)
        if self._workers < self.concurrency and (upload.loader is not None or self._drains):
            self._set_to_work(1)
        if self._watch is None:
            self._see_to_watch()
        return upload

    def _check(self) -> None:
        if not self._is_open or self._is_leaving:
            raise QueueClosed("an upload queue is used inside its 'async with' block")
        self._ring.check()

    def _wait(self, upload: Upload) -> None:
        if (tag := upload.tag) is not None:
            if (tagged := self._tags.get(tag)) is not None:
                tagged[upload] = None
            else:
                self._tags[tag] = {upload: None}
        (self._ready if upload.loader is None else self._lazy).add(upload)

    def _waits_no_more(self, upload: Upload) -> None:
        """It was taken out of its line."""
        self._ahead -= upload.ahead
        upload.ahead = 0
        if upload.tag is not None and (tagged := self._tags.get(upload.tag)) is not None:
            tagged.pop(upload, None)
            if not tagged:
                del self._tags[upload.tag]

    # -- cancelling --

    def cancel(self, tag: Hashable) -> int:
        """Cancel the uploads with this tag that have not begun; returns how many. They raise UploadCancelled.

        :raises ValueError: None is no tag. `clear` cancels them all.
        """
        if tag is None:
            raise ValueError("None is no tag; clear() cancels all that waits")
        self.check_loop()
        return self._cancel_all(list(self._tags.get(tag, ())), UploadCancelled(f"cancelled by its tag, {tag!r}"))

    def clear(self) -> int:
        """Cancel all uploads that have not begun; returns how many."""
        self.check_loop()
        return self._end_all(UploadCancelled("the upload queue was cleared"))

    def cancel_upload(self, upload: Upload) -> bool:
        """What `Upload.cancel` does."""
        self.check_loop()
        return upload.line is not None and self._cancel_all([upload], UploadCancelled("the upload was cancelled")) == 1

    def _cancel_all(self, uploads: Iterable[Upload], error: StagingError) -> int:
        count = 0
        for upload in uploads:
            assert upload.line is not None
            upload.line.remove(upload)
            self._waits_no_more(upload)
            self._count_error(error)
            upload.end(error=error)
            count += 1
        if self._lazy.count and self._is_open:
            self._set_to_work()  # there may be room for other loaders
        return count

    def _end_all(self, error: StagingError) -> int:
        waiting = [*self._ready.clear(), *self._lazy.clear()]
        for upload in waiting:
            self._waits_no_more(upload)
            self._count_error(error)
            upload.end(error=error)
        return len(waiting)

    def _ring_ended(self) -> None:
        try:
            self._ring.check()
        except StagingError as error:
            self._end_all(error)
            del error

    # -- the end of an upload that has begun --

    def _begin(self, upload: Upload) -> None:
        self._waits_no_more(upload)
        self._running += 1

    def _end(self, upload: Upload, fence: Fence | None = None, error: BaseException | None = None) -> None:
        self._running -= 1
        if error is None:
            self._done += 1
        else:
            self._count_error(error)
        upload.end(fence, error)

    def _count_error(self, error: BaseException) -> None:
        if isinstance(error, UploadCancelled):
            self._cancelled += 1
        else:
            self._failed += 1

    def complain(self, message: str, error: BaseException) -> None:
        """Have the loop's exception handler tell of an error that nobody was told of, from any thread. That the ring
        has ended is told of once."""
        if isinstance(error, RingClosed | DeviceLost):
            if self._reported:
                return
            self._reported = True
        if isinstance(error, Exception) and self._port is not None:
            self._port.post(partial(self._port.complain, message, error))

    def check_task(self) -> None:
        """:raises WrongLoop: not called in a task of the queue's loop."""
        if self._port is not None:
            self._port.check_task()

    def check_loop(self) -> None:
        """:raises WrongLoop: called on another loop than the queue's."""
        if self._port is not None:
            self._port.check()

    # -- workers --

    @property
    def _drains(self) -> bool:
        """Whether uploads do not wait for frames."""
        return self.bytes_per_frame is None or self._is_idle or self._is_leaving

    def _next(self) -> Upload | None:
        """What a worker would begin now."""
        if self._drains:
            return next_of((self._ready, self._lazy))
        assert self.bytes_per_frame is not None
        return self._lazy.next() if self._ahead < self.bytes_per_frame else None

    def _set_to_work(self, most: int | None = None) -> None:
        """Start workers, for as many uploads as may begin."""
        waiting = self._lazy.count + (self._ready.count if self._drains else 0)
        if waiting and self._next() is not None:
            for _ in range(min(most or waiting, waiting, self.concurrency - self._workers)):
                self._workers += 1
                self._group.start_soon(self._work, name="aiostage upload")

    async def _work(self) -> None:
        try:
            while (upload := self._next()) is not None:
                take_of((self._ready, self._lazy) if self._drains else (self._lazy,), upload)
                if await self._run(upload):
                    await checkpoint()  # a loader may not have suspended
        finally:
            self._workers -= 1

    async def _run(self, upload: Upload) -> bool:
        """Load it, and write it; or have it wait for a frame: then True."""
        hint = upload.nbytes
        self._begin(upload)
        try:
            if upload.loader is not None:
                upload.ahead = hint
                self._ahead += hint
                try:
                    data = await _loaded(upload.loader)
                finally:
                    self._ahead -= upload.ahead
                    upload.ahead = 0
                upload.load(data)
                del data
                if self._wait_for_frame(upload):
                    return True
            fence = await upload.write_to(self._ring)
        except anyio.get_cancelled_exc_class():
            self._end(upload, error=UploadCancelled("the upload was cancelled while it ran"))
            if anyio.current_effective_deadline() == -math.inf:
                raise  # else it was something that the loader has waited for
        except Exception as error:
            self._end(upload, error=error)
        except BaseException as error:
            self._end(upload, error=UploadCancelled(f"the upload was ended by {error!r}"))
            raise
        else:
            self._end(upload, fence)
        return False

    def _wait_for_frame(self, upload: Upload) -> bool:
        """Have it wait again, if it takes a frame."""
        self._loaded += 1
        if self._drains:
            return False
        upload.ahead = upload.nbytes
        self._ahead += upload.ahead
        self._wait_again(upload)
        return True

    def _wait_again(self, upload: Upload) -> None:
        """What was begun goes back to where it was; unless the ring has ended meanwhile."""
        self._running -= 1
        self._wait(upload)
        self._see_to_watch()
        if self._ring.is_closed:
            self._ring_ended()

    # -- frames --

    async def admit(self, frame: Frame) -> None:
        """What `ring.frame(uploads=queue)` does on entering: write to it what has its turn, up to `bytes_per_frame`.

        :raises QueueClosed, RingClosed, DeviceLost:
        """
        self._check()
        self._framed_at, self._is_idle = time.monotonic(), False
        admitted = self._frames[frame] = list[Upload]()
        await self._have_loaded()
        used, room = 0, math.inf if self.bytes_per_frame is None else self.bytes_per_frame
        while (upload := self._ready.next()) is not None:
            if admitted and used + upload.nbytes > room:
                break
            self._ready.take(upload)
            self._begin(upload)
            admitted.append(upload)
            try:
                await upload.write_to(frame)
            except Exception as error:
                admitted.remove(upload)
                self._end(upload, error=error)
            else:
                used += upload.nbytes
        self._set_to_work()  # there is room for more to be loaded
        self._see_to_watch()

    async def _have_loaded(self) -> None:
        """Let loaders end that need not wait for anything."""
        self._set_to_work()
        loaded = -1
        while self._workers and self._loaded != loaded:
            loaded = self._loaded
            for _ in range(3):
                await checkpoint()

    def submitted(self, frame: Frame, fence: Fence, refused: list[tuple[Any, InvalidCopy]]) -> None:
        """What a frame has admitted was submitted, but for copies to these destinations."""
        for upload in self._left(frame):
            why = next((why for resource, why in refused if upload.goes_to(resource)), None)
            self._end(upload, None if why else fence, why)

    def turned_away(self, frame: Frame, error: Exception | None) -> None:
        """It was not: uploads wait for the next frame, unless their ring has ended by this error."""
        for upload in self._left(frame):
            if error is not None:
                self._end(upload, error=error)
            elif self._is_open:
                self._wait_again(upload)
            else:
                self._end(upload, error=UploadCancelled("its frame was abandoned, and its queue left"))
        if self._is_open:
            self._set_to_work()

    def _left(self, frame: Frame) -> list[Upload]:
        self._framed_at = time.monotonic()
        return self._frames.pop(frame, [])

    def _see_to_watch(self) -> None:
        if self._watch is None and not self._drains and (self._ready.count or self._lazy.count):
            self._watch = anyio.CancelScope()
            self._group.start_soon(self._watch_frames, self._watch, name="aiostage upload watch")

    async def _watch_frames(self, scope: anyio.CancelScope) -> None:
        """While something waits for a frame: find out when there have been none for long."""
        since = time.monotonic()
        with scope:
            while (self._ready.count or self._lazy.count) and not self._drains:
                left = max(self._framed_at, since) + self._idle_after - time.monotonic()
                if self._frames:
                    left = self._idle_after
                if left <= 0:
                    self._is_idle = True
                    self._set_to_work()
                    break
                await anyio.sleep(left)
        self._watch = None

    # -- statistics --

    def statistics(self) -> QueueStatistics:
        """A consistent snapshot."""
        self.check_loop()
        oldest = [upload.queued_at for line in (self._ready, self._lazy) if (upload := line.oldest()) is not None]
        return QueueStatistics(
            queued=self._ready.count + self._lazy.count,
            bytes_queued=self._ready.nbytes + self._lazy.nbytes,
            running=self._running,
            done=self._done,
            cancelled=self._cancelled,
            failed=self._failed,
            oldest_age=time.perf_counter() - min(oldest) if oldest else 0.0,
        )

    def __repr__(self) -> str:
        state = "open" if self._is_open else "not open"
        return f"<UploadQueue, {self._ready.count + self._lazy.count} waiting, {self._running} running, {state}>"


async def _loaded(loader: Callable[[], Any]) -> Any:
    """What a loader returns: a coroutine function's on the loop, others' in a thread."""
    if inspect.iscoroutinefunction(loader) or inspect.iscoroutinefunction(type(loader).__call__):
        return await loader()
    data = await run_sync(loader)
    return await data if isinstance(data, Awaitable) else data  # such as a lambda that calls a coroutine function
