"""Threads that copy into staging memory, and submit where a submit blocks, while the event loop goes on."""

from __future__ import annotations

import queue
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from weakref import ref

import anyio
from anyio.lowlevel import current_token

from .. import exits
from ..errors import CannotStartThread
from ..exits import holding
from ..loop import LoopPort

Done = Callable[[BaseException | None], object]


class Workers:
    """A few long-lived threads that take jobs in order; `done` is called on the loop when one is through.

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
        self._jobs: deque[tuple[Callable[[], object], Done, int]] = deque()
        self._waiting = 0  # bytes of the jobs in it
        self._running = 0  # threads that are not parked
        self._stopping = False
        self._parking: queue.SimpleQueue[None] = queue.SimpleQueue()  # one item wakes one thread
        self._threads: list[threading.Thread] = []
        exits.endings[self] = Workers._end
        if not exits.over:
            self._add_thread()

    def start(self, job: Callable[[], object], done: Done, nbytes: int = 0) -> None:
        """Have a thread run `job`, which copies `nbytes`; then `done(error or None)` on the loop.

        At the interpreter's end, when there are no threads any more, it runs here; and not at all in a destructor then.
        """
        if exits.over:
            if not sys.is_finalizing():
                self._post(partial(done, _attempt(job)))
            return
        with holding(self._lock):
            self._jobs.append((job, done, nbytes))
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

    async def run(self, job: Callable[[], object]) -> None:
        """Run `job` in a thread. A cancellation waits for it: it may be writing to memory that others get next."""
        finished = anyio.Event()
        errors: list[BaseException | None] = []

        def done(error: BaseException | None) -> None:
            errors.append(error)
            finished.set()

        self.start(job, done)
        await wait_out(finished.is_set, finished.wait)
        error = errors.pop()
        try:
            if error is not None:
                raise error
        finally:
            del error  # see wait_out

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
            for _, done, _ in left:
                self._post(partial(done, RuntimeError("the interpreter is about to end")))
        return alive

    def _add_thread(self) -> None:
        name = f"aiostage {self._name} {len(self._threads)}"
        self._threads.append(exits.start(self._work, name))

    def _work(self) -> None:
        while True:
            self._parking.get()
            while (item := self._next()) is not None:
                job, done, _ = item
                error = _attempt(job)
                del item, job  # or the thread would keep a caller's data until its next job
                self._post(partial(done, error))
                del done, error
            if self._stopping:
                return

    def _post(self, callback: Callable[[], object]) -> None:
        port = self._port()
        if port is not None:
            port.post(callback)

    def _next(self) -> tuple[Callable[[], object], Done, int] | None:
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


async def wait_out(is_over: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
    """Wait again and again until `is_over()`; for threads, which write to memory that others get next.

    What is thrown into the waiting task is raised afterwards. A shield alone holds off only anyio's cancellations:
    none by asyncio's own means (`task.cancel`, `asyncio.timeout`, Ctrl-C under `asyncio.run`), nor trio's Ctrl-C.
    `LoopPort.check_task` must have passed: what a foreign driver steps would be thrown back in here for ever.
    """
    thrown: BaseException | None = None
    while not is_over() and _on_a_loop():  # a coroutine that is closed after its loop cannot wait, in no `finally`
        try:
            if thrown is None:
                await wait()
            else:
                with anyio.CancelScope(shield=True):
                    await wait()
        except GeneratorExit:  # there is no loop any more to wait on
            raise
        except BaseException as error:
            thrown = error
    try:
        if thrown is not None:
            raise thrown
    finally:
        del thrown  # or it, its traceback and this frame would keep each other, and the caller's data, alive


def _on_a_loop() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True
