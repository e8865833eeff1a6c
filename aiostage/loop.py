"""The event loop that a ring lives on, as the library's threads see it: asyncio, uvloop or trio."""

from __future__ import annotations

import operator
import os
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from logging import ERROR
from typing import Any
from weakref import WeakSet

from .errors import WrongLoop
from .events import report

Callback = Callable[[], object]

_ELSEWHERE = (
    "a ring of aiostage.memory.StagingRingManager has a loop and a thread of its own, and there "
    "'future = manager.start(function, *args)' does 'await function(ring, *args)'"
)


class LoopPort:
    """The way back to one event loop.

    Make one on the loop. `post` may then be called from any thread; what was posted runs on the loop, in order. Many
    posts between two turns of the loop wake it once.
    """

    def __init__(self) -> None:
        trio: Any = sys.modules.get("trio")
        lowlevel = getattr(trio, "lowlevel", None)  # None too while another thread imports trio
        if lowlevel is not None and lowlevel.in_trio_run():
            self.loop: Any = lowlevel.current_trio_token()
            self._running: Callable[[], Any] = lowlevel.current_trio_token
            self._wake: Callable[[Callback], object] = self.loop.run_sync_soon
            self._soon: Callable[[Callback], object] = lambda callback: self._wake(partial(self._run, callback))
            self.current_task: Callable[[], Any] = lowlevel.current_task
            self._mark = "parent_nursery"  # of a task that anyio can cancel
            self.name_of: Callable[[Any], str] = operator.attrgetter("name")
            self.event: Callable[[], Any] = trio.Event
            self.signal: Callable[[], Any] = trio.Event
            self._complain: Callable[[dict[str, Any]], object] = _log_failure  # an exception would end all of trio
            self._add_reader: Callable[[int, Callback], Callback] = partial(_watch_on_trio, trio)
            self.is_running: Callable[[], bool] = self.is_here  # asked in the loop's own thread alone
        else:
            import asyncio  # takes longer than all of this library, and a program on trio has no use for it

            try:
                self.loop = asyncio.get_running_loop()
            except RuntimeError:
                raise WrongLoop(f"this needs a running event loop (asyncio, uvloop or trio); {_ELSEWHERE}") from None
            self._running = asyncio.get_running_loop
            self._wake = _wake_of(self.loop)
            self._soon = self.loop.call_soon
            self.current_task = partial(asyncio.current_task, self.loop)  # which need not look for the loop
            self._mark = "_must_cancel"
            self.name_of = operator.methodcaller("get_name")
            self.event = asyncio.Event  # what anyio's own wraps, and finds anew for each
            self.signal = partial(_Signal, self.loop.create_future)  # for one task, and quicker
            self._complain = self.loop.call_exception_handler
            self._add_reader = partial(_watch_on_asyncio, self.loop)
            self.is_running = _is_running(self.loop) or self.is_here
        self._posted: deque[Callback] = deque()
        self._scheduled = False
        self._draining = False  # posted callbacks run now
        _ports.add(self)

    def check(self) -> None:
        """Raise WrongLoop unless called on this loop."""
        try:
            if self._running() is self.loop:  # as `is_here`, without a call
                return
        except RuntimeError:
            pass
        raise WrongLoop("used from another event loop or thread than the one it was opened on")

    def is_here(self) -> bool:
        """Whether it is called on this loop."""
        try:
            return self._running() is self.loop
        except RuntimeError:
            return False

    def check_task(self) -> None:
        """Raise WrongLoop unless called in a task of this loop: what another driver steps cannot wait here."""
        self.check()
        driver, task = _foreign_driver(), self.current_task()
        if driver is None and hasattr(task, self._mark):
            return
        if driver is None and task is not None:
            raise WrongLoop(
                f"this is a {type(task).__name__}, none of asyncio's own tasks, and what waits in it cannot be "
                f"cancelled as anyio does: {_ELSEWHERE}"
            )
        raise WrongLoop(
            f"this coroutine is stepped by {driver or 'something else than the event loop'}, and nothing that it waits "
            f"for here can wake it: make it a task of the event loop (asyncio.create_task), or {_ELSEWHERE}"
        )

    def soon(self, callback: Callback) -> None:
        """Run `callback` after what is ready on the loop now, or what was posted; only from the loop itself.

        What it raises goes to asyncio's exception handler, or to the library's logger on trio.
        """
        if not self._draining:
            self._soon(callback)
            return
        self._posted.append(callback)  # in this turn still
        if not self._scheduled:  # or in a turn that one of the callbacks makes, as with nest_asyncio
            self._scheduled = True
            self._soon(self._drain)

    def _run(self, callback: Callback) -> None:
        try:
            callback()
        except Exception as error:
            self.complain(f"Exception in callback {callback!r}", error)

    def complain(self, message: str, error: Exception) -> None:
        """Have the loop's exception handler, or on trio the library's logger, tell of an error that nobody awaits."""
        context = {"message": message, "exception": error}
        try:
            self._complain(context)
        except Exception:  # as QtAsyncio's, which knows of tasks alone
            _log_failure(context)

    def post(self, callback: Callback) -> bool:
        """Run `callback` on the loop, from any thread. False if the loop has been closed: then nothing will run."""
        if sys.is_finalizing():  # a thread that was stopped in its loop may have a lock of that, as trio's has
            return False
        self._posted.append(callback)
        if not self._scheduled:
            self._scheduled = True
            try:
                self._wake(self._drain)
            except RuntimeError:  # closed; trio's RunFinishedError is a RuntimeError too
                self._posted.clear()
                self._scheduled = False
                return False
        return True

    def watch(self, bell: int, callback: Callback) -> Callback | None:
        """Run `callback` on the loop whenever this descriptor is readable; on the loop. Returns what ends that, also to
        be called there; or None, if the loop cannot watch any."""

        try:
            return self._add_reader(bell, partial(self._run, callback))
        except NotImplementedError:  # asyncio's proactor loop on Windows, and loops that people make
            return None

    def _drain(self) -> None:
        # Cleared first: what is posted from now on wakes the loop again, at worst once too often.
        self._scheduled = False
        self._draining = True
        try:
            while self._posted:
                self._run(self._posted.popleft())
        finally:
            self._draining = False
            if self._posted and not self._scheduled:  # Ctrl-C: the others have their turn all the same
                self._scheduled = True
                self._wake(self._drain)


class _Signal:
    """As much of an event as one task needs that waits for it once."""

    __slots__ = ("_future",)

    def __init__(self, create_future: Callable[[], Any]) -> None:
        self._future = create_future()

    def wait(self) -> Any:
        return self._future

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


def _is_running(loop: Any) -> Callable[[], bool] | None:
    """A loop's own way to tell, which is quicker, if it has one."""
    try:
        return loop.is_running if loop.is_running() else None
    except NotImplementedError:
        return None


def _wake_of(loop: Any) -> Callable[[Callback], object]:
    """Its `call_soon_threadsafe`, which raises RuntimeError once the loop is closed."""
    call: Callable[[Callback], object] = loop.call_soon_threadsafe
    if type(loop).call_soon_threadsafe.__module__.startswith(("asyncio.", "uvloop.")):
        return call
    try:
        loop.is_closed()
    except NotImplementedError:
        return call

    def wake(callback: Callback) -> None:  # others, such as qasync's, need not
        if loop.is_closed():
            raise RuntimeError("the loop is closed")
        call(callback)

    return wake


def _watch_on_asyncio(loop: Any, bell: int, rung: Callback) -> Callback:
    loop.add_reader(bell, rung)

    def end() -> None:
        if not loop.is_closed():
            loop.remove_reader(bell)

    return end


def _watch_on_trio(trio: Any, bell: int, rung: Callback) -> Callback:
    scope = trio.CancelScope()

    async def watch() -> None:
        with scope:
            while True:
                await trio.lowlevel.wait_readable(bell)
                rung()

    trio.lowlevel.spawn_system_task(watch)
    end: Callback = scope.cancel
    return end


def _foreign_driver() -> str | None:
    """Who says that it steps the coroutine that runs now, by way of sniffio or as rendercanvas does without, if that is
    no event loop of ours."""
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        name = sniffio.thread_local.name or sniffio.current_async_library_cvar.get()
    else:
        adapter: Any = sys.modules.get("rendercanvas.utils.asyncadapter")
        name = getattr(getattr(adapter, "sniffio_thread_local", None), "name", None)
    return None if name in (None, "asyncio", "trio") else str(name)


def _log_failure(context: dict[str, Any]) -> None:
    report(ERROR, "callback_failed", context["message"], context["exception"])


_ports: WeakSet[LoopPort] = WeakSet()


def _lose_loops() -> None:
    # A forked child has a copy of the loop but none of the threads, and wgpu does not survive a fork at all.
    for port in _ports:
        port.loop = None
        port.is_running = bool  # it is not
        port._wake = _refuse


def _refuse(callback: Callback) -> None:
    raise RuntimeError("the loop was left behind in another process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lose_loops)
