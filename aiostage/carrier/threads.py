"""The carrier of today: threads that copy, and one that submits where a submit blocks; elsewhere the loop submits."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

from .. import exits
from ..errors import CannotStartThread, DeviceLost, StagingError, afresh
from ..events import event
from ..exits import holding
from ..loop import LoopPort
from .protocol import Departure, Ended, Source
from .timeline import Timeline


class ThreadCarrier:
    """See `Carrier`. Copy threads hold the interpreter's lock by turns; a departure is one call after the other.

    :raises CannotStartThread: the system has none left; nothing is kept.
    """

    def __init__(self, timeline: Timeline[Any], threads: int) -> None:
        self._timeline, self._native, self._port = timeline, timeline.native, timeline.port
        self.submits_later = self._native.submit_blocks
        self._copying = Workers(self._port, threads, "copy")
        try:
            self._submitting = Workers(self._port, 1, "submit")
        except CannotStartThread:
            self._copying.stop()
            raise
        self.copy = self._copying.start
        # Without this carrier, or who has to call it some time would keep what a dead loop was told.
        self.stop: Callable[[], object] = partial(_stop, self._copying, self._submitting)

    def address(self, handle: Any) -> int:
        return self._native.address(handle)

    def depart(self, departure: Departure) -> None:
        if self.submits_later:
            self._timeline.promise(departure.fence)
            self._submitting.start(partial(self._execute, departure), partial(self._end, departure))
            return
        try:
            self._execute(departure)
        finally:
            self._end(departure)

    def _execute(self, departure: Departure) -> None:
        """Unmap, submit and map again; on the loop, or in the submitting thread where a submit blocks."""
        try:
            for buffer in departure.buffers:
                self._native.unmap(buffer.handle)
            telling = self._submit(departure)
            if departure.logs:
                indices = [buffer.index for buffer in departure.buffers]
                event("submitted", fence=departure.fence.value, buffers=indices, copies=len(departure.copies))
            for buffer in departure.buffers:
                self._native.map(buffer.handle, partial(self._mapped, departure, buffer, buffer in telling))
            self._timeline.wake()
        except StagingError as error:
            departure.error = afresh(error)
        except BaseException as error:  # nobody knows how far it came
            departure.error = DeviceLost(f"a submit was interrupted, and with it the ring: {error!r}")
            raise

    def _submit(self, departure: Departure) -> set[Any]:
        """Submit and fence. Returns the buffers whose mapping tells that it is done, if the queue was not asked to."""
        native, timeline = self._native, self._timeline
        if native.submit_blocks:  # and would hold up who waits for the timeline's lock
            departure.failures = native.submit(departure.copies, departure.command_buffers)
            timeline.fulfil(departure.fence)
            return set()
        with holding(timeline.order):
            departure.failures = native.submit(departure.copies, departure.command_buffers)
            sources = {copy.source for copy in departure.copies} if not departure.failures else set()
            telling = sources.intersection(departure.buffers)
            timeline.insert(departure.fence, ask=not telling)
        return telling

    def _end(self, departure: Departure, error: BaseException | None = None) -> None:
        departure.copies = departure.command_buffers = ()  # nothing keeps the destinations alive any more
        if departure.error is None:
            departure.made(departure.failures)
            return
        try:
            self._timeline.withdraw(departure.fence, DeviceLost(*departure.error.args))
        finally:
            departure.lost(departure.error)

    def _mapped(self, departure: Departure, buffer: Source, tells: bool, ok: bool) -> None:
        """A mapping is done, or failed; called by whichever thread polls or submits."""
        if tells and ok:
            self._port.post(partial(self._timeline.reach, departure.fence.value, time.perf_counter()))
        self._port.post(partial(self._come_back, departure, buffer, tells and not ok, ok))

    def _come_back(self, departure: Departure, buffer: Source, ask: bool, ok: bool) -> None:
        fence = departure.fence
        if ask:  # the queue itself, since the mapping has told nothing
            self._timeline.ask(fence)
        if ok and not fence.done():
            fence.add_done_callback(lambda _: departure.back(buffer, ok))
        else:
            departure.back(buffer, ok)


def _stop(*workers: Workers) -> None:
    for each in workers:
        each.stop()


class Workers:
    """A few long-lived threads that take jobs in order; `ended` is called on the loop when one is through.

    A hand-off costs a lock and one wake-up of the loop for all jobs that end between two of its turns: a third of a
    round trip through `anyio.to_thread`, which starts from a task and comes back to one. Each thread that runs beside
    the loop makes all hand-offs dearer, since they share the interpreter's lock, so one is woken only for its share of
    the bytes that wait.

    The first thread starts at once, so that every job has one that runs it whatever the system refuses later.

    :raises CannotStartThread: it cannot be started.
    """

    _SHARE = 2 * 1024 * 1024
    """Bytes of waiting jobs for each running thread, from which on one more is woken: some 0.2 ms of copying."""

    def __init__(self, port: LoopPort, threads: int, name: str) -> None:
        self._port = ref(port)  # weakly, or the threads would keep what a dead loop was told, such as an unclosed ring
        self._count = threads
        self._name = name
        self._lock = threading.RLock()
        self._jobs: deque[tuple[Callable[[], object], Ended, int]] = deque()
        self._waiting = 0  # bytes of the jobs in it
        self._running = 0  # threads that are not parked
        self._stopping = False
        self._parking: queue.SimpleQueue[None] = queue.SimpleQueue()  # one item wakes one thread
        self._threads: list[threading.Thread] = []
        exits.endings[self] = Workers._end
        if not exits.over:
            self._add_thread()

    def start(self, job: Callable[[], object], ended: Ended, nbytes: int = 0) -> None:
        """Have a thread run `job`, which copies `nbytes`; then `ended(error or None)` on the loop.

        At the interpreter's end, when there are no threads any more, it runs here; and not at all in a destructor then.
        """
        if exits.over:
            if not sys.is_finalizing():
                self._post(partial(ended, _attempt(job)))
            return
        with holding(self._lock):
            self._jobs.append((job, ended, nbytes))
            self._waiting += nbytes
            wake = self._running == 0 or (self._running < self._count and self._waiting > self._running * self._SHARE)
            self._running += wake
        if not wake:
            return
        if self._running > len(self._threads):
            try:
                self._add_thread()
            except CannotStartThread:  # those that run have one job more
                with holding(self._lock):
                    self._running -= 1
                    self._count = len(self._threads)
                return
        self._parking.put(None)

    def stop(self) -> None:
        """End the threads after the jobs that they have."""
        self._stopping = True
        for _ in self._threads:
            self._parking.put(None)

    def _end(self) -> list[threading.Thread]:
        """The interpreter ends: begin no job any more."""
        alive = [thread for thread in self._threads if thread.is_alive()]
        if alive:  # in a forked child none is, and the lock may be one's that stayed behind
            with holding(self._lock):
                left = list(self._jobs)
                self._jobs.clear()
                self._waiting = 0
            self.stop()
            for _, ended, _ in left:
                self._post(partial(ended, RuntimeError("the interpreter is about to end")))
        return alive

    def _add_thread(self) -> None:
        name = f"aiostage {self._name} {len(self._threads)}"
        self._threads.append(exits.start(self._work, name))

    def _work(self) -> None:
        while True:
            self._parking.get()
            while (item := self._next()) is not None:
                job, ended, _ = item
                error = _attempt(job)
                del item, job  # or the thread would keep a caller's data until its next job
                self._post(partial(ended, error))
                del ended, error
            if self._stopping:
                return

    def _post(self, callback: Callable[[], object]) -> None:
        port = self._port()
        if port is not None:
            port.post(callback)

    def _next(self) -> tuple[Callable[[], object], Ended, int] | None:
        """The next job, or None: then the thread counts as parked."""
        with holding(self._lock):
            if not self._jobs:
                self._running -= 1
                return None
            job = self._jobs.popleft()
            self._waiting -= job[2]
            return job


def _attempt(job: Callable[[], object]) -> BaseException | None:
    """Run it; what it raises is for whoever waits for it."""
    try:
        job()
    except BaseException as error:
        return error
    return None
