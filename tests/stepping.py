"""Time, event loop, threads and GPU in the hands of the test, one step at a time and without a second thread.

`SteppedLoop` is an asyncio loop whose turns and whose clock the test moves. `HeldWorkers` and `HeldPoller` stand in for
the library's threads: what they would do happens when the test says so, off the loop as far as anybody can tell.
`SteppedGpu` delivers what is due in the order that the test asks for, and tells `watcher` what reaches it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from simulated import SimulatedGpu

import aiostage.carrier.threads


class SteppedLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks, futures and timeouts need."""

    def __init__(self) -> None:
        self.now = 1.0  # seconds; steps that are sums of powers of two keep sums of times exact
        self.turns = 0
        self.errors: list[dict[str, Any]] = []  # what went to the exception handler
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def turn(self) -> None:
        """Run what is ready, but not what that makes ready."""
        self.turns += 1
        while self._timers and (self._timers[0][0] <= self.now or self._timers[0][2].cancelled()):
            self._ready.append(heapq.heappop(self._timers)[2])
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()

    @property
    def is_idle(self) -> bool:
        return not self._ready and not (self._timers and self._timers[0][0] <= self.now)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Code inside runs on the loop, as between two turns."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(before)

    # -- what asyncio asks of a loop --

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)


class HeldWorkers(aiostage.carrier.threads.Workers):
    """Jobs run when `step` is called."""

    made: ClassVar[dict[str, HeldWorkers]] = {}
    watcher: ClassVar[Any] = None

    def __init__(self, port: Any, threads: int, name: str) -> None:
        super().__init__(port, threads, name)
        self.held: list[Any] = []
        self.made[name] = self

    def _add_thread(self) -> None: ...

    def start(self, job: Callable[[], object], done: Any, nbytes: int = 0) -> None:
        self.held.append((job, done, self.watcher.starting()))

    def step(self, index: int = 0) -> None:
        """Run one job as its thread would."""
        job, done, what = self.held.pop(index)
        error: BaseException | None = None
        self.watcher.job_begins(what)
        try:
            with off_the_loop():
                job()
        except AssertionError:
            raise  # the test's own
        except BaseException as caught:
            error = caught
        finally:
            self.watcher.job_ends()

        def tell() -> None:
            self.watcher.job_heard(what, error)
            done(error)

        if done is not None:
            self._post(tell)


class HeldPoller:
    """Polls when `SteppedGpu.deliver` is called."""

    def __init__(self, native: Any, expected: Any, lost: Callable[[], None]) -> None:
        self.lost = lost
        self.stopped = False
        native.poller = self

    def wake(self) -> None: ...

    def stop(self) -> None:
        self.stopped = True


class SteppedGpu(SimulatedGpu):
    """A simulated GPU that can deliver a part of what is due, and in another order."""

    watcher: Any = None
    poller: Any = None

    def __init__(self, *, submit_blocks: bool = False) -> None:
        super().__init__(submit_blocks=submit_blocks)
        self.submit_calls = 0

    def deliver(self, order: str = "all") -> None:
        """Poll: "all", only "maps" or "fences", only the "first" or "last" of what is due, or all "reversed"."""
        if self.poller.stopped:
            return
        due = [item for item in self._due if self._lost or item[0] <= self.completed]
        if order == "reversed":
            due.reverse()
        elif order in ("maps", "fences"):
            due = [item for item in due if (item[1].func == self._mapped) is (order == "maps")]
        elif order in ("first", "last"):
            due = due[:1] if order == "first" else due[-1:]
        with off_the_loop():
            for item in due:
                self._due.remove(item)
                item[1](not self._lost)
            if self._lost:
                self.poll()
                self.poller.lost()

    def submit(self, copies: Any, command_buffers: Any) -> Any:
        assert not self.submit_blocks or asyncio._get_running_loop() is None, "a submit that blocks, on the loop"
        self.submit_calls += 1
        refused = super().submit(copies, command_buffers)
        self.watcher.arrived(copies, refused, command_buffers)
        return refused

    def create_relay(self, size: int, data: Any = None) -> Any:
        relay = super().create_relay(size, data)
        if data is not None:
            relay.relayed = relay.bytes.tobytes()
        return relay

    def unmap(self, buffer: Any) -> None:
        super().unmap(buffer)
        self.watcher.sealed(self.staging.index(buffer))


@contextmanager
def off_the_loop() -> Iterator[None]:
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)
