"""Blocking calls in threads that are waited for, whatever cancels the task."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread

from . import exits
from .loop import LoopPort
from .waiting import wait_out

T = TypeVar("T")


async def run_sync(function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
    """Call it in a thread, as `anyio.to_thread.run_sync` does; a cancellation waits until the thread has ended.

    :param stop: called on the loop when the task is cancelled, perhaps more than once, to have the function end soon.

    anyio's own does not wait when asyncio itself cancels the task (`task.cancel`, `asyncio.timeout`): then the thread
    goes on in a file, or in memory, that somebody else has by now.

    :raises CannotStartThread: the system has none left.
    """
    async with anyio.to_thread.current_default_thread_limiter():
        return await run_now(function, *args, stop=stop)


async def run_now(function: Callable[..., T], *args: Any, stop: Callable[[], object] | None = None) -> T:
    """The same, however many threads there are; begun when this suspends."""
    call = _Call(LoopPort(), partial(function, *args))
    call.start()
    await wait_out(call.over.is_set, call.over.wait if stop is None else partial(_wait_or_stop, call, stop))
    result: T = call.result()
    return result


async def _wait_or_stop(call: _Call, stop: Callable[[], object]) -> None:
    try:
        await call.over.wait()
    except BaseException:
        stop()
        raise


class Ahead(Generic[T]):
    """Calls in threads, the next of which have begun before they are asked for: `async for` has what they return, in
    their order. Left when all that were begun have ended.

    :param at_once: how many are begun and not asked for.
    """

    def __init__(self, functions: Iterable[Callable[[], T]], at_once: int) -> None:
        self._functions = iter(functions)
        self._at_once = at_once
        self._begun: deque[_Call] = deque()
        self._port = LoopPort()
        self._limiter = anyio.to_thread.current_default_thread_limiter()

    async def __aenter__(self) -> Ahead[T]:
        return self

    def __aiter__(self) -> Ahead[T]:
        return self

    async def __anext__(self) -> T:
        self._begin()
        if not self._begun:  # all threads are others'
            function = next(self._functions, None)
            if function is None:
                raise StopAsyncIteration
            return await run_sync(function)
        call = self._begun[0]
        await call.over.wait()
        self._begun.popleft()
        self._begin()
        result: T = call.result()
        return result

    async def __aexit__(self, *exc_info: object) -> None:
        while self._begun:
            await wait_out(self._begun[0].over.is_set, self._begun[0].over.wait)
            self._begun.popleft()

    def _begin(self) -> None:
        while len(self._begun) < self._at_once:
            token = object()
            try:
                self._limiter.acquire_on_behalf_of_nowait(token)
            except anyio.WouldBlock:
                return
            function = next(self._functions, None)
            call = None if function is None else _Call(self._port, function)
            if call is None:
                self._limiter.release_on_behalf_of(token)
                return
            call.ended = partial(self._limiter.release_on_behalf_of, token)
            try:
                call.start()
            except BaseException:
                call.ended()
                raise
            self._begun.append(call)


class _Call:
    """A call in a thread of its own; on the loop, when there are no threads any more."""

    def __init__(self, port: LoopPort, function: Callable[[], Any]) -> None:
        self._port = port
        self._function = function
        self._thread: threading.Thread | None = None
        self._value: Any = None
        self._error: BaseException | None = None
        self.over = anyio.Event()
        self.ended: Callable[[], object] | None = None
        """Called on the loop, before `over` is set."""

    def start(self) -> None:
        if exits.over:
            self._run()
            return
        self._thread = exits.start(self._run, "aiostage thread")
        exits.endings[self] = _Call._end

    def result(self) -> Any:
        """What it returned, or raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error  # or it, its traceback and this frame would keep each other alive

    def _run(self) -> None:
        try:
            if not sys.is_finalizing():
                self._value = self._function()
        except BaseException as error:
            self._error = error
        del self._function  # which may have the caller's data
        self._port.post(self._set_over)

    def _set_over(self) -> None:
        if self.ended is not None:
            self.ended()
        self.over.set()

    def _end(self) -> Iterable[threading.Thread]:
        return [self._thread] if self._thread is not None else []
