"""Blocking calls in threads that are waited for, whatever cancels the task."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

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


class _Call:
    """A call in a thread of its own; on the loop, when there are no threads any more."""

    def __init__(self, port: LoopPort, function: Callable[[], Any]) -> None:
        self._port = port
        self._function = function
        self._thread: threading.Thread | None = None
        self._value: Any = None
        self._error: BaseException | None = None
        self.over = anyio.Event()

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
        self._port.post(self.over.set)

    def _end(self) -> Iterable[threading.Thread]:
        return [self._thread] if self._thread is not None else []
