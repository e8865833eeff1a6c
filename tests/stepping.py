"""Time, event loop, threads and GPU in the hands of the test, one step at a time and without a second thread.

`SteppedLoop` is an asyncio loop whose turns and whose clock the test moves. `SteppedGpu` has the native carrier without
its threads: what they would do happens when the test says so, off the loop as far as anybody can tell. It delivers what
is due in the order that the test asks for, and tells `watcher` what reaches it.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from simulated import SimulatedGpu

from aiostage import native
from aiostage.carrier.carrier import Carrier


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


class SteppedCarrier(Carrier):
    """A carrier without threads: `SteppedGpu` makes its steps. It tells `watcher` which jobs it is given."""

    def __init__(self, device: Any, port: Any, reached: Any, lost: Any) -> None:
        super().__init__(device, port, reached, lost)
        self.port = port
        device.carrier = self

    def copy(self, data: Any, address: int, steps: Any, swap: int, ended: Any, rings: bool = True) -> int:
        gpu: SteppedGpu = self._device
        what = gpu.watcher.starting()

        def heard(job: int, error: BaseException | None) -> None:
            gpu.watcher.job_heard(what)
            ended(job, error)

        job = super().copy(data, address, steps, swap, heard, rings)
        gpu.jobs[job] = what
        return job

    def _end_upload(self, status: int, number: int, *rest: Any) -> None:
        self._device.watcher.upload_ends(number, status)
        super()._end_upload(status, number, *rest)

    def _made(self, departure: Any, copies: Any, ago: float) -> None:
        for copy, _ in departure.failures:
            self._device.watcher.left_out(copy)
        super()._made(departure, copies, ago)

    def cancel(self, job: int) -> bool:
        if cancelled := super().cancel(job):
            del self._device.jobs[job]
            self.port.post(self.hear)
        return cancelled


class SteppedGpu(SimulatedGpu):
    """A simulated GPU that can deliver a part of what is due, and in another order; and the steps of its carrier."""

    is_stepped = True
    watcher: Any = None
    carrier: Any = None

    def __init__(self, *, submit_blocks: bool = False) -> None:
        super().__init__(submit_blocks=submit_blocks)
        self.jobs: dict[int, Any] = {}  # those that no thread has done, in order, and what they are for
        self.order = "all"

    def copy(self, index: int = 0) -> None:
        """Do a job, as a thread would."""
        job = list(self.jobs)[index]
        what = self.jobs.pop(job)
        self._step(native.COPY, index)
        self.watcher.job_done(what)

    def copy_piece(self) -> bool:
        """Copy a piece of a whole upload, as a thread would. False: there is none, or no place for it."""
        return self._step(native.PIECE)

    def depart(self) -> bool:
        """Submit what may go. False: there is nothing."""
        return self._step(native.DEPART)

    def outstanding(self) -> int:
        return 0 if self.carrier.counts["is_lost"] else super().outstanding()  # nobody polls a lost device

    def deliver(self, order: str = "all") -> None:
        """Poll: "all", only "maps" or "fences", only the "first" or "last" of what is due, or all "reversed"."""
        self.order = order
        self._step(native.POLL)

    def _step(self, which: int, index: int = 0) -> bool:
        with off_the_loop():
            made = self.carrier.step(which, index)
        self.heard()
        return made

    def heard(self) -> None:
        """Have the loop hear of what happened, as the bell would."""
        self.carrier.port.post(self.carrier.hear)

    def poll(self) -> None:
        due = [item for item in self._due if self._lost or item[0] <= self.completed]
        if self.order == "reversed":
            due.reverse()
        elif self.order in ("maps", "fences"):
            due = [item for item in due if (item[1].func == self._mapped) is (self.order == "maps")]
        elif self.order in ("first", "last"):
            due = due[:1] if self.order == "first" else due[-1:]
        for item in due:
            self._due.remove(item)
            item[1](not self._lost)

    def submit(self, copies: Any, command_buffers: Any) -> Any:
        assert asyncio._get_running_loop() is None, "a submit on the loop"
        super().submit(copies, command_buffers)
        self.watcher.arrived(copies, command_buffers)

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
