"""The way onto an event loop for other threads: they hand a function over and get a future, and wait for nothing.

anyio's `BlockingPortal` has its caller wait for a turn of the loop, and its future is cancelled before what runs for it
has ended. But a program that draws cannot wait, and wants to use an upload's data again when its future is over.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint

from .errors import RingClosed
from .loop import LoopPort

T = TypeVar("T")


class Portal:
    """Runs functions on the loop that it was entered on, side by side, begun in the order in which they came.

    Leaving cancels those that run, and waits for them.

    :param closed: makes the error of those that have not ended by then.
    """

    def __init__(self, closed: Callable[[], RingClosed]) -> None:
        self.port = LoopPort()
        self._closed = closed
        self._unfinished: set[Started[Any]] = set()
        self._group = anyio.create_task_group()
        self._ended = False

    async def __aenter__(self) -> Portal:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._group.cancel_scope.cancel()
        return await self._group.__aexit__(kind, error, traceback)

    def start(self, function: Callable[[], Awaitable[T]]) -> Started[T]:
        """Have it called on the loop, and what it returns awaited; from any thread, whose context it has.

        :raises RingClosed: the loop has ended.
        """
        work: Started[T] = Started(self.port)
        self._unfinished.add(work)  # first: the loop may end at any time
        work.add_done_callback(self._unfinished.discard)
        if not self.port.post(partial(_context_for_asyncio().run, self._begin, work, function)):
            self._unfinished.discard(work)
            raise self._closed()
        if self._ended:
            work.fail(self._closed())
        return work

    def end(self) -> None:
        """The loop has ended: so has what it did not come to; from any thread."""
        self._ended = True
        for work in list(self._unfinished):
            work.fail(self._closed())

    def _begin(self, work: Started[Any], function: Callable[[], Awaitable[Any]]) -> None:
        try:
            self._group.start_soon(self._run, work, function)
        except RuntimeError:  # it was left already
            work.fail(self._closed())

    async def _run(self, work: Started[T], function: Callable[[], Awaitable[T]]) -> None:
        try:
            with anyio.CancelScope() as scope:
                await work.begin(scope)
                work.succeed(await _pending(function))
            if scope.cancelled_caught:
                work.end_cancelled()
        except anyio.get_cancelled_exc_class():
            if self._group.cancel_scope.cancel_called:
                work.fail(self._closed())
                raise
            work.end_cancelled()  # as the function itself wished; raised, it would end all others
        except BaseException as error:
            work.fail(error)  # a SystemExit too: it is for who asked
        finally:
            del work, function  # or the error, its traceback and this frame would keep each other alive


class Started(Future[T], Generic[T]):
    """The future of something that runs on a loop of another thread. It is over when that has ended, cancelled or not.

    Its callbacks run in that thread, which must not be held up: they hand over to the thread that they are for.
    """

    def __init__(self, port: LoopPort) -> None:
        super().__init__()
        self._port = port
        self._scope: anyio.CancelScope | None = None  # while it runs
        self._unwanted = False

    def cancel(self) -> bool:
        """Have it cancelled, as an anyio.CancelScope does; from any thread. False if it is over.

        The future is cancelled once the coroutine has ended by that, and stands for a result or an error if that is how
        it ended all the same.
        """
        if self.done():
            return self.cancelled()
        self._port.post(self._cancel)  # if that fails, `Portal.end` ends it
        return True

    def running(self) -> bool:
        """Whether the coroutine has begun, and not ended."""
        return self._scope is not None

    async def begin(self, scope: anyio.CancelScope) -> None:
        """From here on `cancel` cancels this scope; it does here, if it was called before."""
        self._scope = scope
        if self._unwanted:
            scope.cancel()
            await checkpoint()

    def succeed(self, result: T) -> None:
        """It has ended, with this."""
        self._scope = None
        self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """It has ended by this, unless it had ended before."""
        self._scope = None
        with suppress(InvalidStateError):
            self.set_exception(error)

    def end_cancelled(self) -> None:
        """It has ended because nobody wants it."""
        self._scope = None
        if super().cancel():
            self.set_running_or_notify_cancel()  # for those who wait for one of many

    def _cancel(self) -> None:
        self._unwanted = True
        if self._scope is not None:
            self._scope.cancel()


async def _pending(function: Callable[[], Awaitable[T]]) -> T:
    pending = function()
    if not isawaitable(pending):
        raise TypeError(f"there is nothing to await in {pending!r}, which the function returned: is it no 'async def'?")
    return await pending


def _context_for_asyncio() -> Context:
    """The caller's, but for its word, by way of sniffio, on what it runs on itself."""
    context = copy_context()
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    return context
