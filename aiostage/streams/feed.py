"""An iterator to the GPU: so many items at a time, and an error or a cancellation ends all of it."""

from __future__ import annotations

import inspect
import math
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sized,
)
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from ..fences import Fence
from ..threads import run_sync
from .checks import positive, size_of
from .progress import Progress
from .upload import Upload

if TYPE_CHECKING:
    from ..ring import StagingRing

Item = TypeVar("Item")

_END: Any = object()

_PROMPT = (list, tuple, range, set, frozenset, dict, deque)
"""Types whose iterators never wait: a thread would be in vain."""


async def feed(
    ring: StagingRing,
    source: AsyncIterable[Item] | Iterable[Item],
    write: Callable[[Item], Awaitable[Any]],
    limit: int = 8,
    ordered: bool = False,
    on_progress: Callable[[Progress], Any] | None = None,
) -> Progress:
    """Write every item of `source`, at most `limit` at a time. On return the GPU has all of them.

    :param source: an async iterator or iterable, or a plain one. A plain one is asked in threads, one call at a time,
        but for lists and their kind.
    :param write: `await write(item)` uploads one, such as `lambda tile: ring.write_texture(tile.place, tile.texels)`.
        If it returns a fence, or an `Upload` of a queue, feed waits for the GPU to reach that; else for all that the
        device was given.
    :param limit: items that were taken from the source and are not written; it is not asked for more.
    :param ordered: write one item at a time, in the source's order: none is visible before those that come before it.
        The source is asked for up to `limit` items meanwhile. Otherwise they are begun in its order, and end as they
        do.
    :param on_progress: a function or coroutine function that is called with a `Progress` when a write has returned, one
        call at a time.
    :returns: the last `Progress`. Its `bytes` counts what `write` returned, if that is a number or an `Upload`; else
        the item's `nbytes` or, if it is bytes or the like, its length. Of other items it is not known.
    :raises: the first error of the source, `write` or `on_progress`, as it was, with a note that says which item;
        nothing is wrapped in a group. It ends the other writes, as a cancellation does: what they had begun is
        submitted.
    :raises RingClosed, DeviceLost:

    An async generator is closed (`aclose`) at the end in any case, and so is a plain one; also when this is cancelled,
    which then waits for it. The ring goes on.
    """
    ring.check()
    feeding = _Feed(source, write, positive(limit, "limit"), 1 if ordered else limit, on_progress)
    await feeding.run()
    await feeding.wait(ring)
    return feeding.progress()


class _Feed:
    def __init__(
        self,
        source: AsyncIterable[Any] | Iterable[Any],
        write: Callable[[Any], Awaitable[Any]],
        limit: int,
        most: int,
        on_progress: Callable[[Progress], Any] | None,
    ) -> None:
        self._source = _AsyncSource(source) if isinstance(source, AsyncIterable) else _plain_source(source)
        self._write = write
        self._most = most  # writers at a time
        self._on_progress = on_progress
        self._total = len(source) if isinstance(source, Sized) else None
        self._room = anyio.Semaphore(limit)
        self._telling = anyio.Lock()
        self._taken: deque[tuple[int, Any]] = deque()  # from the source, and not begun
        self._writers = 0
        self._items = self._bytes = 0
        self._started = time.perf_counter()
        self._fences: dict[Any, Fence] = {}  # the newest of each device
        self._unfenced = False  # nobody knows of what some writes did
        self._error: BaseException | None = None
        self._group: TaskGroup

    async def run(self) -> None:
        """Write all."""
        try:
            async with anyio.create_task_group() as self._group:
                await self._read()
        except BaseException as cancelled:
            await self._close(cancelled)
            raise
        await self._close(self._error)
        error, self._error = self._error, None  # its traceback has this frame: they would keep each other alive
        try:
            if error is not None:
                raise error
        finally:
            del error

    async def wait(self, ring: StagingRing) -> None:
        """Until the GPU has what was written."""
        if self._unfenced:
            await ring.fence()
        for fence in self._fences.values():
            await fence

    def progress(self) -> Progress:
        return Progress(self._items, self._bytes, time.perf_counter() - self._started, self._total)

    async def _read(self) -> None:
        number = 0
        while True:
            await self._room.acquire()
            try:
                item = await self._source.next()
            except BaseException as error:
                self._fail(error, f"aiostage.streams.feed: the source raised this when asked for item {number}")
                return
            if item is _END:
                return
            self._taken.append((number, item))
            del item
            if self._writers < self._most:
                self._writers += 1
                self._group.start_soon(self._write_some, name="aiostage feed")
            number += 1

    async def _write_some(self) -> None:
        """Write what was taken, one after the other, until there is no more."""
        try:
            while self._taken and self._error is None:
                number, item = self._taken.popleft()
                await self._write_one(number, item)
                del item
                self._room.release()
        finally:
            self._writers -= 1

    async def _write_one(self, number: int, item: Any) -> None:
        doing = "writing"
        try:
            writing = self._write(item)
            result = await writing
            if isinstance(result, Upload):
                writing, result = result, await result
            self._items += 1
            self._bytes += _size(item, writing, result)
            self._keep(result)
            doing = "on_progress after"
            if self._on_progress is not None:
                await self._tell(self._on_progress, self.progress())
        except BaseException as error:
            self._fail(error, f"aiostage.streams.feed: {doing} item {number}, {_short(item)}")

    async def _tell(self, on_progress: Callable[[Progress], Any], progress: Progress) -> None:
        async with self._telling:  # first come, first served
            said = on_progress(progress)
            if inspect.isawaitable(said):
                await said

    def _keep(self, result: Any) -> None:
        if isinstance(result, Fence):
            newest = self._fences.get(result.timeline)
            if newest is None or newest.value < result.value:
                self._fences[result.timeline] = result
        else:
            self._unfenced = True

    def _fail(self, error: BaseException, note: str) -> None:
        """Keep the first error, and have all end; or let a cancellation through."""
        is_cancellation = isinstance(error, anyio.get_cancelled_exc_class())
        if is_cancellation and anyio.current_effective_deadline() == -math.inf:
            raise error
        if self._error is None:  # or a cancellation by the loop's own means, or of a task that somebody has waited for
            if not is_cancellation:
                error.add_note(note)
            self._error = error
            self._group.cancel_scope.cancel()
        elif isinstance(error, Exception):
            self._error.add_note(f"{note}: meanwhile {error!r}")
        else:
            raise error

    async def _close(self, first: BaseException | None) -> None:
        """The source is not asked any more, whoever cancels."""
        try:
            with anyio.CancelScope(shield=True):
                await self._source.close()
        except Exception as error:
            if first is None:
                raise
            first.add_note(f"aiostage.streams.feed: closing the source: meanwhile {error!r}")


class _AsyncSource:
    def __init__(self, source: AsyncIterable[Any]) -> None:
        self._iterator: AsyncIterator[Any] = aiter(source)

    async def next(self) -> Any:
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            return _END

    async def close(self) -> None:
        if isinstance(self._iterator, AsyncGenerator):
            await self._iterator.aclose()  # other iterators, such as streams, are the caller's to close


class _PromptSource:
    def __init__(self, source: Iterable[Any]) -> None:
        self._iterator = iter(source)

    async def next(self) -> Any:
        return next(self._iterator, _END)

    async def close(self) -> None: ...


class _ThreadSource:
    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Iterator[Any] | None = None

    async def next(self) -> Any:
        return await run_sync(self._next)

    def _next(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._source)
        return next(self._iterator, _END)

    async def close(self) -> None:
        if isinstance(self._iterator, Generator):
            await run_sync(self._iterator.close)


def _plain_source(source: Any) -> _PromptSource | _ThreadSource:
    if type(source) in _PROMPT:
        return _PromptSource(source)
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise TypeError(f"source must be an iterator, async or not, and {type(source).__name__} is none")
    return _ThreadSource(source)


def _size(item: Any, writing: Any, result: Any) -> int:
    if isinstance(writing, Upload):
        return writing.nbytes
    if isinstance(result, int) and not isinstance(result, bool):
        return result
    return size_of(item)


def _short(item: Any) -> str:
    try:
        text = repr(item)
    except Exception:
        text = object.__repr__(item)
    return text if len(text) <= 80 else f"{text[:77]}…"
